"""The sentences that say what `discover` found, from numbers that are given."""

import json
import re

import numpy as np
import pytest
import xarray as xr
from discovered import GRAPH, discovery_run

from workbench.discovery.criteria import Criteria
from workbench.tasks.measure import Estimate, Score
from workbench.workflows.summary import summary_text
from workbench.workflows.verdict import (
    competence_text,
    competence_warning,
    differences_text,
    headline,
    title_of,
    verdict,
)

BAD = {"faithfulness": 0.5, "low": 0.4, "high": 0.6, "error": 0.5, "m_circuit": 1.5}
BOTH = {
    "swap": {},
    "abc": {"faithfulness": 0.95, "low": 0.9, "high": 0.99, "m_circuit": 2.85, "m_empty": 0.1},
}


def test_a_circuit_is_told_in_units_against_every_counterfactual():
    run = discovery_run(BOTH, others={"zero": {"faithfulness": -0.3}})
    assert title_of(run) == "Circuit of 8 edges: ioi in tiny"
    share = f"{8 / GRAPH.n_edges:.1%}"
    assert headline(run) == (
        f"8 of the model's {GRAPH.n_edges} edges ({share}) reproduce it against swap and abc, on 128 test prompts that "
        "chose nothing. Logit difference: 2.94 of the model's 3.00 logits against swap (with no edge -2.90), 2.85 "
        "against abc (with no edge 0.10). Prompt by prompt (the error as a share of the mean gap): r 0.90 and error "
        "0.06 against swap, r 0.90 and error 0.06 against abc. Faithfulness: 0.98 against swap and 0.95 against abc; "
        "-0.30 with zero values, for which it was not chosen."
    )


@pytest.mark.parametrize(
    ("fields", "measures", "title"),
    [
        ({}, {"swap": {}, "abc": {"error": 0.3}}, "Circuit of 8 edges, which fails its criteria on the test prompts"),
        ({}, {"swap": {}, "abc": BAD}, "Circuit of the difference swap (8 edges), which fails its criteria on the test prompts"),
        ({"recommended": False}, {"swap": BAD}, "No circuit under 15% reproduces the model on these prompts"),
        ({"recommended": False}, {"swap": {}, "abc": BAD}, "No circuit under 15% reproduces the model on these prompts"),
        ({"recommended": False, "chosen_by": "size"}, BOTH, "Circuit of 8 edges"),
        (
            {"recommended": False, "chosen_by": "method"}, {"swap": BAD, "abc": BAD},
            "Circuit of 8 edges, which fails its criteria on the test prompts",
        ),
        ({}, {"swap": {}}, "Circuit of the difference swap (8 edges)"),
        ({}, {"zero": {}}, "Circuit of 8 edges with zero values"),
        ({"right": 0.28}, BOTH, "Circuit of 8 edges, on prompts of which the model gets 28% right"),
        ({"criteria": Criteria(error=0.9)}, BOTH, "Circuit of 8 edges (criteria looser than the default)"),
        (
            {"chosen_by": "size", "criteria": Criteria(at_most=0.01)}, BOTH,
            "8 edges, which is too many for a circuit",
        ),
    ],
)  # fmt: skip
def test_the_title_says_what_was_found_and_what_limits_it(fields, measures, title):
    assert title_of(discovery_run(measures, **fields)) == f"{title}: ioi in tiny"


def test_a_failing_circuit_says_which_criteria_fail_and_by_how_much():
    told = headline(discovery_run({"swap": {}, "abc": BAD | {"kl_recovered": 0.8, "same_choice": 0.5}}))
    assert "kept the criteria on the prompts that chose them, and fail them on 128 test prompts." in told
    assert (
        "Against abc it fails: (a) the interval of faithfulness is [0.40, 0.60], not inside [0.85, 1.15]; (b) the error "
        "per prompt is 0.50, more than 0.15; (c) KL recovered is 0.80, less than 0.9; (d) first choices kept "
        "are 50.0% (85% needed)."
    ) in told
    assert "Against swap" not in told
    assert "So it is the circuit of the difference swap, not of the task." in told


