"""Threads on one model: what they compute together is what each computes alone."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from families import make_pairs, model_of

import workbench as wb
from workbench.engine.bound import Value
from workbench.engine.hooked.forward import Write, forward
from workbench.errors import EditError
from workbench.models.locks import alone


def tasks(model: Any, pairs: wb.PromptPairs) -> list[Any]:
    """Functions of every kind that runs the model, each to be called in a thread of its own."""
    quiet: dict[str, Any] = {"progress": False}
    clean = wb.capture(model, pairs.clean, sites=["resid_post", "z", "mlp_out"], progress=False)

    def counted(logits: torch.Tensor) -> torch.Tensor:
        """A metric that runs the model itself, between the runs of the call that it belongs to."""
        return logits[:, -1, 3] - wb.run(model, pairs.clean).logits[:, -1, 3]

    heads, chosen = [f"z[{layer}.{head}]" for layer in (0, 1) for head in range(4)], ["z[0.1]", "mlp_out[1]"]
    return [
        partial(wb.effects, model, pairs, sites=heads, value=wb.zero(), **quiet),
        partial(wb.effects, model, pairs, sites=heads, value=wb.scale(2.0), metric=counted, **quiet),
        partial(wb.effects, model, pairs, sites=chosen, value=wb.zero(), method="gradient", **quiet),
        partial(wb.effects, model, pairs, sites=chosen, value=wb.mean(clean), method="integrated", steps=9, **quiet),
        partial(wb.path_effects, model, pairs, senders="heads", value=wb.zero(), mlps="recomputed", **quiet),
        partial(wb.score_edges, model, pairs, value=wb.zero(), method="eap-ig-inputs", **quiet),
        partial(wb.logit_lens, clean, model, targets=pairs.answers),
        lambda: wb.capture(model, pairs.corrupt, sites=["resid_post"], progress=False)["resid_post", 1].padded(),
        lambda: wb.run(model, pairs.clean, edits={"z[0.2]": wb.add(1.0)}).logits,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "times"),
    [
        ("gemma2", 2),
        *(pytest.param(family, 6, marks=pytest.mark.slow) for family in ("gemma2", "gpt2", "llama")),
    ],
)
def test_calls_in_threads_give_what_they_give_one_after_the_other(family, times):
    """gemma2 runs on hooks alone; the fast engine of the others is checked against hooks, which threads share."""
    model, pairs = model_of(family), make_pairs((5, 5))
    calls = tasks(model, pairs)
    expected = [call() for call in calls]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda call: call(), calls * times))
    for i, result in enumerate(results):
        wanted = expected[i % len(calls)]
        if torch.is_tensor(result):
            assert torch.equal(result, wanted), calls[i % len(calls)]
            continue
        assert wanted.equals(result), calls[i % len(calls)]
        assert wanted.attrs.get("engine") == result.attrs.get("engine")


@pytest.mark.parametrize("family", ["gpt2", "neox", "native"])
def test_a_run_of_ones_own_in_another_thread_meets_no_hook_of_ours(family):
    model, tokens = model_of(family), make_pairs().clean.tokens
    with torch.no_grad():
        expected = model(tokens)
    seen = []

    def change(z: torch.Tensor) -> torch.Tensor:
        with ThreadPoolExecutor(1) as pool:
            seen.append(pool.submit(lambda: model(tokens).detach()).result())
        return torch.zeros_like(z)

    edited = forward(model, tokens, writes=[Write("z", 0, change)]).logits
    assert torch.equal(seen[0], expected)
    assert not torch.equal(edited, expected)


class _Nested(Value):
    """A value that runs a model to know what to write."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def replace(self, current):
        return wb.run(self.model, [[1, 2, 3]], record=["z[0]"]).recorded["z", 0][:1, :1].expand_as(current)


def test_an_edit_that_runs_the_edited_model_is_refused_and_one_that_runs_another_is_not():
    model, other = model_of("gpt2"), model_of("gpt2", seed=1)
    text = "An edit runs the very model that it edits, whose hooks would act on that run too."
    with pytest.raises(EditError, match=text):
        wb.run(model, [[4, 5, 6]], edits={"z[0]": _Nested(model)})
    wb.run(model, [[4, 5, 6]])  # the refusal has left nothing behind
    written = wb.run(model, [[4, 5, 6]], edits={"z[0]": _Nested(other)}, record=["z[0]"]).recorded["z", 0]
    expected = wb.run(other, [[1, 2, 3]], record=["z[0]"]).recorded["z", 0]
    assert torch.equal(written, expected[:, :1].expand_as(written))


def test_a_model_can_be_kept_to_oneself():
    model, order = model_of("gpt2"), []

    def run() -> None:
        wb.run(model, [[1, 2]])
        order.append("other")

    with alone(model):
        thread = threading.Thread(target=run)
        thread.start()
        wb.run(model, [[1, 2, 3]])  # the owner enters again
        thread.join(0.1)
        order.append("owner")
    thread.join()
    assert order == ["owner", "other"]


def test_generators_that_are_left_in_the_middle_hold_nothing():
    model, pairs = model_of("gpt2"), make_pairs()

    def one_by_one():
        for head in range(4):
            yield wb.effects(model, pairs, sites=f"z[0.{head}]", value=wb.zero(), progress=False)

    steps, record = one_by_one(), (f"z[{layer}]" for layer in (0, 1))
    next(steps)
    assert torch.is_grad_enabled()
    assert len(wb.run(model, pairs.clean, record=record).recorded) == 2
    with ThreadPoolExecutor(1) as pool:
        pool.submit(wb.run, model, pairs.clean).result(timeout=30)
    steps.close()
