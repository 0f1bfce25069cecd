"""Token ids as other libraries hand them over: an attention mask is honoured, padding without one is refused.

The right values are those of each prompt by itself.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from closeness import close
from families import model_of
from transformers import BatchEncoding

import workbench as wb
from workbench.errors import PromptError, UnknownName
from workbench.prompts.token_tables import Padding, token_rows

ROWS = [[3, 5, 7], [4, 6]]
LEFT = {"input_ids": [[3, 5, 7], [9, 4, 6]], "attention_mask": [[1, 1, 1], [0, 1, 1]]}
RIGHT = {"input_ids": [[3, 5, 7], [4, 6, 9]], "attention_mask": [[1, 1, 1], [1, 1, 0]]}


def as_tensors(table):
    return {name: torch.tensor(rows) for name, rows in table.items()}


def as_arrays(table):
    return {name: np.array(rows) for name, rows in table.items()}


def as_rows(table):
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


FORMS = {
    "lists": dict, "tensors": as_tensors, "arrays": as_arrays, "tokenizer": lambda table: BatchEncoding(as_tensors(table)),
    "data frame": pd.DataFrame, "rows": as_rows,
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("table", [LEFT, RIGHT], ids=["left", "right"])
def test_a_mask_says_which_tokens_are_the_prompt_in_every_form(form, table):
    assert token_rows(FORMS[form](table), Padding(9)) == ROWS


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_a_padded_prompt_is_run_as_it_is_by_itself(family):
    model = model_of(family)
    alone = [model(torch.tensor([row])).detach() for row in ROWS]
    for table in (LEFT, RIGHT):
        logits = wb.run(model, BatchEncoding(as_tensors(table))).logits
        store = wb.capture(model, BatchEncoding(as_tensors(table)), sites=["resid_post"], progress=False)
        corpus = wb.read_corpus(model, as_rows(table))
        assert store.prompts.lengths.tolist() == corpus.lengths.tolist() == [3, 2]
        assert store.prompts.ids == corpus.ids == wb.Prompts.of(ROWS).ids
        for i, row in enumerate(ROWS):
            assert close(logits[i, : len(row)], alone[i][0], tolerance=1e-4)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[1, 1, 1], [1, 0, 1]], "Prompt 1: its attention mask leaves out tokens in the middle. Masks may leave out padding at "
         "the beginning and at the end."),
        ([[1, 1, 1], [0, 0, 0]], "Prompt 1: its attention mask keeps no token."),
        ([[1, 1, 1], [1, 1]], "Prompt 1: its attention mask must hold 0 or 1 for each of its 3 tokens."),
        ([[1, 1, 1], [2, 1, 1]], "Prompt 1: its attention mask must hold 0 or 1 for each of its 3 tokens."),
        ([[1, 1, 1]], "There are 2 prompts and 1 attention masks."),
    ],
)  # fmt: skip
def test_masks_that_mean_nothing_are_refused(mask, message):
    with pytest.raises(PromptError) as error:
        token_rows(LEFT | {"attention_mask": mask}, None)
    assert str(error.value) == message


def test_padding_without_a_mask_is_refused_at_both_ends():
    for rows, words in (
        ([[3, 5, 7], [4, 9, 9]], "Prompt 1 ends in 2"),
        ([[3, 5, 7], [9, 4, 6]], "Prompt 1 begins in 1"),
    ):
        for table in (rows, torch.tensor(rows), np.array(rows), {"input_ids": rows}):
            with pytest.raises(PromptError, match=f"{words} of the tokenizer's padding token \\(9\\)"):
                token_rows(table, Padding(9))


def test_a_padding_token_that_has_another_meaning_may_stand_at_either_end_once():
    shared = Padding(9, exclusive=False)
    for rows in (
        [[9, 4, 6], [9, 5, 7]],
        [[4, 6, 9], [5, 7, 9]],
        [[4, 6, 9]],
        [[4, 9, 6], [5, 7, 8]],
        [[3, 5, 9, 9], [4, 9]],
    ):
        assert token_rows(rows, shared) == rows
    for rows in ([[4, 6, 9], [5, 7, 8]], [[4, 9, 9]], [[9, 9, 4], [9, 5, 6]]):
        with pytest.raises(PromptError, match="padding token"):
            token_rows(rows, shared)


@pytest.mark.parametrize(
    "rows",
    [
        [[True, False]], [[1.0, 2.0]], torch.tensor([[1.0, 2.0]]), torch.tensor([[True, False]]), np.array([[1.5]]),
        [[1, None]], [["a", 2]], [[10**400]], [[1, [2]]], [[b"a"]],
    ],
    ids=str,
)  # fmt: skip
def test_truth_values_fractions_and_text_are_no_token_ids(rows):
    for read in (lambda: wb.Prompts.of(rows), lambda: wb.run(model_of("gpt2"), rows)):
        with pytest.raises(PromptError):
            read()


def test_tables_of_tokens_without_token_ids_say_what_they_need():
    for table in ({"attention_mask": [[1]]}, pd.DataFrame({"words": [[1]]})):
        with pytest.raises(PromptError, match="'tokens' or 'input_ids'"):
            token_rows(table, None)
    with pytest.raises(PromptError, match="'position_ids' is not read"):
        token_rows(LEFT | {"position_ids": [[0, 1, 2], [0, 0, 1]]}, None)


@pytest.mark.parametrize("form", [list, np.array, torch.tensor])
def test_pairs_are_made_of_ids_in_any_form(form):
    pairs = wb.PromptPairs.of(
        form([[1, 5, 7], [1, 6, 7]]), form([[1, 4, 7], [1, 3, 7]]), form([9, 8]), form([[2], [3]])
    )
    assert pairs.clean.ids == wb.Prompts.of([[1, 5, 7], [1, 6, 7]]).ids
    assert pairs.answers.tolist() == [[[9]], [[8]]]
    assert pairs.wrong.tolist() == [[[2]], [[3]]]


def test_answers_may_be_ragged_and_of_several_tokens():
    sides = ([[1, 5], [1, 6]], [[1, 4], [1, 3]])
    pairs = wb.PromptPairs.of(*sides, [[9, 7], 8], [[[2, 3], [4]], [[5]]])
    assert pairs.answers.tolist() == [[[9], [7]], [[8], [-1]]]
    assert pairs.wrong.tolist() == [[[2, 3], [4, -1]], [[5, -1], [-1, -1]]]
    padded = wb.PromptPairs.of(*sides, torch.tensor([[9, -1], [8, 7]]), [2, 3])
    assert padded.answers.tolist() == [[[9], [-1]], [[8], [7]]]


@pytest.mark.parametrize(
    ("answers", "wrong", "message"),
    [
        ([9, 8], [9, 3], "Pair 0: the answer of token 9 is both right and wrong"),
        ([[9, 7], [8]], [[3], [5, 8]], "Pair 1: the answer of token 8 is both right and wrong"),
        ([9, []], [2, 3], "answers, example 1 has no token"),
        ([9, 8.0], [2, 3], "answers, example 1: 8.0 is not a token id"),
        ([9, True], [2, 3], "answers, example 1: True is not a token id"),
        (["a", "b"], [2, 3], "answers, example 0: 'a' is not a token id"),
        ([[9], [-1, 8]], [2, 3], None),
        ([9], [2, 3], "Pairs need one of each"),
        ([[9, 9], [8]], [2, 3], "answers, example 0: an alternative is there twice"),
        ([9, 8], [[2, 3], [5, 4, 5]], "wrong, example 1: an alternative is there twice"),
        ([[[9, 7], [9], [9, 7]], [8]], [2, 3], "answers, example 0: an alternative is there twice"),
        (5, [2, 3], "answers are 5"),
    ],
)
def test_answers_that_say_nothing_are_refused(answers, wrong, message):
    sides = ([[1, 5], [1, 6]], [[1, 4], [1, 3]])
    if message is None:
        assert wb.PromptPairs.of(*sides, answers, wrong).answers.tolist() == [[[9]], [[8]]]
        return
    with pytest.raises(PromptError, match=message):
        wb.PromptPairs.of(*sides, answers, wrong)


def test_positions_are_of_a_side():
    with pytest.raises(UnknownName, match=r"positions='claen' is not known. Did you mean 'clean'?"):
        wb.PromptPairs.of([[1, 5]], [[1, 4]], [9], [8], positions={"claen": [{"X": 0}]})


def test_an_alternative_with_a_gap_is_refused():
    sides = wb.Prompts.of([[1, 5]]), wb.Prompts.of([[1, 4]])
    with pytest.raises(PromptError, match="answers, example 0: an alternative has a gap"):
        wb.PromptPairs(*sides, torch.tensor([[[-1, 5], [7, -1]]]), torch.tensor([[[8]]]))


def test_pairs_of_ids_measure_what_pairs_of_text_measure():
    model = wb.load_model("tiny")
    pairs = wb.load_task("ioi", model, n=4)
    ids = [
        [row[:n].tolist() for row, n in zip(side.tokens, side.lengths, strict=True)]
        for side in (pairs.clean, pairs.corrupt)
    ]
    again = wb.PromptPairs.of(*ids, pairs.answers, pairs.wrong, model=model)
    assert again.clean.strings == pairs.clean.strings
    assert again.bos
    effects = [
        wb.effects(model, given, sites=["z[3.4]"], value=wb.zero(), progress=False)
        for given in (pairs, again)
    ]
    assert effects[0].equals(effects[1])


def test_the_constructors_check_what_of_checks():
    of = wb.Prompts.of([[1, 5], [1, 6, 7]])
    fields = {
        "tokens": of.tokens,
        "lengths": of.lengths,
        "positions": of.positions,
        "strings": of.strings,
        "bos": False,
    }
    assert wb.Prompts(**fields).ids == of.ids
    for wrong in (
        {"lengths": torch.tensor([2, 4])}, {"lengths": torch.tensor([0, 3])}, {"lengths": torch.tensor([2])},
        {"positions": {}}, {"positions": dict(of.positions) | {"S": torch.tensor([2, 0])}}, {"strings": ()},
        {"tokens": of.tokens.float()}, {"tokens": of.tokens[0]}, {"positions": dict(of.positions) | {"S": torch.tensor([-2, 0])}},
    ):  # fmt: skip
        with pytest.raises(wb.WorkbenchError):
            wb.Prompts(**fields | wrong)
    with pytest.raises(PromptError, match="position S=True is not a whole number"):
        wb.Prompts.of([[1, 5]], positions=[{"S": True}])
    with pytest.raises(wb.WorkbenchError, match="where=True does not fit; a whole number or text is needed"):
        of.at(True)


def test_examples_that_are_not_there_cannot_be_selected():
    pairs = wb.PromptPairs.of([[1, 5], [1, 6]], [[1, 4], [1, 3]], [9, 8], [7, 7])
    for chosen in (range(3), [-3], [2]):
        with pytest.raises(PromptError, match=r"There is no example -?\d: there are 2, from 0 on\."):
            pairs.select(chosen)
    assert pairs.select([-1]).answers.tolist() == [[[8]]]
