"The style and the shared panels."
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb

from neurocompanion import plots
from neurocompanion.core import ParameterError


@pytest.fixture(autouse=True)
def styled():
    "The project's style for each test, matplotlib's own afterwards."
    with matplotlib.rc_context():
        plots.style()
        yield
        plt.close("all")


def new(): return plt.subplots()[1]


@pytest.fixture
def ax(): return new()


@pytest.fixture
def runs():
    rng = np.random.default_rng(0)
    return pd.DataFrame([dict(n=n, model=m, loss=n**-s * np.exp(0.1 * rng.standard_normal()))
                         for m, s in [("a", 0.5), ("b", 0.2)] for n in (1, 10, 100)
                         for _ in range(3)])


def texts(ax): return [t.get_text() for t in ax.get_legend().get_texts()]


def test_style_is_legible_everywhere():
    "An opaque white sheet, ink of enough contrast, and a marker for each colour."
    for sheet in ("figure.facecolor", "savefig.facecolor"):
        assert to_hex(plt.rcParams[sheet]) == "#ffffff"
    for key in ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"):
        assert plt.rcParams[key] == plots.INK
    assert len(plots.MARKERS) == len(plots.COLOURS) == 7


@pytest.mark.parametrize("matrix", [
    np.eye(3), [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]],
    ids=["all", "protanopes", "deuteranopes"])
def test_colours_differ_to_everybody(matrix):
    "As they are seen (Viénot et al. 1999), in linear light."
    c = np.array([to_rgb(colour) for colour in plots.COLOURS])
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(matrix).T, 0, 1) ** (1 / 2.2)
    apart = np.abs(seen[:, None] - seen).max(-1)
    assert apart[np.triu_indices(7, 1)].min() > 0.08


def test_panels_return_their_axes_and_leave_inputs_alone(ax, runs):
    before = runs.copy()
    history = pd.DataFrame(dict(epoch=[1, 2], train_loss=[2.0, 1.0], valid_loss=[2.0, 1.5]))
    counts = np.random.default_rng(0).poisson(0.3, (20, 4))
    counts_before = counts.copy()
    for draw, *args in [(plots.scaling_curve, runs, "n", "loss", "model"),
                        (plots.learning_curves, history), (plots.raster, counts),
                        (plots.traces_with_forecasts, counts)]:
        ax = new()
        assert draw(ax, *args) is ax
    pd.testing.assert_frame_equal(runs, before)
    np.testing.assert_array_equal(counts, counts_before)


# ---- scaling curves
def test_scaling_curve_shows_the_range(ax, runs):
    plots.scaling_curve(ax, runs, "n", "loss", "model", log="x")
    rows = runs[runs.model == "b"].groupby("n").loss
    band = ax.collections[1].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([band.min(), band.max()], [rows.min().min(), rows.max().max()])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")


def test_laws_keep_the_limits_and_go_with_their_curve_or_with_all(runs):
    one, two, three = new(), new(), new()
    plots.scaling_curve(one, runs, "n", "loss", "model")
    plots.scaling_curve(two, runs, "n", "loss", "model", fit={"a": lambda n: 1e9 * n})
    assert one.get_ylim() == two.get_ylim() and one.get_xlim() == two.get_xlim()
    assert texts(two) == ["a", "b", "fitted law"]
    plots.scaling_curve(three, runs, "n", "loss", "model", fit=lambda n: n**-0.3, baseline=0.5)
    assert texts(three) == ["a", "b", "fitted law", "naive baseline"]
    assert len(three.get_lines()) == 6  # two curves, two laws, a legend entry, the baseline


def test_many_unnamed_and_single_curves(ax, runs):
    many = pd.DataFrame([dict(n=n, m=f"m{m:02}", y=n + m) for n in (1, 2) for m in range(9)])
    plots.scaling_curve(ax, many, "n", "y", "m")  # more than there are colours
    assert len(texts(ax)) == 9
    unnamed, alone, all_ = new(), new(), new()
    plots.scaling_curve(unnamed, runs.assign(model=runs.model.where(runs.model == "a")), "n",
                        "loss", "model")
    assert texts(unnamed) == ["a", "nan"]
    plots.scaling_curve(all_, runs, "n", "loss", "model")
    plots.scaling_curve(alone, runs[runs.model == "b"], "n", "loss", "model", order=["a", "b"])
    assert texts(alone) == ["b"]  # and looks as it does beside the others
    assert alone.get_lines()[0].get_color() == all_.get_lines()[1].get_color()


