"One command runs every benchmark; what fails is named, and the table says where it comes from."
import csv, json, subprocess, sys

import pytest

from neurocompanion.core import home

BENCH = home() / "benchmarks"
sys.path.append(str(BENCH))
import turns  # noqa: E402


def run(*args):
    return subprocess.run([sys.executable, str(BENCH / "all.py"), *map(str, args)],
                          capture_output=True, text=True, timeout=300)


def table(path):
    with open(path, newline="", encoding="utf-8") as f: return list(csv.DictReader(f))


def test_a_benchmark_becomes_rows_of_a_table_with_its_record(tmp_path):
    done = run("--quick", "--only", "machine", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows, about = table(tmp_path / "benchmarks.csv"), json.loads(
        (tmp_path / "benchmarks.json").read_text())
    assert [*rows[0]] == [*turns.COLUMNS] and "GFLOP/s" in {r["unit"] for r in rows}
    assert about["quick"] and about["machine"]["cores"] > 0 and about["failed"] == {}
    for r in rows:
        if r["unit"]: assert float(r["ours_low"]) <= float(r["ours"]) <= float(r["ours_high"])


def test_what_fails_or_hangs_is_named_and_the_others_go_on(tmp_path):
    for name, body in {"good": "yield row('a', 'b', 's', [1.0], [2.0], 'slow')",
                       "bad": "raise ValueError('no such thing')",
                       "slow": "import time; time.sleep(60); yield 1"}.items():
        (tmp_path / f"{name}.py").write_text(
            f"from turns import row\ndef for_table(device, quick):\n    {body}\n")
    done = run("--quick", "--folder", tmp_path, "--limit", 8, "--out", tmp_path / "out")
    assert done.returncode == 1
    for said in ("failed: bad: ValueError: no such thing", "failed: slow: longer than 8 s"):
        assert said in done.stdout
    rows = {r["benchmark"]: r for r in table(tmp_path / "out" / "benchmarks.csv")}
    assert rows["good"]["ratio"] == "2" and rows["slow"]["part"] == "failed"
    assert run("--only", "none").returncode == 2


def test_the_table_of_the_page_is_of_the_whole_list():
    path = home() / "nbs" / "tables" / "benchmarks.csv"
    if not path.is_file(): pytest.skip("no table yet")
    about = json.loads(path.with_suffix(".json").read_text("utf-8"))
    scripts = {p.stem for p in BENCH.glob("*.py") if "\ndef for_table(" in p.read_text("utf-8")}
    assert {r["benchmark"] for r in table(path)} - {"all"} == scripts == {*about["seconds"]}
    assert not about["quick"] and about["failed"] == {}
