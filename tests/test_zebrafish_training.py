"Volumetric training: losses, samples, a wave that space foretells; and a volume in parts."
import itertools, os, subprocess, sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pretend
import pytest
import torch

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


HALO = """
import os, sys
import torch, torch.distributed as dist, torch.nn.functional as F
from torch.multiprocessing import start_processes
from neurocompanion.zebrafish import sharding

def one(rank):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=4)
    sent, swap = [], sharding._swap
    sharding._swap = lambda grid, axis, *ends: sent.extend(ends) or swap(grid, axis, *ends)
    whole = torch.randn(1, 3, 2, 8, 6, generator=torch.Generator().manual_seed(0))
    grids = [sharding.Grid((2, 2), (3, 4), r) for r in range(4)]
    part = grids[rank].cut(whole).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        got = sharding._Halo.apply(sharding.halved(part), grids[rank])
    along = [torch.randint(-9, 9, got.shape, generator=torch.Generator().manual_seed(r)).bfloat16()
             for r in range(4)]
    got.backward(along[rank])
    there, back = F.pad(whole.bfloat16(), (1, 1, 1, 1)), torch.zeros(1, 3, 2, 10, 8)
    for r, grid in enumerate(grids):
        (a, b), (c, d) = grid.box(whole.shape[3:])
        if r == rank: assert torch.equal(got, there[..., a:b + 2, c:d + 2])
        back[..., a:b + 2, c:d + 2] += along[r]
    assert torch.equal(part.grad, grids[rank].cut(back[..., 1:-1, 1:-1]))
    assert {v.dtype for v in sent} == {torch.bfloat16}     # there and back, half the bytes

if __name__ == "__main__":
    start_processes(one, nprocs=4, start_method="fork" if sys.platform == "linux" else "spawn")
"""


def test_halos_are_exchanged_in_half_precision(tmp_path):
    "As of the whole frame in bf16; gradients come home in bf16 as well."
    (tmp_path / "halo.py").write_text(HALO)
    done = subprocess.run([sys.executable, tmp_path / "halo.py", tmp_path / "meet"], timeout=120,
                          capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]


# ---- on a GPU
def run(loss, steps=4, **how):
    "Rows of a short training, and a forecast."
    rng = np.random.default_rng(0)
    cells, video = rng.choice([0, 1, 2, 3], (2, 8, 8)), rng.random((60, 2, 8, 8), np.float32)
    torch.manual_seed(0)
    net = UNet3D(2, resample=((1, 2, 2),), **SMALL, **how)
    some = lambda **more: training.Samples(video, np.arange(40), 2, 3, batch=2, steps=steps, **more)
    fitted = training.train_video(net, some(whole=net.embedding == 0), some(still=True), epochs=1,
                                  cells=None if loss == "voxel" else cells, lr=1e-3)
    said = training.video_forecast(net, video, cells, 3, batch=2)([0, 5])
    return np.array([fitted.rows[0]["train_loss"], fitted.best_loss]), said


@pytest.mark.parametrize("loss, how", [
    ("trace", dict(residual=True)), ("voxel", dict(super_resolve=0, dropout=0.3)),
    ("histogram", dict(outputs=32)), ("median", dict(outputs=32, median=True)),
    ("direct", dict(outputs=3, embedding=0))])
def test_no_step_waits_for_the_device(loss, how):
    here = run(loss, **how)
    with pretend.accelerator() as waits: there = run(loss, **how)
    few = sum(waits.values())
    with pretend.accelerator() as waits: run(loss, steps=12, **how)
    assert sum(waits.values()) == few, waits                  # those of the beginning and the end
    for a, b in zip(here, there): np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.fixture
def streams(monkeypatch):
    "Streams that note what happens on them."
    log, on = [], []

    @contextmanager
    def stream(which):
        on.append(which)
        yield
        on.pop()

    class Batch:
        def __init__(self, i): self.i = i
        def to(self, device, non_blocking):
            log.append(("copy", self.i, on[-1:], non_blocking))
            return self

        def record_stream(self, which): log.append(("kept", self.i, which))

    def event():
        n = sum(v[0] == "event" for v in log)
        log.append(("event", n))
        return SimpleNamespace(synchronize=lambda: log.append(("waited", n)))

    now = SimpleNamespace(wait_stream=lambda other: log.append(("after", other)),
                          record_event=event)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: "side")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: now)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    return log, Batch, now


def test_batches_reach_a_gpu_while_it_computes(streams):
    "Each on a stream of its own; the host waits only for the step before the last."
    log, batch, now = streams
    batches = [(batch(k),) for k in range(5)]
    for i, (got,) in enumerate(training.onto(batches, torch.device("cuda"))):
        assert got.i == i
        own = log[-3:] if i < 2 else log[-4:]
        want = [("copy", i, ["side"], True), ("after", "side"), ("kept", i, now)]
        assert own == ([] if i < 2 else [("waited", i - 2)]) + want
        log.append(("used", i))


def test_only_for_a_gpu_is_memory_pinned(monkeypatch):
    asked, empty = [], torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory: asked.append(pin_memory) or
                        empty(*size))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: asked.append("lead") or x)
    video = np.arange(40.0).reshape(20, 1, 1, 2)
    read = lambda where: training.Samples(video, [3], 2, 4, device=where).read(np.array([[3, 2]]))
    for where, pinned in ("cpu", [False, False]), ("cuda", [True, "lead", True]):
        x, lead, y = read(where)
        assert asked == pinned and asked.clear() is None
        assert x.tolist() == video[None, 3:5].tolist() and y.tolist() == video[None, 6].tolist()
        assert x.dtype == torch.float32 and lead.tolist() == [2]


@pytest.mark.gpu
@pytest.mark.parametrize("loss, how", [("trace", dict(residual=True)),
                                       ("histogram", dict(outputs=32))])
def test_a_gpu_trains_alike(loss, how, monkeypatch):
    "In half precision, from pinned memory."
    there = run(loss, steps=30, **how)
    monkeypatch.setenv("NEUROCOMPANION_DEVICE", "cpu")
    here = run(loss, steps=30, **how)
    for a, b in zip(here, there): np.testing.assert_allclose(a, b, rtol=0.05, atol=0.02)
