"""The main job in one call: find the circuit of a behaviour, measure how far it can be trusted, write a report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from tqdm.auto import tqdm

from workbench import results
from workbench.circuit.circuit import Circuit
from workbench.circuit.graph import Graph
from workbench.discovery.methods import METHODS, find_by
from workbench.discovery.scores import score_edges
from workbench.engine.capture import capture_pairs
from workbench.engine.values import Value, from_store, value_named, zero
from workbench.errors import CircuitError, MetricError, PromptError, UnknownName
from workbench.evaluation.checks import RANDOM_CIRCUITS
from workbench.evaluation.curves import faithfulness_curve
from workbench.evaluation.evaluate import evaluate
from workbench.files import check_output, replaced
from workbench.interventions.effects import effects
from workbench.lenses.logit_lens import logit_lens
from workbench.metrics.metric import Metric
from workbench.metrics.metric import metric as as_metric
from workbench.models.load import model_name
from workbench.prompts.pairs import PromptPairs
from workbench.render.circuit.svg import CircuitView
from workbench.render.panels import attention_panel
from workbench.render.report import report
from workbench.sites import grid
from workbench.statistics import interval_text, summary
from workbench.stores.store import ActivationStore
from workbench.tasks.registry import load_task

FILES = ("circuit.json", "effects.nc", "lens.nc", "edges.parquet", "faithfulness.nc", "report.html")
VALUES = ("from_store", "zero", "mean")
SHOWN_PROMPTS = 3


@dataclass(frozen=True)
class Found:
    """What `discover` found, and where it was written; `grown` is the faithfulness of the circuit's strongest edges by number."""

    circuit: Circuit
    scores: xr.DataArray
    heads: xr.DataArray
    patching: xr.DataArray
    evaluation: xr.Dataset
    curve: xr.Dataset
    folder: Path
    intervals: xr.Dataset | None = None
    grown: xr.Dataset | None = None

    @property
    def report(self) -> Path:
        return self.folder / "report.html"


