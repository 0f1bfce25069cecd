"""`path_effects`: path patching, the effect of what reaches a reader from a writer along one path.

The patched run is the base run with the inputs of some readers set to what they would be if the senders had
written their counterfactual value, while everything else stayed as it is (the MLPs in between may be
recomputed). This module reads names of nodes and paths into `Route`s; the engine runs them.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, product
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.arguments import checked
from workbench.circuit.graph import Graph
from workbench.engine.bound import Bound, SitePositions
from workbench.engine.continuations import answer_attrs, bind
from workbench.engine.fast.cohorts import Element
from workbench.engine.fast.paths import PatchedPaths, Route
from workbench.engine.fast.sweep import StaircaseSweep
from workbench.engine.first_not_finite import located
from workbench.engine.given_values import GivenValue, given_value, name_attrs
from workbench.engine.hooked.paths import HookedPaths
from workbench.engine.hooked.sweep import HookedSweep
from workbench.engine.nodes import Reader, Writer, middle, readers, writer
from workbench.engine.runs import MeasuredRuns
from workbench.engine.select import CallPlan, fast_decoder
from workbench.engine.store_values import check_same_model
from workbench.errors import SiteError, StoreError, UnknownName
from workbench.metrics.continuations import Expansion, expand
from workbench.metrics.metric import GivenMetric, metric_for
from workbench.models.calls import model_call
from workbench.models.model import Model
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.results import effect_array
from workbench.sites import Shape
from workbench.stores.store import ActivationStore

MLPS = ("frozen", "recomputed")
Nodes = str | Sequence[str | tuple[str, ...]]


@checked
@model_call()
def path_effects(
    model: Model,
    pairs: PromptPairs,
    *,
    senders: Nodes | None = None,
    receivers: Nodes | None = None,
    paths: str | Sequence[str] | None = None,
    value: GivenValue | None = None,
    mlps: Literal["frozen", "recomputed"] | str,
    metric: GivenMetric | None = None,
    base: Literal["clean", "corrupt"] | str = "clean",
    store: ActivationStore | None = None,
    budget: int | None = None,
    readout: torch.dtype | None = None,
    progress: bool = True,
) -> xr.DataArray:
    """m(patched) - m(base) per example, when only a path carries the counterfactual value.

    The receivers' inputs are set to what they would be if the senders wrote the counterfactual value while
    all other heads wrote what they do in the base run; then the base run goes on from there, everything else
    free. Exact, norms included.

    Args:
        senders: writers: `input`, heads `a9.6`, MLPs `m3`, neurons `m3:113`; "heads", "mlps", or "all" (or None)
            for all of these but neurons. A sequence is a sweep; an element that is a tuple of names is patched
            together.
        receivers: readers: `a9.6<q>`, `a5.2<k>` (a kv head), `m3`, `m3:113`, `logits` (the default), each at
            every position or at one, `a9.6<q>@END`. A bare head is its three readers. A sequence is a sweep,
            a tuple is a set.
        paths: whole paths instead, as in `input->a2.2->a5.5<k>->a9.9<q>->logits`. An arrow is a direct edge;
            `->a5.5<k>@S2` carries one position only. What a node in the middle sends on is its output with
            the changed input minus its output in the base run.
        value: what the senders write, a value or its name as in `effects` (all but "optimal"); heads write z . W_O.
        mlps: whether the MLPs in between stay "frozen" at the base run (direct edges alone) or are
            "recomputed" from what reaches them, as in the IOI paper. Both are in the literature, and give
            different numbers.
        store: the base run's activations, where they are known: they are not computed again.
        metric, budget, readout: as in `effects`; with answers of several tokens, senders write the value in
            the prompt and, where it covers answers, in these; what comes of it is followed everywhere.

    Returns:
        DataArray (example, writer, reader), or (example, path). NaN where no sender comes before a receiver,
        or an example lacks the position.

    Raises:
        SiteError: no such node or path.
        UnknownName: an unknown `mlps`.
        StoreError: `store` is of another run.
        MetricError: as in `effects`.
        PromptError: as in `effects`.
        EditError: as in `effects`.

    Source: Wang et al. 2211.00593; Goldowsky-Dill et al. 2304.05969.

    >>> import workbench as wb
    >>> model = wb.load_model("tiny")
    >>> pairs = wb.load_task("ioi", model, n=4)
    >>> direct = wb.path_effects(
    ...     model, pairs, senders="heads", receivers="logits", value="zero", mlps="frozen"
    ... )
    >>> direct.dims, direct.shape
    (('example', 'writer', 'reader'), (4, 32, 1))
    """
    measure = metric_for(metric, pairs)
    rows = expand(model, pairs, measure)
    runs = MeasuredRuns(model, rows.pairs, base, rows.metric, budget, readout)
    plan = _plan(runs, rows, senders, receivers, paths, value, mlps)
    if store is not None and not rows.plain:
        raise StoreError(
            f"path_effects: the metric {measure.name!r} runs prompts and their answers, which no "
            "store of prompts holds. Leave out store=."
        )
    sweep, _ = _sweep(runs, plan, mlps, store)
    with located(model, runs.prompts, plan.label):
        table = rows.combine(sweep.run(progress=progress, what="paths"))
    for route in plan.routes:
        # Not 0, which would say that the path does nothing.
        table[_absent(route, pairs.side(base)), route.column] = float("nan")
    attrs = pairs.attrs(model) | {
        "kind": "paths", "value": plan.bound.value.describe(), "metric": measure.name, "unit": measure.unit,
        "mlps": mlps, "base": base, "engine": sweep.engine, **answer_attrs(rows, plan.bound.value),
        **name_attrs(value, base=base),
    }  # fmt: skip
    # Routes are in the order of the table's cells: [example, route] is [example,
    # writer, reader] or [example, path].
    shape = (len(pairs), *map(len, plan.coords.values()))
    labels = {"example": np.arange(len(pairs))}
    labels |= {axis: np.asarray(names) for axis, names in plan.coords.items()}
    return effect_array(table.reshape(shape), tuple(labels), labels, name="effect", attrs=attrs)


def explain_paths(
    runs: MeasuredRuns,
    rows: Expansion,
    senders: Nodes | None,
    receivers: Nodes | None,
    paths: str | Sequence[str] | None,
    value: GivenValue | None,
    mlps: str,
) -> CallPlan:
    """What `path_effects` will do and cost."""
    plan = _plan(runs, rows, senders, receivers, paths, value, mlps)
    return CallPlan.of(*_sweep(runs, plan, mlps, None))


@dataclass(frozen=True)
class _Routes:
    """The paths that are patched, each in a run of its own.

    Attributes:
        coords: axis of the result → its labels; routes fill the axes in order.
    """

    routes: list[Route]
    coords: dict[str, list[str]]

    def label(self, column: int) -> str:
        """A path in words, as in "a0.1->logits"."""
        return "->".join(list(product(*self.coords.values()))[column])


@dataclass(frozen=True)
class _PathPlan(_Routes):
    """The routes, and the value bound to the prompts."""

    bound: Bound


def _plan(
    runs: MeasuredRuns,
    rows: Expansion,
    senders: Nodes | None,
    receivers: Nodes | None,
    paths: str | Sequence[str] | None,
    value: GivenValue | None,
    mlps: str,
) -> _PathPlan:
    """The routes with their axes, and the bound value; everything that can be wrong is checked."""
    runs.check()
    if mlps not in MLPS:
        raise UnknownName("mlps", mlps, MLPS)
    shape = Shape.of(runs.model)
    if paths is not None and (senders is not None or receivers is not None):
        raise SiteError("path_effects: give senders and receivers, or whole paths, not both.")
    planned = _grid(shape, senders, receivers) if paths is None else _whole_paths(shape, paths)
    prompts = rows.examples.side(runs.side)
    readers_of_routes = chain.from_iterable(map(_readers, planned.routes))
    # Once for each position: a sweep has thousands of routes and few positions.
    for position in {reader.pos for reader in readers_of_routes}:
        if position is not None and not bool((prompts.at(position) >= 0).any()):
            raise SiteError(
                f"No prompt has the position {position}: the longest has {int(prompts.lengths.max())} tokens."
            )
    rows.examples.check_equal_lengths("Paths need equal lengths within a pair.")
    sent = [sender.site for route in planned.routes for sender in route.senders]
    patched = given_value(value, runs.model, rows.examples, sites=sent, base=runs.side, budget=runs.budget)
    return _PathPlan(planned.routes, planned.coords, bind(runs.model, rows, patched, side=runs.side))


def _whole_paths(shape: Shape, paths: str | Sequence[str]) -> _Routes:
    """The paths that are written out."""
    names = [paths] if isinstance(paths, str) else list(paths)
    if not names:
        raise SiteError("path_effects: paths is empty. Write one as input->a2.2->a5.5<k>->logits.")
    return _Routes([_path(text, shape, column) for column, text in enumerate(names)], {"path": names})


def _grid(shape: Shape, senders: Nodes | None, receivers: Nodes | None) -> _Routes:
    """Every sender into every receiver."""
    sending = _elements(senders_named(senders, shape), "senders")
    sent = []
    for names in sending:
        sent.append(_distinct([writer(name, shape) for name in names]))
    if receivers is None:
        receivers = "logits"
    received = _elements(receivers, "receivers")
    routes = []
    # In this order a column of the table is a cell of [writer, reader].
    for column, (writers, receiver_names) in enumerate(product(sent, received)):
        read = chain.from_iterable(readers(name, shape) for name in receiver_names)
        routes.append(Route(writers, (), _reached(writers, read), column))
    return _Routes(
        routes, {"writer": list(map(" + ".join, sending)), "reader": list(map(" + ".join, received))}
    )


def senders_named(senders: Nodes | None, shape: Shape) -> Nodes:
    """The writers that "heads", "mlps", "all" or None stand for; anything else as it is."""
    known = list(Graph(shape).writers)
    if senders is None or (isinstance(senders, str) and senders == "all"):
        return known
    # An array would be compared with a word element by element.
    if not isinstance(senders, str):
        return senders
    # Names of heads begin with `a`, of MLPs with `m`; `input` with neither.
    if senders == "heads":
        return [name for name in known if name.startswith("a")]
    if senders == "mlps":
        return [name for name in known if name.startswith("m")]
    return senders


def _elements(nodes: Nodes, argument: str) -> list[tuple[str, ...]]:
    """The elements of a sweep, each a tuple of names that go together; `argument` is for the message."""
    listed: list[Any] = list(nodes)
    # A name is one element and not its letters; a tuple of names is one set, a list of names a sweep.
    if isinstance(nodes, str) or (isinstance(nodes, tuple) and all(isinstance(node, str) for node in nodes)):
        listed = [nodes]
    elements = [(element,) if isinstance(element, str) else tuple(element) for element in listed]
    if not elements or not all(elements):
        raise SiteError(
            f"path_effects: {argument} is empty. Name at least one node, as in {argument}=['a9.6'] or "
            f"{argument}='heads'."
        )
    return elements


def _path(text: str, shape: Shape, column: int) -> Route:
    """The route of a path's string form."""
    names = list(map(str.strip, text.split("->")))
    if len(names) < 2 or not all(names):
        raise SiteError(
            f"{text!r} is not a path. Write WRITER->...->READER, as in input->a2.2->a5.5<k>->a9.9<q>->logits."
        )
    senders, last = (writer(names[0], shape),), readers(names[-1], shape)
    middles = [middle(name, shape) for name in names[1:-1]]
    # A node in the middle reads at the end of one arrow and writes at the start of the next.
    written = [senders, *(sent for _, sent in middles)]
    read = [*(into for into, _ in middles), last]
    for i, (sent, into) in enumerate(zip(written, read, strict=True)):
        if not _reached(sent, into):
            raise SiteError(
                f"{text!r}: nothing goes along {names[i]}->{names[i + 1]}, because {names[i]} does not come "
                "before it."
            )
    return Route(senders, tuple(middles), _reached(written[-1], last), column)


