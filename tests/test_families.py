"""Every model family gives plain transformers' numbers or is refused (`families_table.py` shows all of them)."""

import pytest
from families_table import COLUMNS, row_of

# One of every kind of block, and what of each is refused today.
DOZEN = {
    "gpt2": (),
    "gpt-neo": (),
    "llama": (),
    "mistral-sliding": (),
    "neox": (),
    "falcon-7b": (),
    "stablelm-parallel": (),
    "phi3": (),
    "bloom": (),
    "gemma2": (),
    "cohere": ("attribution", "lens"),
    "granite": ("full", "random", "gradient", "attribution", "lens"),
}


@pytest.mark.parametrize("name", DOZEN)
def test_a_family_is_right_or_refused(name):
    row = row_of(name)
    assert not row.faults
    refused = [column for column in COLUMNS if row.cells[column].state == "refused"]
    assert refused == list(DOZEN[name])