def discover(
    model: Any,
    task: str | PromptPairs,
    *,
    out: str | Path,
    n: int | None = None,
    seed: int = 0,
    variant: str | None = None,
    metric: str | Metric | None = None,
    value: str = "from_store",
    method: str = "eap",
    n_edges: int | None = None,
    command: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Found:
    """Find a circuit on training prompts, test it on held-out ones, and write everything to a folder.

    Args:
        task: a task's name, or pairs of your own, which are split into two halves that share no prompt.
        out: folder for `circuit.json`, `effects.nc`, `lens.nc`, `edges.parquet`, `faithfulness.nc`, `report.html`.
        n: pairs of a task to find it on, and as many to test it on; None takes 64.
        seed: of the prompts.
        variant: the task's kind of corruption; None takes its first.
        metric: None takes the task's own.
        method: how the circuit is found: a method of `score_edges`, "acdc", "learn-edges" or "learn-nodes".
        value: what stands in for everything outside the circuit: the corrupt run ("from_store"), "zero", or "mean".
        n_edges: size before pruning; None takes 2 % of the graph. ACDC decides itself.
        command: shown in the report.

    Returns:
        Everything that was found, and the folder.

    Raises:
        OutputExists: the folder holds a run; nothing is touched.
        UnknownName, PromptError, CircuitError, MetricError: see the messages; nothing is written.
    """
    out = Path(out)
    check_output(out, FILES, overwrite=overwrite)
    if value not in VALUES:
        raise UnknownName("value", value, VALUES)
    if method not in METHODS:
        raise UnknownName("method", method, METHODS)
    edges = Graph.of(model).n_edges
    if n_edges is not None and not 0 < n_edges <= edges:
        raise CircuitError(f"discover: n_edges={n_edges}; a circuit of this model has 1 to {edges} edges.")
    train, heldout = _prompts(model, task, n, seed, variant)
    measured = as_metric(metric or train.metric)
    with tqdm(total=6, desc="discover", unit="step", disable=None if progress else True, leave=False) as bar:

        def step(doing: str) -> None:
            bar.set_postfix_str(doing)
            bar.update()

        stores = capture_pairs(model, train, progress=False)
        held = capture_pairs(model, heldout, progress=False)
        step("heads")
        heads = effects(model, heldout, sites=grid("z", model), value=zero(), metric=measured, progress=False)
        step("patching")
        names = [name for name, where in heldout.clean.positions.items() if bool((where >= 0).all())]
        patching = effects(
            model, heldout, sites=grid("resid_pre", model, pos=names), value=from_store(held[0]), base="corrupt",
            metric=measured, progress=False,
        )  # fmt: skip
        step("edges")
        other = _value(value, stores)
        discovery = find_by(
            method, model, train, value=other, metric=measured, n_edges=n_edges, by_example=True, seed=seed,
            progress=progress,
        )  # fmt: skip
        scores, circuit = discovery.scores, discovery.circuit
        step("circuit")
        evaluation = _evaluations(model, circuit, heldout, train, _value(value, held), other, measured)
        curve = faithfulness_curve(
            scores, model, heldout, value=_value(value, held), metric=measured, progress=False
        )
        if not np.isfinite(float(evaluation["faithfulness"].sel(circuit="held-out"))):
            raise MetricError(
                f"On the held-out prompts {measured.name} is the same in the clean run and with every edge replaced, so there is "
                "no effect to explain. Check the prompts, the answers and the metric."
            )
        step("report")
        # Methods that score no single prompt have no intervals over prompts.
        intervals = None if discovery.by_example is None else summary(discovery.by_example, draws=200)
        scored = circuit.n_edges > 0 and circuit.scores is not None
        how: dict[str, Any] = {"value": _value(value, held), "metric": measured, "progress": False}
        grown = faithfulness_curve(circuit, model, heldout, **how) if scored else None
        found = Found(circuit, scores, heads, patching, evaluation, curve, out, intervals, grown)
        lens = logit_lens(held[0], model, targets=heldout.answers, minus=heldout.wrong)
        sections = _sections(model, found, heldout, held, lens, measured, value)
        _write(found, lens, sections, command, overwrite)
    return found


def _prompts(
    model: Any, task: str | PromptPairs, n: int | None, seed: int, variant: str | None
) -> tuple[PromptPairs, PromptPairs]:
    if isinstance(task, PromptPairs):
        if n is not None or variant is not None:
            raise PromptError(
                "n= and variant= belong to a task's name; pairs of your own are split into two halves."
            )
        task.check_equal_lengths(
            "Edges and circuits need equal lengths within a pair; row 1 of a file is pair 0."
        )
        return task.split(seed=seed)
    many = 64 if n is None else n
    train, heldout = (
        load_task(task, model, n=many, seed=seed, split=split, variant=variant)
        for split in ("train", "heldout")
    )
    return train, heldout


def _value(name: str, stores: tuple[ActivationStore, ActivationStore]) -> Value:
    """The value that stands in for what is outside a circuit, from the stores (clean, corrupt) of the prompts."""
    return value_named(name, own=stores[0], other=stores[1])


def _view(
    model: Any,
    found: Found,
    pairs: PromptPairs,
    i: int,
    stores: tuple[ActivationStore, ActivationStore],
    heads: Sequence[tuple[int, int]],
    metric: Metric,
    value: str,
) -> CircuitView:
    """The circuit on one held-out prompt."""
    best, example = found.evaluation.sel(circuit="held-out"), pairs.select([i])
    # A distance to the clean run has no slope there, so positions are scored along the way.
    how = "eap-ig-inputs" if metric.needs_reference else "eap"
    other = _value(value, capture_pairs(model, example, progress=False))
    one = score_edges(model, example, value=other, metric=metric, method=how, keep=("pos",), progress=False)
    return CircuitView.of(
        found.circuit,
        title=f"{pairs.provenance.get('task', 'circuit')} in {model_name(model)}",
        tokens=list(example.clean.strings[0]),
        position_scores=one.transpose("writer", "reader", "pos"),
        patterns={
            (layer, head): stores[0]["pattern", layer].prompt(i)[head].float().cpu().numpy()
            for layer, head in heads
        },
        faithfulness=(float(best["faithfulness"]), float(best["low"]), float(best["high"])),
        intervals=found.intervals,
        curve=found.grown,
    )


def _evaluations(
    model: Any,
    circuit: Circuit,
    heldout: PromptPairs,
    train: PromptPairs,
    held: Value,
    other: Value,
    metric: Metric,
) -> xr.Dataset:
    """The circuit on held-out and on its own prompts, what else it has to stand, and random circuits of as many edges."""
    tested = evaluate(circuit, model, heldout, value=held, metric=metric, progress=False)
    own = evaluate(circuit, model, train, value=other, metric=metric, checks=(), progress=False)
    best = tested.isel(circuit=0)
    rows = {"held-out": best, "in-sample": own.isel(circuit=0)}
    names = ("faithfulness", "low", "high", "mean_of_ratios", "n_edges", "in_sample")
    columns = {name: [float(row[name]) for row in rows.values()] for name in names}
    others = {
        "complement, held-out": ("complement", circuit.graph.n_edges - circuit.n_edges),
        f"{RANDOM_CIRCUITS} random circuits": ("random", circuit.n_requested),
    }
    for field, edges in others.values():
        numbers = (*(float(best[f"{field}{end}"]) for end in ("", "_low", "_high")), float("nan"), edges, 0.0)
        for name, number in zip(names, numbers, strict=True):
            columns[name].append(number)
    data = {name: ("circuit", values) for name, values in columns.items()}
    more = ("incompleteness", "incompleteness_low", "incompleteness_high", "minimal")
    attrs = {name: float(best[name]) for name in more}
    attrs |= {name: str(best[name].values) for name in ("incompleteness_set", "unneeded")}
    return xr.Dataset(data, coords={"circuit": [*rows, *others]}, attrs=tested.attrs | attrs)


def _sections(
    model: Any,
    found: Found,
    pairs: PromptPairs,
    stores: tuple[ActivationStore, ActivationStore],
    lens: xr.DataArray,
    metric: Metric,
    value: str,
) -> list[tuple[Any, ...]]:
    """The report, from the claim to the details."""
    circuit, tokens = found.circuit, list(pairs.clean.strings[0])
    heads = _strongest_heads(circuit)
    view = CircuitView.on_prompts(
        [
            _view(model, found, pairs, i, stores, heads, metric, value)
            for i in range(min(SHOWN_PROMPTS, len(pairs)))
        ]
    )
    patterns = view.patterns
    names = [f"a{layer}.{head}" for layer, head in heads]
    unit = found.heads.attrs.get("unit", "")
    sections: list[tuple[Any, ...]] = [
        ("Circuit", view, _claim(circuit, found.evaluation, pairs, value, metric)),
        ("How far to trust it", [_table(found.evaluation), _doubts(found.evaluation)], "Faithfulness is the share of the behaviour that the circuit alone keeps: 1 all of it, 0 none, above 1 when what works against it was left out (a ratio of dataset means, with 95 % bootstrap intervals over prompts; for random circuits, made of whole paths, the central 95 % of draws). The complement is the model without the circuit's edges."),
        ("Faithfulness against circuit size", found.curve, _curve_claim(found)),
        ("Head ablation", found.heads, f"Change of {metric.name} ({unit}) when a head's output is set to zero in the clean run, mean over held-out prompts: negative means that the head supports the behaviour."),
        ("Heads by effect", _head_table(found.heads, circuit), "The ten heads whose ablation changes the metric most."),
        ("Patching the residual stream", found.patching, f"Change of {metric.name} when the corrupt run gets the clean residual stream at one layer and named position (denoising), mean over held-out prompts."),
        ("Logit lens", lens.isel(example=0, pos=slice(0, len(tokens))).assign_coords(token=("pos", results.as_labels(tokens))), "Right minus wrong answer's logit, read from the residual stream after each layer, on the example prompt."),
    ]  # fmt: skip
    if heads:
        stacked = np.stack([patterns[head] for head in heads])
        sections.append(
            (
                "Attention of the circuit's heads",
                attention_panel(tokens, stacked, names),
                "The strongest heads of the circuit on the example prompt.",
            )
        )
    sections.append(("Prompts", _prompt_table(pairs), _prompt_caption(pairs)))
    return sections


def _claim(circuit: Circuit, evaluation: xr.Dataset, pairs: PromptPairs, value: str, metric: Metric) -> str:
    share = circuit.n_edges / circuit.graph.n_edges
    stand_in = {"from_store": "their value in the corrupt run", "zero": "zero", "mean": "their mean"}[value]
    held, own, _, random = (_interval(evaluation.isel(circuit=i)) for i in range(4))
    return (
        f"{circuit.n_edges} of {circuit.graph.n_edges} edges ({share:.1%}) keep {held} of the effect on {metric.name} on "
        f"{len(pairs)} held-out prompt pairs (on the prompts they were found on {own}; random circuits of as many edges {random}), "
        f"with every other edge at {stand_in}. {circuit.n_requested} edges were chosen; dead ends are pruned."
    )


def _interval(row: xr.Dataset, name: str = "faithfulness") -> str:
    middle, low, high = (
        round(float(row[field]), 2) + 0.0 for field in (name, "low", "high")
    )  # + 0.0: no minus before 0 %
    return f"{middle:.0%} {interval_text(low, high, '.0%')}"


def _curve_claim(found: Found) -> str:
    facts = found.curve.attrs
    return (
        f"On held-out prompts, with 95 % bootstrap intervals. CPR (area under the curve) {facts['area']:.3f} "
        f"[{facts['area_low']:.3f}, {facts['area_high']:.3f}]; edges ranked by {found.circuit.attrs.get('method', 'score')}. "
        f"Random circuits as large as the one above keep {_interval(found.evaluation.isel(circuit=3))}."
    )


def _doubts(evaluation: xr.Dataset) -> str:
    """What speaks against the circuit, in words."""
    facts = evaluation.attrs
    unneeded = facts["unneeded"] or "none"
    return (
        f"Completeness: when components are knocked out of circuit and model alike, they differ most, by "
        f"{facts['incompleteness']:.0%} [{facts['incompleteness_low']:.0%}, {facts['incompleteness_high']:.0%}] of the effect, "
        f"without {facts['incompleteness_set']} (0 % is a complete circuit). Minimality: {facts['minimal']:.0%} of its heads and "
        f"MLPs are missed when they go, by at least 1 % of the metric; not missed: {unneeded}. All on held-out prompts."
    )


def _strongest_heads(circuit: Circuit, most: int = 12) -> list[tuple[int, int]]:
    """The circuit's heads with the largest sum of |score| over their outgoing edges, in graph order."""
    assert circuit.scores is not None
    scores, heads = np.where(circuit.edges, np.abs(np.nan_to_num(circuit.scores)), 0).sum(1), circuit.heads
    strength = {head: scores[circuit.graph.writers.index(f"a{head[0]}.{head[1]}")] for head in heads}
    return sorted(sorted(heads, key=lambda head: -strength[head])[:most])


def _table(evaluation: xr.Dataset) -> pd.DataFrame:
    frame = evaluation.to_dataframe().reset_index().round(3)
    frame[frame.select_dtypes("number").columns] += 0.0  # no minus before 0
    return frame.rename(
        columns={
            "circuit": "",
            "low": "from",
            "high": "to",
            "mean_of_ratios": "mean of ratios",
            "n_edges": "edges",
        }
    ).drop(columns="in_sample")


def _head_table(heads: xr.DataArray, circuit: Circuit, most: int = 10) -> pd.DataFrame:
    frame = summary(heads).to_dataframe().reset_index()
    places = list(zip(frame["layer"].tolist(), frame["head"].tolist(), strict=True))
    frame["in circuit"] = ["yes" if place in set(circuit.heads) else "" for place in places]
    frame["head"] = [f"a{layer}.{head}" for layer, head in places]
    order = np.argsort(-frame["mean"].abs().to_numpy(), kind="stable")[:most]
    return (
        frame.iloc[order]
        .reset_index(drop=True)[["head", "mean", "se", "low", "high", "n", "in circuit"]]
        .rename(columns={"mean": "effect", "low": "from", "high": "to"})
    )


def _prompt_table(pairs: PromptPairs, most: int = 6) -> pd.DataFrame:
    def text(strings: Sequence[str]) -> str:
        spaced = any(token.startswith(" ") for token in strings)
        return ("" if spaced else " ").join(strings)

    rows = range(min(most, len(pairs)))
    return pd.DataFrame(
        {
            "clean": [text(pairs.clean.strings[i]) for i in rows],
            "corrupt": [text(pairs.corrupt.strings[i]) for i in rows],
        }
    )


def _prompt_caption(pairs: PromptPairs) -> str:
    dropped = pairs.provenance.get("dropped")
    return "The first held-out pairs." + (
        f" Words that do not suit this vocabulary were left out: {dropped}." if dropped else ""
    )


def _write(
    found: Found, lens: xr.DataArray, sections: list[tuple[Any, ...]], command: str | None, overwrite: bool
) -> None:
    """Everything that a run leaves in its folder."""
    with replaced(found.folder, FILES, overwrite=overwrite) as partial:
        found.circuit.save(partial / "circuit.json")
        both = xr.Dataset({"heads_zeroed": found.heads, "resid_pre_denoised": found.patching})
        results.save(both, partial / "effects.nc")
        results.save(lens, partial / "lens.nc")
        results.save(found.curve, partial / "faithfulness.nc")
        edges_frame(found.scores, found.circuit).to_parquet(partial / "edges.parquet")
        task = found.heads.attrs.get("task", "own prompts")
        title = f"{task} in {found.heads.attrs['model']}"
        report(sections, partial / "report.html", title=title, command=command)


def edges_frame(scores: xr.DataArray, circuit: Circuit) -> pd.DataFrame:
    """A table with one row per edge: `edge writer reader score in_circuit`, strongest support first."""
    at = np.argwhere(circuit.graph.exists)
    writers, readers = (np.asarray(names) for names in (circuit.graph.writers, circuit.graph.readers))
    frame = pd.DataFrame({"writer": writers[at[:, 0]], "reader": readers[at[:, 1]]})
    frame.insert(0, "edge", frame["writer"] + "->" + frame["reader"])
    frame["score"], frame["in_circuit"] = scores.values[tuple(at.T)], circuit.edges[tuple(at.T)]
    return frame.sort_values("score", ascending=False, kind="stable", ignore_index=True)
