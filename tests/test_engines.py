"Ray and submitit as they are: workers, jobs and drivers are killed, and the table is the same."
import os, signal, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from processes import until
from test_autolfads_pbt import lfads
from test_sweeps import gone, make_toy, outcome, readable

from neurocompanion.autolfads.pbt import pbt
from neurocompanion.core import SweepError
from neurocompanion.sweeps import engines
from neurocompanion.sweeps.engines import sweep
from neurocompanion.sweeps.sweep import collect

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(scope="module")
def ray():
    "A cluster of two workers: what a sweep asks for in order to join it."
    import ray
    for tries in reversed(range(3)):     # Ray gives itself 30 s: not enough on a busy machine
        try: ray.init(address="local", num_cpus=2, include_dashboard=False,
                      object_store_memory=100 << 20, log_to_driver=False)
        except Exception:
            ray.shutdown()
            if not tries: raise
        else: break
    yield dict(engine="ray", workers=2, address=ray.get_runtime_context().gcs_address)
    ray.shutdown()


@pytest.fixture(scope="module")
def toy(tmp_path_factory): return make_toy(tmp_path_factory.mktemp("toy"))


def grid_of(toy, seeds):
    return toy(grid={"n": [1, 2, 3]}, seeds=seeds, fixed={"steps": 15, "pause": 0.1})


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    "The table of processes here."
    out = tmp_path_factory.mktemp("whole")
    return outcome(sweep(grid_of(toy, 2), scale="tiny", out=out, workers=2).table)


def begun(log):
    "Every start of a run: its n and seed, and the step that it went on from."
    lines = log.read_text().splitlines() if log.exists() else []
    return [tuple(map(int, x.split())) for x in lines]


def at_work(out):
    "The processes of runs, by run: those that hold a lock and have saved a checkpoint."
    found = {}
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        try: link = os.readlink(fd)
        except OSError: continue
        name = Path(link).stem
        if link.startswith(str(out)) and link.endswith(".lock") and (
                out / "partial" / name / "checkpoint.json").exists():
            found[name] = int(fd.parts[2])
    return found


def worker_of(run):
    "What a cluster started: above a run's process is the warm one, and above that the worker."
    above = lambda pid: int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return above(above(run))


def test_ray_ends_with_the_same_table_though_a_worker_and_the_driver_are_killed(
        toy, ray, whole, tmp_path):
    grid, out, log = grid_of(toy, 2), tmp_path / "out", tmp_path / "log"

    def start():
        code = ("from neurocompanion.sweeps.engines import sweep; "
                f"r = sweep({str(grid)!r}, scale='tiny', out={str(out)!r}, **{ray!r}); print(r)")
        return subprocess.Popen([sys.executable, "-c", code], text=True, stdout=subprocess.PIPE,
                                env=os.environ | {"NEUROCOMPANION_LOG": str(log)})

    driver = start()
    run, pid = next(iter(until(lambda: at_work(out), 60).items()))
    assert Path(f"/proc/{worker_of(pid)}/cmdline").read_bytes().startswith(b"ray::")
    os.kill(worker_of(pid), signal.SIGKILL)
    until(lambda: (out / "runs" / run).exists(), 60)        # the same run again, to its end
    assert not (out / "failed").exists()
    assert sum(step > 0 for _, _, step in begun(log)) == 1
    driver.kill()
    driver.communicate()
    readable(out)
    assert gone(out, 20)                                    # nothing outlives the driver
    done, before = [p.name for p in (out / "runs").iterdir()], begun(log)
    assert 0 < len(done) < 6
    said = start().communicate(timeout=120)[0]
    assert f"6 runs done ({6 - len(done)} tried now), 0 failed" in said
    assert len(begun(log)) - len(before) == 6 - len(done)   # what was finished did not run again
    pd.testing.assert_frame_equal(outcome(collect(out)), whole)
    assert gone(out, 20)


def test_a_job_of_slurm_that_is_killed_is_named_and_one_that_is_preempted_goes_on(
        toy, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("submitit.core.core.Job._results_timeout_s", 1)   # no slow disk here
    how = dict(scale="tiny", out=tmp_path, engine="slurm", cluster="local", workers=3)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(sweep, grid_of(toy, 1), **how)
        hit = []
        for whom, sign in [(worker_of, signal.SIGUSR2),     # submitit's warning
                           (worker_of, signal.SIGKILL), (int, signal.SIGKILL)]:
            new = lambda: [x for x in at_work(tmp_path).items() if x[0] not in hit]
            run, pid = until(new, 60)[0]
            os.kill(whom(pid), sign)
            hit.append(run)
        result = first.result()
    preempted, lost, killed = hit
    assert result.done == [preempted] and result.exit_code == 1
    assert result.failed[killed] == "killed by SIGKILL, most likely because the memory ran out"
    assert result.failed[lost].startswith("the job has ended without a result, in state ")
    again = sweep(grid_of(toy, 1), **how)
    assert again.exit_code == 0 and again.ran == 2
    same = whole[whole.seed == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(outcome(again.table), same)
    assert gone(tmp_path, 20)


def test_options_that_a_cluster_does_not_know_are_refused(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    for engine, option, says in [("slurm", "slurm_partitoin", "Slurm cannot be had .*partitoin"),
                                 ("ray", "num_cpu", "Ray cannot be had .*num_cpu")]:
        with pytest.raises(SweepError, match=says):
            sweep(grid_of(toy, 1), scale="tiny", out=tmp_path, engine=engine, **{option: 1})


def test_a_warm_process_that_is_lost_is_started_again(toy, tmp_path):
    job, = engines._jobs(engines.load(toy(seeds=1, fixed={"pause": 0})), [dict(
        n=1, steps=1, pause=0.0, trouble="", seed=0)], tmp_path)[0]
    (tmp_path / "partial").mkdir()
    assert engines._elsewhere(job) == 0
    warm, = engines._warm.values()
    warm.process.kill()
    assert engines._elsewhere(job | {"id": "other"}) == 0
    new, = engines._warm.values()
    assert new is not warm
    new.close()
    engines._warm.clear()


def test_a_search_on_ray_is_that_of_processes_though_an_actor_is_killed(ray, tmp_path):
    make, died = lfads(), tmp_path / "died"

    def dies(hyper, seed):
        member = make(hyper, seed)
        train = member.run

        def run(epochs):
            if (tmp_path / "search" / "generation-0000.json").exists() and not died.exists():
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return train(epochs)

        member.run = run
        return member

    how = dict(members=4, epochs=1, generations=3, seed=1, workers=2, window=None)
    expected = pbt(make, **how)
    found = pbt(dies, engine="ray", out=tmp_path / "search", **how)
    assert died.exists() and found.table.equals(expected.table)
