"""Figures: the right one for a result, the right colours, honest gaps."""

import base64
import re
import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.colors import CenteredNorm, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text

from workbench.errors import OutputExists, UnknownName, WorkbenchError
from workbench.render.circuit.svg import CircuitView
from workbench.render.figures.bar_plots import bars
from workbench.render.figures.canvas import CLIPPED, figure_html
from workbench.render.figures.export import figure_caption, save_figure
from workbench.render.figures.grids import heatmap
from workbench.render.figures.line_plots import curve
from workbench.render.figures.meaning import supporting_sign
from workbench.render.figures.notes import over_examples
from workbench.render.plots import plot
from workbench.render.writing import BLUE, ORANGE


def effects(name: str = "effect") -> xr.DataArray:
    values = np.arange(24.0).reshape(2, 3, 4) - 6
    coords = {"layer": range(3), "pos": range(4), "token": ("pos", ["<bos>", " a", "$x$", "</svg>"])}
    return xr.DataArray(values, dims=("example", "layer", "pos"), coords=coords, name=name)


def image_of(figure: Figure):
    return figure.axes[0].images[0]


def ticks(figure: Figure, which: str) -> list[str]:
    return [label.get_text() for label in getattr(figure.axes[0], f"get_{which}ticklabels")()]


def test_heatmap_is_the_mean_over_examples_with_tokens_and_axis_words():
    figure = heatmap(effects())
    np.testing.assert_array_equal(image_of(figure).get_array(), effects().mean("example"))
    assert ticks(figure, "x") == ["<bos>", "·a", "$x$", "</svg>"]
    assert ticks(figure, "y") == ["0", "1", "2"]
    assert figure.axes[0].get_xlabel() == "position (token)"
    assert figure.axes[0].get_ylabel() == "layer"
    assert not figure.axes[0].yaxis.get_inverted(), "layers grow upwards"


def test_effects_get_a_palette_centred_on_zero_even_when_all_are_positive():
    for result in (effects(), abs(effects()) + 1):
        norm = image_of(heatmap(result.rename("effect"))).norm
        assert isinstance(norm, CenteredNorm)
        assert norm(0.0) == 0.5


def test_pattern_gets_one_colour_from_zero():
    norm = image_of(heatmap(abs(effects("pattern")))).norm
    assert not isinstance(norm, CenteredNorm)
    assert isinstance(norm, Normalize)
    assert norm(0.0) == 0.0


def test_unmeasured_cells_are_left_to_the_hatched_ground():
    result = effects().mean("example")
    result[1, 2] = np.nan
    array = image_of(heatmap(result)).get_array()
    assert np.ma.getmaskarray(array)[1, 2]
    assert np.ma.getmaskarray(array).sum() == 1
    assert heatmap(result).axes[0].patch.get_hatch()
    figure = bars(result[1])
    assert len(figure.axes[0].containers[0]) == 3
    image_of(heatmap(result * np.nan))


def test_curve_has_its_band_and_a_logarithmic_axis():
    sizes = [1, 10, 100]
    data = xr.Dataset(
        {
            "faithfulness": ("size", [0.1, 0.5, 1.0]),
            "low": ("size", [0.0, 0.4, 0.9]),
            "high": ("size", [0.2, 0.6, 1.1]),
        },
        coords={"size": sizes},
    )
    axes = plot(data).axes[0]
    assert axes.get_xscale() == "log"
    assert axes.get_xlabel() == "number of edges"
    assert len(axes.collections) == 1
    np.testing.assert_array_equal(axes.lines[-1].get_ydata(), data["faithfulness"])
    counted = data.assign(n_edges=("size", [0, 37, 374])).assign_coords(size=[0.001, 0.1, 1.0])
    np.testing.assert_array_equal(plot(counted).axes[0].lines[-1].get_xdata(), [0, 37, 374])
    assert plot(counted).axes[0].get_xlabel() == "number of edges"
    assert curve(counted, x="size", y="faithfulness").axes[0].get_xlabel() == "share of edges"
    shuffled = plot(data.isel(size=[2, 0, 1])).axes[0]
    np.testing.assert_array_equal(shuffled.lines[-1].get_xdata(), sizes)
    assert (
        curve(data.assign_coords(size=[0, 10, 1000]), x="size", y="faithfulness").axes[0].get_xscale()
        == "symlog"
    )


