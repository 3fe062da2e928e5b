"Traces through masks, coarser volumes, and the windows of the benchmark."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from neurocompanion.zebrafish import data as Z


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64"])
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_traces_equal_a_loop_and_a_film_on_disk_is_read_in_blocks(dtype, block, film):
    rng = np.random.default_rng(0)
    video = (250 * rng.random((7, 3, 9, 8))).astype(dtype)
    cells = rng.choice([0, 0, 3, 4, 9, 12], (3, 9, 8))
    loop = np.stack([video.astype(float)[:, cells == n].mean(1) for n in (3, 4, 9, 12)], 1)
    got = Z.extract_traces(video, cells, block=block)
    np.testing.assert_allclose(got, loop, rtol=0, atol=1e-6)
    disk = film(10, 2, 3, 4)
    Z.extract_traces(disk, np.ones(disk.shape[1:], int), block=8 * 24 * 3)
    assert [(k.start, k.stop) for k in disk.read] == [(0, 3), (3, 6), (6, 9), (9, 12)]


@settings(max_examples=30)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 4)] * 3))
def test_coarser_by_loop(shape, factors):
    x = np.arange(np.prod(shape)).reshape(shape)
    video, cells = Z.coarser_video(x[None], factors)[0], Z.coarser_cells(x, factors)
    assert video.shape == cells.shape == tuple(n // f for n, f in zip(shape, factors))
    for at in np.ndindex(video.shape):
        block = x[tuple(slice(i * f, i * f + f) for i, f in zip(at, factors))]
        assert video[at] == pytest.approx(block.mean())
        assert cells[at] == block[tuple(f // 2 for f in factors)]


@given(st.integers(1, 256), st.integers(1, 64))
def test_no_frame_to_forecast_is_shared_by_parts(context, horizon):
    parts = []
    for part, conditions in Z.windows(context, horizon).items():
        mine = np.zeros(Z.OFFSETS[-1], bool)
        for ahead in range(0 if part == "train" else context, context + horizon):
            for starts in conditions.values(): mine[starts + ahead] = True
        assert mine.any() and not any((mine & other).any() for other in parts)
        parts.append(mine)