def test_no_circuit_is_said_as_a_result():
    run = discovery_run({"swap": BAD}, recommended=False)
    assert verdict(run) == "no circuit"
    assert headline(run).startswith(
        "No circuit of up to 15% of the edges keeps the criteria against swap. The best trade-off has 8 of"
    )
    assert "on the test prompts: those that choose ask for a margin" not in headline(run)
    passing = discovery_run({"swap": {}}, recommended=False, passing={"swap": None})
    assert "and keeps them on the test prompts: those that choose ask for a margin" in headline(passing)
    passing.frontier.attrs["n"] = 16
    assert title_of(passing) == (
        "No circuit under 15% on 16 prompts, which are too few to say that there is none: ioi in tiny"
    )


@pytest.mark.parametrize("value", [0.99, 1.004, 1.02, 2.8])
def test_nothing_above_one_is_unexplained(value: float):
    for place in ("swap", "zero"):
        measures = {"swap": {"faithfulness": value if place == "swap" else 0.98}, "abc": {}}
        told = headline(
            discovery_run(measures, others={"zero": {"faithfulness": value if place == "zero" else 0.1}})
        )
        assert ("above 1" in told) == (f"{value:.2f}" > "1.00")


def test_one_counterfactual_is_said_to_be_one():
    assert headline(discovery_run({"swap": {}})).endswith(
        "It was tested against one counterfactual only (swap): another may need other edges."
    )
    assert headline(discovery_run({"zero": {}})).endswith(
        "It was tested with zero values only, and against no counterfactual prompt."
    )
    assert "one counterfactual only" not in headline(discovery_run(BOTH))


def test_most_prompts_have_to_be_near_the_model_and_not_the_mean_alone():
    run = discovery_run({"swap": {}, "abc": {"prompts_near": 0.51}})
    assert verdict(run) == "fails on test prompts"
    assert (
        "Against abc it fails: (b) the share of prompts on which it misses the model by at most half of the prompt's own "
        "gap is 51.0% (80% needed)."
    ) in headline(run)


def test_what_speaks_against_a_passing_circuit_is_in_the_headline():
    names = {"control": ["another task"], "ablation": list(BOTH)}
    controls = xr.Dataset({"holds": (tuple(names), np.ones((1, 2)))}, coords=names)
    controls.attrs["n"] = 32
    stability = xr.Dataset({"size": ("draw", np.array([8.0] * 4 + [np.nan] * 6))})
    unrefined = {"before refining": 8}
    told = headline(discovery_run(BOTH, controls=controls, stability=stability, circuits=unrefined))
    assert "The circuit of another task, of as many edges, keeps all criteria on 32 test prompts" in told
    assert "a size passes in only 4 of 10 draws (before refining)." in told
    # Where refining alone found a circuit, draws that are not refined say nothing of it.
    assert "draws" not in headline(discovery_run(BOTH, stability=stability))
    assert "another task" not in headline(
        discovery_run(BOTH, controls=controls.drop_sel(control="another task"))
    )
    controls["holds"][0, 1] = 0.0
    stability["size"][:] = 8.0
    told = headline(discovery_run(BOTH, controls=controls, stability=stability, circuits=unrefined))
    assert "another task" not in told
    assert "draws" not in told


def test_what_limits_a_passing_circuit_is_in_the_headline():
    assert "A low r: the circuit does not reproduce" in headline(
        discovery_run({"swap": {"r": 0.3}, "abc": {}})
    )
    constant = "r not defined (the model or the circuit gives the same on every prompt) and error"
    assert constant in headline(discovery_run({"swap": {"r": np.nan}}))
    loose = headline(discovery_run(BOTH, criteria=Criteria(error=0.9)))
    assert "Looser than the default: the bound of the error per prompt, 0.9 instead of 0.15." in loose
    distance, alike, twins = discovery_run(BOTH), discovery_run(BOTH), discovery_run(BOTH)
    distance.evaluation.attrs["metric"] = "kl"
    assert "KL is a distance from the model" in headline(distance)
    alike.evaluation.attrs["near_copies"] = 0.75
    assert (
        "75% of the test prompts differ in at most one token from a prompt that made the scores"
        in headline(alike)
    )
    others = discovery_run(BOTH)
    others.evaluation.attrs |= {"right_on_test": 0.3, "n": 8}
    assert "gets only 30% of the test prompts right, and 95% of those to find with" in headline(others)
    assert "Only 8 prompts tested it." in headline(others)
    assert title_of(others).startswith("Circuit of 8 edges, on prompts of which the model gets 30% right")
    twins.evaluation.attrs |= {"most_alike": "swap and abc", "likeness": 0.995}
    assert "against swap and abc are nearly proportional: these are hardly two counterfactuals." in headline(
        twins
    )


