"""The fast exact engine: many edited runs in one walk, each joining where it first differs.

Below its first edited layer and before its first edited token a run is the base run and costs nothing: what a
    block
computes there depends on nothing that was edited (layers are computed in order, and attention is causal).
Joining late is therefore exact, not an approximation. A run joins with the base run's stream plus what its
first edits add to it (`departure`), and attends to the base run's keys and values of the tokens before its
own.

The tokens of all runs lie one after the other and pass every matrix together; only attention looks at one
cohort at a time: the runs that begin at the same token of the same examples (`cohorts`). Padding is never
    computed: a cohort holds
prompts of one length, and its packed tokens are real ones only.

Read `StaircaseWalk.run`, then `_block`, then `_enter` and `_depart`, where runs join. Memory is bounded by
the caller, who decides how many runs walk together (`budget.WalkBudget`), and by `tile` for the widest values
inside a block. Metrics and pairs of prompts are not known here.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workbench.engine.bound import Bound
from workbench.engine.fast.base_run import BaseRun, Recorder, edited_tokens, pattern_edit, tokens_of
from workbench.engine.fast.cohorts import ATTENTION, BEFORE, KINDS_OF, MLP, Cohort, Element
from workbench.engine.fast.decoder import Decoder
from workbench.engine.fast.departure import Departure, units_depart
from workbench.prompts.prompts import Prompts
from workbench.sites import Key, Site

TILE = 2**25
"""Bytes that the widest values inside a block (neurons, attention scores) take at a time, by default."""


@dataclass(eq=False)
class CohortRuns:
    """The runs of a cohort that have joined; their tokens [run, example, pos] lie together."""

    cohort: Cohort
    elements: list[int] = field(default_factory=list)

    def n_tokens(self, *, read: bool) -> int:
        """Tokens of all its runs, or those of them that are read."""
        return len(self.elements) * (self.cohort.n_read if read else self.cohort.n_tokens)

    def view(self, flat: Tensor) -> Tensor:
        """[run, example, pos, ...] of its packed tokens."""
        n_runs, n = len(self.elements), len(self.cohort.examples)
        return flat.view(n_runs, n, len(flat) // (n_runs * n), *flat.shape[1:])


@dataclass(frozen=True, eq=False)
class Joining:
    """Runs of a cohort that are about to join, with their stream [..., d_model] from there on."""

    runs: CohortRuns
    elements: list[int]
    stream: Tensor


@dataclass(frozen=True, eq=False)
class WalkOutcome:
    """What came out of a walk for one cohort.

    Attributes:
        elements: the runs that were walked to the end; those missing wrote nothing new.
        stream: [run, example, pos, d_model] after the last block, at the positions that are read.
        unchanged: [run, example]: edits that wrote, bit by bit, what was there.
    """

    cohort: Cohort
    elements: list[int]
    stream: Tensor
    unchanged: Tensor


def run_base(decoder: Decoder, prompts: Prompts, keys: Iterable[Key] = (), *, tile: int = TILE) -> BaseRun:
    """The base run of a batch of prompts, with these activations of it kept."""
    lengths = prompts.lengths
    groups = []
    for length in sorted(set(lengths.tolist())):
        groups.append(Cohort(0, length, (lengths == length).nonzero().flatten(), None, [0]))
    base = BaseRun(decoder, prompts, {})
    # The base run is a walk of one element without edits, which joins at the embeddings.
    recorder = Recorder(base, set(keys), one_cohort=len(groups) == 1)
    StaircaseWalk(base, [Element(())], groups, recorder=recorder, tile=tile).run()
    return base


class StaircaseWalk:
    """One walk of some elements through the layers, or, with `recorder`, of the base run itself.

    Args:
        groups: the cohorts whose elements walk.
        tile: bytes that the widest intermediate values may take at a time.
    """

    def __init__(
        self,
        base: BaseRun,
        elements: Sequence[Element],
        groups: Sequence[Cohort],
        *,
        recorder: Recorder | None = None,
        tile: int = TILE,
    ) -> None:
        self.tile = tile
        self.base, self.elements, self.decoder, self.recorder = base, elements, base.decoder, recorder
        self.shape = base.decoder.shape
        self.cohorts = [CohortRuns(group) for group in groups]
        # The streams of all runs that have joined, packed: [token, d_model], one cohort after the other.
        self.x = torch.empty(0, self.shape.d_model, dtype=self.decoder.dtype, device=self.decoder.device)
        self.to_join: dict[tuple[int, int], list[tuple[CohortRuns, int]]] = {}
        for runs in self.cohorts:
            for j in runs.cohort.elements:
                moment = (0, BEFORE) if recorder is not None else elements[j].joins(self.shape)
                self.to_join.setdefault(moment, []).append((runs, j))
        self.waiting: list[Joining] = []
        self.unchanged: dict[tuple[int, int], Tensor] = {}
        # Activations that some run edits after it has joined; edits before that are part of its departure.
        self.edited_later = {key for element in elements for key in element.later(self.shape)}

    @torch.no_grad()
    def run(self) -> list[WalkOutcome]:
        """The streams after the last block, from the first layer that is edited on."""
        last, whole = self.shape.n_layers - 1, self.recorder is not None
        for layer in range(min(self.to_join)[0], last + 1):
            self._edit("resid_pre", layer, self.x, read=False)
            self._enter(layer)
            self._record("resid_pre", layer, self.x)
            # In the last block only keys and values are needed of all tokens; the rest where logits are read.
            self._block(layer, read=layer == last and not whole)
        self._enter(last + 1)
        self._record("resid_pre", last + 1, self.x)
        outcomes = []
        for runs, stream in zip(self.cohorts, self._split(self.x, read=not whole), strict=True):
            if runs.elements:
                outcomes.append(self._outcome(runs, stream))
        return outcomes

    def _outcome(self, runs: CohortRuns, stream: Tensor) -> WalkOutcome:
        changed = torch.zeros(len(runs.cohort.examples), dtype=torch.bool)
        unchanged = torch.stack([self.unchanged.get((id(runs), j), changed) for j in runs.elements])
        return WalkOutcome(runs.cohort, runs.elements, runs.view(stream), unchanged)

    # A block.

    def _block(self, layer: int, *, read: bool) -> None:
        """One block of all runs that have joined; new ones inside it join behind its attention or MLP."""
        has_mlp = not self.shape.attn_only
        if len(self.x):
            written = self._attention(layer, read=read)
            x = self.x
            if read:
                x = self._at_read(x)
            if has_mlp and self.shape.parallel:
                written = written + self._mlp(layer, x, read=read)
            self.x = x + written
            self._edit("resid_mid", layer, self.x, read=read)
            self._record("resid_mid", layer, self.x)
        self._depart(layer, ATTENTION, read=read)
        if has_mlp and not self.shape.parallel and len(self.x):
            self.x = self.x + self._mlp(layer, self.x, read=read)
        self._depart(layer, MLP, read=read)
        self._edit("resid_post", layer, self.x, read=read)

    def _attention(self, layer: int, *, read: bool) -> Tensor:
        """[token, d_model]: what attention writes."""
        block, shape = self.decoder.layers[layer], self.shape
        normed = block.attn_norm(self.x)
        # [token, d_model] -> [token, head, d_head]
        k = block.k(normed).view(-1, shape.n_kv_heads, shape.d_head)
        v = block.v(normed).view(-1, shape.n_kv_heads, shape.d_head)
        if read:
            normed = self._at_read(normed)
        q = block.q(normed).view(-1, shape.n_heads, shape.d_head)
        del normed  # as wide as the stream: the budget does not count it beside what follows
        for kind, value in (("q", q), ("k", k), ("v", v)):
            self._edit(kind, layer, value, read=read and kind == "q")
            self._record(kind, layer, value)
        z = torch.empty_like(q)
        at_queries = [self._split(value, read=read) for value in (q, z)]
        at_keys = [self._split(value, read=False) for value in (k, v)]
        for runs, *tokens in zip(self.cohorts, *at_queries, *at_keys, strict=True):
            if runs.elements:
                self._attend(layer, runs, *(runs.view(value) for value in tokens), read=read)
        del q, k, v
        self._edit("z", layer, z, read=read)
        self._record("z", layer, z)
        written = block.o(z.flatten(1))
        self._edit("attn_out", layer, written, read=read)
        self._record("attn_out", layer, written)
        return written

    def _attend(
        self, layer: int, runs: CohortRuns, q: Tensor, z: Tensor, k: Tensor, v: Tensor, *, read: bool
    ) -> None:
        """Write z of a cohort's runs, several runs at a time; all are [run, example, pos, head, d_head]."""
        cohort, decoder = runs.cohort, self.decoder
        queries, keys = (cohort.positions(read=at_read).to(q.device) for at_read in (read, False))
        q, k = decoder.heads(q, layer, "q", queries), decoder.heads(k, layer, "k", keys)
        visible = keys[:, None, :] <= queries[:, :, None]
        if not read or cohort.read is None:
            visible = visible[:1]  # the same for every example
        if self.recorder is not None:
            self.recorder.keep(("k rotated", layer), cohort, k[0])
        before = self.base.before(layer, cohort)
        # Scores, their softmax and their copies for attention, and z: about four tables of that size.
        n_values = queries.numel() * self.shape.n_heads * 4 * (cohort.length + self.shape.d_head)
        for tile in self._tiles(len(runs.elements), n_values * q.element_size()):
            if self.recorder is not None:
                edit = self.recorder.pattern_watcher(layer, cohort)
            else:
                elements = [self.elements[j] for j in runs.elements[tile]]
                edit = pattern_edit(self.base, layer, cohort, elements, read=read)
            z[tile] = decoder.attend(layer, q[tile], k[tile], v[tile], before, visible, edit)

    def _mlp(self, layer: int, stream: Tensor, *, read: bool) -> Tensor:
        """[token, d_model]: what the MLP writes, tile by tile unless its neurons are edited or kept."""
        block = self.decoder.layers[layer]
        assert block.mlp_norm is not None
        assert block.mlp_out is not None
        # Edits and records need all tokens of a cohort at once, which a tile would cut.
        watched = self.edited_later
        if self.recorder is not None:
            watched = watched | self.recorder.keys
        at_once = {("mlp_pre", layer), ("mlp_post", layer)} & watched
        written = torch.empty_like(stream)
        n_values = 0 if at_once else 3 * self.shape.d_mlp
        for tile in self._tiles(len(stream), n_values * stream.element_size()):
            pre, linear = block.mlp_pre(block.mlp_norm(stream[tile]))
            self._edit("mlp_pre", layer, pre, read=read)
            self._record("mlp_pre", layer, pre)
            self._record("mlp_linear", layer, linear)
            post = block.mlp_post(pre, linear)
            self._edit("mlp_post", layer, post, read=read)
            self._record("mlp_post", layer, post)
            written[tile] = block.mlp_out(post)
        self._edit("mlp_out", layer, written, read=read)
        self._record("mlp_out", layer, written)
        return written

    # How runs join.

    def _enter(self, layer: int) -> None:
        """Runs whose stream before a block is edited; before layer n_layers means after the last block."""
        read = layer == self.shape.n_layers
        for runs, j in self.to_join.pop((layer, BEFORE), []):
            if self.recorder is not None:
                self.waiting.append(Joining(runs, [j], self._embedded(runs)))
                continue
            element = self.elements[j]
            # The stream after a block is that before the next one; the two have a name each.
            names = (("resid_post", layer - 1), ("resid_pre", layer))
            first = [key for key in dict.fromkeys(element.keys) if key[1] is None or key in names]
            departure = Departure(self.base, element, runs.cohort, first, read=read)
            self._wait(runs, j, departure, lambda departure=departure: departure.stream(layer))
        self._append(read=read and self.recorder is None)

    def _depart(self, layer: int, half: int, *, read: bool) -> None:
        """Runs whose first edits are inside this block: in its attention or in its MLP."""
        # A parallel block adds attention and MLP to the stream together, so its runs join behind both.
        after_block = half == MLP or self.shape.parallel
        before = ("resid_post", layer) if after_block else ("resid_mid", layer)
        kinds = KINDS_OF[MLP] + KINDS_OF[ATTENTION] if after_block else KINDS_OF[half]
        alike: dict[tuple[CohortRuns, Site, Bound], list[int]] = {}
        for runs, j in self.to_join.pop((layer, half), []):
            element = self.elements[j]
            if element.layer_edit is not None:
                alike.setdefault((runs, *element.layer_edit), []).append(j)
                continue
            first = [key for key in dict.fromkeys(element.keys) if key[1] == layer and key[0] in kinds]
            departure = Departure(self.base, element, runs.cohort, first, read=read)

            def stream(departure: Departure = departure) -> Tensor:
                """[example, pos, d_model] where the run joins."""
                base_stream, change = departure.tokens(self.base.whole(before)), departure.attention(layer)
                if after_block:
                    return base_stream + (change + departure.mlp(layer))
                return departure.mid(layer, base_stream + change, first=isinstance(change, float))

            self._wait(runs, j, departure, stream)
        for (runs, site, bound), elements in alike.items():
            self._depart_together(runs, (site, bound), elements, before, read=read)
        self._append(read=read)

    def _depart_together(
        self,
        runs: CohortRuns,
        layer_edit: tuple[Site, Bound],
        elements: list[int],
        before: Key,
        *,
        read: bool,
    ) -> None:
        """Runs that each edit one head or neuron: one edit of the whole layer shows all their values."""
        sites = [site for j in elements for site, _ in self.elements[j].edits]
        change, unchanged = units_depart(self.base, layer_edit, sites, runs.cohort, read=read)
        # A run that writes in every example what is there is not walked: its effect is exactly 0.
        differ = (~unchanged.all(1)).nonzero().flatten().tolist()
        elements = [elements[row] for row in differ]
        for j, row in zip(elements, differ, strict=True):
            self.unchanged[id(runs), j] = unchanged[row]
        if len(elements) < len(unchanged):
            change = change[differ]
        # In place: `change` [run, example, pos, d_model] is the largest table here, and nobody else's.
        stream = change.add_(tokens_of(self.base.whole(before), runs.cohort, read=read))
        self.waiting.append(Joining(runs, elements, stream))

    def _wait(self, runs: CohortRuns, j: int, departure: Departure, stream: Callable[[], Tensor]) -> None:
        """Let a run in with the others, unless its edits write what is there already."""
        later = set(self.elements[j].keys) - set(departure.edited)
        unchanged = departure.unchanged.cpu()
        # While nothing has changed, a later edit meets the base run's activation: what it would write can be
        # seen now.
        if bool(unchanged.all()) and not any(self._writes_anew(runs, j, key) for key in later):
            return
        if not later:
            self.unchanged[id(runs), j] = unchanged
        self.waiting.append(Joining(runs, [j], stream()))

    def _writes_anew(self, runs: CohortRuns, j: int, key: Key) -> bool:
        """Whether edits of an activation write anything new into the base run."""
        examples = runs.cohort.examples.to(self.decoder.device)
        edited = self.base.edited(key, self.elements[j].at(*key))
        return not torch.equal(edited[examples], self.base.whole(key)[examples])

    def _append(self, *, read: bool) -> None:
        """Put the waiting runs behind those of their cohorts."""
        if not self.waiting:
            return
        tokens: dict[int, list[Tensor]] = {}
        for runs, joined in zip(self.cohorts, self._split(self.x, read=read), strict=True):
            tokens[id(runs)] = [joined]
        for joining in self.waiting:
            stream = joining.stream
            tokens[id(joining.runs)].append(stream.reshape(-1, stream.shape[-1]))
            joining.runs.elements.extend(joining.elements)
        self.x = torch.cat([stream for streams in tokens.values() for stream in streams])
        self.waiting = []

    def _embedded(self, runs: CohortRuns) -> Tensor:
        """[example, pos, d_model]: the stream before the first block."""
        decoder, cohort = self.decoder, runs.cohort
        tokens = self.base.prompts.tokens[cohort.examples, : cohort.length].to(decoder.device)
        x = decoder.embed[tokens]
        self._keep(("embed", None), cohort, x)
        if decoder.pos_embed is not None:
            positions = decoder.pos_embed[: cohort.length].expand_as(x)
            self._keep(("pos_embed", None), cohort, positions)
            x = x + positions
        return x

    # Packed tokens: those of one cohort after the other.

    def _split(self, flat: Tensor, *, read: bool) -> Sequence[Tensor]:
        """The tokens of each cohort."""
        return flat.split([runs.n_tokens(read=read) for runs in self.cohorts])

    def _at_read(self, flat: Tensor) -> Tensor:
        """The tokens that are read, of all tokens."""
        at_read = []
        for runs, tokens in zip(self.cohorts, self._split(flat, read=False), strict=True):
            read = runs.cohort.read
            if runs.elements and read is not None:
                places = (read - runs.cohort.start).to(flat.device)
                rows = torch.arange(len(places), device=flat.device)
                tokens = runs.view(tokens)[:, rows, places].flatten(0, 1)  # [run * example, ...]
            at_read.append(tokens)
        return torch.cat(at_read)

    def _edit(self, kind: str, layer: int, value: Tensor, *, read: bool) -> None:
        """Edit an activation of runs that have joined, in place."""
        if (kind, layer) not in self.edited_later:
            return
        for runs, tokens in zip(self.cohorts, self._split(value, read=read), strict=True):
            for row, j in enumerate(runs.elements):
                edits = self.elements[j].at(kind, layer)
                if edits:
                    run_tokens = runs.view(tokens)[row]
                    edited = edited_tokens(
                        self.base, (kind, layer), edits, runs.cohort, run_tokens, read=read
                    )
                    run_tokens.copy_(edited)

    def _record(self, kind: str, layer: int, value: Tensor | None) -> None:
        """Keep an activation of the base run, where it is wanted."""
        if value is None or self.recorder is None or not self.recorder.wants((kind, layer)):
            return
        for runs, tokens in zip(self.cohorts, self._split(value, read=False), strict=True):
            self._keep((kind, layer), runs.cohort, runs.view(tokens)[0])

    def _keep(self, key: Key, cohort: Cohort, value: Tensor) -> None:
        if self.recorder is not None:
            self.recorder.keep(key, cohort, value)

    def _tiles(self, n: int, bytes_each: int) -> Iterator[slice]:
        """Slices of n things that take so many bytes each; one slice where they take none."""
        step = max(1, self.tile // bytes_each if bytes_each else n)
        for first in range(0, n, step):
            yield slice(first, first + step)
