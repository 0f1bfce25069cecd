"""Lesson 12."""

from functools import lru_cache

import numpy as np

import workbench as wb
from workbench.course import fixtures

LEARNT = {"agreement": 500, "capitals": 1500, "ioi": 1850, "induction": 2250}


@lru_cache
def circuit(name):
    model, pairs = fixtures.model(name), fixtures.pairs("induction", 32)
    _, corrupt = wb.capture_pairs(model, pairs, progress=False)
    scores = wb.score_edges(
        model, pairs, value=wb.from_store(corrupt), method="eap-ig-inputs", progress=False
    )
    return wb.find_circuit(scores, n_edges=40)


@lru_cache
def measured(names=("tiny@1500", "tiny@1850", "tiny@2250")):
    found = []
    for name in names:
        model, pairs = fixtures.model(name), fixtures.pairs("induction", 32, split="heldout")
        _, corrupt = wb.capture_pairs(model, pairs, progress=False)
        found.append(
            wb.evaluate(
                circuit("tiny"), model, pairs, value=wb.from_store(corrupt), checks=(), progress=False
            )
        )
    return found


def ratios():
    means = [[float(each[name].mean()) for name in ("m_circuit", "m_full", "m_empty")] for each in measured()]
    return np.array([(part - empty) / (full - empty) for part, full, empty in means])


def edges(name):
    return {str(edge) for edge in circuit(name).edge_list}


CASES = {
    "12.1": (
        lambda: LEARNT,
        [
            (LEARNT | {"induction": 2000}, "at step 2000 the accuracy of induction is"),
            (LEARNT | {"capitals": 2500}, "at an earlier checkpoint too"),
            (LEARNT | {"ioi": 1800}, "there is no checkpoint of step 1800"),
            ({"ioi": 1850}, "a dict with the keys"),
        ],
    ),
    "12.2": (
        ratios,
        [
            (lambda: [float(each.m_circuit.mean()) for each in measured()], "these are logit differences"),
            ([1.0, 1.05, 1.02], "all are near 1"),
            (lambda: ratios() + np.array([0, 0, 0.2]), "step 2250 is off"),
            ([0.5], "shape (3,) is wanted"),
        ],
    ),
    "12.3": (
        lambda: len(edges("tiny") & edges("tiny@1850")) / len(edges("tiny") | edges("tiny@1850")),
        [
            (lambda: len(edges("tiny") & edges("tiny@1850")), "number of common edges"),
            (
                lambda: len(edges("tiny") & edges("tiny@1850")) / len(edges("tiny")),
                "share of one circuit's edges",
            ),
            (0.99, "the overlap is a different one"),
            (7, "is not a share"),
        ],
    ),
}
