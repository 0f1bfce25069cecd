"""BOS and chat templates: what the tokenizer adds is the default, a choice is kept, and nothing is put there twice."""

import json
import re
import warnings

import pandas as pd
import pytest
from directories import directory, loaded, tokenizer

import workbench as wb
from workbench.errors import ModelError, PromptError
from workbench.models.load import model_source

TEXTS = ["the red cat", "one two three four"]
ROW = pd.DataFrame([{"clean": TEXTS[0], "corrupt": "the one cat", "answer": " sat", "wrong": " on"}])
CHAT = (
    "{% for message in messages %}<s>{{ message['role'] }} {{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %} one{% endif %}"
)


def rows(prompts):
    return [row[:n].tolist() for row, n in zip(prompts.tokens, prompts.lengths, strict=True)]


@pytest.mark.parametrize(
    "bos", ["<s>", "</s>"]
)  # of the latter kind are GPT-2 and Pythia: their EOS is their BOS
@pytest.mark.parametrize("adds_bos", [True, False])
def test_prompts_begin_as_the_tokenizer_begins_them(bos, adds_bos):
    words = tokenizer(bos, adds_bos=adds_bos)
    own = words(TEXTS).input_ids
    assert (own[0][0] == words.bos_token_id) is adds_bos
    model = wb.load_model(directory("gpt2", bos=bos, adds_bos=adds_bos))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prompts = wb.read_corpus(model, TEXTS)
        pairs = wb.PromptPairs.from_dataframe(model, ROW)
    assert rows(prompts) == own
    assert rows(pairs.clean) == own[:1]
    assert [pairs.bos, pairs.provenance["bos"], pairs.attrs(model)["bos"]] == [adds_bos] * 3
    told = [str(warning.message) for warning in caught if "BOS" in str(warning.message)]
    name = directory("gpt2", bos=bos, adds_bos=adds_bos).name
    assert told == [
        f"The tokenizer of {name!r} declares the BOS token {bos!r} and puts none in front of texts, and so neither do "
        "prompts. bos=True (in load_model, or where prompts are read; --bos) puts it there, as published circuits of "
        "GPT-2 have it; bos=False says that none is meant."
    ] * (not adds_bos)  # once for each model
    assert all(warning.filename == __file__ for warning in caught if "BOS" in str(warning.message))


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_choice_goes_before_the_tokenizers_and_is_kept_with_the_model(adds_bos, tmp_path, recwarn):
    folder = directory("llama", adds_bos=adds_bos)
    plain = tokenizer()(TEXTS, add_special_tokens=False).input_ids
    expected = {True: [[0, *row] for row in plain], False: plain}
    (tmp_path / "a.csv").write_text(ROW.to_csv(index=False))
    (tmp_path / "a.jsonl").write_text(json.dumps(ROW.to_dict("records")[0]))
    for bos, other in ((True, False), (False, True)):
        model = wb.load_model(folder, bos=bos)
        assert rows(wb.read_corpus(model, TEXTS)) == expected[bos]
        assert rows(wb.capture(model, TEXTS, sites=["embed"], progress=False).prompts) == expected[bos]
        assert model_source(model)["bos"] is bos
        # A reader that is told goes before the model's.
        assert rows(wb.read_corpus(model, TEXTS, bos=other)) == expected[other]
        for read, path in ((wb.PromptPairs.from_csv, "a.csv"), (wb.PromptPairs.from_jsonl, "a.jsonl")):
            assert rows(read(model, tmp_path / path).clean) == expected[bos][:1]
            assert rows(read(model, tmp_path / path, bos=other).clean) == expected[other][:1]
    assert wb.load_model(model, bos=True) is model
    assert rows(wb.read_corpus(model, TEXTS)) == expected[True]
    assert not [warning for warning in recwarn if "BOS" in str(warning.message)]


def test_a_task_without_bos_has_one_token_less_and_its_positions_move():
    model = wb.load_model("tiny")
    usual, without = (wb.load_task("ioi", model, n=4, bos=bos) for bos in (None, False))
    assert rows(usual.clean) == [[0, *row] for row in rows(without.clean)]
    assert (usual.provenance["bos"], without.provenance["bos"]) == (True, False)
    assert usual.clean.positions.keys() == without.clean.positions.keys()
    for name, index in usual.clean.positions.items():
        assert index.tolist() == [at + 1 for at in without.clean.positions[name].tolist()]


def test_eos_is_never_borrowed():
    model = loaded("llama", bos=None)
    for call in (
        lambda: wb.load_model(directory("llama", bos=None), bos=True),
        lambda: wb.read_corpus(model, TEXTS, bos=True),
        lambda: wb.load_model(directory("llama", with_tokenizer=False), bos=True),
    ):
        with pytest.raises(ModelError, match=r"^bos=True: this model's tokenizer declares no BOS token"):
            call()


def test_a_chat_template_is_applied_once_with_one_bos():
    model = loaded("llama", chat=CHAT)
    pairs = wb.PromptPairs.from_dataframe(model, ROW, chat=True)
    written = f"<s>user {TEXTS[0]}</s> one"
    own = tokenizer()(written, add_special_tokens=False).input_ids
    assert rows(pairs.clean) == [own]
    assert own.count(0) == 1
    assert pairs.provenance["chat"]
    assert pairs.attrs(model)["chat"]
    # The answer follows the template, and not the prompt without it.
    both = tokenizer()(f"{written} sat", add_special_tokens=False).input_ids
    sat = wb.PromptPairs.from_dataframe(model, ROW.assign(answer="sat", wrong="on"), chat=True)
    assert sat.answers[0, 0].tolist() == both[len(own) :]
    assert rows(wb.read_corpus(model, TEXTS[:1], chat=True)) == [own]


def test_chats_that_would_not_be_chats_are_refused():
    with pytest.raises(PromptError, match=r"^chat=True: the tokenizer of '.*' has no chat template\."):
        wb.read_corpus(loaded("llama"), TEXTS, chat=True)
    model = loaded("llama", chat=CHAT)
    message = (
        "Prompt 0: with chat=True the text must not hold '<s>', a special token: the chat template is put"
    )
    with pytest.raises(PromptError, match="^" + re.escape(message)):
        wb.read_corpus(model, [f"<s>{TEXTS[0]}"], chat=True)
    with pytest.raises(PromptError, match="prompts have 8 at most"):
        wb.read_corpus(model, ["the red cat sat on a mat"], chat=True, context=8)
