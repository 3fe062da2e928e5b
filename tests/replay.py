"""A pretended CUDA graph: operations are noted once, and done again on the same memory.

What a graph would not forgive goes wrong here as well: a number of Python that should have been in
a tensor stays what it was, a branch is taken as it was, random numbers are those of the recording,
what is returned is overwritten.

    with replay.graphs() as recorded: train(…)     # every `Captured` records, here on the CPU
"""

from contextlib import contextmanager
from unittest import mock

import torch
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode

from neurocompanion.fast import graph


def _tensors(given): return [v for v in tree.tree_leaves(given) if isinstance(v, torch.Tensor)]
def _memory(x): return x.untyped_storage().data_ptr()


class _Notes(TorchDispatchMode):
    "Every operation, and what memory was before it was first written to."

    def __init__(self):
        super().__init__()
        self.ops, self.own, self.before = [], set(), {}

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = dict(zip((a.name for a in op._schema.arguments), args)) | kwargs
        for a in op._schema.arguments:
            if not (a.alias_info and a.alias_info.is_write): continue
            for x in _tensors(given.get(a.name)):
                if (at := _memory(x)) not in self.own and at not in self.before:
                    self.before[at] = x.untyped_storage(), x.untyped_storage().clone()
        out = op(*args, **kwargs)
        self.own |= set(map(_memory, _tensors(out))) - set(map(_memory, _tensors((args, kwargs))))
        self.ops.append((op, args, kwargs, out))
        return out


class Graph:
    "What a function did, to be done again."

    def __init__(self, f, inputs):
        with _Notes() as notes: self.outputs = f(*inputs)
        for storage, old in notes.before.values(): storage.copy_(old)   # a recording does nothing
        self.ops = notes.ops

    @torch.no_grad()
    def replay(self):
        for op, args, kwargs, out in self.ops:
            for old, new in zip(_tensors(out), _tensors(op(*args, **kwargs))):
                if old.data_ptr() != new.data_ptr(): old.copy_(new)


@contextmanager
def graphs():
    "Inside, whatever is `Captured` is recorded and replayed; yields the graphs."
    made = []

    def record(self, given):
        inputs = [x.clone() for x in given]
        made.append(Graph(self.f, inputs))
        return made[-1], inputs, made[-1].outputs

    first = lambda self, given: self.f(*given)
    with mock.patch.multiple(graph.Captured, _record=record, _first=first), \
            mock.patch.object(graph, "_records", lambda device: True):
        yield made
