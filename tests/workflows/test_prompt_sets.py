"""Prompts that count: copies of a prompt, two corruptions that are one, and who has seen what."""

import functools

import pandas as pd
import pytest

import workbench as wb
from workbench.discovery.search import find_circuit
from workbench.errors import NoCircuit, PromptError, WorkbenchWarning
from workbench.tasks import grammar
from workbench.workflows.prompt_sets import PromptSets


@functools.cache
def tiny():
    return wb.load_model("tiny", device="cpu")


@functools.cache
def rows(n: int = 16) -> pd.DataFrame:
    """Sentences of `agreement`, no two of which share a prompt."""
    pairs = wb.load_task("agreement", tiny(), n=n)
    texts = [" ".join(strings[1:]) for strings in pairs.clean.strings]
    others = [" ".join(strings[1:]) for strings in pairs.corrupt.strings]
    return pd.DataFrame({"clean": texts, "corrupt": others, "answer": "is", "wrong": "are"})


def of(table: pd.DataFrame) -> wb.PromptPairs:
    return wb.PromptPairs.from_dataframe(tiny(), table)


def test_copies_of_a_prompt_do_not_make_up_for_too_few_prompts():
    few = rows().head(8)
    with pytest.raises(PromptError, match="at least 4 are needed"):
        PromptSets.of(tiny(), of(few))
    copied = pd.concat([few] * 20, ignore_index=True)
    repeated = pytest.warns(WorkbenchWarning, match="152 of 160 pairs repeat the clean prompt")
    with repeated, pytest.raises(PromptError, match="at least 4 are needed"):
        PromptSets.of(tiny(), of(copied))


def test_n_limits_own_pairs_and_draws_them_from_the_whole_file():
    pairs = of(rows(64))
    sets = PromptSets.of(tiny(), pairs, n=5)
    assert [len(some) for some in (sets.find, sets.select, sets.test)] == [5, 5, 10]
    with pytest.raises(PromptError, match="n=2; at least 4 pairs are needed in a set"):
        PromptSets.of(tiny(), pairs, n=2)
    first = PromptSets.of(tiny(), pairs).find.pairs.clean.ids[:5]
    assert sets.find.pairs.clean.ids != first, "the first rows of a sorted file are all of one kind"


def test_prompts_that_differ_in_a_single_token_are_counted():
    table = pd.DataFrame(
        {
            "clean": [f"The {noun} near the cars" for noun in grammar.NOUNS[:24]],
            "corrupt": [f"The {noun} near the car" for noun in grammar.NOUNS[:24]],
            "answer": "is",
            "wrong": "are",
        }
    )
    assert PromptSets.of(tiny(), of(table)).near_copies == 1.0
    assert PromptSets.of(tiny(), "ioi", n=8).near_copies < 0.2


def test_two_corruptions_that_are_mostly_the_same_are_one():
    table = rows(8)
    corrupt = table["corrupt"].tolist()
    others = corrupt[1:] + corrupt[:1]
    assert list(of(table.assign(corrupt2=corrupt[:4] + others[4:])).further) == ["corrupt2"], (
        "half is not most"
    )
    with pytest.raises(PromptError, match="corrupt and corrupt2 are the same prompts in 5 of 8 pairs"):
        of(table.assign(corrupt2=corrupt[:5] + others[5:]))


def test_too_few_prompts_choose_no_circuit():
    pairs = wb.load_task("ioi", tiny(), n=8)
    scores = wb.score_edges(tiny(), pairs, value=wb.zero(), progress=False)
    wanted = {"criteria": wb.Criteria(error=5.0), "model": tiny()}
    with pytest.raises(PromptError, match="1 different clean prompts, and at least 4"):
        find_circuit(scores, pairs=pairs.select([0] * 64), **wanted)
    with pytest.raises(PromptError, match="3 different clean prompts in each half"):
        find_circuit(scores, pairs=pairs.select(range(6)), refine="prune", **wanted)
    wanted["criteria"] = wb.Criteria(at_most=0.001)
    with (
        pytest.warns(WorkbenchWarning, match="8 of 16 pairs repeat the clean prompt of an earlier one"),
        pytest.raises(NoCircuit),
    ):
        find_circuit(scores, pairs=pairs.select([*range(8)] * 2), **wanted)


def test_a_circuit_knows_the_prompts_that_chose_its_size():
    pairs = wb.load_task("ioi", tiny(), n=16)
    find, select = pairs.parts((1, 1))
    scores = wb.score_edges(tiny(), find, value=wb.zero(), progress=False)
    chosen = find_circuit(scores, min_faithfulness=0.5, model=tiny(), pairs=select)
    for some in (find, select):
        measured = wb.evaluate(chosen, tiny(), some, value=wb.zero(), checks=(), progress=False)
        assert float(measured["in_sample"][0]) == 1.0
