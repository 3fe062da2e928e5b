"""Every benchmark, one after the other, and one table of what they measured.

    python benchmarks/all.py [--quick] [--only NAME ...] [--device cuda] [--out FOLDER]

Each script here that has a function `for_table` runs in a process of its own; one that fails or
takes longer than --limit seconds is named at the end, and the others go on. The table goes to
FOLDER/benchmarks.csv, where it comes from to benchmarks.json (day, machine, versions, how busy the
machine was with other things), and what was measured at each size to growth.csv. Without --out
that folder is nbs/tables, which the page "How fast it is" shows, but only of a whole run.

A whole run takes about 20 minutes on two quiet cores, with --quick (small sizes, few turns: shows
that everything works, not how fast it is) three.
"""

import argparse
import ast
import csv
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from itertools import zip_longest
from pathlib import Path

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import turns

HERE = Path(__file__).resolve().parent
POINTS = ("quantity", "size", "turn", "seconds", "mib")


def names(folder=HERE):
    "The scripts with a function `for_table`."
    has = lambda p: any(isinstance(n, ast.FunctionDef) and n.name == "for_table"
                        for n in ast.parse(p.read_text("utf-8")).body)
    return sorted(p.stem for p in folder.glob("*.py") if has(p))


def work(path, quick, device, into):
    "In a process of its own: the rows of one script, each written as soon as it is there."
    sys.path.insert(0, str(path.parent))
    with open(into, "a", encoding="utf-8") as out:
        for r in importlib.import_module(path.stem).for_table(device, quick):
            print(json.dumps(r | {"benchmark": path.stem}), file=out, flush=True)
            print(f"  {turns.tell(r)}", flush=True)


def run(path, quick, device, limit):
    "The rows of one script, and why it failed, or nothing."
    with tempfile.TemporaryDirectory() as folder:
        into, said = Path(folder, "rows"), Path(folder, "said")
        into.touch()
        command = [sys.executable, __file__, "--work", str(path), "--into", str(into),
                   "--device", device, *["--quick"] * quick]
        with open(said, "w") as errors:
            child = subprocess.Popen(command, stderr=errors, start_new_session=True)
            try: code, why = child.wait(limit), ""
            except subprocess.TimeoutExpired: code, why = 1, f"longer than {limit:.0f} s"
            finally:
                try: os.killpg(child.pid, signal.SIGKILL)     # and what it has started
                except ProcessLookupError: pass
                child.wait()
        lines = said.read_text("utf-8", "replace").strip().splitlines()
        rows = [json.loads(line) for line in into.read_text("utf-8").splitlines()]
    if not code: return rows, "" if rows else "no row"
    return rows, why or (lines[-1] if lines else f"exit status {code}")


def only_words(name, part, what):
    "A row that says something and measures nothing."
    return dict.fromkeys(turns.COLUMNS) | dict(benchmark=name, part=part, what=what)


def busy():
    "How many cores others keep busy, averaged over a minute."
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


WIDTHS = {"what": 46, "ours": 24, "plain": 32, "ratio": 20, "peer": 24, "limit": 26, "aim": 14}


def cells(r):
    "A row in words, by column of the printed table."
    said = {"what": f"{r['part']}: {r['what']}"}
    if r["threads"]: said["what"] += f" ({r['device']}, {r['threads']} threads)"
    if r["ours"] is not None: said["ours"] = f"{turns.between(r, 'ours')} {r['unit']}"
    if r["plain"] is not None:
        said |= {"plain": f"{r['plain_name']}: {turns.between(r, 'plain')}",
                 "ratio": turns.between(r, "ratio")}
    if r["peer"] is not None: said["peer"] = f"{r['peer_name']}: {turns.short(r['peer'])}"
    if r["limit"] is not None: said["limit"] = f"{r['share']:.0%} of {r['limit_name']}"
    if r["aim"]: said["aim"] = f"{r['aim']}: {'met' if r['met'] else 'NOT MET'}"
    return said


