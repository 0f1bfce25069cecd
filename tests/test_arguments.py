"""Whatever a caller passes, the answer is a result or a WorkbenchError: never an error from inside Python or torch.

Every callable of `wb.__all__` is called with valid arguments, in which one at a time is replaced by each of 31 values
that do not belong there. The default suite takes another part of the table each day, the slow one all of it.
"""

import errno
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from inspect import signature
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import workbench as wb
from workbench.arguments import checked, rule_of
from workbench.engine.circuits import Circuits
from workbench.errors import ArgumentError

# Made anew for each call: a generator can be gone through once.
NASTY: dict[str, Callable[[], Any]] = {
    "None": lambda: None, "True": lambda: True, "0": lambda: 0, "-1": lambda: -1, "1.5": lambda: 1.5,
    "nan": lambda: float("nan"), "inf": lambda: float("inf"), "10**400": lambda: 10**400, "10**12": lambda: 10**12,
    "empty text": lambda: "", "x": lambda: "x", "bytes": lambda: b"x", "NUL": lambda: "a\0b", "half": lambda: "a\ud83d",
    "[]": lambda: [], "[[]]": lambda: [[]], "{}": lambda: {}, "()": lambda: (), "object": object, "type": lambda: int,
    "lambda": lambda: lambda *given, **named: None, "float32": lambda: np.float32(2.5), "array0": lambda: np.array(3),
    "array": lambda: np.zeros((2, 3)), "words": lambda: np.array(["a", "b"]), "empty tensor": lambda: torch.empty(0),
    "tensor": lambda: torch.zeros(2, 2), "bool tensor": lambda: torch.tensor(True), "path": lambda: Path("nowhere"),
    "set": lambda: {1, "a"}, "generator": lambda: (number for number in (1, 2)),
}  # fmt: skip

LONG = ("causal_check",)  # takes longer than all others together
LOOPS = ("draws", "epochs", "n_random", "resampled", "restarts", "steps")


