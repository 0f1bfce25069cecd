"""Every model family gives plain transformers' numbers or is refused; `docs/model_families.md` says which."""

import random
from datetime import date
from pathlib import Path

import pytest
from families_table import row_of, written_states
from family_configs import FAMILIES

PAGE = Path(__file__).parents[1] / "docs" / "model_families.md"
# One of every kind of block: what is told apart by the engine, and what has been wrong before.
DOZEN = (
    "gpt2",
    "llama",
    "neox",
    "falcon-7b",
    "gemma2",
    "olmo2",
    "olmoe",
    "granite",
    "mixtral",
    "bloom",
    "opt-350m",
    "deepseek-v2",
)
TODAY = random.Random(date.today().isoformat()).sample(sorted(set(FAMILIES) - set(DOZEN)), 20)


def check(name: str) -> None:
    """No fault, and nothing is refused that the page says works."""
    row = row_of(name)
    assert not row.faults
    states = {column: cell.state for column, cell in row.cells.items()}
    written = written_states(PAGE)[name]
    expected = {column: state for column, state in written.items() if state != "–"}
    assert states == expected, "run `make families`, which writes docs/model_families.md anew"


@pytest.mark.parametrize("name", DOZEN)
def test_a_family_is_right_or_refused(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", TODAY)
def test_twenty_families_of_the_day_are_right_or_refused(name):
    check(name)


def test_the_page_names_every_family():
    assert list(written_states(PAGE)) == list(FAMILIES)
