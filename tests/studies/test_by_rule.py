"""Studies whose circuit criteria choose: its core, its strongest components, and where roles come from."""

import functools
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from closeness import close

import workbench as wb
from workbench import resources
from workbench.lenses.head_scores import attention_to
from workbench.studies import circuit_experiment
from workbench.studies.by_rule import by_rule_or_nearest, core, estimated_swaps, find_and_select, scores_of
from workbench.studies.circuit_experiment import CircuitExperiment
from workbench.studies.command import main
from workbench.studies.counterfactuals import CORE, THIS, with_core
from workbench.studies.evidence import FILE, Evidence
from workbench.studies.prediction import Role
from workbench.studies.readme import page
from workbench.studies.study import Study

LOOSE = wb.Criteria(
    faithfulness=(-100.0, 100.0),
    error=100.0,
    prompts_near=0.01,
    kl_recovered=0.0,
    answers_kept=0.0,
    same_choice=0.0,
    at_most=0.1,
)


@functools.cache
def tiny():
    return wb.load_model("tiny", device="cpu")


def ioi(criteria: wb.Criteria) -> Study:
    roles = [Role("suppressor", at_least={"S2": 0.4}, at_most={"copying": -0.2})]
    return Study("ioi", "Indirect objects", "", roles, criteria=criteria, method="eap", n=8)


@functools.cache
def experiment() -> CircuitExperiment:
    """A circuit of the best edges on four prompts, as if criteria had chosen it."""
    data = wb.Experiment.of(tiny(), "ioi", n=4)
    scores = scores_of(data.train, "eap")
    circuit = wb.find_circuit(scores, n_edges=60)
    return CircuitExperiment(data.train, data.heldout, circuit, scores, tuple(ioi(LOOSE).roles), passes=False)


def made_scores(*examples: dict[str, float]) -> xr.DataArray:
    """Scores of two counterfactuals that are equal: of each example the edges by name, the others 0."""
    graph = wb.Graph.of(tiny())
    table = np.zeros((2, len(examples), *graph.exists.shape))
    for i, edges in enumerate(examples):
        for edge, score in edges.items():
            writer, reader = edge.split("->")
            table[:, i, graph.writers.index(writer), graph.readers.index(reader)] = score
    table[:, :, ~graph.exists] = np.nan
    template = wb.score_edges(tiny(), experiment().train.pairs, value=wb.zero(), progress=False)
    coords = {"ablation": ["swap", "abc"], "writer": list(graph.writers), "reader": list(graph.readers)}
    return xr.DataArray(
        table, dims=("ablation", "example", "writer", "reader"), coords=coords, attrs=template.attrs
    )


def test_the_core_has_what_every_prompt_has_and_not_what_one_prompt_brings():
    backbone = {"input->m0": 3.0, "m0->a3.7<v>": 2.9, "a3.7->logits": 2.8}
    same = core(made_scores(backbone, backbone, backbone), 3)
    assert set(map(str, same.circuit.edge_list)) == set(backbone)
    assert (same.stability.mean, same.stability.low) == (1.0, 1.0)
    # The fourth edge is now one prompt's, now another's, whichever was drawn more often.
    by_turns = [backbone | {f"m0->a{layer}.0<v>": 1.0, f"a{layer}.0->logits": 1.0} for layer in (1, 2, 3)]
    changing = core(made_scores(*by_turns), 5, draws=12)
    assert set(map(str, changing.circuit.edge_list)) == set(backbone)
    assert changing.stability.mean < 1


def test_swaps_are_estimated_by_the_edges_that_leave_a_component():
    scores = made_scores({"m0->m3": 4.0, "m0->logits": -1.0, "a3.7->logits": -1.5, "input->m1": 9.0})
    estimated = estimated_swaps(scores)
    assert estimated[["input", "m0", "a3.7", "m1"]].tolist() == [1.0, 3 / 9, 1.5 / 9, 0.0]
    assert close(estimated_swaps(scores.isel(ablation=0, drop=True)).to_numpy(), estimated.to_numpy())


