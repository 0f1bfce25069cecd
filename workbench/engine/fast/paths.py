"""Path patching on the fast engine: senders change receivers' inputs along direct edges; the rest is a walk.

Read `Route` first, then `PatchedPaths.groups`. Where the logits are the receiver there is nothing left to
run: the changed stream is read out as it is. How batches and walks are cut to the budget is not known here.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.engine.bound import Bound
from workbench.engine.fast.base_run import BaseRun, needed
from workbench.engine.fast.budget import WalkBudget
from workbench.engine.fast.cohorts import Cohort, Element
from workbench.engine.fast.decoder import Decoder
from workbench.engine.fast.direct_edges import DirectEdges, Message
from workbench.engine.fast.readout import Readout
from workbench.engine.fast.staircase import WalkOutcome, run_base
from workbench.engine.fast.sweep import ElementGroup
from workbench.engine.nodes import Reader, Writer
from workbench.engine.precomputed import Precomputed
from workbench.prompts.prompts import Prompts
from workbench.sites import Key, Site
from workbench.stores.store import ActivationStore


@dataclass(frozen=True)
class Route:
    """One patched path: senders are patched, nodes in the middle pass the change on, receivers read it.

    Attributes:
        senders: patched together.
        middles: (readers, writers) of each node on the way, in order.
        receivers: whose inputs are set together; those that no sender reaches are left out.
        column: its column in the table of results.
    """

    senders: tuple[Writer, ...]
    middles: tuple[tuple[tuple[Reader, ...], tuple[Writer, ...]], ...]
    receivers: tuple[Reader, ...]
    column: int

    @property
    def into_logits(self) -> bool:
        """Whether the logits' input is all that is set, so that nothing is left to run."""
        return len(self.receivers) == 1 and self.receivers[0].port == "logits"


