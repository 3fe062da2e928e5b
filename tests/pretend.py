"""A pretended accelerator: tensors that lie elsewhere, and are computed here.

What breaks on a GPU breaks on it as well: a tensor that was left on the CPU among others. And what
makes the CPU wait for the device is counted, by line of ours: a value that is read back, a size
that depends on values, a copy that is not `non_blocking`. Numbers are those of the CPU, random
ones too, so that a training on it can be compared with one here to the last bit:

    with pretend.accelerator() as waits: train(…)      # `default_device()` is the pretended one

What our code records as a CUDA graph is recorded here as well: each operation with the memory that
it reads and writes, and only that is done again when the graph is replayed. A transfer, or a number
that Python worked out when the graph was recorded, is as wrong here as there.
"""

import os
import traceback
from collections import Counter
from contextlib import contextmanager
from unittest import mock

import torch
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from neurocompanion.fast import graph

torch.ones((), requires_grad=True).backward()    # autograd begins before there is a device: it
_setup_privateuseone_for_python_backend("pretend")   # starts no thread for it, forks stay possible
torch.pretend.get_amp_supported_dtype = lambda: [torch.bfloat16]   # checkpoints ask for it
PLACE = torch.device("pretend", 0)
READS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim",
         "unique_consecutive", "bincount", "histc"}


