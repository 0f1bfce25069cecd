"""The first results that the README promises: short enough, and they run."""

import re

import pytest

from workbench import resources

ROOT = resources.circuits().parent


def doors() -> list[tuple[str, str]]:
    """(language, code) of the blocks under "Three doors": researcher, engineer, teacher."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    part = text.split("\n## Three doors\n")[1].split("\n## ")[0]
    return re.findall(r"```(\w+)\n(.*?)```", part, re.DOTALL)


def test_each_door_has_a_first_result_in_under_fifteen_lines():
    assert [language for language, _ in doors()] == ["python", "sh", "sh"]
    assert all(len(code.strip().splitlines()) < 15 for _, code in doors())


@pytest.mark.slow
def test_the_first_door_prints_a_circuit_with_its_interval_and_controls(capsys):
    exec(doors()[0][1], {})
    assert re.search(r"faithfulness +low +high +random +complement", capsys.readouterr().out)
