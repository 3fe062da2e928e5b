"The faster parts: compilers, libraries that are not ours, masks on every way, one switch."
import os, shutil, stat, subprocess, sys

import pytest
import torch

from neurocompanion import core, fast
from neurocompanion.autolfads import models as lfads_models
from neurocompanion.fast import dropout, lfads, library
from neurocompanion.sessions.models import NDT, fill_in, hide, poisson_nll
from neurocompanion.worm_scaling import models as worm_models

pytestmark = pytest.mark.usefixtures("one_thread")
COMPILERS = "gcc", "clang"


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    "Takes another compiler, with an empty cache; the test is skipped where it is not there."
    ours = library.library, lfads.compiled
    forget = lambda: [f.cache_clear() for f in ours]
    monkeypatch.setenv("NEUROCOMPANION_CACHE", str(tmp_path))

    def take(name):
        if name in COMPILERS and not shutil.which(name): pytest.skip(f"needs {name}")
        monkeypatch.setenv("CC", name)
        forget()

    yield take
    monkeypatch.undo()
    forget()


# ---- compilers
@pytest.mark.parametrize("how", ["-march=native -fopenmp", "-march=x86-64-v4 -O1"])
@pytest.mark.parametrize("cc", COMPILERS)
def test_no_compiler_warns(tmp_path, cc, how):
    if not shutil.which(cc): pytest.skip(f"needs {cc}")
    call = [cc, *library.FLAGS, *how.split(), "-Wall", "-Wextra", "-Werror",
            str(library.source("lfads")), "-o", str(tmp_path / "made.so"), "-lm"]
    done = subprocess.run(call, capture_output=True, text=True)
    if "x86-64-v4" in done.stderr: pytest.skip("needs an x86 processor")
    if "libomp" in done.stderr or "-lomp" in done.stderr: pytest.skip("needs OpenMP for clang")
    assert not done.returncode, done.stderr


def loops(dtype=torch.float32):
    "Values and gradients of one step of LFADS, of one seed."
    torch.manual_seed(3)
    model = lfads_models.LFADS(6, 9, ic_encoder=5, ic=4, generator=6, factors=3, ci_encoder=4,
                               controller=5, inputs=2).to(dtype)
    x = torch.poisson(torch.ones(70, 9, 6))
    loss, _ = lfads_models.loss(model, x, x)
    return [loss.detach(), *torch.autograd.grad(loss, model.parameters(), allow_unused=True)]


@pytest.mark.parametrize("cc", [*COMPILERS, "false", "/no/such/compiler"])
def test_every_compiler_says_the_same_and_so_does_none(compiler, cc, monkeypatch, tmp_path):
    compiler(cc)
    if cc in COMPILERS: assert lfads.compiled().way.startswith(f"compiled {cc} ")
    else: assert lfads.compiled() is None and not list(tmp_path.rglob("*.so"))
    found = loops()
    monkeypatch.setenv("NEUROCOMPANION_FAST", "no")
    for a, b in zip(found, loops()):
        if b is not None: torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5 * b.norm().item())


def test_no_memory_is_an_error(monkeypatch):
    if not lfads.compiled(): pytest.skip("needs a C compiler")
    assert lfads._run.__defaults__ is None                   # the library is an argument

    class Full:
        def __getattr__(self, name): return lambda *a: 1

    with pytest.raises(MemoryError, match="LFADS"):
        lfads._run(Full(), "read_forth_all", [lfads._Reading()])


# ---- libraries
OWNED = pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid(), reason="needs to be root")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("c") / "toy.c"
    path.write_text("void keep(void) {}\n")
    return path


def ask(toy, **env):
    "A new process asks for the library; whether it is there, and what is said."
    code = "from neurocompanion.fast.library import library; " \
        f"print(library({str(toy)!r}, 'masks', ('keep',)) is not None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=os.environ | env)
    assert not done.returncode, done.stderr
    return done.stdout == "True\n", done.stderr


