"Sweeps from outside: what a kill, a crash, a second sweep or a hand does to the table."
import json, os, random, signal, subprocess, sys, time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from hypothesis import example, given, settings, strategies as st

from neurocompanion.core import SweepError, home
from neurocompanion.sweeps import engines, tables
from neurocompanion.sweeps.engines import sweep
from neurocompanion.sweeps.paper import cell, papers, setting_of
from neurocompanion.sweeps.sweep import collect, expand, identity, load, status
from neurocompanion.sweeps.warm import DONE, Warm

PARAMETERS = """\
n = 3        # the number to add
steps = 4    # how often
pause = 0.05 # seconds a step
trouble = "" # what goes wrong
seed = 0     # of the draws
out = ""     # the run's folder"""

WORK = """\
import json, os, random, sys, time
from pathlib import Path
from neurocompanion.core import atomic_path
state, saved = {"step": 0, "total": 0}, Path(out or ".") / "checkpoint.json"
if out and saved.exists(): state = json.loads(saved.read_text())
log = os.environ.get("NEUROCOMPANION_LOG")
if log: open(log, "a").write(f"{n} {seed} {state['step']}\\n")
while state["step"] < steps:
    time.sleep(pause)
    state = {"step": state["step"] + 1, "total": state["total"] + n * (seed + 1)}
    if out:
        with atomic_path(saved) as tmp: tmp.write_text(json.dumps(state))
    if trouble == "error": raise ValueError("a bad worm")
    if trouble == "kill": os.kill(os.getpid(), 9)
    if trouble == "segfault": os.kill(os.getpid(), 11)
    if trouble == "exit": sys.exit(3)
    if trouble == "disk": raise OSError(28, "No space left on device", str(saved))
    if trouble == "orphan" and state["step"] == 1 and os.fork() == 0: time.sleep(60)
rows = [{"step": k + 1, "value": state["total"] * (k + 1)} for k in range(3)]
if trouble == "random": rows = [{"value": random.random()}]
if trouble == "mixed": rows = [{"value": "many"}, {"value": None}, {"other": 1.5}]"""

WRITE = """\
from neurocompanion.sweeps.sweep import write_run
asked = dict(n=n, steps=steps, pause=pause, trouble=trouble, seed=seed)
if trouble != "silent": write_run(rows, asked, out, paper="toy")"""


@pytest.fixture
def toy(tmp_path):
    "A toy paper: a function that writes a grid and returns its path."
    return make_toy(tmp_path)


@pytest.fixture(scope="module")
def any_toy(tmp_path_factory):
    "The grid file of a toy paper, to write anything into."
    return make_toy(tmp_path_factory.mktemp("any"))()


def make_toy(folder):
    paper = folder / "toy"
    (paper / "sweeps").mkdir(parents=True)
    cell = nbformat.v4.new_code_cell
    nb = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_markdown_cell("# A toy"),
        cell(PARAMETERS, metadata={"tags": ["parameters"]}), cell(WORK), cell(WRITE)])
    nb.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "3"}
    nbformat.write(nb, paper / "run.ipynb")

    def grid(name="toy", **scale):
        path = paper / "sweeps" / f"{name}.yaml"
        path.write_text(json.dumps({"scales": {"tiny": scale}}))
        return path

    return grid


def outcome(path):
    "A table without what differs from call to call."
    return pd.read_parquet(path).drop(columns=["wall_seconds", "peak_mib"])


def start(grid, out, **env):
    "A sweep in a process of its own, as a user would start it."
    code = (f"from neurocompanion.sweeps.engines import sweep; "
            f"r = sweep({str(grid)!r}, scale='tiny', out={str(out)!r}, workers=2); "
            "print(r); raise SystemExit(r.exit_code)")
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **env}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def alive(out):
    "Processes that still have a file open under `out`, or were started for it."
    found = []
    for p in Path("/proc").glob("[0-9]*"):
        try: links = [os.readlink(f) for f in (p / "fd").iterdir()]
        except OSError: continue
        if p.name != str(os.getpid()) and any(str(out) in x for x in links): found.append(p.name)
    return found


def gone(out, seconds=5):
    "Whether no such process is left after a while: an orphan needs a moment to die."
    end = time.monotonic() + seconds
    while alive(out) and time.monotonic() < end: time.sleep(0.05)
    return not alive(out)


