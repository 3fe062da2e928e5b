"Models of the worm GNN: readings of the text, relabelling, stacking, and PyTorch Geometric."
import copy

import numpy as np
import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap

from neurocompanion.core import ParameterError
from neurocompanion.worm_gnn import models
from neurocompanion.worm_gnn.models import (GAT, GIN, GNN, LAYERS, MLP, PRESETS, RNN, SAGE, Edges,
                                            GlobalAttention, LayerGNN, NodeMLP, Norm, Stay, rollout)

torch.set_num_threads(1)
NODES = 6
EVERY = {"mlp": MLP, "node": NodeMLP, "rnn": RNN, "static": GNN,
         "dynamic": lambda *a, **k: GNN(*a, edges="dynamic", **k),
         "chunk": lambda *a, **k: GNN(*a, edges="chunk", **k),
         "given": lambda *a, **k: GNN(*a, edges=torch.rand(NODES, NODES), **k),
         **{n: lambda *a, n=n, **k: LayerGNN(*a, layer=n, **k) for n in LAYERS}}


@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)


@pytest.mark.parametrize("name", EVERY)
def test_trajectories_start_at_the_present(name):
    "With a head of zeros H is 0, and the next step is this one, equation (5)."
    model = EVERY[name](NODES, 2, None, 8).eval()
    last = [model.last, model.bias] if name == "node" else list(model.read.head.parameters())
    for p in last: torch.nn.init.zeros_(p)
    x = torch.rand(2, 11, NODES, 2)
    assert torch.equal(model(x), x)


@pytest.mark.parametrize("norm", ["running", "worm", "none"])
@pytest.mark.parametrize("name", EVERY)
def test_filled_up_steps_change_nothing(name, norm):
    model = EVERY[name](NODES, 2, 3, 8, norm=norm).train()
    other = copy.deepcopy(model)
    x = torch.rand(1, 16, NODES, 2)
    long = torch.cat([x, 100 + torch.rand(1, 8, NODES, 2)], 1)
    seen = torch.arange(24)[None] < 16
    torch.testing.assert_close(other(long, seen)[:, :16], model(x), atol=1e-4, rtol=1e-4)
    for a, b in zip(model.buffers(), other.buffers()):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_a_stack_is_its_members(name):
    nets = [EVERY[name](NODES, 2, 3, 8).double() for _ in range(3)]
    x = torch.rand(2, 10, NODES, 2).double()
    params, buffers = stack_module_state([copy.deepcopy(n) for n in nets])
    found = vmap(lambda p, b: functional_call(nets[0], (p, b), (x,)))(params, buffers)
    for y, n in zip(found, nets): torch.testing.assert_close(y, n(x))
    for k, b in nets[2].named_buffers(): torch.testing.assert_close(buffers[k][2], b)
    trained = {k: v for k, v in nets[2].named_parameters() if v.requires_grad}
    g = torch.autograd.grad(found.square().sum(), [params[k] for k in trained], allow_unused=True)
    nets[2](x).square().sum().backward()
    for a, p in zip(g, trained.values()):
        if p.grad is not None: torch.testing.assert_close(a[2], p.grad)


def test_norm_is_batchnorm_or_of_each_worm():
    ours, theirs = Norm(5).double(), torch.nn.BatchNorm1d(5).double()
    for _ in range(5):
        a = torch.rand(1, 40, 5).double().requires_grad_()
        b = a.detach().clone().requires_grad_()
        scale, shift = ours(a)
        y, z = (a * scale + shift)[0], theirs(b[0])
        torch.testing.assert_close(y, z)
        y.pow(3).sum().backward()
        z.pow(3).sum().backward()
        torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(ours.mean, theirs.running_mean)
    torch.testing.assert_close(ours.var, theirs.running_var)
    x = torch.rand(2, 30, NODES, 2)                       # a batch does not matter to norm='worm'
    x[1] *= 3
    own, common = GNN(NODES, norm="worm"), GNN(NODES, norm="running")
    torch.testing.assert_close(own(x)[:1], own(x[:1]), atol=1e-5, rtol=1e-4)
    assert (common(x)[0] - common(x[:1])[0]).abs().max() > 1e-3


@pytest.mark.parametrize("edges", ["static", "dynamic", "chunk", "given"])
@pytest.mark.parametrize("self_path", ["none", "residual", "concat"])
def test_relabelling(edges, self_path):
    order = torch.randperm(NODES)
    a = torch.rand(NODES, NODES)
    made = GNN(NODES, 2, 3, 8, a if edges == "given" else edges, self_path=self_path).eval()
    other = copy.deepcopy(made)
    first = other.read.block.first
    first.weight.data = first.weight.data.unflatten(1, (NODES, -1))[:, order].flatten(1)
    if edges == "given": other.adjacency = a[order][:, order]
    x = torch.rand(2, 19, NODES, 2)
    torch.testing.assert_close(other(x[:, :, order]), made(x))
    moved = made.infer(x)[..., order, :][..., order]
    torch.testing.assert_close(other.infer(x[:, :, order]), moved)


def test_static_edges_are_one_graph_a_worm_and_close_when_thinned():
    "Order in time does not matter to them, the other worm does not, dynamic ones see a step only."
    x = torch.rand(2, 30, NODES, 2)
    model = GNN(NODES).eval()
    w = model.infer(x)
    torch.testing.assert_close(model.infer(x.flip(1)), w)
    torch.testing.assert_close(model.infer(x[1:]), w[1:])
    moving = GNN(NODES, edges="dynamic").eval()
    torch.testing.assert_close(moving.infer(x)[:, 7], moving.infer(x[:, 7:8])[:, 0])
    chunked = Edges(per="chunk").eval()
    torch.testing.assert_close(chunked(x)[:, 3], Edges.forward(chunked, x[:, 24:])[:, 0])
    t = torch.arange(3000.) / 40
    x = torch.stack([torch.sin(t * (1 + 0.2 * n)) for n in range(NODES)], -1)
    x = torch.stack([x, x.roll(10, 0)], -1)[None] / 2 + 0.5
    model = GNN(NODES).eval()
    all_of = model.infer(x)
    model.look = 400
    assert (model.infer(x) - all_of).abs().max() < 2e-3
    context = models.thinned(x, None, 400)
    torch.testing.assert_close(model(x), model(x[:, :], None, context))


