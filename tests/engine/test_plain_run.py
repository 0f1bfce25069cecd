"""Activations by the fast engine are those that hooks record, of every kind, and hooks record the rest."""

import pytest
import torch
from closeness import close
from families import NATIVES, build, make_pairs, model_of, ragged

import workbench as wb
from workbench.engine import plain_run
from workbench.engine.fast.base_run import Recorder
from workbench.engine.given_values import writer_sites
from workbench.engine.hooked.forward import forward
from workbench.engine.plain_run import PlainRun
from workbench.sites import KINDS, Shape

CLAIMED = ("gpt2", "llama", "neox", "native", "qwen2", *NATIVES)
PROMPTS = ragged([5, 9, 1, 5])


def hooked_store(model, prompts, **asked):
    """The slow reference: what hooks record."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_run, "fast_decoder", lambda *_: (None, "hooks are asked for"))
        return wb.capture(model, prompts, progress=False, **asked)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", CLAIMED)
def test_every_activation_is_the_one_that_hooks_record(family, dtype, monkeypatch):
    model = model_of(family, dtype)
    kinds = [kind for kind in KINDS if kind != "logits" and not Shape.of(model).lacks(KINDS[kind])]
    expected = hooked_store(model, PROMPTS, sites=kinds)
    wb.run(model, PROMPTS)  # whatever is checked once is checked
    wb.capture(model, PROMPTS, sites=["z"], progress=False)
    monkeypatch.setattr(plain_run, "forward", lambda *_, **__: pytest.fail("hooks"))
    store = wb.capture(model, PROMPTS, sites=kinds, progress=False)
    assert store.kinds == expected.kinds
    for key in expected.keys:
        for i in range(len(PROMPTS)):
            ours, its = store[key].prompt(i), expected[key].prompt(i)
            assert ours.dtype == its.dtype == dtype
            # Llama rounds its softmax to float32 in every precision.
            assert close(
                ours, its, tolerance=1e-5 if dtype == torch.float32 or family in ("llama", "qwen2") else None
            )


def test_hooks_record_what_the_fast_engine_does_not_know():
    for model, keys in (
        (model_of("gpt2"), [("logits", None)]),
        (model_of("gptj"), [("z", 0)]),
        (model_of("gpt2", torch.bfloat16), [("z", 0)]),
    ):
        run = PlainRun.of(model, keys, 9)
        assert run.decoder is None
        recorded, expected = run(PROMPTS), forward(model, PROMPTS, record=keys).recorded
        assert all(torch.equal(recorded[key], expected[key]) for key in keys)
    model = build("gpt2")
    assert PlainRun.of(model, [("z", 0)], 9).decoder is not None
    # A hook of the user's acts on what is captured.
    model.blocks[0].hook_in.add_hook(lambda value, hook: 2 * value)
    assert PlainRun.of(model, [("z", 0)], 9).decoder is None


def test_an_engine_that_records_other_activations_is_not_used(monkeypatch):
    """Edits that write a whole activation would not show it."""
    keep = Recorder.keep

    def wrong(self, key, cohort, value):
        return keep(self, key, cohort, 1.1 * value if key[0] == "attn_out" else value)

    model = build("neox")
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "keep", wrong)
        with pytest.warns(UserWarning, match=r"disagree on GPTNeoXForCausalLM: "):
            store = wb.capture(model, PROMPTS, sites=["attn_out"], progress=False)
    expected = hooked_store(model, PROMPTS, sites=["attn_out"])
    assert all(
        torch.equal(store["attn_out", 1].prompt(i), expected["attn_out", 1].prompt(i)) for i in range(4)
    )


def test_a_store_on_disk_holds_what_one_in_memory_holds(tmp_path):
    model = model_of("llama")
    on_disk = wb.capture(model, PROMPTS, path=tmp_path / "store", progress=False)
    in_memory = wb.capture(model, PROMPTS, progress=False)
    for kind in ("resid_post", "pattern", "mlp_post"):
        for i in range(len(PROMPTS)):
            assert close(on_disk[kind, 1].prompt(i), in_memory[kind, 1].prompt(i))


def test_the_sites_of_writers_are_enough_for_a_circuit():
    model, pairs = model_of("llama"), make_pairs()
    _, whole = wb.capture_pairs(model, pairs, progress=False)
    graph = wb.Graph.of(model)
    few = wb.capture(model, pairs.corrupt, sites=writer_sites(graph), progress=False)
    assert few.kinds == ["resid_pre", "z", "mlp_out"]
    scores = wb.score_edges(model, pairs, value=wb.from_store(whole), progress=False)
    circuit = wb.find_circuit(scores, n_edges=20)
    first, second = (
        wb.evaluate(circuit, model, pairs, value=wb.from_store(store), checks=(), progress=False)[
            "faithfulness"
        ]
        for store in (whole, few)
    )
    assert first.equals(second)
