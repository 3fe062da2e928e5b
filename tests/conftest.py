"What all tests share: quiet progress bars, and the mirror of real recordings where there is one."
import os, secrets, signal
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")   # two processes of tests share two cores
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))   # else two of Ray's write one file
signal.signal(signal.SIGINT, signal.default_int_handler)   # a shell's background ignores it

# continuous integration tries the same examples every time; at a desk they are new each time
settings.register_profile("ours", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("ours")


@pytest.fixture(scope="session")
def mirror():
    "The mirror of real recordings; the test is skipped, and says so, where there is none."
    from neurocompanion.core import mirror_dir
    found = mirror_dir()
    if found is None:
        pytest.skip("needs real recordings: set NEUROCOMPANION_MIRROR to a folder that holds them")
    return found


@pytest.fixture(scope="session")
def gold():
    "Reference values of the benchmark's metrics."
    import numpy as np
    with np.load(Path(__file__).parent / "golden" / "nlb_metrics.npz", allow_pickle=False) as z:
        return dict(z)


@pytest.fixture
def benchmark(tmp_path):
    "Files as the Neural Latents Benchmark has them: what is hidden from eval trials is missing."
    import h5py
    import numpy as np

    def write(forward=True, target=False):
        x = np.random.default_rng(0).poisson(0.3, (30, 30, 8)).astype(float)
        train, test, t, n = x[:22], x[22:], 24, 6
        with h5py.File(tmp_path / "train.h5", "w") as f:
            f["train_spikes_heldin"], f["train_spikes_heldout"] = train[:, :t, :n], train[:, :t, n:]
            if forward:
                f["train_spikes_heldin_forward"] = train[:, t:, :n]
                f["train_spikes_heldout_forward"] = train[:, t:, n:]
            f["train_behavior"] = np.arange(22 * t * 2.0).reshape(22, t, 2)
        with h5py.File(tmp_path / "eval.h5", "w") as f:
            f["eval_spikes_heldin"] = test[:, :t, :n]
            if target: f["eval_spikes_heldin_forward"] = test[:, t:, :n]
        return [tmp_path / "train.h5", tmp_path / "eval.h5"], x

    return write


class Film:
    "A film of ones that knows what was read of it."

    def __init__(self, *shape, dtype=float):
        import numpy as np
        self.values, self.read = np.ones(shape, dtype), []
        self.shape, self.dtype = self.values.shape, self.values.dtype

    def __getitem__(self, key):
        self.read.append(key)
        return self.values[key]


@pytest.fixture
def film(): return Film


@pytest.fixture
def one_thread():
    "PyTorch on one thread, so that sums come out the same everywhere; the seed is set."
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)