def test_literal_reading_loses_the_nodes():
    "With equal weights, message (12) is the same for all: swapping two nodes goes unnoticed."
    x = torch.rand(1, 10, NODES, 2)
    swapped = x[:, :, [1, 0, *range(2, NODES)]]
    given = torch.full((NODES, NODES), 0.5)
    literal = GNN(NODES, edges=given, **PRESETS["published text"]).eval()
    torch.testing.assert_close(literal(x), literal(swapped))
    default = GNN(NODES, edges=given, **PRESETS["default"]).eval()
    assert (default(x) - default(swapped)).abs().max() > 1e-3


def test_overfits_a_batch():
    x, y = torch.rand(1, 20, NODES, 2), torch.randint(0, 3, (20,))
    model = GNN(NODES, 2, 3, 32)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x)[0], y)
        loss.backward()
        optimiser.step()
    assert loss < 0.05


def test_rollout_reads_only_what_it_may():
    "Truth after the start does not matter unless forced; forced steps do."
    x = torch.rand(2, 14, NODES, 2)
    other = x.clone()
    other[:, 5:] += 1
    for model in (MLP(NODES, out=None), RNN(NODES, out=None), Stay()):
        model.eval()
        free = rollout(model, x, 9, burn_in=4)
        assert torch.equal(free, rollout(model, other, 9, burn_in=4))
        never, always = torch.zeros(2, 8, dtype=bool), torch.ones(2, 8, dtype=bool)
        assert torch.equal(free, rollout(model, x, 9, burn_in=4, forced=never))
        assert not torch.equal(rollout(model, other, 9, burn_in=4, forced=always), free)


@pytest.mark.parametrize("name", ["gin0", "gin", "sage", "gat", "attention"])
def test_layers_are_those_of_pytorch_geometric(name):
    "On a random directed graph without self edges, dense and as a list of edges."
    import torch_geometric.nn as pyg
    a = (torch.rand(NODES, NODES) < 0.5).float().fill_diagonal_(0)
    x, (to, source) = torch.rand(NODES, 2), a.nonzero().T
    index = torch.stack([source, to])
    if name in ("gin0", "gin"):
        ours = GIN(2, 8, name == "gin")
        if name == "gin": torch.nn.init.constant_(ours.epsilon, 0.3)
        theirs = pyg.GINConv(ours.net, eps=ours.epsilon.item(), train_eps=name == "gin")
    elif name == "sage":
        ours, theirs = SAGE(2, 8), pyg.SAGEConv(2, 8)
        theirs.lin_l.load_state_dict(ours.sent.state_dict())
        theirs.lin_r.load_state_dict(ours.own.state_dict())
    elif name == "gat":
        ours, theirs = GAT(2, 8), pyg.GATConv(2, 8)
        theirs.lin.load_state_dict(ours.map.state_dict())
        theirs.att_dst.data = ours.target.weight.data.view(1, 1, 8)
        theirs.att_src.data = ours.source.weight.data.view(1, 1, 8)
    else:
        ours, index = GlobalAttention(2, 8), torch.zeros(NODES, dtype=torch.long)
        theirs = pyg.aggr.AttentionalAggregation(ours.gate, ours.map)
    torch.testing.assert_close(ours(x, a), theirs(x, index))


def test_sizes_and_graphs_of_any_type():
    "Whole numbers of numpy, graphs as lists, in the precision that is set; means by weight."
    assert MLP(np.int64(NODES)).nodes == NODES
    with pytest.raises(ParameterError, match="nodes is out of range"): MLP(True)
    for wrong, words in [
            (dict(nodes=0), "nodes is out of range"), (dict(out=2.5), "out is out of range"),
            (dict(self_path="yes"), "no such self_path"), (dict(norm="batch"), "normalisation"),
            (dict(edges=torch.full((NODES, NODES), torch.nan)), "no graph of the nodes")]:
        with pytest.raises(ParameterError, match=words): GNN(**(dict(nodes=NODES) | wrong))
    x = torch.rand(1, 4, 2, 2)
    for a in ([[0, 1], [1, 0]], np.eye(2, dtype=int), torch.eye(2, dtype=torch.bool)):
        assert GNN(2, edges=a)(x).shape == (1, 4, 2)
    for wrong in ([[0, 1], [1]], None, "none"):
        with pytest.raises(ParameterError, match="edges|graph"): GNN(2, edges=wrong)
    torch.set_default_dtype(torch.float64)
    try: assert GNN(2, edges=[[0, 1], [1, 0]])(x.double()).dtype == torch.float64
    finally: torch.set_default_dtype(torch.float32)
    model = GNN(2, edges=[[0.0, -1], [1, 0]], scale="neighbours")     # weights may be negative
    assert model._scaled(model.adjacency).tolist() == [[0, -1], [1, 0]]
    layer, x = SAGE(2, 4), torch.rand(2, 2)
    small = torch.tensor([[0.0, 0.1], [0, 0]])
    torch.testing.assert_close(layer(x, small)[0], layer.own(x[0]) + layer.sent(x[1]))
    torch.testing.assert_close(layer(x, small)[1], layer.own(x[1]) + layer.sent.bias)
