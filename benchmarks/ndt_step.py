"""How fast a training step of the neural data transformer is, against the machine's matrix product.

    python benchmarks/ndt_step.py [--quick] [--device cuda]

Three things take turns in one process, on the same threads: forward and backward of our model at
the paper's sizes (16 trials of 150 bins, 1 015 units), the same network written out with PyTorch's
own layers, and one large product, whose rate is the machine's. The products that a step needs are
counted exactly; ours leaves out, in its last layer, the bins that do not enter the loss, and they
are not counted either. Of attention only the pairs that may look at each other count. On a GPU all
three compute in bf16, as training does.
"""

import os

os.environ.setdefault("NEUROCOMPANION_QUIET", "1")

import torch
import torch.nn.functional as F
from torch import nn

from neurocompanion import core
from neurocompanion.sessions.models import NDT, chosen, fill_in, hide, may_ask
from neurocompanion.sessions.pretraining import mean_loss
from turns import alone, by_clock, product, row, runs

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
        x = self.lower(F.softsign(self.lift(x))) + self.positions.weight[:x.shape[1]]
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
    half = next(model.parameters()).is_cuda

    def run():
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=half): said = loss()
        said.backward()
    return run


def compare(name, device, threads, repeats):
    "Ours beside the network written out, and the best product."
    (batch, bins, units, sizes), gpu = SHAPES[name], device != "cpu"
    torch.manual_seed(0)
    counts = torch.poisson(torch.full((batch, bins, units), 0.1))
    mask, x = hide((batch, bins)), counts.to(device)
    there = mask.to(device)
    ours, plain = NDT(bins, **sizes).to(device), Written(units, bins, **sizes).to(device)
    ours.add_session("one", units)
    multiply, gigaflop = product(*(8192, device, torch.bfloat16) if gpu else (2048,))
    loss = lambda: mean_loss(fill_in(ours, [("one", x, mask)])[0], chosen(x, mask), "spikes")
    clock = "processor" if threads == 1 else "wall"
    mine, theirs, large = by_clock(runs(
        [step(ours, loss), step(plain, lambda: plain.loss(x, there)), multiply], repeats), clock)
    flop, best = gigaflops(batch, bins, units, mask, **sizes), [gigaflop / t for t in large]
    title = f"NDT, a training step, {name} sizes" + ", bf16" * gpu
    return row("sessions", title, "s", mine, theirs,
               "written out with PyTorch's layers", threads=threads, clock=clock, device=device,
               limit=(best, "a large product, GFLOP/s", [flop / t / b for t, b in zip(mine, best)]),
               aim=("share", 0.4) if gpu and name == "paper" else ())


def for_table(device="cpu", quick=False):
    core.keep_memory()
    for threads in (None,) if device != "cpu" else (1,) if quick else (1, 2):
        if threads: torch.set_num_threads(threads)
        for name in ("small",) if quick else SHAPES:
            yield compare(name, device, threads, 2 if quick else 20 if device != "cpu" else 5)


if __name__ == "__main__": alone(for_table, __doc__)
