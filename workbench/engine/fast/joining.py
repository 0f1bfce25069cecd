"""Edited runs on the point of joining a walk: when each joins, with which stream, and which need not.

Read `LateRuns.inside_block`, then `_wait`, which leaves out runs whose edits write what is there already.
What a run's first edits add to the stream is worked out by `departure`; the walk itself is `staircase`'s.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workbench.engine.bound import Bound
from workbench.engine.fast.base_run import BaseRun, tokens_of
from workbench.engine.fast.cohorts import ATTENTION, BEFORE, KINDS_OF, MLP, Element
from workbench.engine.fast.departure import Departure, units_depart
from workbench.engine.fast.packed_runs import CohortRuns, Joining, PackedRuns
from workbench.sites import Key, Site


class LateRuns:
    """The edited runs of a walk that have not joined yet, by the moment where they first differ.

    Attributes:
        unchanged: (id of the cohort's runs, index of the element) → [example]: whether its edits wrote, bit
            by bit, what was there.
    """

    def __init__(self, base: BaseRun, elements: Sequence[Element], packed: PackedRuns) -> None:
        self.base, self.elements, self.shape = base, elements, base.decoder.shape
        self.to_join: dict[tuple[int, int], list[tuple[CohortRuns, int]]] = {}
        for runs in packed.cohorts:
            for j in runs.cohort.elements:
                self.to_join.setdefault(elements[j].joins(self.shape), []).append((runs, j))
        self.waiting: list[Joining] = []
        self.unchanged: dict[tuple[int, int], Tensor] = {}

    @property
    def first_layer(self) -> int:
        """The first layer in which a run joins: below it the walk has nothing to compute."""
        return min(self.to_join)[0]

    def _joining(self) -> list[Joining]:
        """The runs that join now; none of them waits any longer."""
        joining, self.waiting = self.waiting, []
        return joining

    def before_block(self, layer: int) -> list[Joining]:
        """Runs whose stream before a block is edited; before layer n_layers means after the last block."""
        read = layer == self.shape.n_layers
        for runs, j in self.to_join.pop((layer, BEFORE), []):
            element = self.elements[j]
            # The stream after a block is that before the next one; the two have a name each.
            names = (("resid_post", layer - 1), ("resid_pre", layer))
            first = [key for key in dict.fromkeys(element.keys) if key[1] is None or key in names]
            departure = Departure(self.base, element, runs.cohort, first, read=read)
            self._wait(runs, j, departure, lambda departure=departure: departure.stream(layer))
        return self._joining()

    def inside_block(self, layer: int, half: int, *, read: bool) -> list[Joining]:
        """Runs whose first edits are inside this block: in its attention or in its MLP."""
        # A parallel block adds attention and MLP to the stream together, so its runs join after both.
        after_block = half == MLP or self.shape.parallel
        before, kinds = ("resid_mid", layer), KINDS_OF[half]
        if after_block:
            before, kinds = ("resid_post", layer), KINDS_OF[MLP] + KINDS_OF[ATTENTION]
        alike: dict[tuple[CohortRuns, Site, Bound], list[int]] = {}
        for runs, j in self.to_join.pop((layer, half), []):
            element = self.elements[j]
            if element.layer_edit is not None:
                alike.setdefault((runs, *element.layer_edit), []).append(j)
                continue
            first = [key for key in dict.fromkeys(element.keys) if key[1] == layer and key[0] in kinds]
            departure = Departure(self.base, element, runs.cohort, first, read=read)

            # A function: a run whose edits write nothing new needs no stream.
            def stream(departure: Departure = departure) -> Tensor:
                """[example, pos, d_model] where the run joins."""
                base_stream, change = departure.tokens(self.base.whole(before)), departure.attention(layer)
                if after_block:
                    return base_stream + (change + departure.mlp(layer))
                return departure.mid(layer, base_stream + change, first=isinstance(change, float))

            self._wait(runs, j, departure, stream)
        for (runs, site, bound), elements in alike.items():
            self._depart_together(runs, (site, bound), elements, before, read=read)
        return self._joining()

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
        """Put a run among those that wait to join, unless its edits write what is there already."""
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
        examples = runs.cohort.examples.to(self.base.decoder.device)
        edited = self.base.edited(key, self.elements[j].at(*key))
        return not torch.equal(edited[examples], self.base.whole(key)[examples])
