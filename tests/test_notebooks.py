"Every notebook runs, is clean, and is what the package was exported from."
import json, os, re, shutil, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb")
                   if ".ipynb_checkpoints" not in p.parts)
NAMES = [str(p.relative_to(ROOT / "nbs")) for p in NOTEBOOKS]
BIN = Path(sys.executable).parent
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)


def run(*command, cwd=ROOT, **env):
    "A command in a clean environment: without the variables that make nbdev skip its work."
    clean = {k: v for k, v in os.environ.items() if k not in ("IN_TEST", "PYTEST_CURRENT_TEST")}
    return subprocess.run([str(c) for c in command], cwd=cwd, env=clean | env, text=True,
                          capture_output=True, timeout=300)


@pytest.fixture(scope="session")
def warm():
    "A process that has imported what is slow to import, and tests notebooks in forks of itself."
    env = os.environ | dict(OMP_NUM_THREADS="1", NEUROCOMPANION_MIRROR="")
    for name in ("IN_TEST", "PYTEST_CURRENT_TEST"): env.pop(name, None)
    with subprocess.Popen([sys.executable, ROOT / "tests/notebooks.py"], cwd=ROOT, env=env,
                          text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.name != "run.ipynb"],
                         ids=lambda p: p.relative_to(ROOT / "nbs").as_posix())
def test_runs(path, warm, tmp_path):
    "`run` is run by sweeps, at their smallest size."
    print(json.dumps([str(path), str(tmp_path / "log"), 300]), file=warm.stdin, flush=True)
    status = warm.stdout.readline().strip()
    assert status == "0", f"exit status {status}\n{(tmp_path / 'log').read_text()[-4000:]}"


def outputs(path):
    "Every text that a notebook's outputs show, with the number of its cell."
    for i, cell in enumerate(json.loads(path.read_text())["cells"]):
        for out in cell.get("outputs", []):
            assert out["output_type"] != "error", f"cell {i} ends in an error"
            data = out.get("data", {})
            for text in [out.get("text"), data.get("text/plain"), data.get("text/html")]:
                if text: yield i, "".join(text)


# what would differ on another machine or at the next run
UNSTABLE = {"a memory address": r"\bat 0x[0-9a-f]{6,}",
            "a temporary path": r"/tmp/\w+|\btmp\w{8}\b",
            "a home folder": r"/(home|root|Users)/\w+", "a wall-clock time": r"\bWall time: ",
            "a path of this machine": r"/(site|dist)-packages/", "a progress bar": r"\d+%\|"}


@each
def test_outputs_are_stable(path):
    for i, text in outputs(path):
        for what, pattern in UNSTABLE.items():
            found = re.search(pattern, text)
            assert not found, f"cell {i} shows {what}: {found.group()!r}"


@each
def test_shows_results_and_comments_of_cells_take_one_line(path):
    "Nothing need be run to see them; nbdev drops further lines of a caption before Quarto."
    code = {i: c for i, c in enumerate(json.loads(path.read_text())["cells"])
            if c["cell_type"] == "code"}
    for i, cell in code.items():
        folded = re.search(r"^#\|\s*[\w-]+:\s*[>|][+-]?\s*$", "".join(cell["source"]), re.M)
        assert not folded, f"cell {i}: {folded.group()}: shorten it to one line"
    if path.name == "run.ipynb" or len(code) < 2: return
    assert any(c["outputs"] for c in code.values()), "no cell has an output: execute the notebook"


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    "A copy of the tree, exported and cleaned again."
    copy = tmp_path_factory.mktemp("copy") / "tree"
    ignore = shutil.ignore_patterns(".venv", ".git", "results", "_docs", "_proc", "*.egg-info",
                                    "__pycache__")
    shutil.copytree(ROOT, copy, ignore=ignore, symlinks=True)
    for command in ("nbdev_export", "nbdev_clean"):
        done = run(BIN / command, cwd=copy, PYTHONPATH=str(copy))
        assert done.returncode == 0, done.stderr[-4000:]
    return copy


