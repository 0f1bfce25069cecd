"""Maps of single neurons against scikit-learn, neuron by neuron."""

import numpy as np
import pytest
from probing import labelled
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from workbench.probes.neurons import neuron_maps

ROWS = 400


def activations():
    """Neurons that tell the label well, not at all, by a relu full of ties, separably, on odd scales, and a dead one."""
    rng = np.random.default_rng(0)
    y = rng.random(ROWS) > 0.4
    told = y + rng.normal(size=ROWS)
    columns = [
        told,
        -told,
        rng.normal(size=ROWS),
        np.maximum(told - 1, 0),
        50.0 * y,
        1e-3 * told,
        100 * told + 500,
    ]
    return np.stack([*columns, np.zeros(ROWS)], 1), y


@pytest.mark.parametrize("budget", [2**30, 2**12])
def test_every_neuron_is_scikit_learns(budget):
    x, y = activations()
    held_out = np.arange(ROWS) % 4 == 0
    store, labels = labelled([x, x[:, ::-1].copy()], {"c": y.tolist()})
    maps = neuron_maps(store, labels, held_out=held_out, budget=budget)
    assert maps["accuracy"].dims == ("layer", "neuron", "concept")
    assert maps["converged"].values.all()
    for layer, values in enumerate((x, x[:, ::-1])):
        for neuron in range(values.shape[1]):
            cell, column = maps.isel(layer=layer, neuron=neuron, concept=0), values[:, neuron, None]
            train, test = column[~held_out], column[held_out]
            # The peer is asked on a scale where it converges; the penalty is scaled with it.
            scale = max(np.abs(column).max(), 1e-9)
            peer = LogisticRegression(
                C=scale**2 / (1e-2 * len(train)), class_weight="balanced", tol=1e-12, max_iter=100000
            )
            peer.fit(train / scale, y[~held_out])
            assert float(cell["coefficient"]) == pytest.approx(peer.coef_[0, 0] / scale, rel=1e-4, abs=1e-6)
            assert float(cell["intercept"]) == pytest.approx(peer.intercept_[0], rel=1e-4, abs=1e-4)
            if scale > 1e-9:
                assert float(cell["accuracy"]) == pytest.approx(
                    peer.score(test / scale, y[held_out]), abs=1e-12
                )
            logits = float(cell["coefficient"]) * test[:, 0]
            assert float(cell["roc_auc"]) == pytest.approx(roc_auc_score(y[held_out], logits), abs=1e-12)


def test_each_of_several_classes_is_a_concept():
    x, _ = activations()
    store, labels = labelled(
        [x], {"c": [("a", "b", "d")[i % 3] for i in range(ROWS)], "e": [i % 2 for i in range(ROWS)]}
    )
    maps = neuron_maps(store, labels)
    assert maps["concept"].values.tolist() == ["c=a", "c=b", "c=d", "e"]
    assert maps["roc_auc"].notnull().all()
