"Paths from anywhere, whole files or none, and the record of a run."
import os, pickle, signal, subprocess, sys, time
from pathlib import Path

import pytest

from neurocompanion import core

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("folder", [ROOT, ROOT / "nbs", ROOT / "nbs" / "recordings", Path("/")])
def test_home_is_right_from_any_folder(folder):
    code = "from neurocompanion.core import *; print(home()); print(results_dir())"
    env = {k: v for k, v in os.environ.items() if not k.startswith("NEUROCOMPANION_")}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True,
                          env=env)
    assert done.stdout.split() == [str(ROOT), str(ROOT / "results")], done.stderr


def test_a_killed_writer_leaves_the_old_file_and_any_writer_a_pipe(tmp_path):
    code = ("import sys, time; from neurocompanion.core import atomic_path\n"
            "with atomic_path(sys.argv[1]) as p:\n"
            "    f = open(p, 'w'); f.write('half'); f.flush()\n"
            "    print('writing', flush=True); time.sleep(60)")
    target = tmp_path / "table.csv"
    target.write_text("old")
    writer = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE,
                              text=True)
    assert writer.stdout.readline().strip() == "writing"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert target.read_text() == "old"
    (folder := tmp_path / "folder").mkdir()
    os.mkfifo(pipe := folder / "pipe")
    with pytest.raises(OSError, match="a device or pipe"), core.atomic_path(pipe) as tmp:
        tmp.write_text("x")
    assert pipe.is_fifo() and len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("kind", [getattr(core, k) for k in core.__all__ if k.endswith("Error")])
def test_errors_survive_pickling(kind):
    error = kind("what", where="a.nc, neuron 3", expected=1, found=2, fix="Do it.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and (again.expected, again.fix) == (1, "Do it.")
    assert str(again) == str(error) == "a.nc, neuron 3: what: expected 1, found 2. Do it."


def test_progress_shows_rate_and_remaining_time(monkeypatch, capfd):
    for name in ("IN_TEST", "PYTEST_CURRENT_TEST", "NEUROCOMPANION_QUIET"):
        monkeypatch.delenv(name, raising=False)
    for _ in core.progress(range(3), desc="worms", mininterval=0.1): time.sleep(0.15)
    assert "worms" in (shown := capfd.readouterr().err) and "it/s" in shown


def test_paths_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    for name, folder in [("RESULTS", core.results_dir), ("CACHE", core.cache_dir),
                         ("MIRROR", core.mirror_dir)]:
        monkeypatch.setenv(f"NEUROCOMPANION_{name}", "~/data")
        assert folder() == (tmp_path / "data").resolve()


# In a process of its own: what is set for memory stays set until the process ends.
MEMORY = """
import resource, sys
from neurocompanion import core

megabytes = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20
def faults(times=3):
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times): del [bytearray(b"x") * (10 << 20) for _ in range(8)][:]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start

faults(1)
before, kept = faults(), core.keep_memory()
faults(1)
after, start = faults(), megabytes()
blocks = [bytearray(b"x") * (size << 20) for size in [20] * 20 + [100]]
peak = megabytes()
del blocks
core.trim_memory(0)
print(kept, core.keep_memory(), before, after, peak - start, megabytes() - start)
"""


def in_a_process(code=MEMORY, **env):
    env = {k: v for k, v in os.environ.items() if "MALLOC" not in k} | env
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert not done.returncode, done.stderr
    kept, again, *numbers = done.stdout.split()
    assert kept == again
    return kept == "True", *map(int, numbers)


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()),
                    reason="needs glibc")
def test_memory_is_kept_for_the_next_step_and_bounded():
    kept, before, after, grown, left = in_a_process()
    assert kept and before > 1000 and after < before / 50
    assert grown > 400 and left < 300
    for env in (dict(MALLOC_TRIM_THRESHOLD_="200000"),             # set by hand: left alone
                dict(GLIBC_TUNABLES="glibc.malloc.trim_threshold=200000")):
        kept, before, after, *_ = in_a_process(**env)
        assert not kept and after > before / 2


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_and_c_libraries_keep_their_own_ways(platform, monkeypatch):
    code = f"import sys; from neurocompanion.core import keep_memory; sys.platform = {platform!r}; "
    assert in_a_process(code + "print(keep_memory(), keep_memory())") == (False,)
    monkeypatch.setattr(core.ctypes, "CDLL", lambda name: object())    # knows no such setting
    assert core.keep_memory.__wrapped__() is False
