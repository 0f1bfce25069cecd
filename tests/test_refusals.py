"""Small things that a caller may get wrong, each of which once passed or ended in an error from inside."""

import resource
import warnings
from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
import torch
from families import native
from typer.testing import CliRunner

import workbench as wb
from workbench.cli.app import app
from workbench.errors import CannotWrite, CircuitError, MetricError, ProbeError, PromptError, SweepError
from workbench.sweeps.spec import read_spec


@cache
def tiny():
    """The packaged model: not to be changed."""
    return wb.load_model("tiny")


def scored_circuit() -> wb.Circuit:
    graph = wb.Graph(wb.Shape(2, 2, 2, 8, 4, 16, 20, 12))
    scores = np.where(graph.exists, 1.0, np.nan)
    return wb.Circuit.of(graph, graph.exists, scores=scores)


def test_a_circuit_cannot_change_and_is_not_changed_through_the_arrays_it_was_made_of():
    graph = scored_circuit().graph
    edges, scores = graph.exists.copy(), np.ones(graph.exists.shape)
    circuit = wb.Circuit(graph, edges, scores)
    before = hash(circuit)
    edges[:] = False
    scores[:] = 0
    assert hash(circuit) == before
    assert circuit.n_edges == graph.n_edges
    for array in (
        circuit.edges,
        circuit.scores,
        circuit.pruned.edges,
        (~circuit).edges,
        (circuit | circuit).edges,
    ):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = True
    with pytest.raises(CircuitError, match=r"Edges of shape \(2, 2\) do not fit"):
        wb.Circuit(graph, np.ones((2, 2), dtype=bool))


def test_stability_of_a_single_prompt_is_refused():
    model = tiny()
    pairs = wb.load_task("ioi", model, n=2).select([0])
    scores = wb.score_edges(model, pairs, value=wb.zero(), keep=("example",), progress=False)
    with pytest.raises(CircuitError, match="stability: these scores are of 1 prompts"):
        wb.stability(scores, find=lambda mean: wb.find_circuit(mean, n_edges=5))


def test_a_penalty_must_be_positive():
    prompts = wb.Prompts.of([[1, 2], [3, 4]])
    rows = {("mlp_post", 0): torch.randn(4, 3)}
    store = wb.ActivationStore.of(prompts, rows, model="m", model_name="m", tokenizer="t")
    labels = wb.Labels.per_prompt(store, {"late": [False, True]})
    for l2 in (-1, 0):
        with pytest.raises(ProbeError, match=f"l2={l2}: a positive penalty is needed"):
            wb.neuron_maps(store, labels, l2=l2)


@pytest.mark.parametrize("position", [True, 1.5, b"END", (1,)])
def test_truth_values_and_fractions_are_no_positions(position):
    for make in (
        lambda: wb.Site("z", 0, pos=position),
        lambda: wb.Edge("m0", "logits", position),
        lambda: wb.grid("z", wb.Shape(2, 2, 2, 8, 4, 16, 20, 12), pos=[position]),
        lambda: wb.grid("z", wb.Shape(2, 2, 2, 8, 4, 16, 20, 12), layer=[position]),
        lambda: wb.Prompts.of([[1, 2]]).at(position),
    ):
        with pytest.raises(wb.WorkbenchError):
            make()


def test_answers_that_the_model_has_no_logit_of_are_refused_whatever_reads_them():
    # This one reads 50 tokens and writes 40.
    model = native(d_vocab_out=40)
    sides = ([[1, 5, 7], [1, 6, 7]], [[1, 4, 7], [1, 3, 7]])
    fits = wb.PromptPairs.of(*sides, [39, 8], [2, 3])
    assert wb.effects(model, fits, sites=["z[0.0]"], value=wb.zero(), progress=False).shape == (2, 1)
    for answers, wrong, name in (([45, 8], [2, 3], "answers"), ([9, 8], [2, 40], "wrong")):
        pairs = wb.PromptPairs.of(*sides, answers, wrong)
        for read in (
            lambda pairs=pairs: wb.effects(model, pairs, sites=["z[0.0]"], value=wb.zero(), progress=False),
            lambda pairs=pairs: wb.score_edges(model, pairs, value=wb.zero(), progress=False),
            lambda pairs=pairs: wb.evaluate(
                wb.Circuit.full(model), model, pairs, value=wb.zero(), progress=False
            ),
        ):
            with pytest.raises(PromptError, match=f"among the {name} is outside the vocabulary of 40"):
                read()


