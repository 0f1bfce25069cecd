"""Norms, attention to named positions and kinds of heads, against sums written out token by token."""

import numpy as np
import pytest
import torch
from closeness import distance
from families import make_pairs, model_of, pairs_and_stores, ragged

import workbench as wb
from workbench.errors import PromptError, StoreError, UnknownName


@pytest.mark.parametrize("kind", ["resid_post", "z"])
def test_norms_are_lengths_of_vectors(kind):
    model, prompts = model_of("gpt2"), ragged([3, 6, 1])
    store = wb.capture(model, prompts, sites=[kind])
    found = wb.norms(store, kind=kind)
    for i, length in enumerate([3, 6, 1]):
        for layer in range(2):
            assert (
                distance(found[i, layer, :length], store[kind, layer].prompt(i).flatten(1).norm(dim=1)) < 1e-5
            )
        assert found[i, :, length:].isnull().all()


def test_attention_to_named_positions():
    model, prompts = model_of("llama"), ragged([3, 6, 2])
    store = wb.capture(model, prompts, sites=["pattern"])
    found = wb.attention_to(store, ["X", 0, 4])
    assert found.dims == ("example", "layer", "head", "key_pos")
    assert found["key_pos"].values.tolist() == ["X", "0", "4"]
    for i, (length, x) in enumerate([(3, 1), (6, 3)]):
        pattern = store["pattern", 1].prompt(i)
        assert distance(found[i, 1, :, 0], pattern[:, length - 1, x]) < 1e-6
        assert distance(found[i, 1, :, 1], pattern[:, length - 1, 0]) < 1e-6
    assert found[2, :, :, 0].isnull().all(), "a prompt without that name"
    assert found[0, :, :, 2].isnull().all(), "a key beyond the query"
    assert found[1, :, :, 2].notnull().all()


def written_out(tokens, pattern, score, bos):
    """The mean over queries that have keys, token by token."""
    sums = []
    for q in range(len(tokens)):
        earlier = [j for j in range(q) if tokens[j] == tokens[q]]
        keys = {
            "previous": [q - 1],
            "duplicate": earlier,
            "induction": [j + 1 for j in earlier if j + 1 < q],
        }[score]
        keys = [k for k in keys if k >= (1 if bos else 0)]
        if keys and not (bos and q == 0):
            sums.append(sum(float(pattern[q, k]) for k in keys))
    return np.mean(sums) if sums else np.nan


@pytest.mark.parametrize("bos", [False, True])
def test_scores_of_heads_are_means_over_queries_that_have_such_keys(bos):
    rows = [[5, 6, 7, 5, 6, 7, 5], [5, 5, 5, 5], [5, 6, 7, 8, 9], [5, 6]]
    prompts = wb.Prompts.of([[0, *row] if bos else row for row in rows], bos=bos)
    store = wb.capture(model_of("gpt2"), prompts, sites=["pattern"])
    found = wb.head_scores(store)
    for i, row in enumerate(rows):
        tokens = [0, *row] if bos else row
        for layer in range(2):
            for head in range(4):
                for score in ("previous", "duplicate", "induction"):
                    wanted = written_out(tokens, store["pattern", layer].prompt(i)[head], score, bos)
                    got = float(found.sel(example=i, layer=layer, head=head, score=score))
                    assert got == pytest.approx(wanted, abs=1e-6, nan_ok=True)


def test_tiny_has_heads_of_each_kind():
    model = wb.load_model("tiny")
    pairs = wb.load_task("induction", model, n=32)
    clean, _ = wb.capture_pairs(model, pairs)
    scores = wb.head_scores(clean).mean("example")
    assert all(float(scores.sel(score=name).max()) > 0.75 for name in ("previous", "duplicate", "induction"))
    copying = wb.copying_scores(clean, model).mean("example")
    best = scores.sel(score="induction").stack(at=("layer", "head"))
    best = best.sortby(best, ascending=False)["at"].values[:4]
    assert all(float(copying.sel(layer=layer, head=head)) > 0.6 for layer, head in best), (
        "induction heads copy"
    )
    assert float(copying.min()) < -0.9, "and one head writes against what it sees"


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_copying_counts_own_tokens_among_the_highest_and_lowest(family):
    model, prompts = model_of(family), ragged([4, 3], bos=True)
    store = wb.capture(model, prompts, sites=["v"])
    found = wb.copying_scores(store, model, top=8, budget=1)
    shape = wb.Shape.of(model)
    norm = model.ln_final.original_component
    for head in range(4):
        per_token = []
        for at in (1, 2, 3):
            v = store["v", 1].prompt(0)[at, head // shape.group]
            out = (v @ model.blocks[1].attn.W_O[head])[None, None].detach()
            if "ln1_post" in dict(model.blocks[1].named_children()):
                out = model.blocks[1].ln1_post.original_component(out * 1e3)
            with torch.no_grad():
                logits = norm(out * 1e3)[0, 0] @ model.W_U - norm(out * 0)[0, 0] @ model.W_U
            own = logits[int(prompts.tokens[0, at])]
            per_token.append(int((logits > own).sum() < 8) - int((logits < own).sum() < 8))
        assert float(found.sel(example=0, layer=1, head=head)) == pytest.approx(np.mean(per_token))


def test_what_cannot_be_summarised_is_refused():
    _pairs, clean, _ = pairs_and_stores("gpt2")
    with pytest.raises(UnknownName, match="scores='prev' is not known"):
        wb.head_scores(clean, scores=["prev"])
    with pytest.raises(PromptError, match=r"keys is empty\. Name at least one position"):
        wb.attention_to(clean, [])
    with pytest.raises(UnknownName, match="position='IO' is not known"):
        wb.attention_to(clean, ["IO"])
    with pytest.raises(PromptError, match=r"copying_scores: top=26 of 50 tokens; give 1 to 25"):
        wb.copying_scores(clean, model_of("gpt2"), top=26)
    bare = wb.capture(model_of("gpt2"), make_pairs().clean, sites=["resid_post"])
    with pytest.raises(StoreError, match="head_scores needs pattern; the store holds resid_post"):
        wb.head_scores(bare)
    with pytest.raises(StoreError, match="norms needs z; the store holds resid_post"):
        wb.norms(bare, kind="z")
