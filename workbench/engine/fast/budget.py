"""How edited runs are cut to the memory budget: examples into batches, and the runs of a batch into walks.

Read `WalkBudget`. It counts numbers per token and must not know what a run writes or what a metric means.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from workbench.engine.fast.base_run import needed
from workbench.engine.fast.cohorts import Cohort, Element, cohorts
from workbench.engine.fast.decoder import Decoder
from workbench.engine.fast.staircase import TILE
from workbench.engine.runs import MeasuredRuns
from workbench.prompts.prompts import Prompts
from workbench.sites import Key


@dataclass(frozen=True)
class WalkBudget:
    """The working memory of a sweep, shared out between the base run, the walk and its tiles.

    The least that can run is one example in the base run and one edited run in the walk: where these alone
    take more than the budget, they run nevertheless and exceed it.

    Attributes:
        keys: the activations that are edited.
    """

    decoder: Decoder
    runs: MeasuredRuns
    keys: frozenset[Key]

    @property
    def tile(self) -> int:
        """Bytes that neurons, attention scores or logits, the widest values, take at a time."""
        shape, item = self.decoder.shape, self.decoder.embed.element_size()
        # On a CPU a tile that the cache holds (4 MiB) is faster, unless it is small beside the weights that
        # every tile reads again.
        cached = TILE
        if self.decoder.device.type == "cpu":
            cached = max(2**22, 4 * shape.d_model * shape.d_mlp * item)
        return max(2**16, min(TILE, cached, self.runs.memory // 8))

    @property
    def kept(self) -> int:
        """Bytes of one token of the base run that are kept for the edited ones."""
        shape, layers = self.decoder.shape, self.decoder.shape.n_layers
        # What edited runs need of every token: two streams a layer and the last one to depart from, keys and
        # values of every layer to attend to, and what the edits themselves start from.
        n_values = (2 * layers + 1) * shape.d_model + 2 * layers * shape.n_kv_heads * shape.d_head
        n_values += sum(self._width(kind) for kind, _ in needed(self.keys))
        return n_values * self.decoder.embed.element_size()

    @property
    def beside(self) -> int:
        """Bytes of one token beside the walk: an activation that is being edited, and the metric's logits."""
        item, metric, vocab = self.decoder.embed.element_size(), self.runs.metric, self.decoder.shape.d_vocab
        editing = 3 * max((self._width(kind) for kind, _ in self.keys), default=0) * item
        places = metric.positions_read(self.runs.prompts)
        share = 1.0
        if places is not None:
            share = places[0].numel() / int(self.runs.prompts.lengths.max())
        # The base run's logits, an edited copy, and the metric's own float32 copies. A metric that judges
        # examples one by one is given tiles; if it reads few rows of the vocabulary, even its base logits are
        # next to nothing.
        n_copies = 5
        if metric.rowwise:
            n_copies = 0
            if metric.rows(self.runs.pairs) is None:
                n_copies = 2
        return editing + int(n_copies * share * vocab * max(item, 4))

    @property
    def walking(self) -> int:
        """Bytes of one token of an edited run on its way: streams, queries, keys, values and z."""
        shape = self.decoder.shape
        # A walked token holds 3 d_model (the stream, what a block writes, and their sum) and 2 d_head of each
        # head: q and z of its own, k and v of a shared one.
        n_values = 3 * shape.d_model + 2 * shape.d_head * (shape.n_heads + shape.n_kv_heads)
        return n_values * self.decoder.embed.element_size()

    def base_bytes(self, prompts: Prompts) -> int:
        """Bytes of the base run of a batch, and of what lies beside the walk."""
        return (self.kept + self.beside) * int(prompts.lengths.sum())

    def batches(self) -> list[range]:
        """Examples whose base run takes at most half of the budget.

        Raises:
            MetricError: there are several batches, and the metric compares examples.
        """
        lengths = self.runs.prompts.lengths
        n, per_example = len(lengths), (self.kept + self.beside + self.walking) * int(lengths.max())
        # Half, so that the other half is left for edited runs. One example at least, even where it takes more
        # than the budget: smaller pieces do not exist.
        size = max(1, min(n, self.runs.memory // 2 // per_example))
        batches = [range(first, min(first + size, n)) for first in range(0, n, size)]
        self.runs.check_slices(len(batches))
        return batches

    def walks(
        self, elements: Sequence[Element], prompts: Prompts, read: Tensor | None
    ) -> Iterator[list[Cohort]]:
        """Cohorts that walk together: runs that join in neighbouring layers, as many as the budget holds.

        Args:
            read: [example]: the position whose logits are read, or None when all are.
        """
        shape = self.decoder.shape
        groups = cohorts(elements, prompts, shape, read)
        tokens: dict[int, int] = {}
        for group in groups:
            for j in group.elements:
                tokens[j] = tokens.get(j, 0) + group.n_tokens
        # Two tiles: the values of one, and what is computed from them.
        room = self.runs.memory - self.base_bytes(prompts) - 2 * self.tile
        most = max(1, room // self.walking)
        together: set[int] = set()
        n_tokens = 0
        # In the order of joining, so that a walk of late runs begins late.
        for j in sorted(tokens, key=lambda j: elements[j].joins(shape)):
            if together and n_tokens + tokens[j] > most:
                yield _only(groups, together)
                together, n_tokens = set(), 0
            together.add(j)
            n_tokens += tokens[j]
        if together:
            yield _only(groups, together)

    def _width(self, kind: str) -> int:
        """Numbers of one token in an activation."""
        shape, longest = self.decoder.shape, int(self.runs.prompts.lengths.max())
        heads, kv_heads = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
        widths = {"q": heads, "z": heads, "k": kv_heads, "v": kv_heads, "pattern": shape.n_heads * longest}
        widths |= dict.fromkeys(("mlp_pre", "mlp_linear", "mlp_post"), shape.d_mlp)
        return widths.get(kind, shape.d_model)


def _only(groups: Sequence[Cohort], chosen: set[int]) -> list[Cohort]:
    """The cohorts with these elements alone."""
    kept = []
    for group in groups:
        elements = [j for j in group.elements if j in chosen]
        if elements:
            kept.append(replace(group, elements=elements))
    return kept
