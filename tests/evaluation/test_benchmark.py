"""The benches, and the commands that judge circuits: rows that mean what they say, whole files or none."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from closeness import close
from typer.testing import CliRunner

import workbench as wb
from workbench.cli.app import app
from workbench.engine.capture import capture_pairs
from workbench.engine.values import from_store
from workbench.errors import CircuitError, OutputExists, PromptError, UnknownName
from workbench.evaluation import benchmark
from workbench.evaluation.behaviours import areas_table, behaviours_table, smallest_circuits
from workbench.evaluation.benchmark import bench_circuits, by_construction, json_line, on_trained_models
from workbench.evaluation.curves import faithfulness_curve
from workbench.evaluation.ground_truth import edge_auroc, precision_at_true_size
from workbench.planted_models.pairs import planted_pairs
from workbench.workflows.bench import BENCH_FILES, write_bench

FIELDS = "model task method edge_auroc edge_auroc_mib precision cpr cmd seconds peak_mb".split()
SMALL = replace(benchmark.QUICK, planted_prompts=12, tiny_prompts=2)


@pytest.fixture(scope="module", autouse=True)
def few_prompts():
    """What rows mean does not depend on how many prompts they are measured on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "QUICK", SMALL)
        yield


@pytest.fixture(scope="module")
def rows(few_prompts):
    models, methods = ["planted-induction", "tiny"], ["eap", "eap-ig-inputs", "random"]
    return list(bench_circuits(quick=True, methods=methods, models=models, progress=False))


@pytest.fixture(scope="module")
def tiny():
    return wb.load_model("tiny")


def run(*call: str):
    return CliRunner().invoke(app, list(call), catch_exceptions=False)


def test_a_row_is_what_the_parts_say_one_by_one():
    (row,) = bench_circuits(quick=True, methods=["eap"], models=["planted-induction"], seed=3, progress=False)
    known = wb.planted("induction", seed=3, n=SMALL.planted_prompts)
    train = planted_pairs(known)
    heldout = planted_pairs(known, n=SMALL.planted_prompts, split="heldout")
    other, held = (
        from_store(capture_pairs(known.model, pairs, progress=False)[1]) for pairs in (train, heldout)
    )
    scores = wb.score_edges(known.model, train, value=other, progress=False)
    truth = known.edges["corrupt"]
    assert row.edge_auroc == edge_auroc(scores, truth)
    assert row.precision == precision_at_true_size(scores, truth)
    for name, by in (("cpr", "signed"), ("cmd", "magnitude")):
        curve = faithfulness_curve(scores, known.model, heldout, value=held, by=by, progress=False)
        assert close(getattr(row, name), curve.attrs["area"], tolerance=1e-5, scale=1.0), name
    assert row.forwards > 0
    assert row.seconds > 0
    assert not row.refusal


def test_rows_of_tiny_have_no_known_edges_and_the_table_says_so(rows):
    tiny = [row for row in rows if row.model == "tiny"]
    assert {row.task for row in tiny} == {"ioi", "induction", "agreement"}
    assert all(
        math.isnan(row.edge_auroc) and math.isnan(row.precision) and np.isfinite(row.cpr) for row in tiny
    )
    for row in rows:
        line = json.loads(json_line(row))
        assert set(FIELDS) <= set(line)
        assert (line["edge_auroc"] is None) == (row.model == "tiny")
    table = by_construction(rows).set_index(["value", "method"])
    assert table.loc[("corrupt", "eap"), "mean AUROC"] > table.loc[("corrupt", "random"), "mean AUROC"]
    assert not any(row.refusal for row in rows)
    trained = on_trained_models(rows).set_index(["model", "value", "method"])
    assert {key[1] for key in trained.index} == {"corrupt", "zero", "mean"}
    better, noise = (trained.loc[("tiny", "corrupt", method)] for method in ("eap", "random"))
    assert better["CMD"] < noise["CMD"]
    assert better["error at 10 %"] < noise["error at 10 %"]
    for direction in ("noising", "denoising"):
        assert better[f"agreement, {direction}"] > noise[f"agreement, {direction}"] + 0.2
    assert math.isnan(trained.loc[("tiny", "zero", "eap"), "agreement, denoising"]), "there is no zero run"


def test_the_page_and_the_table_hold_every_row(rows, tmp_path):
    table, page = write_bench(rows, tmp_path / "bench", "workbench bench circuits")
    assert pd.read_parquet(table)["method"].tolist() == [row.method for row in rows]
    text = page.read_text()
    assert all(row.model.removeprefix("planted-") in text for row in rows)
    assert "http://" not in text.replace("http://www.w3.org", "")
    with pytest.raises(OutputExists):
        write_bench(rows, tmp_path / "bench", "again")


def test_what_the_bench_does_not_have_is_named():
    for request in ({"methods": ["eaap"]}, {"models": ["planted-nothing"]}):
        with pytest.raises(UnknownName, match=r"eap|planted-"):
            next(bench_circuits(progress=False, **request))


