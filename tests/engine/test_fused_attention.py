"""Attention without patterns gives what attention with patterns gives, and is used where nobody looks at one."""

import pytest
import torch
from closeness import close
from families import N_CTX, build, logit_size, make_pairs, max_difference, model_of
from torch.nn import functional

import workbench as wb
from workbench.engine.fast import families as readers
from workbench.engine.fast.decoder import Decoder
from workbench.engine.fast.staircase import run_base
from workbench.engine.hooked.forward import forward

# Long enough for scores to take more memory than queries, keys and values of heads this narrow.
LONG = make_pairs((N_CTX, N_CTX), changed=(0, 3))


@pytest.fixture
def calls(monkeypatch):
    """The shape of the queries of each fused call."""
    shapes, fused = [], functional.scaled_dot_product_attention
    monkeypatch.setattr(
        functional,
        "scaled_dot_product_attention",
        lambda q, *given, **asked: shapes.append(tuple(q.shape)) or fused(q, *given, **asked),
    )
    return shapes


def inputs(decoder, *, rows, start, gradients=False):
    """Random q, k, v of two prompts from `start` on, and keys and values before it."""
    shape, generator = decoder.shape, torch.Generator().manual_seed(start)

    def random(*axes):
        made = torch.randn(*axes, shape.d_head, generator=generator, dtype=decoder.dtype)
        return made.requires_grad_(gradients)

    own = N_CTX - start
    q = random(rows, 2, own, shape.n_heads)
    k, v = (random(rows, 2, own, shape.n_kv_heads) for _ in range(2))
    before = (random(2, start, shape.n_kv_heads), random(2, start, shape.n_kv_heads)) if start else None
    pos = torch.arange(start, N_CTX)
    return q, k, v, before, (pos[None, :] <= pos[:, None])[None]


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize(("family", "dtype"), [
    ("gpt2", torch.float32), ("gpt2", torch.float64), ("llama", torch.float32), ("neox", torch.float32),
    ("neox", torch.float64),
])  # fmt: skip
def test_it_is_attention_with_patterns_and_has_its_gradients(family, dtype, start, calls):
    decoder = readers.read(model_of(family, dtype), N_CTX)
    q, k, v, before, visible = inputs(decoder, rows=3, start=start, gradients=True)
    at = [q, k, v, *(before or ())]
    # One mask for all, one that hides more than what comes later, and one for each example.
    some = visible & ((torch.rand(visible.shape) < 0.7) | torch.eye(*visible.shape[1:], dtype=torch.bool))
    for mask in (visible, some, torch.cat((some, visible))):
        calls.clear()
        fused = decoder.attend(1, q, k, v, before, mask)
        assert len(calls) == 1
        slow = decoder.attend(1, q, k, v, before, mask, lambda pattern: pattern)
        assert len(calls) == 1
        assert close(fused.detach(), slow.detach())
        push = torch.randn_like(slow)
        of_fused, of_slow = (torch.autograd.grad((z * push).sum(), at) for z in (fused, slow))
        for one, other in zip(of_fused, of_slow, strict=True):
            assert close(one, other)


def test_it_is_left_out_where_it_would_round_otherwise_or_gain_nothing():
    fuses = {dtype: readers.read(build("gpt2", dtype=dtype), N_CTX).fuses(N_CTX, N_CTX)
             for dtype in (torch.float32, torch.float64, torch.bfloat16)}  # fmt: skip
    assert fuses == {torch.float32: True, torch.float64: True, torch.bfloat16: False}
    # Llama's softmax is one of float32 whatever the weights.
    assert not readers.read(model_of("llama", torch.float64), N_CTX).fuses(N_CTX, N_CTX)
    decoder = readers.read(model_of("llama"), N_CTX)
    assert [decoder.fuses(*n) for n in ((N_CTX, N_CTX), (15, 15), (1, N_CTX))] == [True, False, False]


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_engines_agree_on_long_prompts_and_identities_stay_exact(family, calls, monkeypatch):
    model = model_of(family)
    clean, corrupt = wb.capture_pairs(model, LONG, progress=False)
    size = logit_size(model, LONG)
    sites = ["resid_pre[0]", "z[0.1]", "q[1.2]", "k[0.0]@2", "mlp_out[0]", "pattern[1.1]", "v[1.1]@5"]

    def measured(value):
        return wb.effects(model, LONG, sites=sites, value=value, progress=False)

    def evaluated(circuit):
        return wb.evaluate(circuit, model, LONG, value=wb.from_store(corrupt), checks=(), progress=False)

    calls.clear()
    fused = measured(wb.from_store(corrupt))
    assert fused.attrs["engine"] == "staircase"
    assert calls
    assert max_difference(measured(wb.from_store(clean, allow_self=True)), 0 * fused) == 0
    scores = wb.score_edges(model, LONG, value=wb.from_store(corrupt), progress=False)
    half = wb.find_circuit(scores, n_edges=60)
    full, empty, some = (
        evaluated(circuit) for circuit in (wb.Circuit.full(model), wb.Circuit.empty(model), half)
    )
    assert close(full["faithfulness"], [1.0], tolerance=1e-5)
    assert close(empty["faithfulness"], [0.0], tolerance=1e-5, scale=1.0)
    # The slow reference: the same engine, which writes every pattern down.
    monkeypatch.setattr(Decoder, "fuses", lambda *_: False)
    calls.clear()
    assert close(fused, measured(wb.from_store(corrupt)), scale=size)
    again = wb.score_edges(model, LONG, value=wb.from_store(corrupt), progress=False)
    assert close(scores.fillna(0), again.fillna(0))
    assert close(some["faithfulness"], evaluated(half)["faithfulness"], tolerance=1e-5, scale=1.0)
    assert not calls


def test_patterns_that_are_kept_are_written_down(calls):
    model = model_of("llama")
    decoder = readers.read(model, N_CTX)
    kept = run_base(decoder, LONG.clean, {("pattern", 1), ("z", 1)}).kept
    assert len(calls) == 1  # the other layer
    hooked = forward(model, LONG.clean, record=[("pattern", 1), ("z", 1)]).recorded
    for key, expected in hooked.items():
        assert close(kept[key], expected)
