"""Several counterfactuals in a set of pairs: each by its name, together in every selection, apart in every split."""

import re

import pandas as pd
import pytest
import torch

import workbench as wb
from workbench.errors import PromptError, UnknownName
from workbench.prompts.pairs import PromptPairs
from workbench.tasks.registry import load_task
from workbench.tasks.task import TASKS


def pairs_of(n: int = 6, **further: list[list[int]]) -> PromptPairs:
    """Pairs whose prompts all differ, with one more counterfactual unless others are given."""
    rows = {name: [[100 * k + i, 7] for i in range(n)] for k, name in enumerate(("clean", "corrupt", "abc"))}
    more = further or {"abc": rows["abc"]}
    return PromptPairs.of(rows["clean"], rows["corrupt"], list(range(n)), [n] * n, further=more)


def prompts_of(pairs: PromptPairs) -> set[str]:
    return {*pairs.clean.ids, *pairs.corrupt.ids, *(i for side in pairs.further.values() for i in side.ids)}


def test_each_counterfactual_has_a_name_and_stands_alone():
    pairs = pairs_of()
    assert pairs.counterfactual == "corrupt"
    assert list(pairs.counterfactuals) == ["corrupt", "abc"]
    abc = pairs.against("abc")
    assert abc.corrupt.ids == pairs.further["abc"].ids
    assert abc.provenance["variant"] == abc.counterfactual == "abc"
    assert all(not one.further for one in pairs.counterfactuals.values())
    # What one counterfactual gives does not depend on which others there are.
    assert pairs.fingerprint == pairs.against("corrupt").fingerprint != abc.fingerprint
    with pytest.raises(UnknownName, match=re.escape("counterfactual='ab' is not known. Did you mean 'abc'?")):
        pairs.against("ab")


def test_selections_and_recoded_answers_keep_every_counterfactual():
    pairs = pairs_of()
    chosen = pairs.select([4, 1])
    assert chosen.further["abc"].ids == tuple(pairs.further["abc"].ids[i] for i in (4, 1))
    assert pairs.recoded(torch.arange(7)).further["abc"].ids == pairs.further["abc"].ids
    assert [half.further["abc"].ids for half in pairs.split()] == [
        half.further["abc"].ids for half in pairs.split()
    ]


def test_parts_share_no_prompt_on_any_side():
    # Pairs 0 and 1 share a prompt of the further side only; 2 has the clean prompt of 3 as a corruption.
    pairs = pairs_of(8, abc=[[900], [900], [3, 7], *([[900 + i] for i in range(3, 8)])])
    find, select, test = pairs.parts((1, 1, 2))
    assert [len(part) for part in (find, select, test)] == [2, 2, 4]
    sides = [prompts_of(part) for part in (find, select, test)]
    assert not sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2]
    assert set().union(*sides) == prompts_of(pairs)
    assert pairs.parts((1, 1, 2), seed=0)[2].fingerprint == test.fingerprint
    assert len({pairs.parts((1, 1, 2), seed=seed)[2].fingerprint for seed in range(5)}) > 1
    first, second = pairs.split()
    assert not prompts_of(first) & prompts_of(second)


def test_parts_that_cannot_be_had_are_refused():
    joined = pairs_of(3, abc=[[900], [900], [901]])
    assert [len(part) for part in joined.parts((0.1, 0.9))] == [1, 2]
    message = "Pairs: 3, which cannot be parted into 3 sets: shared prompts connect them into 2."
    with pytest.raises(PromptError, match=re.escape(message)):
        joined.parts((1, 1, 1))
    for shares in ((), (1, 0), (1, -1)):
        with pytest.raises(PromptError, match="give one number above 0 for each set"):
            joined.parts(shares)


