"""A list of tests, benchmarks and sweeps for one GPU, within given minutes.

    python benchmarks/accelerator.py --minutes 9 --out DIR [--mirror PACKED]
    python benchmarks/accelerator.py --pack PACKED      where the real recordings are
    python benchmarks/accelerator.py --rehearse         the same list on a processor, cut short

The list is accelerator.yaml, most telling first. What is finished is in DIR as soon as it is
there: `log.txt`, `benchmarks.csv`, for each whole sweep a table with its record as `neurocompanion
collect --publish` writes them, and the runs of all sweeps, whole or not, in `runs.tar.gz`. Nothing
starts for which there is no time left, and what is not done in time is broken off. Needed: PyTorch,
NumPy, SciPy, pandas with pyarrow, scikit-learn, xarray, h5py and PyYAML; no internet, no papermill.
`--pack` writes the recordings that the list reads, 25 MB at most, and the one package that opens
files of the data standard and is often missing.
"""

import argparse
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
os.environ.setdefault("NEUROCOMPANION_QUIET", "1")


class Late(Exception):
    "There is no time left."


class Clock:
    "How long there is, and an alarm at the end."

    def __init__(self, minutes):
        self.end = time.time() + 60 * minutes
        signal.signal(signal.SIGALRM, self._ring)
        signal.setitimer(signal.ITIMER_REAL, max(60 * minutes, 1))

    @staticmethod
    def _ring(*_): raise Late

    @property
    def left(self): return self.end - time.time()


class Log:
    "Lines to the terminal and to a file."

    def __init__(self, path): self.path, self.begun = path, time.time()

    def __call__(self, *words):
        line = f"[{time.time() - self.begun:5.0f} s] {' '.join(map(str, words))}"
        print(line, flush=True)
        with open(self.path, "a") as f: f.write(line + "\n")


# --- what a card can do ---------------------------------------------------------------------

def card(device, quick=False):
    "Rates of products and of memory, and what it costs to start an operation."
    import torch
    n, dev = 512 if quick else 8192, torch.device(device)
    wait = torch.cuda.synchronize if dev.type == "cuda" else lambda: None

    def seconds(work, times=3 if quick else 20):
        work(); work(); wait()
        begun = time.perf_counter()
        for _ in range(times): work()
        wait()
        return (time.perf_counter() - begun) / times

    rows = []
    for name, kind, tf32 in (("matrix_bf16", torch.bfloat16, False),
                             ("matrix_tf32", torch.float32, True),
                             ("matrix_float32", torch.float32, False)):
        a, b = (torch.randn(n, n, device=dev, dtype=kind) for _ in range(2))
        torch.backends.cuda.matmul.allow_tf32 = tf32
        rate = 2 * n**3 / seconds(partial(torch.matmul, a, b))
        rows.append(dict(what=name, value=rate, unit="FLOP/s"))
    torch.backends.cuda.matmul.allow_tf32 = False
    x = torch.empty((1 if quick else 256) << 20, device=dev)
    rows.append(dict(what="memory", value=2 * x.nbytes / seconds(lambda: x.clone()),
                     unit="bytes/s"))
    small, many = torch.zeros(8, device=dev), 200
    def loop():
        for _ in range(many): small.add_(1)
    rows.append(dict(what="launch", value=seconds(loop, 3) / many, unit="s"))
    if dev.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph): loop()
        rows.append(dict(what="launch_in_graph", value=seconds(graph.replay, 5) / many, unit="s"))
    return rows


# --- kinds of items --------------------------------------------------------------------------

def tests(item, how):
    "Test files that hold tests for a GPU, or reference values."
    word = "mark.gpu" if item["tests"] == "gpu" else "golden"
    files = sorted(p for p in (ROOT / "tests").glob("test_*.py") if word in p.read_text("utf-8"))
    gpu = item["tests"] == "gpu"
    mark = ["-m", "gpu"] if gpu else ["-m", "not slow", "-k", "golden or reference"]
    more = ["--collect-only"] if how.rehearse and gpu else []
    limit = max(how.clock.left - 5, 1) if how.clock else None
    line = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider",
            "--continue-on-collection-errors", *mark, *more, *map(str, files)]
    try: done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired: raise Late from None
    (how.out / f"tests-{item['tests']}.txt").write_text(done.stdout[-200_000:])
    said = (done.stdout.strip() or done.stderr.strip() or "nothing").splitlines()
    how.log(f"tests {item['tests']}: {said[-1]}")
    return done.returncode in (0, 5)


