"The pretended accelerator: it must see what a GPU would not forgive."
import os

import pytest
import torch
import torch.nn.functional as F
from pretend import PLACE, accelerator
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from neurocompanion.core import default_device
from neurocompanion.fast.graph import Captured


def test_numbers_are_those_of_the_cpu():
    def run(device):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).to(device)
        x = torch.randn(5, 4, device=device)
        optimiser = torch.optim.AdamW(model.parameters())
        for _ in range(3):
            optimiser.zero_grad()
            F.cross_entropy(model(x), x.argmax(1).clamp(max=1)).backward()
            optimiser.step()
        return torch.cat([p.detach().cpu().flatten() for p in model.parameters()])

    with accelerator():
        assert default_device().type == PLACE.type
        there = run(default_device())
    assert torch.equal(there, run("cpu")) and there.is_cpu
    assert default_device().type != PLACE.type


def test_a_stack_works():
    with accelerator():
        models = [nn.Linear(2, 3).to(PLACE) for _ in range(4)]
        params, _ = stack_module_state(models)
        one = lambda p: functional_call(models[0], p, (torch.ones(5, 2, device=PLACE),))
        together = vmap(one)(params)
        assert together.device == PLACE and together.shape == (4, 5, 3)
        assert torch.equal(together[2].cpu(), models[2](torch.ones(5, 2, device=PLACE)).cpu())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers(kind):
    torch.manual_seed(0)
    net, x = kind(3, 4, batch_first=True), torch.randn(2, 6, 3)
    here = net(x)[0]
    with accelerator(): there = net.to(PLACE)(x.to(PLACE))[0].cpu()
    torch.testing.assert_close(there, here)


LEFT = [lambda x: x + torch.ones(3), lambda x: torch.cat([x, torch.ones(3)]),
        lambda x: x @ torch.ones(3, 2), lambda x: x.index_select(0, torch.tensor([1])),
        lambda x: nn.Linear(3, 2)(x)]


@pytest.mark.parametrize("wrong", LEFT)
def test_what_was_left_on_the_cpu_is_seen(wrong):
    with accelerator(), pytest.raises(RuntimeError, match="left on the CPU"):
        wrong(torch.ones(3, device=PLACE))


WAIT = [lambda x: x.sum().item(), lambda x: float(x[0]), lambda x: bool((x > 0).all()),
        lambda x: x.tolist(), lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: x.cpu(),
        lambda x: torch.ones(3).to(x.device), lambda x: torch.ones(3).to(x),
        lambda x: x.copy_(torch.ones(3)), lambda x: torch.masked_select(x, x > 0),
        lambda x: x.to("cpu", non_blocking=True),               # who reads it has to wait
        lambda x: x.index_put_([x > 0], x[:1])]
GO = [lambda x: torch.ones(3).to(x.device, non_blocking=True), lambda x: x.cumsum(0),
      lambda x: x.copy_(torch.ones(3), non_blocking=True), lambda x: x[1:],
      lambda x: x.masked_fill(x > 0, 0), lambda x: torch.where(x > 0, x, 0), lambda x: x.shape[0],
      lambda x: x.index_select(0, x.argsort()), lambda x: x.to(torch.float64), lambda x: x.clone(),
      lambda x: torch.zeros(3, device=x.device), lambda x: torch.ones(3).sum().item()]


@pytest.mark.parametrize("act, many", [(f, 1) for f in WAIT] + [(f, 0) for f in GO])
def test_waiting_is_counted(act, many):
    with accelerator() as waits:
        act(torch.ones(3, device=PLACE))
        assert (sum(waits.values()) > 0) == many, waits


def test_no_thread_is_left_that_forbids_forks():
    def train(): nn.Linear(2, 2)(torch.ones(1, 2)).sum().backward()
    with accelerator():
        nn.Linear(2, 2).to(PLACE)(torch.ones(1, 2, device=PLACE)).sum().backward()
    if not (child := os.fork()):
        try: train()
        except RuntimeError: os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def descent(device, rate=None):
    "Steps of gradient descent as a recorded function; what each says."
    torch.manual_seed(0)
    model, sums, done = nn.Linear(3, 2).to(device), torch.zeros(2, device=device), [0]
    params = list(model.parameters())

    def step(x, lr):
        done[0] += 1
        loss = (model(x) - x[:, :2]).square().mean()
        with torch.no_grad():
            for p, g in zip(params, torch.autograd.grad(loss, params)):
                p.sub_(g * (lr if rate is None else rate(done[0])))
            sums[0] += loss
        return loss.detach()

    run, said = Captured(step, device), []
    for i in range(6):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(i))
        said.append(run(x, torch.full((), 0.1 + i / 10)).item())
    return said, sums.cpu(), done[0]


def test_a_graph_is_replayed():
    here, total, calls = descent(torch.device("cpu"))
    with accelerator(): there, there_total, recorded = descent(PLACE)
    assert there == here and torch.equal(total, there_total)
    assert calls == 6 and recorded == 3                          # two to warm up, one to record


def test_a_graph_knows_no_python():
    "A number that Python works out stays what it was when the graph was recorded."
    rate = lambda n: 0.1 * n
    here = descent(torch.device("cpu"), rate)[0]
    with accelerator(): there = descent(PLACE, rate)[0]
    assert there[:4] == here[:4] and there[4:] != here[4:]


@pytest.mark.parametrize("wrong", [lambda x: x + torch.ones(3).to(PLACE, non_blocking=True),
                                   lambda x: x * x.sum().item(), lambda x: x[x > 0]])
def test_what_a_graph_cannot_hold(wrong):
    with accelerator(), pytest.raises(RuntimeError, match="a graph cannot hold this"):
        run = Captured(wrong, PLACE)
        for _ in range(3): run(torch.ones(3))


def test_random_numbers_of_a_graph_are_new_each_time():
    with accelerator():
        run = Captured(lambda x: x + torch.rand(3, device=PLACE), PLACE)
        told = [run(torch.zeros(3)).tolist() for _ in range(6)]
    assert len({tuple(t) for t in told}) == 6