def test_plot_chooses(circuit):
    assert plot(effects()).axes[0].images
    assert plot(effects().mean("pos")).axes[0].patches
    assert isinstance(plot(circuit), CircuitView)
    summary = xr.Dataset({"mean": effects().mean("example"), "se": effects().std("example")})
    assert plot(summary).axes[0].images
    heads = xr.Dataset(
        {name: ("head", [1.0, -2.0]) for name in ("mean", "low", "high")}, coords={"head": [0, 1]}
    )
    assert len(plot(heads).axes[0].patches) == 2
    assert len(plot(heads).axes[0].collections[0].get_segments()) == 2


NOT_DRAWN = [
    (
        xr.DataArray(1.0),
        "A single number cannot be drawn: keep an axis of the result, such as its examples.",
    ),
    (xr.DataArray(["a"], dims="x"), "The array '' holds <U1, and numbers are drawn."),
    (
        xr.DataArray(np.zeros((2, 0, 2)), dims=("layer", "head", "pos")),
        "There is nothing to draw: the result has sizes {'layer': 2, 'head': 0, 'pos': 2}.",
    ),
    (
        [1, 2],
        "A list cannot be drawn unless it holds rows, of the bench or of measure(): plot its items "
        "one by one.",
    ),
    (
        pd.DataFrame({"a": ["x"]}),
        "A table with columns a cannot be drawn: rows of the bench (model, task, method and edge_auroc or "
        "cpr or cmd), scores of measure(), or numbers alone can. Select columns, as in table[['cpr']].",
    ),
    (xr.Dataset({"a": 1, "b": 2}), "Which of a, b is to be drawn? Pass one: plot(result[NAME])."),
    (
        "text",
        "A str cannot be drawn. These can: Circuit, CircuitView, Comparison, Probes, TunedLens, Sweep, "
        "DataArray, Dataset, tuple, list, DataFrame.",
    ),
]


def test_what_cannot_be_drawn_is_refused():
    """Each message says why, and what can be drawn instead, whole."""
    for result, message in NOT_DRAWN:
        with pytest.raises(WorkbenchError) as error:
            plot(result)
        assert str(error.value) == message, message


def test_too_few_labels_are_refused():
    with pytest.raises(WorkbenchError, match=r"^There are 2 labels for 4 positions\.$"):
        heatmap(effects().drop_vars("token"), labels=["a", "b"])


def test_figures_are_the_same_bytes_without_a_global_theme(hostile_tokens):
    before = dict(matplotlib.rcParams)
    # Half a character is refused where it comes in.
    hostile_tokens = [token for token in hostile_tokens if token != "\ud800"]
    result = xr.DataArray(np.arange(float(len(hostile_tokens))), dims="pos", name="effect")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plot(result, labels=hostile_tokens, title="<b>$\\frac$")
        text = figure_html(figure, alt='"><script>')
        again = figure_html(plot(result, labels=hostile_tokens, title="<b>$\\frac$"), alt='"><script>')
    assert text == figure_html(figure, alt='"><script>') == again
    assert dict(matplotlib.rcParams) == before
    assert "<script" not in text
    assert re.findall(r"<(\w+)", text) == ["div", "img"]


def none(*names: str, dim: str = "x") -> xr.Dataset:
    return xr.Dataset({name: (dim, np.zeros(0)) for name in names})


@pytest.mark.parametrize(
    "result",
    [
        xr.DataArray(np.zeros(0), dims="layer"),
        xr.DataArray(np.zeros((0, 3)), dims=("example", "layer")),
        none("mean", "low", "high"),
        none("faithfulness", "n_edges", dim="size"),
        none("missed", "needed", "low", "high", dim="node").assign_coords(node=np.zeros(0, dtype=object)),
        none("p", "statistic", "supports", dim="test"),
        none("faithfulness", "low", "high", "in_sample", dim="circuit"),
        none("effect", "random", "used", dim="layer").expand_dims(edit=["erase"]),
        none("n_edges", dim="draw").assign(jaccard=1.0, low=1.0, high=1.0),
        pd.DataFrame({"behaviour": [], "score": [], "n": []}),
    ],
)
def test_an_empty_result_is_no_blank_picture(result):
    with pytest.raises(
        WorkbenchError,
        match=r"^There is nothing to draw: the (result has sizes \{.*: 0.*\}|table has no rows)\.$",
    ):
        plot(result)