def test_the_command_prints_a_line_a_row_and_writes_both_files(tmp_path):
    call = (
        "bench",
        "circuits",
        "--quick",
        "--model",
        "planted-induction",
        "--method",
        "eap",
        "--out",
        str(tmp_path / "b"),
    )
    done = run(*call, "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(line["model"], line["method"]) for line in lines] == [("planted-induction", "eap")]
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == sorted(BENCH_FILES)
    with pytest.raises(OutputExists):
        run(*call)


@pytest.fixture(scope="module")
def behaviours(tiny):
    return [
        row
        for printed in smallest_circuits(
            tiny, tasks=["ioi"], methods=["eap", "ig-activations"], n=8, progress=False
        )
        for row in printed
    ]


def test_the_smallest_circuit_suffices_and_one_edge_less_does_not(tiny, behaviours):
    pairs = wb.load_task("ioi", tiny, n=8)
    other = from_store(capture_pairs(tiny, pairs, progress=False)[1])
    for row in behaviours:
        scores = wb.score_edges(tiny, pairs, value=other, method=row.method, progress=False)
        sizes = [wb.find_circuit(scores, n_edges=n) for n in (row.n_edges, row.n_edges - 1)]
        kept = wb.evaluate(sizes, tiny, pairs, value=other, checks=(), progress=False)["faithfulness"].values
        assert kept[0] >= row.share > kept[1]
        assert row.low <= row.faithfulness <= row.high
        assert 0 < row.jaccard <= 1
        assert row.n_pruned <= row.n_edges
    assert {row.n_edges for row in behaviours if row.smallest} == {min(row.n_edges for row in behaviours)}
    assert behaviours_table(behaviours)["behaviour"].tolist() == ["ioi"]
    assert len(areas_table(behaviours)) == 2


def test_what_behaviours_cannot_be_asked(tiny):
    for error, request in (
        (UnknownName, {"tasks": ["iio"]}),
        (UnknownName, {"methods": ["acdc"]}),
        (CircuitError, {"share": 0.0}),
        (CircuitError, {"share": 1.0}),
        (CircuitError, {"share": float("nan")}),
        (PromptError, {"n": 1}),
    ):
        with pytest.raises(error):
            next(smallest_circuits(tiny, progress=False, **request))


def test_behaviours_as_a_command(tmp_path):
    call = (
        "bench",
        "behaviours",
        "--task",
        "ioi",
        "--method",
        "eap",
        "--n",
        "4",
        "--json",
        "--out",
        str(tmp_path / "b"),
    )
    (line,) = [json.loads(text) for text in run(*call).stdout.splitlines() if text.startswith("{")]
    assert line["task"] == "ioi"
    assert line["smallest"] is True
    assert line["n_edges"] > 0
    table = pd.read_parquet(tmp_path / "b" / "behaviours.parquet")
    assert round(table["cmd"].iloc[0], 4) == line["cmd"], "the printed line has four digits"
    assert "ioi" in Path(tmp_path / "b" / "behaviours.html").read_text()


def test_evaluate_and_compare_as_commands(tmp_path):
    # Of two layers and 81 edges: the tests run some hundred circuits for each value.
    small_model = wb.load_model("induction")
    pairs = wb.load_task("ioi", small_model, n=4)
    other = from_store(capture_pairs(small_model, pairs, progress=False)[1])
    scores = wb.score_edges(small_model, pairs, value=other, progress=False)
    files = [str(wb.find_circuit(scores, n_edges=n).save(tmp_path / f"{n}.json")) for n in (4, 8)]
    done = run(
        "evaluate", files[1], "--model", "induction", "--task", "ioi", "--value", "from_store,zero",
        "--n", "4", "--tests", "--json",
    )  # fmt: skip
    printed = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line["value"] for line in printed if "faithfulness" in line] == ["swap", "abc", "zero"]
    assert {line["test"] for line in printed if "test" in line} == {
        "sufficiency",
        "partial_necessity",
        "minimality",
        "equivalence",
        "independence",
    }
    heldout = wb.load_task("ioi", small_model, n=4, split="heldout")
    held = from_store(capture_pairs(small_model, heldout, progress=False)[1])
    same = wb.evaluate(wb.Circuit.load(files[1]), small_model, heldout, value=held, checks=(), progress=False)
    assert close(printed[0]["faithfulness"], float(same["faithfulness"].squeeze()), tolerance=1e-5, scale=1.0)
    shown = json.loads(run("compare", *files, "--json").stdout)
    small, large = (wb.Circuit.load(name) for name in files)
    assert shown["jaccard"] == pytest.approx((small & large).n_edges / (small | large).n_edges)
    for request in (
        ("evaluate", str(tmp_path / "no.json"), "--task", "ioi"),
        ("evaluate", "ioi", "--task", "ioi", "--n", "4"),
    ):
        with pytest.raises(CircuitError):
            run(*request)
