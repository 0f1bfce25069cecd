"""`workbench effects` and `workbench paths`: tables and pictures from names."""

import numpy as np
import pytest
from typer.testing import CliRunner

import workbench as wb
from workbench.cli.app import app
from workbench.errors import OutputExists, UnknownName, WorkbenchError
from workbench.workflows.effects import Question, strongest, write


@pytest.fixture(scope="module")
def tiny():
    return wb.load_model("tiny")


@pytest.mark.parametrize("value", ["from_store", "zero", "mean", "resample"])
def test_every_value_by_name_is_that_value(tiny, value):
    made = Question("ioi", n=48, value=value).effects(tiny, kind="z")
    pairs = wb.load_task("ioi", tiny, n=48)
    clean, corrupt = wb.capture_pairs(tiny, pairs)
    by_hand = {
        "from_store": wb.from_store(corrupt),
        "zero": wb.zero(),
        "mean": wb.mean(clean),
        "resample": wb.resample(clean, 0),
    }
    expected = wb.effects(tiny, pairs, sites=wb.grid("z", tiny), value=by_hand[value])
    np.testing.assert_array_equal(made.values, expected.values)
    assert made.attrs["value"] == expected.attrs["value"]


def test_commands_write_a_table_and_a_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    calls = [
        ["effects", "ioi", "--value", "zero", "--metric", "sequence_logprob_diff", "--n", "4"],
        ["effects", "ioi", "--kind", "resid_pre", "--pos", "each", "--base", "corrupt", "--n", "4"],
        ["effects", "ioi", "--kind", "z", "--pos", "S2,END", "--value", "zero", "--n", "4", "--out", "mine"],
        [
            "paths",
            "ioi",
            "--senders",
            "heads",
            "--receivers",
            "a3.1<q>+a3.4<q>,logits@END",
            "--mlps",
            "recomputed",
            "--n",
            "4",
        ],
        ["paths", "ioi", "--path", "input->a0.1->a3.7<v>->logits", "--n", "4"],
    ]
    for call in calls:
        done = runner.invoke(app, call, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        table, picture = (tmp_path / line for line in done.output.splitlines()[-2:])
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert wb.load(table).sizes["example"] == 4
    assert wb.load(tmp_path / "runs/ioi-paths-001/paths.nc").shape == (4, 32, 2)
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["effects.nc", "effects.png"]


def test_a_dry_run_runs_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (["effects", "ioi"], ["paths", "ioi", "--receivers", "m3"]):
        done = CliRunner().invoke(app, [*call, "--dry-run", "--n", "4"], catch_exceptions=False)
        assert done.output.startswith("path          staircase: the gpt2 family")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (["effects", "nothing"], "task='nothing' is not known."),
        (["effects", "ioi", "--kind", "zz"], "kind='zz' is not known."),
        (["effects", "ioi", "--value", "zeros"], "value='zeros' is not known. Did you mean 'zero'?"),
        (["effects", "ioi", "--method", "fast"], "method='fast' is not known."),
        (["effects", "ioi", "--base", "other"], "base='other' is not known."),
        (["paths", "ioi", "--senders", "a9.9"], "'a9.9': Site 'z[9.9]': this model has layers 0 to 3."),
        (["paths", "ioi", "--mlps", "warm"], "mlps='warm' is not known."),
        (["paths", "ioi", "--path", "a3.1->a1.0<q>"], "nothing goes along a3.1->a1.0<q>"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_what_cannot_be_asked_for_leaves_nothing(tmp_path, monkeypatch, call, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkbenchError) as error:
        CliRunner().invoke(app, [*call, "--n", "4"], catch_exceptions=False)
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_results_are_not_replaced_unasked(tiny, tmp_path):
    made = Question("ioi", n=2).effects(tiny, kind="z")
    write(made, tmp_path, "effects")
    with pytest.raises(OutputExists):
        write(made, tmp_path, "effects")
    write(made, tmp_path, "effects", overwrite=True)
    assert len(strongest(made, most=3)) == 3
    with pytest.raises(UnknownName):
        Question("ioi", value="mode").check()
