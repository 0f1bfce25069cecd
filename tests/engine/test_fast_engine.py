"""The fast engine gives the numbers of the reference path, on every family that it claims, and says when it cannot."""

import re
import warnings
from dataclasses import replace
from functools import partial
from itertools import combinations

import pytest
import torch
import transformers
from closeness import close
from families import (
    D_HEAD,
    D_MODEL,
    D_VOCAB,
    NATIVES,
    build,
    logit_size,
    make_pairs,
    max_difference,
    model_of,
    native,
    pairs_and_stores,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from workbench.engine.capture import capture_pairs
from workbench.engine.fast import families as readers
from workbench.engine.run import run
from workbench.engine.runs import MeasuredRuns
from workbench.engine.values import add, constant, from_store, mean, project, resample, scale, zero
from workbench.errors import EditError, NotFinite, PromptError, StoreError
from workbench.interventions import effects as asking
from workbench.interventions.effects import effects, explain_effects
from workbench.metrics.continuations import expand
from workbench.metrics.metric import metric
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.sites import KINDS, Shape, Site, grid

CLAIMED = ("gpt2", "llama", "neox", "native", "qwen2", *NATIVES)


def on_hooks(*given, **asked):
    """The same effects on the reference path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asking, "fast_decoder", lambda *_: (None, "hooks are asked for"))
        return effects(*given, **asked)


def both(*given, **asked):
    """The effects on the fast engine, and on hooks."""
    got, expected = effects(*given, **asked), on_hooks(*given, **asked)
    assert (got.attrs["engine"], expected.attrs["engine"]) == ("staircase", "reference")
    return got, expected


def kinds_of(model):
    shape = Shape.of(model)
    return [kind for kind in KINDS if kind != "logits" and not shape.lacks(KINDS[kind])]


# ---- any edit of any prompts


METRICS = {name: name for name in ("logit_diff", "kl", "nll")}
METRICS |= {
    "all": lambda logits: logits.std((1, 2)),
    "END": metric(lambda logits: logits[:, 3] * logits[:, 7], positions="END"),
}
VALUES = {
    "from_store": lambda own, other, vector: from_store(other),
    "from_store(own)": lambda own, other, vector: from_store(own, allow_self=True),
    "zero": lambda own, other, vector: zero(),
    "mean": lambda own, other, vector: mean(other),
    "mean per pos": lambda own, other, vector: mean(own, per="pos"),
    "resample": lambda own, other, vector: resample(own, seed=1),
    "add 0": lambda own, other, vector: add(0.0),
    "add": lambda own, other, vector: add(-0.5),
    "scale by 1": lambda own, other, vector: scale(1.0),
    "scale": lambda own, other, vector: scale(-1.5),
    "constant number": lambda own, other, vector: constant(0.3),
    "constant vector": lambda own, other, vector: constant(vector),
    "add vector": lambda own, other, vector: add(vector),
    "project vectors": lambda own, other, vector: project(
        torch.stack([vector, vector.flip(0)], 1), from_store(other)
    ),
    "project vector": lambda own, other, vector: project(vector, zero()),
}
STREAM = ("embed", "pos_embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
WIDTHS = {D_HEAD: "qkvz", D_MODEL: STREAM}


def fits(kind, value, width):
    """Whether a value fits a kind: patterns have no mean, and a norm of a constant stream is one of rounding errors."""
    if "vector" in value:
        return kind in WIDTHS[width]
    return not ("mean" in value and kind == "pattern") and not ("number" in value and kind in STREAM)


@st.composite
def prompts_of(draw, *, one_length):
    """The (rows of tokens, named positions) of 1 to 4 clean and corrupt prompts; END may lie before the last token."""
    n, length, token = draw(st.integers(1, 4)), st.integers(1, 9), st.integers(0, D_VOCAB - 1)
    lengths = (
        [draw(length)] * n
        if one_length or draw(st.booleans())
        else draw(st.lists(length, min_size=n, max_size=n))
    )
    clean = [draw(st.lists(token, min_size=size, max_size=size)) for size in lengths]
    if one_length or draw(st.integers(0, 3)):
        corrupt = [[draw(st.just(old) | token) for old in row] for row in clean]
    else:
        corrupt = draw(st.lists(st.lists(token, min_size=1, max_size=9), min_size=n, max_size=n))
    places = st.fixed_dictionaries({"X": st.integers(0, 8)}, optional={"END": st.integers(0, 8)})
    names = [
        [{name: at for name, at in draw(places).items() if at < len(row)} for row in rows]
        for rows in (clean, corrupt)
    ]
    return [
        (rows, [{"X": 0} | given[0], *given[1:]]) for rows, given in zip((clean, corrupt), names, strict=True)
    ]


def pairs_of(*sides):
    answers = torch.tensor([[[sum(row) % D_VOCAB]] for row in sides[0][0]])
    return PromptPairs(
        *(Prompts.of(rows, positions=names) for rows, names in sides), answers, (answers + 1) % D_VOCAB
    )


@st.composite
def sites_of(draw, shape, kinds, places):
    """One site, with or without a head or neuron and a position."""
    kind = KINDS[draw(st.sampled_from(kinds))]
    units = shape.units(kind)
    unit = draw(st.none() | st.integers(0, units - 1)) if units else None
    where = {"pos": draw(places), "key_pos": draw(places) if kind.name == "pattern" else None}
    where |= {} if unit is None else {"neuron" if kind.unit == "neuron" else "head": unit}
    return Site(kind.name, draw(st.integers(0, shape.n_layers - 1)) if kind.per_layer else None, **where)


def empties_stream(sites, value):
    """Whether nothing is left of the stream before the first block but, in the fast engine, the rounding of x - x.

    A norm divides it by the root of its eps: in float32 effects are 1e-5 apart there, in float64 they agree.
    """
    return value == "zero" and {"embed", "pos_embed"} <= {site.kind for site in sites}


@st.composite
def calls(draw):
    """(family, dtype), prompts, elements, (value, width), metric and base of a call of `effects`."""
    family, dtype = draw(st.sampled_from(CLAIMED)), draw(st.sampled_from([torch.float32, torch.float64]))
    measure, value, base = (
        draw(st.sampled_from(each)) for each in (list(METRICS), list(VALUES), ("clean", "corrupt"))
    )
    prompts = draw(prompts_of(one_length=measure == "all"))
    width = draw(st.sampled_from(list(WIDTHS)))
    kinds = [kind for kind in kinds_of(model_of(family)) if fits(kind, value, width)]
    lengths, others = ([len(row) for row in rows] for rows, _ in prompts)
    places = st.sampled_from(["END", "X", *([None, *range(max(lengths))] if lengths == others else [])])
    sites = st.lists(sites_of(Shape.of(model_of(family)), kinds, places), min_size=1, max_size=3)
    elements = draw(
        st.lists(sites.filter(lambda each: not empties_stream(each, value)), min_size=1, max_size=6)
    )
    return (family, dtype), prompts, [tuple(each) for each in elements], (value, width), measure, base


def outcome(make, *given, **asked):
    try:
        return make(*given, **asked)
    except (EditError, NotFinite, PromptError, StoreError) as error:
        return type(error)


@given(calls())
@settings(max_examples=40, derandomize=True)
def test_any_edit_has_the_effect_that_it_has_on_hooks(call):
    check_any_edit(call)


@pytest.mark.slow
@given(calls())
@settings(max_examples=400)
def test_many_more_edits_have_the_effect_that_they_have_on_hooks(call):
    """The same claim on other draws each time."""
    check_any_edit(call)


def check_any_edit(call):
    """The fast engine's effects are those of the run on hooks, or both refuse with the same error."""
    which, prompts, elements, (value, width), measure, base = call
    model, pairs = model_of(*which), pairs_of(*prompts)
    stores = capture_pairs(model, pairs, sites=kinds_of(model))
    own, other = stores if base == "clean" else stores[::-1]
    made = VALUES[value](own, other, torch.linspace(-1, 2, width).sin())
    asked = {"sites": elements, "value": made, "metric": METRICS[measure], "base": base}
    got, expected = outcome(effects, model, pairs, **asked), outcome(on_hooks, model, pairs, **asked)
    if isinstance(expected, type):
        assert got is expected
        return
    assert got.attrs["engine"] == "staircase"
    size = max(1.0, float(run(model, pairs.side(base)).logits.abs().max()))
    # These norm and take their softmax in float32 even in float64 models: a few of its rounding errors (6e-8) pass
    # through two layers (1.2e-7 seen with AVX2 kernels).
    exact = 2e-6 if which[0] in ("llama", "qwen2") else 1e-10
    assert close(got, expected, tolerance=exact if which[1] == torch.float64 else 1e-5, scale=size)


def test_a_value_that_does_not_fit_is_refused_where_nothing_would_be_run_too():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    for site, value in (
        ("z[1.2]@0", constant(torch.zeros(7))),
        ("pattern[1]@0", mean(corrupt)),
        ("z[1.2]@0", add(torch.nan)),
    ):
        for make in (on_hooks, effects):
            with pytest.raises((EditError, NotFinite)):
                make(model, pairs, sites=site, value=value)


def test_the_other_side_may_be_longer_than_the_side_that_is_edited():
    pairs = pairs_of(([[*range(1, 10)], [5, 6, 7]], [{}, {}]), ([[8, 9], [10]], [{}, {}]))
    for model in (*map(model_of, CLAIMED), mistral(sliding_window=7)):
        asked = {"sites": grid("z", model, pos=["END"]), "value": zero(), "metric": "kl", "base": "corrupt"}
        assert close(
            effects(model, pairs, **asked), on_hooks(model, pairs, **asked), scale=logit_size(model, pairs)
        )


# ---- which models


LLAMA = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": D_MODEL}
LLAMA |= {"intermediate_size": 48, "vocab_size": D_VOCAB, "max_position_embeddings": 32}
NEOX = {name: size for name, size in LLAMA.items() if name != "num_key_value_heads"}
GPT2 = {"n_layer": 2, "n_head": 4, "n_embd": D_MODEL, "vocab_size": D_VOCAB, "n_positions": 32}


def noisy(model):
    """The model with biases and norms that matter."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def bridged(kind, settings, **more):
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    config = getattr(transformers, f"{kind}Config")(**settings | more)
    name = f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return noisy(
            build_bridge_from_module(getattr(transformers, name)(config), name, hf_config=config).eval()
        )


def changed(change):
    model = build("gpt2")
    change(model)
    return model


mistral = partial(bridged, "Mistral", LLAMA)
HALVED = "hook_embed", lambda value, hook: value / 2
TAKEN = {family: lambda family=family: model_of(family) for family in CLAIMED} | {
    "qwen3": lambda: bridged("Qwen3", LLAMA, head_dim=D_HEAD),
    "mistral": lambda: mistral(sliding_window=9),
    "mistral at its window": lambda: mistral(sliding_window=6),
    "mistral without": lambda: mistral(sliding_window=None),
    "neox, sequential": lambda: bridged("GPTNeoX", NEOX, use_parallel_residual=False),
    "neox, all rotary": lambda: bridged("GPTNeoX", NEOX, rotary_pct=1.0),
    "neox, some rotary": lambda: bridged("GPTNeoX", NEOX, rotary_pct=0.25),
    "gpt2, inverse layers": lambda: bridged("GPT2", GPT2, scale_attn_by_inverse_layer_idx=True),
    "native, RMS": lambda: noisy(native(normalization_type="RMS")),
    "native, gated": lambda: noisy(native(gated_mlp=True, act_fn="silu")),
    "native, rotary": lambda: noisy(native(positional_embedding_type="rotary", rotary_dim=D_HEAD)),
    "native, grouped": lambda: noisy(native(n_key_value_heads=2)),
}
KNOWN = ", ".join(readers._READERS)
REFUSED = {
    "gptj": (lambda: model_of("gptj"), f"its architecture GPTJForCausalLM is not one of {KNOWN}"),
    "granite": (lambda: model_of("granite"), f"its architecture GraniteForCausalLM is not one of {KNOWN}"),
    "capped scores": (lambda: native(attn_scores_soft_cap=5.0), "it caps scores or logits softly"),
    "capped logits": (lambda: native(output_logits_soft_cap=5.0), "it caps scores or logits softly"),
    "not causal": (lambda: native(attention_dir="bidirectional"), "its attention is not causal"),
    "folded": (
        lambda: changed(lambda model: model.enable_compatibility_mode()),
        "its weights are folded (compatibility mode)",
    ),
    "hooked": (
        lambda: changed(lambda model: model.add_hook(*HALVED)),
        "hooks are installed on it (embed.hook_out, hook_embed)",
    ),
    "windowed": (
        lambda: mistral(sliding_window=5),
        "a prompt of 6 tokens is longer than its sliding window of 5",
    ),
}


def one_of_each(model):
    """Sites of every kind: all of it, and one unit at a position."""
    shape, sites = Shape.of(model), []
    for kind in kinds_of(model):
        layer = {"layer": 0} if KINDS[kind].per_layer else {}
        unit = (
            {}
            if not KINDS[kind].unit
            else {"neuron": 5}
            if KINDS[kind].unit == "neuron"
            else {"head": shape.n_kv_heads - 1}
        )
        sites += [
            Site(kind, **layer),
            Site(kind, **layer, **unit, pos=1),
            Site(kind, **layer, **unit, pos="END"),
        ]
    return sites


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.types) if name in ("gpt2", "llama") else name for name in TAKEN],
)
def test_every_claimed_model_takes_the_fast_engine_and_gets_the_numbers_of_the_reference(name):
    model = TAKEN[name]()
    alone, twos = one_of_each(model), list(combinations(one_of_each(model), 2))
    # Another start for every model, so that over all of them half of all pairs of sites come up.
    start = list(TAKEN).index(name)
    sites = [*alone, *twos[start::40], *(("embed", *two) for two in twos[start + 3 :: 80])]
    pairs = make_pairs((4, 6, 5))
    got, expected = both(model, pairs, sites=sites, value=scale(0.25))
    # Effects are differences of logits: the logits are their scale.
    size = float(run(model, pairs.clean).logits.abs().max())
    assert close(got, expected, tolerance=1e-5, scale=size)
    assert float(abs(got).max()) > 1e-3


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_fast_engine_does_not_claim_runs_on_hooks_and_the_plan_says_why(name):
    make, reason = REFUSED[name]
    model, pairs = make(), make_pairs((4, 6, 5))
    sites, value = grid("z", model, layer=1), zero()
    got = effects(model, pairs, sites=sites, value=value)
    assert got.attrs["engine"] == "reference"
    assert max_difference(got, on_hooks(model, pairs, sites=sites, value=value)) == 0
    plan = explain_effects(
        MeasuredRuns(model, pairs, "clean", metric("logit_diff")),
        expand(model, pairs, "logit_diff"),
        sites,
        value,
    )
    assert (plan.path, plan.why) == ("reference", f"the model runs on hooks because {reason}")


# ---- what matters, and what does not


def bent(part, name, by=0.1):
    """A linear map or a rotation with one number of a table changed."""
    table = getattr(part, name).clone()
    table[-1, 3] += by
    return replace(part, **{name: table})


def with_layer(decoder, **parts):
    first, second = decoder.layers
    return replace(decoder, layers=(first, replace(second, **parts)))


DAMAGE = {
    "mlp_out": (
        "gpt2",
        lambda decoder: with_layer(decoder, mlp_out=bent(decoder.layers[1].mlp_out, "weight")),
    ),
    "q": ("gpt2", lambda decoder: with_layer(decoder, q=bent(decoder.layers[1].q, "weight"))),
    "final norm": (
        "native",
        lambda decoder: replace(decoder, final_norm=lambda x: 1.01 * decoder.final_norm(x)),
    ),
    "rotary": ("llama", lambda decoder: replace(decoder, rotary=bent(decoder.rotary, "sin"))),
    "rotary NaN": ("llama", lambda decoder: replace(decoder, rotary=bent(decoder.rotary, "sin", torch.nan))),
    "not even runnable": ("neox", lambda decoder: with_layer(decoder, v=decoder.unembed)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_family_that_is_read_wrongly_is_caught_at_first_use_and_stays_on_hooks(damage, monkeypatch):
    family, broken = DAMAGE[damage]
    model, pairs, read = build(family), make_pairs((7, 7)), readers.read
    monkeypatch.setattr(readers, "read", lambda *given: broken(read(*given)))
    asked = {"sites": grid("z", model), "value": zero()}
    with pytest.warns(UserWarning, match="^The fast engine ") as caught:
        first = effects(model, pairs, **asked)
    kinds, name, number = "|".join(kinds_of(model)), type(model.original_model).__name__, r"(nan|\d[\d.e+-]*)"
    differs = rf"and the reference disagree on {name}: after an edit of ({kinds}) \(\2.*\) logits of size {number} differ by {number}\."
    fails = rf"cannot run {name}: RuntimeError: .*\."
    said = (
        rf"The fast engine ({differs}|{fails}) The reference path is used for this model: exact, and slower\."
    )
    assert len(caught) == 1
    assert re.fullmatch(said, str(caught[0].message), re.DOTALL)
    with warnings.catch_warnings(action="error"):
        second = effects(model, pairs, **asked)
    assert first.attrs["engine"] == second.attrs["engine"] == "reference"
    assert max_difference(first, second) == max_difference(first, on_hooks(model, pairs, **asked)) == 0


@pytest.mark.parametrize(
    ("family", "replaced"),
    [("gpt2", False), ("gpt2", True), ("llama", False), ("neox", True), ("native", False)],
)
def test_weights_that_change_after_the_first_use_are_seen(family, replaced):
    model, pairs = build(family), make_pairs((4, 6, 5))
    asked = {"sites": one_of_each(model), "value": scale(0.25)}
    before = effects(model, pairs, **asked)
    for parameter in model.parameters():
        if replaced:
            parameter.data = parameter.data * 1.25
        else:
            parameter.data.mul_(1.25)
    after, expected = both(model, pairs, **asked)
    assert close(after, expected, scale=logit_size(model, pairs))
    assert max_difference(after, before) > 1e-2


SWEPT = [
    "embed",
    "resid_pre[1]@2",
    "z[0.1]",
    "z[1.3]@END",
    ("k[0.1]@2", "mlp_out[1]"),
    "pattern[1.2]@END<-1",
    "mlp_post[0:7]",
]
SWEPT += [("embed@0", "z[1.0]")]  # the first of them writes what is there


@pytest.fixture
def swept(request):
    model, (pairs, _, corrupt) = model_of(request.param), pairs_and_stores(request.param, (3, 9, 4, 9, 3))

    def make(examples=range(5), **options):
        return effects(model, pairs.select(list(examples)), sites=SWEPT, value=from_store(corrupt), **options)

    return make, logit_size(model, pairs)


# Every metric with one family, and every family: the metric reads what the walk, which is a family's, has made.
@pytest.mark.parametrize(
    ("swept", "measure"),
    [
        *(("gpt2", name) for name in METRICS if name != "all"),
        ("llama", "kl"),
        ("neox", "END"),
        ("native", "nll"),
    ],
    indirect=["swept"],
)
def test_neither_padding_nor_order_nor_budget_changes_a_number(swept, measure):
    sweep, size = swept
    usual = sweep(metric=METRICS[measure])
    assert (abs(usual).max("example") > 1e-7).all()
    for i in range(5):
        assert close(sweep([i], metric=METRICS[measure]), usual[i : i + 1], scale=size)
    turned = [4, 0, 3, 2, 1]
    assert close(sweep(turned, metric=METRICS[measure]), usual[turned], scale=size)
    for budget in (1, 300_000):
        assert close(sweep(metric=METRICS[measure], budget=budget), usual, scale=size)


@pytest.mark.types
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_few_edits_have_the_effects_that_they_have_on_hooks(family):
    """The small choice of the edits above that runs with types checked too."""
    model, (pairs, clean, corrupt) = model_of(family), pairs_and_stores(family, (4, 6, 5))
    for value in (from_store(corrupt), mean(clean), zero(), scale(0.25)):
        sites = ["embed", "z[0.1]@END", ("k[0.1]@2", "mlp_out[1]"), "mlp_post[0:7]"]
        got, expected = both(model, pairs, sites=sites, value=value)
        assert close(got, expected, scale=logit_size(model, pairs)), value.describe()


def test_the_number_of_threads_changes_nothing():
    model, pairs = model_of("gpt2"), make_pairs((9,) * 128)
    found, before = [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(effects(model, pairs, sites=SWEPT, value=zero(), metric="kl"))
    torch.set_num_threads(before)
    assert close(*found, tolerance=1e-6, scale=logit_size(model, pairs))


@pytest.mark.parametrize("kind", ["resid_pre", "z"])
def test_what_provably_changes_nothing_is_not_run(kind):
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2", (6, 6, 4))
    sites = [Site(kind, layer, pos=pos) for layer in (0, 1) for pos in range(6)]
    cost = explain_effects(
        MeasuredRuns(model, pairs, "clean", metric("logit_diff")),
        expand(model, pairs, "logit_diff"),
        sites,
        from_store(corrupt),
    ).cost
    # The prompts differ at position 2 alone: before block 0 only that place carries a difference, behind its attention all
    # later ones do, and behind that of block 1 only the last one is read. Of 12 cells of an example 5, 5 and 3 are run.
    assert (cost.runs, cost.skipped) == (13, 36 - 13)
    assert cost.walks == 2, "one of the unedited run, one of the others"
    for cells, length in zip(
        effects(model, pairs, sites=sites, value=from_store(corrupt)).values, (6, 6, 4), strict=True
    ):
        later = range(2, length)
        ran = [2, *(6 + pos for pos in later)] if kind == "resid_pre" else [*later, 6 + length - 1]
        assert torch.from_numpy(cells).nan_to_num().nonzero().flatten().tolist() == ran
        assert int(torch.from_numpy(cells).isnan().sum()) == 2 * (6 - length)


def test_the_plan_adds_up_the_work_of_its_walks():
    model, pairs = model_of("gpt2"), make_pairs((6, 6))
    runs = MeasuredRuns(model, pairs, "clean", metric("logit_diff"), 2**20)
    plan = explain_effects(
        runs, expand(model, pairs, "logit_diff"), ["resid_post[1]@END", "mlp_out[1]@0"], zero()
    )
    # The stream after the last block costs nothing to change, and position 0 there is never read.
    block, scores = 2 * (4 * 32 * 32 + 2 * 32 * 128), 4 * 32 * 6
    assert (plan.cost.runs, plan.cost.skipped, plan.cost.flops) == (2, 2, 2 * 6 * 2 * (block + scores))
    assert (plan.whole, plan.budget) == (2 * 6 * 2 * (block + 32 * D_VOCAB), 2**20)
    lines = str(plan).splitlines()
    assert lines.pop(4).startswith("time          about 0.")
    assert lines == [
        "path          staircase: the gpt2 family, checked against the reference",
        "runs          2 edited prompts in 2 walks; 2 skipped, provably zero",
        "work          6.08e+05 FLOPs, as much as 1.0 forward passes of the prompts",
        "token-layers  25",
        "peak memory   about 0 MiB of 1 MiB",
    ]


@pytest.mark.parametrize("value", ["from_store(own)", "scale by 1", "add 0"])
@pytest.mark.parametrize("together", [False, True], ids=["alone", "together"])
def test_an_edit_that_writes_what_is_there_is_exactly_zero(together, value):
    pairs = make_pairs((4, 6, 5))
    for model in map(model_of, CLAIMED):
        _, store = capture_pairs(model, pairs, sites=kinds_of(model))
        sites = (
            [("z[0.0]", "z[1.1]@END"), ("embed", "resid_pre[1]@1", "v[1.0]")]
            if together
            else one_of_each(model)
        )
        effect = effects(
            model, pairs, sites=sites, value=VALUES[value](store, None, None), metric="kl", base="corrupt"
        )
        assert [str(site) for site in effect.site.values[(effect != 0).any("example")]] == []


# ---- memory and precision


def peak_of(call):
    """The most bytes of tensors that are there at a time beside those of before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(changes.cumsum(0).max())


BIG = {
    "stream": ("resid_pre", {"pos": [0, 5, 20]}, "logit_diff", (24,)),
    "heads": ("z", {}, "kl", (24,)),
    "patterns": ("pattern", {}, "logit_diff", (24, 12, 18, 7)),
    "neurons before": ("mlp_pre", {"neuron": [1, 2, 3]}, "logit_diff", (24,)),
    "neurons at positions": ("mlp_post", {"neuron": [1, 2, 3], "pos": [3, 6]}, "logit_diff", (24, 12, 18, 7)),
    "all logits": ("z", {}, METRICS["all"], (24,)),
}


# Budgets of 8 and 24 MiB alternate over the kinds of sweeps.
@pytest.mark.parametrize(("name", "mebibytes"), list(zip(BIG, (24, 8) * 3, strict=True)))
def test_a_sweep_stays_within_its_budget(name, mebibytes):
    budget = mebibytes * 2**20
    kind, where, measure, lengths = BIG[name]
    model, pairs = (
        bridged("GPT2", GPT2, n_layer=4, n_embd=64, vocab_size=1000),
        make_pairs(lengths * (64 // len(lengths))),
    )
    runs = MeasuredRuns(model, pairs, "clean", metric(measure), budget)
    plan = asking._plan(runs, expand(model, pairs, measure), grid(kind, model, **where), zero())
    sweep, _ = asking._sweep(runs, plan)
    assert sweep.engine == "staircase"
    assert sweep.cost().walks > 2, "more than the unedited run and one chunk"
    assert peak_of(lambda: sweep.run(progress=False, what="")) < 1.1 * budget


def test_a_bfloat16_model_is_fast_and_a_float32_readout_brings_it_nearer_to_float32():
    model, exact = build("gpt2", dtype=torch.bfloat16), build("gpt2", dtype=torch.bfloat16).to(torch.float32)
    pairs, asked = (
        make_pairs((9,) * 64),
        {"sites": grid("mlp_out", model, layer=1), "value": scale(0.5), "metric": "nll"},
    )
    expected = effects(exact, pairs, **asked)
    plain, wide = (effects(model, pairs, **asked, readout=dtype) for dtype in (None, torch.float32))
    assert plain.attrs["engine"] == wide.attrs["engine"] == "staircase"
    assert float(abs(wide - expected).mean()) < 0.8 * float(abs(plain - expected).mean())
    assert float(abs(plain - expected).mean()) < 0.05 * float(abs(expected).max())
