"Every experiment of every paper, on every kind of file that it can take; runs of about a second."
import json, shutil
from functools import lru_cache
from importlib import import_module

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.io import savemat

from neurocompanion.core import NeurocompanionError, home
from neurocompanion.recordings.read import read, take_notes
from neurocompanion.recordings.spikes.simulate import sessions
from neurocompanion.recordings.spikes.writer import write_ibl, write_matlab, write_nwb
from neurocompanion.recordings.standard import save, state_names
from neurocompanion.recordings.video.simulate_fish import benchmark_fish
from neurocompanion.recordings.worm.simulate import worms
from neurocompanion.recordings.worm.writer import write_worms
from neurocompanion.sweeps.paper import setting_of, uses
from neurocompanion.sweeps.sweep import expand, load
from neurocompanion.zebrafish.fish import OPTICS

PAPERS = "worm_scaling", "worm_gnn", "sessions", "zebrafish", "autolfads"
SMALL = {   # below what the smallest scale of a sweep asks
    "worm_scaling": dict(worms=1, hidden=4, epochs=1, n_train=2, n_valid=2, length=20, horizon=3),
    "worm_gnn": dict(epochs=2, folds=1, k=3, minutes=1, states=3),
    "sessions": dict(epochs=1, tune_epochs=1, sizes="1,all", sessions=3),
    "zebrafish": dict(steps=2, checks=1, trace_epochs=1, every=8),
    "autolfads": dict(epochs=2, samples=2, generator=4, encoder=4, ic=4, factors=3, controller=0,
                      inputs=0, members=2, generations=1, steps=0, trials=0, units=8)}


@lru_cache
def asked(paper, experiment):
    "The parameters of a small run of an experiment."
    kind, found = setting_of(paper), None
    for path in sorted((home() / "nbs" / paper / "sweeps").glob("*.yaml")):
        for run in expand(load(f"{paper}/{path.stem}"), "tiny"):
            if run["experiment"] == experiment: found = found or run
    small = {k: v for k, v in SMALL[paper].items() if k in uses(kind, experiment)}
    return {k: v for k, v in {**found, **small}.items() if k not in ("data", "out")}


def make_traces(folder):
    some = worms(3, neurons=40, labelled=25, duration=200, seed=3)
    for i, ds in enumerate(some): save(ds, folder / f"folder/w{i}.nc")
    save(some[0], folder / "file.nc")
    for layout in ("kato2015", "yemini2021", "leifer2023", "flavell2023_json", "flavell2023_h5"):
        write_worms(folder / layout, some, layout)
    for i, ds in enumerate(some): plain_traces(folder, i, ds)


def plain_traces(folder, i, ds):
    "A worm in formats that any laboratory has; the npy does not say which side is time."
    x, t, names = ds.trace.values.astype("f4"), ds.time.values, ds.neuron.values.tolist()
    for layout in ("csv", "matlab", "npy", "ophys"): (folder / layout).mkdir(exist_ok=True)
    pd.DataFrame(x, t, names).assign(state=state_names(ds)).rename_axis("time").to_csv(
        folder / f"csv/w{i}.csv")
    known = [n if n[0] != "?" else "" for n in names]
    savemat(folder / f"matlab/w{i}.mat", {"worm": {"dff": x, "time": t, "names": np.array(
        known, object)}})
    np.save(folder / f"npy/w{i}.npy", x)
    plane = folder / f"suite2p/w{i}/suite2p/plane0"
    plane.mkdir(parents=True)
    np.save(plane / "F.npy", x.T)
    np.save(plane / "ops.npy", {"fs": ds.sampling_rate})
    with h5py.File(folder / f"ophys/w{i}.nwb", "w") as f:
        f.attrs["nwb_version"], f["identifier"] = "2.7.0", f"w{i}"
        g = f.create_group("processing/ophys/DfOverF/roi")
        g.attrs["neurodata_type"], g["data"], g["timestamps"] = "RoiResponseSeries", x, t


def make_spikes(folder):
    some = sessions([0, 0.5, 1], trials=40, units=12, steps=120, conditions=4)
    for i, ds in enumerate(some):
        save(ds, folder / f"folder/s{i}.nc")
        for layout in ("datahigh", "neuraltraj", "dad"):
            write_matlab(folder / f"{layout}/s{i}.mat", ds, layout)
        write_ibl(folder / f"ibl/s{i}.parquet", ds, eid=f"session{i}")
        times = [np.sort(np.random.default_rng([i, k]).uniform(0, 60, 400)) for k in range(12)]
        starts = np.arange(1, 59, 1.5)
        write_nwb(folder / f"nwb/s{i}.nwb", times, dict(start_time=starts, stop_time=starts + 1.2))
        phy = folder / f"phy/s{i}"
        phy.mkdir(parents=True)
        np.save(phy / "spike_times.npy", (np.concatenate(times) * 30_000).astype("u8"))
        np.save(phy / "spike_clusters.npy", np.repeat(np.arange(12), 400))
        (phy / "params.py").write_text("sample_rate = 30000\n")
        pd.DataFrame({"cluster_id": range(12), "group": "good"}).to_csv(
            phy / "cluster_group.tsv", sep="\t", index=False)
    save(some[0], folder / "file.nc")


def make_films(folder):
    ds = benchmark_fish(20, scale=0.04, shape=(4, 32, 32), **OPTICS)
    save(ds, folder / "file.nc")
    save(ds, folder / "film.zarr")
    film = ds.video.transpose("time", "z", "y", "x").values.astype("float32")
    (folder / "tiff").mkdir()
    pages = [Image.fromarray(p) for p in film.reshape(-1, *film.shape[2:])]
    pages[0].save(folder / "tiff/film.tif", save_all=True, append_images=pages[1:])
    with h5py.File(folder / "film.h5", "w") as f:
        f["film"] = film
        for axis, name in zip(f["film"].dims, "tzyx"): axis.label = name
    np.savez(folder / "clusters.npz", traces=ds.trace.values.T, region_names=["a"] * 20,
             cluster_ids=np.arange(20), sampling_rate_hz=1.0)


