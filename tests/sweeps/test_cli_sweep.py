"""`workbench sweep`, its exit codes and its JSON, and the pictures and pages of folders written by hand."""

import html
import json
import re
import sys
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from fake_sweeps import record, write_sweep
from matplotlib.colors import CenteredNorm
from pictures import HOSTILE
from typer.testing import CliRunner

import workbench as wb
from workbench.cli.app import app
from workbench.errors import SweepError, WorkbenchError
from workbench.sweeps.strongest import strongest
from workbench.workflows.sweep import report_sweep

GOOD = [
    record(f"z[{layer}.{head}]", [-layer + 0.1, -layer - 0.1, -float(layer)])
    for layer in range(2)
    for head in range(3)
]
BAD = [
    *GOOD,
    record("z[2.0]", status="failed", error="ValueError: \x1b[31mno"),
    record("z[2.1]", [None, 1.0], status="nan"),
]


def call(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["workbench", *(typed := ["sweep", *map(str, arguments)])])
        return CliRunner().invoke(app, typed)


@dataclass(frozen=True)
class Cost:
    jobs: int = 6

    def __str__(self) -> str:
        return f"{self.jobs} jobs"


@pytest.fixture
def calls(monkeypatch):
    """What `read_spec` and `run_sweep` are called with, in place of both."""
    made = []

    def read_spec(source, **changes):
        return {"file": source, **changes} if not isinstance(source, dict) else source | changes

    def run_sweep(spec, *, out, dry_run=False, **options):
        made.append((spec, options))
        return Cost() if dry_run else wb.load_sweep(write_sweep(out, BAD if options["limit"] == 1 else GOOD))

    for name, function in (("spec", read_spec), ("runner", run_sweep)):
        module = ModuleType(f"workbench.sweeps.{name}")
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


def test_every_option_becomes_a_field(calls, tmp_path):
    result = call(
        "run", "--preset", "head-ablation", "--models", "tiny,gpt2", "--tasks", "ioi", "--sites", "z[1.2]+z[2.0],mlp_out", "--seeds",
        "0,1", "--strengths", "0.5,-2", "--n-edges", "10,20", "-n", "8", "--values", "zero,constant:1.5", "--out", tmp_path / "s",
        "--workers", "2", "--no-bos", "--extend",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 's'}: 6 jobs: 6 done, 0 remaining\n"
    spec, options = calls[0]
    assert spec == {
        "preset": "head-ablation", "models": ["tiny", "gpt2"], "tasks": ["ioi"], "sites": [["z[1.2]", "z[2.0]"], "mlp_out"],
        "seeds": [0, 1], "strengths": [0.5, -2.0], "n_edges": [10, 20], "n": 8, "values": ["zero", "constant:1.5"],
        "bos": False,
    }  # fmt: skip
    wanted = {
        "backend": "local",
        "workers": 2,
        "limit": None,
        "retries": 1,
        "extend": True,
        "progress": True,
    }
    assert options | wanted == options
    assert options["command"].startswith("workbench sweep run --preset head-ablation ")


def test_options_replace_the_fields_of_a_file(calls, tmp_path):
    assert call("run", "a.yaml", "--seeds", "3", "--out", tmp_path / "s", "--dry-run").stdout == "6 jobs\n"
    assert json.loads(call("run", "a.yaml", "--out", tmp_path / "s", "--dry-run", "--json").stdout) == {
        "jobs": 6
    }
    assert str(calls[0][0]["file"]) == "a.yaml"
    assert calls[0][0]["seeds"] == [3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run"],
            "Which sweep? Give a SPEC.yaml, or --preset head-ablation --models tiny --tasks ioi.",
        ),
        (
            ["run", "--seeds", "0,x"],
            "--seeds '0,x': invalid literal for int() with base 10: 'x'. Give numbers separated by commas, as in 1,2,3.",
        ),
    ],
)
def test_what_cannot_be_run(calls, arguments, message):
    error = call(*arguments).exception
    assert isinstance(error, SweepError), "main() prints it and exits with 2"
    assert str(error) == message


def test_status_tells_failures_and_exits_with_1(tmp_path):
    folder = write_sweep(tmp_path / "s", BAD, jobs=9)
    result = call("status", folder)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        f"{folder}: 9 jobs: 6 done, 1 nan, 1 failed, 1 remaining",
        "  failed tiny ioi logit_diff zero z[2.0], seed 0: ValueError: \\x1b[31mno",
        "  nan    tiny ioi logit_diff zero z[2.1], seed 0: cells that are not numbers",
    ]
    found = json.loads(call("status", folder, "--json").stdout)
    assert [found[name] for name in ("jobs", "done", "nan", "failed", "memory", "remaining")] == [
        9,
        6,
        1,
        1,
        0,
        1,
    ]
    assert found["failures"][0]["error"] == "ValueError: \x1b[31mno"
    assert call("status", write_sweep(tmp_path / "t", GOOD)).exit_code == 0
    assert isinstance(call("status", tmp_path / "nowhere").exception, SweepError)


