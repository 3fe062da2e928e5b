"What tests of processes wait for."
import time


def runs(pid):
    "Whether there is such a process, and it is not a dead one that nobody has asked for."
    try: return open(f"/proc/{pid}/stat").read().split()[2] != "Z"
    except OSError: return False


def until(true, seconds=30):
    "What becomes true, or a failure."
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
    return found
