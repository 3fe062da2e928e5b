"Formats of laboratories: every sort of plain file, odd content, damage, attacks, real files."
import datetime
import pickle
import shutil
import struct

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.io import savemat
from scipy.sparse import csc_array

from neurocompanion.core import NeurocompanionError
from neurocompanion.recordings.guard import pickled
from neurocompanion.recordings.read import inputs, layout_of, read, summary
from neurocompanion.recordings.standard import check, open_recording, save

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 4))                                               # time neuron
FRAME = pd.DataFrame(X, columns=["AVAL", "AVAR", "ROI7", "cell 9"])
TIMES = [np.sort(RNG.uniform(0, 6, n)) for n in (40, 25, 60)]


def mat73(path, **fields):
    "A MATLAB 7.3 file: HDF5, with the sides turned round."
    with h5py.File(path, "w", userblock_size=512) as f:
        for k, v in fields.items():
            f[k] = np.asarray(v).T
            f[k].attrs["MATLAB_class"] = np.bytes_("double")
    content = bytearray(path.read_bytes())
    content[:19] = b"MATLAB 7.3 MAT-file"
    path.write_bytes(content)


def suite2p(path):
    for k, z in enumerate((4, 3)):
        p = path / f"plane{k}"
        p.mkdir(parents=True)
        F = RNG.uniform(1, 2, (z, 60)).astype("f4")
        for name, v in {"F": F, "Fneu": F / 2, "spks": F, "iscell": np.ones((z, 2))}.items():
            np.save(p / f"{name}.npy", v)
        np.save(p / "ops.npy", {"fs": 10.0, "Ly": 9})
        np.save(p / "stat.npy", np.array([{"med": [i, i + 1], "lam": np.ones(3, "f4")}
                                          for i in range(z)], object))


def phy(path):
    path.mkdir()
    unit = np.repeat([0, 2, 5], [len(t) for t in TIMES])
    np.save(path / "spike_times.npy", (np.concatenate(TIMES) * 30_000).astype("u8"))
    np.save(path / "spike_clusters.npy", unit.astype("i4"))
    (path / "params.py").write_text("sample_rate = 30000.0\n")
    (path / "cluster_group.tsv").write_text("cluster_id\tgroup\n0\tgood\n2\tmua\n5\tgood\n")


def caiman(path):
    A = csc_array(np.eye(12)[:, :4])
    with h5py.File(path, "w") as f:
        for k in ("data", "indices", "indptr", "shape"): f[f"estimates/A/{k}"] = getattr(A, k)
        f["estimates/C"], f["dims"], f["params/data/fr"] = X.T, [3, 4], 10.0


def nwb(path, spikes=False, traces=True):
    with h5py.File(path, "w") as f:
        f.attrs["nwb_version"], f["identifier"] = "2.7.0", "m3-day1"
        if traces:
            seg = f.create_group("processing/ophys/ImageSegmentation/PlaneSegmentation")
            seg["id"], seg["image_mask"] = np.arange(4), np.eye(4)[:, :, None] * np.ones(3)
            g = f.create_group("processing/ophys/DfOverF/roi")
            g.attrs["neurodata_type"], g["data"], g["rois"] = "RoiResponseSeries", X, np.arange(4)
            g["rois"].attrs["table"], g["timestamps"] = seg.ref, np.arange(60) / 10
        if spikes:
            f["units/id"], f["units/spike_times"] = [0, 1, 2], np.concatenate(TIMES)
            f["units/spike_times_index"] = np.cumsum([len(t) for t in TIMES])


def table(path, to="to_csv", **how):
    df = FRAME.assign(time=np.arange(60) / 10)[["time", *FRAME]]
    getattr(df, to)(path, **{"index": False, **how})


def spike_list(path):
    unit = np.repeat(["a", "b", "c"], [len(t) for t in TIMES])
    pd.DataFrame({"time": np.concatenate(TIMES), "unit": unit}).to_csv(path, index=False)


def cells(path):
    c = np.empty(3, object)
    for i, t in enumerate(TIMES): c[i] = t
    savemat(path, {"spikes_of": c})


