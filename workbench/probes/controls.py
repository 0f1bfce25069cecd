"""Concepts and their controls as label columns, with the rows that each may see."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.errors import ProbeError, UnknownName
from workbench.probes.data import Columns, by_type, check_split, deal, shuffled
from workbench.probes.labels import Concept, Labels

CONTROLS = ("shuffle", "random-features", "control-task")
"""`shuffle`: the training labels permuted among groups, held-out ones true. `random-features`: true labels, k features drawn
at random. `control-task`: a random label for every token type, in training and held out (Hewitt and Liang 1909.03368)."""


@dataclass(frozen=True)
class Control:
    """One entry of the `control` axis: `kind` "none" or of `CONTROLS`, and which draw."""

    kind: str
    draw: int = 0

    @property
    def name(self) -> str:
        return self.kind if self.kind == "none" else f"{self.kind}-{self.draw}"


@dataclass(frozen=True, eq=False)
class ColumnBatch:
    """Columns of one loss, and the cell of the result that each belongs to.

    Attributes:
        cells: per column the indices of its concept and control.
    """

    columns: Columns
    cells: tuple[tuple[int, int], ...]

    def where(self, kept: Callable[[Columns, int], bool]) -> "ColumnBatch":
        """The columns for which `kept(columns, index)` is true."""
        chosen = [c for c in range(len(self.cells)) if kept(self.columns, c)]
        return ColumnBatch(self.columns.select(chosen), tuple(self.cells[c] for c in chosen))


def controls_named(names: Sequence[str], draws: int) -> list[Control]:
    """The true labels, then every draw of the controls."""
    for name in names:
        if name not in CONTROLS:
            raise UnknownName("controls", name, CONTROLS)
    if draws < 1:
        raise ProbeError(f"draws={draws!r}: a control needs at least one.")
    return [Control("none"), *(Control(name, draw) for name in dict.fromkeys(names) for draw in range(draws))]


def splits(
    labels: Labels, *, test_share: float, folds: int | None, held_out: np.ndarray | None, seed: int
) -> list[np.ndarray]:
    """[concept, row] masks of held-out rows: one, or one per fold. Checked: no group straddles, every class on both sides."""
    groups = labels.groups
    if held_out is not None:
        given = np.asarray(held_out, dtype=bool)
        if given.shape not in ((len(labels),), (len(labels.concepts), len(labels))):
            raise ProbeError(
                f"held_out has shape {given.shape}; it marks the held-out rows: [{len(labels)}], or "
                f"[{len(labels.concepts)}, {len(labels)}] for each concept."
            )
        masks = [np.broadcast_to(given, (len(labels.concepts), len(labels)))]
    else:
        if folds is None and not 0 < test_share < 1:
            raise ProbeError(
                f"test_share={test_share!r}: the share of held-out rows lies between 0 and 1, as in 0.3."
            )
        if folds is not None and folds < 2:
            raise ProbeError(f"folds={folds!r}: at least two are needed, or none for one held-out set.")
        shares = [1 / folds] * folds if folds else [test_share, 1 - test_share]
        parts = np.stack(
            [deal(c.codes, groups, shares, seed, n_classes=len(c.classes)) for c in labels.concepts]
        )
        masks = [parts == part for part in range(folds or 1)]
    for mask in masks:
        for concept, rows in zip(labels.concepts, mask, strict=True):
            check_split(concept, ~rows, rows, groups)
    return masks


def batches(
    labels: Labels, controls: Sequence[Control], train: np.ndarray, test: np.ndarray, seed: int
) -> list[ColumnBatch]:
    """Every concept with every control, those of equal loss and number of classes together.

    Args:
        train, test: [concept, row].
    """
    kinds = dict.fromkeys((concept.loss, len(concept.classes)) for concept in labels.concepts)
    made = []
    for loss, n_classes in kinds:
        chosen = [i for i, c in enumerate(labels.concepts) if (c.loss, len(c.classes)) == (loss, n_classes)]
        cells = tuple((i, j) for i in chosen for j in range(len(controls)))
        codes = [_codes(labels, labels.concepts[i], controls[j], train[i], seed) for i, j in cells]
        random = tuple(
            seed + 1 + controls[j].draw if controls[j].kind == "random-features" else None for _, j in cells
        )
        owner = [i for i, _ in cells]
        made.append(
            ColumnBatch(
                Columns(loss, np.stack(codes).astype(float), train[owner], test[owner], n_classes, random),
                cells,
            )
        )
    return made


def _codes(labels: Labels, concept: Concept, control: Control, train: np.ndarray, seed: int) -> np.ndarray:
    if control.kind == "shuffle":
        return shuffled(concept.codes, train, labels.groups, seed + 1 + control.draw)
    if control.kind == "control-task":
        return by_type(concept.codes, control_types(labels)[1], seed + 1 + control.draw)
    return concept.codes


def control_types(labels: Labels) -> tuple[str, np.ndarray]:
    """What a control task draws one label for, and which each row is: the token or, where all rows hold one, the prompt."""
    tokens = labels.tokens
    return ("token", tokens) if len(np.unique(tokens)) > 1 else ("prompt", labels.groups)


def code_blocks(
    columns: Columns, groups: np.ndarray, seed: int, *, least: int = 16
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """[column, row] rows known and rows to send next: blocks that double, of whole groups, over each column's training rows.

    The first pair knows nothing. The first block has about `least` rows.
    """
    n = int(columns.train.sum(1).max())
    doublings = max(1, int(np.log2(max(n / least, 2))))
    shares = [2.0**-doublings, *(2.0 ** -(doublings - i) for i in range(doublings))]
    parts = np.full(columns.train.shape, -1)
    for part, codes, rows in zip(parts, columns.codes, columns.train, strict=True):
        part[rows] = deal(codes[rows], groups[rows], shares, seed, n_classes=columns.n_classes)
    for block in range(doublings + 1):
        yield (parts >= 0) & (parts < block), parts == block
