"""Scores of edges and nodes: how much each one supports the behaviour. Positive: without it the metric falls."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from workbench.circuit.graph import Graph
from workbench.discovery.exact import conditional_scores, exact_scores
from workbench.engine.circuits import CircuitBatch, Circuits
from workbench.engine.gradients.atp_star import atp_star_table
from workbench.engine.gradients.edge_gradients import EdgeTable, WriterDifferences
from workbench.engine.gradients.reader_gradients import ReaderMaps
from workbench.engine.gradients.runs import GradientRuns, groups, shares
from workbench.engine.memory import memory_budget, rows_per_forward
from workbench.engine.values import Value, check_value
from workbench.errors import MetricError, ModelError, UnknownName, WorkbenchError
from workbench.interventions.effects import effects
from workbench.metrics.metric import Metric
from workbench.metrics.metric import metric as as_metric
from workbench.models.load import model_device, one_fingerprint
from workbench.prompts.pairs import PromptPairs
from workbench.results import effect_array
from workbench.sites import Position, Site
from workbench.statistics import check_seed

METHODS: dict[str, str] = {
    "exact": "every edge takes the other value alone",
    "conditional": "exact, also where each important edge is already taken out: finds what stands in for another",
    "eap": "first-order, at the clean run (Syed et al. 2310.10348)",
    "eap-ig-inputs": "gradients along the way between input embeddings (Hanna et al. 2403.17806)",
    "eap-ig-activations": "one group of writers moves at a time, every edge counts each time (published code of 2403.17806)",
    "ig-activations": "one group of writers moves at a time and counts then (Marks et al. 2403.19647)",
    "clean-corrupt": "mean of the gradients at both ends",
    "atp-star": "softmax recomputed for queries and keys, gradients with each layer dropped (Kramár et al. 2403.00745)",
    "random": "noise, to compare with",
}
GRIDS = ("left", "right", "midpoint")
NODE_METHODS = (*METHODS, "gradient", "integrated")
Axis = Literal["example", "pos"] | str


@one_fingerprint()
def score_edges(
    model: Any,
    pairs: PromptPairs,
    *,
    value: Value,
    metric: str | Metric | Callable[..., Tensor] = "logit_diff",
    method: str = "eap",
    steps: int = 5,
    grid: Literal["left", "right", "midpoint"] | str = "midpoint",
    seed: int = 0,
    normalized: bool = False,
    positions: Position | Sequence[Position] | None = None,
    neurons: bool | int | Sequence[int] = False,
    keep: Sequence[Axis] = (),
    budget: int | None = None,
    progress: bool = True,
) -> xr.DataArray:
    """A score for every edge of the model's graph; positive means that without the edge the metric falls.

    That is support for the behaviour where a higher metric is better; `find_circuit` turns the others around. "exact" is
    m(clean) - m(that edge at the other value); the rest estimate it: see `METHODS`.

    Args:
        value: the other value z' of the writers, as in `effects`.
        metric: a name, a `Metric` or a function; "kl" measures the distance to the clean run. It has no slope at the clean
            run, so methods that look there alone refuse it.
        steps: points on the way of the methods that take one.  grid: where they lie, from the other value (0) to the clean
            one (1): "left" k = 0..m-1 over m (the published code), "right" 1..m (the paper), or the midpoints.
        seed: of "random".
        normalized: divide by m(full) - m(empty), means over prompts: scores are then shares of the behaviour.
        positions: indices or names; edges are told apart by them, all other tokens make the class "rest".
        neurons: layers whose MLP is split into neurons; True: all.
        keep: axes not to sum or average over: "example", "pos" (gradient methods and graphs without positions).
        budget: bytes of working memory; sources are worked out in blocks that fit.

    Returns:
        DataArray ([example, pos,] writer, reader) in graph order, NaN where no edge exists; "pos" are the classes of a graph
        with positions. A graph with neurons gives one flat axis `edge` with coordinates `writer` and `reader`.
        attrs: `forwards` (passes of all prompts), `source_blocks`, `engine`.

    Raises:
        UnknownName, SiteError, MetricError, PromptError, StoreError, EditError, ModelError: see the messages.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> scores = wb.score_edges(model, wb.load_task("ioi", model, n=4), value=wb.zero())
    >>> int(scores.notnull().sum())
    1519
    """
    if method not in tuple(METHODS):
        raise UnknownName("method", method, METHODS)
    if grid not in GRIDS:
        raise UnknownName("grid", grid, GRIDS)
    if type(steps) is not int or steps < 1:
        raise WorkbenchError(
            f"score_edges: steps={steps}; the way needs at least one point, and a whole number of them."
        )
    unknown = [axis for axis in keep if axis not in ("example", "pos")]
    if unknown:
        raise UnknownName("keep", unknown[0], ("example", "pos"))
    check_value(value)
    check_seed(seed)
    graph = Graph.of(model, positions=positions, neurons=neurons)
    if "pos" in keep and (graph.positions is not None or method in ("exact", "conditional", "random")):
        raise WorkbenchError(
            f"score_edges: keep=('pos',) is for gradient methods without positions=. With method={method!r} name them: "
            "positions=[...] gives every edge a score at each."
        )
    asked = _Asked(
        model,
        graph,
        pairs,
        value,
        as_metric(metric),
        method,
        steps,
        grid,
        seed,
        tuple(keep),
        budget,
        progress,
    )
    table, facts = asked.scores()
    if normalized:
        both = asked.circuits
        gap = both.full.mean() - both.measure(np.zeros((1, *graph.exists.shape), dtype=bool)).mean()
        if abs(gap) < 1e-6:
            raise MetricError(f"score_edges: {asked.metric.name} is the same in the full and in the empty circuit, so nothing can be normalized by it.")  # fmt: skip
        table = table / gap
    attrs = pairs.attrs(model) | {
        "kind": "edge_scores", "method": method, "value": value.describe(), "metric": asked.metric.name,
        "unit": "share" if normalized else asked.metric.unit, "higher_is_better": asked.metric.higher_is_better,
        "normalized": normalized, "graph": json.dumps(graph.to_dict()),
        "prompt_ids": " ".join((*pairs.clean.ids, *pairs.corrupt.ids)), **facts,
    }  # fmt: skip
    if next(model.parameters()).dtype != torch.float64:
        table = table.astype(np.float32)
    return labelled(table, graph, pairs, keep, attrs)


def labelled(
    table: np.ndarray, graph: Graph, pairs: PromptPairs, keep: Sequence[str], attrs: dict[str, Any]
) -> xr.DataArray:
    """Scores [example or 1, pos or class or 1, writer, reader] as an array with the axes that were asked for."""
    table = np.where(graph.whole.exists, table, np.nan)
    coords: dict[str, Any] = {}
    if "example" in keep:
        coords["example"] = np.arange(len(pairs))
    if "pos" in keep:
        coords["pos"] = np.arange(table.shape[1])
        if "example" in keep:
            beyond = np.arange(table.shape[1]) >= pairs.clean.lengths.numpy()[:, None]
            table[beyond] = np.nan
    elif graph.positions is not None:
        coords["pos"] = [str(place) for place in graph.positions]
    lead = [len(labels) for labels in coords.values()]
    if graph.neurons:
        at = np.nonzero(graph.whole.exists)
        flat = table[..., at[0], at[1]].reshape(*lead, -1)
        writers, readers = (np.asarray(names, dtype=object) for names in (graph.writers, graph.readers))
        made = effect_array(flat, (*coords, "edge"), coords, name="score", attrs=attrs)
        return made.assign_coords(writer=("edge", writers[at[0]]), reader=("edge", readers[at[1]]))
    coords |= {"writer": list(graph.writers), "reader": list(graph.readers)}
    return effect_array(
        table.reshape([*lead, *table.shape[2:]]), tuple(coords), coords, name="score", attrs=attrs
    )


@dataclass(frozen=True, eq=False)
class _Asked:
    """One call of `score_edges`."""

    model: Any
    graph: Graph
    pairs: PromptPairs
    value: Value
    metric: Metric
    method: str
    steps: int
    grid: str
    seed: int
    keep: tuple[str, ...]
    budget: int | None
    progress: bool

    @cached_property
    def circuits(self) -> Circuits:
        """Runs of circuits on these prompts."""
        return Circuits(
            self.model, self.graph, self.pairs, value=self.value, metric=self.metric, budget=self.budget
        )

    def scores(self) -> tuple[np.ndarray, dict[str, Any]]:
        """[example or 1, pos or class or 1, writer, reader], and how it was made."""
        circuits = self.circuits
        if self.method == "random":
            size = (
                len(self.pairs) if "example" in self.keep else 1,
                *self._places,
                *self.graph.whole.exists.shape,
            )
            return np.random.default_rng(self.seed).standard_normal(size), {"seed": self.seed, "forwards": 0}
        if self.method in ("exact", "conditional"):
            if self.method == "exact":
                found, forwards = exact_scores(circuits, progress=self.progress), self.graph.n_edges + 1
            else:
                found, forwards = conditional_scores(circuits, progress=self.progress)
            found = found if self.graph.positions is not None else found[:, None]
            found = found if "example" in self.keep else found.mean(0, keepdims=True)
            return found, {"engine": circuits.engine, "forwards": forwards}
        if self.method in ("eap", "atp-star"):
            self.metric.check_attributable()
        if self.method == "atp-star" and self.metric.reads_answer_tokens:
            raise MetricError(
                f"atp-star takes sizes prompt by prompt, which answers of several tokens ({self.metric.name}) do not allow. Use eap."
            )
        if self.method == "atp-star" and circuits.decoder is None:
            raise ModelError(
                f"atp-star recomputes attention from queries and keys, which the fast engine alone knows; {circuits.why}. "
                "Use eap-ig-inputs or exact."
            )
        return self._gradients()

    @property
    def _places(self) -> tuple[int]:
        return (1 if self.graph.positions is None else len(self.graph.positions),)

    def _gradients(self) -> tuple[np.ndarray, dict[str, Any]]:
        circuits, graph, pairs = self.circuits, self.graph, self.pairs
        ways = {"eap": [1.0], "atp-star": [1.0], "clean-corrupt": [1.0, 0.0]}.get(self.method) or shares(
            self.steps, self.grid
        )
        bytes_each = next(self.model.parameters()).element_size()
        room = memory_budget(model_device(self.model), self.budget) // 4 // bytes_each
        kept = 6 * graph.shape.d_model * (graph.shape.n_heads + 2) * len(ways)
        size = max(
            1,
            rows_per_forward(self.model, circuits.longest, budget=self.budget, gradients=True, extra=kept)
            // len(ways),
        )
        maps, total, blocks, passes = ReaderMaps.all_of(self.model, circuits.decoder), None, 1, 0
        with tqdm(total=len(circuits.expansion.pairs), desc=f"edges ({self.method})", unit="example", disable=None if self.progress else True, leave=False) as bar:  # fmt: skip
            for batch in circuits.batches(size):
                start = 0 if batch.walk is None or self.method == "atp-star" else batch.walk.start
                sources = WriterDifferences.of(batch, graph, self.model, start=start, room=room)
                runs = GradientRuns(self.model, graph, batch, circuits.metric, sources, start)
                made, passes = self._table(runs, batch, maps, ways, start, room)
                blocks = max(blocks, sources.n_blocks)
                total = self._placed(total, made, batch)
                bar.update(len(batch.examples))
        assert total is not None
        if "example" not in self.keep:
            total /= len(pairs)
        elif not circuits.expansion.plain:
            rows, total = total, np.zeros((len(pairs), *total.shape[1:]))
            np.add.at(
                total, circuits.expansion.owner.numpy(), rows
            )  # slopes have the weights of their rows already
        total = total[:, : int(pairs.clean.lengths.max())] if "pos" in self.keep else total
        more = (
            {"steps": len(ways), "grid": self.grid}
            if self.method in ("eap-ig-inputs", "eap-ig-activations", "ig-activations")
            else {}
        )
        return total, {
            "engine": "hooks" if circuits.decoder is None else circuits.decoder.family, "forwards": passes,
            "source_blocks": blocks, "budget": 4 * room * bytes_each, **more,
        }  # fmt: skip

    def _table(
        self,
        runs: GradientRuns,
        batch: CircuitBatch,
        maps: Sequence[ReaderMaps],
        ways: Sequence[float],
        start: int,
        room: int,
    ) -> tuple[Tensor, int]:
        """Sums over a batch of one method, and how many forward and backward passes it took."""
        if self.method == "atp-star":
            return atp_star_table(runs, maps, self.keep, room=room)
        table = EdgeTable(batch, self.graph, self.keep, start=start)
        if self.method in ("eap-ig-activations", "ig-activations"):
            found = list(groups(runs.sources, self.graph))
            everyone = self.method == "eap-ig-activations"
            share = 1 / len(ways) / (len(found) if everyone else 1)
            for key, writers in found:
                run = runs.group(key, ways)
                table.add(
                    runs.sources, run, maps, room=room, writers=None if everyone else writers, share=share
                )
            return table.values, len(found) * len(ways)
        table.add(runs.sources, runs.at(ways), maps, room=room, share=1 / len(ways))
        return table.values, len(ways)

    def _placed(self, total: np.ndarray | None, made: Tensor, batch: CircuitBatch) -> np.ndarray:
        """The running total of all batches with one more."""
        if total is None:
            n = len(self.circuits.expansion.pairs) if "example" in self.keep else 1
            places = self.circuits.longest if "pos" in self.keep else made.shape[1]
            total = np.zeros((n, places, *made.shape[2:]))
        rows = batch.examples if "example" in self.keep else slice(None)
        total[rows, : made.shape[1]] += made.numpy()
        return total


@one_fingerprint()
def score_nodes(
    model: Any,
    pairs: PromptPairs,
    *,
    value: Value,
    metric: str | Metric | Callable[..., Tensor] = "logit_diff",
    method: str = "eap",
    keep: Sequence[Literal["example"] | str] = (),
    budget: int | None = None,
    progress: bool = True,
    **more: Any,
) -> xr.DataArray:
    """A score for every writer: input, heads, MLPs. Positive: without it the metric falls.

    "exact", "gradient", "integrated" and "atp-star" are the negated `effects` of what each writes; the edge methods are sums
    of a writer's edge scores over its readers.

    Args:
        keep: ("example",) for a score of every example.
        more: what `score_edges` takes besides: steps, grid, seed, normalized.

    Returns:
        DataArray ([example,] writer), in the order of `Graph.writers`.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> wb.score_nodes(model, wb.load_task("ioi", model, n=4), value=wb.zero()).sizes["writer"]
    37
    """
    if method not in NODE_METHODS:
        raise UnknownName("method", method, NODE_METHODS)
    wrong = [name for name in more if name not in ("steps", "grid", "seed", "normalized")]
    if wrong:
        raise UnknownName("argument", wrong[0], ("steps", "grid", "seed", "normalized"))
    unknown = [axis for axis in keep if axis != "example"]
    if unknown:
        raise UnknownName("keep", unknown[0], ("example",))
    graph = Graph.of(model)
    if more.get("normalized") and method in ("exact", "gradient", "integrated", "atp-star"):
        raise WorkbenchError(
            f"score_nodes: method={method!r} gives effects in the metric's unit; normalized=True goes with methods of edges, such as eap."
        )
    if method in ("exact", "gradient", "integrated", "atp-star"):
        sites = [_site_of(name) for name in graph.writers]
        steps = {"steps": more["steps"]} if "steps" in more else {}
        found = -effects(
            model,
            pairs,
            sites=sites,
            value=value,
            metric=metric,
            method=method,
            budget=budget,
            progress=progress,
            **steps,
        )
        found = found.rename(site="writer").assign_coords(writer=list(graph.writers)).rename("score")
        found = found if "example" in keep else found.mean("example", keep_attrs=True)
        measure = as_metric(metric)
        facts = {
            "kind": "node_scores",
            "higher_is_better": int(measure.higher_is_better),
            "graph": json.dumps(graph.to_dict()),
        }
        facts |= {
            "prompt_ids": " ".join((*pairs.clean.ids, *pairs.corrupt.ids)),
            "value": value.describe(),
            "method": method,
        }
        return found.assign_attrs(facts)
    edges = score_edges(
        model,
        pairs,
        value=value,
        metric=metric,
        method=method,
        keep=keep,
        budget=budget,
        progress=progress,
        **more,
    )
    return edges.sum("reader", keep_attrs=True).assign_attrs(kind="node_scores")


def _site_of(writer: str) -> Site:
    """Where a writer's output is edited."""
    if writer == "input":
        return Site("resid_pre", 0)
    layer, _, head = writer[1:].partition(".")
    return Site("z", int(layer), int(head)) if head else Site("mlp_out", int(layer))
