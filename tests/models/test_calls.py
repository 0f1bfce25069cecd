"""What a notebook has set in torch: calls give the same numbers as without it, or say why they cannot."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from closeness import close
from families import build, make_pairs, model_of
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

import workbench as wb
from workbench.errors import ModelError
from workbench.models.calls import plain_torch


@contextmanager
def _default_device():
    before = torch.get_default_device()
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None if before.type == "cpu" else before)


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default device": _default_device,
    "device context": lambda: torch.device("meta"),
}


@contextmanager
def _all_at_once():
    with ExitStack() as stack:
        for setting in SETTINGS.values():
            stack.enter_context(setting())
        yield


# The default suite sets all of them together, the slow one each by itself.
TOGETHER_OR_ALONE = [
    pytest.param({"all at once": _all_at_once}, id="together"),
    pytest.param(SETTINGS, id="alone", marks=pytest.mark.slow),
]

PAIRS = make_pairs((5, 5))
CLEAN, CORRUPT = PAIRS.clean.tokens.tolist(), PAIRS.corrupt.tokens.tolist()


def numbers(model: Any, *, lenses: bool) -> dict[str, Any]:
    """What public functions of every kind make of a model, from the prompts on."""
    sides = (wb.Prompts.of(CLEAN), wb.Prompts.of(CORRUPT))
    pairs = wb.PromptPairs(*sides, PAIRS.answers, PAIRS.wrong).select([0, 1])
    store, other = wb.capture_pairs(model, pairs, progress=False)
    asked: dict[str, Any] = {"value": wb.from_store(other), "progress": False}
    results: dict[str, Any] = {
        "run": wb.run(model, pairs.clean, edits={"z[0.1]": wb.zero()}).logits,
        "capture": store["resid_post", 1].padded(),
        "effects": wb.effects(model, pairs, sites=["z[0.1]", "mlp_out[1]"], **asked),
        "gradient": wb.effects(model, pairs, sites=["z[0.1]"], method="gradient", **asked),
        "integrated": wb.effects(model, pairs, sites=["z[0.1]"], method="integrated", steps=4, **asked),
        "scores": wb.score_edges(model, pairs, method="eap-ig-inputs", **asked),
        "exact": wb.score_edges(model, pairs, method="exact", **asked),
        "learned": wb.learn_circuit(model, pairs, n_edges=40, steps=2, **asked).scores,
        "paths": wb.path_effects(model, pairs, senders="heads", mlps="frozen", **asked),
    }
    if lenses:
        results["norms"] = wb.norms(store)
        results["attention"] = wb.attention_to(store, [0])
        results["head scores"] = wb.head_scores(store, scores=("previous",))
        results["lens"] = wb.logit_lens(store, model, targets=pairs.answers)
        results["tuned"] = wb.fit_tuned_lens(store, model, test_share=0.5, epochs=1, batch=2).weight
    return results


@pytest.mark.parametrize("settings", TOGETHER_OR_ALONE)
@pytest.mark.parametrize(
    "family", ["gpt2", *(pytest.param(family, marks=pytest.mark.slow) for family in ("llama", "gemma2"))]
)
def test_settings_of_a_thread_change_no_number(family, settings):
    """The first two run on the fast engine, gemma2 on hooks; its logits are capped, which lenses refuse."""
    model, lenses = model_of(family), family != "gemma2"
    expected = numbers(model, lenses=lenses)
    for name, setting in settings.items():
        with setting():
            got = numbers(model, lenses=lenses)
        for what, values in expected.items():
            assert _same(got[what], values), (name, what)


def _same(a: Any, b: Any) -> bool:
    a, b = (
        torch.as_tensor(one if torch.is_tensor(one) else np.array(getattr(one, "values", one)))
        for one in (a, b)
    )
    a, b = a.detach().nan_to_num(), b.detach().nan_to_num()
    return a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("settings", TOGETHER_OR_ALONE)
def test_models_and_prompts_are_loaded_alike_under_every_setting(settings):
    expected = wb.load_model("induction", device="cpu")
    prompts = wb.load_task("induction", expected, n=4)
    for name, setting in settings.items():
        with setting():
            model = wb.load_model("induction", device="cpu")
            loaded = wb.load_task("induction", model, n=4).select([0, 2])
        assert wb.model_fingerprint(model) == wb.model_fingerprint(expected), name
        assert loaded.clean.ids == prompts.select([0, 2]).clean.ids, name
        # Gradients pass what was loaded in inference mode.
        wb.effects(model, loaded, sites="z[0.0]", value=wb.zero(), method="gradient", progress=False)


def refused(model: Any, call: Callable[[Any], Any]) -> str:
    with pytest.raises(ModelError) as error:
        call(model)
    return str(error.value)


CALLS: dict[str, Callable[[Any], Any]] = {
    "run": lambda model: wb.run(model, [[1, 2]]),
    "effects": lambda model: wb.effects(model, PAIRS, sites="z[0.1]", value=wb.zero()),
    "evaluate": lambda model: wb.evaluate(wb.Circuit.empty(model), model, PAIRS, value=wb.zero(), checks=()),
    "capture": lambda model: wb.capture(model, [[1, 2]], sites=["z"]),
    "load_model": lambda model: wb.load_model("tiny"),
}


@pytest.mark.parametrize("call", CALLS)
def test_settings_of_the_whole_process_are_refused_with_the_cure(call):
    model = model_of("llama")
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            text = refused(model, CALLS[call])
        finally:
            torch.set_default_dtype(torch.float32)
        assert text.startswith(f"torch's default dtype is {dtype}, which changes the precision")
        assert "Call torch.set_default_dtype(torch.float32) first" in text
    for register in (register_module_forward_hook, register_module_forward_pre_hook):
        handle = register(lambda *_: None)
        try:
            text = refused(model, CALLS[call])
        finally:
            handle.remove()
        assert text.startswith("Global hooks of modules are installed")
    CALLS[call](model)


def test_weights_made_in_inference_mode_run_and_refuse_gradients():
    with torch.inference_mode():
        model = build("llama")
    exact = wb.effects(model, PAIRS, sites="z[0.1]", value=wb.zero(), progress=False)
    assert close(exact, wb.effects(model_of("llama"), PAIRS, sites="z[0.1]", value=wb.zero(), progress=False))
    text = "The model's weights were made in torch.inference_mode(), so no gradient can pass them."
    asked: dict[str, Any] = {"value": wb.zero(), "progress": False}
    for call in (
        lambda model: wb.effects(model, PAIRS, sites="z[0.1]", method="gradient", **asked),
        lambda model: wb.score_edges(model, PAIRS, **asked),
        lambda model: wb.learn_circuit(model, PAIRS, n_edges=5, steps=1, **asked),
    ):
        assert refused(model, call).startswith(text)


def test_what_was_set_is_set_again_afterwards():
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"):
        with plain_torch():
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            assert not torch.is_autocast_enabled("cpu")
            assert torch.ones(1).device.type == "cpu"
        with pytest.raises(ValueError, match="inside"), plain_torch():
            raise ValueError("inside")
        assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cpu")
        assert torch.ones(1).device.type == "meta"
