"""The figure of a Dataset: by the kind that it says it is (`KINDS`), or by its variables (`DATASETS`).

`dataset_figure` looks a result up there. Arrays are drawn by `array_plots`, and what only one kind of study
needs by `circuit_plots`, `criteria_plots`, `trust_plots` and `probe_plots`.
"""

from collections.abc import Callable

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from workbench.errors import WorkbenchError
from workbench.render.figures import circuit_plots, criteria_plots, trust_plots
from workbench.render.figures.array_axes import MOST_BARS, STRONGEST, by_strength
from workbench.render.figures.array_plots import array_figure
from workbench.render.figures.bar_plots import bars
from workbench.render.figures.canvas import Labels, Title
from workbench.render.figures.evaluation_plots import evaluation
from workbench.render.figures.line_plots import curve, side_by_side
from workbench.render.figures.notes import check_filled, noted
from workbench.render.figures.probe_plots import causal_figure, probe_figures
from workbench.render.figures.tables import token_table


def dataset_figure(result: xr.Dataset, title: Title, labels: Labels) -> Figure:
    """The figure of a Dataset, by its kind or variables; of one with a single variable that of its array.

    Args:
        title: of the figure.
        labels: token strings of the position axes.
    Raises:
        WorkbenchError: none of `KINDS` and `DATASETS` fits and there are several variables, or there is nothing
            to draw.
    """
    names = set(map(str, result.variables))
    needed, draw_kind = KINDS.get(str(result.attrs.get("kind")), (frozenset(), None))
    # A part of such a result keeps its attributes and not its variables, and is drawn by what it has.
    if draw_kind is not None and needed <= names:
        for name in needed:
            check_filled(result[name])
        return draw_kind(result, title)
    for needed, draw in DATASETS:
        if needed <= names:
            # before any figure is begun, because a blank figure would look like a result
            for name in needed:
                check_filled(result[name])
            return draw(result, title, labels)
    own = list(map(str, result.data_vars))
    if len(own) == 1:
        return array_figure(result[own[0]].assign_attrs(result.attrs | result[own[0]].attrs), title, labels)
    raise WorkbenchError(
        f"Which of {', '.join(own) or 'no variables'} is to be drawn? Pass one: plot(result[NAME])."
    )


def _summary(result: xr.Dataset, title: Title, labels: Labels) -> Figure:
    """A mean with its interval over one axis, or the mean alone over several."""
    y = next(name for name in ("mean", "value") if name in result.variables)
    main, ends = result[y], [name for name in ("low", "high") if name in result.data_vars]
    named = main.rename(result.attrs.get("quantity", y)).assign_attrs(result.attrs)
    if main.ndim == 1 and _is_numeric_axis(result, str(main.dims[0])):
        low, high, *_ = [*ends, None, None]
        return curve(result, x=str(main.dims[0]), y=y, low=low, high=high, title=title)
    if main.ndim == 1 and len(ends) == 2:
        shown = np.arange(len(named))
        if len(named) > MOST_BARS:
            # the strongest, and then in the order of the axis, which readers know
            shown = np.sort(by_strength(named)[:STRONGEST])
            named = noted(named, f"the {len(shown)} strongest of {len(named)}")
        low, high = result["low"][shown], result["high"][shown]
        return bars(named[shown], low=low, high=high, title=title, labels=labels)
    return array_figure(named, title, labels)


def _is_numeric_axis(result: xr.Dataset, axis: str) -> bool:
    """Whether an axis is a quantity; heads and neurons have numbers, but no order that means anything."""
    if axis in ("head", "kv_head", "neuron", "feature") or axis not in result.coords:
        return False
    return result[axis].dtype.kind in "iuf"


def lens_quality(result: xr.Dataset, title: Title, labels: Labels) -> Figure:
    """How far a logit lens and a tuned lens are from the model's own output, over layers."""
    data = side_by_side(result, ["logit", "tuned"], "lens", quantity="KL to the last layer (nats)")
    gains = (result["logit"] - result["tuned"]).values
    told = (
        f"The tuned lens is nearer to the model's output at {int((gains > 0).sum())} of {len(gains)} layers."
    )
    data = data.assign_attrs(conclusion=told, note="on held-out prompts; bands: 95 % intervals")
    return curve(data, x="layer", y="mean", low="low", high="high", over="lens", title=title)


def _neuron_maps(result: xr.Dataset, title: Title, labels: Labels) -> Figure:
    """How far the area under the ROC curve is from chance, for the neurons that best tell a concept alone."""
    above_chance = (result["roc_auc"] - 0.5).rename("AUROC of the neuron alone − 0.5")
    if "concept" not in above_chance.dims:
        above_chance = above_chance.expand_dims("concept")
    above_chance = above_chance.assign_attrs(result.attrs).transpose("layer", "neuron", "concept")
    return array_figure(above_chance, title, labels)


def _top_tokens(result: xr.Dataset, title: Title, labels: Labels) -> Figure:
    return token_table(result, title=title, labels=labels)


def _probe_results(result: xr.Dataset, title: Title, labels: Labels) -> Figure:
    return probe_figures(result, None, title=title)


def _causal(result: xr.Dataset, title: Title, labels: Labels) -> Figure:
    return causal_figure(result, title=title)


def _unlabelled(
    draw: Callable[[xr.Dataset, Title], Figure],
) -> Callable[[xr.Dataset, Title, Labels], Figure]:
    """The same figure with an argument for labels, which it has no axis for."""
    return lambda result, title, labels: draw(result, title)


KINDS: dict[str, tuple[frozenset[str], Callable[[xr.Dataset, Title], Figure]]] = {
    "frontier": (
        frozenset({"size", "faithfulness", "error", "kl_recovered", "answers_kept", "m_full", "m_empty"}),
        criteria_plots.frontier,
    ),
    "controls": (frozenset({"control", "faithfulness", "error", "circuit_error"}), trust_plots.controls),
    "rule_stability": (frozenset({"size", "n_edges", "jaccard_near"}), trust_plots.rule_stability),
    "agreement": (frozenset({"edge", "size", "score", "spearman"}), trust_plots.agreement),
    "specification_curve": (frozenset({"share", "jaccard", "choice"}), trust_plots.specification),
}
"""What a Dataset says it is → the variables that it then has, and its figure."""
DATASETS: tuple[tuple[frozenset[str], Callable[[xr.Dataset, Title, Labels], Figure]], ...] = (
    (frozenset({"token", "prob", "layer", "pos"}), _top_tokens),
    (frozenset({"accuracy", "k", "control_kind"}), _probe_results),
    (frozenset({"effect", "random", "used", "edit"}), _causal),
    (frozenset({"roc_auc", "coefficient", "neuron"}), _neuron_maps),
    (frozenset({"tuned", "logit", "layer"}), lens_quality),
    (frozenset({"p", "statistic", "supports"}), _unlabelled(circuit_plots.verdicts)),
    (frozenset({"jaccard", "low", "high", "n_edges"}), _unlabelled(circuit_plots.stability)),
    (frozenset({"missed", "needed", "node"}), _unlabelled(circuit_plots.minimality)),
    (frozenset({"faithfulness", "low", "high", "in_sample"}), _unlabelled(evaluation)),
    (frozenset({"faithfulness"}), _unlabelled(circuit_plots.faithfulness)),
    (frozenset({"mean"}), _summary),
    (frozenset({"value"}), _summary),
)
"""Which variables a Dataset has to have for which figure; the first that fits is drawn."""
