"The protocols that have a name: the papers' own, value by value beside their sentences."
import pytest

from neurocompanion.core import SweepError, home
from neurocompanion.sweeps.paper import names, setting_of, uses
from neurocompanion.sweeps.sweep import expand, load

LETTER = {   # what the papers say of each parameter
    "worm_scaling": [
        (dict(epochs=500), "trained up to a maximum of 500 epochs"),
        (dict(patience=50), "early stopping with a patience of 50 epochs"),
        (dict(lr=0.0), "an initial learning rate of 0.001"),       # 0: the head's own, tested below
        (dict(batch=64), "both training and validation utilize a batch size of 64"),
        (dict(n_train=32, n_valid=16, length=100),
         "32 sequences of length L = 100 from the first half, 16 for validation from the second"),
        (dict(statistics="whole"), "the code normalises by the whole recording"),
        (dict(steps_per_epoch=0), "every sequence once an epoch")],
    "worm_gnn": [
        (dict(reading="published text"), "equations 8 to 13"),
        (dict(k=10, folds=0, shuffled=True), "10-fold cross validation on all permutations"),
        (dict(epochs=800, patience=0), "then trained for 800 epochs and saved the best"),
        (dict(lr=0.001), "a learning rate of 10^-3"),
        (dict(hidden=0), "hidden layers of 16 and of 256"),        # 0: these
        (dict(look=0), "globally evaluated edges for each worm"),
        (dict(connectome="white1986"), "the connectome of White et al.")],
    "sessions": [
        (dict(model="ndt", token=668), "spike token dim 668"),
        (dict(width=512, feedforward=1024, heads=8, layers=5), "Table A1"),
        (dict(dropout=0.2, lr=0.0001, decay=0.01, batch=16), "Table A1"),
        (dict(epochs=1000, tune_epochs=1000, ratio=0.3), "1000 epochs; masking ratio 0.3"),
        (dict(held_trials=0), "the heldout session's training set"),
        (dict(ranked_by="10,20,42"), "three random seeds for ranked and reverse-ranked")],
    "autolfads": [
        (dict(trials=0, units=0, steps=0), "all trials and units"),
        (dict(generator=100, ic=100, encoder=100, factors=40),
         "generator 100, initial condition 100, its encoder 100, factors 40"),
        (dict(controller=80, ci_encoder=80, inputs=4), "controller and its encoder 80, output 4"),
        (dict(lr=0.01), "an initial learning rate of 0.01"),
        (dict(batch=100), "100 for maze and random target"),
        (dict(ramp=80), "ramped over the first 80 epochs for most runs"),
        (dict(epochs=1000, generations=20), "each generation of PBT consisted of 50 epochs"),
        (dict(samples=50), "firing rates were inferred 50 times")],
    "zebrafish": [
        (dict(data="zapbench"), "we evaluate the best-performing architectures on ZAPBench"),
        (dict(coarser=4), "we thus downsample the input by a factor of 4 in XY using averaging"),
        (dict(fine=True), "we use the full resolution ZAPBench targets and segmentation"),
        (dict(horizon=32, context=4, longest=256), "H = 32, short (C = 4) or long (C = 256)"),
        (dict(loss="trace"), "optimizing the trace-based MAE"),
        (dict(width=128, groups=16), "fixed feature size F = 128, group normalization, 16 groups"),
        (dict(super_width=32), "during super-resolution upsampling F' = 32"),
        (dict(resample=4, flat=1), "the first uses a factor 2 in XY, the following ones equally"),
        (dict(blocks="1,2,3"), "one down; three at the lowest resolution, two for all higher"),
        (dict(dropout=0.0), "a dropout rate of 0.1 for long-context models with C = 256"),
        (dict(steps=250_000), "every model for 250k to 500k steps"),
        (dict(batch=1, lr=1e-4), "a batch size of 1, an initial learning rate of 10^-4"),
        (dict(clip=0.0), "no clipping is told of; the code has none"),
        (dict(checks=250, most=500), "the code: every 1000 steps, 500 validation windows"),
        (dict(before=800_000, tune_lr=1e-7), "for 800k steps; best with the lowest learning rate"),
        (dict(trace_batch=8, trace_lr=1e-3, patience=20), "the benchmark's code, all trace models"),
        (dict(trace_epochs=1000), "the code: until patience, which is far from 250 000 steps"),
        (dict(hidden=256, tide=128), "the code: mlp_dim 256 for C = 4; TiDE's hiddens of 128"),
        (dict(released=True), "the code, where the text is silent")]}


