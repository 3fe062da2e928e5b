"Sessions on a ladder: distances that add up."
import numpy as np
import pytest

from neurocompanion.core import ParameterError
from neurocompanion.recordings.spikes.simulate import frequencies, ladder
from neurocompanion.recordings.standard import check, open_recording, save


def test_all_planes_go_up_together():
    made = ladder([0, 0.3, 1.2], frequency=(0.3, 1.5), trials=4, units=5, drift=0.4)
    for ds in made:
        check(ds)
        np.testing.assert_allclose(ds.frequency, np.array([0.3, 1.5]) * 2**ds.distance)
        turn = np.angle(np.linalg.eigvals(ds.dynamics.values))
        np.testing.assert_allclose(np.sort(turn[turn > 0]), 2 * np.pi * 0.04 * ds.frequency)
    assert (made[0].drift == 0).all() and made[2].drift.std() > made[1].drift.std() > 0


def test_a_rung_does_not_hang_on_the_others_or_on_its_number_of_neighbours():
    a, b = ladder([0.2, 0.7], seed=3, trials=5), ladder([0.2, 0.7, 0.9], seed=3, trials=[5, 5, 9])
    for x, y in zip(a, b): assert x.spikes.identical(y.spikes) and x.readout.identical(y.readout)
    assert not a[0].spikes.identical(ladder([0.2], seed=4, trials=5)[0].spikes)


def test_it_can_be_made_again_from_its_attributes(tmp_path):
    ds = ladder([0.2, 0.7], seed=3, trials=5, task=2)[1]
    save(ds, tmp_path / "rung.nc")
    a = open_recording(tmp_path / "rung.nc").attrs
    p = {k: v for k, v in a["parameters"].items() if k != "session"}
    s, d = a["parameters"]["session"], p.pop("distance")
    assert a["simulator"] == "ladder" and a["source"] == "simulated"
    again = ladder([0.0] * s + [d], seed=a["seed"], **p)[s]
    assert again.spikes.identical(ds.spikes)


def test_distances_are_those_of_frequencies():
    "The same measure as that of sessions that go their own ways."
    up = np.array([0.5, 2.0]) * 2**0.6
    assert np.sqrt(np.mean(np.log2(up / [0.5, 2.0]) ** 2)) == pytest.approx(0.6)
    own = frequencies([0.5, 2.0], 0.6, np.random.default_rng(0))
    assert np.sqrt(np.mean(np.log2(own / [0.5, 2.0]) ** 2)) == pytest.approx(0.6)


@pytest.mark.parametrize("how, words", [
    (dict(distance=[]), "number of sessions"), (dict(distance=[4]), "frequency is out of range"),
    (dict(distance=[-1]), "distance"), (dict(trials=0), "trials"),
    (dict(frequency=()), "frequencies"),
    (dict(units=[3, 4]), "does not fit the number of recordings"), (dict(decay=0), "decay")])
def test_bad_arguments_are_named(how, words):
    with pytest.raises(ParameterError, match=words): ladder(**how)
