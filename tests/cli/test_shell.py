"""The shell: every command has --json, lists import nothing heavy, tables stay narrow, bars and logs."""

import json
import logging
import os
import subprocess
import sys

import pytest
import typer
from fake_sweeps import record, write_sweep
from typer.testing import CliRunner

from workbench import names, progress
from workbench.cli import app as cli
from workbench.cli.completions import LISTINGS, completion
from workbench.cli.output import WIDEST, print_json, print_table

HEAVY = ("torch", "transformer_lens", "matplotlib", "pandas", "scipy", "xarray")


def commands(group, prefix=()):
    """The words of every command."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*prefix, name))
        else:
            yield (*prefix, name), command


def printed(*arguments: str) -> str:
    outcome = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


COMMANDS = dict(commands(typer.main.get_command(cli.app)))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_json(words):
    assert "--json" in [option for parameter in COMMANDS[words].params for option in parameter.opts]


def test_lists_and_states_import_nothing_heavy(tmp_path):
    """Imports of the engine take seconds, and a list is read at every press of the completion key."""
    folder = write_sweep(
        tmp_path / "a", [record("z[0.0]", [1.0]), record("z[0.1]", status="failed", error="x")]
    )
    lines = [["ls", what] for what in LISTINGS]
    lines += [["models", "ls"], ["course", "list"], ["sweep", "status", str(folder)], ["--version"]]
    code = (
        "import sys, json\nfrom typer.testing import CliRunner\nfrom workbench.cli import app\n"
        f"for line in {lines!r}:\n"
        "    result = CliRunner().invoke(app.app, line)\n"
        "    assert result.exit_code == (line[0] == 'sweep'), (line, result.output)\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_listings_are_json_and_narrow_tables():
    for what in LISTINGS:
        rows = json.loads(printed("ls", what, "--json"))
        lines = printed("ls", what).splitlines()
        assert len(lines) > len(rows) > 1
        assert max(map(len, lines)) <= WIDEST


def test_the_names_of_lists_are_those_that_the_library_knows():
    from workbench.metrics.metric import BUILT_IN

    assert list(names.METRICS) == list(BUILT_IN)


def test_completions_are_names_that_begin_so():
    assert dict(completion("tasks")("io")).keys() == {"ioi"}
    assert {name for name, _ in completion("methods", "effects")("")} == set(names.EFFECT_METHODS)
    assert [name for name, _ in completion("listings")("m")] == ["models", "methods", "metrics"]


def test_json_has_no_nan_and_tables_show_a_dash(capsys):
    rows = [
        {"name": "a\x1b[2J", "number": float("nan"), "share": 0.123456},
        {"name": "b", "number": 1, "share": None},
    ]
    print_json(rows)
    assert json.loads(capsys.readouterr().out)[0]["number"] is None
    print_table(rows, most=1)
    shown = capsys.readouterr().out
    assert "a\\x1b[2J       –  0.1235" in shown
    assert "1 more" in shown


def test_long_work_without_a_terminal_is_a_line_of_the_log_now_and_then(monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="workbench.progress")
    clock = iter(range(100, 4000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress_bar(8, "runs", "run", shown=True) as bar:
        for _ in range(8):
            bar.last_print_t = 0.0  # as if tqdm's interval had passed
            bar.update()
    lines = [entry.message for entry in caplog.records]
    assert lines
    assert all(line.startswith("runs: ") for line in lines)
    assert len(lines) < 8


def test_a_hidden_bar_logs_nothing(caplog):
    caplog.set_level(logging.INFO, logger="workbench.progress")
    with progress.progress_bar(2, "runs", "run", shown=False) as bar:
        bar.update(2)
    assert caplog.records == []
