"""Edge scores from gradients: (change of a writer) x (gradient at a reader), summed over batches.

`score_edges` calls `gradient_scores`. A method says at which points gradients are taken; how they are
computed is the engine's matter (`engine.gradients`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from workbench.circuit.graph import Graph
from workbench.discovery.score_table import ScoreTable
from workbench.engine.circuits import CircuitBatch, Circuits
from workbench.engine.gradients.atp_star import atp_star_table
from workbench.engine.gradients.edge_gradients import EdgeTable
from workbench.engine.gradients.reader_gradients import ReaderMaps
from workbench.engine.gradients.runs import GradientRuns, groups, shares
from workbench.engine.gradients.writer_differences import WriterDifferences
from workbench.engine.hooked.forward import check_gradients_pass
from workbench.engine.memory import memory_budget, rows_per_forward
from workbench.errors import ModelError, warn
from workbench.models.load import model_device
from workbench.progress import progress_bar

INTEGRATED = ("eap-ig-inputs", "eap-ig-activations", "ig-activations")
"""Methods that take gradients at `steps` points between the patched value and the clean one."""
_POINTS = {"eap": [1.0], "atp-star": [1.0], "clean-corrupt": [1.0, 0.0]}
"""Where the others take theirs: 1 is the clean run, 0 the run with every writer at the patched value."""


def gradient_scores(
    circuits: Circuits,
    method: str,
    *,
    steps: int,
    grid: str,
    keep: Sequence[str],
    budget: int | None,
    progress: bool,
) -> ScoreTable:
    """The scores of a gradient method, means over prompts or of each, and sums over positions or at each.

    Args:
        method, steps, grid, keep, budget: as in `score_edges`.

    Raises:
        MetricError: a metric whose gradient says nothing there.
        ModelError: atp-star on a model that only hooks can run.
    """
    _check_method(circuits, method)
    check_gradients_pass(circuits.model)
    points = _POINTS.get(method) or shares(steps, grid)
    model, pairs = circuits.model, circuits.pairs
    bytes_per_number = next(model.parameters()).element_size()
    # A quarter of the budget holds the changes of writers; the rest is for the runs themselves.
    room = memory_budget(model_device(model), budget) // 4 // bytes_per_number
    scoring = _GradientScoring(circuits, method, points, tuple(keep), room)
    for_one_token = 6 * circuits.graph.shape.d_model * (circuits.graph.shape.n_heads + 2) * len(points)
    rows = rows_per_forward(model, circuits.longest, budget=budget, gradients=True, extra=for_one_token)
    totals, blocks, passes = None, 1, 0
    n_rows = len(circuits.expansion.pairs)
    bar = progress_bar(n_rows, f"edges ({method})", "example", shown=progress)
    with bar, circuits.located():
        # A batch is run at all points at once, so it holds so many times fewer prompts.
        for batch in circuits.batches(max(1, rows // len(points))):
            batch_scores = scoring.batch(batch)
            totals = scoring.added(totals, batch_scores.values, batch)
            blocks, passes = max(blocks, batch_scores.blocks), batch_scores.passes
            bar.update(len(batch.examples))
    assert totals is not None
    if "example" not in keep:
        totals /= len(pairs)
    elif not circuits.expansion.plain:
        # Summed without weights: gradients have the weights of their rows already.
        rows_of_answers, totals = totals, np.zeros((len(pairs), *totals.shape[1:]))
        np.add.at(totals, circuits.expansion.owner.numpy(), rows_of_answers)
    if "pos" in keep:
        # Rows of answers may be longer than what is patched of them.
        totals = totals[:, : int(circuits.reach.max())]
    facts = {
        "engine": "hooks" if circuits.decoder is None else circuits.decoder.family, "forwards": passes,
        "source_blocks": blocks, "budget": 4 * room * bytes_per_number,
    }  # fmt: skip
    if method in INTEGRATED:
        facts |= {"steps": len(points), "grid": grid}
    if method == "atp-star":
        facts["edges_of_gradient_0"] = _warn_of_zeros(totals, circuits.graph, scoring.changed)
    return ScoreTable(totals, facts)


def _warn_of_zeros(totals: np.ndarray, graph: Graph, changed: np.ndarray) -> int:
    """How many edges have score 0 though their writer changes; a warning where there are any.

    Args:
        totals: [example or 1, pos or class or 1, writer, reader].
        changed: bool [writer], whether anything that it writes differs from its patched value.
    """
    carries = graph.whole.exists & changed[:, None]
    n_zero = int((carries & (totals == 0).all((0, 1))).sum())
    if n_zero:
        warn(
            f"atp-star: {n_zero:,} of {int(carries.sum()):,} edges whose writers change have a score of exactly 0: "
            "no gradient comes back to their readers. That is right where nothing reads them on, and wrong for "
            "a path through a saturated softmax or closed neurons of a later block. method='exact' tells."
        )
    return n_zero


def _check_method(circuits: Circuits, method: str) -> None:
    """Raise `MetricError` or `ModelError` where a method cannot be used with this metric or model."""
    if method in ("eap", "atp-star"):
        circuits.metric.check_attributable()
    if method == "atp-star" and circuits.decoder is None:
        raise ModelError(
            "atp-star recomputes attention from queries and keys, which the fast engine alone knows; "
            f"{circuits.why}. Use eap-ig-inputs or exact."
        )


@dataclass(frozen=True, eq=False)
class _BatchScores:
    """The scores of one batch.

    Attributes:
        values: sums over the batch [example or 1, pos or 1, writer, reader].
        blocks: into how many blocks the writers were cut.
        passes: how many passes were made.
    """

    values: Tensor
    blocks: int
    passes: int


class _GradientScoring:
    """One method on the batches of `circuits`."""

    def __init__(
        self, circuits: Circuits, method: str, points: Sequence[float], keep: tuple[str, ...], room: int
    ) -> None:
        self.circuits, self.graph, self.method = circuits, circuits.graph, method
        self.points, self.keep, self.room = points, keep, room
        # [writer]: whether anything that it writes differs from its patched value, in the batches so far.
        self.changed = np.zeros(len(self.graph.writers), dtype=bool)
        self.maps = ReaderMaps.all_of(circuits.model, circuits.decoder)

    def batch(self, batch: CircuitBatch) -> _BatchScores:
        """The scores of one batch."""
        model = self.circuits.model
        # Before the first changed token nothing differs. atp-star recomputes the softmax of whole rows.
        start = 0 if batch.walk is None or self.method == "atp-star" else batch.walk.start
        sources = WriterDifferences.of(batch, self.graph, model, start=start, room=self.room)
        by_example = "example" in self.keep
        runs = GradientRuns(model, self.graph, batch, self.circuits.metric, sources, start, by_example)
        if self.method == "atp-star":
            values, passes = atp_star_table(runs, self.maps, self.keep, room=self.room)
            for writers, change in sources.upto(len(self.graph.writers)):
                self.changed[writers] |= change.flatten(1).any(1).cpu().numpy()
            return _BatchScores(values, sources.n_blocks, passes)
        table = EdgeTable(batch, self.graph, self.keep, start=start)
        if self.method in ("eap-ig-activations", "ig-activations"):
            passes = self._add_groups(table, runs)
        else:
            table.add(
                runs.sources, runs.at(self.points), self.maps, room=self.room, share=1 / len(self.points)
            )
            passes = len(self.points)
        return _BatchScores(table.values, sources.n_blocks, passes)

    def _add_groups(self, table: EdgeTable, runs: GradientRuns) -> int:
        """Add the runs in which one group of writers moves at a time; how many passes these were."""
        moved = list(groups(runs.sources, self.graph))
        # The published code lets every edge count in the run of every group: a mean over groups as well.
        every_edge_counts = self.method == "eap-ig-activations"
        share = 1 / len(self.points)
        if every_edge_counts:
            share /= len(moved)
        for key, writers in moved:
            # None stands for the writers of every group, which the published code counts in each run.
            counted = None if every_edge_counts else writers
            run = runs.group(key, self.points)
            table.add(runs.sources, run, self.maps, room=self.room, writers=counted, share=share)
        return len(moved) * len(self.points)

    def added(self, totals: np.ndarray | None, values: Tensor, batch: CircuitBatch) -> np.ndarray:
        """The running totals [example or 1, pos or 1, writer, reader] with those of one more batch."""
        if totals is None:
            n_rows = len(self.circuits.expansion.pairs) if "example" in self.keep else 1
            n_positions = self.circuits.longest if "pos" in self.keep else values.shape[1]
            totals = np.zeros((n_rows, n_positions, *values.shape[2:]))
        rows = batch.examples if "example" in self.keep else slice(None)
        # A batch of shorter prompts has fewer positions.
        totals[rows, : values.shape[1]] += values.numpy()
        return totals
