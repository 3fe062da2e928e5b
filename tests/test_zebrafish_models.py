"The volumetric network: reference values, published sizes, what moves an output, bad input."
import json, os, subprocess, sys

import numpy as np
import pytest
import torch

from neurocompanion.core import ParameterError, RecordingError, home
from neurocompanion.zebrafish.models import (
    UNet3D, flops, hl_gauss, hl_loss, load_reference, receptive_field, step_bytes)

GOLDEN = home() / "tests" / "data" / "unet3d_golden.npz"
SMALL = dict(width=8, groups=4, super_width=4)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("lacking", ["x", "y", "p/conv_in/kernel"])
def test_a_reference_that_lacks_something_or_is_no_archive_is_refused(tmp_path, lacking):
    with np.load(GOLDEN) as saved: kept = {k: saved[k] for k in saved.files if k != lacking}
    np.savez(tmp_path / "some.npz", **kept)
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    for name, says in ("some.npz", f"some.npz.*no {lacking}"), ("bad.npz", "bad.npz"):
        with pytest.raises(RecordingError, match=says): load_reference(tmp_path / name)


def test_a_reference_of_another_size_is_read(tmp_path):
    "Three resamplings, two steps of super-resolution, other blocks and widths."
    torch.manual_seed(1)
    net = UNet3D(3, width=16, super_width=8, groups=8, resample=3, super_resolve=2,
                 blocks=(2, 1, 4), embedding=16)
    for p in net.parameters(): torch.nn.init.normal_(p, std=0.1)
    x, lead = torch.randn(1, 3, 8, 8, 4), torch.tensor([3.0])
    kinds = {"down": "res_in", "up": "res_out", "above": "res_up"}
    def theirs(name):
        parts = name.split(".")
        if parts[0] in kinds: parts = [f"{kinds[parts[0]]}{parts[1]}_b{parts[2]}", *parts[3:]]
        out = "/".join(parts).replace("film_out/linear", "cond_time_out")
        out = out.replace("film/linear", "cond_time")
        return "p/" + out.replace("weight", "scale" if "norm" in out else "kernel")
    def turned(v): return v.permute(4, 2, 3, 1, 0) if v.ndim == 5 else v.mT if v.ndim == 2 else v
    saved = {theirs(k): turned(v).contiguous().numpy() for k, v in net.state_dict().items()}
    with torch.no_grad(): y = net(x, lead)
    np.savez(tmp_path / "more.npz", x=x[..., None], t=lead, y=y[..., None], **saved)
    model, x, lead, y = load_reference(tmp_path / "more.npz")
    with torch.no_grad(): assert (model(x, lead) - y).abs().max() < 1e-5
    assert model.norm_out.num_groups == 8


@pytest.mark.parametrize("size", [(7, 6, 3), (9, 5, 1), (8, 8, 4)])
@pytest.mark.parametrize("rise", [0, 1])
def test_any_size_comes_out_as_it_went_in(size, rise):
    net = UNet3D(2, resample=3, super_resolve=rise, **SMALL).eval()
    out = net(torch.randn(1, 2, *size), 4)
    assert out.shape == (1, 1, size[0] * (1 + rise), size[1] * (1 + rise), size[2])


def test_samples_do_not_mix_and_leads_belong_to_them():
    torch.manual_seed(0)
    net = UNet3D(2, resample=1, **SMALL).eval()
    for p in net.parameters(): torch.nn.init.normal_(p, std=0.2)
    x = torch.randn(3, 2, 6, 6, 2)
    with torch.no_grad():
        whole = net(x, torch.tensor([1, 8, 32]))
        for i, lead in enumerate((1, 8, 32)):
            torch.testing.assert_close(net(x[i:i + 1], lead), whole[i:i + 1], atol=1e-5, rtol=1e-5)
        assert (net(x, 1) - whole)[1:].abs().max() > 1e-3


def test_a_step_in_bf16_with_blocks_computed_again(monkeypatch):
    "As on a GPU: features last, dropout, gradients that are those of a plain step."
    x = torch.randn(2, 2, 8, 8, 2)

    def gradients(half, save, layout=torch.channels_last_3d):
        torch.manual_seed(0)
        net = UNet3D(2, resample=1, super_resolve=1, dropout=0.3, save_memory=save, **SMALL)
        net.to(memory_format=layout)
        with torch.autocast("cpu", torch.bfloat16, enabled=half): said = net(x, 2)
        said.float().square().mean().backward()
        assert all(p.grad.dtype == torch.float32 for p in net.parameters())
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    plain, rough = gradients(False, False), gradients(True, False)
    for how in ((True,), (False, torch.contiguous_format)):
        torch.testing.assert_close(gradients(False, *how), plain, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradients(True, True), rough)
    assert (rough - plain).norm() < 0.05 * plain.norm() and not torch.equal(rough, plain)
    monkeypatch.setenv("NEUROCOMPANION_FAST", "no")          # norms by PyTorch, in full precision
    assert (rough - gradients(True, False)).norm() < 0.05 * plain.norm()


