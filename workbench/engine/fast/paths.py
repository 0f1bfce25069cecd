"""Path patching on the fast engine: what senders do to receivers' inputs is worked out edge by edge, the rest is a walk.

Where the logits are the receiver there is nothing left to run: the changed stream is read out as it is.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workbench.engine.bound import Bound
from workbench.engine.fast.base_run import BaseRun, needed
from workbench.engine.fast.cohorts import Cohort, Element
from workbench.engine.fast.direct_edges import DirectEdges, Message
from workbench.engine.fast.readout import Readout
from workbench.engine.fast.staircase import WalkOutcome, run_base
from workbench.engine.fast.sweep import StaircaseSweep
from workbench.engine.nodes import Reader, Writer
from workbench.engine.precomputed import Precomputed
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.sites import Key, Site
from workbench.stores.store import ActivationStore


@dataclass(frozen=True)
class Route:
    """One patched path: writers send, nodes in the middle pass on what comes of it, readers receive.

    Attributes:
        senders: patched together.
        middles: (readers, writers) of each node on the way, in order.
        receivers: whose inputs are set together; those that no sender reaches are left out.
        column: in the table of results.
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
class PathSweep(StaircaseSweep):
    """Patched paths of one side of some pairs.

    Attributes:
        routes: those of the same middle nodes and receivers one after the other, since they are worked out together.
        bind: the senders' other value for a batch of examples.
        recompute: whether MLPs on the way answer.
        store: of the base run, where its activations are known.
    """

    routes: tuple[Route, ...] = ()
    bind: Callable[[Sequence[int]], Bound] = field(kw_only=True)
    recompute: bool = False
    store: ActivationStore | None = None

    def _unedited(self, prompts: Prompts) -> BaseRun:
        if self.store is not None:
            return BaseRun(self.decoder, prompts, Stored(self, prompts))
        return run_base(self.decoder, prompts, needed(self.keys) | self._looked_at, tile=self._tile)

    @property
    def _looked_at(self) -> set[Key]:
        """The activations of the base run that edges start from."""
        keys = {each.site.key for route in self.routes for each in route.senders}
        for route in self.routes:
            for read, written in route.middles:
                keys |= {each.site.key for each in written}
                keys |= {(port, reader.layer) for reader in read for port in "qkv" if reader.port in "qkv"}
        if self.recompute:
            keys |= {("mlp_out", layer) for layer in range(self.decoder.shape.n_layers)}
        return {key for key in keys if key[0] != "resid_pre"}

    def _planned(self, examples: Sequence[int]) -> Iterator[Sequence[Element]]:
        bound = self.bind(examples)
        for routes in self._groups(len(examples), into_logits=False):
            # No table is needed to know where a run joins; the start is only where the tables would begin.
            firsts = self._firsts(bound, routes)
            yield _elements(routes, firsts, [{}] * len(routes), bound, start=_start(firsts, bound))

    def _work(
        self, base: BaseRun, examples: Sequence[int]
    ) -> Iterator[tuple[Sequence[Element], Sequence[int]]]:
        bound = self.bind(examples)
        for routes in self._groups(len(examples), into_logits=False):
            yield self._with_inputs_set(base, bound, routes), [route.column for route in routes]

    def _outcomes(
        self, base: BaseRun, pairs: PromptPairs, examples: Sequence[int], readout: Readout
    ) -> Iterator[list[WalkOutcome]]:
        bound = self.bind(examples)
        for routes in self._groups(len(examples), into_logits=True):
            yield [self._read_at_once(base, bound, routes, readout)]
        yield from super()._outcomes(base, pairs, examples, readout)

    @torch.no_grad()
    def _read_at_once(
        self, base: BaseRun, bound: Bound, routes: Sequence[Route], readout: Readout
    ) -> WalkOutcome:
        """Routes into the logits: the changed stream, to be read out as it is."""
        lengths, read = base.prompts.lengths, readout.read
        n, longest = len(lengths), int(lengths.max())
        # Attention in the middle of a path looks at every position.
        every = read is None or any(route.middles for route in routes)
        places = torch.arange(longest).expand(n, -1) if every or read is None else read[:, None]
        hops = self._hops(base, bound, places)
        (end,) = {reader for route in routes for reader in route.receivers if reader.port == "logits"}
        message, still = self._message(hops, routes)
        stream = hops.only_at(end, dict(hops.arriving(message, [end]))[end.whole])
        if every and read is not None:
            stream = stream[:, torch.arange(n), read.to(stream.device)][:, :, None]
        before = (
            hops.at(end.site.key)
            if read is None
            else base.whole(end.site.key)[torch.arange(n), read][:, None]
        )
        never = torch.stack(self._firsts(bound, routes)) >= lengths
        same = (stream == before).flatten(2).all(2).cpu() | still | never
        cohort = Cohort(0, longest, torch.arange(n), read)
        return WalkOutcome(cohort, [route.column for route in routes], stream, same)

    @torch.no_grad()
    def _with_inputs_set(self, base: BaseRun, bound: Bound, routes: Sequence[Route]) -> list[Element]:
        """The edited runs that have their receivers' inputs set."""
        firsts = self._firsts(bound, routes)
        # Attention in the middle of a path looks at every position.
        start = 0 if any(route.middles for route in routes) else _start(firsts, bound)
        # Routes that differ in their receivers alone send the same.
        sent = {route.senders: route for route in routes}
        rows = [list(sent).index(route.senders) for route in routes]
        readers = list(dict.fromkeys(reader for route in routes for reader in route.receivers))
        longest = bound.prompts.tokens.shape[1]
        hops = self._hops(base, bound, torch.arange(start, longest).expand(len(bound.prompts), -1))
        message, still = self._message(hops, list(sent.values()))
        arriving = dict(hops.arriving(message, readers))
        tables = [
            {reader.site: arriving[reader.whole][row] for reader in route.receivers}
            for route, row in zip(routes, rows, strict=True)
        ]
        firsts = [
            first.where(~still[row], bound.prompts.lengths) for first, row in zip(firsts, rows, strict=True)
        ]
        return _elements(routes, firsts, tables, bound, start=start)

    def _message(self, hops: DirectEdges, routes: Sequence[Route]) -> tuple[Message, Tensor]:
        """What arrives after the nodes in the middle, and [run, example] where nothing was sent at all."""
        message = hops.sent([route.senders for route in routes])
        still = hops.still(message)
        for read, written in routes[0].middles:
            message = hops.through(message, read, written)
        return message, still

    def _firsts(self, bound: Bound, routes: Sequence[Route]) -> list[Tensor]:
        """[example] of each route: the first token that it can change."""
        sent = [frozenset(each.site.key for each in route.senders) for route in routes]
        known = {
            keys: torch.stack([bound.first_change(Site(*key)) for key in keys]).amin(0) for keys in set(sent)
        }
        return [known[keys] for keys in sent]

    def _hops(self, base: BaseRun, bound: Bound, places: Tensor) -> DirectEdges:
        return DirectEdges(base, bound, recompute=self.recompute, places=places, tile=self._tile)

    def _groups(self, n: int, *, into_logits: bool) -> Iterator[list[Route]]:
        """Routes that are worked out together: same nodes in the middle, and as many as the budget has room for."""
        shape, longest = self.decoder.shape, int(self.runs.prompts.lengths.max())
        together: list[Route] = []
        readers: set[Reader] = set()
        for route in self.routes:
            if route.into_logits != into_logits or not route.receivers:
                continue
            more = readers | set(route.receivers)
            values = 4 * shape.d_model + sum(
                shape.d_head if reader.port in "qkv" else shape.d_model for reader in more
            )
            tokens = n * (
                1 if into_logits and not route.middles and self.runs.metric.positions == "END" else longest
            )
            room = max(1, self.runs.memory // 4 // (tokens * values * self.decoder.embed.element_size()))
            other = together and (
                together[0].middles != route.middles
                or (into_logits and together[0].receivers != route.receivers)
            )
            if together and (other or len(together) >= room):
                yield together
                together, readers = [], set()
            together.append(route)
            readers |= set(route.receivers)
        if together:
            yield together


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


class Stored(dict[Key, Tensor]):
    """Activations of the base run of a batch, read from a store when they are asked for."""

    def __init__(self, sweep: PathSweep, prompts: Prompts) -> None:
        super().__init__()
        self.store, self.prompts, self.decoder = sweep.store, prompts, sweep.decoder

    def __missing__(self, key: Key) -> Tensor:
        kind, layer = key
        last = self.decoder.shape.n_layers - 1
        if key == ("resid_pre", last + 1):
            self[key] = self._read(("resid_post", last))
        elif kind == "resid_mid" and layer is not None:
            self[key] = self["resid_pre", layer] + self["attn_out", layer]
        elif kind == "k rotated" and layer is not None:
            k = self["k", layer]
            self[key] = self.decoder.heads(k, layer, "k", torch.arange(k.shape[1], device=k.device))
        else:
            self[key] = self._read(key)
        return self[key]

    def _read(self, key: Key) -> Tensor:
        assert self.store is not None
        rows = [self.store.example(prompt_id) or 0 for prompt_id in self.prompts.ids]
        table = self.store[key].padded(rows, length=self.prompts.tokens.shape[1])
        return table.to(self.decoder.device, self.decoder.dtype)
