"Simulated recordings: the same bytes from the same seed, known truth, real worms beside them."
import os, subprocess, sys

import h5py
import numpy as np
import pytest

from neurocompanion.core import ParameterError, sha256
from neurocompanion.recordings.simulate import observed
from neurocompanion.recordings.worm.simulate import worms
from neurocompanion.recordings.spikes.simulate import chaotic_rnn, ladder, lorenz, sessions
from neurocompanion.recordings.video.simulate import fish
from neurocompanion.recordings.standard import NEURONS, check, open_recording, save, to_302

MAKE = {
    "worms": lambda seed: worms(2, seed=seed, duration=40, frame_rate=[3, 1])[1],
    "sessions": lambda seed: sessions([0, 0.5], seed=seed, trials=6, units=7, drift=0.3)[1],
    "chaotic_rnn": lambda seed: chaotic_rnn(5, 2, seed=seed, amplitude=1.0),
    "lorenz": lambda seed: lorenz(4, 2, seed=seed),
    "fish": lambda seed: fish(6, seed=seed, shape=(4, 24, 24), motion=1.0,
                              conditions={"dark": (4, 0), "flash": (4, 2)})}


@pytest.mark.parametrize("name", MAKE)
def test_keeps_the_standard_and_comes_back(name, tmp_path):
    ds = MAKE[name](0)
    check(ds)
    check(observed(ds))
    assert ds.source == "simulated" and ds.simulator == name and ds.seed == 0
    assert set(ds.truth) <= set(ds.variables) and not set(ds.truth) & set(observed(ds).variables)
    assert open_recording(save(ds, tmp_path / "a.nc")).identical(ds)
    save(observed(ds), tmp_path / "b.nc")


def test_same_seed_same_bytes_in_another_process(tmp_path):
    "Whatever the threads, the hash seed and the world's random state, which is left alone."
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    here = {n: sha256(save(make(3), tmp_path / f"{n}.nc")) for n, make in MAKE.items()}
    for n, make in MAKE.items(): assert sha256(save(make(4), tmp_path / "other.nc")) != here[n]
    assert np.array_equal(np.random.get_state()[1], before)
    code = ("import sys; sys.path.insert(0, sys.argv[1]); import test_simulate as t, pathlib\n"
            "for n, make in t.MAKE.items():\n"
            "    print(n, t.sha256(t.save(make(3), pathlib.Path(sys.argv[2]) / f'{n}-2.nc')))")
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    out = subprocess.run([sys.executable, "-c", code, os.path.dirname(__file__), str(tmp_path)],
                         capture_output=True, text=True, env=env)
    assert out.returncode == 0, out.stderr
    assert dict(line.split() for line in out.stdout.splitlines()) == here


def test_worms_do_not_hang_on_their_length_or_other_neurons_and_fit_the_papers_matrix():
    ds, longer = (worms(1, duration=seconds)[0] for seconds in (20, 30))
    for v in ("trace", "expected", "rate", "latent", "state"):
        assert np.array_equal(longer[v][:60], ds[v])
    fewer = worms(1, duration=20, neurons=30, labelled=20)[0]
    same = [list(ds.identity.values).index(n) for n in fewer.identity.values]
    assert np.array_equal(ds.trace[:, same], fewer.trace)
    x, mask = to_302(ds)
    assert x.shape == (302, 60) and mask.sum() == 40
    named = ds.neuron.values[ds.labelled]
    assert set(named) == {NEURONS[i] for i in np.flatnonzero(mask)}
    assert np.array_equal(ds.identity.values[ds.labelled], named)
    assert all(n.startswith("?") for n in ds.neuron.values[~ds.labelled])


def test_no_predictor_beats_the_floor():
    "Not even one that is fitted to the hidden rates and latents of the very frames it predicts."
    ds = worms(1, duration=1200, neurons=40, labelled=40, bleach=0)[0]
    hidden = np.c_[ds.rate.values, ds.latent.values, ds.trace.values, np.ones(3600)][:-1]
    x = ds.trace.values[1:].astype(float)
    half = 1800
    B = np.linalg.lstsq(hidden[:half], x[:half], rcond=None)[0]
    error = ((x[half:] - hidden[half:] @ B) ** 2).mean()
    floor = float(((ds.trace - ds.expected)[half + 1:] ** 2).mean())
    naive = (np.diff(ds.trace.values[half:], axis=0) ** 2).mean()
    assert floor < error < naive
    surprise = x - ds.expected.values[1:]   # white, and unknown to the past
    alike = lambda a, b: np.mean([np.corrcoef(p, q)[0, 1] for p, q in zip(a.T, b.T)])
    assert abs(alike(surprise[1:], surprise[:-1])) < 0.01
    assert abs(alike(surprise[1:], x[:-1])) < 0.01 < alike(surprise, x)
    ds = worms(1, duration=1200)[0]
    surprise = (ds.trace - ds.expected).values
    assert np.abs(surprise.mean(0) / surprise.std(0)).max() < 5 / np.sqrt(3600)   # zero on average


# ---- sessions on a ladder
def test_all_planes_go_up_together_and_no_rung_hangs_on_others():
    made = ladder([0, 0.3, 1.2], frequency=(0.3, 1.5), trials=4, units=5, drift=0.4)
    for ds in made:
        check(ds)
        np.testing.assert_allclose(ds.frequency, np.array([0.3, 1.5]) * 2**ds.distance)
        turn = np.angle(np.linalg.eigvals(ds.dynamics.values))
        np.testing.assert_allclose(np.sort(turn[turn > 0]), 2 * np.pi * 0.04 * ds.frequency)
    assert (made[0].drift == 0).all() and made[2].drift.std() > made[1].drift.std() > 0
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