def test_a_curve_shows_where_it_was_not_measured():
    data = xr.Dataset({"mean": ("layer", [np.nan, 0.5, np.nan, 1.0, np.nan])}, coords={"layer": range(5)})
    axes = plot(data).axes[0]
    assert [(patch.get_x(), patch.get_width()) for patch in axes.patches] == [
        (0, 0.5),
        (1.5, 1.0),
        (3.5, 0.5),
    ]
    assert all(patch.get_hatch() for patch in axes.patches)
    assert axes.get_xlim()[0] <= 0
    assert axes.get_xlim()[1] >= 4
    both = xr.Dataset(
        {"mean": (("method", "layer"), [[1.0, np.nan], [np.nan, np.nan]])}, coords={"layer": [0, 1]}
    )
    axes = curve(both.assign_coords(method=["a", "b"]), x="layer", y="mean", over="method").axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b (not measured)"]
    with pytest.raises(WorkbenchError, match=r"^There is nothing to draw: no cell of 'mean' was measured\.$"):
        plot(data * np.nan)


def test_a_mean_says_of_how_many_examples_it_is():
    values = np.ones((5, 3))
    values[1:, 1] = np.nan
    values[:, 2] = np.nan
    result = xr.DataArray(values, dims=("example", "layer"))
    assert over_examples(result).attrs["note"] == "mean of 1 to 5 examples"
    assert over_examples(result[:, :1]).attrs["note"] == "mean of 5 examples"
    assert over_examples(result[:, 1:]).attrs["note"] == "mean of 1 examples"
    lens = result.assign_attrs(kind="logit_lens").rename("logit_lens")
    assert any("mean of 1 to 5 examples" in text.get_text() for text in plot(lens).axes[0].texts)


def test_the_name_of_an_axis_is_spelled_out():
    text = plot(xr.DataArray(np.eye(2), dims=("a\x00b", "layer"))).axes[0].get_ylabel()
    assert text == "a\\x00b"


def test_a_circuit_takes_a_title_and_no_labels(circuit):
    assert plot(CircuitView.of(circuit), title="MINE").title == plot(circuit, title="MINE").title == "MINE"
    for result in (circuit, CircuitView.of(circuit)):
        with pytest.raises(WorkbenchError) as error:
            plot(result, labels=["a"])
        assert (
            str(error.value) == "A circuit has no axis that labels belong to: pass tokens= to CircuitView.of."
        )


def test_every_series_stands_in_the_legend():
    data = xr.DataArray(
        np.ones((2, 3)), dims=("method", "layer"), coords={"method": ["_own", "eap"], "layer": range(3)}
    )
    for figure in (bars(data), curve(data.to_dataset(name="mean"), x="layer", y="mean", over="method")):
        assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == [" _own", "eap"]


LACKING = [
    (
        xr.Dataset({"faithfulness": 0.5}),
        "A single number cannot be drawn: keep an axis of the faithfulness, such as its sizes.",
    ),
    (
        xr.Dataset({"prob": ("pos", [0.5]), "token": ("pos", [1])}, coords={"pos": [0], "layer": 1}),
        "A table of tokens needs the axes layer and pos; this result has pos. Select with lists, "
        "as in .isel(layer=[0]).",
    ),
    (
        pd.DataFrame({"task": ["t"], "method": ["m"], "cpr": ["high"]}),
        "The column 'cpr' cannot be drawn, as it holds more than numbers: could not convert string to "
        "float: 'high'.",
    ),
]


def test_results_that_lack_an_axis_or_numbers_are_refused():
    """Each message names the axis or the column, whole."""
    for result, message in LACKING:
        with pytest.raises(WorkbenchError) as error:
            plot(result)
        assert str(error.value) == message, message


def test_long_titles_and_labels_stay_in_the_figure():
    result = effects().drop_vars("token")
    for data in (result, result.expand_dims(head=3)):
        figure = plot(data, labels=["a", "b", "c", "x" * 500], title="T" * 500)
        title = next(text.get_text() for text in figure.findobj(Text) if text.get_text().startswith("TTT"))
        assert title.endswith("…")
        assert title.count("\n") == 2
        assert max(len(label.get_text()) for axes in figure.axes for label in axes.get_xticklabels()) <= 16
        box = next(words for words in figure.findobj(Text) if words.get_text() == title).get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1