class Away(torch.Tensor):
    "A tensor that says it lies on the accelerator."

    @staticmethod
    def __new__(cls, here):
        new = torch.Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(),
            dtype=here.dtype, device=PLACE)
        new.here = here
        return new

    @classmethod
    def __torch_function__(cls, what, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if what in (torch.lstm, torch.gru): return _recurrent(what is torch.lstm, *args)
            return what(*args, **kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        return _computed(op, args, kwargs or {})

    def __reduce_ex__(self, protocol): return self.here.__reduce_ex__(protocol)   # in a file: bare
    def tolist(self): return self.cpu().tolist()
    def numpy(self): raise TypeError("a tensor of the accelerator is no array: .cpu() comes first")


class _Mode(TorchDispatchMode):
    "Sees what has no tensor among its arguments: new ones."

    waits, graph = Counter(), None

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        return _computed(op, args, kwargs or {})


def _computed(op, args, kwargs):
    "The operation, on the CPU; the results lie where they would."
    name = op.name().removeprefix("aten::").split(".")[0]
    given = [v for v in tree.tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)]
    away, asked = [v for v in given if isinstance(v, Away)], kwargs.get("device")
    there = bool(away) if asked is None else torch.device(asked).type == PLACE.type
    if name == "copy_": there = isinstance(args[0], Away)
    left = [v for v in given if v.ndim and not isinstance(v, Away)]
    if away and left and name not in ("copy_", "_to_copy"):
        raise RuntimeError(f"{name}: a tensor {tuple(left[0].shape)} was left on the CPU")
    if _waits(name, args, kwargs, away, there): _Mode.waits[_line(name)] += 1
    if _Mode.graph: _Mode.graph.allow(name, args, kwargs, away, there)
    if asked is not None: kwargs = kwargs | {"device": "cpu"}
    known = {id(v.here): v for v in away}                       # written in place: the same again
    args, kwargs = tree.tree_map_only(Away, lambda v: v.here, (args, kwargs))
    if _Mode.graph and there: _Mode.graph.before(op, args, kwargs)
    made = op(*args, **kwargs)
    if _Mode.graph and there: _Mode.graph.nodes.append((op, args, kwargs, made))
    wrapped = lambda v: known.get(id(v)) if id(v) in known else Away(v) if there else v
    return tree.tree_map_only(torch.Tensor, wrapped, made)


def _crosses(name, args, there):
    "Whether something goes from the CPU to the device, or back."
    return name in ("copy_", "_to_copy") and isinstance(args[name == "copy_"], Away) != there


def _waits(name, args, kwargs, away, there):
    "Whether the CPU cannot go on before the device has come to this."
    if name in ("copy_", "_to_copy"):
        silent = kwargs.get("non_blocking") or name == "copy_" and args[2:] == (True,)
        return _crosses(name, args, there) and not (there and silent)
    if name.startswith("index"):                                # by a mask: how many are there?
        which = args[1] if isinstance(args[1], (list, tuple)) else []
        return any(isinstance(v, Away) and v.dtype == torch.bool for v in which)
    return bool(away) and name in READS


def _line(name):
    "Where in our code."
    ours = [f for f in traceback.extract_stack() if f"{os.sep}neurocompanion{os.sep}" in f.filename]
    return f"{os.path.basename(ours[-1].filename)}: {ours[-1].line} [{name}]" if ours else name


def _recurrent(memory, x, start, weights, bias, layers, dropout, training, two_ways, first):
    "`nn.LSTM` or `nn.GRU` of one layer, step by step: this device has no fused cell."
    assert bias and first and layers == 1 and not two_ways
    own, again, b, b_again = weights
    steps, found = torch.nn.functional.linear(x, own, b), []
    h, c = (start[0][0], start[1][0]) if memory else (start[0], None)
    for now in steps.unbind(1):
        then = torch.nn.functional.linear(h, again, b_again)
        if memory:
            i, f, g, o = (now + then).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        else:
            (r, z, n), (r_h, z_h, n_h) = now.chunk(3, -1), then.chunk(3, -1)
            new, z = (n + (r + r_h).sigmoid() * n_h).tanh(), (z + z_h).sigmoid()
            h = (1 - z) * new + z * h
        found.append(h)
    return torch.stack(found, 1), h[None], *([c[None]] if memory else [])


class Graph:
    "What was asked for while it was recorded, to be asked for again."

    def __init__(self): self.nodes, self.written = [], {}

    def allow(self, name, args, kwargs, away, there):
        if _crosses(name, args, there) or _waits(name, args, kwargs, away, there):
            raise RuntimeError(f"a graph cannot hold this: {_line(name)}")

    def before(self, op, args, kwargs):
        "Nothing is computed while a graph is recorded: what is overwritten now comes back."
        for a, v in [*zip(op._schema.arguments, args),
                     *((a, kwargs[a.name]) for a in op._schema.arguments if a.name in kwargs)]:
            if a.alias_info is None or not a.alias_info.is_write: continue
            for x in tree.tree_leaves(v): self.written.setdefault(id(x), (x, x.clone()))

    def replay(self):
        for op, args, kwargs, made in self.nodes:
            again = op(*args, **kwargs)
            if any(r.alias_info for r in op._schema.returns): continue   # in place, or a view
            for old, new in zip(*map(tree.tree_leaves, (made, again))):
                if isinstance(old, torch.Tensor): old.copy_(new)


@contextmanager
def recording():
    "Yields a graph of what is asked of the accelerator inside."
    drawn, made = torch.get_rng_state(), Graph()
    _Mode.graph = made
    try: yield made
    finally:
        _Mode.graph = None
        for x, before in reversed(made.written.values()): x.copy_(before)
        torch.set_rng_state(drawn)


def _record(self, given):
    "As `Captured` records."
    inputs = [torch.zeros_like(x, device=PLACE) for x in given]
    with recording() as made: outputs = self.f(*inputs)
    return made, inputs, outputs


@contextmanager
def accelerator():
    "Whoever asks for the best device gets the pretended one; yields how often what has to wait."
    _Mode.waits = Counter()
    one = torch.autograd.set_multithreading_enabled(False)      # backward in the thread that asks
    first = lambda self, given: self.f(*(x.to(PLACE, non_blocking=True) for x in given))
    ours = {"_records": lambda device: device.type == PLACE.type,
            "recording": lambda device: _Mode.graph is not None}
    with one, _Mode(), mock.patch.dict(os.environ, {"NEUROCOMPANION_DEVICE": PLACE.type}), \
            mock.patch.multiple(graph, **ours), \
            mock.patch.multiple(graph.Captured, _first=first, _record=_record):
        yield _Mode.waits
