"""The batched solver against scikit-learn on the same rows and penalty."""

import numpy as np
import pytest
import torch
from closeness import close
from sklearn.linear_model import LogisticRegression, Ridge

from workbench.probes.solver import design, solve

N, L2 = 400, 1e-2


def problem(seed, *, features=6, outputs=1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, features)) * np.exp(rng.normal(size=features))
    logits = x @ rng.normal(size=(features, outputs)) + rng.logistic(size=(N, outputs))
    return x, (logits[:, 0] > 0.5).astype(int) if outputs == 1 else logits.argmax(1)


def solved(rows, target, weight=None, **how):
    x = design(torch.from_numpy(np.stack(rows)).mT)
    weight = np.full((len(rows), N), 1 / N) if weight is None else np.stack(weight)
    return solve(x, torch.from_numpy(np.stack(target)), torch.from_numpy(weight), **{"l2": L2} | how)


@pytest.mark.parametrize("balance", [None, "balanced"])
def test_a_batch_of_logistic_problems_is_scikit_learns_one_by_one(balance):
    problems = [problem(seed) for seed in range(5)]
    weights = []
    for _, y in problems:
        counts = np.bincount(y) if balance else np.array([N / 2, N / 2])
        weights.append(1 / (2 * counts[y]))
    got = solved([x for x, _ in problems], [y[None].astype(float) for _, y in problems], weights)
    assert bool(got.converged.all())
    assert float(got.decrement.max()) <= 1e-12
    for found, (x, y) in zip(got.coefficients, problems, strict=True):
        peer = LogisticRegression(C=1 / (L2 * N), class_weight=balance, tol=1e-12, max_iter=10000).fit(x, y)
        scale = np.abs(peer.coef_).max()
        assert close(found[0, 1:], peer.coef_[0], tolerance=1e-5)
        assert close(found[:1, 0], peer.intercept_, tolerance=1e-5, scale=scale)


@pytest.mark.parametrize("classes", [3, 5])
def test_softmax_is_scikit_learns(classes):
    x, y = problem(0, outputs=classes)
    got = solved([x], [np.eye(classes)[y].T], loss="softmax")
    peer = LogisticRegression(C=1 / (L2 * N), tol=1e-12, max_iter=10000).fit(x, y)
    assert bool(got.converged)
    assert close(got.coefficients[0, :, 1:], peer.coef_, tolerance=1e-4)
    assert close(got.coefficients[0, :, 0], peer.intercept_, tolerance=1e-4, scale=np.abs(peer.coef_).max())


def test_ridge_is_scikit_learns_and_takes_one_step():
    x, _ = problem(0)
    y = x @ np.arange(6) + 3
    got = solved([x], [y[None]], loss="squares")
    peer = Ridge(alpha=L2 * N).fit(x, y)
    assert close(got.coefficients[0, 0], np.r_[peer.intercept_, peer.coef_], tolerance=1e-9)
    assert got.iterations.tolist() == [1]


def test_separable_rows_converge_under_the_penalty():
    x, _ = problem(0)
    y = (x[:, 0] > 0).astype(float)
    got = solved([x, 1e4 * x], [y[None], y[None]], l2=1e-6)
    assert bool(got.converged.all())
    assert bool(torch.isfinite(got.coefficients).all())


def test_what_has_not_converged_says_so_problem_by_problem():
    x, y = problem(0)
    easy = np.zeros_like(x)
    got = solved([easy, x], [np.tile([0.0, 1.0], N // 2)[None], y[None].astype(float)], max_iter=1)
    assert got.converged.tolist() == [True, False]
    assert got.iterations.tolist() == [0, 1]
    assert float(got.decrement[1]) > 1e-12


def test_a_start_does_not_change_the_minimum():
    x, y = problem(0)
    plain = solved([x], [y[None].astype(float)])
    begun = solved([x], [y[None].astype(float)], start=plain.coefficients + 3)
    assert close(begun.coefficients, plain.coefficients, tolerance=1e-6)
    assert solved([x], [y[None].astype(float)], start=plain.coefficients).iterations.tolist() == [0]