@cache
def valid_calls() -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Name → what is called, and arguments that it takes, as few and small as they can be."""
    model = wb.load_model("tiny", device="cpu")
    pairs = wb.load_task("ioi", model, n=4)
    clean, corrupt = wb.capture_pairs(model, pairs, progress=False)
    value, quiet = wb.zero(), {"progress": False}
    edges = wb.score_edges(model, pairs, value=value, keep=("example",), **quiet)
    scores = wb.score_edges(model, pairs, value=value, **quiet)
    circuit = wb.find_circuit(scores, n_edges=20)
    planted = wb.planted("induction", n=4)
    small = wb.planted_pairs(planted)
    effects = wb.effects(model, pairs, sites=["z[0.0]", "z[1.0]"], value=value, **quiet)
    labels = wb.Labels.per_prompt(clean, {"late": [False, True, False, True]})
    probes = wb.fit_probes(clean, labels, sites=["resid_post"], layers=[0], k=[1], controls=[], resampled=0)
    lens = wb.fit_tuned_lens(clean, model, epochs=1, layers=[0])
    frame = pd.DataFrame([["The dog near the cats", "The dogs near the cats", "is", "are"]])
    frame.columns = ["clean", "corrupt", "answer", "wrong"]
    folder = Path.cwd()
    wb.save(scores, folder / "scores.nc")
    circuit.save(folder / "circuit.json")
    lens.save(folder / "lens")
    wb.capture(model, pairs.clean, sites=["z"], path=folder / "store", **quiet)
    spec = {"study": "effects", "tasks": ["ioi"], "n": 2, "sites": ["z[0.0]"], "models": ["tiny"]}
    sweep = folder / "sweep"
    wb.run_sweep(spec, out=sweep, progress=False)
    (folder / "taken").mkdir()
    (folder / "taken" / "report.html").write_text("someone else's")
    on_pairs = {"model": model, "pairs": pairs, "value": value}
    on_circuit = {"circuit": circuit} | on_pairs
    # Of a planted model, where a circuit is run in no time: these run dozens in each call.
    few = wb.score_edges(planted.model, small, value=value, keep=("example",), **quiet)
    part = wb.find_circuit(few, n_edges=12)
    runs = {"zero": Circuits(planted.model, part.graph, small, value=value, metric=wb.metric("logit_diff"))}
    return {
        "ActivationStore.of": (wb.ActivationStore.of, {
            "prompts": wb.Prompts.of([[1, 2]]), "tensors": {("z", 0): torch.zeros(2, 3)}, "model": "m",
            "model_name": "m", "tokenizer": "t"}),
        "ActivationStore": (wb.ActivationStore, {
            "prompts": clean.prompts, "data": {}, "index": clean.index, "model": "m", "model_name": "m", "tokenizer": "t"}),
        "Circuit": (wb.Circuit, _fields(circuit)),
        "Circuit.of": (wb.Circuit.of, {"model_or_shape": circuit.graph, "edges": ["m0->logits"]}),
        "Circuit.of_nodes": (wb.Circuit.of_nodes, {"model_or_shape": circuit.graph, "nodes": ["m0"]}),
        "Circuit.full": (wb.Circuit.full, {"model_or_shape": model}),
        "Circuit.empty": (wb.Circuit.empty, {"model_or_shape": model}),
        "Circuit.load": (wb.Circuit.load, {"path": folder / "circuit.json"}),
        "Circuit.save": (circuit.save, {"path": "new.json"}),
        "Circuit.restricted": (circuit.restricted, {}),
        "Circuit.by_component": (circuit.by_component, {}),
        "Circuit.score": (circuit.score, {"edge": "m0->logits"}),
        "Criteria": (wb.Criteria, {}),
        "Edge": (wb.Edge, {"writer": "m0", "reader": "logits"}),
        "Edge.parse": (wb.Edge.parse, {"text": "m0->logits"}),
        "Experiment": (wb.Experiment, _fields(wb.Experiment.of(model, pairs))),
        "Experiment.of": (wb.Experiment.of, {"model": model, "task": pairs}),
        "Graph": (wb.Graph, _fields(circuit.graph)),
        "Graph.of": (wb.Graph.of, {"model_or_shape": model}),
        "Grid": (wb.Grid, _fields(wb.grid("z", model))),
        "Labels": (wb.Labels, _fields(labels)),
        "Labels.of": (wb.Labels.of, {"store": clean, "concepts": {"late": [False, True]}, "prompt": [0, 1], "pos": [1, 1]}),
        "Labels.per_prompt": (wb.Labels.per_prompt, {"store": clean, "concepts": {"late": [False, True, False, True]}}),
        "Labels.of_concepts": (wb.Labels.of_concepts, {"store": clean, "names": ["IO"]}),
        "Labels.from_dataframe": (wb.Labels.from_dataframe, {
            "store": clean, "frame": pd.DataFrame({"prompt": [0, 1], "pos": [1, 1], "late": [0, 1]})}),
        "Metric": (wb.Metric, {"name": "mine", "function": len}),
        "Planted": (wb.Planted, _fields(planted)),
        "Planted.drawn": (planted.drawn, {"n": 4}),
        "Probes": (wb.Probes, _fields(probes)),
        "ProbeSettings": (wb.ProbeSettings, {}),
        "PromptPairs": (wb.PromptPairs, _fields(pairs)),
        "PromptPairs.of": (wb.PromptPairs.of, {
            "clean": [[0, 5, 7]], "corrupt": [[0, 4, 7]], "answers": [9], "wrong": [8], "model": model}),
        "PromptPairs.from_dataframe": (wb.PromptPairs.from_dataframe, {"model": model, "frame": frame}),
        "PromptPairs.from_csv": (wb.PromptPairs.from_csv, {"model": model, "path": "nowhere.csv"}),
        "PromptPairs.from_jsonl": (wb.PromptPairs.from_jsonl, {"model": model, "path": "nowhere.jsonl"}),
        "PromptPairs.against": (pairs.against, {"name": "abc"}),
        "PromptPairs.parts": (pairs.parts, {"shares": (1, 1)}),
        "PromptPairs.select": (pairs.select, {"indices": [0]}),
        "PromptPairs.split": (pairs.split, {}),
        "PromptPairs.side": (pairs.side, {"name": "clean"}),
        "Prompts": (wb.Prompts, _fields(pairs.clean)),
        "Prompts.of": (wb.Prompts.of, {"rows": [[0, 5, 7]]}),
        "Prompts.at": (pairs.clean.at, {"where": "END"}),
        "Prompts.select": (pairs.clean.select, {"indices": [0]}),
        "Shape": (wb.Shape, _fields(circuit.graph.shape)),
        "Site": (wb.Site, {"kind": "z", "layer": 0}),
        "Site.parse": (wb.Site.parse, {"text": "z[0.0]"}),
        "SweepSpec": (wb.SweepSpec, spec),
        "TunedLens": (wb.TunedLens, _fields(lens)),
        "TunedLens.load": (wb.TunedLens.load, {"path": folder / "lens"}),
        "WorkbenchError": (wb.WorkbenchError, {}),
        "acdc": (wb.acdc, {"model": planted.model, "pairs": small, "value": value, "threshold": 1.0} | quiet),
        "add": (wb.add, {"vector": 1.0}),
        "agreement": (wb.agreement, {
            "circuit": part, "scores": few, "noising": runs, "denoising": runs, "n_inside": 2, "n_outside": 2}),
        "attention_to": (wb.attention_to, {"store": clean, "keys": ["S1"]}),
        "capture": (wb.capture, {"model": model, "tokens": [[0, 5, 7]], "sites": ["z"]} | quiet),
        "capture_cost": (wb.capture_cost, {"model": model, "tokens": [[0, 5, 7]], "sites": ["z"]}),
        "capture_pairs": (wb.capture_pairs, {"model": model, "pairs": pairs, "sites": ["z"]} | quiet),
        "causal_check": (wb.causal_check, {
            "probes": probes, "model": model, "pairs": pairs, "concept": "late", "kind": "resid_post",
            "stores": (clean, corrupt), "n_random": 19}),
        "competent": (wb.competent, {"model": model, "pairs": pairs}),
        "circuit_tests": (wb.circuit_tests, on_circuit | quiet | {"draws": 9, "alpha": 0.2}),
        "compare": (wb.compare, {"a": circuit, "b": circuit}),
        "compare_sweeps": (wb.compare_sweeps, {"a": sweep, "b": sweep}),
        "constant": (wb.constant, {"content": 1.0}),
        "controls": (wb.controls, {"circuit": part, "runs": runs, "criteria": wb.Criteria(), "draws": 2}),
        "copying_scores": (wb.copying_scores, {"store": clean, "model": model}),
        "difference": (wb.difference, {"a": effects, "b": effects}),
        "direct_attribution": (wb.direct_attribution, {"store": clean, "model": model, "targets": pairs.answers}),
        # Discovery takes seconds: this one is refused for its folder, after its arguments were looked at.
        "counterfactual_values": (wb.counterfactual_values, {"model": model, "pairs": pairs}),
        "discover_cost": (wb.discover_cost, {"model": model, "task": "nothing"}),
        "discover": (wb.discover, {"model": model, "task": "ioi", "out": folder / "taken", "n": 4} | quiet),
        "effects": (wb.effects, on_pairs | quiet | {"sites": ["z[0.0]"]}),
        "evaluate": (wb.evaluate, on_circuit | quiet | {"checks": ()}),
        "explain": (wb.explain, on_pairs | {"sites": ["z[0.0]"]}),
        "export": (wb.export, {"thing": circuit, "path": "circuit.svg"}),
        "faithfulness_curve": (wb.faithfulness_curve, {"scores": scores, "sizes": [0.5]} | on_pairs | quiet),
        "find_circuit": (wb.find_circuit, {"scores": scores, "n_edges": 5}),
        "fit_probes": (wb.fit_probes, {
            "store": clean, "labels": labels, "sites": ["resid_post"], "layers": [0], "k": [1], "controls": [],
            "resampled": 0}),
        "fit_tuned_lens": (wb.fit_tuned_lens, {"store": clean, "model": model, "epochs": 1, "layers": [0]}),
        "from_store": (wb.from_store, {"store": clean}),
        "grid": (wb.grid, {"kind": "z", "model_or_shape": model}),
        "head_scores": (wb.head_scores, {"store": clean}),
        "joint_scores": (wb.joint_scores, {"scores": scores}),
        "learn_circuit": (wb.learn_circuit, on_pairs | quiet | {"n_edges": 5, "steps": 1}),
        "load": (wb.load, {"path": folder / "scores.nc"}),
        "load_model": (wb.load_model, {"source": model}),
        "load_sweep": (wb.load_sweep, {"path": sweep}),
        "load_task": (wb.load_task, {"name": "ioi", "model": model, "n": 2}),
        "logit_lens": (wb.logit_lens, {"store": clean, "model": model, "targets": pairs.answers}),
        "mean": (wb.mean, {"store": clean}),
        # The same: so many prompts no task has.
        "measure": (wb.measure, {"model": model, "n": 0} | quiet),
        "metric": (wb.metric, {"given": "logit_diff"}),
        "minimality": (wb.minimality, on_circuit),
        "model_fingerprint": (wb.model_fingerprint, {"model": model}),
        "neuron_maps": (wb.neuron_maps, {"store": clean, "labels": labels, "kind": "resid_post", "layers": [0]}),
        "norms": (wb.norms, {"store": clean}),
        "open_store": (wb.open_store, {"place": folder / "store"}),
        "path_effects": (wb.path_effects, on_pairs | quiet | {"senders": ["m0"], "mlps": "frozen"}),
        "planted": (wb.planted, {"name": "induction", "n": 4}),
        "planted_pairs": (wb.planted_pairs, {"planted": planted}),
        "plot": (wb.plot, {"result": effects}),
        "project": (wb.project, {"basis": torch.ones(128), "value": value}),
        "read_circuit": (wb.read_circuit, {"path": folder / "circuit.json"}),
        "read_corpus": (wb.read_corpus, {"model": model, "source": ["The dog near the cats is"]}),
        "reference_circuit": (wb.reference_circuit, {"name": "ioi"}),
        "repair": (wb.repair, {"model": model, "path": folder / "store"} | quiet),
        "report": (wb.report, {"sections": [("Effects", effects.to_dataframe())], "path": "page.html", "title": "Page"}),
        "resample": (wb.resample, {"store": clean}),
        "rule_stability": (wb.rule_stability, {
            "scores": few, "runs": runs, "criteria": wb.Criteria(), "draws": 2, "near": 8}),
        "run": (wb.run, {"model": model, "tokens": [[0, 5, 7]]}),
        "run_sweep": (wb.run_sweep, {"spec": spec, "out": "dry", "dry_run": True} | quiet),
        "save": (wb.save, {"result": effects, "path": "effects.nc"}),
        "scale": (wb.scale, {"factor": 0.5}),
        "score_edges": (wb.score_edges, on_pairs | quiet),
        "score_nodes": (wb.score_nodes, on_pairs | quiet),
        "specification_curve": (wb.specification_curve, {
            "model": planted.model, "pairs": small, "n_edges": 5, "draws": 1, "metrics": ["logit_diff"],
            "methods": ["clean-corrupt"]} | quiet),
        "stability": (wb.stability, {"scores": edges, "find": lambda mean: wb.find_circuit(mean, n_edges=5), "draws": 2}),
        "summary": (wb.summary, {"result": effects}),
        "top_tokens": (wb.top_tokens, {"store": clean, "model": model}),
        "write_circuit": (wb.write_circuit, {"circuit": circuit, "path": "written.json"}),
        "zero": (wb.zero, {}),
    }  # fmt: skip


def _fields(thing: Any) -> dict[str, Any]:
    """The arguments of a dataclass' constructor that make the same again."""
    return {field.name: getattr(thing, field.name) for field in fields(thing)}


