"""A real language model of 135 million parameters: what is measured in it is what plain transformers computes."""

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import workbench as wb
from workbench import resources
from workbench.models import pinned
from workbench.studies.counterfactuals import THIS
from workbench.studies.evidence import FILE, Evidence

pytestmark = pytest.mark.real
NAME = "smollm2-135m-instruct-q4"
MARY = "When Mary and John went to the store, John gave a drink to"
PARIS = "The capital of France is"
# Sums of many numbers in another order: of the largest logit.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model():
    return wb.load_model(NAME, device="cpu", bos=True)


@pytest.fixture(scope="module")
def folder():
    return pinned.folder_of(pinned.PINNED[NAME])


@pytest.fixture(scope="module")
def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def words(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def pairs(model):
    return wb.load_task("ioi", model, n=4)


def plain_logits(plain, tokens):
    """[example, vocab] at the end of prompts of one length."""
    with torch.no_grad():
        return plain(tokens).logits[:, -1]


def logit_diff(logits, pairs):
    """[example]: the right answer's logit minus the wrong one's."""
    at = torch.arange(len(logits))
    return logits[at, pairs.answers[:, 0, 0]] - logits[at, pairs.wrong[:, 0, 0]]


def test_the_tensors_are_those_that_are_pinned(folder):
    pinned.check_tensors_sha256(pinned.PINNED[NAME], folder)


def test_logits_are_those_of_plain_transformers(model, plain, words):
    for text in (MARY, PARIS):
        tokens = torch.tensor([words(text).input_ids])
        expected = plain_logits(plain, tokens)
        with torch.no_grad():
            logits = model(tokens)[:, -1]
        assert float((logits - expected).abs().max() / expected.abs().max()) < TOLERANCE


def test_it_completes_what_it_completes(model, words):
    for text, word in ((MARY, " Mary"), (PARIS, " Paris")):
        logits = wb.run(model, [text]).logits[0, -1]
        assert words.decode([int(logits.argmax())]) == word


def test_prompts_begin_as_the_tokenizer_begins_them(model, words):
    own = words(MARY).input_ids
    assert words.bos_token_id not in own
    again = wb.load_model(model)  # the same bridge, whose choice is kept
    assert wb.read_corpus(again, [MARY]).tokens.tolist() == [[words.bos_token_id, *own]]
    assert wb.read_corpus(again, [MARY], bos=False).tokens.tolist() == [own]


def test_a_chat_is_the_tokenizers_own(model, words):
    row = {"clean": PARIS, "corrupt": "The capital of Italy is", "answer": "Paris", "wrong": "Rome"}
    pairs = wb.PromptPairs.from_dataframe(model, pd.DataFrame([row]), chat=True)
    message = [{"role": "user", "content": PARIS}]
    expected = words.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert pairs.clean.tokens[0].tolist() == expected
    assert words.decode(pairs.answers[0, 0]) == "Paris"


def test_an_ablated_head_is_one_whose_output_a_plain_hook_sets_to_zero(model, plain, pairs):
    layer, head, size = 12, 4, plain.config.head_dim

    def zero_head(_module, inputs):
        (z,) = inputs  # [example, pos, head x d_head]
        z = z.clone()
        z[..., head * size : (head + 1) * size] = 0
        return (z,)

    effects = wb.effects(model, pairs, sites=[f"z[{layer}.{head}]"], value=wb.zero(), metric="logit_diff")
    for i in range(len(pairs)):
        tokens = pairs.clean.tokens[i : i + 1, : int(pairs.clean.lengths[i])]
        one = pairs.select([i])
        base = logit_diff(plain_logits(plain, tokens), one)
        hook = plain.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(zero_head)
        edited = logit_diff(plain_logits(plain, tokens), one)
        hook.remove()
        assert abs(float(edited - base)) > 0
        assert abs(float(effects[i, 0]) - float(edited - base)) < TOLERANCE * float(base.abs())


def test_the_full_circuit_is_the_model(model, pairs):
    full = wb.Circuit.full(model)
    result = wb.evaluate(full, model, pairs, value=wb.zero(), metric="logit_diff", checks=())
    assert abs(float(result.faithfulness[0]) - 1) < TOLERANCE


def test_it_generates_what_plain_transformers_generates(model, plain, words):
    tokens = torch.tensor([words(PARIS).input_ids])
    expected = plain.generate(tokens, max_new_tokens=6, do_sample=False)
    generated = model.generate(tokens, max_new_tokens=6, do_sample=False, return_type="tokens", verbose=False)
    assert generated.tolist() == expected.tolist()


def test_the_studied_circuit_keeps_as_much_as_its_evidence_says(model):
    folder = resources.circuits() / "smollm2-ioi"
    evidence, circuit = Evidence.load(folder / FILE), wb.Circuit.load(folder / "circuit.json")
    heldout = wb.load_task("ioi", model, n=evidence.n_heldout, split="heldout", bos=False)
    kept = wb.evaluate(
        circuit, model, heldout, value=wb.counterfactual_values(model, heldout), checks=(), progress=False
    ).isel(circuit=0)
    rows = [row for row in evidence.counterfactuals if row.circuit == THIS]
    assert {row.counterfactual for row in rows} == {"swap", "abc"}
    for row in rows:
        measured = kept.sel(ablation=row.counterfactual)
        for name in ("faithfulness", "error", "r", "kl_recovered"):
            assert abs(float(measured[name]) - getattr(row, name).mean) < 1e-3, (row.counterfactual, name)
    assert (kept["in_sample"] == 0).all()
