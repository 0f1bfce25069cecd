"""What probes are fitted on: a site's labelled rows, read in blocks, and label columns with the rows that
each may see.

A *column* is one way to label the rows: a concept's own labels, or a control's. All columns of a batch are
selected for and solved together. `deal` alone splits rows: into held-out sets, folds and the blocks of a
code. Read `Activations` and `Columns` first. Nothing here fits anything.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.errors import ProbeError
from workbench.finite import check_finite
from workbench.probes.concepts import Concept

BLOCK = 1024
"""Rows of held activations that are worked on at a time."""
ROUNDING = 1e-12
"""Share of its terms below which a difference of sums over rows is rounding."""


@dataclass(frozen=True, eq=False)
class Activations:
    """The labelled rows of one site: [row, feature], every axis but the row's flattened. Read once if they
    fit the budget.

    Attributes:
        view: a store's view of the site.
        prompt, pos: [row].
        budget: bytes that reading and working may take, float64 copies included.
    """

    view: Any
    prompt: np.ndarray
    pos: np.ndarray
    budget: int

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Of one row, as the site has it."""
        return tuple(self._read(slice(0, 1)).shape[1:])

    @property
    def n_features(self) -> int:
        """Numbers in a row."""
        return int(np.prod(self.shape))

    @property
    def fits(self) -> bool:
        """Whether all rows fit into the budget as float64, with twice as much room to work in."""
        return len(self.prompt) * self.n_features * 8 * 3 <= self.budget

    @cached_property
    def held(self) -> Float[Tensor, "row feature"]:
        """All rows, in the precision that the store has them in."""
        if not self.fits:
            need = len(self.prompt) * self.n_features * 8 * 3
            raise ProbeError(
                f"{len(self.prompt)} rows of {self.n_features} features take {need / 2**20:.0f} MiB to work "
                f"on, more than budget={self.budget} bytes. Give a larger budget, fewer rows, or a selector "
                "that streams (welch)."
            )
        return self._checked(self._read(slice(None)))

    def blocks(self) -> Iterator[tuple[slice, Float[Tensor, "row feature"]]]:
        """Which rows, and their float64 activations."""
        size = BLOCK if self.fits else max(1, self.budget // 8 // (self.n_features * 8 * 2))
        for start in range(0, len(self.prompt), size):
            rows = slice(start, start + size)
            yield rows, (self.held[rows] if self.fits else self._checked(self._read(rows))).double()

    @cached_property
    def origin(self) -> Float[Tensor, "feature"]:
        """The first row, from which squares are summed: far from it they would lose small variances."""
        return self._read(slice(0, 1)).flatten().double()

    def sums(
        self,
        weight: Float[Tensor, "column row"],
        *,
        powers: Sequence[int] = (1,),
        origin: Float[Tensor, "feature"] | None = None,
    ) -> Float[Tensor, "power column feature"]:
        """The sum over rows of weight times the activation to each power, measured from an origin."""
        totals = weight.new_zeros(len(powers), len(weight), self.n_features)
        for rows, x in self.blocks():
            if origin is not None:
                x = x - origin
            for total, power in zip(totals, powers, strict=True):
                total.addmm_(weight[:, rows], x if power == 1 else x**power)
        return totals

    def times(self, direction: Float[Tensor, "column feature"]) -> Float[Tensor, "column row"]:
        """The product of every row with every direction."""
        products = direction.new_empty(len(direction), len(self.prompt))
        for rows, x in self.blocks():
            products[:, rows] = direction @ x.T
        return products

    def features(self, chosen: Int[Tensor, "chosen"]) -> Float[Tensor, "chosen row"]:
        """Some of the features of every row."""
        columns = torch.empty(len(chosen), len(self.prompt), dtype=torch.float64)
        for rows, x in self.blocks():
            columns[:, rows] = x[:, chosen].T
        return columns

    def _read(self, rows: slice) -> Tensor:
        return self.view.rows(prompt=self.prompt[rows].tolist(), pos=self.pos[rows].tolist()).detach().cpu()

    def _checked(self, values: Tensor) -> Tensor:
        flat = values.reshape(len(values), -1)
        check_finite(flat, f"{self.view!r}", "No probe can be fitted to them.")
        return flat


def variance_of(mean: Tensor, square: Tensor) -> Tensor:
    """The variance by the means of a number and of its square; 0 where it is no more than their rounding."""
    variance = square - mean**2
    return torch.where(variance > ROUNDING * square, variance, 0.0)


@dataclass(frozen=True, eq=False)
class Columns:
    """Label columns of one loss that are fitted together.

    Attributes:
        loss: logistic, softmax or squares.
        codes: [column, row] index of the class, or the number.
        train, test: [column, row] rows to select and fit on, and rows to predict.
        n_classes: 0 for numbers.
        random: per column a seed to draw features with instead of selecting them, or None.
    """

    loss: str
    codes: Float[np.ndarray, "column row"]
    train: Bool[np.ndarray, "column row"]
    test: Bool[np.ndarray, "column row"]
    n_classes: int
    random: tuple[int | None, ...]

    @cached_property
    def target(self) -> Float[Tensor, "column output row"]:
        """What the solver fits: 0 or 1, one-hot, or the number."""
        codes = torch.from_numpy(self.codes)
        return self.indicator if self.loss == "softmax" else codes[:, None].double()

    @cached_property
    def indicator(self) -> Float[Tensor, "column class row"]:
        """1 where a row is of a class."""
        codes = torch.from_numpy(self.codes).long()
        return torch.nn.functional.one_hot(codes, max(self.n_classes, 1)).mT.double()

    def weight(self, balance: bool) -> Float[Tensor, "column row"]:
        """Weights of the training rows that sum to 1 and, when balanced, to the same in every class."""
        train = torch.from_numpy(self.train).double()
        if not balance or self.loss == "squares":
            return train / train.sum(1, keepdim=True)
        return balanced(self.indicator * train[:, None])

    @cached_property
    def varied(self) -> Bool[np.ndarray, "column"]:
        """Whether the training rows have more than one label."""
        columns = zip(self.codes, self.train, strict=True)
        return np.array([len(np.unique(codes[rows])) > 1 for codes, rows in columns])

    def select(self, chosen: Sequence[int] | slice) -> "Columns":
        """Some of the columns."""
        random = self.random[chosen] if isinstance(chosen, slice) else tuple(self.random[i] for i in chosen)
        return replace(
            self, codes=self.codes[chosen], train=self.train[chosen], test=self.test[chosen], random=random
        )

    def with_rows(self, train: np.ndarray, test: np.ndarray) -> "Columns":
        """The same labels, other rows."""
        return replace(self, train=train, test=test)

    def __len__(self) -> int:
        return len(self.codes)


def balanced(members: Float[Tensor, "column class row"]) -> Float[Tensor, "column row"]:
    """Weights that sum to 1, and to the same in every class that has rows."""
    counts = members.sum(2, keepdim=True)
    return (members / counts.clamp(min=1) / (counts > 0).sum(1, keepdim=True).clamp(min=1)).sum(1)


def deal(
    codes: Float[np.ndarray, "row"] | Int[np.ndarray, "row"],
    groups: Int[np.ndarray, "row"],
    shares: Sequence[float],
    seed: int,
    *,
    n_classes: int = 0,
) -> Int[np.ndarray, "row"]:
    """[row]: the index of the share that each row goes to: random whole groups, every class in proportion.

    A group counts for the rarest of its classes; numbers (`n_classes=0`) count as four classes by rank of the
    group's mean.

    Args:
        codes: index of the class, or the number.
        groups: the group of each row; a group is never split.
        shares: of the rows, summing to 1; reached as nearly as groups allow.
    """
    names, owner = np.unique(groups, return_inverse=True)
    size = np.bincount(owner)
    if n_classes:
        rarity = np.argsort(np.argsort(np.bincount(codes.astype(int), minlength=n_classes)))
        stratum = np.full(len(names), n_classes)
        np.minimum.at(stratum, owner, rarity[codes.astype(int)])
    else:
        mean = np.bincount(owner, weights=codes) / size
        stratum = np.argsort(np.argsort(mean)) * 4 // len(names)
    order = np.random.default_rng(seed).permutation(len(names))
    share_of_group, edges = np.empty(len(names), dtype=int), np.cumsum(shares)[:-1]
    for level in np.unique(stratum):
        members = order[stratum[order] == level]
        rows_so_far = np.cumsum(size[members])
        # By the middle of a group's rows, so that a large group at an edge goes to the side with more of it.
        middles = (rows_so_far - size[members] / 2) / rows_so_far[-1]
        share_of_group[members] = np.searchsorted(edges, middles, side="right")
    return share_of_group[owner]


def check_split(concept: Concept, train: np.ndarray, test: np.ndarray, groups: np.ndarray) -> None:
    """Raise `ProbeError` unless both sides have rows, and rows of every class, and share no group."""
    for side, rows in (("training", train), ("held-out", test)):
        present = set(concept.codes[rows].tolist())
        lacking = [name for code, name in enumerate(concept.classes) if code not in present]
        if lacking or not rows.any():
            missing = f"no {', '.join(map(repr, lacking))}" if lacking else "no rows"
            raise ProbeError(
                f"The {side} rows have {missing} of concept {concept.name!r}: there are "
                f"{len(set(groups.tolist()))} groups of prompts to split, and every class has to be in two. "
                "Label more prompts, or change the seed or the share."
            )
    straddling = set(groups[train].tolist()) & set(groups[test].tolist())
    if straddling:
        raise ProbeError(
            f"Concept {concept.name!r}: {len(straddling)} groups have rows in training and held out, the "
            f"first of them that of prompt {min(straddling)}. Hold out whole prompts."
        )


def shuffled(codes: np.ndarray, rows: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """The labels with those of some rows permuted: the rows of whole groups are laid out in a new order.

    Labels that go together within a prompt stay together, so that only their tie to the activations is cut.
    """
    rng = np.random.default_rng(seed)
    chosen = np.flatnonzero(rows)
    chosen = chosen[np.argsort(groups[chosen], kind="stable")]
    owner = np.unique(groups[chosen], return_inverse=True)[1]
    order = np.argsort(rng.permutation(owner.max() + 1)[owner], kind="stable")
    permuted = codes.copy()
    permuted[chosen] = codes[chosen[order]]
    return permuted


def by_type(codes: np.ndarray, types: np.ndarray, seed: int) -> np.ndarray:
    """A control task's labels: every type gets a random row's label, so class frequencies stay about equal.

    The first types get one class each, so that none is missing. Source: Hewitt and Liang, arXiv 1909.03368.
    """
    rng = np.random.default_rng(seed)
    names, owner = np.unique(types, return_inverse=True)
    drawn = codes[rng.integers(0, len(codes), len(names))]
    classes = np.unique(codes)
    if len(classes) <= len(names):
        classes = rng.permutation(classes)
        drawn[rng.permutation(len(names))[: len(classes)]] = classes
    return drawn[owner]
