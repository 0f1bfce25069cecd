"""The same weights with another vocabulary: token ids mean other words, so prompts, pairs and stores are refused."""

import json

import pandas as pd
import pytest
import torch
from directories import copy_of, loaded

import workbench as wb
from workbench.errors import PromptError, StoreError

TEXTS = ["the red cat sat", "the two cat sat"]
MADE_ELSEWHERE = "were made with the vocabulary of another model"


@pytest.fixture(
    scope="module",
    params=["llama", *(pytest.param(family, marks=pytest.mark.slow) for family in ("gpt2", "native"))],
)
def both(request, tmp_path_factory):
    """A model, and one with the same weights whose tokenizer has its words in another order."""
    folder = copy_of(request.param, tmp_path_factory.mktemp(request.param) / "model")
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    words = content["model"]["vocab"]
    first, second = sorted(words, key=words.get)[270:272]
    words[first], words[second] = words[second], words[first]
    file.write_text(json.dumps(content), encoding="utf-8")
    return loaded(request.param), wb.load_model(folder)


def pairs_of(model):
    row = {"clean": TEXTS[0], "corrupt": TEXTS[1], "answer": " on", "wrong": " mat"}
    return wb.PromptPairs.from_dataframe(model, pd.DataFrame([row]))


def test_prompts_and_pairs_of_another_vocabulary_are_refused(both):
    own, other = both
    assert wb.model_fingerprint(own) == wb.model_fingerprint(other)
    pairs, prompts = pairs_of(own), wb.read_corpus(own, TEXTS)
    for call in (
        lambda: wb.run(other, prompts),
        lambda: wb.run(other, prompts.select([1])),
        lambda: wb.capture(other, prompts, progress=False),
        lambda: wb.capture_pairs(other, pairs, progress=False),
        lambda: wb.effects(other, pairs, sites=["z[0.1]"], value=wb.zero(), progress=False),
        lambda: wb.score_edges(other, pairs, value=wb.zero(), progress=False),
        lambda: wb.effects(
            other, pairs, sites=["z[0.1]"], value=wb.zero(), metric="sequence_logprob_diff", progress=False
        ),
        lambda: wb.run(other, wb.PromptPairs.of([[1, 5]], [[1, 6]], [7], [8], model=own).clean),
    ):
        with pytest.raises(PromptError, match=MADE_ELSEWHERE):
            call()


def test_stores_of_another_vocabulary_are_refused(both, tmp_path):
    own, other = both
    store = wb.capture(own, wb.read_corpus(own, TEXTS), progress=False)
    on_disk = wb.capture(own, wb.read_corpus(own, TEXTS), path=tmp_path / "store", progress=False)
    assert on_disk.prompts.tokenizer == store.prompts.tokenizer == store.tokenizer
    pairs = pairs_of(other)
    for one in (store, on_disk):
        with pytest.raises(StoreError, match="made with another vocabulary"):
            wb.logit_lens(one, other, measure="entropy")
        for value in (wb.from_store(one), wb.mean(one), wb.resample(one, 0)):
            with pytest.raises(StoreError, match="made with another vocabulary"):
                wb.effects(other, pairs, sites=["z[0.1]"], value=value, progress=False)


def test_token_ids_and_equal_vocabularies_go_anywhere(both):
    own, other = both
    assert torch.equal(wb.run(own, [[0, 5, 9]]).logits, wb.run(other, [[0, 5, 9]]).logits)
    # A model without a tokenizer has no words that an id could mean.
    bare = loaded("llama", with_tokenizer=False)
    wb.run(bare, wb.read_corpus(loaded("llama"), TEXTS))


def test_two_packaged_models_of_one_vocabulary_share_prompts():
    pairs = wb.load_task("induction", wb.load_model("tiny"), n=4)
    wb.run(wb.load_model("induction"), pairs.clean)


def test_a_store_of_another_checkpoint_stays_where_it_is_meant(both):
    other = both[1]
    pairs = pairs_of(other)
    _, corrupt = wb.capture_pairs(other, pairs, progress=False)
    wb.effects(other, pairs, sites=["z[0.1]"], value=wb.from_store(corrupt, other_model=True), progress=False)
