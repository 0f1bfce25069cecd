"""Odd inputs at random (`fuzz.py`): each survives in nearly every case, and none is wrong without a word."""

import pytest
from fuzz import KINDS, failures, inputs, outcome, report


@pytest.mark.slow
def test_1500_odd_inputs():
    outcomes = [outcome(kind, number, 0) for kind, number in inputs(1500)]
    said = f"{report(outcomes)}\n{failures(outcomes, 0)}"
    assert not any(one.silent for one in outcomes), said
    for kind in KINDS:
        of_kind = [one for one in outcomes if one.kind == kind]
        assert sum(bool(one.failure) for one in of_kind) <= 0.01 * len(of_kind), said
