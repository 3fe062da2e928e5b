"What all tests share: quiet progress bars, and the mirror of real recordings where there is one."
import os
import signal

import pytest
from hypothesis import settings

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")
signal.signal(signal.SIGINT, signal.default_int_handler)   # a shell's background ignores it

# continuous integration tries the same examples every time; at a desk they are new each time
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"): settings.load_profile("ci")


@pytest.fixture(scope="session")
def mirror():
    "The mirror of real recordings; the test is skipped, and says so, where there is none."
    from neurocompanion.core import mirror_dir
    found = mirror_dir()
    if found is None:
        pytest.skip("needs real recordings: set NEUROCOMPANION_MIRROR to a folder that holds them")
    return found


@pytest.fixture
def one_thread():
    "PyTorch on one thread, so that sums come out the same everywhere; the seed is set."
    import torch
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)