def _distinct(writers: Sequence[Writer]) -> tuple[Writer, ...]:
    """Each writer once, and no neuron of an MLP that is set as a whole."""
    whole = {sender.site.layer for sender in writers if sender.is_mlp}
    distinct: dict[Writer, None] = {}  # a dict in place of a set, to keep the order
    for sender in writers:
        # Its MLP writes the counterfactual value already: the neuron's part would be counted twice.
        if sender.site.kind != "mlp_post" or sender.site.layer not in whole:
            distinct[sender] = None
    return tuple(distinct)


def _reached(writers: Sequence[Writer], read: Iterable[Reader]) -> tuple[Reader, ...]:
    """The readers that come after a writer, each once. Where the logits' input is set, no other matters."""
    reached: dict[Reader, None] = {}  # a dict in place of a set, to keep the order
    for reader in read:
        if any(sender.reaches(reader) for sender in writers):
            reached[reader] = None
    end = [reader for reader in reached if reader.port == "logits" and reader.pos is None]
    if end:
        return tuple(end)
    # A reader at one position is part of the same reader at all of them, and would count twice beside it.
    return tuple(reader for reader in reached if reader.pos is None or reader.whole not in reached)


def _readers(route: Route) -> Iterator[Reader]:
    """All readers of a route, in the middle and at its end."""
    for read, _ in route.middles:
        yield from read
    yield from route.receivers