MATRIX = dict(axes="time neuron", sampling_rate=10)
FORMATS = {   # file: what makes it, what its reader is told, what is read
    "a.csv": (table, {}, "traces"),
    "a.tsv": (lambda p: table(p, sep="\t"), {}, "traces"),
    "euro.csv": (lambda p: table(p, sep=";", decimal=","), {}, "traces"),
    "index.csv": (FRAME.to_csv, dict(sampling_rate=10), "traces"),
    "a.parquet": (lambda p: table(p, "to_parquet"), {}, "traces"),
    "rows.csv": (lambda p: FRAME.T.to_csv(p), dict(axes="neuron time", sampling_rate=10), "traces"),
    "a.npy": (lambda p: np.save(p, X), MATRIX, "traces"),
    "a.npz": (lambda p: np.savez(p, dff=X, t=np.arange(60) / 10), {}, "traces"),
    "a.mat": (lambda p: savemat(p, {"s": {"dff": X, "fs": 10.0, "names": list("abcd")}}),
              dict(axes="time neuron"), "traces"),
    "b.mat": (lambda p: mat73(p, dff=X, time=np.arange(60)[:, None] / 10), {}, "traces"),
    "a.h5": (lambda p: h5py.File(p, "w").create_dataset("g/dff", data=X), MATRIX, "traces"),
    "suite2p": (suite2p, {}, "traces"),
    "a.hdf5": (caiman, {}, "traces"),
    "a.nwb": (nwb, {}, "traces"),
    "phy": (phy, {}, "spikes"),
    "list.csv": (spike_list, {}, "spikes"),
    "cells.mat": (cells, {}, "spikes"),
    "times.npz": (lambda p: np.savez(p, *TIMES), dict(kind="spikes"), "spikes"),
    "counts.npy": (lambda p: np.save(p, RNG.poisson(1, (3, 20, 4))),
                   dict(axes="trial time unit", bin_size=0.01), "spikes"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    for name, (make, *_) in FORMATS.items(): make(folder / name)
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_read_saved_and_named(place, name, tmp_path):
    _, how, kind = FORMATS[name]
    ds, = read(place / name, **how)
    check(ds)
    assert ds.kind == kind and ds.subject and len(ds.sha256) == 64
    assert all("action" in e and "reason" in e for e in ds.report)
    if kind == "traces" and name != "suite2p": assert np.allclose(ds.trace, X)
    if kind == "traces": assert abs(ds.sampling_rate - 10) < 1e-6
    if "FRAME" in name or name in ("a.csv", "a.parquet", "rows.csv", "index.csv"):
        assert ds.neuron.values.tolist() == [*FRAME]
        assert ds.labelled.values.tolist() == [True, True, False, False]
    xr.testing.assert_identical(open_recording(save(ds, tmp_path / "a.nc")), ds)
    assert len(inputs(place / name)) == 1 if (place / name).is_file() else inputs(place / name)
    if not how: assert summary(str(place / name))["holds"][1].startswith("  neurocompanion.recor")


def test_a_folder_of_everything(place):
    found = read(place, axes="time neuron", sampling_rate=10)
    names = {*found.places}
    assert {"a.csv", "suite2p", "phy", "a.npy", "list.csv", "a.nwb"} <= names
    assert all("axes" in why or "array" in why or "matrix" in why for _, why in found.left_out)


def test_raw_data_beside_are_not_summed(place, tmp_path):
    for name in ("suite2p", "phy"): shutil.copytree(place / name, tmp_path / name)
    before = inputs(tmp_path), inputs(tmp_path / "phy"), inputs(tmp_path / "suite2p")
    (tmp_path / "phy/recording.dat").write_bytes(b"raw")
    (tmp_path / "suite2p/plane0/data.bin").write_bytes(b"raw")
    assert before == (inputs(tmp_path), inputs(tmp_path / "phy"), inputs(tmp_path / "suite2p"))
    np.save(tmp_path / "suite2p/plane0/iscell.npy", np.ones((4, 2)) * [0, 1])
    assert before[0] != inputs(tmp_path) and before[2] != inputs(tmp_path / "suite2p")


# one file, two kinds


def test_spikes_and_traces_of_one_nwb_file(tmp_path):
    nwb(tmp_path / "both.nwb", spikes=True)
    assert read(tmp_path / "both.nwb")[0].kind == "spikes"
    assert any("kind='traces'" in e["reason"] for e in read(tmp_path / "both.nwb")[0].report)
    assert read(tmp_path / "both.nwb", kind="traces")[0].kind == "traces"
    assert read(tmp_path, kind="traces")[0].kind == "traces"
    nwb(tmp_path / "none.nwb", traces=False)
    with pytest.raises(NeurocompanionError, match="neither spikes nor traces"):
        read(tmp_path / "none.nwb")


def test_traces_of_pynwb(tmp_path):
    import pynwb
    from pynwb.ophys import DfOverF, Fluorescence, ImageSegmentation, OpticalChannel
    f = pynwb.NWBFile("a session", "one", datetime.datetime.fromisoformat("2020-01-01T00:00+00:00"))
    f.subject = pynwb.file.Subject(subject_id="m3", species="Mus musculus")
    plane = f.create_imaging_plane(
        name="p", optical_channel=OpticalChannel(
            name="c", description="a channel", emission_lambda=500.0), description="a plane",
        device=f.create_device("microscope"), excitation_lambda=600.0, indicator="GCaMP",
        location="V1", imaging_rate=10.0)
    ophys, masks = f.create_processing_module("ophys", "traces"), ImageSegmentation()
    ophys.add(masks)
    seg = masks.create_plane_segmentation(name="seg", description="cells", imaging_plane=plane)
    for i in range(4): seg.add_roi(pixel_mask=[(i, 2 * i, 1.0), (i + 2, 2 * i, 1.0)])
    rois = seg.create_roi_table_region(description="all", region=[0, 1, 2, 3])
    raw, dff = Fluorescence(), DfOverF()
    ophys.add([raw, dff])
    about = dict(name="plane0", rois=rois, unit="n.a.", rate=10.0)
    raw.create_roi_response_series(data=X + 9, **about)
    dff.create_roi_response_series(data=X, **about)
    moves = f.create_processing_module("behavior", "moves")
    speed = pynwb.TimeSeries(name="speed", data=np.arange(120.0), unit="m/s", rate=20.0)
    moves.add(pynwb.behavior.BehavioralTimeSeries(time_series=speed, name="run"))
    with pynwb.NWBHDF5IO(tmp_path / "a.nwb", "w") as out: out.write(f)
    with pytest.raises(NeurocompanionError, match=r"DfOverF/plane0 \(60 × 4\)"):
        read(tmp_path / "a.nwb")
    ds = read(tmp_path / "a.nwb", series="DfOverF/plane0")[0]
    assert np.allclose(ds.trace, X) and ds.subject == "m3" and ds.sampling_rate == pytest.approx(10)
    assert ds.x.values.tolist() == [1, 2, 3, 4] and ds.y.values.tolist() == [0, 2, 4, 6]
    assert np.allclose(ds.run_speed[:3], [0.5, 2.5, 4.5])


# odd content is named, place by place


def text(content): return lambda p: p.write_text(content)


HEAD = "time,a,b\n"
REFUSED = {   # file: what makes it, what the reader is told, the words
    "no axes.npy": (lambda p: np.save(p, X), {}, '"neuron time", which is 4 frames of 60 neurons'),
    "no rate.npy": (lambda p: np.save(p, X), dict(axes="time neuron"), "Give sampling_rate="),
    "no bins.npy": (lambda p: np.save(p, abs(X).round()), dict(axes="time unit"), "Give bin_size="),
    "counts.npy": (lambda p: np.save(p, X), dict(axes="time unit", bin_size=1), "are not counts"),
    "text.csv": (text(HEAD + "0,1,x\n1,2,3\n2,y,4\n"), {}, "a row 3 'y'; b row 1 'x'"),
    "nan.csv": (text(HEAD + "0,,\n1,,\n"), {}, "no neuron is left"),
    "late.csv": (text(HEAD + "0,1,2\n2,1,3\n1,4,5\n"), {}, "time does not increase"),
    "ragged.csv": (text(HEAD + "0,1,2\n1,2,3,4\n"), {}, "a row of the table does not fit"),
    "empty.csv": (text(HEAD), {}, "the table is empty"),
    "two.npz": (lambda p: np.savez(p, dff=X, raw=X), MATRIX, r"dff \(60 × 4\), raw \(60 × 4\)"),
    "name.npz": (lambda p: np.savez(p, dff=X), dict(variable="dfff"), "Did you mean dff?"),
    "pickle.npy": (lambda p: np.save(p, np.array([{}], object)), {}, "holds Python objects"),
    "cube.npy": (lambda p: np.save(p, np.ones((2, 3, 4))), {}, 'axes="trial time unit"'),
    "axes.npy": (lambda p: np.save(p, X), dict(axes="time trial"), "found 'time trial'"),
    "long.csv": (text("time,unit,dff\n0,a,1\n0,b,2\n1,a,3\n1,b,4\n"), {}, "df.pivot"),
    "fast.csv": (text("time,unit\n1,a\n3e9,b\n"), {}, "unit b: these are no seconds"),
    "rows.csv": (text(",1,2\nAVAL,3,4\n"), {}, "its rows have names"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name, tmp_path):
    make, how, words = REFUSED[name]
    make(tmp_path / name)
    with pytest.raises(NeurocompanionError, match=words) as e: read(tmp_path / name, **how)
    assert name in str(e.value) and "\n" not in str(e.value)


def test_dead_and_doubled_columns_are_in_the_report(tmp_path):
    x = FRAME.set_axis(["VA01", "flat", "dead", "twin"], axis=1).assign(flat=1.0, dead=np.nan)
    x.insert(4, "twin", X[:, 0], allow_duplicates=True)
    x.assign(note="x").to_csv(tmp_path / "a.csv")
    ds = read(tmp_path / "a.csv", sampling_rate=5)[0]
    told = {e.get("neuron", e.get("variable")): e["reason"] for e in ds.report}
    assert told["VA1"] == "written VA01" and "never changes" in told["flat"]
    assert told["dead"] == "no frame has a value" and told["note"].startswith("text")
    assert sum("another neuron has this name" in r for r in told.values()) == 2
    assert ds.neuron.values.tolist() == ["VA1", "flat", "?003", "?004"]


def test_layouts_claim_a_file_by_fields_of_their_own(tmp_path):
    savemat(tmp_path / "a.mat", {"norm_traces": X, "fps": 4.0})       # not Yemini's
    savemat(tmp_path / "b.mat", {"F": X.T, "spks": X.T})              # suite2p's, not Aplysia
    savemat(tmp_path / "c.mat", {"D": X})                             # not DataHigh
    pd.DataFrame({"timestamp": [0.0, 1.0], "a": [1.0, 2.0]}).to_csv(tmp_path / "d.csv", index=False)
    FRAME.to_parquet(tmp_path / "e.parquet")                          # not IBL
    mat73(tmp_path / "f.mat", traces=X, tv=np.arange(60)[:, None] / 10)  # not Zimmer's
    assert {layout_of(p)[0] for p in tmp_path.iterdir()} == {"arrays", "table"}
    assert np.allclose(read(tmp_path / "f.mat")[0].trace, X)


def test_memory():
    held = FRAME.set_index(pd.Index(np.arange(60) / 10, name="time"))
    for what, how in ((held, {}), (FRAME, dict(sampling_rate=10)), (X, MATRIX),
                      (held.set_axis(pd.date_range("2024", periods=60, freq="100ms")), {})):
        ds = read(what, **how)[0]
        assert np.allclose(ds.trace, X) and abs(ds.sampling_rate - 10) < 1e-6
    assert len({ds.session for ds in read([held, held])}) == 2
    with pytest.raises(NeurocompanionError, match="DataFrame of 60 × 4"): read(FRAME)


# trials


def test_windows_around_events(place, tmp_path):
    pd.DataFrame({"go": [1.0, 2.0, 99.0], "side": ["L", "R", "L"]}).to_csv(tmp_path / "trials.csv")
    how = dict(align="go", before=0.5, after=0.5, bin_size=0.1, trials=tmp_path / "trials.csv")
    for name, more in (("phy", dict(units="all")), ("list.csv", {}), ("cells.mat", {})):
        ds = read(place / name, **how, **more)[0]
        want = [[((t >= g - 0.5) & (t < g + 0.5)).sum() for t in TIMES] for g in (1.0, 2.0)]
        assert np.abs(ds.spikes.sum("time").values - want).max() <= 1      # a sample at the edge
        assert ds.side.values.tolist() == ["L", "R"] and "leaves the recording" in str(ds.report)
    with pytest.raises(NeurocompanionError, match="align= one of go"):
        read(place / "phy", trials=tmp_path / "trials.csv")


def test_pynapple():
    import pynapple as nap
    group = nap.TsGroup({k: nap.Ts(t) for k, t in zip((2, 4, 9), TIMES)},
                        metadata={"area": ["a", "b", "c"]})
    ds = read(group, bin_size=0.1)[0]
    assert ds.unit.values.tolist() == [2, 4, 9] and int(ds.spikes.sum()) == 125
    assert ds.area.values.tolist() == ["a", "b", "c"]
    trials = nap.IntervalSet([1, 3], [2, 4])
    cut = read(group, trials=trials, align="start", before=0, after=1, bin_size=0.1)[0]
    assert cut.sizes["trial"] == 2 and cut.end.values.tolist() == [2, 4]
    frame = nap.TsdFrame(t=np.arange(60) / 10, d=X, columns=[*FRAME])
    assert np.allclose(read(frame)[0].trace, X)
    assert read(nap.Tsd(t=np.arange(60) / 10, d=X[:, 0]))[0].sizes["neuron"] == 1
    parts = group.restrict(nap.IntervalSet([0, 3], [2, 5]))
    ds = read(parts, bin_size=0.5)[0]
    assert np.isnan(ds.spikes.values).all(1).sum() == 2


# damage


def mutants(content, n, seed):
    "Copies with flipped bytes, cut short, or with a piece written over."
    rng = np.random.default_rng(seed)
    for i in range(n):
        new = bytearray(content)
        if i % 4 == 3: del new[int(rng.integers(len(new))):]
        for _ in range(int(rng.integers(1, 9)) if i % 4 < 2 else 0):
            at = int(rng.integers(len(new)))
            new[at] = int(rng.integers(256)) if i % 4 else new[at] ^ 1 << int(rng.integers(8))
        if i % 4 == 2:
            at = int(rng.integers(len(new)))
            new[at:at + 8] = struct.pack("<q", int(rng.integers(-2**62, 2**62)))[:len(new) - at]
        yield bytes(new)


@pytest.mark.parametrize("name", FORMATS)
def test_damage_is_one_error_or_none(place, name, tmp_path):
    _, how, kind = FORMATS[name]
    if kind == "spikes": how = {"bin_size": 0.1, **how}   # a late spike makes a long recording
    whole, copy = place / name, tmp_path / name
    parts = sorted(p.relative_to(whole) for p in whole.rglob("*.*") if p.is_file()) \
        if whole.is_dir() else [None]
    (shutil.copytree if whole.is_dir() else shutil.copy)(whole, copy)
    for i, part in enumerate(parts):
        victim, content = (copy / part, (whole / part).read_bytes()) if part else \
            (copy, whole.read_bytes())
        for bad in mutants(content, max(4, 80 // len(parts)), i):
            victim.write_bytes(bad)
            try: check(read(copy, **how)[0])
            except NeurocompanionError as e: assert "\n" not in str(e)
        victim.write_bytes(content)


def test_cells_that_all_hold_the_same(tmp_path):
    "References to one array, each small, would fill any memory."
    with h5py.File(tmp_path / "a.mat", "w") as f:
        d = f.create_dataset("#refs#/a", data=np.zeros(1 << 20), compression="gzip")
        f.create_dataset("cells", data=np.array([d.ref] * 20_000, h5py.ref_dtype))
    with pytest.raises(NeurocompanionError, match="a.mat: .*(larger than|no room)"):
        read(tmp_path / "a.mat")


# pickles that are more than data


class Call:
    def __init__(self, *call): self.call = call

    def __reduce__(self): return self.call


def as_npy(path, data):
    np.save(path, np.array([None], object))
    start = path.read_bytes()
    path.write_bytes(start[:start.index(b"\n") + 1] + data)
    return path


def crafted(code): return b"\x80\x04" + code + b"."


ARRAY = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0tC\x01btR"
ATTACKS = {
    "system": b"cos\nsystem\n(X\4\0\0\0truetR",
    "eval": b"cbuiltins\neval\n(X\3\0\0\0" + b"1+1tR",
    "import in disguise": b"cnumpy\nos.system\n(X\4\0\0\0truetR",
    "getattr": b"cbuiltins\ngetattr\n(cnumpy\nndarray\nX\1\0\0\0TtR",
    "loads": b"cnumpy\nload\n(X\1\0\0\0atR",
    "loads a pickle": b"cpickle\nloads\n(C\1.tR",
    "runs its text": b"cnumpy.testing\nrundocs\n(tR",
    "old instruction": b"(X\4\0\0\0trueios\nsystem\n",
    "object": b"(cos\nsystem\nX\4\0\0\0trueo",
    "new object": b"cnumpy\nndarray\n(K\1t\x81",
    "extension": b"\x82\1",
    "persistent": b"Pabc\n",
    "attributes": b"cnumpy\nndarray\n}X\1\0\0\0aK\1sb",
    "vast array": ARRAY + b"(K\1(\x8a\6\0\0\0\0\0\1tcnumpy\ndtype\n(X\2\0\0\0f8tR(K\3X\1\0\0\0<"
                          b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89C\0tb",
    "vast memory": b"Nr\xff\xff\xff\x7fh\0",
    "negative array": ARRAY + b"(K\1(J\xff\xff\xff\xfftcnumpy\ndtype\n(X\2\0\0\0f8tR(K\3X\1\0\0\0<"
                              b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89C\0tb",
    "strange type": b"cnumpy\ndtype\n(X\7\0\0\0f8,(9)ztR",
    "bare name": b"cnumpy\nndarray\n",
    "empty array": ARRAY,
    "nested": b"]" * 5000 + b"a" * 4999,
    "deep key": b"}" + b")" + b"\x85" * 100_000 + b"Ns",
    "no end": b"]" * 100,
    "text of a number": b"L" + b"9" * 5000 + b"L\n",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_pickle_is_never_run(attack, tmp_path):
    path = as_npy(tmp_path / "a.npy", crafted(ATTACKS[attack]))
    with pytest.raises(NeurocompanionError, match="a.npy") as e: pickled(path)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_pickles_of_both_numpys(core, tmp_path):
    value = np.array([{"lam": np.ones((2, 3), ">f4"), "n": np.int64(3), "t": ("é", b"x", 1.5)}],
                     object)
    here, there = b"cnumpy._core.multiarray", f"c{core}.multiarray".encode()
    data = pickle.dumps(value, 3).replace(here, there)
    back = pickled(as_npy(tmp_path / "a.npy", data))
    assert (back[0]["lam"] == 1).all() and back[0]["n"] == 3 and back[0]["t"] == ("é", b"x", 1.5)
    assert all((pickled(as_npy(tmp_path / "b.npy", pickle.dumps(value, p)))[0]["lam"] == 1).all()
               for p in (3, 4))


# real files


def test_real_suite2p(mirror):
    place = mirror / "suite2p_pynapple"
    if not place.is_dir(): pytest.skip("the mirror has no suite2p folder")
    every, some = read(place, cells="all")[0], read(place, sampling_rate=30)[0]
    sure = np.load(place / "iscell.npy")[:, 0] > 0
    assert every.trace.shape == (2000, 219) and some.sizes["neuron"] == sure.sum()
    assert np.array_equal(every.is_cell.values, sure)
    assert np.allclose(some.trace.values, np.load(place / "F.npy")[sure].T)


def test_real_matrices(mirror):
    place = mirror / "zebrafish_chen2018_units" / "subject_12.npz"
    if not place.is_file(): pytest.skip("the mirror has no fish")
    from neurocompanion.recordings.arrays import read_arrays
    ds = read_arrays(place, axes="neuron time")[0]                   # the rate is in the file
    same = read(place)[0]
    assert ds.trace.shape == same.trace.shape and np.allclose(ds.trace, same.trace)
    assert ds.sampling_rate == same.sampling_rate
