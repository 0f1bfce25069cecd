"""Numbers that are not finite: every public function refuses them by one error that says where they were met."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from families import build, make_pairs, model_of

import workbench as wb
from workbench.engine.first_not_finite import first_not_finite
from workbench.errors import NotFinite
from workbench.finite import check_finite, is_finite

PAIRS = make_pairs((5, 5, 5))
QUIET: dict[str, Any] = {"progress": False}


def broken(family: str, number: float) -> Any:
    """A model with one weight of the MLP's output in layer 1 that is not a finite number."""
    model = build(family)
    part = {"gpt2": "c_proj", "llama": "down_proj", "gemma2": "down_proj"}[family]
    for name, parameter in model.original_model.named_parameters():
        if ".1." in name and "mlp" in name and part in name and name.endswith("weight"):
            with torch.no_grad():
                parameter.view(-1)[3] = number
            return model
    raise AssertionError(family)


def scale(model: Any, part: str, factor: float) -> None:
    """Multiply the weights of a part of the model."""
    weights = [weight for name, weight in model.original_model.named_parameters() if part in name]
    assert weights
    with torch.no_grad():
        for weight in weights:
            weight.mul_(factor)


CALLS: dict[str, Callable[[Any], Any]] = {
    "run": lambda model: wb.run(model, PAIRS.clean),
    "capture": lambda model: wb.capture(model, PAIRS.clean, sites=["resid_post"], **QUIET),
    "effects": lambda model: wb.effects(model, PAIRS, sites="z[0.1]", value=wb.zero(), **QUIET),
    "gradient": lambda model: wb.effects(model, PAIRS, sites="z[0.1]", value=wb.zero(), method="gradient", **QUIET),
    "paths": lambda model: wb.path_effects(model, PAIRS, senders="heads", value=wb.zero(), mlps="frozen", **QUIET),
    "scores": lambda model: wb.score_edges(model, PAIRS, value=wb.zero(), **QUIET),
    "exact": lambda model: wb.score_edges(model, PAIRS, value=wb.zero(), method="exact", **QUIET),
    "evaluate": lambda model: wb.evaluate(wb.Circuit.empty(model), model, PAIRS, value=wb.zero(), checks=(), **QUIET),
    "acdc": lambda model: wb.acdc(model, PAIRS, value=wb.zero(), threshold=1.0, **QUIET),
    "learn": lambda model: wb.learn_circuit(model, PAIRS, value=wb.zero(), n_edges=9, steps=1, metric="nll", **QUIET),
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "number"),
    [
        ("gpt2", float("nan")),
        pytest.param("gemma2", float("inf"), marks=pytest.mark.slow),
        pytest.param("gpt2", float("inf"), marks=pytest.mark.slow),
        pytest.param("gemma2", float("nan"), marks=pytest.mark.slow),
        pytest.param("llama", float("nan"), marks=pytest.mark.slow),
        pytest.param("llama", float("inf"), marks=pytest.mark.slow),
    ],
)
def test_weights_that_are_not_finite_are_refused_by_layer_and_site(family, number):
    model = broken(family, number)
    assert first_not_finite(model, PAIRS.clean) == "mlp_out[1] of prompt 0"
    for name, call in CALLS.items():
        with pytest.raises(NotFinite) as error:
            call(model)
        assert error.value.place, name
        assert "mlp_out[1]" in str(error.value) or "resid_post[1]" in str(error.value), (
            name,
            str(error.value),
        )


@pytest.mark.parametrize(
    "family", ["gpt2", *(pytest.param(family, marks=pytest.mark.slow) for family in ("llama", "gemma2"))]
)
def test_an_edit_that_overflows_on_the_way_is_named(family):
    """Each of the two is finite where it is written, and their sum in the stream is not."""
    model = model_of(family)
    asked: dict[str, Any] = {"value": wb.constant(3e38), **QUIET}
    own = wb.metric(lambda logits: logits[:, 4], positions="END")
    for metric in ("logit_diff", "nll", own):
        with pytest.raises(NotFinite) as error:
            wb.effects(
                model, PAIRS, sites=["z[1.0]@0", ("attn_out[1]", "mlp_out[1]")], metric=metric, **asked
            )
        assert error.value.place == "attn_out[1] + mlp_out[1]"
        assert str(error.value).endswith(
            "The run without edits is finite; edited at attn_out[1] + mlp_out[1] it is not."
        )
    with pytest.raises(
        NotFinite, match=r"^scale\(1e\+39\) is not finite at z\[0\.1\] \(in float32\), so nothing"
    ):
        wb.effects(model, PAIRS, sites="z[0.1]", value=wb.scale(1e39), **QUIET)
    with pytest.raises(NotFinite, match=r"constant is not finite at resid_pre\[0\]"):
        wb.evaluate(
            wb.Circuit.empty(model), model, PAIRS, value=wb.constant(float("inf")), checks=(), **QUIET
        )
    with pytest.raises(NotFinite, match=r"logits is not finite"):
        wb.run(model, PAIRS.clean, edits={"attn_out[1]": wb.constant(3e38), "mlp_out[1]": wb.constant(3e38)})