def test_resume_runs_the_spec_of_the_folder(calls, tmp_path):
    folder = write_sweep(tmp_path / "s", BAD)
    assert call("resume", folder).exit_code == 0
    assert calls[0][0]["models"] == ["tiny"]
    assert call("resume", folder, "--limit", "1", "--json").exit_code == 1


def test_the_table_as_files_as_json_and_as_text(tmp_path):
    folder = write_sweep(tmp_path / "s", BAD)
    csv, parquet = tmp_path / "rows.csv", tmp_path / "rows.parquet"
    assert call("table", folder, "--csv", csv, "--parquet", parquet).exit_code == 0
    rows = wb.load_sweep(folder).rows
    pd.testing.assert_frame_equal(pd.read_parquet(parquet), rows)
    assert pd.read_csv(csv)["mean"].isna().tolist() == [False] * 6 + [True, False]
    lines = [json.loads(line) for line in call("table", folder, "--json").stdout.splitlines()]
    assert [line["mean"] for line in lines] == pytest.approx([0, 0, 0, -1, -1, -1, None, 1.0])
    text = call("table", folder).stdout
    assert "rows by the size of their mean" in text
    assert "z[1.0]" in text
    assert call("table", folder, "--csv", csv).exception.args[0].startswith(f"{str(csv)!r} exists.")


def test_validate(calls, tmp_path):
    folder = write_sweep(tmp_path / "s", BAD)
    assert json.loads(call("validate", folder, "--json").stdout) == {
        "folder": str(folder),
        "jobs": 8,
        "rows": 8,
    }
    (folder / "jobs.jsonl").write_text("no\n" + json.dumps(GOOD[0]) + "\n")
    with pytest.raises(SweepError, match="Line 1 of"):
        raise call("validate", folder).exception


def test_a_report_shows_hostile_text_as_text(tmp_path):
    records = [record(text, [1.0, 2.0, 3.0]) for text in HOSTILE if text != "\ud800"]
    records += [record("z[0.0]", status="failed", error=text) for text in HOSTILE[:1]]
    folder = write_sweep(tmp_path / "s", records)
    result = call("report", folder, "--json")
    assert result.exit_code == 0, result.exception
    page = (folder / "report.html").read_text()
    assert json.loads(result.stdout) == {"report": str(folder / "report.html")}
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page
    assert all(
        f"<h2>{name}</h2>" in re.sub(r"<h2[^>]*>", "<h2>", page)
        for name in ("Picture", "Strongest", "Failures", "Asked")
    )
    assert call("report", folder).exception.args[0].endswith("pass overwrite=True to replace it.")
    assert call("report", folder, "--overwrite").exit_code == 0


def test_a_report_names_what_ran_the_sweep_and_not_itself(tmp_path, monkeypatch):
    spec = {"preset": "head-ablation", "sites": ["z[1.1]"], "tasks": ["ioi"], "n": 2}
    monkeypatch.setattr(sys, "argv", ["workbench", "sweep", "report", "folder"])

    def made_by(name):
        folder = tmp_path / name
        assert call("report", folder, "--overwrite").exit_code == 0
        return html.unescape(
            re.search(r"Made by</p><pre>(.*?)</pre>", (folder / "report.html").read_text(), re.DOTALL)[1]
        )

    def run(name, **more):
        wb.run_sweep(spec | more.pop("change", {}), out=tmp_path / name, progress=False, device="cpu", **more)

    run("shell", command="workbench sweep run <b>.yaml")
    run("shell", command="workbench sweep resume")
    assert made_by("shell") == "workbench sweep run <b>.yaml"
    run("shell", command="workbench sweep run two.yaml --extend", change={"n": 3}, extend=True)
    assert made_by("shell") == "workbench sweep run <b>.yaml\nworkbench sweep run two.yaml --extend"
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    run("prompt")
    assert made_by("prompt") == "Python"
    main.__file__ = "a b.py"
    monkeypatch.setattr(sys, "argv", ["a b.py", "--fast"])
    run("script")
    assert made_by("script") == "python 'a b.py' --fast"