def test_criteria_choose_on_other_prompts_and_the_nearest_circuit_says_that_none_passes():
    one = ioi(LOOSE).experiment(tiny())
    assert (one.by_rule, one.passes) == (True, True)
    find, select = find_and_select("ioi", one.train)
    assert set(find.pairs.clean.ids) != set(select.pairs.clean.ids)
    assert not set(find.pairs.clean.ids) & set(select.pairs.clean.ids)
    assert not (set(find.pairs.clean.ids) | set(select.pairs.clean.ids)) & set(one.pairs.clean.ids)
    nearest, passes = by_rule_or_nearest(one.example_scores, select, replace(LOOSE, kl_recovered=1.0))
    assert not passes
    assert one.circuit.n_edges < nearest.n_requested <= 0.1 * nearest.graph.n_edges


def test_a_study_looks_at_the_strongest_components_and_gives_roles_on_training_prompts(monkeypatch):
    one = experiment()
    heads = [name for name in one.circuit.nodes if name.startswith("a")]
    assert one.components == heads
    monkeypatch.setattr(circuit_experiment, "STRONGEST", 3)
    fewer = replace(one)
    estimated = estimated_swaps(one.example_scores)[heads]
    assert len(fewer.components) == 3
    assert estimated[fewer.components].min() >= estimated.drop(fewer.components).max()
    assert fewer.training.pairs is one.train.pairs
    assert fewer.training.training is fewer.training
    # Held-out numbers that fit no rule change no role.
    fewer.heads["S2"] = 0.0
    assert fewer.roles == {"a3.7": "suppressor"}
    assert "swapped abc" in fewer.heads


def test_the_circuit_and_its_core_stand_beside_each_other_against_each_counterfactual():
    one = experiment()
    rows = with_core(one, core(one.example_scores, one.circuit.n_requested))
    assert [(row.circuit, row.counterfactual) for row in rows] == [
        (name, against) for name in (THIS, CORE) for against in ("swap", "abc")
    ]
    assert rows[0].edges == one.circuit.n_edges > rows[2].edges


def test_attention_is_that_of_the_edited_run():
    one = experiment()
    columns = attention_to(one.clean, ["S2", "IO"]).sel(layer=3, head=7)
    assert close(one.attention(["a3.7"], "S2", {}), columns.sel(key_pos="S2").values, tolerance=1e-5)
    exchanged = one.attending(["a3.7"], to="IO", instead_of="S2")
    assert close(one.attention(["a3.7"], "IO", exchanged), columns.sel(key_pos="S2").values, tolerance=1e-5)
    both = columns.sel(key_pos="S2").values + one.attention(["a3.6"], "S2", {})
    assert close(2 * one.attention(["a3.7", "a3.6"], "S2", {}), both, tolerance=1e-5)


def test_a_check_without_the_weights_says_so_and_is_no_failure(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["study.py", "--check"])
    with pytest.raises(SystemExit) as ended:
        main(replace(ioi(LOOSE), model="smollm2-135m-instruct-q4"), tmp_path / "smollm2-ioi")
    assert ended.value.code == 0
    assert capsys.readouterr().out == (
        "smollm2-ioi: NOT CHECKED, because the weights of 'smollm2-135m-instruct-q4' are not on this "
        "machine. Get them with `workbench models get smollm2-135m-instruct-q4`.\n"
    )


def test_the_page_says_whether_the_criteria_were_kept_and_old_evidence_has_no_search(tmp_path):
    evidence = Evidence.load(resources.circuits() / "smollm2-ioi" / FILE)
    assert evidence.search is not None
    evidence.save(tmp_path / FILE)
    assert Evidence.load(tmp_path / FILE) == evidence
    text = page(evidence)
    assert f"{evidence.search.edges} of the {evidence.graph_edges} edges" in text
    assert ("the smallest circuit found that keeps the criteria" in text) == evidence.search.passes
    failed = page(replace(evidence, search=replace(evidence.search, passes=False)))
    assert f"none of up to {evidence.search.most} edges keeps the criteria" in failed
    fields = json.loads((tmp_path / FILE).read_text(encoding="utf-8"))
    del fields["search"]
    for part in fields["components"]:
        del part["further"], part["scores"]
    for role in fields["roles"]:
        del role["published"]
    (tmp_path / FILE).write_text(json.dumps(fields), encoding="utf-8")
    assert Evidence.load(tmp_path / FILE).n_edges == len(evidence.edges)
