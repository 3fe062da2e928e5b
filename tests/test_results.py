"Pages of results: they draw those of the folder they are given, and never a committed number."
import contextlib, io, json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEW = {"worm_gnn": "mlp", "worm_scaling": "linear", "zebrafish": "linear"}  # renamed, as if added
PAPERS = sorted(p.parent.name for p in (ROOT / "nbs").glob("*/figures.ipynb"))


def write_run(folder, rows, **about):
    "The folder that a run leaves."
    folder.mkdir(parents=True)
    own = rows.drop(columns=["run_id", "wall_seconds"], errors="ignore")
    own.to_parquet(folder / "rows.parquet")
    record = dict(device="cpu", git=dict(revision="abc", dirty=False), versions={"torch": "2"},
                  wall_seconds=1.5, run_id=folder.name, **about)
    (folder / "record.json").write_text(json.dumps(record))


def some_rows(paper, only_first=False):
    "Rows of the committed headline, of one seed or one run; one model has an unknown name."
    from neurocompanion.sweeps.tables import table
    rows = table(f"{paper}/headline")
    by = "run_id" if only_first and "run_id" in rows else "seed"
    rows = rows[rows[by] == rows[by].iloc[-1]].copy()
    rows.attrs.clear()
    if paper in NEW: rows["model"] = rows["model"].replace(NEW[paper], "mine")
    return rows


def sweep_folder(folder, paper):
    "The folder that a finished tiny headline leaves."
    write_run(folder / "runs" / "one", some_rows(paper))
    plan = dict(sweep=f"{paper}/headline", scale="tiny", title="", runs=[{"id": "one"}])
    (folder / "sweep.json").write_text(json.dumps(plan))


def page(path, results, monkeypatch):
    "What a page says with these results: prints, tables and the words of its figures."
    import matplotlib
    import matplotlib.pyplot as plt
    from neurocompanion import plots
    from neurocompanion.sweeps import tables
    matplotlib.use("Agg")
    real_table, real_stamp, said, stamps = tables.table, plots.stamp, io.StringIO(), []

    def own(name, results=None):
        assert str(results or ""), f"{name}: the committed table was read"
        return real_table(name, results)
    def stamp(*args, **more): stamps.append(real_stamp(*args, **more).get_text())
    monkeypatch.setattr(tables, "table", own)
    monkeypatch.setattr(plots, "stamp", stamp)
    space = {"display": lambda *some: print(*some, file=said)}
    with contextlib.redirect_stdout(said):
        for i, cell in enumerate(json.loads(path.read_text())["cells"]):
            if cell["cell_type"] != "code": continue
            source = "".join(cell["source"])
            if "parameters" in cell["metadata"].get("tags", []):
                source += f"\nresults = {str(results)!r}"
            exec(compile(source, f"{path.parent.name}/{path.name}, cell {i}", "exec"), space)
            for n in plt.get_fignums():
                for text in plt.figure(n).findobj(matplotlib.text.Text): print(text.get_text())
            plt.close("all")
    monkeypatch.undo()
    return said.getvalue(), stamps


@pytest.mark.parametrize("paper", PAPERS)
def test_a_page_draws_the_results_it_is_given(paper, tmp_path, monkeypatch):
    sweep_folder(tmp_path / "mine" / paper / "headline" / "tiny", paper)
    said, stamps = page(ROOT / "nbs" / paper / "figures.ipynb", tmp_path / "mine", monkeypatch)
    own = [s for s in stamps if "results in tiny" in s]
    assert own and all("tiny scale" in s for s in own)
    assert all(s == "simulated recordings" for s in stamps if s not in own)   # a drawing of none
    for grid in (ROOT / "nbs" / paper / "sweeps").glob("*.yaml"):
        missing = f"{grid.stem}: not among these results" in said
        assert missing == (grid.stem != "headline"), grid.stem
    if paper in NEW: assert "mine" in said


@pytest.mark.parametrize("paper", PAPERS)
def test_a_single_run_is_drawn(paper, tmp_path, monkeypatch):
    rows = some_rows(paper, only_first=True)
    asked = {"experiment": rows["experiment"].iloc[0]}
    write_run(tmp_path / "mine/one", rows, paper=paper, parameters=asked)
    said, stamps = page(ROOT / "nbs" / paper / "figures.ipynb", tmp_path / "mine", monkeypatch)
    assert any("runs in mine" in s and "scale" not in s for s in stamps)
    assert "headline: not among these results" not in said


@pytest.mark.parametrize("paper", PAPERS)
def test_the_paper_page_says_what_is_missing(paper, tmp_path, monkeypatch):
    sweep_folder(tmp_path / "mine", paper)
    said, _ = page(ROOT / "nbs" / paper / "paper.ipynb", tmp_path / "mine", monkeypatch)
    assert "not among these results" in said
    assert "headline: not" not in said