@pytest.mark.parametrize("records", [[], [record("z[0.0]", status="failed", error="E: no")]])
def test_a_report_of_nothing_says_why(tmp_path, records):
    folder = write_sweep(tmp_path / "s", records, jobs=3)
    page = report_sweep(wb.load_sweep(folder), tmp_path / "page.html").read_text()
    assert "3 jobs: " in page
    with pytest.raises(WorkbenchError, match="measured"):
        wb.plot(wb.load_sweep(folder))


def test_heads_are_a_grid_for_each_value_on_one_scale(tmp_path):
    records = [*GOOD, *(each | {"job": each["job"] + "m", "value": "mean"} for each in GOOD[1:])]
    figure = wb.plot(wb.load_sweep(write_sweep(tmp_path / "s", records)), title="Heads")
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc="left") for axes in panels] == ["zero", "mean"]
    norms = [axes.images[0].norm for axes in panels]
    assert all(isinstance(norm, CenteredNorm) and norm.halfrange == 1.0 for norm in norms)
    assert panels[1].images[0].get_array().mask[0, 0], "not measured"


def test_the_picture_of_a_backup_pair(tmp_path):
    sites = {"z[1.0]": -0.5, "z[2.0]": 0.0, "z[2.1]": 0.1}
    records = [record(site, [effect] * 3, study="pairs") for site, effect in sites.items()]
    records += [
        record("z[1.0]+z[2.0]", [-2.0] * 3, study="pairs"),
        record("z[1.0]+z[2.1]", [-0.4] * 3, study="pairs"),
    ]
    sweep = wb.load_sweep(write_sweep(tmp_path / "s", records))
    axes = wb.plot(sweep).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a1.0", "a2.0", "a2.1"]
    drawn = np.ma.filled(axes.images[0].get_array(), np.nan)
    np.testing.assert_allclose(
        drawn, [[np.nan, -1.5, 0], [-1.5, np.nan, np.nan], [0, np.nan, np.nan]], atol=1e-12
    )
    assert strongest(sweep)[0]["site_b"].tolist() == ["z[2.0]", "z[2.1]"]


def studies():
    order = {"order": ["z[1.0]", "z[0.2]"], "mean": [-1.0, -3.0], "low": [-1.5, -4.0], "high": [-0.5, -2.0]}
    measured = {"faithfulness": 0.8, "low": 0.7, "high": 0.9}
    return {
        "layers": [record(f"mlp_out[{i}]", [float(i), 1.0]) for i in range(3)],
        "neurons": [record(f"mlp_post[{i % 2}:{i // 2}]", [float(i), 1.0]) for i in range(60)],
        "mixed": [record("mlp_out[0]", [1.0, 2.0]), record("attn_out[0]", [1.0, 2.0])],
        "positions": [record(f"resid_pre[{i}]@{pos}", [1.0, 2.0]) for i in range(2) for pos in (0, "END")],
        "cumulative": [record("z", [-3.0], study="cumulative", value=value, extra=order) for value in ("zero", "mean")],
        "paths": [record(f"a0.{i}->{end}", [1.0, 2.0], study="paths") for i in range(2) for end in ("a1.0<q>", "logits")],
        "sets": [record("a0.0+a0.1->logits", [1.0, 2.0], study="paths"), record("input->a1.0->logits", [1.0, 2.0], study="paths")],
        "circuits": [record("ioi.circuit.json", study="circuits", extra=measured)],
        "methods": [record(f"eap@{size}", study="methods", extra=measured | {"n_edges": size}) for size in (10, 20)],
        "method": [record("eap@10", study="methods", extra=measured | {"n_edges": 10}, metric=name) for name in ("kl", "nll")],
        "stability": [record("eap@3", study="stability", seed=i, extra={"edges": list("abc")[i:]}) for i in range(2)],
        "steering": [record(f"resid_post[1]*{strength}", [strength, 1.0], study="steering") for strength in (-1.0, 0.0, 2.0)],
    }  # fmt: skip


@pytest.mark.parametrize("name", studies())
def test_every_study_has_a_picture_and_a_page(tmp_path, name):
    records = studies()[name]
    sweep = wb.load_sweep(write_sweep(tmp_path / "s", records))
    assert sweep.arrays().sizes
    shown, caption = strongest(sweep)
    assert len(shown) and caption  # noqa: PT018
    page = report_sweep(sweep, tmp_path / "page.html").read_text(encoding="utf-8")
    assert 'class="plot"' in page, "its picture, as `plot` draws it"
    if name in ("circuits", "paths"):
        assert wb.compare_sweeps(sweep, sweep)["difference"].tolist() == [0.0] * len(records)
