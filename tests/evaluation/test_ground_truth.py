"""Areas under the curve and precision: by hand, against scikit-learn, and over graphs of every kind."""

import numpy as np
import pytest
from families import untyped
from sklearn.metrics import roc_auc_score

import workbench as wb
from workbench.errors import CircuitError, SiteError, UnknownName
from workbench.evaluation.ground_truth import edge_auroc, edge_auroc_mib, precision_at_true_size


@pytest.mark.types
def test_both_areas_by_hand():
    # Ten edges, ranked T F T F F F F F F F.
    scores = np.arange(10.0, 0, -1)
    true = np.array([1, 0, 1, 0, 0, 0, 0, 0, 0, 0], dtype=bool)
    # Ordinary: of the 2 x 8 pairs of a true and a false edge one is in the wrong order (the second true one
    # after one false).
    assert edge_auroc(scores, true) == 15 / 16
    # MIB: sizes .001 to .05 hold 0 edges, .1 one, .2 two, .5 five, 1 all ten.
    #   n    0    1    2    5    10
    #   TPR  0   1/2  1/2   1    1
    #   FPR  0    0   1/8  3/8   1
    # Trapezoids: 1/8 x 1/2 + 2/8 x 3/4 + 5/8 x 1 = 1/16 + 3/16 + 10/16.
    assert edge_auroc_mib(scores, true) == 14 / 16
    assert precision_at_true_size(scores, true) == 1 / 2


def test_signs_by_hand():
    # A true edge of -5 and one of 4 among false ones of 3, -2, 1.
    scores, true = np.array([-5.0, 4, 3, -2, 1]), np.array([True, True, False, False, False])
    assert edge_auroc(scores, true) == edge_auroc(scores, true, by="magnitude") == 1
    assert edge_auroc(scores, true, by="signed") == 3 / 6  # 4 beats three, -5 none
    assert precision_at_true_size(scores, true, by="signed") == 1 / 2
    # n: 0 0 0 0 0 0 0 1 2 5; signed TPR 0 .5 .5 1, FPR 0 0 1/3 1: 1/3 x .5 + 2/3 x .75.
    assert np.isclose(edge_auroc_mib(scores, true, by="signed"), 4 / 6)
    # by size TPR 0 .5 1 1, FPR 0 0 0 1.
    assert edge_auroc_mib(scores, true) == 1


def test_ties_by_hand():
    # T and F tied in front, then F and T tied: each pair within a tie counts half.
    scores, true = np.array([2.0, 2, 1, 1]), np.array([True, False, False, True])
    assert edge_auroc(scores, true) == (0.5 + 1 + 0 + 0.5) / 4
    assert precision_at_true_size(scores, true) == 1 / 2
    # n: 0 ... 0 2 4 (int(.2 x 4) = 0): TPR 0 1/2 1, FPR 0 1/2 1: the diagonal.
    assert edge_auroc_mib(scores, true) == 1 / 2


def test_scores_that_are_all_the_same_know_nothing_in_whatever_order():
    true = np.random.default_rng(0).random(1000) < 0.1
    for order in (true, np.sort(true), -np.sort(-true.astype(int)) == 1):
        assert edge_auroc(np.zeros(1000), order) == 0.5
        assert np.isclose(precision_at_true_size(np.zeros(1000), order), true.mean())
        # The diagonal from the first size, one edge, on: half the square less half of (1/1000)^2.
        assert np.isclose(edge_auroc_mib(np.zeros(1000), order), 0.5 - 0.5e-6)


@pytest.mark.parametrize("ties", [False, True])
def test_the_ordinary_area_is_that_of_scikit_learn(ties):
    rng = np.random.default_rng(0)
    for _ in range(20):
        true = rng.random(80) < 0.2
        scores = rng.normal(size=80) + true
        scores = np.round(scores) if ties else scores
        assert np.isclose(edge_auroc(scores, true, by="signed"), roc_auc_score(true, scores))
        assert np.isclose(edge_auroc(scores, true), roc_auc_score(true, np.abs(scores)))


