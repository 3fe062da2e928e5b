"Processes that torchrun starts: the page's commands, a rank that dies, and what comes of it."
import json, os, shlex, signal, socket, subprocess, sys

import numpy as np
import pytest
import torch
import xarray as xr
from processes import until

from neurocompanion.core import home
from neurocompanion.recordings.standard import open_recording, save
from neurocompanion.recordings.video.simulate import fish
from neurocompanion.zebrafish import distributed
from neurocompanion.zebrafish.estimators import VideoForecaster

pytestmark = pytest.mark.usefixtures("one_thread")
NET = ("--context 2 --width 4 --groups 2 --super-width 4 --resample 1 --horizon 2 --lr 1e-3 "
       "--video fish.zarr --device cpu").split()
ASK = "--video fish.zarr --device cpu".split()
MODULE = "neurocompanion.zebrafish.distributed"


def commands():
    "The commands of the page, in their order."
    cells = json.loads((home() / "nbs/zebrafish/distributed.ipynb").read_text())["cells"]
    lines = "".join("".join(c["source"]) + "\n" for c in cells if c["cell_type"] == "markdown")
    return [shlex.split(v) for v in lines.splitlines() if f"-m {MODULE}" in v]


PAGE = commands()


def start(command, *more):
    "A command of the page with further options, where there may be no `torchrun` on the path."
    head = [sys.executable] + ["-m", "torch.distributed.run"] * (command[0] == "torchrun")
    return subprocess.Popen([*head, *command[1:], *more], stdout=subprocess.PIPE, text=True,
                            stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})


def run(command, *more):
    "What it says, if it ends well."
    process = start(command, *more)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-2000:]
    return out


def here(command, *more):
    "The same in this process."
    assert distributed.main([*command[command.index(MODULE) + 1:], *more]) == 0


def weights(path): return VideoForecaster.load(path).network_.state_dict()


def off(a, b):
    "How far weights differ."
    return torch.cat([(a[k] - b[k]).abs().flatten() for k in b])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "A folder with a film, in chunks of a quarter of a frame; we are in it."
    film = fish(8, shape=(2, 16, 16), radius=2.5, voxel_size=(3, 1.5, 1.5), dtype="float32",
                conditions={"dark": (60, 0)})
    film["video"] = film.video.copy(data=distributed.df_over_f(film.video.values))
    film.video.attrs["units"] = film.attrs["units"] = "dF/F"
    save(film, tmp_path / "fish.zarr")
    import zarr
    group = zarr.open_group(tmp_path / "fish.zarr", mode="r+")
    old = group["video"]
    about, names = dict(old.attrs), old.metadata.dimension_names
    del group["video"]
    group.create_array("video", shape=old.shape, dtype=old.dtype, chunks=(1, 2, 8, 8),
                       attributes=about, dimension_names=names)[:] = film.video.values
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_commands_of_the_page(folder, capsys):
    "Two processes train as one, with dropout; go on; and what comes of it is scored."
    first, more, score, forecast = PAGE[:4]
    how = [*NET, "--steps", "4", "--dropout", "0.2"]
    said = run(first, *how)
    assert "2 processes on cpu" in said and "4 steps on" in said
    here(first, *how, "--checkpoint", "one.ckpt", "--out", "one.pt")
    assert off(weights("fish.pt"), weights("one.pt")).quantile(0.9) < 1e-5   # Adam turns a few
    assert "goes on at step 4 of 8" in run(more, *how)
    here(more, *how)                                   # ended: the checkpoint's weights, as it is
    here(score, *ASK)
    here(forecast, *ASK)
    assert "of the last frame" in capsys.readouterr().out
    made, rows = xr.open_dataset("forecast.nc"), open("scores.csv").read()
    assert made.forecast.sizes["ahead"] == 2 and "condition,ahead,mae,last" in rows
    v = VideoForecaster.load("fish.pt")
    past = open_recording("fish.zarr").video.values[-v.context:]
    np.testing.assert_allclose(made.beyond, v.predict(past), atol=1e-5)


def children(process):
    "Rank -> process that torchrun has started."
    found = {}
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        try:
            if int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1]) != process.pid:
                continue
            told = open(f"/proc/{pid}/environ").read().split("\0")
        except OSError: continue
        found |= {int(v[5:]): pid for v in told if v.startswith("RANK=")}
    return found