def benchmark(item, how):
    "A function of a benchmark, whose rows are kept."
    import pandas as pd
    file, function = item["benchmark"].split(":")
    module = sys.modules["__main__"] if file == "accelerator" else importlib.import_module(file)
    rows = [row | dict(benchmark=item["benchmark"], device=how.card)
            for row in getattr(module, function)(how.device, quick=how.rehearse)]
    path = how.out / "benchmarks.csv"
    old = pd.read_csv(path) if path.is_file() else pd.DataFrame()
    pd.concat([old, pd.DataFrame(rows)]).to_csv(path, index=False)
    for row in rows: how.log(*(f"{k} {_short(v)}" for k, v in row.items()
                               if k != "device" and v is not None))
    return True


def _short(v): return f"{v:.4g}" if isinstance(v, float) else v


def sweep(item, how):
    "The runs of a sweep at the scale gpu, one after the other, in this process."
    from neurocompanion.sweeps.sweep import code_version, expand, load, write_plan
    spec = load(item["sweep"])
    runs = expand(spec, "gpu")
    if how.rehearse: return _rehearsed(item, how, runs)
    data = (how.mirror or Path("nowhere")) / item["data"] if "data" in item else None
    if data is not None and not data.is_dir():
        how.log(f"{item['sweep']}: {data} is not there; pack it with --pack, give it as --mirror")
        return False
    place, longest = how.out / "runs" / item["sweep"].replace("/", "-"), 0.0
    code = code_version(spec.template)
    jobs = [_job(spec.paper, run, data, code) for run in runs]
    place.mkdir(parents=True, exist_ok=True)
    write_plan(place, spec, "gpu", [{k: j[k] for k in ("id", "parameters")} for j in jobs])
    for done, job in enumerate(jobs):
        if how.clock.left < 1.1 * longest: raise Late
        begun = time.time()
        _run(spec.paper, job, data, place)
        longest = max(longest, time.time() - begun)
        how.log(f"{item['sweep']}: run {done + 1} of {len(jobs)}, {time.time() - begun:.1f} s")
        _keep(how)
    _published(item, how, place)
    return True


def _job(paper, run, data, code):
    "What a run is called, and what it reads."
    from neurocompanion.core import checksum
    from neurocompanion.sweeps.paper import inputs, setting_of
    from neurocompanion.sweeps.sweep import identity
    read = {p.name: checksum(p) for p in sorted(data.rglob("*.nc"))} if data else \
        inputs(setting_of(paper), **run)
    return dict(id=identity(run, read, code), parameters=run, data=read, code=code)


def _run(paper, job, data, place):
    "One run; its rows say what was asked, its record which files were read."
    from neurocompanion.sweeps import sweep as sw
    from neurocompanion.sweeps.paper import experiments_of, setting_of
    folder = place / "runs" / job["id"]
    folder.mkdir(parents=True, exist_ok=True)
    sw.current_job.clear()
    sw.current_job.update(job, started=time.time())
    kind, run = setting_of(paper), job["parameters"]
    asked = {**run, "data": str(data)} if data else run
    rows = experiments_of(paper)[run["experiment"]](kind(**asked, out=str(folder)))
    sw.write_run(rows, run, folder)
    sw.current_job.clear()


def _published(item, how, place):
    "The table of a whole sweep, and its record."
    from neurocompanion.sweeps.tables import publish
    paper, name = item["sweep"].split("/")
    publish(place, how.out / "tables")
    for path in (how.out / "tables").glob(f"{name}.*"):
        path.rename(path.with_name(f"{paper}-{path.name}"))
    how.log(f"{item['sweep']}: whole; table in tables/{paper}-{name}.csv")


def _keep(how):
    "All runs in one file, so that they travel."
    tmp = how.out / ".runs.tmp"
    with tarfile.open(tmp, "w:gz", compresslevel=1) as tar:
        for p in sorted((how.out / "runs").rglob("*")):
            if p.name in ("rows.parquet", "record.json", "sweep.json"):
                tar.add(p, p.relative_to(how.out))
    tmp.rename(how.out / "runs.tar.gz")


def _rehearsed(item, how, runs):
    "One run of each kind, a few steps of each."
    from neurocompanion.rehearse import apart, kinds
    from neurocompanion.sweeps.paper import setting_of
    paper = item["sweep"].split("/")[0]
    some = kinds(runs, ("seed", *getattr(setting_of(paper), "alike", ())))
    for run, n in some:
        cost = apart(paper, run, "small")
        how.log(f"{item['sweep']}: {n} of {len(runs)} runs of this kind; in small "
                f"{cost.steps:,.0f} steps, {cost.memory / 2**30:.1f} GiB")
    return True


