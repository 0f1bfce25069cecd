"""The fast exact engine: many edited runs in one walk through the layers, each joining where it begins to differ.

Below its first edited layer and before its first edited token a run is the base run and costs nothing. The tokens
of all runs lie one after the other and pass every matrix together; only attention looks at one cohort at a time.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workbench.engine.bound import Bound
from workbench.engine.fast.base_run import (
    ALWAYS,
    BaseRun,
    Departure,
    at,
    edited_rows,
    pattern_edit,
    units_depart,
)
from workbench.engine.fast.cohorts import ATTENTION, BEFORE, KINDS_OF, MLP, Cohort, Element
from workbench.engine.fast.decoder import Decoder, EditPattern
from workbench.prompts.prompts import Prompts
from workbench.sites import Key, Site

TILE = 2**25
"""Bytes that the widest intermediate values (MLP neurons, attention scores) take at a time, if no other number is given."""


@dataclass(eq=False)
class CohortRuns:
    """The runs of a cohort that are on their way; their tokens [run, example, pos] lie together."""

    cohort: Cohort
    elements: list[int] = field(default_factory=list)

    def tokens(self, *, read: bool) -> int:
        return len(self.elements) * (self.cohort.n_read if read else self.cohort.n_tokens)

    def view(self, flat: Tensor) -> Tensor:
        """[run, example, pos, ...] of its packed tokens."""
        runs, n = len(self.elements), len(self.cohort.examples)
        return flat.view(runs, n, len(flat) // (runs * n), *flat.shape[1:])


@dataclass(frozen=True, eq=False)
class WalkOutcome:
    """What came out of a walk for one cohort.

    Attributes:
        elements: the runs that were walked to the end; those missing wrote nothing new.
        stream: [run, example, pos, d_model] after the last block, at the positions that are read.
        same: [run, example]: edits that wrote, bit by bit, what was there.
    """

    cohort: Cohort
    elements: list[int]
    stream: Tensor
    same: Tensor


def run_base(decoder: Decoder, prompts: Prompts, keys: Iterable[Key] = (), *, tile: int = TILE) -> BaseRun:
    """Run a batch of prompts once, and keep these activations of it."""
    lengths = prompts.lengths
    groups = [
        Cohort(0, n, (lengths == n).nonzero().flatten(), None, [0]) for n in sorted(set(lengths.tolist()))
    ]
    base = BaseRun(decoder, prompts, {})
    StaircaseWalk(base, [Element(())], groups, keep=set(keys), tile=tile).run()
    return base


class StaircaseWalk:
    """One walk of some elements through the layers, or, with `keep`, of the base run itself into `base`."""

    def __init__(
        self,
        base: BaseRun,
        elements: Sequence[Element],
        groups: Sequence[Cohort],
        *,
        keep: set[Key] | None = None,
        tile: int = TILE,
    ) -> None:
        self.tile = tile
        self.base, self.elements, self.decoder, self.keep = base, elements, base.decoder, keep
        self.shape = base.decoder.shape
        self.rows = [CohortRuns(group) for group in groups]
        self.x = torch.empty(0, self.shape.d_model, dtype=self.decoder.dtype, device=self.decoder.device)
        self.joining: dict[tuple[int, int], list[tuple[CohortRuns, int]]] = {}
        for rows in self.rows:
            for j in rows.cohort.elements:
                moment = (0, BEFORE) if keep is not None else elements[j].joins(self.shape)
                self.joining.setdefault(moment, []).append((rows, j))
        self.waiting: list[tuple[CohortRuns, list[int], Tensor]] = []
        self.same: dict[tuple[int, int], Tensor] = {}
        self.edited = {key for element in elements for key in element.later(self.shape)}

    @torch.no_grad()
    def run(self) -> list[WalkOutcome]:
        """Walk from the first layer that is edited to the last."""
        last, whole = self.shape.n_layers - 1, self.keep is not None
        for layer in range(min(self.joining)[0], last + 1):
            self._edit("resid_pre", layer, self.x, read=False)
            self._enter(layer)
            self._record("resid_pre", layer, self.x)
            self._block(layer, read=layer == last and not whole)
        self._enter(last + 1)
        self._record("resid_pre", last + 1, self.x)
        parts = zip(self.rows, self._split(self.x, read=not whole), strict=True)
        return [self._outcome(rows, part) for rows, part in parts if rows.elements]

    def _outcome(self, rows: CohortRuns, part: Tensor) -> WalkOutcome:
        n = len(rows.cohort.examples)
        never = torch.zeros(n, dtype=torch.bool)
        same = torch.stack([self.same.get((id(rows), j), never) for j in rows.elements])
        return WalkOutcome(rows.cohort, rows.elements, rows.view(part), same)

    # A block.

    def _block(self, layer: int, *, read: bool) -> None:
        has_mlp = not self.shape.attn_only
        if len(self.x):
            written = self._attention(layer, read=read)
            x = self._at_read(self.x) if read else self.x
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
        k = block.k(normed).view(-1, shape.n_kv_heads, shape.d_head)
        v = block.v(normed).view(-1, shape.n_kv_heads, shape.d_head)
        q = block.q(self._at_read(normed) if read else normed).view(-1, shape.n_heads, shape.d_head)
        del normed
        for kind, value in (("q", q), ("k", k), ("v", v)):
            self._edit(kind, layer, value, read=read and kind == "q")
            self._record(kind, layer, value)
        z = torch.empty_like(q)
        split = [
            *(self._split(value, read=read) for value in (q, z)),
            *(self._split(value, read=False) for value in (k, v)),
        ]
        for rows, *parts in zip(self.rows, *split, strict=True):
            if rows.elements:
                self._attend(layer, rows, *(rows.view(part) for part in parts), read=read)
        del q, k, v
        self._edit("z", layer, z, read=read)
        self._record("z", layer, z)
        written = block.o(z.flatten(1))
        self._edit("attn_out", layer, written, read=read)
        self._record("attn_out", layer, written)
        return written

    def _attend(
        self, layer: int, rows: CohortRuns, q: Tensor, z: Tensor, k: Tensor, v: Tensor, *, read: bool
    ) -> None:
        """Write z of a cohort's runs, several runs at a time."""
        cohort, decoder = rows.cohort, self.decoder
        queries, keys = (cohort.positions(read=which).to(q.device) for which in (read, False))
        q, k = decoder.heads(q, layer, "q", queries), decoder.heads(k, layer, "k", keys)
        visible = keys[:, None, :] <= queries[:, :, None]
        visible = visible if read and cohort.read is not None else visible[:1]
        if self.keep is not None:
            self._keep(("k rotated", layer), rows, k[0])
        before = self.base.before(layer, cohort)
        n_values = queries.numel() * self.shape.n_heads * 4 * (cohort.length + self.shape.d_head)
        for part in self._tiles(len(rows.elements), n_values * q.element_size()):
            elements = [self.elements[j] for j in rows.elements[part]]
            edit = self._watch_pattern(layer, rows) or pattern_edit(
                self.base, layer, cohort, elements, read=read
            )
            z[part] = decoder.attend(layer, q[part], k[part], v[part], before, visible, edit)

    def _mlp(self, layer: int, stream: Tensor, *, read: bool) -> Tensor:
        """[token, d_model]: what the MLP writes, a tile of tokens at a time unless its neurons are edited or kept."""
        block = self.decoder.layers[layer]
        assert block.mlp_norm is not None
        assert block.mlp_out is not None
        watched = {("mlp_pre", layer), ("mlp_post", layer)} & (self.edited | (self.keep or set()))
        written = torch.empty_like(stream)
        n_values = 0 if watched else 3 * self.shape.d_mlp
        for part in self._tiles(len(stream), n_values * stream.element_size()):
            pre, linear = block.mlp_pre(block.mlp_norm(stream[part]))
            self._edit("mlp_pre", layer, pre, read=read)
            self._record("mlp_pre", layer, pre)
            self._record("mlp_linear", layer, linear)
            post = block.mlp_post(pre, linear)
            self._edit("mlp_post", layer, post, read=read)
            self._record("mlp_post", layer, post)
            written[part] = block.mlp_out(post)
        self._edit("mlp_out", layer, written, read=read)
        self._record("mlp_out", layer, written)
        return written

    # How runs join.

    def _enter(self, layer: int) -> None:
        """Runs whose stream before a block is edited; before layer n_layers means after the last block."""
        joining, read = self.joining.pop((layer, BEFORE), []), layer == self.shape.n_layers
        for rows, j in joining:
            if self.keep is not None:
                self.waiting.append((rows, [j], self._embedded(rows)))
                continue
            element = self.elements[j]
            here = (("resid_post", layer - 1), ("resid_pre", layer))
            first = [key for key in dict.fromkeys(element.keys) if key[1] is None or key in here]
            run = Departure(self.base, element, rows.cohort, first, read=read)
            self._wait(rows, j, run, lambda run=run: run.stream(layer))
        self._append(read=read and self.keep is None)

    def _depart(self, layer: int, half: int, *, read: bool) -> None:
        """Runs whose first edits are inside this block: in its attention or in its MLP."""
        after = half == MLP or self.shape.parallel
        before = ("resid_post", layer) if after else ("resid_mid", layer)
        alike: dict[tuple[CohortRuns, Site, Bound], list[int]] = {}
        for rows, j in self.joining.pop((layer, half), []):
            element = self.elements[j]
            layer_edit = element.layer_edit
            if layer_edit is not None:
                alike.setdefault((rows, *layer_edit), []).append(j)
                continue
            kinds = KINDS_OF[MLP] + KINDS_OF[ATTENTION] if after else KINDS_OF[half]
            first = [key for key in dict.fromkeys(element.keys) if key[1] == layer and key[0] in kinds]
            run = Departure(self.base, element, rows.cohort, first, read=read)

            def stream(run: Departure = run) -> Tensor:
                change = run.attention(layer) + (run.mlp(layer) if after else 0.0)
                value = run.rows(self.base.whole(before)) + change
                return value if after else run.mid(layer, value, first=isinstance(change, float))

            self._wait(rows, j, run, stream)
        for (rows, site, bound), elements in alike.items():
            sites = [site for j in elements for site, _ in self.elements[j].edits]
            change, same = units_depart(self.base, (site, bound), sites, rows.cohort, read=read)
            differ = (~same.all(1)).nonzero().flatten().tolist()
            elements = [elements[k] for k in differ]
            self.same |= {(id(rows), j): same[k] for j, k in zip(elements, differ, strict=True)}
            change = change if len(elements) == len(same) else change[differ]
            self.waiting.append(
                (rows, elements, change.add_(at(self.base.whole(before), rows.cohort, read=read)))
            )
        self._append(read=read)

    def _wait(self, rows: CohortRuns, j: int, run: Departure, stream: Callable[[], Tensor]) -> None:
        """Let a run in with the others, unless its edits write what is there already."""
        later = set(self.elements[j].keys) - set(run.edited)
        same = run.same.cpu()
        if bool(same.all()) and not any(self._changes(rows, j, key) for key in later):
            return
        if not later:
            self.same[id(rows), j] = same
        self.waiting.append((rows, [j], stream()))

    def _changes(self, rows: CohortRuns, j: int, key: Key) -> bool:
        """Whether edits of an activation write anything new into the base run."""
        chosen = rows.cohort.examples.to(self.decoder.device)
        return not torch.equal(
            self.base.edited(key, self.elements[j].at(*key))[chosen], self.base.whole(key)[chosen]
        )

    def _append(self, *, read: bool) -> None:
        """Put the waiting runs behind those of their cohorts."""
        if not self.waiting:
            return
        pieces = [[part] for part in self._split(self.x, read=read)]
        where = {id(rows): mine for rows, mine in zip(self.rows, pieces, strict=True)}
        for rows, elements, value in self.waiting:
            where[id(rows)].append(value.reshape(-1, value.shape[-1]))
            rows.elements.extend(elements)
        self.x = torch.cat([piece for mine in pieces for piece in mine])
        self.waiting = []

    def _embedded(self, rows: CohortRuns) -> Tensor:
        """[example, pos, d_model]: the stream before the first block."""
        decoder, cohort = self.decoder, rows.cohort
        tokens = self.base.prompts.tokens[cohort.examples, : cohort.length].to(decoder.device)
        x = decoder.embed[tokens]
        self._keep(("embed", None), rows, x)
        if decoder.pos_embed is not None:
            positions = decoder.pos_embed[: cohort.length].expand_as(x)
            self._keep(("pos_embed", None), rows, positions)
            x = x + positions
        return x

    # Packed tokens: those of one cohort after the other.

    def _split(self, flat: Tensor, *, read: bool) -> Sequence[Tensor]:
        return flat.split([rows.tokens(read=read) for rows in self.rows])

    def _at_read(self, flat: Tensor) -> Tensor:
        """The tokens that are read, of all tokens."""
        parts = []
        for rows, part in zip(self.rows, self._split(flat, read=False), strict=True):
            read = rows.cohort.read
            if rows.elements and read is not None:
                places = (read - rows.cohort.start).to(flat.device)
                part = rows.view(part)[:, torch.arange(len(places), device=flat.device), places].flatten(0, 1)
            parts.append(part)
        return torch.cat(parts)

    def _edit(self, kind: str, layer: int, value: Tensor, *, read: bool) -> None:
        """Edit an activation of runs that are on their way, in place."""
        if (kind, layer) not in self.edited:
            return
        for rows, part in zip(self.rows, self._split(value, read=read), strict=True):
            for number, j in enumerate(rows.elements):
                edits = self.elements[j].at(kind, layer)
                if edits:
                    mine = rows.view(part)[number]
                    mine.copy_(edited_rows(self.base, (kind, layer), edits, rows.cohort, mine, read=read))

    # What the base run leaves behind.

    def _record(self, kind: str, layer: int, value: Tensor | None) -> None:
        if value is None or not self._wanted((kind, layer)):
            return
        for rows, part in zip(self.rows, self._split(value, read=False), strict=True):
            self._keep((kind, layer), rows, rows.view(part)[0])

    def _wanted(self, key: Key) -> bool:
        return self.keep is not None and (key in self.keep or key[0] in ALWAYS)

    def _keep(self, key: Key, rows: CohortRuns, value: Tensor) -> None:
        """Keep [example, pos, ...] (`pattern`: [example, head, query, key]) of a cohort in a table of the whole batch."""
        if not self._wanted(key):
            return
        n, longest = len(self.base.prompts), int(self.base.prompts.lengths.max())
        if len(self.rows) == 1:
            self.base.kept[key] = value
            return
        length = rows.cohort.length
        square = key[0] == "pattern"
        if key not in self.base.kept:
            shape = (n, value.shape[1], longest, longest) if square else (n, longest, *value.shape[2:])
            self.base.kept[key] = value.new_zeros(shape)
        table, chosen = self.base.kept[key], rows.cohort.examples.to(value.device)
        if square:
            table[chosen, :, :length, :length] = value
        else:
            table[chosen, :length] = value

    def _watch_pattern(self, layer: int, rows: CohortRuns) -> EditPattern | None:
        """What keeps the patterns [run, example, head, query, key] of the base run, where they are wanted."""
        if self.keep is None:
            return None

        def watch(pattern: Tensor) -> Tensor:
            self._keep(("pattern", layer), rows, pattern[0])
            return pattern

        return watch

    def _tiles(self, n: int, bytes_each: int) -> Iterator[slice]:
        """Slices of n things that take so many bytes each; one slice where they take none."""
        step = max(1, self.tile // bytes_each) if bytes_each else max(1, n)
        for first in range(0, n, step):
            yield slice(first, first + step)