def several_saved():
    "Whether a checkpoint was written several times, to be asked again and again."
    written = set()
    def asked():
        try: written.add(os.stat("run.pt").st_ino)
        except OSError: pass
        return len(written) > 2
    return asked


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_rank_that_is_killed_is_named_and_the_run_goes_on(folder, capsys):
    train, _, forecast = PAGE[4:]
    how = [*NET, "--steps", "12", "--save-seconds", "0"]
    run_on([train, *how, "--checkpoint", "calm.ckpt", "--out", "calm.pt"])
    process = start(train, *how)
    until(several_saved(), 120)
    os.kill(children(process)[1], signal.SIGKILL)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 1 and err.count("was killed.") == 1
    assert "rank 1 of 4 was killed. The same command goes on from run.pt." in err
    assert "[rank" not in err and "Gloo" not in err and not os.path.exists("fish.pt")
    assert "goes on at step" in run(train, *how)
    many, calm = weights("fish.pt"), weights("calm.pt")
    for k in calm: assert torch.equal(many[k], calm[k]), k

    # in parts, what is asked of it is as in one process
    said = run(forecast, *ASK)
    parts = xr.open_dataset("forecast.nc").load()
    here([MODULE, "forecast", "--weights", "fish.pt", "--out", "whole.nc"], *ASK)
    whole = xr.open_dataset("whole.nc").load()
    for k in ("forecast", "truth", "beyond"):
        np.testing.assert_allclose(parts[k], whole[k], atol=1e-5)
    errors = lambda text: [float(v) for v in text.replace("(", "").replace(")", "").split()
                           if v.replace(".", "").isdecimal()]
    np.testing.assert_allclose(errors(said), errors(capsys.readouterr().out), rtol=2e-3)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_torchrun_starts_again_what_was_killed(folder):
    how = [*NET, "--steps", "40", "--save-seconds", "0", "--checkpoint", "run.pt"]
    two = ["torchrun", "--standalone", "--max-restarts", "1", "--nproc_per_node", "2", "-m", MODULE,
           "--out", "new.pt"]
    process = start(two, *how)
    until(several_saved(), 120)
    os.kill(children(process)[1], signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-2000:]
    assert "goes on at step" in out and os.path.exists("new.pt")


COPIES = """
import json, os, sys
import torch._dynamo
from torch.multiprocessing import start_processes
from neurocompanion.zebrafish import distributed

def one(rank):
    "What torchrun would say, and its command; without importing everything again."
    os.environ.update(RANK=str(rank), WORLD_SIZE="4", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    sys.exit(distributed.main(args))

port, *args = sys.argv[1:]
start_processes(one, nprocs=4, start_method="fork" if sys.platform == "linux" else "spawn")
"""


def run_on(command):
    "The same in four processes that are copies of one, without `torchrun`."
    rest, *more = command
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])                                          # a free one
    args = rest[rest.index(MODULE) + 1:] + more
    done = subprocess.run([sys.executable, "-c", COPIES, port, *args], capture_output=True,
                          text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_two_groups_of_two_equal_one(folder):
    "Each group has a sample of its own, in two parts, and forecasts a finer frame."
    how = [*NET, "--steps", "2", "--super-resolve", "1"]
    assert "4 processes, frames in 2x1 parts" in run_on([PAGE[5], *how])
    here(PAGE[5], *how, "--shards", "1x1", "--out", "one.pt", "--checkpoint", "one.ckpt")
    assert off(weights("fish.pt"), weights("one.pt")).max() < 1e-5


def test_what_one_rank_alone_cannot_read_ends_all(folder):
    "A chunk of the lower half is spoilt."
    for path in folder.glob("fish.zarr/video/c/2?/0/1/0"): path.write_bytes(b"no chunk")
    two = ["torchrun", "--standalone", "--nproc_per_node", "2", "-m", MODULE, "--shards", "2x1"]
    process = start(two, *NET, "--steps", "60", "--checkpoint", "run.pt")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    line, = [v for v in err.splitlines() if v.startswith("rank 1 of 2: ")]
    assert "fish.zarr" in line and line.endswith("The same command goes on from run.pt.")
    assert "rank 0" not in err.split("Failures:")[0]


def test_what_does_not_fit_is_told(folder, capsys):
    for args, says in [(["--shards", "2x2"], "4 processes for 2x2 parts"),
                       (["--shards", "2"], "such as 2x1"), (["--batch", "0"], "multiple of the 1"),
                       (["--horizon", "60"], "no window fits"),
                       (["score"], "it is not said what forecasts")]:
        assert distributed.main([*NET, *args]) == 2
        assert says in capsys.readouterr().err
    how = [*NET, "--steps", "1", "--checkpoint", "run.pt"]
    assert distributed.main(how) == 0
    for args, says in [(["--lr", "0.1"], "belongs to another run"),
                       (["--steps", "2"], "--restart")]:
        assert distributed.main([*how, *args]) == 2
        assert says in capsys.readouterr().err
