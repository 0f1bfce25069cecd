"""All probes of one site: sparse ones for every selector and k, and baselines on all features.

Read `SiteProbes.fit_into`. Every control is one more column of the same batched solve. Which sites there are
is not known here (`fit`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.probes.baselines import BASELINES
from workbench.probes.controls import ColumnBatch, Control, batches
from workbench.probes.data import Activations
from workbench.probes.fit_request import FitRequest
from workbench.probes.fits import Fits, ProbeSettings
from workbench.probes.judge import Judge
from workbench.probes.labels import Labels
from workbench.probes.selected import at_test_rows, code_lengths, fit_selected, pooled
from workbench.probes.selectors import Selector
from workbench.probes.tables import Tables


@dataclass(frozen=True, eq=False)
class RowSet:
    """The labelled rows of one position (or of all), and every fit's (train, test) masks [concept, row].

    The last fit's probes are kept.
    """

    labels: Labels
    folds: list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class SiteProbes:
    """All probes of one site and row set."""

    activations: Activations
    key: tuple[str, int]
    rows: RowSet
    request: FitRequest
    controls: Sequence[Control]
    settings: ProbeSettings
    seed: int
    code_length: bool
    cell: tuple[int, int, int]
    judge: Judge

    def fit_into(self, tables: Tables) -> None:
        """Fit every probe, and write the results into the tables."""
        by_fold = [
            batches(self.rows.labels, self.controls, train, test, self.seed)
            for train, test in self.rows.folds
        ]
        # The same columns of every fold together: their predictions are judged as one.
        for folds in zip(*by_fold, strict=True):
            for s, name in enumerate(self.request.selectors):
                self._fit_sparse(tables, folds, s, self.request.selector(name, self.key))
            true_features = [fold.with_true_features for fold in folds]
            for b, name in enumerate(self.request.baselines):
                self._fit_dense(tables, true_features, b, name)

    def _fit_sparse(self, tables: Tables, folds: Sequence[ColumnBatch], s: int, selector: Selector) -> None:
        ks, last = self.request.ks, folds[-1]
        fits: list[list[Fits]] = []
        for fold in folds:
            fits.append(list(fit_selected(self.activations, fold.columns, ks, selector, self.settings)))
        for j in range(len(ks)):
            predictions = pooled(
                [(fold.columns, by_k[j].logits) for fold, by_k in zip(folds, fits, strict=True)]
            )
            tables.put(self.cell, j, s, last, fits[-1][j], predictions, self.judge)
        if self.code_length and last.columns.n_classes:
            groups = self.rows.labels.groups
            lengths = code_lengths(
                self.activations, last.columns, ks, selector, self.settings, groups, self.seed
            )
            tables.put_lengths(self.cell, s, last, lengths)

    def _fit_dense(self, tables: Tables, folds: Sequence[ColumnBatch], b: int, name: str) -> None:
        fits = [BASELINES[name](self.activations, fold.columns, self.settings) for fold in folds]
        predictions = pooled(
            [
                (fold.columns, at_test_rows(fold.columns, dense.logits))
                for fold, dense in zip(folds, fits, strict=True)
            ]
        )
        tables.put_dense(self.cell, b, folds[-1], fits[-1], predictions, self.judge)