def as_table(rows):
    "The rows as text, in columns that are folded."
    lines = []
    for said in [{k: k for k in WIDTHS}, *map(cells, rows)]:
        folded = [textwrap.wrap(said.get(k, ""), n) or [""] for k, n in WIDTHS.items()]
        for parts in zip_longest(*folded, fillvalue=""):
            lines.append("  ".join(f"{p:{n}}" for p, n in zip(parts, WIDTHS.values())).rstrip())
    return "\n".join(lines)


def write(folder, rows, about):
    "The table, the sizes behind fitted exponents, and where both come from."
    from neurocompanion.core import atomic_path
    points = [dict(zip(POINTS, p)) for r in rows for p in r.get("points") or ()]
    for name, columns, lines in (("benchmarks", turns.COLUMNS, rows), ("growth", POINTS, points)):
        if not lines: continue
        with atomic_path(folder / f"{name}.csv") as tmp, open(tmp, "w", newline="",
                                                              encoding="utf-8") as f:
            table = csv.DictWriter(f, columns, extrasaction="ignore", lineterminator="\n")
            table.writeheader()
            for r in lines: table.writerow({k: f"{v:.6g}" if isinstance(v, float) else v
                                            for k, v in r.items()})
    with atomic_path(folder / "benchmarks.json") as tmp:
        tmp.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", "utf-8")


def main(asked):
    load, began = busy(), time.time()
    calm = not load > 0.25 * (os.cpu_count() or 1)
    rows, failed, took = [], {}, {}
    if not calm:
        rows.append(only_words("all", "warning", f"others kept {load:.1f} of {os.cpu_count()} "
                               "cores busy at the start: seconds on the clock are too long"))
        print(f"warning: {rows[0]['what']}", flush=True)
    for name in asked.only or names(asked.folder):
        print(name, flush=True)
        start = time.time()
        more, why = run(asked.folder / f"{name}.py", asked.quick, asked.device, asked.limit)
        took[name] = round(time.time() - start, 1)
        if why:
            failed[name] = why
            more.append(only_words(name, "failed", why))
            print(f"  failed: {why}", flush=True)
        rows += more
    import torch
    from neurocompanion import core
    about = dict(date=time.strftime("%Y-%m-%d", time.localtime(began)),
                 machine=core.machine() | {"capability": torch.backends.cpu.get_cpu_capability()},
                 load=round(load, 2), quiet=calm, quick=asked.quick, device=asked.device,
                 seconds=took, failed=failed, versions=core.versions(), **core.git_revision(),
                 columns=turns.COLUMNS)
    print("\n" + as_table(rows))
    out = asked.out
    if not out and not (asked.quick or asked.only): out = HERE.parent / "nbs" / "tables"
    if out:
        out.mkdir(parents=True, exist_ok=True)
        write(out, rows, about)
    print(f"{len(rows)} rows of {len(took)} benchmarks in {time.time() - began:.0f} s"
          + (f", written to {out}" if out else ""))
    for name, why in failed.items(): print(f"failed: {name}: {why}")
    return int(bool(failed))


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--quick", action="store_true", help="small sizes, few turns; writes nothing")
    ask.add_argument("--only", nargs="+", metavar="NAME", help=", ".join(names()))
    ask.add_argument("--device", default="cpu", help="for those that train networks")
    ask.add_argument("--out", type=Path, help="folder to write to")
    ask.add_argument("--limit", type=float, default=600, help="seconds that a benchmark may take")
    ask.add_argument("--folder", type=Path, default=HERE, help="where the scripts are")
    ask.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    ask.add_argument("--into", help=argparse.SUPPRESS)
    asked = ask.parse_args()
    known = names(asked.folder)
    if unknown := [n for n in asked.only or () if n not in known]:
        ask.error(f"no benchmark {unknown[0]}: there are {', '.join(known)}")
    if asked.work: work(asked.work, asked.quick, asked.device, asked.into)
    else: sys.exit(main(asked))