def cells() -> Iterator[tuple[str, str, str]]:
    """Every (call, argument, value) of the table."""
    for name, (function, _) in valid_calls().items():
        if function is wb.WorkbenchError:
            continue
        parameters = signature(function).parameters.values()
        named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if function is wb.SweepSpec:
            named = list(wb.SweepSpec.model_fields)
        for cell in product([name], named, NASTY):
            # So much work is what was asked for: it would be done, for years.
            if cell[1:] not in product(LOOPS, ["10**12"]):
                yield cell


def outcome(name: str, argument: str, value: str) -> str | None:
    """The error that is none of ours, if there is one."""
    function, arguments = valid_calls()[name]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(**arguments | {argument: NASTY[value]()})
    except wb.WorkbenchError as error:
        # Said with the argument's name or at least a whole sentence.
        return None if len(str(error)) > 15 else f"says only {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:160]
    return None


def failures(chosen: list[tuple[str, str, str]]) -> dict[str, str]:
    """The cells that ended otherwise than in a result or in one of our errors."""
    outcomes = {
        f"{name}({argument}={value})": outcome(name, argument, value) for name, argument, value in chosen
    }
    return {cell: error for cell, error in outcomes.items() if error is not None}


@pytest.fixture
def in_tmp(tmp_path_factory, monkeypatch):
    # One folder for all: files of the valid calls are made once.
    valid = tmp_path_factory.getbasetemp() / "arguments"
    valid.mkdir(exist_ok=True)
    monkeypatch.chdir(valid)