def files(root, *patterns):
    return {str(p.relative_to(root)): p.read_bytes() for g in patterns for p in root.rglob(g)
            if not {".venv", ".ipynb_checkpoints"} & set(p.relative_to(root).parts)}


@pytest.mark.parametrize("folder, pattern, how", [("neurocompanion", "*.py", "make export"),
                                                  ("nbs", "*.ipynb", "nbdev_clean")])
def test_package_is_what_the_notebooks_export_and_they_are_clean(exported, folder, pattern, how):
    ours, fresh = (files(r / folder, pattern) for r in (ROOT, exported))
    assert ours.keys() == fresh.keys(), f"run `{how}`: a module has no notebook, or none yet"
    differ = [name for name in ours if ours[name] != fresh[name]]
    assert not differ, f"run `{how}`: {', '.join(differ)} differ"


PREPARE = """
import nbdev.processors, nbdev.serve
def shell(*a): raise RuntimeError("a cell is executed while the site is built")
nbdev.processors.CaptureShell = shell
nbdev.serve.proc_nbs(n_workers=0, force=True)
"""


def test_notebooks_are_ready_for_quarto(exported):
    "nbdev's own preparation of the site goes through, and runs no cell."
    done = run(sys.executable, "-c", PREPARE, cwd=exported, PYTHONPATH=str(exported))
    assert done.returncode == 0, done.stderr[-4000:]
    made = {str(p.relative_to(exported / "_proc")) for p in (exported / "_proc").rglob("*.ipynb")}
    assert made >= set(NAMES), set(NAMES) - made
    settings = exported / "settings.ini"
    text = settings.read_text()
    settings.write_text(re.sub("(?m)^skip_procs = .*", "skip_procs = rm_export", text))
    done = run(sys.executable, "-c", PREPARE, cwd=exported, PYTHONPATH=str(exported))
    settings.write_text(text)
    assert done.returncode and "a cell is executed" in done.stderr, "this test cannot fail"


@pytest.mark.parametrize("modules, heavy", [
    ("", "torch numpy pandas matplotlib xarray scipy papermill pooch"),
    ("core command recordings.sources", "torch numpy pandas xarray requests pooch papermill"),
    ("training.metrics", "torch pandas matplotlib xarray scipy"),
    ("recordings.standard recordings.spikes.counts sweeps.sweep", "torch matplotlib"),
    ("sweeps.engines", "torch papermill pandas IPython nbformat matplotlib numpy"),
    ("autolfads.pbt", "torch")])
def test_imports_are_light(modules, heavy):
    "The package itself pulls nothing; the wings that hold no tensors do not pull torch."
    code = "; ".join(["import sys, neurocompanion"] +
                     [f"import neurocompanion.{m}" for m in modules.split()] +
                     [f"print(sorted(set({heavy.split()}) & set(sys.modules)))"])
    done = run(sys.executable, "-c", code)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_readme_is_the_first_notebook():
    from neurocompanion.render import readme_text
    files = {}
    text = readme_text(json.loads((ROOT / "nbs/index.ipynb").read_text()), "index.ipynb", files)
    assert (ROOT / "README.md").read_text() == text, "run `make export`"
    for name, data in files.items(): assert (ROOT / name).read_bytes() == data, "run `make export`"


def test_every_paper_has_one_headline_and_three_scales():
    from neurocompanion.sweeps.sweep import expand, load
    headlines = {}
    for path in (ROOT / "nbs").glob("*/sweeps/*.yaml"):
        spec = load(path)
        headlines.setdefault(spec.paper, []).append(spec.headline)
        for scale in ("tiny", "laptop", "paper"): assert expand(spec, scale)
    assert headlines and all(sum(h) == 1 for h in headlines.values()), headlines