def test_prompts_on_which_the_circuit_does_nothing_are_in_the_headline():
    run = discovery_run({"swap": {"prompts_near": 0.8}})
    data = run.evaluation
    # Of ten prompts two have a small gap, and there the circuit is the empty one.
    full, empty = np.array([[3.0] * 8 + [7.0] * 2]), np.array([[-3.0] * 8 + [6.0] * 2])
    data["m_circuit"] = (("ablation", "circuit", "example"), np.array([[[2.9] * 8 + [6.0] * 2]]))
    data["m_full"], data["m_empty"] = (("ablation", "example"), full), (("ablation", "example"), empty)
    assert (
        "Against swap it misses the model on 20% of the prompts by more than half of their own gap: there its error is "
        "1.00, and 1 is that of no edge." in headline(run)
    )
    assert "misses the model on" not in headline(discovery_run(BOTH))


def test_faithfulness_above_one_is_explained_by_its_interval():
    beyond = discovery_run({"swap": {"faithfulness": 1.04, "low": 1.02, "high": 1.06}})
    assert (
        "That faithfulness is above 1 against swap means that the circuit changes the metric more "
        "than the whole model does" in headline(beyond)
    )
    within = discovery_run({"swap": {"faithfulness": 1.02, "low": 0.98, "high": 1.06}})
    assert "above 1 against swap may be chance: the interval holds 1." in headline(within)
    unknown = discovery_run(
        {"swap": {}}, others={"zero": {"faithfulness": 1.2, "low": np.nan, "high": np.nan}}
    )
    assert "above 1 with zero values may be chance: there is no interval." in headline(unknown)


def test_what_was_left_out_before_and_twins_are_told():
    run = discovery_run(BOTH)
    run.evaluation.attrs["competent"] = "64 of 128"
    assert "The prompts are the 64 of 128 that the model gets right" in headline(run)
    run.evaluation.attrs |= {"most_alike": "swap and abc", "likeness": 0.999}
    assert title_of(run).startswith("Circuit of the difference")
    assert "hardly two counterfactuals" in headline(run)
    failing = discovery_run({"swap": BAD, "abc": BAD})
    failing.evaluation.attrs |= {"most_alike": "swap and abc", "likeness": 0.999}
    assert "better than the others" not in headline(failing), "twins carry the same difference"


def test_which_difference_a_failing_circuit_carries_is_said_only_where_it_is_known():
    unlike = {"faithfulness": 0.6, "low": 0.5, "high": 0.7}
    told = headline(discovery_run({"swap": {"error": 0.3}, "abc": unlike}))
    assert "It carries the difference swap better than the others, and none of them fully." in told
    # The nearest to 1 fails another criterion, and a farther one keeps all.
    wide = Criteria(faithfulness=(0.5, 1.15))
    other = {"faithfulness": 0.7, "low": 0.6, "high": 0.8}
    run = discovery_run({"swap": {"kl_recovered": 0.1}, "abc": other}, criteria=wide)
    run.evaluation["holds_a"][:] = True
    assert "none of them fully" not in headline(run)
    assert "So it is the circuit of the difference abc, not of the task." in headline(run)
    assert title_of(run).startswith("Circuit of the difference abc")


def test_a_circuit_that_keeps_all_criteria_is_not_one_difference_and_neither_is_none():
    apart = {
        "swap": {"faithfulness": 0.88, "low": 0.86},
        "abc": {"faithfulness": 1.1, "low": 1.05, "high": 1.14},
    }
    assert title_of(discovery_run(apart)).startswith("Circuit of 8 edges")
    for run in (discovery_run(apart), discovery_run({"swap": {}, "abc": BAD}, recommended=False)):
        assert "So it is the circuit" not in headline(run)


