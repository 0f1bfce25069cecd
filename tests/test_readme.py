"""The first results that the README promises: short enough, and they run."""

import re
from typing import Any

import pytest

from workbench import resources

ROOT = resources.circuits().parent


def ways_in() -> list[tuple[str, str]]:
    """(language, code) of the blocks under "Three ways in": researcher, engineer, teacher."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    part = text.split("\n## Three ways in\n")[1].split("\n## ")[0]
    return re.findall(r"```(\w+)\n(.*?)```", part, re.DOTALL)


def test_each_way_in_has_a_first_result_in_under_fifteen_lines():
    assert [language for language, _ in ways_in()] == ["python", "sh", "sh"]
    assert all(len(code.strip().splitlines()) < 15 for _, code in ways_in())


@pytest.mark.slow
def test_the_first_way_in_prints_how_well_the_circuit_does_what_the_model_does(capsys):
    names: dict[str, Any] = {}
    exec(ways_in()[0][1], names)
    assert re.search(r"faithfulness +error +r +kl_recovered", capsys.readouterr().out)
    # Against both counterfactuals, on prompts that chose nothing.
    assert (names["result"]["error"] <= 0.15).all()
