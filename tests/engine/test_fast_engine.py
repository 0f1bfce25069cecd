"""The fast engine gives the numbers of the reference path, on every family that it claims, and says when it cannot."""

import pytest
import torch
from families import D_HEAD, D_MODEL, D_VOCAB, NATIVES, max_difference, model_of
from hypothesis import given, note, settings
from hypothesis import strategies as st

from workbench.engine.capture import capture_pairs
from workbench.engine.edits import add, constant, from_store, mean, project, resample, scale, zero
from workbench.engine.run import run
from workbench.errors import EditError, PromptError, StoreError
from workbench.methods import effects as asking
from workbench.methods.effects import effects
from workbench.sites import KINDS, Shape, Site
from workbench.tasks.metrics import metric
from workbench.tasks.pairs import PromptPairs, Prompts

CLAIMED = ("gpt2", "llama", "neox", "native", "qwen2", *NATIVES)


def on_hooks(*given, **asked):
    """The same effects on the reference path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asking, "fast_decoder", lambda *_: (None, "hooks are asked for"))
        return effects(*given, **asked)


def kinds_of(model):
    shape = Shape.of(model)
    return [kind for kind in KINDS if kind != "logits" and not shape.lacks(KINDS[kind])]


# ---- any edit of any prompts


def spread(logits):
    return logits.std((1, 2))


def two_tokens(logits):
    return logits[:, 3] * logits[:, 7]


METRICS = {"logit_diff": "logit_diff", "kl": "kl", "nll": "nll", "all": spread, "END": metric(two_tokens, positions="END")}
VALUES = {
    "from_store": lambda own, other, vector: from_store(other),
    "from_store(own)": lambda own, other, vector: from_store(own, allow_self=True),
    "zero": lambda own, other, vector: zero(),
    "mean": lambda own, other, vector: mean(other),
    "mean per pos": lambda own, other, vector: mean(own, per="pos"),
    "resample": lambda own, other, vector: resample(own, seed=1),
    "constant": lambda own, other, vector: constant(0.3),
    "add": lambda own, other, vector: add(-0.5),
    "scale": lambda own, other, vector: scale(-1.5),
    "constant vector": lambda own, other, vector: constant(vector),
    "add vector": lambda own, other, vector: add(vector),
    "project": lambda own, other, vector: project(torch.stack([vector, vector.flip(0)], 1), from_store(other)),
    "project zero": lambda own, other, vector: project(vector, zero()),
}
WIDTHS = {D_HEAD: ("q", "k", "v", "z"), D_MODEL: ("embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")}


@st.composite
def pairs_of(draw, *, one_length):
    """1 to 4 pairs of 1 to 9 tokens; the END may lie before the last token, and some prompts have a position X."""
    n = draw(st.integers(1, 4))
    length = st.integers(1, 9)
    lengths = [draw(length)] * n if one_length else draw(st.lists(length, min_size=n, max_size=n))
    lined_up = one_length or draw(st.integers(0, 4)) > 0
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    clean = [torch.randint(D_VOCAB, (size,), generator=generator).tolist() for size in lengths]
    if lined_up:
        corrupt = [[(token + 6) % D_VOCAB if draw(st.integers(0, 2)) == 0 else token for token in row] for row in clean]
    else:
        corrupt = [torch.randint(D_VOCAB, (draw(length),), generator=generator).tolist() for _ in clean]
    sides = []
    for rows in (clean, corrupt):
        names = [
            {name: draw(st.integers(0, len(row) - 1)) for name in draw(st.sets(st.sampled_from(("END", "X"))))} for row in rows
        ]
        names[0].setdefault("X", 0)
        sides.append(Prompts.of(rows, positions=names))
    answers = torch.randint(D_VOCAB, (n, 1, 1), generator=generator)
    return PromptPairs(*sides, answers, (answers + 1) % D_VOCAB)


@st.composite
def sites_of(draw, shape, kinds, positions):
    """One site, with or without a head or neuron and a position."""
    kind = KINDS[draw(st.sampled_from(kinds))]
    units = shape.units(kind)
    unit = draw(st.none() | st.integers(0, units - 1)) if units else None
    where = {"pos": draw(positions), "key_pos": draw(positions) if kind.name == "pattern" else None}
    where |= {} if unit is None else {"neuron" if kind.unit == "neuron" else "head": unit}
    return Site(kind.name, draw(st.integers(0, shape.n_layers - 1)) if kind.per_layer else None, **where)


@st.composite
def calls(draw):
    """A model as (family, dtype), pairs, elements, a value with its width, a metric, and the base."""
    which = draw(st.sampled_from(CLAIMED)), draw(st.sampled_from([torch.float32, torch.float64]))
    model = model_of(*which)
    measure, value, base = (draw(st.sampled_from(each)) for each in (list(METRICS), list(VALUES), ("clean", "corrupt")))
    pairs = draw(pairs_of(one_length=measure == "all"))
    width = draw(st.sampled_from(list(WIDTHS)))
    fitting = [kind for kind in kinds_of(model) if kind in WIDTHS[width] or not ("vector" in value or "project" in value)]
    places = st.sampled_from(
        [None, "END", "X", *range(int(pairs.side(base).lengths.max()))] if pairs.equal_lengths else ["END", "X"]
    )
    sites = st.lists(sites_of(Shape.of(model), fitting, places), min_size=1, max_size=3)
    elements = [tuple(each) for each in draw(st.lists(sites, min_size=1, max_size=4))]
    note(f"positions {[side.positions for side in (pairs.clean, pairs.corrupt)]}")
    return which, pairs, elements, (value, width), measure, base


def outcome(make, *given, **asked):
    try:
        return make(*given, **asked)
    except (EditError, PromptError, StoreError) as error:
        return type(error)


@given(calls())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_edit_has_the_effect_that_it_has_on_hooks(call):
    which, pairs, elements, (value, width), measure, base = call
    model = model_of(*which)
    stores = capture_pairs(model, pairs, sites=kinds_of(model))
    own, other = stores if base == "clean" else stores[::-1]
    made = VALUES[value](own, other, torch.linspace(-1, 2, width).sin())
    asked = {"sites": elements, "value": made, "metric": METRICS[measure], "base": base}
    got, expected = outcome(effects, model, pairs, **asked), outcome(on_hooks, model, pairs, **asked)
    if isinstance(expected, type):
        assert got is expected
        return
    assert (got.attrs["engine"], expected.attrs["engine"]) == ("staircase", "reference")
    size = max(1.0, float(run(model, pairs.side(base)).logits.abs().max()))
    assert max_difference(got, expected) < size * (1e-10 if expected.dtype == "float64" else 1e-5)
