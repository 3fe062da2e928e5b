"The style and the shared panels."
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from neurocompanion import plots
from neurocompanion.core import ParameterError


@pytest.fixture(autouse=True)
def styled():
    "The project's style for each test, matplotlib's own afterwards."
    with matplotlib.rc_context():
        plots.style()
        yield
        plt.close("all")


@pytest.fixture
def ax():
    return plt.subplots()[1]


@pytest.fixture
def runs():
    rng = np.random.default_rng(0)
    return pd.DataFrame([dict(n=n, model=m, loss=n**-s * np.exp(0.1 * rng.standard_normal()))
                         for m, s in [("a", 0.5), ("b", 0.2)] for n in (1, 10, 100)
                         for _ in range(3)])


def texts(ax):
    return [t.get_text() for t in ax.get_legend().get_texts()]


def test_style_is_legible_everywhere():
    "An opaque white sheet, ink of enough contrast, and colours that all differ."
    assert matplotlib.colors.to_hex(plt.rcParams["figure.facecolor"]) == "#ffffff"
    assert matplotlib.colors.to_hex(plt.rcParams["savefig.facecolor"]) == "#ffffff"
    for key in ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"):
        assert plt.rcParams[key] == plots.INK
    assert len({matplotlib.colors.to_hex(c) for c in plots.COLOURS}) == len(plots.COLOURS) == 7
    assert len(plots.MARKERS) == len(plots.COLOURS)


def simulate(colour, kind):
    "A colour as a protanope or deuteranope sees it (Viénot et al. 1999), in linear light."
    c = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    matrix = {"protan": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
              "deutan": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]}
    return np.clip(np.array(matrix[kind]) @ linear, 0, 1) ** (1 / 2.2)


@pytest.mark.parametrize("kind", ["protan", "deutan"])
def test_colours_differ_to_the_colour_blind(kind):
    seen = [simulate(c, kind) for c in plots.COLOURS]
    for i, a in enumerate(seen):
        for b in seen[:i]: assert np.abs(a - b).max() > 0.08


def test_panels_return_their_axes_and_leave_inputs_alone(ax, runs):
    before = runs.copy()
    history = pd.DataFrame(dict(epoch=[1, 2], train_loss=[2.0, 1.0], valid_loss=[2.0, 1.5]))
    counts = np.random.default_rng(0).poisson(0.3, (20, 4))
    counts_before = counts.copy()
    assert plots.scaling_curve(ax, runs, "n", "loss", "model") is ax
    for draw, args in [(plots.learning_curves, (history,)), (plots.raster, (counts,)),
                       (plots.traces_with_forecasts, (counts,))]:
        ax = plt.subplots()[1]
        assert draw(ax, *args) is ax
    pd.testing.assert_frame_equal(runs, before)
    np.testing.assert_array_equal(counts, counts_before)


def test_scaling_curve_shows_mean_and_range(ax, runs):
    plots.scaling_curve(ax, runs, "n", "loss", "model", log="x")
    rows = runs[runs.model == "b"].groupby("n").loss
    np.testing.assert_allclose(ax.get_lines()[1].get_ydata(), rows.mean())
    band = ax.collections[1].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([band.min(), band.max()], [rows.min().min(), rows.max().max()])
    assert texts(ax) == ["a", "b"]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "linear")


def test_scaling_curve_law_keeps_the_limits(runs):
    one, two = plt.subplots()[1], plt.subplots()[1]
    plots.scaling_curve(one, runs, "n", "loss", "model")
    plots.scaling_curve(two, runs, "n", "loss", "model", fit={"a": lambda n: 1e9 * n})
    assert one.get_ylim() == two.get_ylim() and one.get_xlim() == two.get_xlim()
    assert texts(two) == ["a", "b", "fitted law"]


def test_single_law_goes_with_every_curve(ax, runs):
    plots.scaling_curve(ax, runs, "n", "loss", "model", fit=lambda n: n**-0.3, baseline=0.5)
    assert texts(ax) == ["a", "b", "fitted law", "naive baseline"]
    assert len(ax.get_lines()) == 6  # two curves, two laws, a legend entry, the baseline


def test_more_curves_than_colours(ax):
    many = pd.DataFrame([dict(n=n, m=f"m{m:02}", y=n + m) for n in (1, 2) for m in range(9)])
    plots.scaling_curve(ax, many, "n", "y", "m")
    assert len(texts(ax)) == 9


def test_order_keeps_colours(runs):
    "A curve looks the same in a panel that shows it alone."
    one, two = plt.subplots()[1], plt.subplots()[1]
    plots.scaling_curve(one, runs, "n", "loss", "model")
    plots.scaling_curve(two, runs[runs.model == "b"], "n", "loss", "model", order=["a", "b"])
    assert two.get_lines()[0].get_color() == one.get_lines()[1].get_color()
    assert texts(two) == ["b"]


@pytest.mark.parametrize("low,high", [(3.1, 4.4), (0.02, 0.4), (1, 400), (1e-4, 30)])
def test_log_axes_have_readable_numbers(ax, low, high):
    data = pd.DataFrame(dict(n=[1, 2], y=[low, high]))
    plots.scaling_curve(ax, data, "n", "y")
    ax.figure.canvas.draw()
    bottom, top = ax.get_ylim()
    shown = [t.get_text() for t in ax.get_yticklabels()
             if t.get_text() and bottom <= t.get_position()[1] <= top]
    assert len(shown) >= 2