def _absent(route: Route, prompts: Prompts) -> Tensor:
    """[example]: whether an example lacks a position of the route; True where nothing goes along it."""
    if not route.receivers:
        return torch.ones(len(prompts), dtype=torch.bool)
    missing = [~SitePositions.of(reader.site, prompts).has for reader in _readers(route)]
    return torch.stack(missing).any(0)


def _sweep(
    runs: MeasuredRuns, plan: _PathPlan, mlps: str, store: ActivationStore | None
) -> tuple[StaircaseSweep | HookedSweep, str]:
    """The patched paths on the engine that can take them, and why that one."""
    routes, bound, recompute = plan.routes, plan.bound, mlps == "recomputed"

    def bound_to(examples: Sequence[int]) -> Bound:
        """The value for some examples; selected only where it must be, or what it has read would be lost."""
        return bound if len(examples) == len(runs.prompts) else bound.select(examples)

    def elements_of(examples: Sequence[int]) -> list[Element]:
        """The edited runs of some examples; a route along which nothing goes is an edit of nothing."""
        hooked = HookedPaths(runs.model, bound_to(examples), recompute=recompute)
        return [hooked.element(route) if route.receivers else Element(()) for route in routes]

    if store is not None:
        _check_store(store, runs)
    decoder, why = fast_decoder(runs.model, runs.longest)
    if decoder is None:
        return HookedSweep(runs, elements_of, len(routes)), why
    # A path into the logits changes no activation that a block reads: it is measured without a walk.
    walked = [route.receivers for route in routes if not route.into_logits]
    keys = frozenset(reader.site.key for reader in chain.from_iterable(walked))
    # Routes into the same receivers side by side: the fast engine works out their inputs together.
    alike: dict[Any, list[Route]] = defaultdict(list)
    for route in routes:
        alike[route.middles, route.receivers].append(route)
    ordered = tuple(chain.from_iterable(alike.values()))
    patched = PatchedPaths(keys, len(routes), ordered, bind=bound_to, recompute=recompute, store=store)
    return StaircaseSweep(decoder, runs, patched), why


def _check_store(store: ActivationStore, runs: MeasuredRuns) -> None:
    """Raise `StoreError` where the store does not hold the base run of these prompts."""
    check_same_model(store, runs.model, "path_effects")
    for i, prompt_id in enumerate(runs.prompts.ids):
        if store.example(prompt_id) is None:
            raise StoreError(
                f"path_effects: the store does not hold prompt {i} of the {runs.side} run. Pass the store of "
                "the run that is patched."
            )