# --- the recordings that travel ---------------------------------------------------------------

COPIED = "steinmetz2019", "lorenz_synthetic", "connectome"   # as they are in the mirror


def pack(out):
    "Write the real recordings that the list reads: worms as files of the data standard."
    from neurocompanion.core import mirror_dir
    from neurocompanion.recordings.read import at_hand, read
    from neurocompanion.recordings.standard import save
    out = Path(out)
    for ds in read(at_hand("traces"), "traces", needs="labelled"):
        name = "".join(c if c.isalnum() or c in "-_" else "_" for c in ds.attrs["subject"])
        save(ds.assign(trace=ds.trace.astype("float32")),
             out / "worms" / ds.attrs["source"] / f"{name}.nc")
    for part in COPIED:
        shutil.copytree(mirror_dir() / part, out / part, dirs_exist_ok=True)
    package = Path(importlib.import_module("h5netcdf").__file__).parent
    shutil.copytree(package, out / "python" / "h5netcdf", dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("tests", "__pycache__"))
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    print(f"{size / 1e6:.1f} MB in {out}")


# --- the list ---------------------------------------------------------------------------------

KINDS = dict(tests=tests, benchmark=benchmark, sweep=sweep)


def carry_out(items, how):
    "Every item for which there is time; what fails is said, and the next one begins."
    bad = []
    for item in items:
        kind = next(k for k in item if k in KINDS)
        if how.clock and how.clock.left < 60 * item.get("minutes", 0) * how.least:
            how.log(f"{kind} {item[kind]}: left out, {how.clock.left:.0f} s are left")
            continue
        begun = time.time()
        try: fine = KINDS[kind](item, how)
        except Late:
            how.log(f"{kind} {item[kind]}: broken off, no time left")
            continue
        except Exception as e:
            fine = False
            how.log(f"{kind} {item[kind]}: {type(e).__name__}: {e}")
            (how.out / "errors.txt").open("a").write(traceback.format_exc())
        end = "done" if fine else "FAILED"
        how.log(f"{kind} {item[kind]}: {end} in {time.time() - begun:.0f} s")
        if not fine: bad.append(item[kind])
    how.log(f"{len(items)} items, {len(bad)} failed" + (f": {', '.join(bad)}" if bad else ""))
    return 1 if bad else 0


def main(argv=None):
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--minutes", type=float, default=9)
    ask.add_argument("--out", help="where to write; default: a temporary folder")
    ask.add_argument("--mirror", help="what --pack wrote, or a mirror of the recordings")
    ask.add_argument("--list", default=str(Path(__file__).with_suffix(".yaml")))
    ask.add_argument("--only", help="items whose name holds this")
    ask.add_argument("--pack", metavar="DIR", help="write the recordings that travel, and stop")
    ask.add_argument("--rehearse", action="store_true", help="on a processor, cut short")
    args = ask.parse_args(argv)
    if args.pack: return pack(args.pack)
    if args.mirror:
        os.environ["NEUROCOMPANION_MIRROR"] = str(Path(args.mirror).resolve())
        sys.path.append(str(Path(args.mirror).resolve() / "python"))
    with tempfile.TemporaryDirectory() as aside:
        out = Path(args.out or aside).resolve()
        out.mkdir(parents=True, exist_ok=True)
        for name in ("RESULTS", "CACHE"):
            os.environ.setdefault(f"NEUROCOMPANION_{name}", str(Path(aside) / name.lower()))
        return carry_out(_items(args), _how(args, out))


def _items(args):
    import yaml
    items = yaml.safe_load(Path(args.list).read_text("utf-8"))
    names = [next(str(i[k]) for k in i if k in KINDS) for i in items]
    return [i for i, n in zip(items, names) if not args.only or args.only in n]


def _how(args, out):
    "What every item is told: where, with how much time, on what."
    import torch
    cuda = torch.cuda.is_available() and not args.rehearse
    if not cuda and not args.rehearse: sys.exit("there is no GPU here: give --rehearse")
    log = Log(out / "log.txt")
    card = torch.cuda.get_device_name() if cuda else "processor"
    log(f"{card}, PyTorch {torch.__version__}, Python {sys.version.split()[0]}"
        + (f", {args.minutes:g} minutes" if cuda else ", rehearsal"))
    return SimpleNamespace(out=out, log=log, rehearse=args.rehearse, card=card,
                           device="cuda" if cuda else "cpu", least=0.5,
                           clock=None if args.rehearse else Clock(args.minutes),
                           mirror=Path(args.mirror).resolve() if args.mirror else None)


if __name__ == "__main__": sys.exit(main())
