"""The sentence of each kind of result: what was measured, the main number with its interval, and how far it goes.

`HEADLINES` maps the `kind` that a result says it is to its sentence; read `headline`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench.errors import WorkbenchError
from workbench.render.cards.strongest import at_largest, counts_of, interval, is_summary, means_of, strongest
from workbench.render.figures.array_axes import at_last_token
from workbench.statistics import interval_text, summary
from workbench.text import listed, visible

Result = xr.DataArray | xr.Dataset


def headline(result: Result) -> str:
    """What a result says, in a sentence or two.

    Raises:
        WorkbenchError: an array that no function of this package returned, or a part that lost its variables.

    >>> headline(xr.DataArray([0.5, -2.0], dims="head", attrs={"kind": "effects", "metric": "kl", "unit": "nats"}))
    'Effects on kl: the strongest of 2 is head 1 with -2.00 nats.'
    """
    kind = kind_of(result)
    if kind not in HEADLINES:
        known = ", ".join(HEADLINES)
        raise WorkbenchError(
            f"There is no headline for {'a result of the kind ' + repr(kind) if kind else 'an array without a kind'}. "
            f"Results of these kinds have one: {known}. Parts of them keep theirs."
        )
    # A summary of a result keeps its kind, and has the means of its cells.
    if is_summary(result):
        return _of_cells(result)
    try:
        return HEADLINES[kind](result)
    except KeyError as missing:
        raise WorkbenchError(
            f"This part of a result of the kind {kind!r} lacks what its headline tells ({_first_sentence(missing)}): "
            "take the headline of the whole."
        ) from missing


def _first_sentence(error: KeyError) -> str:
    return str(error.args[0]).split(". ")[0]


def kind_of(result: Result) -> str:
    """What a result says it is; maps of neurons say of which activations."""
    if isinstance(result, xr.Dataset) and {"roc_auc", "coefficient"} <= set(result.data_vars):
        return "neuron_maps"
    return str(result.attrs.get("kind", ""))


def _of_cells(result: Result) -> str:
    """The strongest cell, and how many it was chosen from."""
    table = strongest(result, 1)
    subject = _subject(result)
    if table.empty:
        return f"{subject}: no cell was measured."
    means, first = means_of(result), table.to_dict("records")[0]
    n = int(np.isfinite(means.values).sum())
    number = interval(first, _unit(result))
    if n == 1:
        return f"{subject}: {number} at {first['what']}{_prompts(result, first)}."
    told = f"{subject}: the strongest of {n:,} is {first['what']} with {number}{_prompts(result, first)}."
    # The largest of many means is large in part by chance.
    if np.isfinite(first["low"]):
        told += " It was chosen as the strongest: expect less on new prompts."
    return told


def _subject(result: Result) -> str:
    """What the numbers are of."""
    attrs, kind = result.attrs, str(result.attrs["kind"])
    metric = visible(attrs["metric"]) if attrs.get("metric") else ""
    with_value = f" with {_value(result)} values" if attrs.get("value") else ""
    if kind in ("effects", "paths"):
        what = "Effects" if kind == "effects" else "Effects along paths"
        on = f" on {metric}" if metric else ""
        sites = attrs.get("sites", "sites")
        at = f" in {visible(sites)}" if kind == "effects" and sites != "sites" and with_value else ""
        return f"{what}{on}{with_value}{at}"
    if kind in ("edge_scores", "node_scores"):
        things = "edges" if kind == "edge_scores" else "components"
        return f"Scores of {things} by {visible(attrs.get('method', 'exact'))} for {metric}{with_value}"
    if kind == "direct_attribution":
        return "Direct attribution (what each component writes along the direction that is read)"
    return visible(kind.replace("_", " ")).capitalize()


def _value(result: Result) -> str:
    """The value that was written, as a person calls it."""
    return visible(str(result.attrs.get("value", "")).replace("from_store", "corrupt"))


def _unit(result: Result) -> str:
    unit = str(result.attrs.get("unit", ""))
    # `visible` would spell out that there is nothing.
    return visible(unit) if unit else ""


def _prompts(result: Result, row: Mapping[str, Any] | None = None) -> str:
    """Over how many prompts a mean was taken, of how many; "" where that is not known."""
    counts = counts_of(result)
    if counts is None or not counts.size:
        return ""
    n = int(counts.max())
    if row is not None and "n" in row and int(row["n"]) < n:
        return f" (measured on {int(row['n'])} of {n} prompts)"
    return f" ({n} prompts)" if n > 1 else ""


def _trajectory(result: Result) -> str:
    """How a measure of the stream grows over the layers, at the last token of each prompt."""
    assert isinstance(result, xr.DataArray)
    if "layer" not in result.dims or result.sizes["layer"] < 2:
        return _of_cells(result)
    table = by_layer(result)
    if table["mean"].dims != ("layer",):
        return _of_cells(result)
    means, layers = table["mean"].values, table["layer"].values
    steps = np.diff(means)
    largest = int(np.nanargmax(np.abs(steps)))
    last = {name: float(table[name][-1]) for name in ("mean", "low", "high")}
    measure = visible(result.attrs.get("measure", result.name or "value"))
    return (
        f"The {measure} at the last token is {means[0]:.3g} after layer {layers[0]} and {interval(last)} after layer "
        f"{layers[-1]}{_prompts(result)}. It changes most from layer {layers[largest]} to {layers[largest + 1]}, by "
        f"{steps[largest]:+.3g}."
    )


def by_layer(result: xr.DataArray) -> xr.Dataset:
    """Mean, interval and number of prompts after each layer, at the last token of each prompt."""
    at_end = at_last_token(result)
    if "example" in at_end.dims:
        return summary(at_end)
    return xr.Dataset({"mean": at_end, "low": at_end * np.nan, "high": at_end * np.nan})


def of_last_token(result: xr.Dataset) -> xr.Dataset:
    """What `top_tokens` found after the last token of the first prompt: over (layer, rank)."""
    first = result.isel(example=0) if "example" in result.dims else result
    measured = np.flatnonzero(first["prob"].isel(layer=-1, rank=0).notnull().values)
    last = first.isel(pos=int(measured[-1]) if len(measured) else -1)
    return last.assign(spelled=last["text"] if "text" in last.coords else last["token"].astype(str))


def _top_tokens(result: Result) -> str:
    assert isinstance(result, xr.Dataset)
    likeliest = of_last_token(result).isel(rank=0)
    spelled, layers = list(map(str, likeliest["spelled"].values)), likeliest["layer"].values
    since = len(layers)
    while since and spelled[since - 1] == spelled[-1]:
        since -= 1
    return (
        f"At the last token of the first prompt the likeliest next token is {visible(repr(spelled[-1]))} "
        f"(p = {float(likeliest['prob'][-1]):.2f}); the lens reads it from layer {layers[since]} on."
    )


def _evaluation(result: Result) -> str:
    assert isinstance(result, xr.Dataset)
    first = result.isel(circuit=0) if "circuit" in result.dims else result
    rows = (
        [first.isel(ablation=i) for i in range(first.sizes["ablation"])]
        if "ablation" in first.dims
        else [first]
    )
    n_edges = int(np.max(first["n_edges"]))
    told = []
    for row in rows:
        against = (
            f" with {visible(row['ablation'].item())}"
            if "ablation" in row.coords
            else f" with {_value(result)}"
        )
        told.append(
            f"{_share(row['faithfulness'], row['low'], row['high'])}{against} values, error per prompt "
            f"{float(row['error']):.2f}"
        )
    metric = visible(result.attrs.get("metric", "the metric"))
    n = f" on {first.sizes['example']} prompts" if "example" in first.sizes else ""
    text = f"{n_edges:,} edges: faithfulness of {metric}{n} {'; '.join(told)}."
    seen = float(first["in_sample"]) if "in_sample" in first and first["in_sample"].ndim == 0 else 0.0
    if seen > 0:
        text += f" {seen:.0%} of the prompts were seen when it was found, which flatters it."
    return f"{text} {_controls_of(rows[0])}"


def _controls_of(row: xr.Dataset) -> str:
    """What the same number is of circuits that should do worse."""
    controls = []
    for name, what in (("random", "random circuits of as many edges"), ("complement", "all other edges")):
        if name in row:
            controls.append(f"{what} have {_share(row[name], row[f'{name}_low'], row[f'{name}_high'])}")
    if not controls:
        return "No control was run: checks=() leaves them out."
    return f"Beside it: {listed(controls)}."


def _share(value: xr.DataArray, low: xr.DataArray, high: xr.DataArray) -> str:
    """A number with two digits and its interval, if it has one."""
    # + 0.0 turns -0.0 into 0.0.
    share, *ends = (round(float(number), 2) + 0.0 for number in (value, low, high))
    return f"{share:.2f} {interval_text(ends[0], ends[1], '.2f')}" if np.isfinite(ends[0]) else f"{share:.2f}"


def _minimality(result: Result) -> str:
    assert isinstance(result, xr.Dataset)
    needed = result["needed"].values > 0
    names = list(map(str, result["node"].values[~needed]))
    text = (
        f"{int(needed.sum())} of {len(needed)} components of the circuit are needed (missed by at least 1 %)."
    )
    if names:
        shown = listed(names[:6]) if len(names) <= 6 else f"{', '.join(names[:6])} and {len(names) - 6} more"
        text += f" Not needed: {shown}."
    return text


def _curve(result: Result) -> str:
    assert isinstance(result, xr.Dataset)
    faithful, edges = result["faithfulness"].values, result["n_edges"].values
    if faithful.ndim != 1:
        raise WorkbenchError(
            "Several curves have no common headline: take one of them, as in .isel(method=0)."
        )
    text = ""
    if "area" in result.attrs:
        area = {
            "mean": result.attrs["area"],
            "low": result.attrs["area_low"],
            "high": result.attrs["area_high"],
        }
        better = "higher is better" if result.attrs["area_name"] == "CPR" else "lower is better"
        text = f"{result.attrs['area_name']} {interval(area)} ({better}). "
    enough = np.flatnonzero((faithful >= 0.85) & (faithful <= 1.15))
    if not len(enough):
        return f"{text}No size of the curve has a faithfulness between 0.85 and 1.15."
    at = int(enough[0])
    return (
        f"{text}The smallest size with a faithfulness between 0.85 and 1.15 has {int(edges[at]):,} edges "
        f"({_share(*(result[name][at] for name in ('faithfulness', 'low', 'high')))}). A mean near 1 does not show "
        "that single prompts are reproduced: evaluate the circuit."
    )


def _stability(result: Result) -> str:
    assert isinstance(result, xr.Dataset)
    agreement = _share(result["jaccard"], result["low"], result["high"])
    n_edges = result["n_edges"].values
    return (
        f"Circuits found on {len(n_edges)} resamples of the prompts share {agreement} of their edges (Jaccard); they "
        f"have {int(n_edges.min()):,} to {int(n_edges.max()):,} edges. The same scores on all resamples: a stable "
        "circuit may still be a wrong one."
    )


def _circuit_tests(result: Result) -> str:
    assert isinstance(result, xr.Dataset)
    by_outcome: dict[str, list[str]] = {"for it": [], "against it": [], "undecided": []}
    for test in result["test"].values:
        row = result.sel(test=test)
        outcome = "for it" if bool(row["supports"]) else "against it"
        by_outcome[outcome if np.isfinite(row["p"]) else "undecided"].append(str(test))
    parts = [f"{outcome}: {listed(tests)}" for outcome, tests in by_outcome.items() if tests]
    verdict = "accepted" if bool(result["accepted"]) else "not accepted"
    n_edges = result.attrs.get("n_edges", "?")
    return f"The circuit of {n_edges} edges is {verdict}. Tests that speak {'; '.join(parts)}."


def _causal(result: Result) -> str:
    assert isinstance(result, xr.Dataset)
    cell = at_largest(result, abs(result["effect"]))
    used = int((result["used"].values > 0).sum())
    number = interval({"mean": cell["effect"], "low": cell["low"], "high": cell["high"]})
    return (
        f"Concept {visible(result.attrs.get('concept', ''))}: {used} of {result['effect'].size} edits along the "
        f"probe's direction change the metric more than random directions do. The largest, {cell['edit'].item()} in "
        f"layer {cell['layer'].item()}: {number}; the strongest random direction {float(cell['random']):.3g}, the "
        f"whole activation {float(cell['whole']):.3g}."
    )


def _frontier(result: Result) -> str:
    assert isinstance(result, xr.Dataset)
    passing = result["size"].values[result["passes_all"].values]
    names = listed(map(str, result["ablation"].values))
    if len(passing):
        told = f"The smallest size that keeps all criteria against {names} has {int(passing[0]):,} edges"
        chosen = int(result.attrs.get("chosen", passing[0]))
        if chosen < passing[0]:
            told += f"; leaving out what is not needed makes it {chosen:,}"
        return f"{told}."
    worst = result["error"].max("ablation")
    best = int(result["size"].values[np.argmin(worst.values)])
    return (
        f"No size keeps all criteria against {names}. The smallest error per prompt is {float(worst.min()):.2f}, at "
        f"{best:,} edges."
    )


def _controls(result: Result) -> str:
    assert isinstance(result, xr.Dataset)
    told = []
    for name in map(str, result["ablation"].values):
        row = result.sel(ablation=name)
        heads = row.sel(control="other heads")
        specific = {1.0: "specific", 0.0: "not specific"}.get(float(row["specific"]), "no head can be moved")
        told.append(
            f"against {visible(name)} error {float(row['circuit_error']):.2f}, through other heads "
            f"{float(heads['error']):.2f} ({specific})"
        )
    return f"{result.attrs.get('n_edges', '?')} edges on {result.attrs.get('n', '?')} prompts: {'; '.join(told)}."


def _agreement(result: Result) -> str:
    assert isinstance(result, xr.Dataset)
    inside = result["spearman"].sel(stratum="inside")
    told = [
        f"{float(inside.sel(direction=direction).mean()):.2f} in {direction}"
        for direction in map(str, result["direction"].values)
    ]
    return (
        f"Scores and exact effects of single edges agree inside the circuit by a rank correlation of {listed(told)} "
        "(mean over counterfactuals). Effects of single edges are blind to redundancy."
    )


def _rule_stability(result: Result) -> str:
    assert isinstance(result, xr.Dataset)
    found, draws = int(result.attrs["n_found"]), int(result.attrs["draws"])
    return (
        f"On {draws} resamples of the prompts the rule finds a circuit in {found}, of "
        f"{float(result['median_size']):,.0f} edges in the middle."
    )


def _specification(result: Result) -> str:
    assert isinstance(result, xr.Dataset)
    return (
        f"{result.attrs.get('n_specifications', '?')} combinations of choices, {result.attrs.get('n_requested', '?')} "
        f"edges each: a change of one choice leaves a Jaccard index of {float(result['jaccard'].min()):.2f} to "
        f"{float(result['jaccard'].max()):.2f}."
    )


def _neuron_maps(result: Result) -> str:
    assert isinstance(result, xr.Dataset)
    auc = result["roc_auc"]
    cell = at_largest(auc, abs(auc - 0.5))
    concept = f" of {visible(cell['concept'].item())}" if "concept" in cell.coords else ""
    return (
        f"The neuron that tells most{concept} alone is m{cell['layer'].item()}:{cell['neuron'].item()} with an area "
        f"under the ROC curve of {float(cell):.3f}. It is the best of {auc.size:,} on the prompts that chose it."
    )


HEADLINES: dict[str, Callable[[Result], str]] = {
    "effects": _of_cells,
    "paths": _of_cells,
    "edge_scores": _of_cells,
    "node_scores": _of_cells,
    "direct_attribution": _of_cells,
    "attention_to": _of_cells,
    "head_scores": _of_cells,
    "copying_scores": _of_cells,
    "logit_lens": _trajectory,
    "norms": _trajectory,
    "top_tokens": _top_tokens,
    "evaluation": _evaluation,
    "minimality": _minimality,
    "faithfulness_curve": _curve,
    "stability": _stability,
    "circuit_tests": _circuit_tests,
    "causal_check": _causal,
    "frontier": _frontier,
    "controls": _controls,
    "agreement": _agreement,
    "rule_stability": _rule_stability,
    "specification_curve": _specification,
    "neuron_maps": _neuron_maps,
}
"""What a result says it is → its sentence."""


def probe_rows(results: xr.Dataset) -> list[dict[str, Any]]:
    """Each concept's best probe on held-out prompts, beside the best of its controls: a row each."""
    rows = []
    for concept in map(str, results["concept"].values):
        table = results.sel(concept=concept)
        # the measure that the figure shows
        measure = "r2" if bool(np.isnan(table["accuracy"]).all()) else "accuracy"
        own = table.sel(control="none")
        cell = at_largest(own, own[measure])
        row = {"concept": visible(concept), "measure": measure}
        row |= {axis: cell[axis].item() for axis in ("layer", "k") if axis in cell.coords}
        row |= {"held out": float(cell[measure]), "low": float(cell[f"{measure}_low"])}
        row |= {"high": float(cell[f"{measure}_high"])}
        for control in map(str, results["control"].values):
            if control != "none":
                row[control] = float(table.sel(control=control)[measure].max())
        rows.append(row)
    return rows


def probes_headline(rows: Sequence[Mapping[str, Any]]) -> str:
    """The best probe of each concept of `probe_rows`, and what it does not show."""
    told = [
        f"{row['concept']}: {row['measure']} {row['held out']:.2f} on held-out prompts (layer {row.get('layer', '?')}, "
        f"{row.get('k', '?')} features)"
        for row in rows[:3]
    ]
    return f"Best probes, {'; '.join(told)}. A probe shows what can be read, not what the model uses: causal_check."
