"Volumetric training: losses, samples, a wave that space foretells; and a volume in parts."
import itertools, os, socket, subprocess, sys

import numpy as np
import pytest
import torch

from neurocompanion.recordings.video.simulate import fish
from neurocompanion.recordings.standard import save
from neurocompanion.zebrafish import distributed, sharding, training
from neurocompanion.zebrafish.models import UNet3D

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = dict(width=4, groups=2, super_width=4)


@pytest.mark.parametrize("kind", ["trace", "voxel", "histogram", "direct"])
def test_a_batch_can_be_learned(kind):
    rng = np.random.default_rng(0)
    cells = rng.choice([0, 1, 2, 3], (2, 8, 8))
    how = dict(embedding=0, outputs=3) if kind == "direct" else {}
    if kind == "histogram": how = dict(outputs=32)
    model = UNet3D(2, resample=((1, 2, 2),), **SMALL, **how)
    x, lead = torch.rand(2, 2, 2, 8, 8), torch.tensor([1, 3])
    y = torch.rand(2, 2, 8, 8)
    loss = {"voxel": training.voxel_mae, "histogram": training.histogram_loss(cells)}.get(
        kind, training.trace_mae(cells))
    optimiser, losses = torch.optim.Adam(model.parameters(), 1e-2), []
    for _ in range(40):
        value = loss(model, x, lead, y)
        losses.append(training.trace_mae(cells)(model, x, lead, y).item())
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    assert losses[-1] < 0.4 * losses[0]


def test_direct_output_and_forecasts_are_the_frames_asked_for():
    model = UNet3D(2, resample=0, embedding=0, outputs=4, **SMALL)
    x = torch.randn(3, 2, 2, 5, 5)
    made, every = training.frame_of(model, x, torch.tensor([4, 1, 2])), model(x)
    for i, h in enumerate((4, 1, 2)): torch.testing.assert_close(made[i], every[i, h - 1])
    rng = np.random.default_rng(0)
    cells, video = rng.choice([0, 1, 2], (1, 4, 4)), rng.standard_normal((30, 1, 4, 4))
    model = UNet3D(3, resample=0, **SMALL).eval()
    made = training.video_forecast(model, video, cells, horizon=2)(np.array([0, 7]))
    x = torch.from_numpy(video[7:10]).float()[None]
    with torch.no_grad(): want = training.CellMeans(cells)(model(x, 2)[:, 0])[0]
    assert made.shape == (2, 2, 2)
    np.testing.assert_allclose(made[1, 1], want, atol=1e-5)


def test_samples_read_only_what_they_need_and_repeat_with_the_seed(film):
    disk = film(50, 1, 2, 2)
    samples = training.Samples(disk, np.arange(10), 4, 32, batch=2, steps=3)
    assert len(list(samples)) == len(samples) == 3
    frames = sum(k.stop - k.start if isinstance(k, slice) else 1 for k in disk.read)
    assert frames == 3 * 2 * 5                                # context and one frame, each

    def once():
        torch.manual_seed(3)
        return [h.tolist() for _, h, _ in training.Samples(disk, np.arange(20), 4, 9)]

    first = once()
    assert first == once() and len(set(map(tuple, first))) > 3


# ---- a volume in parts
@pytest.mark.parametrize("parts, how", [
    ((2, 1), dict(samples=2, resample=((1, 2, 2), (2, 2, 2)), super_resolve=((1, 2, 2),),
                  dropout=0.3)),
    ((1, 4), dict(resample=((1, 2, 2),), residual=True)),
    pytest.param((1, 4), dict(resample=((1, 2, 2),), save_memory=True, dropout=0.3),
                 marks=pytest.mark.slow)])
def test_four_processes_equal_one(parts, how):
    made = sharding.compare(parts, (2, 4 * parts[0], 4 * parts[1]), context=2, **SMALL, **how)
    assert max(made["forecast"], made["loss"]) < 1e-5 * made["scale"] and made["gradient"] < 1e-5


def test_a_part_reads_its_own_chunks(tmp_path):
    import zarr
    from zarr.storage import LocalStore, WrapperStore

    class Counted(WrapperStore):
        asked = []

        async def get(self, key, *more, **how):
            if "c/" in key: self.asked.append(key)
            return await super().get(key, *more, **how)

    array = zarr.create_array(tmp_path / "a.zarr", shape=(12, 2, 16, 16), chunks=(1, 2, 4, 8),
                              dtype="f4")
    array[:] = np.random.default_rng(0).random(array.shape)
    counted = zarr.open_array(Counted(LocalStore(tmp_path / "a.zarr")), mode="r")
    for rank, sample in itertools.product(range(4), range(2)):
        grid = sharding.Grid((2, 2), (3, 4), rank)
        part = sharding.part_of(counted, grid, (4, 4))
        samples = training.Samples(distributed.Coarse(part, (1, 2, 2)), [0, 5], 4, 2, batch=2,
                                   still=True, target=part, part=(sample, 2))
        (x, lead, y), = samples
        first = int(samples.draws()[0, sample, 0])
        last = first + 3 + int(lead)
        np.testing.assert_array_equal(y, grid.cut(torch.from_numpy(array[last])[None, None])[0])
        assert x.shape == (1, 4, 2, 4, 4) and x.mean() == pytest.approx(
            grid.cut(torch.from_numpy(array[first:first + 4])[None]).mean().item())
        i, j = grid.place
        own = {f"c/{t}/0/{2 * i + k}/{j}" for t in (*range(first, first + 4), last) for k in (0, 1)}
        assert sorted(Counted.asked) == sorted(own)
        Counted.asked.clear()


