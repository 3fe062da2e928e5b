"How much of a population's time is not training: eight members on this machine's cores."
import argparse
import os
import sys

for k in ("OMP", "MKL", "OPENBLAS"): os.environ.setdefault(f"{k}_NUM_THREADS", "1")
os.environ.setdefault("NEUROCOMPANION_QUIET", "1")
import torch  # noqa: E402

from neurocompanion.autolfads import data  # noqa: E402
from neurocompanion.autolfads.pbt import pbt  # noqa: E402
from neurocompanion.autolfads.training import maker  # noqa: E402


def main():
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--members", type=int, default=8)
    parse.add_argument("--workers", type=int, default=None, help="processes; one a core")
    parse.add_argument("--generations", type=int, default=3)
    parse.add_argument("--epochs", type=int, default=5, help="of a generation; the paper's are 50")
    parse.add_argument("--engine", default="processes")
    a = parse.parse_args()
    torch.set_num_threads(1)
    spikes = data.lorenz("simulated")
    sizes = dict(ic_encoder=64, ic=64, generator=64, factors=20)
    make = maker(spikes, sizes, batch=128, ramp=10, device="cpu")
    found = pbt(make, members=a.members, epochs=a.epochs, generations=a.generations,
                workers=a.workers, engine=a.engine, seed=0, window=None)
    s = found.seconds
    held = s["all"] * s["workers"]
    waste = 1 - s["training"] / held
    print(f"{a.members} members, {s['workers']} workers, {a.generations} generations of {a.epochs} "
          f"epochs, {spikes}")
    print(f"all     {s['all']:8.1f} s, times the workers {held:8.1f} s")
    print(f"training                          {s['training']:8.1f} s")
    print(f"outside training                  {waste:8.1%}")
    print("as promised" if waste < 0.1 else "MORE THAN PROMISED: less than 10 % outside training")
    return int(waste >= 0.1)


if __name__ == "__main__": sys.exit(main())
