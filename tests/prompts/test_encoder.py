"""Tokens that nobody asked for, and labels: one BOS where the tokenizer has one, and pieces of characters told apart."""

import json

import pandas as pd
import pytest
import torch
from closeness import close
from directories import loaded, plain, tokenizer
from tokenizers import Tokenizer, decoders, models

import workbench as wb
from workbench.prompts.encoder import TextEncoder, token_labels

TEXTS = ["the red cat", "one two three four"]


def own_tokens(texts, bos):
    """What the tokenizer itself makes of texts."""
    return tokenizer(bos)(texts, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    "family",
    [
        "llama",
        "gpt2",
        "native",
        *(pytest.param(family, marks=pytest.mark.slow) for family in ("qwen2", "opt")),
    ],
)
def test_a_tokenizer_without_bos_gives_its_own_tokens(family):
    model = loaded(family, bos=None)
    own = own_tokens(TEXTS, None)
    store = wb.capture(model, TEXTS, progress=False)
    assert [
        row[:n].tolist() for row, n in zip(store.prompts.tokens, store.prompts.lengths, strict=True)
    ] == own
    assert not store.prompts.bos
    assert wb.read_corpus(model, TEXTS).ids == store.prompts.ids
    # An EOS in front that the caller put there is no BOS.
    assert not wb.capture(model, [[1, 5, 9]], progress=False).prompts.bos
    assert not wb.PromptPairs.of([[1, 5, 9]], [[1, 6, 9]], [3], [4], model=model).bos


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_without_bos_the_logits_are_those_of_plain_transformers(family):
    model = loaded(family, bos=None)
    tokens = torch.tensor(own_tokens(TEXTS[:1], None))
    expected = loaded(family)(tokens)
    assert close(wb.run(model, TEXTS[:1]).logits, expected.detach())


@pytest.mark.parametrize("family", ["llama", "gpt2", "native"])
def test_a_declared_bos_is_put_in_front_once(family, tmp_path):
    model = loaded(family)
    expected = [[0, *tokens] for tokens in own_tokens(TEXTS, "<s>")]
    with_its_own = [f"<s>{text}" for text in TEXTS]
    (tmp_path / "corpus.txt").write_text("\n".join(with_its_own))
    (tmp_path / "corpus.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in with_its_own))
    for texts in (TEXTS, with_its_own, tmp_path / "corpus.txt", tmp_path / "corpus.jsonl"):
        prompts = wb.capture(model, texts, sites=["embed"], progress=False).prompts
        rows = [row[:n].tolist() for row, n in zip(prompts.tokens, prompts.lengths, strict=True)]
        assert rows == expected
        assert prompts.bos
    if family != "native":
        logits = wb.run(model, with_its_own[:1]).logits
        with torch.no_grad():
            assert close(logits, plain(family)(torch.tensor(expected[:1])).logits)


@pytest.mark.parametrize("bos", ["<s>", None])
def test_pairs_and_answers_of_a_table_have_one_bos_or_none(bos):
    model = loaded("llama", bos=bos)
    row = {
        "clean": "the red cat sat",
        "corrupt": "the one cat sat",
        "answer": " on|on a mat",
        "wrong": " two",
    }
    written = row | {side: f"<s>{row[side]}" for side in ("clean", "corrupt")}
    pairs = [wb.PromptPairs.from_dataframe(model, pd.DataFrame([table])) for table in (row, written)]
    if bos is None:
        # Without a BOS of its own a tokenizer reads "<s>" as the text that the caller wrote.
        assert pairs[0].clean.tokens.tolist() == own_tokens([row["clean"]], None)
        assert not pairs[0].bos
    else:
        assert pairs[0].fingerprint == pairs[1].fingerprint
        assert pairs[1].clean.strings[0][:3] == ("<s>", "the", " red")
        assert pairs[1].bos


def test_pieces_of_a_long_text_begin_with_one_bos_each():
    model = loaded("llama")
    text = "the red cat sat on a mat " * 4
    for corpus in ([text], [f"<s>{text}"]):
        prompts = wb.read_corpus(model, corpus, context=10)
        assert prompts.ids == wb.read_corpus(model, [text], context=10).ids
        assert (prompts.tokens == 0).sum(1).tolist()[:-1] == [1] * (len(prompts) - 1)


def test_pieces_of_characters_are_told_apart():
    model = loaded("gpt2")
    strings = wb.capture(model, ["a 😀 日"], sites=["embed"], progress=False).prompts.strings[0]
    bytes_of = [f"<0x{byte:02X}>" for byte in "😀".encode()], [f"<0x{byte:02X}>" for byte in "日".encode()]
    assert "".join(strings) == "<s>a " + "".join(bytes_of[0]) + " " + "".join(bytes_of[1])
    assert token_labels(model, own_tokens(["the é"], "<s>")[0])[-2:] == ["<0xC3>", "<0xA9>"]
    # Every token of the vocabulary has a label of its own, and one beyond it has its number.
    labels = token_labels(model, range(len(model.tokenizer)))
    assert len(set(labels)) == len(labels)
    assert token_labels(model, [5000]) == ["5000"]


def test_whole_characters_beside_a_piece_are_spelled_as_they_are():
    space, first = "Ġ", "æ"  # the byte-level spellings of a space and of the first byte of "日"
    encode = TextEncoder(loaded("gpt2"))
    encode.tokenizer = _fast(models.BPE({f"{space}a{first}": 0, "�": 1}, []), decoders.ByteLevel())
    assert encode.labels([[0]]) == [[" a<0xE6>"]]


def test_byte_fallback_shows_the_byte():
    encode = TextEncoder(loaded("llama"))
    vocabulary = models.BPE({"<0xF0>": 0, "▁the": 1, "<0x9F>": 2, "a": 3}, [], byte_fallback=True)
    encode.tokenizer = _fast(vocabulary, decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()]))
    assert encode.labels([[0, 1, 2, 3]]) == [["<0xF0>", " the", "<0x9F>", "a"]]


def _fast(vocabulary, decoder):
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(vocabulary)
    backend.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=backend)