def readable(out):
    "Every finished run can be read, and so can the table and the list, whenever one looks."
    for folder in (out / "runs").glob("*"):
        assert len(pd.read_parquet(folder / "rows.parquet")) == 3
        assert json.loads((folder / "record.json").read_text())["run_id"] == folder.name
        nbformat.validate(nbformat.read(folder / "run.ipynb", 4))
    if (out / "table.parquet").exists(): pd.read_parquet(out / "table.parquet")
    if (out / "sweep.json").exists(): json.loads((out / "sweep.json").read_text())


def kill_and_compare(toy, tmp_path, kills, seed, runs=8):
    "Kill a sweep `kills` times, restart it, compare the last table; count runs that went on."
    grid = toy(grid={"n": list(range(1, runs // 2 + 1))}, seeds=2)
    began, p = time.time(), start(grid, tmp_path / "whole")
    assert p.wait() == 0, p.communicate()
    whole, length = outcome(tmp_path / "whole" / "table.parquet"), time.time() - began
    draw, killed, log, folders = random.Random(seed), 0, tmp_path / "log", 0
    while killed < kills:
        folders, out = folders + 1, tmp_path / f"killed{folders}"
        while killed < kills:
            p = start(grid, out, NEUROCOMPANION_LOG=str(log))
            try: p.wait(draw.uniform(0.02, 1) * length)
            except subprocess.TimeoutExpired:
                p.kill()
                killed += 1
                p.wait()
                readable(out)
            else: break  # it came to its end first: on to the next folder
            finally: p.communicate()
        p = start(grid, out, NEUROCOMPANION_LOG=str(log))
        said, errors = p.communicate(timeout=60)
        assert p.returncode == 0, errors
        pd.testing.assert_frame_equal(outcome(collect(out)), whole)
        assert [p.name for p in (out / "partial").iterdir() if p.is_dir()] == []
        assert not (out / "failed").exists()
        assert alive(out) == []
    return sum(int(x.split()[2]) > 0 for x in log.read_text().splitlines())


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@linux
def test_killed_six_times(toy, tmp_path): kill_and_compare(toy, tmp_path, 6, seed=1, runs=6)


@linux
@pytest.mark.slow
def test_killed_twenty_times(toy, tmp_path):
    assert kill_and_compare(toy, tmp_path, 20, seed=2) > 0  # some went on from a checkpoint


def test_failures_are_kept_and_stop_nothing(toy, tmp_path):
    troubles = ["", "error", "kill", "segfault", "exit", "disk", "silent"]
    grid, out = toy(grid={"trouble": troubles}, fixed={"pause": 0}), tmp_path / "out"
    result = sweep(grid, scale="tiny", out=out, workers=2)
    why = dict(zip(troubles[1:], result.failed.values()))
    assert (len(result.done), len(result.failed), result.exit_code) == (1, 6, 1)
    assert "ValueError: a bad worm" in why["error"] and "trouble=error" in str(result)
    assert "killed by SIGKILL, most likely because the memory ran out" in why["kill"]
    assert "killed by SIGSEGV" in why["segfault"]
    assert "SystemExit: 3" in why["exit"]
    assert "No space left on device" in why["disk"]
    assert "the template wrote no result" in why["silent"]
    for name in result.failed:
        folder = out / "failed" / name
        assert {p.name for p in folder.iterdir()} == {"record.json", "run.ipynb", "traceback.txt"}
        nbformat.validate(nbformat.read(folder / "run.ipynb", 4))
        assert "\x1b" not in (folder / "traceback.txt").read_text()
        assert (out / "partial" / name / "checkpoint.json").exists()  # for the next attempt
    crash = (out / "failed" / list(result.failed)[2] / "traceback.txt").read_text()
    assert "Segmentation fault" in crash  # the last words of a process that could not speak
    assert sweep(grid, scale="tiny", out=out, retry=False).ran == 0
    assert pd.read_parquet(result.table).trouble.unique().tolist() == [""]


def test_failed_run_goes_on_from_its_checkpoint(toy, tmp_path):
    grid = toy(grid={"trouble": ["kill"]}, fixed={"pause": 0, "steps": 1})
    calls = [sweep(grid, scale="tiny", out=tmp_path / "out") for _ in range(2)]
    assert [r.exit_code for r in calls] == [1, 0]  # the first dies after its only step
    assert list((tmp_path / "out" / "failed").iterdir()) == []


def test_by_hand_is_the_same(toy, tmp_path):
    grid = toy(grid={"n": [2]}, fixed={"pause": 0})
    result = sweep(grid, scale="tiny", out=tmp_path / "out")
    command = [sys.executable, "-m", "papermill", str(grid.parent.parent / "run.ipynb"),
               str(tmp_path / "hand.ipynb"), "-p", "n", "2", "-p", "pause", "0"]
    env = {**os.environ, "NEUROCOMPANION_RESULTS": str(tmp_path / "results")}
    subprocess.run(command, check=True, capture_output=True, env=env, cwd=tmp_path)
    by_hand, = (tmp_path / "results" / "toy").iterdir()
    ours = pd.read_parquet(tmp_path / "out" / "runs" / result.done[0] / "rows.parquet")
    theirs = pd.read_parquet(by_hand / "rows.parquet")
    pd.testing.assert_frame_equal(ours, theirs, check_dtype=False)  # pause is 0 here, 0.0 there
    nbs = [nbformat.read(f, 4) for f in (result.out / "runs" / result.done[0] / "run.ipynb",
                                         tmp_path / "hand.ipynb")]
    for a, b in zip(*(nb.cells for nb in nbs), strict=True):
        assert (a.cell_type, a.metadata.get("tags")) == (b.cell_type, b.metadata.get("tags"))
        if a.cell_type == "code": assert a.execution_count == b.execution_count
    assert nbs[0].metadata.kernelspec == nbs[1].metadata.kernelspec


SHOWY = ["1 + 1", "print('a'); print('b')", "import sys; print('c', file=sys.stderr)",
         "import pandas as pd\npd.DataFrame({'x': [1]})",
         "from IPython.display import display, Markdown, clear_output\ndisplay(Markdown('*m*'))\n2",
         "h = display('old', display_id='k'); h.update('new')",
         "print('gone'); clear_output(); print('kept')",
         "print('gone'); clear_output(wait=True); print('kept too')",
         "import matplotlib.pyplot as plt\nprint(1); plt.plot([1, 2]); plt.show(); print(2)",
         "plt.plot([1, 2]);", "!echo from the shell",
         "import asyncio\nawait asyncio.sleep(0, 'slept')", "_ , __name__",
         "%matplotlib inline", "None", "5;", "print('no line end', end='')"]


def shown(cell):
    "What a cell shows, without what differs between two figures or two moments."
    joined = []  # a kernel may send a line in pieces: neighbours of one stream are put together
    for o in cell.outputs:
        text = "".join(o.get("text") or o.data.get("text/plain") or "").split(" at 0x")[0]
        if joined and o.output_type == "stream" and joined[-1][:2] == ("stream", o.name):
            text = joined.pop()[2] + text
        joined.append((o.output_type, o.get("name"), text, sorted(o.get("data", {}))))
    return joined


def test_cells_show_what_a_kernel_shows(tmp_path):
    import papermill
    cell = nbformat.v4.new_code_cell
    nb = nbformat.v4.new_notebook(cells=[cell("out = ''", metadata={"tags": ["parameters"]}),
                                         *map(cell, SHOWY)])
    nb.cells.append(cell("from pathlib import Path\nif out: Path(out, 'record.json').touch()"))
    nbformat.write(nb, tmp_path / "run.ipynb")
    papermill.execute_notebook(str(tmp_path / "run.ipynb"), str(tmp_path / "kernel.ipynb"),
                               {"out": ""}, kernel_name="python3", language="python",
                               progress_bar=False)
    (tmp_path / "partial").mkdir()
    job = {"id": "a", "parameters": {}, "data": {}, "code": "", "out": str(tmp_path),
           "template": str(tmp_path / "run.ipynb"), "log": str(tmp_path / "log")}
    with Warm(tmp_path / "run.ipynb") as warm: assert warm.run(**job) == DONE
    warm, kernel = (nbformat.read(tmp_path / f, 4).cells for f in
                    ("runs/a/run.ipynb", "kernel.ipynb"))
    for a, b in zip(warm, kernel, strict=True): assert shown(a) == shown(b), b.source


@linux
def test_two_sweeps_share_a_folder(toy, tmp_path):
    grid, out, log = toy(grid={"n": [1, 2, 3, 4]}), tmp_path / "out", tmp_path / "log"
    both = [start(grid, out, NEUROCOMPANION_LOG=str(log)) for _ in range(2)]
    said = [p.communicate(timeout=60) for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert sorted(log.read_text().splitlines()) == [f"{n} 0 0" for n in (1, 2, 3, 4)]
    readable(out)


@linux
def test_interrupt_is_tidy(toy, tmp_path):
    grid = toy(grid={"n": [1, 2, 3]}, fixed={"pause": 0.3, "trouble": "orphan"})
    out = tmp_path / "out"
    p = start(grid, out)
    while not list(out.glob("partial/*/checkpoint.json")): time.sleep(0.05)
    assert alive(out)
    p.send_signal(signal.SIGINT)
    said = p.communicate(timeout=20)[1]
    assert p.returncode != 0
    assert "Stopped: 0 of 3 runs are done" in said and "goes on from here" in said
    assert gone(out)
    assert list(out.glob("partial/*/checkpoint.json"))
    result = sweep(grid, scale="tiny", out=out)
    assert (result.exit_code, len(result.done)) == (0, 3)
    assert gone(out)


def test_mixed_kinds_random_states_and_stale_runs(toy, tmp_path):
    out = tmp_path / "out"
    mixed = sweep(toy(grid={"trouble": ["", "mixed", "random"], "seed": [0, 1]},
                      fixed={"pause": 0}), scale="tiny", out=out)
    table = pd.read_parquet(mixed.table)
    assert table.value.dropna().map(type).unique().tolist() == [str]
    drawn = table.value[table.trouble == "random"]
    assert drawn.nunique() == 2  # a fork does not repeat its sibling's random numbers
    assert table.groupby("run_id", sort=False).seed.first().tolist() == [0, 1, 0, 1, 0, 1]
    only = toy(grid={"trouble": [""], "seed": [1]}, fixed={"pause": 0})
    less = sweep(only, scale="tiny", out=out)
    assert (less.ran, less.stale, len(pd.read_parquet(less.table))) == (0, 5, 3)
    assert status(out)["stale"] == 5
    before = Path(less.table).read_bytes()
    assert collect(out).read_bytes() == before


def test_a_change_of_code_makes_new_runs(toy, tmp_path):
    grid, out = toy(grid={"n": [1]}, fixed={"pause": 0}), tmp_path / "out"
    template = grid.parent.parent / "run.ipynb"
    first = sweep(grid, scale="tiny", out=out)
    nb = nbformat.read(template, 4)
    nb.cells[2].source += "  # the same"
    nb.cells[0].source += ", well told"
    nbformat.write(nb, template)
    assert sweep(grid, scale="tiny", out=out).ran == 0
    nb.cells[2].source += "\nrows = rows[:2]"
    nbformat.write(nb, template)
    again = sweep(grid, scale="tiny", out=out)
    assert (again.ran, again.stale, len(pd.read_parquet(again.table))) == (1, 1, 2)
    assert first.done != again.done


def test_what_a_full_disk_left_goes_with_the_next_success(toy, tmp_path):
    grid, out = toy(grid={"n": [1]}, fixed={"pause": 0}), tmp_path / "out"
    name, = sweep(grid, scale="tiny", out=out).done
    (out / "runs" / name / "rows.parquet").unlink()
    (out / "failed" / f".{name}").mkdir(parents=True)
    (out / "partial" / name).mkdir()
    (out / "partial" / name / ".checkpoint.pt.12-abcdef.tmp").touch()  # a kill while it was saved
    assert sweep(grid, scale="tiny", out=out).done == [name]
    assert list((out / "failed").iterdir()) == list((out / "partial").iterdir()) == []
    assert {p.name for p in (out / "runs" / name).iterdir()} == {"run.ipynb", "rows.parquet",
                                                                 "record.json"}


@linux
def test_a_dead_run_that_another_sweep_has_taken_up_is_left_alone(tmp_path):
    (tmp_path / "partial" / "a").mkdir(parents=True)
    (tmp_path / "partial" / "a" / "record.json").touch()
    job = {"id": "a", "out": str(tmp_path), "log": str(tmp_path / "log"), "parameters": {}}
    hold = ("import sys; from neurocompanion.sweeps.warm import claim\n"
            f"with claim({str(tmp_path)!r}, 'a') as mine: print(mine, flush=True); input()")
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "True\n"
        assert not engines._settle(job, -9)
        assert (tmp_path / "partial" / "a" / "record.json").exists()
        assert not (tmp_path / "failed").exists()
        other.communicate("\n")
    assert not engines._settle(job, -9)
    assert (tmp_path / "failed" / "a" / "record.json").exists()


def test_slurm_jobs_end_with_the_sweep(toy, tmp_path, monkeypatch):
    cancelled = []

    class Task:
        def __init__(self, job): self.job = job
        def done(self): return self.job["id"] == "a"
        def exception(self): return None
        def result(self): return DONE
        def cancel(self): cancelled.append(self.job["id"])
    class Executor:
        cluster = "slurm"
        def __init__(self, folder, cluster): pass
        def update_parameters(self, **options): pass
        def map_array(self, function, jobs): return [Task(job) for job in jobs]
    submitit = type("submitit", (), {"AutoExecutor": Executor})
    monkeypatch.setattr(engines, "extra", lambda *name: submitit)
    jobs = [{"id": i, "out": str(tmp_path)} for i in "abc"]
    ends = engines._slurm(jobs, 2, load(toy(seeds=1)))
    assert next(ends) == ("a", DONE)
    ends.close()
    assert cancelled == ["b", "c"]


def test_tables_are_published_into_a_checkout_only(toy, tmp_path, monkeypatch):
    home, words = tmp_path / "share", ["", "None", "NA", "nan"]
    (home / "nbs" / "toy").mkdir(parents=True)
    monkeypatch.setattr(tables, "home", lambda: home)
    grid = toy(grid={"trouble": words[1:]}, fixed={"pause": 0})
    out = sweep(grid, scale="tiny", out=tmp_path / "out").out
    with pytest.raises(SweepError, match="published in a checkout"): tables.publish(out)
    assert list((home / "nbs" / "toy").iterdir()) == []
    (home / "settings.ini").touch()
    assert tables.publish(out) == home / "nbs" / "toy" / "tables" / "toy.csv"
    assert set(tables.table("toy/toy").trouble) == set(words[1:])  # words stay words


def test_inputs_that_cannot_be_read_and_unknown_names_are_told(toy, tmp_path):
    grid, out = toy(grid={"n": [1]}), tmp_path / "out"
    with pytest.raises(SweepError, match="there is no sweep 'nothing/it'"): load("nothing/it")
    with pytest.raises(SweepError, match="there is no such file"): load("nothing.yaml")
    with pytest.raises(SweepError, match="Perhaps you mean 'tiny'"): expand(grid, "tyni")
    for text, says in [("def inputs(n): raise OSError('no such worm')", "no such worm"),
                       ("import nothing_like_it\ndef inputs(): pass", "nothing_like_it"),
                       ("import os\ndef inputs(n): os.kill(os.getpid(), 9)", "killed by SIGKILL")]:
        (grid.parent.parent / "experiments.py").write_text(text)
        with pytest.raises(SweepError, match=says): sweep(grid, scale="tiny", out=out)


@given(st.floats(allow_nan=False, allow_infinity=False),
       st.sampled_from(["{!r}", "{:e}", "{:.17g}"]))
def test_numbers_in_yaml_are_numbers(tmp_path_factory, number, form):
    folder = tmp_path_factory.mktemp("grid")
    text = form.format(number)
    (folder / "g.yaml").write_text("scales: {tiny: {grid: {x: [" + text + "]}}}")
    x, = load(folder / "g.yaml").scales["tiny"]["grid"]["x"]
    assert isinstance(x, (int, float)) and x == float(text)


plain = st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.sampled_from(["", "1e-3"])
names = st.sampled_from(["n", "steps", "seed", "out", "grid", "zip", "m", 3, None])
anything = st.recursive(plain, lambda inner: st.lists(inner, max_size=3)
                        | st.dictionaries(names, inner, max_size=3), max_leaves=8)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(["grid", "zip", "seeds", "fixed", "seed"]), anything))
@example({"zip": {3: [None]}})
def test_any_scale_expands_or_says_why(any_toy, scale):
    any_toy.write_text(yaml.safe_dump({"scales": {"tiny": scale}}))
    try: runs = expand(any_toy, "tiny")
    except SweepError as e: assert str(any_toy) in str(e)
    else: assert len({identity(r) for r in runs}) == len(runs) > 0


@settings(max_examples=200)
@given(anything)
def test_any_file_loads_or_says_why(any_toy, content):
    any_toy.write_text(yaml.safe_dump(content))
    with pytest.raises(SweepError, match="toy"): expand(any_toy, "tiny")


@pytest.mark.parametrize("paper", papers())
def test_the_first_cell_of_a_run_is_the_papers_setting(paper):
    template = home() / "nbs" / paper / "run.ipynb"
    written, = ["".join(c["source"]) for c in json.loads(template.read_text())["cells"]
                if "parameters" in c["metadata"].get("tags", [])]
    assert written == cell(setting_of(paper)), "run `make export`"
    assert max(map(len, written.splitlines())) <= 100