def test_support_is_blue_whatever_the_sign_of_the_effect_and_a_sign_alone_means_nothing():
    """An ablation that hurts shows support: the colour must not follow the sign of the number."""
    facts = {"kind": "effects", "base": "clean", "metric": "logit_diff"}
    hurts = xr.DataArray([-3.0, 2.0], dims="head", attrs=facts, name="effect")
    assert [bar.get_facecolor() for bar in plot(hurts).axes[0].patches] == [to_rgba(BLUE), to_rgba(ORANGE)]
    restores = hurts.assign_attrs(base="corrupt")
    assert [bar.get_facecolor() for bar in plot(restores).axes[0].patches] == [to_rgba(ORANGE), to_rgba(BLUE)]
    worse = hurts.assign_attrs(metric="kl")  # ablating raises a divergence where the component supports
    assert [bar.get_facecolor() for bar in plot(worse).axes[0].patches] == [to_rgba(ORANGE), to_rgba(BLUE)]
    assert [supporting_sign(hurts.assign_attrs(kind=kind)) for kind in ("edge_scores", "norms")] == [1, 0]
    grid = xr.DataArray([[-3.0, 2.0]] * 2, dims=("layer", "head"), attrs=facts, name="effect")
    red, _, blue, _ = plot(grid).axes[0].images[0].to_rgba(-3.0)
    assert blue > red


def test_positions_of_different_prompts_are_never_averaged():
    """Position 5 of one template is another word in the next."""
    values = np.arange(12.0).reshape(2, 2, 3)
    lens = xr.DataArray(values, dims=("example", "layer", "pos"), attrs={"kind": "logit_lens"}, name="logit")
    lens[1, :, 2] = np.nan  # a shorter prompt: its last token is at position 1
    line = plot(lens).axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(line, [(2 + 7) / 2, (5 + 10) / 2])
    effects_by_place = lens.assign_attrs(kind="effects").rename("effect")
    figure = plot(effects_by_place)
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), values[0])
    assert any("are not averaged" in text.get_text() for text in figure.findobj(Text))
    same = effects_by_place.assign_coords(token=("pos", ["a", "b", "c"]))
    np.testing.assert_allclose(plot(same).axes[0].images[0].get_array()[:, :2], values.mean(0)[:, :2])


def test_a_single_huge_cell_does_not_turn_all_others_white():
    values = np.ones((6, 8))
    values[0, 0] = 1000
    data = xr.DataArray(values, dims=("layer", "head"), attrs={"kind": "edge_scores"}, name="score")
    figure = plot(data)
    assert figure.axes[0].images[0].norm.vmax == CLIPPED
    assert figure.axes[0].images[0].colorbar.extend == "max"


def test_a_figure_at_the_width_of_a_column_has_readable_text_and_leaves_the_original_alone(tmp_path):
    figure = plot(effects(), title="Effects")
    before = figure.get_size_inches().copy()
    path = save_figure(figure, tmp_path / "a.svg", width="column")
    assert f'width="{3.25 * 72:g}pt"' in path.read_text()
    sizes = [float(size) for size in re.findall(r"([\d.]+)px", path.read_text())]
    assert min(sizes) >= 6
    assert "Effects" not in path.read_text()  # a paper has the title in its caption
    assert figure_caption(figure).startswith("Effects.")
    np.testing.assert_array_equal(figure.get_size_inches(), before)
    for suffix in (".pdf", ".png"):
        first = save_figure(figure, tmp_path / f"a{suffix}", width=5).read_bytes()
        assert save_figure(figure, tmp_path / f"a{suffix}", width=5, overwrite=True).read_bytes() == first
    with pytest.raises(OutputExists):
        save_figure(figure, tmp_path / "a.pdf")
    with pytest.raises(UnknownName, match="Did you mean 'column'"):
        save_figure(figure, tmp_path / "b.pdf", width="colum")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.pdf", "a.png", "a.svg"]


def test_figures_in_pages_follow_dark_mode_and_stay_inert():
    html = figure_html(plot(effects(), title="</svg><script>alert(1)</script>"))
    svg = base64.b64decode(html.split("base64,")[1].split('"')[0]).decode()
    assert "prefers-color-scheme:dark" in svg
    assert "<script" not in svg
