"""Concepts and their controls as label columns, with the rows that each may see: `splits`, then `batches`.

A control is one more column of the same batch as the true labels, so that both are selected for and fitted
alike.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from workbench.errors import ProbeError, UnknownName
from workbench.probes.concepts import Concept
from workbench.probes.data import Columns, by_type, check_split, deal, shuffled
from workbench.probes.labels import Labels

CONTROLS = ("shuffle", "random-features", "control-task")
"""What a probe is compared with.

`shuffle`: the training labels permuted among groups, held-out ones true. `random-features`: true labels, k
features drawn at random. `control-task`: a random label for every token type, in training and held out
(Hewitt and Liang 1909.03368).
"""


@dataclass(frozen=True)
class Control:
    """One entry of the `control` axis: `kind` "none" or of `CONTROLS`, and which draw."""

    kind: str
    draw: int = 0

    @property
    def name(self) -> str:
        """Its label on the axis: `none`, or as in `shuffle-0`."""
        return self.kind if self.kind == "none" else f"{self.kind}-{self.draw}"


@dataclass(frozen=True, eq=False)
class ColumnBatch:
    """Columns of one loss, and the cell of the result that each belongs to.

    Attributes:
        cells: per column the indices of its concept and control.
    """

    columns: Columns
    cells: tuple[tuple[int, int], ...]

    @property
    def with_true_features(self) -> "ColumnBatch":
        """The columns whose features are not drawn at random."""
        chosen = [c for c, draw in enumerate(self.columns.random) if draw is None]
        return ColumnBatch(self.columns.select(chosen), tuple(self.cells[c] for c in chosen))


def controls_named(names: Sequence[str], draws: int) -> list[Control]:
    """The true labels, then every draw of the controls."""
    for name in names:
        if name not in CONTROLS:
            raise UnknownName("controls", name, CONTROLS)
    if draws < 1:
        raise ProbeError(f"draws={draws!r}: a control needs at least one.")
    controls = [Control("none")]
    for name in dict.fromkeys(names):
        controls += [Control(name, draw) for draw in range(draws)]
    return controls


def splits(
    labels: Labels, *, test_share: float, folds: int | None, held_out: np.ndarray | None, seed: int
) -> list[np.ndarray]:
    """[concept, row] masks of held-out rows: one, or one per fold.

    Raises:
        ProbeError: a group in training and held out, a class that one side lacks, or a share, number of folds
            or mask that does not fit.
    """
    groups = labels.groups
    if held_out is not None:
        masks = [_checked_mask(held_out, labels)]
    else:
        if folds is None and not 0 < test_share < 1:
            raise ProbeError(
                f"test_share={test_share!r}: the share of held-out rows lies between 0 and 1, as in 0.3."
            )
        if folds is not None and folds < 2:
            raise ProbeError(f"folds={folds!r}: at least two are needed, or none for one held-out set.")
        if folds is not None and folds > len(labels):
            raise ProbeError(f"folds={folds!r}: there are {len(labels)} rows to divide among them.")
        shares = [1 / folds] * folds if folds else [test_share, 1 - test_share]
        # [concept, row]: the share that a row goes to, each concept's classes in proportion
        share_of_row = np.stack(
            [deal(c.codes, groups, shares, seed, n_classes=len(c.classes)) for c in labels.concepts]
        )
        masks = [share_of_row == index for index in range(folds or 1)]
    for mask in masks:
        for concept, rows in zip(labels.concepts, mask, strict=True):
            check_split(concept, ~rows, rows, groups)
    return masks


def _checked_mask(held_out: np.ndarray, labels: Labels) -> np.ndarray:
    """[concept, row]."""
    mask = np.asarray(held_out, dtype=bool)
    shape = (len(labels.concepts), len(labels))
    if mask.shape not in (shape[1:], shape):
        raise ProbeError(
            f"held_out has shape {mask.shape}; it marks the held-out rows: [{len(labels)}], or "
            f"[{len(labels.concepts)}, {len(labels)}] for each concept."
        )
    return np.broadcast_to(mask, shape)


def batches(
    labels: Labels, controls: Sequence[Control], train: np.ndarray, test: np.ndarray, seed: int
) -> list[ColumnBatch]:
    """Every concept with every control, those of equal loss and number of classes together.

    Args:
        train, test: [concept, row].
    """
    kinds = dict.fromkeys((concept.loss, len(concept.classes)) for concept in labels.concepts)
    column_batches: list[ColumnBatch] = []
    for loss, n_classes in kinds:
        cells: list[tuple[int, int]] = []
        codes: list[np.ndarray] = []
        random: list[int | None] = []
        for i, concept in enumerate(labels.concepts):
            if (concept.loss, len(concept.classes)) != (loss, n_classes):
                continue
            for j, control in enumerate(controls):
                cells.append((i, j))
                codes.append(_codes(labels, concept, control, train[i], seed))
                # Every draw of a control has its own seed; the true labels' split has `seed` itself.
                random.append(seed + 1 + control.draw if control.kind == "random-features" else None)
        owner = [i for i, _ in cells]
        columns = Columns(
            loss, np.stack(codes).astype(float), train[owner], test[owner], n_classes, tuple(random)
        )
        column_batches.append(ColumnBatch(columns, tuple(cells)))
    return column_batches


def _codes(labels: Labels, concept: Concept, control: Control, train: np.ndarray, seed: int) -> np.ndarray:
    """[row]: the concept's labels as a control has them."""
    if control.kind == "shuffle":
        return shuffled(concept.codes, train, labels.groups, seed + 1 + control.draw)
    if control.kind == "control-task":
        return by_type(concept.codes, control_types(labels).types, seed + 1 + control.draw)
    return concept.codes


@dataclass(frozen=True, eq=False)
class ControlTypes:
    """What a control task draws one label for, and [row] which of them each row is."""

    name: str
    types: np.ndarray


def control_types(labels: Labels) -> ControlTypes:
    """Types are tokens or, where all rows hold one token, prompts."""
    tokens = labels.tokens
    if len(np.unique(tokens)) > 1:
        return ControlTypes("token", tokens)
    return ControlTypes("prompt", labels.groups)


@dataclass(frozen=True, eq=False)
class CodeBlock:
    """[column, row]: the rows whose labels are known, and those whose labels are sent next."""

    known: np.ndarray
    sent: np.ndarray


def code_blocks(columns: Columns, groups: np.ndarray, seed: int, *, least: int = 16) -> Iterator[CodeBlock]:
    """The training labels in blocks that double, of whole groups.

    Nothing is known before the first block, which has about `least` rows.
    """
    n = int(columns.train.sum(1).max())
    doublings = max(1, int(np.log2(max(n / least, 2))))
    # 1/8, 1/8, 1/4, 1/2: a block doubles what is known, so a few blocks reach any size.
    shares = [2.0**-doublings, *(2.0 ** -(doublings - i) for i in range(doublings))]
    block_of = np.full(columns.train.shape, -1)
    for blocks, codes, rows in zip(block_of, columns.codes, columns.train, strict=True):
        blocks[rows] = deal(codes[rows], groups[rows], shares, seed, n_classes=columns.n_classes)
    for block in range(doublings + 1):
        yield CodeBlock(known=(block_of >= 0) & (block_of < block), sent=block_of == block)
