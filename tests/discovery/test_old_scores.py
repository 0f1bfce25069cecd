"""Scores that version 0.1 wrote are read by this one: `old_scores.nc`, EAP-IG scores of a planted model.

Made by 0.1 from `wb.planted("induction", n=8)` with `value=wb.from_store(corrupt)`; its circuit of five edges is the
true one.
"""

from pathlib import Path

import workbench as wb

SCORES = Path(__file__).with_name("old_scores.nc")


def test_scores_of_the_last_version_give_the_same_circuit():
    planted = wb.planted("induction", n=8)
    scores = wb.load(SCORES)
    assert scores.attrs["version_interp_workbench"] == "0.1.0"
    circuit = wb.find_circuit(scores, n_edges=5)
    assert {str(edge) for edge in circuit.edge_list} == planted.edges["corrupt"]


def test_the_value_of_old_scores_is_made_again_from_its_old_name():
    planted = wb.planted("induction", n=8)
    pairs = wb.planted_pairs(planted)
    circuit = wb.find_circuit(wb.load(SCORES), min_faithfulness=0.9, model=planted.model, pairs=pairs)
    assert {str(edge) for edge in circuit.edge_list} == planted.edges["corrupt"]
