"""Ways to do one thing, timed in turns."""

import statistics
import time


def measure(ways, repeats):
    "Medians of wall and processor seconds of each way; runs take turns, the first does not count."
    seen = [[] for _ in ways]
    for _ in range(repeats + 1):
        for way, times in zip(ways, seen):
            wall, cpu = time.perf_counter(), time.process_time()
            way()
            times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return [[statistics.median(t) for t in zip(*times[1:])] for times in seen]