@dataclass(frozen=True)
class PatchedPaths:
    """Patched paths of one side of some pairs, for a `StaircaseSweep`.

    Attributes:
        keys: the activations that receivers compute, which a walk sets.
        n_elements: how many paths there are.
        routes: those with the same middle nodes and receivers one after the other, since they are worked out
            together.
        bind: the senders' patched value for a batch of examples.
        recompute: whether MLPs on the way respond to what reaches them.
        store: of the base run, where its activations are known.
    """

    keys: frozenset[Key]
    n_elements: int
    routes: tuple[Route, ...]
    bind: Callable[[Sequence[int]], Bound]
    recompute: bool = False
    store: ActivationStore | None = None

    def base_run(self, prompts: Prompts, budget: WalkBudget) -> BaseRun:
        """The base run of a batch, with the activations that edges start from, or the store's."""
        if self.store is not None:
            return BaseRun(budget.decoder, prompts, StoredActivations(self.store, prompts, budget.decoder))
        keys = needed(self.keys) | self._edge_ends(budget.decoder.shape.n_layers)
        return run_base(budget.decoder, prompts, keys, tile=budget.tile)

    def _edge_ends(self, n_layers: int) -> set[Key]:
        """The activations of the base run that direct edges start from or end at."""
        keys = {writer.site.key for route in self.routes for writer in route.senders}
        for route in self.routes:
            for readers, writers in route.middles:
                keys |= {writer.site.key for writer in writers}
                for reader in readers:
                    # A head in the middle is run with its other inputs as they are, so all three are kept.
                    if reader.port in "qkv":
                        keys |= {(port, reader.layer) for port in "qkv"}
        if self.recompute:
            keys |= {("mlp_out", layer) for layer in range(n_layers)}
        return {key for key in keys if key[0] != "resid_pre"}

    def planned(self, examples: Sequence[int], budget: WalkBudget) -> Iterator[Sequence[Element]]:
        """The edited runs of `groups` before anything is run."""
        bound = self.bind(examples)
        for routes in self._together(len(examples), budget, into_logits=False):
            # No table is needed to know where a run joins; the start is only where the tables would begin.
            firsts = self._firsts(bound, routes)
            yield _elements(routes, firsts, [{}] * len(routes), bound, start=_start(firsts, bound))

    def groups(self, base: BaseRun, examples: Sequence[int], budget: WalkBudget) -> Iterator[ElementGroup]:
        """Edited runs that set their receivers' inputs."""
        bound = self.bind(examples)
        for routes in self._together(len(examples), budget, into_logits=False):
            elements = self._with_inputs_set(base, bound, routes, budget.tile)
            yield ElementGroup(elements, [route.column for route in routes])

    def without_walk(
        self, base: BaseRun, examples: Sequence[int], readout: Readout, budget: WalkBudget
    ) -> Iterator[WalkOutcome]:
        """Paths into the logits: the changed stream, to be read out as it is."""
        bound = self.bind(examples)
        for routes in self._together(len(examples), budget, into_logits=True):
            yield self._into_logits(base, bound, routes, readout.read, budget.tile)

    @torch.no_grad()
    def _into_logits(
        self, base: BaseRun, bound: Bound, routes: Sequence[Route], read: Tensor | None, tile: int
    ) -> WalkOutcome:
        lengths = base.prompts.lengths
        n, longest = len(lengths), int(lengths.max())
        # Attention in the middle of a path looks at every position, so all of them are worked out.
        everywhere = read is None or any(route.middles for route in routes)
        places = torch.arange(longest).expand(n, -1)
        if not everywhere and read is not None:
            places = read[:, None]
        edges = self._edges(base, bound, places, tile)
        # Routes are grouped by their receiver here, so that one readout serves them all.
        (end,) = {reader for route in routes for reader in route.receivers if reader.port == "logits"}
        sent = self._sent(edges, routes)
        arriving = dict(edges.arriving(sent.message, [end]))
        stream = edges.only_at(end, arriving[end.whole])
        if everywhere and read is not None:
            stream = stream[:, torch.arange(n), read.to(stream.device)][:, :, None]
        before = edges.at(end.site.key)
        if read is not None:
            before = base.whole(end.site.key)[torch.arange(n), read][:, None]
        # A sender that lacks its position or sits after the prompt changes nothing, whatever padding holds.
        never = torch.stack(self._firsts(bound, routes)) >= lengths
        unchanged = (stream == before).flatten(2).all(2).cpu() | sent.nothing | never
        cohort = Cohort(0, longest, torch.arange(n), read)
        return WalkOutcome(cohort, [route.column for route in routes], stream, unchanged)

    @torch.no_grad()
    def _with_inputs_set(
        self, base: BaseRun, bound: Bound, routes: Sequence[Route], tile: int
    ) -> list[Element]:
        firsts = self._firsts(bound, routes)
        # Attention in the middle of a path looks at every position, so the tables begin at the first.
        start = 0
        if not any(route.middles for route in routes):
            start = _start(firsts, bound)
        # Routes that differ in their receivers alone send the same: each set of senders is worked out once.
        by_senders = {route.senders: route for route in routes}
        rows = [list(by_senders).index(route.senders) for route in routes]
        readers = list(dict.fromkeys(reader for route in routes for reader in route.receivers))
        longest = bound.prompts.tokens.shape[1]
        edges = self._edges(base, bound, torch.arange(start, longest).expand(len(bound.prompts), -1), tile)
        sent = self._sent(edges, list(by_senders.values()))
        arriving = dict(edges.arriving(sent.message, readers))
        tables = []
        for route, row in zip(routes, rows, strict=True):
            tables.append({reader.site: arriving[reader.whole][row] for reader in route.receivers})
        # Where nothing is sent the run cannot change: its first change is put after the prompt.
        lengths = bound.prompts.lengths
        firsts = [first.where(~sent.nothing[row], lengths) for first, row in zip(firsts, rows, strict=True)]
        return _elements(routes, firsts, tables, bound, start=start)

    def _sent(self, edges: DirectEdges, routes: Sequence[Route]) -> "_Sent":
        """What arrives after the middle nodes that these routes share."""
        message = edges.sent([route.senders for route in routes])
        nothing = edges.unchanged(message)
        for readers, writers in routes[0].middles:
            message = edges.through(message, readers, writers)
        return _Sent(message, nothing)

    def _firsts(self, bound: Bound, routes: Sequence[Route]) -> list[Tensor]:
        """[example] of each route: the first token that it can change."""
        sender_keys = [frozenset(writer.site.key for writer in route.senders) for route in routes]
        first_changes = {}
        for keys in set(sender_keys):
            first_changes[keys] = torch.stack([bound.first_change(Site(*key)) for key in keys]).amin(0)
        return [first_changes[keys] for keys in sender_keys]

    def _edges(self, base: BaseRun, bound: Bound, places: Tensor, tile: int) -> DirectEdges:
        return DirectEdges(base, bound, recompute=self.recompute, places=places, tile=tile)

    def _together(self, n: int, budget: WalkBudget, *, into_logits: bool) -> Iterator[list[Route]]:
        """Routes that are worked out together: same middle nodes, and as many as the budget has room for.

        Args:
            n: examples of the batch.
        """
        shape, runs = budget.decoder.shape, budget.runs
        only_end = into_logits and runs.metric.positions == "END"
        together: list[Route] = []
        readers: set[Reader] = set()
        for route in self.routes:
            if route.into_logits != into_logits or not route.receivers:
                continue
            n_values = 4 * shape.d_model
            for reader in readers | set(route.receivers):
                n_values += shape.d_head if reader.port in "qkv" else shape.d_model
            n_tokens = n
            if route.middles or not only_end:
                n_tokens = n * int(runs.prompts.lengths.max())
            bytes_each = n_tokens * n_values * budget.decoder.embed.element_size()
            # A quarter of the budget: the base run may take half, and tiles lie beside both.
            room = max(1, runs.memory // 4 // bytes_each)
            if together and (len(together) >= room or not _share_work(together[0], route, into_logits)):
                yield together
                together, readers = [], set()
            together.append(route)
            readers |= set(route.receivers)
        if together:
            yield together


@dataclass(frozen=True, eq=False)
class _Sent:
    """What arrives after the middle nodes, and [run, example] where the senders sent nothing at all."""

    message: Message
    nothing: Tensor


def _share_work(first: Route, route: Route, into_logits: bool) -> bool:
    """Whether two routes have the same nodes in the middle and, into the logits, the same receiver."""
    return first.middles == route.middles and (not into_logits or first.receivers == route.receivers)


def _start(firsts: Sequence[Tensor], bound: Bound) -> int:
    """The first token that any of the routes changes; the last one where none changes anything."""
    return min(int(torch.stack(list(firsts)).amin()), bound.prompts.tokens.shape[1] - 1)


def _elements(
    routes: Sequence[Route],
    firsts: Sequence[Tensor],
    tables: Sequence[dict[Site, Tensor]],
    bound: Bound,
    *,
    start: int,
) -> list[Element]:
    """A run of each route: its receivers' inputs as in its tables, from `start` on."""
    elements = []
    for route, first, table in zip(routes, firsts, tables, strict=True):
        inputs = Precomputed(bound.prompts, table, start=start, first=first)
        elements.append(Element(tuple((reader.site, inputs) for reader in route.receivers)))
    return elements


class StoredActivations(dict[Key, Tensor]):
    """Activations of the base run of a batch, read from a store when they are asked for.

    A dict, so that a `BaseRun` need not know where its activations come from.
    """

    def __init__(self, store: ActivationStore, prompts: Prompts, decoder: Decoder) -> None:
        super().__init__()
        self.store, self.prompts, self.decoder = store, prompts, decoder

    def __missing__(self, key: Key) -> Tensor:
        kind, layer = key
        last = self.decoder.shape.n_layers - 1
        if key == ("resid_pre", last + 1):
            self[key] = self._read(("resid_post", last))
        elif kind == "resid_mid" and layer is not None:
            # Derived, since stores do not keep them by default.
            self[key] = self["resid_pre", layer] + self["attn_out", layer]
        elif kind == "k rotated" and layer is not None:
            k = self["k", layer]
            self[key] = self.decoder.heads(k, layer, "k", torch.arange(k.shape[1], device=k.device))
        else:
            self[key] = self._read(key)
        return self[key]

    def _read(self, key: Key) -> Tensor:
        """[example, pos, ...]: an activation of the prompts, padded with zeros."""
        rows = [self.store.example(prompt_id) or 0 for prompt_id in self.prompts.ids]
        activation = self.store[key].padded(rows, length=self.prompts.tokens.shape[1])
        return activation.to(self.decoder.device, self.decoder.dtype)
