"""Ways to do one thing, timed in turns, and the row that says what came of it.

A benchmark is a script here with a function `for_table(device="cpu", quick=False)` that yields
rows, each made by `row` from the numbers of all turns. Called alone it tells each row as a
sentence; `all.py` runs every such script, each in a process of its own, and gathers the rows in
one table.
"""

import argparse
import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor

COLUMNS = {
    "benchmark": "the script in benchmarks/",
    "part": "what it is about",
    "what": "what is measured",
    "unit": "of ours, plain and peer",
    "threads": "of PyTorch, where it computes",
    "device": "where it ran",
    "clock": "wall, or processor: seconds that others' work on the machine does not count in",
    "turns": "runs of each way, one after the other in turn; one more to warm up is left out",
    "ours": "median", "ours_low": "lowest, of exponents the low end of a 95 % interval",
    "ours_high": "highest, or the high end",
    "plain": "the alternative named in plain_name: median", "plain_low": "lowest",
    "plain_high": "highest", "plain_name": "what one would write or use instead",
    "ratio": "how many times as good as plain ours is, turn by turn: median",
    "ratio_low": "lowest", "ratio_high": "highest",
    "peer": "a public program's number as it was recorded, not measured in this run",
    "peer_name": "which", "peer_machine": "where that was",
    "limit": "what the machine reaches at its best, measured in the same run",
    "limit_name": "at what, and the unit", "share": "of it that ours reaches: median",
    "aim": "what was set out for", "met": "whether it was reached"}


def runs(ways, repeats):
    "For each way a pair of wall and processor seconds for each turn; the first turn is left out."
    seen = [[] for _ in ways]
    for turn in range(repeats + 1):
        order = list(zip(ways, seen))
        for way, pairs in order if turn % 2 else order[::-1]:
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            finish()
            pairs.append((time.perf_counter() - wall, time.process_time() - cpu))
    return [pairs[1:] for pairs in seen]


def finish():
    "Wait for the accelerator, where there is one at work."
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda and cuda.is_initialized(): cuda.synchronize()


def measure(ways, repeats):
    "Medians of wall and processor seconds of each way."
    return [[statistics.median(t) for t in zip(*pairs)] for pairs in runs(ways, repeats)]


def by_clock(seen, clock):
    "Of pairs of seconds those of one clock."
    return [[pair[clock == "processor"] for pair in pairs] for pairs in seen]


def product(n=2048, device="cpu", dtype=None):
    "One large product of matrices by the faster of PyTorch's libraries, as a way to time; GFLOP."
    import torch
    from neurocompanion.fast.linear import linear
    a = torch.randn(n, n, device=device, dtype=dtype)
    return lambda: linear(a, a), 2 * n**3 / 1e9


def apart(f, *args):
    "What a function returns in a process of its own: a fork of this one, where there are forks."
    way = "fork" if sys.platform == "linux" else "spawn"
    with ProcessPoolExecutor(1, multiprocessing.get_context(way)) as pool:
        return pool.submit(f, *args).result()


def status(name):
    "A line of this process's status, in bytes; Linux alone tells it."
    with open("/proc/self/status") as lines:
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(name + ":"))


def peak(f):
    "What a function returns, and by how many bytes this process grows at its peak meanwhile."
    if sys.platform != "linux": return f(), float("nan")
    with open("/proc/self/clear_refs", "w") as tell: tell.write("5")     # the peak counts from here
    before = status("VmRSS")
    made = f()
    return made, status("VmHWM") - before


def row(part, what, unit, ours, plain=(), plain_name="", *, higher=False, peer=(), limit=(),
        aim=(), threads=None, device="cpu", clock="wall"):
    """A row of the table from the numbers of all turns.

    `plain` has as many numbers as `ours`, or one; `higher` says that more is better; `peer` is
    (number, name, machine), `limit` (numbers, name and unit, shares of it that ours reaches), `aim`
    ("ratio" or "share", the least that was set out for).
    """
    made = dict.fromkeys(COLUMNS) | dict(part=part, what=what, unit=unit, threads=threads,
                                         device=str(device), clock=clock, turns=len(ours))
    made |= spread("ours", ours)
    if plain:
        plain = list(plain) * (len(ours) if len(plain) == 1 else 1)
        made |= spread("plain", plain) | dict(plain_name=plain_name)
        made |= spread("ratio", [o / p if higher else p / o for o, p in zip(ours, plain)])
    if peer: made |= dict(zip(("peer", "peer_name", "peer_machine"), peer))
    if limit: made |= dict(limit=statistics.median(limit[0]), limit_name=limit[1],
                           share=statistics.median(limit[2]))
    if aim: made |= dict(aim=f"{aim[0]} at least {aim[1]:g}", met=made[aim[0]] >= aim[1])
    return made


def spread(name, numbers):
    return {name: statistics.median(numbers), f"{name}_low": min(numbers),
            f"{name}_high": max(numbers)}


def short(x):
    "A number to three digits."
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def between(r, name):
    "Median, lowest and highest."
    low, mid, high = (short(r[name + end]) for end in ("_low", "", "_high"))
    return mid if low == high else f"{mid} ({low} to {high})"


def tell(r):
    "A row as a sentence."
    unit, clock = r["unit"], r["clock"] == "processor" and r["unit"] in ("s", "ms")
    where = f", {r['device']}" * (r["device"] != "cpu")
    if r["threads"]: where += f", {r['threads']} thread" + "s" * (r["threads"] > 1)
    said = [f"{r['what']}{where}: {between(r, 'ours')} {unit}{' of processor' * clock}"]
    if r["plain"] is not None:
        said += [f"{r['plain_name']} {between(r, 'plain')}: {between(r, 'ratio')} x"]
    if r["peer"] is not None:
        said += [f"{r['peer_name']} {short(r['peer'])} on {r['peer_machine']}"]
    if r["limit"] is not None:
        said += [f"{r['share']:.0%} of {r['limit_name']}: {short(r['limit'])}"]
    if r["aim"]: said += [f"{r['aim']}: {'met' if r['met'] else 'NOT MET'}"]
    return "; ".join(said)


def alone(for_table, about):
    "The command line of a script that has no options of its own."
    ask = argparse.ArgumentParser(description=about.splitlines()[0])
    ask.add_argument("--quick", action="store_true", help="small sizes, few turns")
    ask.add_argument("--device", default="cpu")
    asked = ask.parse_args()
    for r in for_table(asked.device, asked.quick): print(tell(r), flush=True)
