"""How fast a training step of the neural data transformer is, against the machine's matrix product.

    python benchmarks/ndt_step.py [paper small] [--threads 1 2] [--repeats 5]

Three things take turns in one process, on the same threads: forward and backward of our model at
the paper's sizes (16 trials of 150 bins, 1 015 units), the same network written out with PyTorch's
own layers, and one large product, `torch.mm`, whose rate is the machine's. The products that a step
needs are counted exactly; ours leaves out, in its last layer, the bins that do not enter the loss,
and they are not counted either. Of attention only the pairs that may look at each other count.

Printed: seconds of a step, GFLOP/s, and the share of the rate of `torch.mm`. Medians.
"""

import argparse
import os

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import torch
import torch.nn.functional as F
from torch import nn

from neurocompanion import core
from neurocompanion.sessions.models import NDT, fill_in, hide, may_ask, poisson_nll
from turns import measure

SHAPES = {  # batch, bins, units, sizes of the model
    "paper": (16, 150, 1015, {}),
    "small": (16, 100, 100, dict(token=64, width=64, heads=4, layers=3, feedforward=128)),
}


class WrittenLayer(nn.Module):
    "A layer with PyTorch's own parts."

    def __init__(self, width, heads, feedforward, dropout):
        super().__init__()
        self.heads, self.drop = heads, nn.Dropout(dropout)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, feedforward), nn.Linear(feedforward, width)

    def forward(self, x, ask):
        h, split = self.norm1(x), lambda v: v.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        a = F.scaled_dot_product_attention(split(self.q(h)), split(self.k(h)), split(self.v(h)),
                                           attn_mask=ask)
        x = x + self.out(self.drop(a.transpose(1, 2).flatten(2)))
        return x + self.drop(self.down(F.gelu(self.up(self.norm2(x)))))


class Written(nn.Module):
    "The network of one session, written out."

    def __init__(self, units, bins, *, token=668, width=512, heads=8, layers=5, feedforward=1024,
                 dropout=0.2):
        super().__init__()
        self.encode, self.decode = nn.Linear(units, token), nn.Linear(width, units)
        self.lift, self.lower = nn.Linear(token, 2 * token), nn.Linear(2 * token, width)
        self.positions, self.drop = nn.Embedding(bins, width), nn.Dropout(dropout)
        self.prefix = nn.Parameter(torch.randn(2, width))
        self.layers = nn.ModuleList(WrittenLayer(width, heads, feedforward, dropout)
                                    for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("ask", may_ask(bins))

    def forward(self, x, mask):
        x = self.encode(torch.where(mask[..., None], 0, x))
        x = self.lower(F.softsign(self.lift(x))) + self.positions(torch.arange(x.shape[1]))
        x = self.drop(torch.cat([self.prefix.expand(len(x), -1, -1), x], 1))
        for layer in self.layers: x = layer(x, self.ask)
        return self.decode(self.norm(x)[:, 2:])

    def loss(self, x, mask):
        told = self(x, mask)
        return (F.poisson_nll_loss(told, x, reduction="none")[mask]).mean()


def gigaflops(batch, bins, units, mask=None, *, token=668, width=512, heads=8, layers=5,
              feedforward=1024, frozen=False):
    "Products of one step; with a mask, its bins alone ask in the last layer and go on from there."
    rows, seen = batch * bins, batch * (bins + 2)
    pairs = asked = batch * int(may_ask(bins).sum())
    last, told = seen, rows                                    # who asks last, who is read out
    if mask is not None:
        last = told = int(mask.sum())
        asked = int((mask * (torch.arange(bins) + 3)).sum())
    ask, after = width * width, width * width + 2 * width * feedforward
    body = rows * (2 * token * token + 2 * token * width) + layers * seen * 2 * ask  # keys, values
    body += ((layers - 1) * seen + last) * (ask + after)
    times = 2 if frozen else 3                                 # forward, by input, by weights
    total = (times * body + 6 * width * ((layers - 1) * pairs + asked)
             + 2 * rows * units * token + 3 * told * width * units)
    return 2 * total / 1e9


def step(model, loss):
    def run():
        model.zero_grad()
        loss().backward()
    return run


def compare(name, threads, repeats):
    batch, bins, units, sizes = SHAPES[name]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x, mask = torch.poisson(torch.full((batch, bins, units), 0.1)), hide((batch, bins))
    ours, plain = NDT(bins, **sizes), Written(units, bins, **sizes)
    ours.add_session("one", units)
    loss = lambda: poisson_nll(fill_in(ours, [("one", x, mask)])[0], x[mask])
    a = torch.randn(2048, 2048)
    (t, cpu), (t_plain, cpu_plain), (t_mm, cpu_mm) = measure(
        [step(ours, loss), step(plain, lambda: plain.loss(x, mask)), lambda: a @ a], repeats)
    rate, rate_cpu = 2 * 2048**3 / 1e9 / t_mm, 2 * 2048**3 / 1e9 / cpu_mm
    flop = gigaflops(batch, bins, units, mask, **sizes)
    whole = gigaflops(batch, bins, units, **sizes)
    print(f"{name:6} {threads} thread(s): ours {t:.3f} s ({cpu:.3f} s of processor), "
          f"{flop / t:.0f} GFLOP/s, {flop / t / rate:.0%} of torch.mm ({flop / cpu / rate_cpu:.0%} "
          f"by processor time); written out {t_plain:.3f} s ({cpu_plain:.3f}), "
          f"{whole / t_plain / rate:.0%}; {t_plain / t:.2f} x ({cpu_plain / cpu:.2f} x)",
          flush=True)


if __name__ == "__main__":
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("shapes", nargs="*", default=list(SHAPES), help="paper, small")
    ask.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    ask.add_argument("--repeats", type=int, default=5)
    asked = ask.parse_args()
    core.keep_memory()
    print(f"PyTorch {torch.__version__}")
    for threads in asked.threads:
        for name in asked.shapes: compare(name, threads, asked.repeats)