def test_the_table_has_every_public_callable(in_tmp):
    named = {name.split(".")[0] for name in valid_calls()}
    # A warning takes what every exception of Python takes, and has no signature of its own.
    callables = {name for name in wb.__all__ if callable(getattr(wb, name))}
    assert named == callables - {"WorkbenchWarning"}


@pytest.mark.parametrize("long", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_valid_calls_are_valid(in_tmp, long):
    # Those that are refused for a reason of their own, because they would take seconds or write files.
    stopped = {"discover", "discover_cost", "measure", "PromptPairs.from_csv", "PromptPairs.from_jsonl"}
    with warnings.catch_warnings():
        # That so small a call has nothing to test, for one.
        warnings.simplefilter("ignore")
        for name, (function, arguments) in valid_calls().items():
            if name not in stopped and "path" not in arguments and (name in LONG) is long:
                function(**arguments)


def test_some_of_the_table_ends_in_a_result_or_in_one_of_our_errors(in_tmp):
    # Another part each day, so that all of it is seen in a month; the day is in the message.
    day = int(time.time() // 86400)
    table = list(cells())
    assert failures(table[day % 97 :: 97]) == {}, f"day {day}"


@pytest.mark.slow
def test_all_of_the_table_ends_in_a_result_or_in_one_of_our_errors(in_tmp):
    assert failures(list(cells())) == {}


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (wb.causal_check, {"least": "2"}, "causal_check: least='2' does not fit; a finite number is needed."),
        (wb.causal_check, {"least": float("nan")}, "causal_check: least=nan does not fit; a finite number is needed."),
        (wb.planted, {"name": "induction", "n": True}, "planted: n=True does not fit; a whole number is needed."),
        (wb.load, {"path": ""}, "load: path='' does not fit; a path is needed."),
        (wb.load, {"path": "a\0b"}, "load: path='a\\x00b' does not fit; a path is needed."),
        (wb.load, {"path": Path("a" * 300)}, f"load: path='{'a' * 56}... cannot be looked at: File name too long."),
        (wb.grid, {"kind": 5, "model_or_shape": None}, "grid: kind=5 does not fit; text is needed."),
    ],
)  # fmt: skip
def test_the_message_names_the_argument_what_was_given_and_what_is_needed(function, arguments, message):
    with pytest.raises(wb.WorkbenchError) as error:
        function(**arguments)
    assert str(error.value) == message


