"""What `score_edges` refuses, and what it says then."""

import pytest
from families import (
    make_pairs,
    model_of,
    pairs_and_stores,
    untyped,
)

from workbench.discovery.scores import METHODS, score_edges
from workbench.engine.values import from_store, zero
from workbench.errors import MetricError, ModelError, UnknownName, WorkbenchError


def refused(error, text, model=None, **more):
    model, pairs = model or model_of("gpt2"), make_pairs()
    with pytest.raises(error) as raised:
        untyped(score_edges)(model, pairs, **({"value": zero()} | more))
    assert str(raised.value) == text


def test_unknown_words_are_named():
    known = "atp-star, clean-corrupt, conditional, eap, eap-ig-activations, eap-ig-inputs, exact, ig-activations, random"
    assert known == ", ".join(sorted(METHODS))
    refused(
        UnknownName,
        "method='eap-ig' is not known. Did you mean 'eap' or 'eap-ig-inputs' or "
        f"'eap-ig-activations'? Choices: {known}.",
        method="eap-ig",
    )
    refused(UnknownName, "grid='middle' is not known. Choices: left, midpoint, right.", grid="middle")
    refused(
        UnknownName,
        "keep='position' is not known. Did you mean 'pos'? Choices: example, pos.",
        keep=("position",),
    )
    for steps in (0, -1):
        text = f"score_edges: steps={steps}; the path needs at least one point."
        refused(WorkbenchError, text, steps=steps, method="eap-ig-inputs")
    for more in ({"method": "exact"}, {"method": "conditional"}, {"method": "random"}, {"positions": [2]}):
        refused(
            WorkbenchError,
            "score_edges: keep=('pos',) is for gradient methods without positions=. With "
            f"method={more.get('method', 'eap')!r} name "
            "them: positions=[...] gives every edge a score at each.",
            keep=("pos",),
            **more,
        )


def test_metrics_and_models_that_a_method_cannot_take_are_refused():
    for method in ("eap", "atp-star"):
        refused(
            MetricError,
            "The metric 'kl' compares with the clean run, so its gradient there is zero and every "
            "score would be noise. "
            "Use logit_diff, prob_diff or nll, or the exact method.",
            metric="kl",
            method=method,
        )
    model, pairs = model_of("gpt2"), make_pairs()
    for method in ("exact", "clean-corrupt", "eap-ig-inputs"):
        scores = score_edges(model, pairs, value=zero(), metric="kl", method=method, steps=2, progress=False)
        assert float(abs(scores).max()) > 1e-4
        assert scores.attrs["higher_is_better"] == 0
    refused(
        MetricError,
        "atp-star takes sizes prompt by prompt, which answers of several tokens "
        "(sequence_logprob_diff) do not allow. Use eap.",
        metric="sequence_logprob_diff",
        method="atp-star",
    )
    families = "GPT2LMHeadModel, LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, GPTNeoXForCausalLM"
    refused(
        ModelError,
        "atp-star recomputes attention from queries and keys, which the fast engine alone knows; "
        "the model runs on hooks because its "
        f"architecture GPTJForCausalLM is not one of {families}, TransformerLensNative. Use "
        "eap-ig-inputs or exact.",
        model=model_of("gptj"),
        method="atp-star",
    )
    for method in ("eap", "exact", "eap-ig-activations"):
        refused(
            ModelError,
            "Circuits of neurons run on the fast engine alone, and this model or value needs the "
            "reference: use whole MLPs, "
            "Graph.of(model), and a value that does not depend on what is there.",
            model=model_of("gptj"),
            neurons=True,
            method=method,
        )
    pairs, clean, _ = pairs_and_stores("gpt2")
    with pytest.raises(MetricError) as raised:
        score_edges(model, pairs, value=from_store(clean, allow_self=True), normalized=True, metric=flat)
    assert str(raised.value) == (
        "score_edges: flat is the same in the full and in the empty circuit, so nothing can be "
        "normalized by it."
    )


def flat(logits):
    """[example]: the same whatever is read."""
    return logits[:, -1].softmax(-1).sum(-1)