@OWNED
def test_a_stranger_s_library_is_never_run(compiler, toy, tmp_path):
    compiler("gcc")
    assert ask(toy)[0]
    path = library.library_path(toy, ["gcc"])
    evil, ran = tmp_path / "evil.c", tmp_path / "ran"
    evil.write_text(f"#include <stdio.h>\n__attribute__((constructor)) void f(void) "
                    f"{{ fclose(fopen(\"{ran}\", \"w\")); }}\nvoid keep(void) {{}}\n")
    for mode, owner in ((0o755, 12345), (0o777, 0), (0o775, 0)):
        path.unlink()
        subprocess.run(["gcc", "-shared", "-fPIC", str(evil), "-o", str(path)], check=True)
        path.chmod(mode)
        os.chown(path, owner, -1)
        there, said = ask(toy)
        assert there and "compiling" in said and not ran.exists()
        assert path.stat().st_uid == os.getuid() and stat.S_IMODE(path.stat().st_mode) == 0o700


@OWNED
def test_a_stranger_s_folder_is_not_used(compiler, toy, tmp_path):
    compiler("gcc")
    assert ask(toy)[0] and ask(toy) == (True, "")
    folder = library.folder()
    os.chown(folder, 12345, -1)
    there, said = ask(toy)
    assert not there and "belongs to somebody else" in said and "PyTorch does it" in said
    os.chown(folder, 0, -1)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert "is a link" in ask(toy)[1]


def test_the_folder_is_closed_again_and_no_home_is_no_error(compiler, toy):
    compiler("gcc")
    library.folder().chmod(0o777)
    assert ask(toy)[0] and stat.S_IMODE(library.folder().stat().st_mode) == 0o700
    there, said = ask(toy, NEUROCOMPANION_CACHE="/proc/no/such/folder")
    assert not there and said.count("\n") == 1


# ---- masks
def test_random_bits_are_random_and_masks_do_not_hang_on_threads():
    "Bytes and their neighbours are evenly spread, keys that differ by a bit are strangers."
    draw = lambda n: dropout.kept((n,), 0.5, generator=torch.Generator().manual_seed(5))
    one = {n: draw(n) for n in (1, 3, 4, 30001, 100000)}
    torch.set_num_threads(2)
    for n, mask in one.items(): assert mask.shape == (n,) and torch.equal(mask, draw(n))
    counters = torch.arange(2**19, dtype=torch.int32)
    bytes_of = lambda *keys: dropout.mixed(counters.clone(), torch.tensor(keys).int()).view(
        torch.uint8).long()
    one = bytes_of(0, 0)
    for other in one[1:], bytes_of(1, 0)[1:], bytes_of(0, 1)[1:], bytes_of(-2**31, 2**15)[1:]:
        seen = torch.bincount(256 * one[:-1] + other, minlength=2**16).double()
        mean = seen.mean()
        assert abs(((seen - mean) ** 2 / mean).sum() - 2**16) < 5 * (2 * 2**16) ** 0.5


# ---- the switch
def worm_step():
    torch.manual_seed(1)
    model, x = worm_models.Transformer(16, dropout=0.3), torch.randn(8, 31, 302)
    loss, _ = worm_models.next_step_loss(model, x, (torch.rand(8, 302) < 0.3).float())
    return [loss.detach(), *torch.autograd.grad(loss, model.parameters())]


def session_step():
    torch.manual_seed(1)
    model = NDT(20, token=8, width=16, heads=2, layers=2, feedforward=16, dropout=0.3)
    batches = []
    for name, trials, bins in (("a", 5, 20), ("b", 3, 12)):
        model.add_session(name, 6)
        batches.append((name, torch.poisson(torch.ones(trials, bins, 6)), hide((trials, bins))))
    streams = [torch.Generator().manual_seed(i) for i in range(2)]
    told = fill_in(model, batches, streams)
    loss = sum(poisson_nll(r, x[m]) for r, (_, x, m) in zip(told, batches))
    return [loss.detach(), *torch.autograd.grad(loss, model.parameters(), allow_unused=True)]


@pytest.mark.parametrize("step", [worm_step, session_step, loops])
def test_a_step_of_each_paper_with_the_switch_off(step, monkeypatch):
    found = step()
    monkeypatch.setenv("NEUROCOMPANION_FAST", "no")
    assert fast.paths()["lfads"] == "off"
    for a, b in zip(found, step()):
        if b is not None: torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5 * b.norm().item())


def test_the_run_record_says_which_way(monkeypatch):
    loops()
    said = core.run_record({})["fast"]
    assert said["lfads"].startswith(("compiled", "torch")) and said["threads"] == 1
    monkeypatch.setenv("NEUROCOMPANION_FAST", "no")
    assert core.run_record({})["fast"] == {"lfads": "off", "linear": "off", "threads": 1}