# ---- processes that torchrun starts
@pytest.fixture(scope="module")
def small_fish(tmp_path_factory):
    film = fish(8, shape=(2, 16, 16), radius=2.5, voxel_size=(3, 1.5, 1.5), dtype="float32",
                conditions={"dark": (60, 0)})
    return save(film, tmp_path_factory.mktemp("fish") / "fish.nc")


NET = "--context 2 --width 4 --groups 2 --super-width 4 --resample 1 --horizon 2 --lr 1e-3".split()


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m",
            "neurocompanion.zebrafish.distributed"]
COPIES = ["-c", """
import os, sys
import torch._dynamo
from torch.multiprocessing import start_processes
from neurocompanion.zebrafish import distributed

def one(rank):
    "What torchrun would say, and its command; without importing everything again."
    os.environ.update(RANK=str(rank), WORLD_SIZE="4", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    sys.exit(distributed.main(args))

port, *args = sys.argv[1:]
start_processes(one, nprocs=4, start_method="fork" if sys.platform == "linux" else "spawn")
"""]


def weights(path): return torch.load(path, weights_only=True)


def both(start, video, folder, how, shards=""):
    "How far weights differ after steps in processes together and in one; what those said."
    done = subprocess.run([sys.executable, *start, "--video", str(video), *NET, "--device", "cpu",
                           *how.split(), *shards.split(), "--out", str(folder / "many.pt"),
                           "--checkpoint", str(folder / "fish.pt")], capture_output=True, text=True,
                          timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    alone = ["--video", str(video), *NET, *how.split(), "--out", str(folder / "one.pt")]
    assert distributed.main(alone) == 0
    many, one = weights(folder / "many.pt"), weights(folder / "one.pt")
    return torch.cat([(many[k] - one[k]).abs().flatten() for k in one]), done.stdout


def test_two_processes_equal_one(small_fish, tmp_path):
    "With dropout, and a checkpoint that one process can read."
    how = "--steps 4 --epochs 2 --batch 2 --dropout 0.2"
    off, said = both(TORCHRUN, small_fish, tmp_path, how)
    assert "2 processes" in said
    assert off.quantile(0.9) < 1e-5     # Adam may turn a weight whose gradient is only rounding
    kept = ["--checkpoint", str(tmp_path / "fish.pt"), "--out", str(tmp_path / "again.pt")]
    assert distributed.main(["--video", str(small_fish), *NET, *how.split(), *kept]) == 0
    many = weights(tmp_path / "many.pt")
    for name, w in weights(tmp_path / "again.pt").items(): assert torch.equal(w, many[name])


def test_two_groups_of_two_equal_one(small_fish, tmp_path):
    "Each group has a sample of its own, in two parts, and forecasts a finer frame."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])                                          # a free one
    off, said = both([*COPIES, port], small_fish, tmp_path,
                     "--steps 2 --batch 2 --super-resolve 1", "--shards 2x1")
    assert "4 processes, frames in 2x1 parts" in said and off.max() < 1e-5


def test_what_does_not_fit_is_told(small_fish, capsys):
    for args, says in [(["--shards", "2x2"], "4 processes for 2x2 parts"),
                       (["--shards", "2"], "such as 2x1"), (["--batch", "0"], "multiple of the 1"),
                       (["--horizon", "60"], "no window fits")]:
        assert distributed.main(["--video", str(small_fish), *NET, *args]) == 2
        assert says in capsys.readouterr().err


def test_parts_work_in_half_precision():
    "As on a GPU: convolutions in bf16, norms and losses in full precision."
    cells, model = torch.randint(0, 4, (2, 8, 8)), UNet3D(2, resample=((1, 2, 2),), **SMALL)
    x, y = torch.randn(1, 2, 2, 8, 8), torch.randn(1, 2, 8, 8)
    whole = training.trace_mae(cells)(model, x, 3, y)
    part = sharding.shard(model, sharding.Grid((1, 1), (3, 4), 0))
    with torch.autocast("cpu", torch.bfloat16):
        rough = sharding.part_loss(cells)(part, x, 3, y)
    rough.backward()
    assert rough.dtype == torch.float32 and abs(rough - whole) < 0.02 * whole
    assert all(p.grad.isfinite().all() for p in part.parameters() if p.grad is not None)