@pytest.mark.parametrize("paper", LETTER)
def test_paper_faithful_is_the_papers_protocol_to_the_letter(paper):
    kind, said = setting_of(paper), {k: v for some, _ in LETTER[paper] for k, v in some.items()}
    assert kind.presets["paper_faithful"] == said
    for preset in kind.presets.values():
        assert set(preset) <= set(names(kind))
        kind(**preset)                                             # each value is one that can be


def test_what_a_preset_leaves_to_a_default_is_the_papers_too():
    from neurocompanion.worm_gnn.training import RECIPE
    from neurocompanion.worm_scaling.heads import LR
    assert LR["value"] == 1e-3 and RECIPE["optimiser"] == "adam" and RECIPE["batch"] is None
    kind = setting_of("autolfads")(**setting_of("autolfads").presets["paper_faithful"])
    assert kind.epochs / kind.generations == 50 and kind.training["ramp"] == 80


def test_the_network_of_the_film_is_the_one_of_figure_3():
    from neurocompanion.zebrafish.methods import resampling, unet
    from neurocompanion.zebrafish.models import receptive_field
    s = setting_of("zebrafish")(**setting_of("zebrafish").presets["paper_faithful"])
    assert resampling(s) == ((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert sum(p.numel() for p in unet(s).parameters()) == 14_546_305      # as in the code
    assert all(n >= 16 * 4 * 4 for n in receptive_field(unet(s))[1:])      # 256, 1024 when fine
    runs = expand("zebrafish/long", "paper")
    assert {(r["context"], r["resample"], r["dropout"], r["hidden"]) for r in runs} == {
        (256, 0, 0.1, 128)}
    dropout = {(r["context"], r["dropout"]) for r in expand("zebrafish/context", "paper")}
    assert dropout == {(1, 0), (4, 0), (16, 0), (64, 0), (256, 0.1)}


def test_a_protocol_that_leaks_nothing_has_another_name():
    theirs, ours = (setting_of("worm_scaling").presets[k] for k in ("paper_faithful", "leak_free"))
    differ = {k: (v, ours[k]) for k, v in theirs.items() if ours[k] != v}
    assert differ == {"statistics": ("whole", "train")}
    gnn = setting_of("worm_gnn").presets["leak_free"]
    assert not gnn["shuffled"] and gnn["scaling"] == "train" and gnn["derivative"] == "backward"


GRIDS = sorted((home() / "nbs").glob("*/sweeps/*.yaml"))


@pytest.mark.parametrize("path", GRIDS, ids=lambda p: f"{p.parts[-3]}/{p.stem}")
def test_a_paper_grid_follows_its_preset_but_for_what_the_file_names(path):
    spec = load(path)
    given, kind = spec.scales.get("paper", {}), setting_of(spec.paper)
    if "preset" not in given: return
    own = {**(given.get("grid") or {}), **(given.get("zip") or {}), **given.get("fixed", {}),
           **spec.fixed}
    first = given["preset"] if isinstance(given["preset"], str) else given["preset"][0]
    assert first == "paper_faithful"
    for run in expand(spec, "paper", preset=first):
        kept = {k: v for k, v in kind.presets[first].items()
                if k not in own and k in uses(kind, run["experiment"])}
        assert kept and {k: run[k] for k in kept} == kept


def test_a_preset_is_chosen_by_name():
    faithful = expand("worm_scaling/data_scaling", "laptop", preset="paper_faithful")
    usual = expand("worm_scaling/data_scaling", "laptop")
    assert len(faithful) == len(usual)
    assert {r["statistics"] for r in faithful} == {"whole"} != {r["statistics"] for r in usual}
    assert {r["epochs"] for r in faithful} == {100}                # what the file says goes before
    both = expand("worm_scaling/data_scaling", "paper")
    assert len(both) == 2 * len(expand("worm_scaling/data_scaling", "paper", preset="leak_free"))
    with pytest.raises(SweepError, match="no preset 'faithful'.*paper_faithful"):
        expand("worm_scaling/headline", "tiny", preset="faithful")
    with pytest.raises(SweepError, match="no preset"):
        expand("autolfads/headline", "tiny", preset="leak_free")