def test_numbers_of_numpy_are_numbers_and_truth_values_are_none():
    @checked
    def count(n: int, share: float = 0.5, *, names: list[str] | None = None) -> int:
        return n

    assert count(np.int64(3), np.float32(0.25)) == 3
    assert count(3, 1, names=["a"]) == 3
    for wrong in (
        {"n": np.bool_(True)},
        {"n": 3, "share": True},
        {"n": 3, "names": [5]},
        {"n": 3, "names": "a"},
    ):
        with pytest.raises(ArgumentError):
            count(**wrong)
    with pytest.raises(TypeError, match="unexpected keyword"):
        count(3, size=5)


def test_what_takes_numbers_takes_those_of_numpy():
    """What passes here as a whole number is not refused as none further in."""
    model = wb.load_model("tiny")
    pairs = wb.load_task("ioi", model, n=np.int64(2), seed=np.int64(3))
    assert pairs.fingerprint == wb.load_task("ioi", model, n=2, seed=3).fingerprint
    scores = wb.score_edges(
        model,
        pairs,
        value=wb.zero(),
        method="eap-ig-inputs",
        steps=np.int64(1),
        seed=np.int64(0),
        progress=False,
    )
    assert scores.attrs["steps"] == 1
    with pytest.raises(wb.WorkbenchError, match=r"^n=0: at least one pair is needed\.$"):
        wb.load_task("ioi", model, n=np.int64(0))


def test_what_a_container_holds_is_checked_one_level_deep():
    fits = rule_of(dict[str, list[int]]).fits
    assert fits({"a": [1]})
    assert fits({"a": ["b"]})
    assert not fits({"a": 1})
    assert not fits({5: [1]})
    assert not fits([("a", [1])])
    assert rule_of(tuple[int, ...]).fits((1, 2))
    assert not rule_of(tuple[int, ...]).fits((1, "a"))
    assert rule_of(xr.DataArray | None).fits(None)
    assert not rule_of(xr.DataArray | None).fits(xr.Dataset())


def test_a_path_in_a_folder_of_somebody_else_is_refused_in_words(monkeypatch):
    """Tests may run as a user who may look anywhere."""

    def lstat(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr("workbench.arguments.os.lstat", lstat)
    for call in (wb.load, wb.read_circuit, wb.open_store, wb.load_sweep, wb.TunedLens.load):
        with pytest.raises(wb.WorkbenchError, match="='/home/x/y' cannot be looked at: Permission denied"):
            call("/home/x/y")


@pytest.mark.parametrize("url", ["s3://a/b", "https://example.org/x", "file:///tmp/x"])
def test_nothing_is_left_where_a_url_is_refused(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    spec = {"preset": "head-ablation", "tasks": ["ioi"], "n": 2}
    model = wb.load_model("tiny")
    for write in (
        lambda: wb.run_sweep(spec, out=url, progress=False, limit=1),
        lambda: wb.capture(model, [[0, 1, 2]], sites=["z"], path=url, progress=False),
    ):
        with pytest.raises(wb.WorkbenchError, match="is a URL, and results are written to this machine"):
            write()
    assert not list(Path.cwd().iterdir())
