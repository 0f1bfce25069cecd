"""What a model can do, on prompts worked out by hand: shares, metrics by counterfactual, the prompts it gets right."""

import math
import re
from pathlib import Path

import pytest
import torch

import workbench as wb
from workbench.errors import PromptError
from workbench.prompts.pairs import PromptPairs
from workbench.tasks.measure import Estimate
from workbench.tasks.task import TASKS


@pytest.fixture(scope="module")
def tiny():
    return wb.load_model("tiny", device="cpu")


def turned(pairs: PromptPairs, n: int) -> PromptPairs:
    """The pairs, in the first `n` of which right and wrong answers have changed places."""
    rows = torch.arange(len(pairs)) < n
    swap = [
        torch.where(rows[:, None, None], a, b)
        for a, b in ((pairs.wrong, pairs.answers), (pairs.answers, pairs.wrong))
    ]
    return PromptPairs(pairs.clean, pairs.corrupt, *swap, pairs.provenance, pairs.further)


def test_a_score_has_shares_and_the_metric_of_every_counterfactual(tiny):
    pairs = turned(wb.load_task("ioi", tiny, n=12), 3)
    [score] = wb.measure(tiny, pairs, progress=False)
    assert (score.behaviour, score.n, score.metric, score.score) == ("ioi", 12, "logit_diff", 0.75)
    assert score.right_above_wrong.mean == score.first_choice.mean == 0.75
    assert score.right_above_wrong.low < 0.75 < score.right_above_wrong.high
    assert list(score.corrupt) == ["swap", "abc"]
    for name, one in pairs.counterfactuals.items():
        # By hand: the logits of one run.
        logits = torch.cat([wb.run(tiny, one.corrupt.select([i])).logits[:, -1] for i in range(12)])
        difference = wb.metric("logit_diff")(logits, one)
        assert math.isclose(score.corrupt[name].mean, float(difference.mean()), rel_tol=1e-4, abs_tol=1e-4)
    two = wb.measure(tiny, [pairs, pairs.select([4])], progress=False)
    assert [one.n for one in two] == [12, 1]
    assert math.isnan(two[1].clean.low)
    with pytest.raises(PromptError, match="there is no set of prompts"):
        wb.measure(tiny, [], progress=False)


def test_competent_keeps_what_the_model_gets_right(tiny):
    pairs = turned(wb.load_task("ioi", tiny, n=12), 3)
    kept = wb.competent(tiny, pairs)
    assert kept.clean.ids == pairs.clean.ids[3:]
    assert kept.further["abc"].ids == pairs.further["abc"].ids[3:]
    assert kept.provenance["competent"] == kept.attrs(tiny)["competent"] == "9 of 12"
    assert "competent" not in pairs.attrs(tiny)
    message = "'tiny' gets none of the 3 prompts of 'ioi' right: the mean logit_diff of its clean runs is -"
    with pytest.raises(PromptError, match=re.escape(message)):
        wb.competent(tiny, pairs.select([0, 1, 2]))


def test_answers_of_several_tokens_are_measured_too(tiny):
    one = wb.load_task("ioi", tiny, n=4)
    # ". " follows the name in the sentences of tiny: the answer is then two tokens.
    end = tiny.tokenizer.get_vocab()["."]
    longer = [torch.cat([t, torch.full_like(t, end)], 2) for t in (one.answers, one.wrong)]
    provenance = {name: value for name, value in one.provenance.items() if name != "metric"}
    pairs = PromptPairs(one.clean, one.corrupt, *longer, provenance, one.further)
    [score] = wb.measure(tiny, pairs, progress=False)
    assert score.metric == "sequence_logprob_diff"
    assert score.right_above_wrong.mean == score.first_choice.mean == 1
    assert score.corrupt["swap"].mean < 0 < score.clean.mean
    assert wb.competent(tiny, pairs).provenance["competent"] == "4 of 4"


def test_an_estimate_has_its_interval():
    estimate = Estimate.of(torch.tensor([0.0, 1.0, 1.0, 1.0]))
    assert estimate.mean == 0.75
    assert 0 <= estimate.low < 0.75 < estimate.high <= 1


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"), [(4, 4, 0.510, 1.0), (0, 10, 0.0, 0.278), (9, 12, 0.468, 0.911)]
)
def test_the_interval_of_a_share_is_wilsons(hits, n, low, high):
    share = Estimate.of_share(torch.arange(n) < hits)
    assert share.mean == hits / n
    assert [round(end, 3) for end in (share.low, share.high)] == [low, high]


def test_the_page_of_a_real_model_says_what_its_numbers_say():
    page = (Path(__file__).parents[2] / "docs" / "what_smollm2_can_do.md").read_text(encoding="utf-8")
    shares = re.findall(r"^\| (\w+) \| \d+ \| nothing \| ([\d.]+) \[.*?\] \| ([\d.]+) \[", page, re.MULTILINE)
    assert {name for name, _, _ in shares} == {task.name for task in TASKS.values() if task.any_model}
    below = [name for name, right, first in shares if float(right) < 0.85 or float(first) < 0.6]
    assert f"with nothing in front, it cannot do: {', '.join(below) or 'none of these'}." in page