@pytest.mark.parametrize("low, high", [(3.1, 4.4), (0.02, 0.4), (1, 400), (1e-4, 30)])
def test_log_axes_have_readable_numbers(ax, low, high):
    plots.scaling_curve(ax, pd.DataFrame(dict(n=[1, 2], y=[low, high])), "n", "y")
    ax.figure.canvas.draw()
    bottom, top = ax.get_ylim()
    assert sum(bool(t.get_text()) and bottom <= t.get_position()[1] <= top
               for t in ax.get_yticklabels()) >= 2


@pytest.mark.parametrize("change, how, says", [
    (lambda r: r.assign(loss=np.nan), {}, "18 rows without a finite number"),
    (lambda r: r.assign(loss=np.inf), {}, "Drop the rows of failed runs"),
    (lambda r: r.assign(loss="a"), {}, "rows without a finite number"),
    (lambda r: r, dict(hue="zz"), "no column 'zz'"),
    (lambda r: r[:0], {}, "there are no runs to draw")])
def test_scaling_curve_leaves_nothing_out_in_silence(ax, runs, change, how, says):
    with pytest.raises(ParameterError, match=says):
        plots.scaling_curve(ax, change(runs), "n", "loss", **how)


@pytest.mark.parametrize("width", [plots.WIDE, plots.NARROW])
def test_nothing_is_cut_off(runs, width):
    "All text of a stamped panel lies inside the figure, without a tight bounding box."
    fig, ax = plt.subplots(figsize=(width, 2.6))
    plots.scaling_curve(ax, runs, "n", "loss", "model", baseline=0.5)
    plots.stamp(ax, data="simulated", scale="laptop", seeds=3)
    fig.canvas.draw()
    frame = fig.bbox
    for text in fig.findobj(matplotlib.text.Text):
        if text.get_text() and text.get_visible() and text.axes is ax:
            box = text.get_window_extent()
            assert frame.x0 - 1 <= box.x0 and box.x1 <= frame.x1 + 1, text.get_text()
            assert frame.y0 - 1 <= box.y0 and box.y1 <= frame.y1 + 1, text.get_text()


# ---- the other panels
def test_learning_curves(ax):
    h = pd.DataFrame(dict(epoch=[1, 2, 3], train_loss=[3.0, 2, 1], valid_loss=[3.0, 1.5, 2]))
    plots.learning_curves(ax, h)
    assert "best: epoch 2" in texts(ax) and ax.get_yscale() == "log"
    below, several = new(), pd.concat([h.assign(member=m) for m in (0, 1)])
    plots.learning_curves(below, h.assign(train_loss=-1.0, valid_loss=np.nan))
    assert texts(below) == ["training"] and below.get_yscale() == "linear"
    with pytest.raises(ParameterError, match="several members"): plots.learning_curves(ax, several)
    plots.learning_curves(ax, dict(list(several.groupby("member"))))


def test_a_spike_is_drawn_at_its_time_and_a_stamp_says_what_is_shown(ax):
    counts = np.zeros((10, 3), int)
    counts[4, 1] = 2
    plots.raster(ax, counts, 1 + 0.1 * np.arange(10))
    (x, _), _ = ax.collections[0].get_segments()[0]
    assert np.isclose(x, 1.4) and np.allclose(ax.get_xlim(), (0.95, 1.95))
    plots.raster(new(), np.zeros((5, 2)))  # a silent trial is a picture too
    assert plots.stamp(ax, data="real", seeds=1).get_text() == "real recordings · 1 seed"
    fig = plt.figure()
    fig.supxlabel("time (s)")
    assert plots.stamp(fig, data="mixed").get_text() == "time (s)\nmixed recordings"


@pytest.mark.filterwarnings("error")
def test_forecasts_begin_where_they_should_and_gaps_keep_their_distance(ax):
    trace = 100 * np.random.default_rng(0).standard_normal((50, 3))
    plots.traces_with_forecasts(ax, trace, {"m": trace[40:]}, time=np.arange(50) / 2)
    line = ax.get_lines()[3]
    assert line.get_xdata()[0] == 20.0
    np.testing.assert_allclose(line.get_ydata(), trace[40:, 0])
    plots.traces_with_forecasts(new(), trace, {"m": trace[:5]}, start=30)
    for how, says in [(dict(forecasts={"m": trace[:5]}, start=48), "m: the forecast does not fit"),
                      (dict(names=["AVAL"]), "expected 3 names, found 1")]:
        with pytest.raises(ParameterError, match=says):
            plots.traces_with_forecasts(ax, trace, **how)
    trace[0], trace[:, 2] = np.nan, np.nan  # a gap, and a neuron without a name
    gaps = plots.traces_with_forecasts(new(), trace)
    one, two = (line.get_ydata()[1:] for line in gaps.get_lines()[:2])
    assert one.min() > two.max()
