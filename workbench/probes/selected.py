"""Probes on the features that a selector chooses: `fit_selected`, and what is computed from them.

A selector never sees held-out labels. `code_lengths` repeats selection and fit for growing blocks of the
training rows; `pooled` puts predictions of several folds together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import ProbeError
from workbench.probes.controls import code_blocks
from workbench.probes.data import Activations, Columns
from workbench.probes.fits import Fits, ProbeSettings, fit, padded_rows
from workbench.probes.metrics import bits
from workbench.probes.selectors import Selector


def fixed_selector(features: Sequence[int]) -> Selector:
    """A selector that takes the first k of the given features, whatever the labels are."""
    best = torch.tensor(list(dict.fromkeys(features)))

    def select(
        activations: Activations, columns: Columns, ks: Sequence[int], settings: ProbeSettings
    ) -> list[Tensor]:
        """The first k of the features, for every column."""
        outside = best[(best < 0) | (best >= activations.n_features)].tolist()
        if outside:
            raise ProbeError(
                f"given names feature {outside[0]}; those of {activations.view!r} are 0 to "
                f"{activations.n_features - 1}."
            )
        return [best[:k].expand(len(columns), -1) for k in ks]

    return select


def fit_selected(
    activations: Activations, columns: Columns, ks: Sequence[int], selector: Selector, settings: ProbeSettings
) -> Iterator[Fits]:
    """Probes for each k, in order; columns of random features get theirs instead of the selected ones."""
    # Held-out labels are blanked, so that no selector can see them by mistake.
    blind = replace(
        columns, codes=np.where(columns.train, columns.codes, 0), test=np.zeros_like(columns.test)
    )
    # Copies: a selector may hand out views of one tensor.
    selected = [features.clone() for features in selector(activations, blind, ks, settings)]
    for c, draw in enumerate(columns.random):
        if draw is not None:
            order = torch.from_numpy(np.random.default_rng(draw).permutation(activations.n_features))
            for features, k in zip(selected, ks, strict=True):
                features[c] = order[:k]
    previous = None
    for features in selected:
        previous = fit(activations, columns, features, settings, previous=previous)
        yield previous


def at_test_rows(columns: Columns, logits: Tensor) -> Float[Tensor, "column output test_row"]:
    """Of logits of all rows, those of the held-out ones."""
    rows = padded_rows(columns.test).index
    return logits.gather(2, rows[:, None].expand(-1, logits.shape[1], -1))


@dataclass(frozen=True, eq=False)
class Predictions:
    """What was predicted for held-out rows, and their labels; NaN elsewhere.

    Attributes:
        logits: [column, output, row].
        codes: [column, row].
    """

    logits: np.ndarray
    codes: np.ndarray


def pooled(runs: Sequence[tuple[Columns, Tensor]]) -> Predictions:
    """The predictions of all folds together.

    Args:
        runs: the columns of each fold with their logits [column, output, test_row].
    """
    columns = runs[0][0]
    logits = np.full((len(columns), runs[0][1].shape[1], columns.codes.shape[1]), np.nan)
    codes = np.full(columns.codes.shape, np.nan)
    for fold, fold_logits in runs:
        test = padded_rows(fold.test)
        rows, real = test.index.numpy(), test.real.numpy()
        owner = np.nonzero(real)[0]
        # Indices on both sides of a slice come first in numpy, so the values have to be [real row, output].
        logits[owner, :, rows[real]] = fold_logits.numpy().transpose(0, 2, 1)[real]
        codes[owner, rows[real]] = fold.codes[owner, rows[real]]
    return Predictions(logits, codes)


def code_lengths(
    activations: Activations,
    columns: Columns,
    ks: Sequence[int],
    selector: Selector,
    settings: ProbeSettings,
    groups: np.ndarray,
    seed: int,
) -> Float[np.ndarray, "k column"]:
    """Bits to send the training labels block by block, each under probes selected and fitted on the blocks
    before it.

    Source: the online code of Voita and Titov, arXiv 2003.12298.
    """
    total = np.zeros((len(ks), len(columns)))
    # A code is sent under the labels' true frequencies, so classes are not balanced here.
    unbalanced = replace(settings, balanced=False)
    for block in code_blocks(columns, groups, seed):
        known = columns.with_rows(block.known, block.sent)
        # Without two classes to learn from, labels are sent under the uniform distribution.
        uniform = ~known.varied if block.known.any() else np.ones(len(columns), dtype=bool)
        total += np.where(uniform, block.sent.sum(1) * np.log2(columns.n_classes), 0)
        learned = np.flatnonzero(~uniform)
        if not len(learned):
            continue
        known = known.select(learned.tolist())
        test = padded_rows(known.test)
        codes = torch.from_numpy(known.codes).long().gather(1, test.index)
        for j, fits in enumerate(fit_selected(activations, known, ks, selector, unbalanced)):
            for column, logits, labels, real in zip(learned, fits.logits, codes, test.real, strict=True):
                total[j, column] += float(bits(logits, labels, columns.n_classes)[real].sum())
    return total