def test_further_sides_are_checked():
    one = [[5, 7], [6, 7]]
    with pytest.raises(
        PromptError, match=re.escape("there are 2 clean, 2 corrupt, 2 answers, 2 wrong, 1 abc.")
    ):
        PromptPairs.of(one, [[1], [2]], [9, 9], [8, 8], further={"abc": [[3]]})
    pairs = PromptPairs.of(one, [[1, 7], [2, 7]], [9, 9], [8, 8])
    for name in ("clean", "corrupt", ""):
        with pytest.raises(PromptError, match=f"further: '{name}' is empty or taken"):
            PromptPairs(pairs.clean, pairs.corrupt, pairs.answers, pairs.wrong, further={name: pairs.corrupt})
    with pytest.raises(PromptError, match="corrupt and abc are the same prompts"):
        PromptPairs.of(one, [[1], [2]], [9, 9], [8, 8], further={"abc": [[1], [2]]})
    uneven = PromptPairs.of(one, [[1, 7], [2, 7]], [9, 9], [8, 8], further={"abc": [[1, 7], [2]]})
    assert not uneven.equal_lengths
    assert uneven.against("corrupt").equal_lengths
    with pytest.raises(
        PromptError, match=r"^Pair 1 .* of 2 and 1 tokens\. Why\. The prompts: '\d+\|\d+' and '\d+'\.$"
    ):
        uneven.check_equal_lengths("Why.")


ROW = {
    "clean": "The dog near the cats",
    "corrupt": "The dogs near the cats",
    "corrupt2": "The boys near the cats",
    "answer": "is",
    "wrong": "are",
}


def test_columns_of_a_table_become_counterfactuals(tmp_path):
    tiny = wb.load_model("tiny", device="cpu")
    frame = pd.DataFrame([ROW, ROW | {"clean": "The girl near the cats"}])
    pairs = PromptPairs.from_dataframe(tiny, frame)
    assert list(pairs.counterfactuals) == ["corrupt", "corrupt2"]
    assert pairs.against("corrupt2").corrupt.strings[0][2] == "boys"
    frame.to_csv(tmp_path / "p.csv", index=False)
    frame.to_json(tmp_path / "p.jsonl", orient="records", lines=True)
    for read in (
        PromptPairs.from_csv(tiny, tmp_path / "p.csv"),
        PromptPairs.from_jsonl(tiny, tmp_path / "p.jsonl"),
    ):
        assert read.further["corrupt2"].ids == pairs.further["corrupt2"].ids
    plain = PromptPairs.from_dataframe(tiny, frame.drop(columns="corrupt2"))
    assert (plain.fingerprint, dict(plain.further)) == (pairs.fingerprint, {})
    for change, message in (
        ({"corrupt2": " "}, "table, row 1: the column 'corrupt2' is empty."),
        ({"corrupt2": ROW["clean"]}, "table, row 1: clean and corrupt2 are the same"),
        ({"corrupt2": ROW["corrupt"]}, "corrupt and corrupt2 are the same prompts"),
    ):
        with pytest.raises(PromptError, match=re.escape(message)):
            PromptPairs.from_dataframe(tiny, pd.DataFrame([ROW | change]))


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_task_brings_every_counterfactual_of_the_same_clean_prompts(name: str):
    tiny = wb.load_model("tiny", device="cpu")
    for split in ("train", "heldout"):
        first, *others = TASKS[name].counterfactuals
        pairs, alone = (load_task(name, tiny, n=20, split=split, variant=v) for v in (None, first))
        # The further ones are drawn from a stream of their own.
        assert (pairs.fingerprint, alone.further) == (alone.fingerprint, {})
        assert list(pairs.counterfactuals) == [first, *others]
        assert pairs.equal_lengths
        for other in others:
            changed = (pairs.clean.tokens != pairs.further[other].tokens).sum(1)
            assert set(changed.tolist()) == {1}
            assert pairs.further[other].positions.keys() == pairs.clean.positions.keys()
            if split == "heldout":
                drawn = load_task(name, tiny, n=300, variant=other)
                assert not {*drawn.clean.ids, *drawn.corrupt.ids} & set(pairs.further[other].ids)
    assert [len(part) for part in load_task("ioi", tiny, n=64).parts((1, 1, 2))] == [16, 16, 32]