def test_stores_and_lenses_in_half_precision_refuse_what_it_does_not_hold(tmp_path):
    model = build("llama")
    scale(model, "embed_tokens", 1e7)
    with pytest.raises(
        NotFinite, match=r"The activation resid_pre\[0\] in float16 holds .* are infinite"
    ) as error:
        wb.capture(model, PAIRS.clean, sites=["resid_pre"], path=tmp_path / "s", dtype=torch.float16, **QUIET)
    assert "float16 holds numbers up to 6.55e+04" in str(error.value)
    half = build("llama", dtype=torch.float16)
    scale(half, "lm_head", 3e4)
    store = wb.capture(half, PAIRS.clean, sites=["resid_post"], **QUIET)
    for call in (
        lambda: wb.logit_lens(store, half, measure="entropy"),
        lambda: wb.top_tokens(store, half, k=2),
        lambda: wb.logit_lens(store, half, targets=PAIRS.answers),
    ):
        with pytest.raises(NotFinite, match=r"What the lens reads at resid_post\[0\] in float16 holds"):
            call()
    with pytest.raises(NotFinite, match=r"from logits of prompt 0 on: check the weights and the dtype"):
        wb.effects(half, PAIRS, sites="z[0.1]", value=wb.zero(), metric="nll", **QUIET)


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_stores_with_such_numbers_are_refused_by_every_reader(number):
    model = model_of("gpt2")
    store = wb.capture(model, PAIRS.clean, **QUIET)
    for kind in ("resid_post", "pattern", "z", "v", "mlp_post"):
        store[kind, 1].packed.view(-1)[3] = number
    targets = PAIRS.answers
    readers: dict[str, Callable[[], Any]] = {
        "lens": lambda: wb.logit_lens(store, model, targets=targets),
        "top": lambda: wb.top_tokens(store, model, k=2),
        "tuned": lambda: wb.fit_tuned_lens(store, model, test_share=0.5, epochs=1),
        "norms": lambda: wb.norms(store, kind="resid_post"),
        "direct": lambda: wb.direct_attribution(store, model, targets=targets, pos="each"),
        "heads": lambda: wb.head_scores(store),
        "attention": lambda: wb.attention_to(store, [0]),
        "copying": lambda: wb.copying_scores(store, model),
        "value": lambda: wb.effects(model, PAIRS, sites="z[1.0]", value=wb.mean(store), **QUIET),
    }
    for name, read in readers.items():
        with pytest.raises(NotFinite) as error:
            read()
        assert "[1" in str(error.value.place), (name, str(error.value))


def test_scores_that_are_not_finite_are_refused_by_edge():
    model = model_of("gpt2")
    scores = wb.score_edges(model, PAIRS, value=wb.zero(), **QUIET)
    for number in (np.nan, np.inf):
        bad = scores.copy()
        bad.loc[{"writer": "a0.1", "reader": "m1"}] = number
        for call in (
            lambda bad=bad: wb.find_circuit(bad, n_edges=3),
            lambda bad=bad: wb.find_circuit(bad, threshold=0.1, by="magnitude"),
            lambda bad=bad: wb.faithfulness_curve(bad, model, PAIRS, value=wb.zero(), **QUIET),
            lambda bad=bad: wb.acdc(model, PAIRS, value=wb.zero(), order="scores", scores=bad, **QUIET),
        ):
            with pytest.raises(NotFinite, match=r"the score of a0\.1->m1 is not a finite number"):
                call()


def test_gradients_that_overflow_are_refused_by_site_and_edge():
    model = model_of("llama")

    def steep(logits: torch.Tensor) -> torch.Tensor:
        """Finite itself, with an infinite slope at 0."""
        apart = logits[:, -1, 3] - logits[:, -1, 3].detach()
        return apart.sqrt()

    asked: dict[str, Any] = {"value": wb.zero(), "metric": steep, **QUIET}
    one = PAIRS.select([0])
    with pytest.raises(NotFinite, match=r"the effect at z\[0\.1\] is not a finite number"):
        wb.effects(model, one, sites="z[0.1]", method="gradient", **asked)
    with pytest.raises(NotFinite, match=r"score_edges\(method='eap'\): the score of input->a0.0<q>"):
        wb.score_edges(model, one, **asked)


def test_large_numbers_are_finite_numbers():
    assert is_finite(torch.full((1000,), 3e38))
    assert is_finite(torch.full((10,), 60000.0, dtype=torch.float16))
    assert is_finite(torch.tensor([1, 2]))
    assert not is_finite(torch.tensor([1.0, float("nan")]))
    with pytest.raises(NotFinite) as error:
        check_finite(torch.tensor([1.0, float("nan"), float("inf"), float("-inf")]), "z[0.1]", "Look there.")
    assert (
        str(error.value)
        == "z[0.1] holds numbers that are not finite (1 are NaN, 2 are infinite). Look there."
    )
    assert error.value.place == "z[0.1]"
