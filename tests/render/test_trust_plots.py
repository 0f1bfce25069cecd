"""Figures of the frontier and of what speaks for and against a circuit: marks, bounds and words at their places."""

import numpy as np
import pytest
import xarray as xr
from discovered import frontier
from matplotlib.figure import Figure

import workbench as wb
from workbench.render.figures.canvas import SERIES, figure_html


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def legend(figure: Figure) -> list[str]:
    found = list(figure.legends) + [one for axes in figure.axes if (one := axes.get_legend())]
    return [text.get_text() for one in found for text in one.get_texts()]


def controls() -> xr.Dataset:
    """Three controls, one of which could not be made, against two counterfactuals."""
    columns = {}
    for name, values in (("faithfulness", [[0.1, 0.0], [0.9, 5.0]]), ("error", [[0.9, 1.0], [0.2, 6.0]])):
        table = np.array([*values, [np.nan, np.nan]])
        for end, shift in (("", 0), ("_low", -0.05), ("_high", 0.05)):
            columns[name + end] = (("control", "ablation"), table + shift)
            columns[f"circuit_{name}{end}"] = ("ablation", np.array([0.98, 0.95]) + shift)
    columns["draws"] = ("control", np.array([50, 1, 0]))
    coords = {"control": ["other heads", "another task", "random paths"], "ablation": ["swap", "abc"]}
    return xr.Dataset(columns, coords=coords, attrs={"kind": "controls"})


def stability(sizes: list[float]) -> xr.Dataset:
    numbers = {f"{name}{end}": 0.8 for name in ("jaccard", "jaccard_near") for end in ("", "_low", "_high")}
    columns = {"size": ("draw", np.array(sizes)), "n_edges": ("draw", np.nan_to_num(np.array(sizes)) - 1)}
    return xr.Dataset(columns | numbers | {"core_size": 6}, attrs={"kind": "rule_stability", "near": 10})


def agreement() -> xr.Dataset:
    """Three edges against one counterfactual: an exact effect of 0, and one that is strong in one direction only."""
    sizes = np.array([[[0.5, 0.0, 0.1]], [[0.4, 0.2, 0.1]]])
    columns = {
        "size": (("direction", "ablation", "edge"), sizes),
        "score": ("edge", np.array([1.0, 0.1, 0.0])),
        "inside": ("edge", np.array([True, False, False])),
        "one_direction": (("ablation", "edge"), np.array([["", "or-like", ""]], dtype=object)),
        "spearman": (("direction", "ablation", "stratum"), np.array([[[0.75, np.nan]], [[0.5, 0.25]]])),
        "median": (("direction", "ablation"), np.array([[0.5], [0.4]])),
    }
    coords = {"direction": ["noising", "denoising"], "ablation": ["swap"], "stratum": ["inside", "outside"]}
    coords["edge"] = ["input->m0", "m0->m1", "m1->logits"]
    return xr.Dataset(columns, coords=coords, attrs={"kind": "agreement", "unit": "logits"})


def specification() -> xr.Dataset:
    columns = {
        "share": (("writer", "reader"), np.array([[1.0, 0.5], [np.nan, 0.0]])),
        **{f"jaccard{end}": ("choice", np.array([0.3, 0.9])) for end in ("", "_low", "_high")},
    }
    facts = {"kind": "specification_curve", "n_specifications": 80, "n_robust": 1}
    return xr.Dataset(columns, coords={"choice": ["ablation", "draw"]}, attrs=facts)


def test_the_frontier_has_a_panel_for_each_group_of_criteria():
    figure = wb.plot(frontier(["swap", "abc"], {"swap": 4, "abc": 8}))
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "faithfulness", "error (share of the gap)", "KL recovered", "share of prompts",
    ]  # fmt: skip
    assert all(axes.get_xscale() == "log" for axes in figure.axes)
    assert legend(figure)[:2] == ["against swap", "against abc"]
    # swap goes from -3 to 3, so a metric of 0 is half-way; abc starts at 0, where no label has room.
    assert texts(figure) == ["model", "corrupted", "no preference (swap)", "8 chosen"]


def test_the_lines_of_the_frontier_are_the_measures_in_the_colour_of_their_counterfactual():
    result = frontier(["swap", "abc"], {"swap": 4, "abc": 8})
    for axes, name in zip(wb.plot(result).axes, ("faithfulness", "error", "kl_recovered"), strict=False):
        lines = {line.get_color(): line for line in axes.lines if line.get_marker() == "o"}
        for i, counterfactual in enumerate(result["ablation"].values):
            np.testing.assert_array_equal(
                lines[SERIES[i]].get_ydata(), result[name].sel(ablation=counterfactual)
            )
            np.testing.assert_array_equal(lines[SERIES[i]].get_xdata(), result["size"])


def test_a_metric_that_is_no_difference_has_no_line_of_no_preference():
    result = frontier(["swap"], {"swap": 4}).assign_attrs(metric="nll")
    assert not any("no preference" in text for text in texts(wb.plot(result)))


def test_controls_far_away_stand_at_the_edge_and_missing_ones_are_hatched():
    figure = wb.plot(controls())
    left = figure.axes[0]
    assert [label.get_text() for label in left.get_yticklabels()] == [
        "other heads (50)", "another task (1)", "random paths (0)",
    ]  # fmt: skip
    marks = [
        points.get_offsets()[:, 0].tolist() for points in left.collections if len(points.get_offsets()) > 1
    ]
    assert marks == [[0.1, 0.9], [0.0, 2.0]]
    assert any(patch.get_hatch() for patch in left.patches)
    assert legend(figure) == ["against swap", "against abc"]


@pytest.mark.parametrize(("sizes", "found"), [([9, 9, 13, np.nan], 3), ([np.nan] * 3, 0)])
def test_resamples_of_one_size_stand_on_top_of_each_other(sizes, found):
    figure = wb.plot(stability(sizes))
    marks = figure.axes[0].collections[0].get_offsets().tolist()
    assert marks == ([[8, 1], [8, 2], [12, 1]] if found else [])
    assert legend(figure) == [f"{found} of {len(sizes)} resamples", "core: 6 edges"]
    assert texts(figure) == ["all prompts: 10"]


def test_effects_of_nothing_stand_at_the_lower_edge_and_ranks_in_the_legend():
    figure = wb.plot(agreement())
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["noising", "denoising"]
    assert legend(figure) == ["swap: inside 0.75, outside nan", "swap: inside 0.50, outside 0.25"]
    places = np.concatenate([np.asarray(points.get_offsets()) for points in figure.axes[0].collections])
    assert sorted(places[:, 1].tolist()) == [0.05, 0.1, 0.5]


def test_specifications_show_what_each_choice_changes():
    figure = wb.plot(specification())
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["value", "prompts"]
    # Edges that no specification has are no part of the curve.
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_ydata(), [1.0, 0.5])


@pytest.mark.parametrize("make", [controls, agreement, specification, lambda: stability([3, 4])])
def test_they_are_the_same_bytes_every_time(make):
    assert figure_html(wb.plot(make())) == figure_html(wb.plot(make()))


def test_a_part_of_such_a_result_is_drawn_by_what_it_has():
    part = frontier(["swap"], {"swap": 4})[["faithfulness"]].isel(ablation=0)
    assert wb.plot(part).axes[0].get_ylabel() == "faithfulness"
