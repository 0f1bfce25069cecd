"""The first results that the README promises: short enough, and they run (`docs/test_blocks.py` runs the rest)."""

import re
from typing import Any

import pytest

from workbench import resources

ROOT = resources.circuits().parent


def text() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(part: str) -> list[tuple[str, str]]:
    """(language, code) of the blocks of a part of the README."""
    return re.findall(r"```(\w+)\n(.*?)```", part, re.DOTALL)


def test_it_is_short_and_leads_with_a_picture_and_twelve_lines():
    assert len(text().splitlines()) <= 80
    lead = text().split("\n## ")[0]
    assert lead.index("](docs/ioi.svg)") < lead.index("```python")
    (language, code), (shown, _) = blocks(lead)
    assert (language, shown) == ("python", "text")
    assert len(code.strip().splitlines()) <= 12


def test_each_way_in_has_a_first_result_in_under_fifteen_lines():
    ways = blocks(text().split("\n## Three ways in\n")[1].split("\n## ")[0])
    assert [language for language, _ in ways] == ["sh", "sh"]
    assert all(len(code.strip().splitlines()) < 15 for _, code in ways)


def test_its_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", text())
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.slow
def test_the_first_lines_print_how_well_the_circuit_does_what_the_model_does(capsys):
    names: dict[str, Any] = {}
    exec(blocks(text())[0][1], names)
    assert re.search(r"faithfulness +error +r +kl_recovered", capsys.readouterr().out)
    # Against both counterfactuals, on prompts that chose nothing.
    assert (names["result"]["error"] <= 0.15).all()