@pytest.mark.parametrize("how, words", [
    (dict(distance=[]), "number of sessions"), (dict(distance=[4]), "frequency is out of range"),
    (dict(distance=[-1]), "distance"), (dict(trials=0), "trials"),
    (dict(frequency=()), "frequencies"),
    (dict(units=[3, 4]), "does not fit the number of recordings"), (dict(decay=0), "decay")])
def test_bad_arguments_are_named(how, words):
    with pytest.raises(ParameterError, match=words): ladder(**how)


# ---- networks and films
def test_shared_inputs_are_shared_and_amplitude_saturates_as_noted():
    shared = chaotic_rnn(20, 2, amplitude=2.0)
    private = chaotic_rnn(20, 2, amplitude=2.0, shared=False)
    like = lambda ds: np.corrcoef(*(ds.input[k::2].values.ravel() for k in (0, 1)))[0, 1]
    assert like(shared) == pytest.approx(1) and abs(like(private)) < 0.05
    # a repeat of a condition starts at the same state, whoever drives it
    assert np.array_equal(private.condition.values, np.repeat(np.arange(20), 2))
    # inputs of amplitude 20 hold most units at the ends of their range, of 1 do not
    ends = [float(((r.rate < 1.5) | (r.rate > 28.5)).mean()) for r in
            (chaotic_rnn(20, 1, amplitude=a) for a in (1.0, 20.0))]
    assert ends[0] < 0.4 < 0.8 < ends[1]


def test_delays_can_be_found_from_the_film():
    "Lagged correlation of mask means peaks at the delay of a strong connection."
    ds = fish(12, shape=(4, 48, 48), conditions={"dark": (1500, 0)}, blur=0.5, haze=0.0,
              photons=200.0, longest=6)
    x = ds.trace.values - ds.trace.values.mean(0)
    for g in (np.exp(-1 / 0.3), np.exp(-1 / 2.0), 0.2): x = x[1:] - g * x[:-1]   # undo the filters
    z = (x - x.mean(0)) / x.std(0)
    to, source = np.nonzero((ds.delay.values > 1) & (ds.coupling.values > 0.1))
    lagged = [(z[10:, to] * z[10 - k:len(z) - k, source]).mean(0) for k in range(1, 9)]
    assert np.mean(np.argmax(lagged, axis=0) + 1 == ds.delay.values[to, source]) > 0.9


def test_lazy_film_is_saved_block_by_block(tmp_path):
    small = dict(cells=6, shape=(4, 24, 24), conditions={"dark": (20, 0)}, dtype="float32")
    lazy, eager = fish(lazy=True, **small), fish(**small)
    back = open_recording(save(lazy, tmp_path / "film.nc"))
    assert np.array_equal(back.video, eager.video)


@pytest.mark.parametrize("call", [
    lambda: worms("five"), lambda: worms(1.5), lambda: worms(True), lambda: worms(1, seed=-1),
    lambda: worms(1, seed=None), lambda: worms(1, noise=np.nan), lambda: worms(1, noise=-1),
    lambda: worms(1, variation=1.1), lambda: worms(2, noise=[0.1]), lambda: worms(1, latents=1),
    lambda: worms(1, duration=np.inf), lambda: worms(1, bleach=2), lambda: worms(1, always="AVAL"),
    lambda: sessions(np.nan), lambda: sessions(0, trials=0), lambda: sessions(0, bin_size=0),
    lambda: sessions(0, frequency=()), lambda: sessions([]), lambda: sessions(0, conditions=2.0),
    lambda: chaotic_rnn(0), lambda: chaotic_rnn(2, 2, steps=1), lambda: chaotic_rnn(2, 2, gain=-1),
    lambda: chaotic_rnn(2, 2, seed="a"), lambda: lorenz(units=0), lambda: lorenz(rate=-1),
    lambda: fish(5), lambda: fish(blur=(1, 1)), lambda: fish(photons=0), lambda: fish(longest=1),
    lambda: fish(conditions={"dark": (0, 1)}), lambda: fish(conditions={"dark": (5, -1)}),
    lambda: fish(conditions={"a b": (5, 0)}), lambda: fish(shape=(4, 24.5, 24))])
def test_bad_arguments_are_parameter_errors(call):
    with pytest.raises(ParameterError): call()


def test_beside_the_real_worms(mirror):
    path = mirror / "kato2015" / "WT_NoStim.mat"
    if not path.is_file(): pytest.skip("the mirror has no kato2015/WT_NoStim.mat")
    with h5py.File(path) as f:
        real = [f[ref][...].T for ref in f["WT_NoStim/deltaFOverF_bc"][:, 0]]
    made = [w.trace.values.astype(float) for w in worms(5, duration=1080)]

    def portrait(x):
        z = (x - x.mean(0)) / x.std(0)
        share = np.cumsum(np.sort(np.linalg.eigvalsh(np.cov(z.T)))[::-1]) / z.shape[1]
        return [np.median(x.std(0)), np.median(np.diff(z, 2, axis=0).var(0) / 6), share[0],
                share[2], share[9], (share < 0.8).sum(), np.median((z[3:] * z[:-3]).mean(0)),
                np.median((z[15:] * z[:-15]).mean(0)), np.median((z[60:] * z[:-60]).mean(0))]

    a, b = (np.median([portrait(x) for x in group], axis=0) for group in (real, made))
    stated = [0.088, 0.118, 0.20, 0.45, 0.65, 27, 0.86, 0.69, 0.37]    # in the notebook's table
    assert np.allclose(a, stated, rtol=0.1)
    assert np.all((b / a > 0.5) & (b / a < 2))
