"""`workbench effects` and `workbench paths`: tables and pictures from names."""

import functools

import pytest
from typer.testing import CliRunner

import workbench as wb
from workbench.cli.app import app
from workbench.errors import EditError, OutputExists, UnknownName, WorkbenchError
from workbench.workflows.effects import Question, strongest, write


@functools.cache
def tiny():
    return wb.load_model("tiny", device="cpu")


def test_every_value_by_name_is_that_value():
    pairs = wb.load_task("ioi", tiny(), n=24)  # of several lengths; resample finds another prompt of each
    clean, corrupt = wb.capture_pairs(tiny(), pairs, progress=False)
    values = {
        None: wb.from_store(corrupt),
        "corrupt": wb.from_store(corrupt),
        "from_store": wb.from_store(corrupt),
        "zero": wb.zero(),
        "mean": wb.mean(clean),
        "resample": wb.resample(clean, 0),
    }
    for name, value in values.items():
        table = Question("ioi", n=24, value=name).effects(tiny(), kind="attn_out")
        sites = wb.grid("attn_out", tiny())
        expected = wb.effects(tiny(), pairs, sites=sites, value=value, progress=False)
        assert table.equals(expected), name
        assert table.attrs["value"] == expected.attrs["value"], name


COMMANDS = (
    "effects ioi --value zero --metric sequence_logprob_diff --n 4",
    "effects ioi --kind resid_pre --pos each --base corrupt --n 4",
    "effects ioi --kind z --pos S2,END --value zero --n 4 --out mine",
    "paths ioi --senders heads --receivers a3.1<q>+a3.4<q>,logits@END --mlps recomputed --n 4",
    "paths ioi --path input->a0.1->a3.7<v>->logits --n 4",
)


def test_commands_write_a_table_and_a_picture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in COMMANDS:
        outcome = CliRunner().invoke(app, line.split(), catch_exceptions=False)
        assert outcome.exit_code == 0, outcome.output
        table, picture = (tmp_path / path for path in outcome.output.splitlines()[-2:])
        assert picture.read_bytes().startswith(b"\x89PNG"), line
        assert wb.load(table).sizes["example"] == 4, line
    assert wb.load(tmp_path / "runs/ioi-paths-001/paths.nc").shape == (4, 32, 2)
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["effects.nc", "effects.png"]


def test_a_dry_run_runs_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in ("effects ioi", "paths ioi --receivers m3"):
        outcome = CliRunner().invoke(app, f"{line} --dry-run --n 4".split(), catch_exceptions=False)
        assert outcome.output.startswith("path          staircase: the gpt2 family"), line
    assert list(tmp_path.iterdir()) == []


REFUSED = {
    "effects nothing": "task='nothing' is not known.",
    "effects ioi --kind zz": "kind='zz' is not known.",
    "effects ioi --value zeros": "value='zeros' is not known. Did you mean 'zero'?",
    "effects ioi --method fast": "method='fast' is not known.",
    "effects ioi --base other": "base='other' is not known.",
    "paths ioi --senders a9.9": "'a9.9': Site 'z[9.9]': this model has layers 0 to 3.",
    "paths ioi --mlps warm": "mlps='warm' is not known.",
    "paths ioi --path a3.1->a1.0<q>": "nothing goes along a3.1->a1.0<q>",
}


def test_what_cannot_be_measured_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line, message in REFUSED.items():
        with pytest.raises(WorkbenchError) as refused:
            CliRunner().invoke(app, f"{line} --n 4".split(), catch_exceptions=False)
        assert message in str(refused.value), line
        assert list(tmp_path.iterdir()) == [], line


def test_results_are_not_replaced_unasked(tmp_path):
    table = Question("ioi", n=2).effects(tiny(), kind="attn_out")
    write(table, tmp_path, "effects")
    with pytest.raises(OutputExists):
        write(table, tmp_path, "effects")
    write(table, tmp_path, "effects", overwrite=True)
    assert len(strongest(table, most=3)) == 3


def test_a_question_refuses_unknown_names_before_anything_is_loaded():
    with pytest.raises(UnknownName):
        Question("ioi", value="mode").check()
    with pytest.raises(UnknownName):
        Question("nothing").check()
    with pytest.raises(EditError):
        Question("ioi", value="corrupt", base="corrupt").check()