@pytest.mark.parametrize("more", [{}, {"neurons": True}, {"positions": [1, 2]}])
def test_scores_of_a_model_against_names_of_edges(more):
    known = wb.planted("lookup", n=8)
    scores = wb.score_edges(known.model, wb.planted_pairs(known), value=wb.zero(), method="exact", **more)
    true = known.edges["zero"]
    if more.get("neurons"):  # the planted neurons are all of their layer
        with pytest.raises(SiteError):
            edge_auroc(scores, true)
        true = {edge for edge in true if "m" not in edge}
        named = [f"{w}->{r}" in true for w, r in zip(scores.writer.values, scores.reader.values, strict=True)]
        assert edge_auroc(scores, true) == edge_auroc(scores.values, np.array(named))
    elif more:
        assert 0 < edge_auroc(scores, true) <= 1
    else:
        assert edge_auroc(scores, true) == precision_at_true_size(scores, true) == 1
        assert edge_auroc(scores, wb.Graph.of(known.model).exists & (np.abs(scores.values) > 1e-3)) == 1
        # 5 true of 75: the sizes .05 and .1 hold 3 and 7 edges, so that TPR goes from 3/5 to 1 while FPR goes
        # from 0 to 2/70.
        assert np.isclose(edge_auroc_mib(scores, true), 1 - 2 / 70 * 2 / 5 / 2)


def test_a_metric_that_is_better_when_lower_is_turned_around():
    scores = wb.score_edges(
        wb.planted("lookup", n=8).model, wb.planted_pairs(wb.planted("lookup", n=8)), value=wb.zero()
    )
    true = wb.planted("lookup", n=8).edges["zero"]
    turned = (-scores).assign_attrs(scores.attrs | {"higher_is_better": 0})
    assert edge_auroc(turned, true, by="signed") == edge_auroc(scores, true, by="signed")


def test_what_cannot_be_scored_is_said():
    scores, true = np.arange(4.0), np.array([True, False, False, False])
    with pytest.raises(
        UnknownName,
        match=r"^by='size' is not known\. Did you mean 'signed'\? Choices: magnitude, signed\.$",
    ):
        edge_auroc(scores, true, by="size")
    with pytest.raises(
        CircuitError, match=r"^4 of 4 edges are true: there must be true and false ones to tell apart\.$"
    ):
        edge_auroc(scores, np.ones(4, dtype=bool))
    with pytest.raises(
        CircuitError, match=r"^True edges of shape \(3,\) do not fit scores of shape \(4,\)\.$"
    ):
        untyped(edge_auroc)(scores, true[:3])
    names = (
        r"^Names of edges need scores from wb\.score_edges\(\.\.\.\); "
        r"with an array give a boolean array like it\.$"
    )
    with pytest.raises(CircuitError, match=names):
        untyped(edge_auroc)(scores, {"input->logits"})
    known = wb.planted("lookup", n=4)
    kept = wb.score_edges(known.model, wb.planted_pairs(known), value=wb.zero(), keep=("example",))
    by_example = (
        r"^These scores are kept by example: average them first, "
        r"with scores\.mean\('example', keep_attrs=True\)\.$"
    )
    with pytest.raises(CircuitError, match=by_example):
        edge_auroc(kept, known.edges["zero"])
    no_graph = (
        r"^These scores do not say which graph they belong to\. "
        r"Make them with wb\.score_edges\(\.\.\.\)\.$"
    )
    with pytest.raises(CircuitError, match=no_graph):
        edge_auroc(kept.mean("example", keep_attrs=False), known.edges["zero"])


def test_rounding_errors_rank_no_edge():
    # Edges without an effect score some 1e-8 of the largest, differently on every processor.
    scores, true = np.array([8.0, 2e-8, 5e-8, -7e-8]), np.array([True, True, False, False])
    assert edge_auroc(scores, true) == edge_auroc(np.array([8.0, 0.0, 0.0, 0.0]), true) == 0.75
