"The command, as a user calls it: in a process of its own."
import json, os, subprocess, sys
from pathlib import Path

import pandas as pd
import pytest
from test_site import check_form

from neurocompanion.site import pages

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def call(*args, cwd=ROOT, timeout=900, **env):
    quiet = {k: v for k, v in os.environ.items() if k != "NEUROCOMPANION_MIRROR"}
    return subprocess.run([str(BIN / "neurocompanion"), *map(str, args)], cwd=cwd, text=True,
                          capture_output=True, env=quiet | env, timeout=timeout)


def test_help_teaches_and_pulls_nothing_heavy():
    done = call("--help")
    assert done.returncode == 0
    for word in "sources fetch check simulate sweep collect reproduce site".split():
        assert word in done.stdout
        more = call(word, "--help")
        assert more.returncode == 0 and "example: neurocompanion" in more.stdout
    code = "import sys; from neurocompanion.command import parser; parser().format_help(); " \
           "print(sorted({'torch', 'numpy', 'pandas', 'xarray', 'papermill'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_mistakes_are_one_sentence():
    for args in [("fetch", "kato1915"), ("sweep", "worm_scaling/headlin"), ("collect", "nowhere"),
                 ("sweep", "worm_scaling/headline", "--scale", "tiny", "--set", "hiden=3"),
                 ("reproduce", "--paper", "worm")]:
        done = call(*args)
        assert done.returncode == 2, args
        assert done.stderr.startswith("neurocompanion: ") and "Traceback" not in done.stderr
    assert "worm_scaling" in done.stderr                           # it names the papers there are


def test_sources_says_where_each_is_and_a_closed_pipe_is_no_error(tmp_path):
    done = call("sources", NEUROCOMPANION_CACHE=str(tmp_path))
    assert done.returncode == 0 and "kato2015 " in done.stdout, done.stderr
    assert all("nowhere" in line for line in done.stdout.splitlines())
    assert call("sources", "no such recording").returncode == 2
    read, write = os.pipe()
    os.close(read)
    for args in (["sources"], ["--help"]):
        done = subprocess.run([str(BIN / "neurocompanion"), *args], stdout=write,
                              stderr=subprocess.PIPE, text=True, timeout=60)
        assert done.returncode == 0 and done.stderr == ""
    os.close(write)


def test_simulated_recordings_pass_check_and_others_do_not(tmp_path):
    for kind, n in [("worms", 2), ("sessions", 2), ("fish", 1)]:
        done = call("simulate", kind, "-n", n, "--out", tmp_path)
        assert done.returncode == 0, done.stderr
        files = done.stdout.split()
        assert len(files) == n
        done = call("check", *files)
        assert done.returncode == 0 and done.stdout.count("follows the standard") == n, done.stderr
    (tmp_path / "notes.txt").write_text("not a recording")
    done = call("check", tmp_path / "notes.txt", tmp_path / "nothing.nc")
    assert done.returncode == 1
    assert "notes.txt" in done.stderr and "nothing.nc" in done.stderr


def test_check_looks_at_every_value_of_large_files(tmp_path, monkeypatch, capsys):
    import h5py
    import numpy as np

    from neurocompanion.command import main
    from neurocompanion.recordings import standard
    ds = standard.video(np.ones((90, 2, 16, 16), "float32"), sampling_rate=1, subject="fish",
                        source="test")
    path = standard.save(ds, tmp_path / "a.nc")
    monkeypatch.setattr(standard, "_LARGE", 1000)   # such files are opened lazily
    assert main(["check", str(path)]) == 0
    assert "fish (time 90, z 2, y 16, x 16): follows" in capsys.readouterr().out
    with h5py.File(path, "a") as f: f["video"][70, 1, 2, 3] = np.nan
    assert main(["check", str(path)]) == 1
    assert "time 70 s, z 1, y 2, x 3: `video` has gaps" in capsys.readouterr().err


def test_reproduce_at_the_smallest_scale(tmp_path):
    "Every headline, the figures and the site; then the sweep again, and one of its runs by hand."
    done = call("reproduce", "--scale", "tiny", "--out", tmp_path, "--site", tmp_path / "site",
                cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(tmp_path / "site" / "index.html") in done.stdout
    figures = (tmp_path / "worm_scaling" / "figures.ipynb").read_text()
    page = (tmp_path / "site/worm_scaling/figures.html").read_text()
    assert "image/png" in figures and str(tmp_path) not in page
    committed = json.loads((ROOT / "nbs/worm_scaling/tables/headline.json").read_text())
    assert committed["scale"] != "tiny"   # what was drawn is not what is committed
    for p in pages(ROOT):
        text = (tmp_path / "site" / p.href).read_text()
        check_form(text.partition('<main id="content">')[2].partition("</main>")[0])

    out = tmp_path / "worm_scaling" / "headline"
    table = pd.read_parquet(call("collect", out).stdout.split()[-1])
    assert table["run_id"].nunique() == 3 and table["valid_loss"].gt(0).all()
    assert set(table["data"]) == {"simulated"}
    for run in table["run_id"]:
        nb = json.loads((out / "runs" / run / "run.ipynb").read_text())
        tags = [c["metadata"].get("tags", []) for c in nb["cells"]]
        assert ["injected-parameters"] in tags
    before = {p: p.stat().st_mtime_ns for p in out.glob("runs/*/*")}
    done = call("sweep", "worm_scaling/headline", "--scale", "tiny", "--out", out)
    assert done.returncode == 0 and "(0 tried now)" in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in out.glob("runs/*/*")}

    one = table.iloc[0]
    asked = json.loads((out / "runs" / one["run_id"] / "record.json").read_text())["parameters"]
    pairs = [x for k, v in asked.items() for x in ("-p", k, str(v))]
    template, target = "nbs/worm_scaling/run.ipynb", str(tmp_path / "out.ipynb")
    command = [str(BIN / "papermill"), template, target, *pairs, "-p", "out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=200,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    by_hand = pd.read_parquet(tmp_path / "rows.parquet").iloc[0]
    assert by_hand["valid_loss"] == pytest.approx(one["valid_loss"], rel=1e-6)