def test_a_metric_of_ones_own_that_fails_is_named():
    model = tiny()
    pairs = wb.load_task("ioi", model, n=2).select([0])

    def mine(logits):
        return [][len(logits)]

    with pytest.raises(
        MetricError, match="The function of the metric 'mine' failed with IndexError"
    ) as error:
        wb.effects(model, pairs, sites=["z[0.0]"], value=wb.zero(), metric=mine, progress=False)
    assert isinstance(error.value.__cause__, IndexError)


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    spec = tmp_path / "sweep.yaml"
    spec.write_text("preset: head-ablation\ntasks: [ioi]\nn: 3\nn: 5\n")
    with pytest.raises(SweepError, match="'n' is there twice"):
        read_spec(spec)
    spec.write_text("preset: head-ablation\ntasks: [{name: ioi, name: agreement}]\n")
    with pytest.raises(SweepError, match="'name' is there twice"):
        read_spec(spec)


@pytest.mark.parametrize("place", ["s4://bucket/store", "nosuch://x"])
def test_a_url_that_nobody_knows_is_refused(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(wb.WorkbenchError, match="cannot be opened"):
        wb.open_store(place)
    circuit = scored_circuit()
    for write in (
        lambda: circuit.save(place),
        lambda: wb.save(circuit.to_scores(), place),
        lambda: wb.export(circuit, place + ".svg"),
    ):
        with pytest.raises(CannotWrite, match="is a URL, and results are written to this machine"):
            write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["effects", "ioi", "-n", "0"], ["discover", "ioi", "--out", " "],
        *(pytest.param(arguments.split(" "), marks=pytest.mark.slow) for arguments in (
            "effects ioi --n -3", "paths ioi -n 0", "discover ioi -n 0", "store build ioi s -n 0",
            "evaluate ioi --task ioi -n 0", "effects ioi --out ",
        )),
    ],
    ids=" ".join,
)  # fmt: skip
def test_the_shell_refuses_no_prompts_and_no_folder(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = CliRunner().invoke(app, arguments)
    # `main` prints our own errors; the options themselves are refused by the parser.
    assert outcome.exit_code == 2 or isinstance(outcome.exception, wb.WorkbenchError)
    assert list(tmp_path.iterdir()) == []


@contextmanager
def files_of_at_most(n_bytes: int):
    """As on a disk that is full: no file of this process becomes larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path):
    circuit = wb.Circuit.full(wb.Graph(wb.Shape(6, 8, 8, 64, 8, 256, 50, 32)))
    circuit = wb.Circuit.of(
        circuit.graph, circuit.edges, scores=np.random.default_rng(0).normal(size=circuit.edges.shape)
    )
    scores = circuit.to_scores()
    for name, write in {
        "circuit": lambda path: circuit.save(path),
        "result": lambda path: wb.save(scores, path),
        "picture": lambda path: wb.export(circuit, path.with_suffix(".svg")),
        "page": lambda path: wb.report([("Scores", scores.to_dataframe(name="score"))], path, title="Scores"),
        "store": lambda path: wb.capture(tiny(), [[0, 5, 7]] * 64, path=path, progress=False),
    }.items():
        place = tmp_path / name
        place.mkdir()
        with files_of_at_most(4096), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(wb.WorkbenchError, match="cannot be written"):
                write(place / "out")
        left = [path for path in place.rglob("*") if path.is_file() and "partial" in path.name]
        assert left == [], name
        assert name == "store" or list(place.iterdir()) == [], name
