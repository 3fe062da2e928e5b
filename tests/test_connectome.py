"Connectomes: the published files, facts of anatomy that they must hold, and agreement."
import json

import numpy as np
import pytest

from neurocompanion.core import ParameterError, RecordingError
from neurocompanion.recordings.worm.connectome import (
    CONNECTOMES, adjacency, agreement, load_connectome, read_connectome)
from neurocompanion.recordings.worm.simulate import SHARED
from neurocompanion.recordings.standard import NEURONS


@pytest.fixture(scope="module")
def published(mirror): return {name: load_connectome(name) for name in CONNECTOMES}


def test_what_the_published_files_hold_and_how_they_agree(published):
    chemical = {k: int((ds.chemical > 0).sum()) for k, ds in published.items() if "chemical" in ds}
    assert chemical == {"white1986": 2266, "cook2019": 3709, "cook2019_edges": 3638,
                        "witvliet2021": 1933}
    covered = {k: int(ds.covered.sum()) for k, ds in published.items()}
    assert covered == {"white1986": 300, "cook2019": 302, "cook2019_edges": 300,
                       "witvliet2021": 180, "randi2023": 168}
    assert int(np.isfinite(published["randi2023"].signal).sum()) == 22521
    for ds in published.values():
        assert ds.sizes == {"pre": 302, "post": 302} and list(ds.pre.values) == NEURONS
        assert len(ds.attrs["sha256"]) == 64 and ds.attrs["doi"].startswith("10.")
    table = agreement(published.values()).set_index(["a", "b"])      # two copies of Cook do best
    anatomy = table.dropna()
    assert anatomy.jaccard.idxmax() == ("cook2019", "cook2019_edges")
    assert anatomy.jaccard.max() > 0.85 and anatomy.jaccard.min() > 0.35
    assert table.spearman.loc[("cook2019", "randi2023")] < 0.1
    (only,) = published["randi2023"].attrs["report"]
    assert only["name"] == "IL2V4" and "IL2VR" in only["reason"]
    signal = adjacency(published["randi2023"], ["RID", "URXL"], "signal")
    assert signal[0, 1] > 0.2 and abs(signal[1, 0]) < 0.02    # this fixes the axes of the atlas
    assert adjacency(published["cook2019"], ["RID", "URXL"])[0, 1] == 0   # there is no synapse


def test_nothing_is_lost_without_a_word(published, mirror):
    edges = json.loads((mirror / "connectome" / "white_1986_whole.json").read_text())
    ds = published["white1986"]
    dropped = {r["name"] for r in ds.attrs["report"] if r["action"] == "dropped"}
    assert {"LegacyBodyWallMuscles", "GLRDL"} <= dropped and not dropped & set(NEURONS)
    kept = [e for e in edges if not {e["pre"], e["post"]} & dropped]
    for typ, kind in ((0, "chemical"), (2, "electrical")):
        assert float(ds[kind].sum()) == sum(sum(e["syn"]) for e in kept if e["typ"] == typ)


@pytest.mark.parametrize("name", ["white1986", "cook2019", "witvliet2021"])
def test_known_anatomy(published, name):
    "AIB writes to RIM of the other side; the two AVA are joined; gap junctions have no direction."
    ds = published[name]
    A = adjacency(ds, ["AIBL", "RIMR", "AIBR", "RIML"], "chemical")
    assert A[0, 1] > 5 and A[2, 3] > 5 and A[1, 0] <= A[0, 1]
    E = ds.electrical.values
    assert np.array_equal(E, E.T) and (E >= 0).all()
    assert adjacency(ds, ["AVAL", "AVAR"])[0, 1] > 0


def test_adjacency_of_the_shared_neurons(published):
    ds = published["cook2019"]
    renamed = {r["name"] for r in ds.attrs["report"] if r["action"] == "renamed"}
    assert {"VB01", "VB02", "DD06"} <= renamed and "VB10" not in renamed
    padded = [n.replace("VB1", "VB01").replace("VB2", "VB02") for n in SHARED]
    for name in ("white1986", "cook2019", "cook2019_edges"):
        A = adjacency(published[name], padded)
        assert A.shape == (15, 15) and np.array_equal(A, adjacency(published[name], SHARED))
    with pytest.raises(RecordingError, match="witvliet2021: .* found VB1, VB2"):
        adjacency(published["witvliet2021"], SHARED)
    A = adjacency(published["witvliet2021"], SHARED, missing="zero")
    assert (A[-2:] == 0).all() and (A[:, -2:] == 0).all() and A[:-2, :-2].any()
    with pytest.raises(ParameterError, match="randi2023.*expected signal"):
        adjacency(published["randi2023"], SHARED)


def test_white_leaves_three_of_the_fifteen_alone(published):
    A = adjacency(published["white1986"], SHARED)
    assert [n for n, row in zip(SHARED, A + A.T) if not row.any()] == ["RMED", "RMEL", "RMER"]


def test_adjacency_does_not_touch_the_connectome(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([dict(zip(("pre", "post", "typ", "syn"), e))
                                                 for e in (("AVAL", "AVAR", 0, [2]),
                                                           ("AVAR", "VB1", 2, [1]))]))
    ds = read_connectome(tmp_path / "a.json")
    before = ds.copy(deep=True)
    A = adjacency(ds, ["AVAL", "AVAR", "RID"], "chemical", missing="nan")
    A[:] = 7
    assert ds.identical(before)
    assert adjacency(ds, ["AVAL", "AVAR"], "chemical").tolist() == [[0, 2], [0, 0]]


@pytest.mark.parametrize("content, says", [
    ("", "no known layout"), ("[]", "no list of connections"), ("{}", "no list of connections"),
    ('[{"pre": "AVAL"}]', "connection 0: a field is missing"),
    ('[{"pre": "AVAL", "post": "AVAR", "typ": 0, "syn": [-1]}]', "AVAL to AVAR: this is no weight"),
    ("Source,Target,Weight,Type\nAVAL,AVAR,1,gap\n", "line 2: no such kind"),
    (",RID\nRID,much\n", "a response is no number"), (",RID\n", "no table of signals")])
def test_damaged_files_say_what_is_wrong(tmp_path, content, says):
    path = tmp_path / "wiring.txt"
    path.write_text(content)
    with pytest.raises(RecordingError, match=says) as caught: read_connectome(path)
    assert "wiring.txt" in str(caught.value)
