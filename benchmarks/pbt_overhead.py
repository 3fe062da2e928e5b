"""How much of a population's time is not training: eight members on this machine's cores.

    python benchmarks/pbt_overhead.py [--members 8] [--workers 2] [--generations 3] [--epochs 5]

Of AutoLFADS on the Lorenz task; the paper's generations have 50 epochs. What is compared are the
seconds that the workers were held, all together, and those of them in which a network trained.
"""

import argparse
import os

for k in ("OMP", "MKL", "OPENBLAS"): os.environ.setdefault(f"{k}_NUM_THREADS", "1")
os.environ.setdefault("NEUROCOMPANION_QUIET", "1")
import torch  # noqa: E402

from neurocompanion.autolfads import data  # noqa: E402
from neurocompanion.autolfads.pbt import pbt  # noqa: E402
from neurocompanion.autolfads.training import maker  # noqa: E402
from turns import row, tell  # noqa: E402


def for_table(device="cpu", quick=False, members=None, workers=None, generations=None, epochs=None):
    torch.set_num_threads(1)
    sizes = dict(ic_encoder=64, ic=64, generator=64, factors=20)
    members = members or (4 if quick else 8)
    make = maker(data.lorenz("simulated"), sizes, batch=128, ramp=10, device="cpu")
    held, trained = [], []
    for _ in range(1 if quick else 3):
        s = pbt(make, members=members, epochs=epochs or (1 if quick else 5), workers=workers,
                generations=generations or (1 if quick else 3), engine="processes", seed=0,
                window=None).seconds
        held.append(s["all"] * s["workers"])
        trained.append(s["training"])
    yield row("autolfads", f"{members} members on {s['workers']} cores: time that workers are held",
              "s", held, limit=(trained, "training alone, s",
                                [t / h for t, h in zip(trained, held)]),
              aim=() if quick else ("share", 0.9))


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--members", type=int, default=8)
    ask.add_argument("--workers", type=int, default=None, help="processes; one a core")
    ask.add_argument("--generations", type=int, default=3)
    ask.add_argument("--epochs", type=int, default=5, help="of a generation")
    for r in for_table(**vars(ask.parse_args())): print(tell(r))