# ---- memory
STEP = """
import json, sys
from functools import partial
import torch
from neurocompanion.zebrafish.models import UNet3D

half, how, size = json.loads(sys.argv[1])
net = UNet3D(4, **how)
net.conv_out.forward = partial(torch.nn.Conv3d.forward, net.conv_out)     # as on a GPU
if half: net.to(memory_format=torch.channels_last_3d)
optimiser = torch.optim.AdamW(net.parameters())

def step(*size):
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        said = net(torch.randn(1, 4, *size), 3)[:, 0].float()
    (said - torch.randn_like(said)).abs().mean().backward()
    optimiser.step()
    optimiser.zero_grad()

def memory(what):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(v.split()[1]) * 1024 for v in lines if v.startswith(what))

step(8, 8, 4)
before = memory("VmRSS")
open("/proc/self/clear_refs", "w").write("5")                # the peak is counted anew
step(*size)
print(memory("VmHWM") - before)
"""
NET = dict(width=32, groups=4, super_width=8, resample=((2, 2, 1), (2, 2, 2)))


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux")
@pytest.mark.parametrize("half, how, size", [
    (False, {}, (128, 96, 24)),                                # about 1 GiB
    (True, {}, (64, 48, 24)),
    pytest.param(False, dict(save_memory=True), (128, 96, 24), marks=pytest.mark.slow)])
def test_the_memory_of_a_step_is_as_computed(half, how, size):
    if half and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no bf16: PyTorch goes by way of float32, in more memory")
    "What the processor's convolutions need beside is a part of the difference."
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", STEP, json.dumps((half, NET | how, size))],
                          env=env, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr[-2000:]
    said = step_bytes(UNet3D(4, **NET, **how), size, "bf16" if half else "float32")["most"]
    assert 0.95 < int(done.stdout) / said < 1.25, (int(done.stdout) / 2**20, said / 2**20)


@pytest.mark.gpu
def test_a_gpu_says_the_same():
    model, x, lead, y = load_reference(GOLDEN)
    with torch.no_grad(): found = model.cuda()(x.cuda(), lead.cuda()).cpu()
    assert (found - y).abs().max() < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("half, save", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("rise", [0, 1])
def test_gradients_on_a_gpu_are_those_of_the_cpu(half, save, rise, monkeypatch):
    "Features last; in full precision without TF32, and in bf16 under autocast."
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    x, lead = torch.randn(2, 4, 12, 10, 6), torch.tensor([1, 7])

    def gradients(device):
        torch.manual_seed(0)
        net = UNet3D(4, width=32, groups=4, super_width=16, resample=2, super_resolve=rise,
                     save_memory=save).to(device)
        if device == "cuda": net.to(memory_format=torch.channels_last_3d)
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            said = net(x.to(device), lead.to(device))
        said.float().square().mean().backward()
        grads = torch.cat([p.grad.flatten() for p in net.parameters()])
        return said.detach().float().cpu(), grads.cpu()

    for a, b in zip(gradients("cuda"), gradients("cpu")):
        assert (a - b).norm() < (0.03 if half else 1e-4) * b.norm()


def test_published_field_of_view_equal_cost_and_sizes_that_cannot_be():
    assert receptive_field(UNet3D(resample=0, **SMALL)) == (21, 21, 21)
    one, two = (receptive_field(UNet3D(resample=n, **SMALL)) for n in (2, 4))
    assert one[0] > 64 and two[0] > 256 and one[2] < one[0]
    with torch.device("meta"): nets = [UNet3D(4, resample=n) for n in (0, 2, 4)]
    cost = [flops(net, (32, 32, 16)) for net in nets]
    assert max(cost) < 1.25 * min(cost)
    for wrong, says in (dict(context=0), "context"), (dict(embedding=5), "even"), (
            dict(dropout=1.0), "a share of"):
        with pytest.raises(ParameterError, match=says): UNet3D(**{**SMALL, "context": 2, **wrong})


def test_the_gradient_of_histograms():
    y, logits = torch.linspace(-0.2, 1.45, 50), torch.randn(50, 32, requires_grad=True)
    hl_loss(logits, y).sum().backward()
    torch.testing.assert_close(logits.grad, logits.softmax(1).detach() - hl_gauss(y))