def test_nothing_is_judged_where_the_metric_does_not_change():
    unknown = dict.fromkeys(("faithfulness", "low", "high", "error", "prompts_near", "kl_recovered"), np.nan)
    told = headline(discovery_run({"swap": {}, "abc": unknown}))
    assert "Against abc nothing can be judged: the metric does not change on these prompts." in told


def test_a_size_that_was_asked_for_is_not_called_a_find_and_can_be_too_large():
    run = discovery_run(BOTH, chosen_by="size", recommended=False)
    assert (
        "(a number that was asked for) reproduce it against swap and abc, on 128 test prompts."
        in headline(run)
    )
    run = discovery_run(BOTH, chosen_by="size", criteria=Criteria(at_most=0.01))
    assert verdict(run) == "too large"
    assert "More than 1% of the edges are not called a circuit" in headline(run)


def test_the_circuit_of_each_difference_stands_beside_that_of_all():
    passing = {"swap": 4, "abc": 8}
    run = discovery_run(BOTH, circuits={"difference swap": 1, "difference abc": 6}, passing=passing)
    assert differences_text(run) == (
        "1 edge carries the difference swap; 6 edges carry the difference abc; 8 reproduce the model against swap and "
        "abc."
    )
    larger = {"before refining": 16, "difference swap": 5, "difference abc": 16}
    assert differences_text(discovery_run(BOTH, circuits=larger, passing=passing)) == (
        "Before refining: 5 edges carry the difference swap; 16 edges carry the difference abc; 16 keep the criteria "
        "against swap and abc on the prompts that chose them."
    )
    none = discovery_run(
        {"swap": {}, "abc": BAD},
        circuits={"difference swap": 3},
        passing={"swap": 4, "abc": None},
        recommended=False,
    )
    assert differences_text(none) == (
        "3 edges carry the difference swap; no circuit under 15% carries the difference abc; none reproduces the model "
        "against swap and abc."
    )
    assert differences_text(discovery_run({"swap": {}}, passing={"swap": 4})) == ""


def test_a_model_that_cannot_do_the_task_is_warned_of():
    able, unable = (discovery_run({"swap": {}}, right=right).competence for right in (0.85, 0.8))
    assert competence_warning(able) == ""
    assert competence_warning(unable).startswith("Right above wrong on under 85% of the prompts:")
    assert competence_text(unable) == (
        "The model puts the right answer above the wrong one on 80% [75%, 83%] of 64 prompts, and makes it its first "
        "choice on 70% [60%, 80%]."
    )
    unknown = Score("mine", 8, 0.5, np.nan, "", Estimate(0.5, 0.2, 0.8))
    assert competence_warning(unknown) == ""
    assert competence_text(unknown) == (
        "The right answer is the model's first choice on 50% [20%, 80%] of 8 prompts. The prompts do not say which "
        "answers are wrong."
    )


def test_the_summary_is_json_with_names_and_five_digits():
    run = discovery_run(
        {"swap": {"faithfulness": 1 / 3, "r": np.nan}, "abc": {}}, circuits={"core": 5},
        passing={"swap": 4, "abc": None},
    )  # fmt: skip
    text = summary_text(run)
    summary = json.loads(text)
    assert summary["test"]["swap"]["circuit"]["faithfulness"] == [0.33333, 0.96, 1.0]
    assert summary["test"]["swap"]["core"]["r"] == [None] * 3
    assert summary["test"]["abc"]["circuit"]["holds"] == "abcd"
    assert summary["circuits"] == {"circuit": 8, "core": 5}
    assert summary["frontier"]["smallest_by_counterfactual"] == {"swap": 4, "abc": None}
    assert summary["frontier"]["smallest_passing"] is None
    rows = summary["frontier"]["rows"]
    assert [(row["size"], row["against"], row["passes"]) for row in rows[2:4]] == [
        (4, "swap", True),
        (4, "abc", False),
    ]
    assert summary["verdict"] == "circuit"
    assert "NaN" not in text
    # No number has more digits than it says something with.
    assert re.findall(r"\d\.\d{7,}", text) == []