@pytest.mark.parametrize("change,says", [
    (lambda r: r.rename(columns={"loss": "mse"}), "no column 'loss': expected one of n, model"),
    (lambda r: r.assign(loss=np.nan), "9 rows without a finite number"),
    (lambda r: r.assign(loss=np.inf), "Drop the rows of failed runs"),
])
def test_scaling_curve_refuses(ax, runs, change, says):
    with pytest.raises(ParameterError, match=says):
        plots.scaling_curve(ax, change(runs), "n", "loss", "model")


def test_learning_curves_mark_the_best_epoch(ax):
    h = pd.DataFrame(dict(epoch=[1, 2, 3], train_loss=[3.0, 2, 1], valid_loss=[3.0, 1.5, 2]))
    plots.learning_curves(ax, h)
    assert "best: epoch 2" in texts(ax) and ax.get_yscale() == "log"


def test_learning_curves_without_validation(ax):
    h = pd.DataFrame(dict(epoch=[1, 2], train_loss=[1.0, -1.0], valid_loss=[np.nan, np.nan]))
    plots.learning_curves(ax, h)
    assert texts(ax) == ["training"] and ax.get_yscale() == "linear"


def test_a_spike_is_drawn_at_its_time(ax):
    counts = np.zeros((10, 3), int)
    counts[4, 1] = 2
    plots.raster(ax, counts, 1 + 0.1 * np.arange(10))
    (x, _), _ = ax.collections[0].get_segments()[0]
    assert np.isclose(x, 1.4) and np.allclose(ax.get_xlim(), (0.95, 1.95))
    plots.raster(plt.subplots()[1], np.zeros((5, 2)))  # a silent trial is a picture too


def test_forecasts_begin_where_they_should(ax):
    trace = np.random.default_rng(0).standard_normal((50, 3))
    plots.traces_with_forecasts(ax, trace, {"m": trace[40:]}, time=np.arange(50) / 2)
    line = ax.get_lines()[3]
    assert line.get_xdata()[0] == 20.0
    np.testing.assert_allclose(line.get_ydata(), trace[40:, 0])
    plots.traces_with_forecasts(plt.subplots()[1], trace, {"m": trace[:5]}, start=30)
    with pytest.raises(ParameterError, match="m: the forecast does not fit the traces"):
        plots.traces_with_forecasts(ax, trace, {"m": trace[:5]}, start=48)


def test_stamp_says_what_is_shown(ax):
    assert plots.stamp(ax, data="real", scale="paper", seeds=1).get_text() == \
        "real recordings · paper scale · 1 seed"
    fig = plt.figure()
    fig.supxlabel("time (s)")
    assert plots.stamp(fig, data="mixed").get_text() == "time (s)\nmixed recordings"
    with pytest.raises(ParameterError, match="expected one of real, simulated, own, mixed"):
        plots.stamp(ax, data="")


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


@pytest.mark.parametrize("change, how, says", [
    (lambda r: r, dict(hue="zz"), "no column 'zz'"),
    (lambda r: r[:0], {}, "there are no runs to draw"),
    (lambda r: r.assign(loss=-r.loss), {}, "a logarithmic y axis hides what is not above 0"),
    (lambda r: r.assign(loss="a"), {}, "rows without a finite number"),
    (lambda r: r, dict(fit={"a": abs}), "no fitted law belongs to a curve"),
])
def test_scaling_curve_leaves_nothing_out_in_silence(ax, runs, change, how, says):
    with pytest.raises(ParameterError, match=says):
        plots.scaling_curve(ax, change(runs), "n", "loss", **how)


def test_curves_without_a_name_are_drawn(ax, runs):
    plots.scaling_curve(ax, runs.assign(model=runs.model.where(runs.model == "a")), "n", "loss",
                        "model")
    assert texts(ax) == ["a", "nan"]


def test_a_population_is_not_one_history(ax):
    h = pd.DataFrame(dict(member=[0, 1], epoch=[1, 1], train_loss=[1.0, 2.0]))
    with pytest.raises(ParameterError, match="several members"): plots.learning_curves(ax, h)
    plots.learning_curves(ax, dict(list(h.groupby("member"))))


@pytest.mark.filterwarnings("error")
def test_traces_with_gaps_keep_their_distance(ax):
    trace = 100 * np.random.default_rng(0).standard_normal((50, 3))
    trace[0], trace[:, 2] = np.nan, np.nan  # a gap, and a neuron without a name
    plots.traces_with_forecasts(ax, trace)
    one, two = (line.get_ydata()[1:] for line in ax.get_lines()[:2])
    assert one.min() > two.max()
    with pytest.raises(ParameterError, match="expected 3 names, found 1"):
        plots.traces_with_forecasts(ax, trace, names=["AVAL"])


def test_no_bins_are_no_trial(ax):
    with pytest.raises(ParameterError, match="one trial at a time"):
        plots.raster(ax, np.zeros((0, 3)))
