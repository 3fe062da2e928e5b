"Grids of the papers' own size, rehearsed in small: each kind of run is built, trained and judged."
import re

import numpy as np
import pytest

from neurocompanion import rehearse as re_
from neurocompanion.command import main
from neurocompanion.core import SweepError
from neurocompanion.sweeps.sweep import expand


@pytest.mark.parametrize("name", ["worm_scaling/leak", "worm_gnn/headline", "sessions/headline",
                                  "autolfads/overfitting"])
def test_a_paper_grid_in_small(name, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROCOMPANION_RESULTS", str(tmp_path / "results"))
    assert main(["rehearse", name, "--scale", "paper", "--small"]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert re.fullmatch(r"fits: [\d.]+ GiB, [\d.,e+-]+ h on 2 cores", last), last
    assert not (tmp_path / "results").exists()      # nothing of it is taken for a result


def cost(**small):
    run = expand("worm_scaling/headline", "paper")[0] | small
    return re_.apart("worm_scaling", run, "small")


def test_the_cost_is_that_of_all_steps_not_of_those_taken():
    once, twice = (cost(worms=0, epochs=n) for n in (20, 40))
    assert twice.steps == 2 * once.steps >= 40
    assert once.notes["epoch"][:2] == [20, 2] and twice.notes["epoch"][:2] == [40, 2]
    np.testing.assert_allclose(twice.flops / once.flops, 2, rtol=0.1)


def test_what_a_rehearsal_counts_is_what_the_model_says():
    "The Linear model; an epoch judges half as many windows as it trains on, in full batches."
    from neurocompanion.worm_scaling.models import Linear, training_flops
    from neurocompanion.worm_scaling.pool import pool
    found = cost(worms=0, epochs=100)
    windows = 4 * len(pool("simulated", share=0.03))
    trained = training_flops(Linear(16), 100 * windows * 100)
    assert 1.1 < found.flops / trained < 2


def test_a_run_that_does_not_work_is_named(monkeypatch):
    monkeypatch.setattr(re_, "_CHILD", "import sys; sys.exit('no such thing')")
    with pytest.raises(SweepError, match="statistics|every|the only kind.*no such thing"):
        re_.rehearse("worm_scaling/leak", small=True, say=lambda _: None)
    monkeypatch.setattr(re_, "_CHILD", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(SweepError, match="killed|signal 9|SIGKILL"):
        re_.rehearse("worm_scaling/leak", small=True, say=lambda _: None)
