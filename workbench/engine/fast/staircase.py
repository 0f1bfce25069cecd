"""The fast exact engine: many edited runs in one walk, each joining where it first differs.

"Exact" means exact in arithmetic: only rounding differs from a run of the whole model. A run *departs* from
the base run and *joins* the walk at one and the same point, seen from its two sides.

* Why joining late is exact: below its first edited layer and before its first edited token a run is the base
  run. Layers are computed in order and attention is causal, so nothing there depends on what is edited. A
  run joins with the base run's stream plus what its first edits add to it (`joining`, `departure`), and
  attends to the base run's keys and values of the tokens before its own.
* Cohorts: the tokens of all runs lie one after the other (`packed_runs`) and pass every matrix together. Only
  attention looks at one cohort at a time: the runs that begin at the same token of the same examples.
* Padding is never computed: a cohort holds prompts of one length, and its packed tokens are real ones only.
* When an edit is skipped: a run whose edits write, bit by bit, what is there already in every example is not
  walked (`joining.LateRuns`), nor is one that provably cannot reach what is read (`cohorts`).
* What bounds memory: the caller decides how many runs walk together (`budget.WalkBudget`), and `tile` bounds
  the widest values inside a block.

Read `StaircaseWalk.run`, then `_block`. Metrics and pairs of prompts are not known here.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.engine.fast.base_run import ALWAYS, BaseRun, Recorder, edited_tokens, pattern_edit
from workbench.engine.fast.cohorts import ATTENTION, MLP, Cohort, Element
from workbench.engine.fast.decoder import Decoder
from workbench.engine.fast.joining import LateRuns
from workbench.engine.fast.packed_runs import CohortRuns, Joining, PackedRuns
from workbench.prompts.prompts import Prompts
from workbench.sites import Key

TILE = 2**25
"""Bytes that the widest values inside a block (neurons, attention scores) take at a time, by default."""


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


def run_base(
    decoder: Decoder,
    prompts: Prompts,
    keys: Iterable[Key] = (),
    *,
    always: Sequence[str] = ALWAYS,
    tile: int = TILE,
) -> BaseRun:
    """The base run of a batch of prompts, with these activations of it kept.

    Args:
        always: kinds that are kept beside them, of every layer; the default are those that edited runs need.
    """
    lengths = prompts.lengths
    groups = []
    for length in sorted(set(lengths.tolist())):
        groups.append(Cohort(0, length, (lengths == length).nonzero().flatten(), None, [0]))
    base = BaseRun(decoder, prompts, {})
    # The base run is a walk of one element without edits, which joins at the embeddings.
    recorder = Recorder(base, set(keys), always=always, one_cohort=len(groups) == 1)
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
        self.packed = PackedRuns(groups)
        # Cohorts differ in their number of tokens, so the streams of all joined runs are packed without
        # padding: [token, d_model], one cohort after the other.
        self.x = torch.empty(0, self.shape.d_model, dtype=self.decoder.dtype, device=self.decoder.device)
        # The base run is there from the embeddings on; nothing joins it.
        self.late: LateRuns | None = None
        if recorder is None:
            self.late = LateRuns(base, elements, self.packed)
        # Only these are edited on the way: edits before a run joins are part of its departure.
        self.edited_later = {key for element in elements for key in element.later(self.shape)}

    @torch.no_grad()
    def run(self) -> list[WalkOutcome]:
        """The streams after the last block, from the first layer that is edited on."""
        last, whole = self.shape.n_layers - 1, self.recorder is not None
        first_layer = 0
        if self.late is not None:
            first_layer = self.late.first_layer
        else:
            self._join([Joining(runs, [0], self._embedded(runs)) for runs in self.packed.cohorts], read=False)
        for layer in range(first_layer, last + 1):
            self._edit("resid_pre", layer, self.x, read=False)
            if self.late is not None:
                self._join(self.late.before_block(layer), read=False)
            self._record("resid_pre", layer, self.x)
            # In the last block only keys and values are needed of all tokens; the rest where logits are read.
            self._block(layer, read=layer == last and not whole)
        if self.late is not None:
            self._join(self.late.before_block(last + 1), read=True)
        self._record("resid_pre", last + 1, self.x)
        outcomes = []
        for runs, stream in zip(self.packed.cohorts, self.packed.split(self.x, read=not whole), strict=True):
            if runs.elements:
                outcomes.append(self._outcome(runs, stream))
        return outcomes

    def _outcome(self, runs: CohortRuns, stream: Tensor) -> WalkOutcome:
        changed = torch.zeros(len(runs.cohort.examples), dtype=torch.bool)
        known = {} if self.late is None else self.late.unchanged
        unchanged = torch.stack([known.get((id(runs), j), changed) for j in runs.elements])
        return WalkOutcome(runs.cohort, runs.elements, runs.view(stream), unchanged)

    def _join(self, joining: Sequence[Joining], *, read: bool) -> None:
        """Let runs walk with the others from here on.

        Args:
            read: whether the stream holds only the tokens that are read.
        """
        self.x = self.packed.append(self.x, joining, read=read)

    def _block(self, layer: int, *, read: bool) -> None:
        """One block of all runs that have joined; new ones inside it join after its attention or MLP."""
        has_mlp = not self.shape.attn_only
        if len(self.x):
            written = self._attention(layer, read=read)
            x = self.x
            if read:
                x = self.packed.at_read(x)
            if has_mlp and self.shape.parallel:
                # A parallel block's MLP reads the stream as it is before attention's output is added.
                written = written + self._mlp(layer, x, read=read)
            self.x = x + written
            self._edit("resid_mid", layer, self.x, read=read)
            self._record("resid_mid", layer, self.x)
        if self.late is not None:
            self._join(self.late.inside_block(layer, ATTENTION, read=read), read=read)
        if has_mlp and not self.shape.parallel and len(self.x):
            self.x = self.x + self._mlp(layer, self.x, read=read)
        if self.late is not None:
            self._join(self.late.inside_block(layer, MLP, read=read), read=read)
        self._edit("resid_post", layer, self.x, read=read)

    def _attention(self, layer: int, *, read: bool) -> Tensor:
        """[token, d_model]: what attention writes."""
        block, shape = self.decoder.layers[layer], self.shape
        normed = block.attn_norm(self.x)
        k = block.k(normed).view(-1, shape.n_kv_heads, shape.d_head)
        v = block.v(normed).view(-1, shape.n_kv_heads, shape.d_head)
        if read:
            normed = self.packed.at_read(normed)
        q = block.q(normed).view(-1, shape.n_heads, shape.d_head)
        del normed  # as wide as the stream: the budget does not count it beside what follows
        for kind, value in (("q", q), ("k", k), ("v", v)):
            self._edit(kind, layer, value, read=read and kind == "q")
            self._record(kind, layer, value)
        z = torch.empty_like(q)
        at_queries = [self.packed.split(value, read=read) for value in (q, z)]
        at_keys = [self.packed.split(value, read=False) for value in (k, v)]
        for runs, *tokens in zip(self.packed.cohorts, *at_queries, *at_keys, strict=True):
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
            visible = visible[:1]  # one mask is enough, the same for every example
        if self.recorder is not None:
            self.recorder.keep(("k rotated", layer), cohort, k[0])
        before = self.base.before(layer, cohort)
        watched = ("pattern", layer) in self.edited_later
        if self.recorder is not None:
            watched = self.recorder.wants(("pattern", layer))
        # Scores, their softmax and their copies for attention, and z: about four tables of that size.
        n_values = queries.numel() * self.shape.n_heads * 4 * (cohort.length + self.shape.d_head)
        if not watched and decoder.fuses(queries.shape[1], cohort.length):
            # Queries and z, keys and values laid out for each head: a table and its copy each.
            n_tokens = 2 * queries.numel() + 4 * len(queries) * cohort.length
            n_values = n_tokens * self.shape.n_heads * self.shape.d_head
        for tile in self._tiles(len(runs.elements), n_values * q.element_size()):
            edit = None
            if watched and self.recorder is not None:
                edit = self.recorder.pattern_watcher(layer, cohort)
            elif watched:
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
        n_values = 3 * self.shape.d_mlp
        if at_once:
            n_values = 0
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

    def _edit(self, kind: str, layer: int, value: Tensor, *, read: bool) -> None:
        """Edit an activation of runs that have joined, in place."""
        if (kind, layer) not in self.edited_later:
            return
        for runs, tokens in zip(self.packed.cohorts, self.packed.split(value, read=read), strict=True):
            for row, j in enumerate(runs.elements):
                edits = self.elements[j].at(kind, layer)
                if edits:
                    run_tokens = runs.view(tokens)[row]
                    edited = edited_tokens(
                        self.base, (kind, layer), edits, runs.cohort, run_tokens, read=read
                    )
                    # In place: what follows is computed from the packed table itself.
                    run_tokens.copy_(edited)

    def _record(self, kind: str, layer: int, value: Tensor | None) -> None:
        """Keep an activation of the base run, where it is wanted."""
        if value is None or self.recorder is None or not self.recorder.wants((kind, layer)):
            return
        for runs, tokens in zip(self.packed.cohorts, self.packed.split(value, read=False), strict=True):
            self._keep((kind, layer), runs.cohort, runs.view(tokens)[0])

    def _keep(self, key: Key, cohort: Cohort, value: Tensor) -> None:
        if self.recorder is not None:
            self.recorder.keep(key, cohort, value)

    def _tiles(self, n: int, bytes_each: int) -> Iterator[slice]:
        """Slices of n things that take so many bytes each; one slice where they take none."""
        step = n
        if bytes_each:
            step = self.tile // bytes_each
        step = max(1, step)
        for first in range(0, n, step):
            yield slice(first, first + step)