MAKE = {"traces": make_traces, "spikes": make_spikes, "film": make_films}
TRACES = ("file.nc", "folder", "broken", "kato2015", "yemini2021", "leifer2023",
          "flavell2023_json", "flavell2023_h5", "matlab", "suite2p", "ophys", "csv", "npy")
SPIKES = "file.nc", "folder", "broken", "datahigh", "neuraltraj", "dad", "ibl", "nwb", "phy"
FILM = "file.nc", "film.zarr", "film.h5", "tiff", "clusters.npz"
AXES = {"npy": "it is not said which side is time.*axes="}
ANONYMOUS = dict.fromkeys(("suite2p", "ophys"), "no neuron is labelled")
STATES, MASKS = "the states are not known", "there are no masks"
ONE, SYNTHETIC = "nothing is left to choose from", "this task is synthetic"
TRIALS, OTHER = "there are no trials", "this is another kind of recording"
UNCUT = dict.fromkeys(("nwb", "phy"), TRIALS)
PAGES = "not known how many pages make a volume"
GRID = [   # paper, kind of recording, experiments (None: all), what is refused, and why
    ("worm_scaling", "traces", None, ANONYMOUS | AXES),
    ("worm_gnn", "traces", None, dict.fromkeys(TRACES[4:-2], STATES) | AXES),
    ("sessions", "spikes", None, {"file.nc": ONE}),
    ("sessions", "traces", None, {"file.nc": ONE} | AXES),
    ("zebrafish", "film", ("forecast", "objective", "width", "context", "pretraining",
                           "resolution", "cost"),
     {"film.h5": MASKS, "tiff": PAGES, "clusters.npz": OTHER}),
    ("zebrafish", "film", ("light_sheet",), {"tiff": PAGES, "clusters.npz": OTHER}),
    ("zebrafish", "film", ("clusters",), dict.fromkeys(FILM[:3], OTHER) | {"tiff": PAGES}),
    ("zebrafish", "film", ("views",), dict.fromkeys(FILM, "expected simulated")),
    ("autolfads", "spikes", ("overfitting", "search", "accuracy", "uncertainty"),
     dict.fromkeys(SPIKES, SYNTHETIC)),
    ("autolfads", "spikes", ("decoding", "selection"), UNCUT | dict.fromkeys(
        ("datahigh", "neuraltraj", "ibl"), "nothing to decode")),
    ("autolfads", "spikes", ("psth",), UNCUT | dict.fromkeys(
        ("neuraltraj", "ibl"), "has no conditions")),
    ("autolfads", "spikes", ("continuous",),
     dict.fromkeys(SPIKES[:-2], "this task has trials|shorter than one bin")),
    ("autolfads", "traces", ("calcium", "continuous"), AXES)]
CASES = [(paper, kind, e, file, refused.get(file)) for paper, kind, some, refused in GRID
         for e in some or setting_of(paper).__dataclass_fields__["experiment"].metadata["words"]
         for file in {"traces": TRACES, "spikes": SPIKES, "film": FILM}[kind]]


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    "A folder for each kind of recording, filled when it is asked for; one holds a cut file."
    @lru_cache
    def made(kind):
        folder = tmp_path_factory.mktemp(kind)
        MAKE[kind](folder)
        if (folder / "folder").is_dir():
            shutil.copytree(folder / "folder", folder / "broken")
            whole = sorted((folder / "broken").iterdir())[0]
            (folder / "broken/cut.nc").write_bytes(whole.read_bytes()[:3000])
        return folder
    return made


def test_no_experiment_is_left_out():
    every = {(p, e) for p in PAPERS
             for e in setting_of(p).__dataclass_fields__["experiment"].metadata["words"]}
    assert {case[:3:2] for case in CASES} == every


@pytest.mark.parametrize("paper, kind, experiment, file, refused", CASES)
def test_every_experiment_takes_every_file(files, one_thread, paper, kind, experiment, file,
                                           refused):
    place = files(kind) / file
    how = {k: v for k, v in asked(paper, experiment).items() if k not in ("task", "source")}
    if experiment == "cross_data_set":
        how["source"] = "any" if file in AXES else read(place)[0].source
    run = import_module(f"neurocompanion.{paper}.experiments").run
    take_notes()
    if refused:
        with pytest.raises(NeurocompanionError, match=refused) as e: run(**how, data=str(place))
        assert "\n" not in str(e.value)
    else:
        assert len(run(**how, data=str(place))) > 0
        said, = take_notes()
        assert said.startswith("used 3 of 4 recordings: cut.nc left out" if file == "broken"
                               else "used ")


def test_a_defect_with_one_sensible_reading(tmp_path):
    "More time stamps than frames: left out with the reason, or read as its reader offers."
    folder = write_worms(tmp_path, worms(2, neurons=30, labelled=20, duration=60),
                         "flavell2023_json")
    path = sorted(folder.glob("*.json"))[0]
    raw = json.loads(path.read_text())
    stamps = raw["timestamp_confocal"]
    raw["timestamp_confocal"] = stamps + [stamps[-1] + i + 1 for i in range(50)]
    path.write_text(json.dumps(raw))
    found = read(folder)
    assert len(found) == 1 and "frames but" in found.left_out[0][1]
    assert 'times="first"' in found.left_out[0][1] and "used 1 of 2 recordings" in found.used
    both = read(folder, times="first")
    assert len(both) == 2 and both[0].sizes["time"] == len(stamps) and both[0].report
