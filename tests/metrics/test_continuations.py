"""Answers of several tokens: effects against runs written out by hand, and what they have in common with
one-token answers.
"""

import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from closeness import close
from families import D_VOCAB, N_CTX, make_pairs, model_of
from three_runs import ThreeRuns

import workbench as wb
from workbench.engine import select as plan
from workbench.engine.capture import capture_pairs
from workbench.engine.continuations import bind
from workbench.engine.values import Value, add, from_store, mean, resample, scale, zero
from workbench.errors import MetricError, PromptError, SiteError, StoreError
from workbench.interventions.effects import effects
from workbench.interventions.explain import explain
from workbench.interventions.paths import path_effects
from workbench.metrics.continuations import expand
from workbench.metrics.metric import Metric, metric
from workbench.prompts.answers import padded_answers
from workbench.prompts.pairs import PromptPairs
from workbench.sites import grid

STORIES = Path(__file__).parents[3] / "shared" / "models" / "stories260K" / "hf"
ANSWERS = [[[3, 4], [5]], [[7, 8, 9], [7, 8, 2]], [[2]]]
WRONG = [[[6]], [[7, 1], [3, 3]], [[4, 4, 1]]]
DIFF = "sequence_logprob_diff"


def answered(lengths=(6, 7, 6), answers=ANSWERS, wrong=WRONG) -> PromptPairs:
    pairs = make_pairs(lengths)
    return PromptPairs(pairs.clean, pairs.corrupt, padded_answers(answers), padded_answers(wrong))


def by_hand(model, pairs, hooks=lambda i, length: []) -> torch.Tensor:
    """[example]: prompt + answer in one run per alternative, each with `hooks(example, prompt length)`."""
    measured = []
    for i in range(len(pairs)):
        prompt = pairs.clean.tokens[i, : pairs.clean.lengths[i]].tolist()

        def logprob(tokens: list[int], i: int = i, prompt: list[int] = prompt) -> torch.Tensor:
            with torch.no_grad():
                logits = model.run_with_hooks(
                    torch.tensor([[*prompt, *tokens]]), fwd_hooks=hooks(i, len(prompt))
                )[0]
            return sum(logits[len(prompt) - 1 + k].log_softmax(-1)[token] for k, token in enumerate(tokens))

        right, wrong = (
            torch.stack(
                [logprob([t for t in tokens if t >= 0]) for tokens in table[i].tolist() if tokens[0] >= 0]
            ).mean()
            for table in (pairs.answers, pairs.wrong)
        )
        measured.append(right - wrong)
    return torch.stack(measured)


def on_hooks(monkeypatch) -> None:
    for module in ("effects", "paths"):
        monkeypatch.setattr(f"workbench.interventions.{module}.fast_decoder", lambda *_: (None, "asked for"))


def edit_z(store, layer: int, head: int, at: int | None = None):
    """Hooks that write a store's z at the prompt's positions, or at one of them; without a store zeros, at every token."""

    def hooks(i: int, length: int):
        def patch(z, hook):
            z = z.clone()
            positions = slice(None if store is None else length) if at is None else at % length
            z[0, positions, head] = 0 if store is None else store["z", layer].prompt(i)[positions, head]
            return z

        return [(f"blocks.{layer}.attn.hook_z", patch)]

    return hooks


@pytest.mark.types
@pytest.mark.parametrize("engine", ["fast", "hooks"])
@pytest.mark.parametrize(
    ("family", "dtype"), [("gpt2", torch.float64), ("llama", torch.float32), ("neox", torch.float64)]
)
def test_effects_are_those_of_prompt_and_answer_in_one_run(family, dtype, engine, monkeypatch):
    """The norms of a llama work in float32, whatever the model's dtype."""
    if engine == "hooks":
        on_hooks(monkeypatch)
    model, pairs = model_of(family, dtype), answered()
    _, corrupt = capture_pairs(model, pairs)
    base = by_hand(model, pairs)
    for store, value in ((None, zero()), (corrupt, from_store(corrupt))):
        got = effects(
            model, pairs, sites=["z[0.1]", "z[1.2]", "z[0.3]@END", "z[1.0]@2"], value=value, metric=DIFF
        )
        assert got.attrs["engine"] == ("staircase" if engine == "fast" else "reference")
        places = ((0, 1, None), (1, 2, None), (0, 3, -1), (1, 0, 2))
        expected = [by_hand(model, pairs, edit_z(store, *cell)) - base for cell in places]
        # Effects are differences of metrics, so their errors are those of the metric.
        assert close(got, torch.stack(expected, 1), scale=float(base.abs().max())), value
        covers = "unchanged" if store is not None else "edited where a site has no position"
        assert got.attrs["answer_tokens"] == covers
    assert got.attrs["metric"] == DIFF
    assert got.attrs["unit"] == "nats"
    assert got.dims == ("example", "site")


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_both_engines_agree_on_every_kind_of_site_and_value(family, monkeypatch):
    model, pairs = model_of(family), answered((6, 7, 6, 7), [*ANSWERS, [[1, 2]]], [*WRONG, [[5]]])
    clean, corrupt = capture_pairs(model, pairs)
    base = float(by_hand(model, pairs).abs().max())
    # Kinds, positions and values alternated: each of each, and no two of one position alike.
    request = [
        (grid("z", model), from_store(corrupt)), (grid("z", model, pos=["END", 1, 6]), mean(clean)),
        (grid("resid_pre", model), scale(0.5)), (grid("resid_pre", model, pos=["END", 1, 6]), from_store(corrupt)),
        (grid("k", model), mean(clean)), (grid("k", model, pos=["END", 1, 6]), scale(0.5)),
    ]  # fmt: skip
    request += [
        (["mlp_post[1:3]", "embed", "mlp_out[0]@END"], mean(clean, per="pos")),
        (grid("v", model), resample(clean)),
    ]
    request += [
        (
            ["pattern[1.2]", "pattern[0]@END", "pattern[1.1]@END<-2", ("z[0.1]", "mlp_out[1]")],
            from_store(corrupt),
        )
    ]
    # One family meets all of them, the other two half each.
    request = {"gpt2": request, "llama": request[::2], "neox": request[1::2]}[family]
    fast = [effects(model, pairs, sites=sites, value=value, metric=DIFF) for sites, value in request]
    on_hooks(monkeypatch)
    for (sites, value), got in zip(request, fast, strict=True):
        assert got.attrs["engine"] == "staircase"
        hooked = effects(model, pairs, sites=sites, value=value, metric=DIFF)
        assert close(got, hooked, tolerance=1e-5, scale=base), (sites, value)


@pytest.mark.parametrize("method", ["exact", "gradient", "integrated"])
def test_with_answers_of_one_token_it_is_logit_diff(method):
    model = model_of("gpt2", torch.float64)
    pairs = answered(answers=[[[3], [5]], [[7]], [[2]]], wrong=[[[6]], [[1], [3], [9]], [[4]]])
    _, corrupt = capture_pairs(model, pairs)
    request = {"sites": grid("z", model), "value": from_store(corrupt), "method": method, "steps": 8}
    one, several = (
        effects(model, pairs, metric=name, **request, normalized=True) for name in ("logit_diff", DIFF)
    )
    assert close(one, several)
    if method == "integrated":
        assert close(several.attrs["completeness_gap"], one.attrs["completeness_gap"], scale=1.0), "a share"
    logits = metric(DIFF).read(model(pairs.clean.tokens), pairs.clean)
    assert close(metric(DIFF)(logits, pairs), metric("logit_diff")(logits[:, 0], pairs))


def test_integrated_effects_add_up_to_the_edit_of_all():
    model, pairs = model_of("neox", torch.float64), answered()
    _, corrupt = capture_pairs(model, pairs)
    request = {"value": from_store(corrupt), "metric": DIFF}
    got = effects(
        model,
        pairs,
        sites=grid("resid_pre", model, layer=1, pos="each"),
        method="integrated",
        steps=64,
        **request,
    )
    whole = effects(model, pairs, sites=["resid_pre[1]"], **request)
    assert float(abs(got.sum(["layer", "pos"]) - whole[:, 0]).max()) < 1e-3 * float(abs(whole).max())
    assert bool(got[0, 0, 6].isnull())
    assert got.sizes["pos"] == 7


def test_the_same_value_is_an_effect_of_exactly_nothing_and_all_of_the_other_run_is_the_other_run():
    model, pairs = model_of("llama"), answered()
    clean, corrupt = capture_pairs(model, pairs)
    same = effects(
        model, pairs, sites=grid("z", model), value=from_store(clean, allow_self=True), metric=DIFF
    )
    assert float(abs(same).max()) == 0
    # Keys, values and the stream at END come from the other prompt; from there the answer is read alike.
    got = effects(model, pairs, sites="embed", value=from_store(corrupt), metric=DIFF, normalized=True)
    assert close(got[:, 0], torch.ones(3), tolerance=1e-4)
    turned = effects(
        model, pairs, sites="embed", value=from_store(clean), metric=DIFF, base="corrupt", normalized=True
    )
    assert close(turned[:, 0], torch.ones(3), tolerance=1e-4)


class Ready(Value):
    """A value that is bound already."""

    def __init__(self, bound) -> None:
        self.bound = bound

    def bind(self, model, prompts, other=None):
        return self.bound


@pytest.mark.parametrize(
    ("family", "mlps"),
    [("gpt2", "frozen"), ("gpt2", "recomputed"), ("llama", "frozen"), ("neox", "recomputed")],
)
def test_path_effects_are_those_of_the_three_runs(family, mlps, monkeypatch):
    model, pairs = model_of(family), answered((6, 6, 6))
    _, corrupt = capture_pairs(model, pairs, sites=["z", "resid_pre", "mlp_out"])
    rows = expand(model, pairs, DIFF)
    senders, receivers = (
        ["input", "a0.1", "m0", ("a0.2", "a1.0")],
        ["logits", "a1.1<q>", "a1.1<v>", "a1.2<q>@END"],
    )
    bound = bind(model, rows, from_store(corrupt))
    plain = ThreeRuns(model, rows.pairs, value=Ready(bound), mlps=mlps, metric=rows.metric)
    request = {"value": from_store(corrupt), "mlps": mlps, "metric": DIFF}
    grids = {"senders": senders, "receivers": receivers}
    whole = {"paths": ["a0.2->a1.1<v>->logits", "input->a1.1<k>->logits"]}
    got, paths = (path_effects(model, pairs, **request, **which) for which in (grids, whole))
    expected = rows.combine(torch.as_tensor(plain.table(senders, receivers)))
    base = float(by_hand(model, pairs).abs().max())
    assert close(got, expected, tolerance=1e-5, scale=base)
    last = path_effects(
        model, pairs, senders="a1.2", value=from_store(corrupt), mlps="recomputed", metric=DIFF
    )
    effect = effects(model, pairs, sites="z[1.2]", value=from_store(corrupt), metric=DIFF)
    assert close(last[:, 0], effect, tolerance=1e-5, scale=base)
    on_hooks(monkeypatch)
    for fast, which in ((got, grids), (paths, whole)):
        assert fast.attrs["engine"] == "staircase"
        assert close(fast, path_effects(model, pairs, **request, **which), tolerance=1e-5, scale=base)


def test_paths_with_answers_of_one_token_are_those_of_logit_diff():
    model = model_of("gpt2", torch.float64)
    pairs = answered((6, 6), answers=[[[3], [5]], [[7]]], wrong=[[[6]], [[1]]])
    request = {"senders": "heads", "receivers": ["logits", "a1.1<v>"], "value": zero(), "mlps": "recomputed"}
    assert close(*(path_effects(model, pairs, metric=name, **request) for name in ("logit_diff", DIFF)))


def test_answers_that_differ_in_their_last_token_share_a_run():
    model, pairs = model_of("gpt2"), answered()
    rows = expand(model, pairs, DIFF)
    assert rows.owner.tolist() == [0, 0, 1, 2, 0, 1, 1, 2]
    assert rows.weight.tolist() == [0.5, 0.5, 1, 1, -1, -0.5, -0.5, -1]
    assert rows.pairs.clean.lengths.tolist() == [7, 6, 9, 6, 6, 8, 8, 8]
    assert rows.pairs.clean.at("END").tolist() == [5, 5, 6, 5, 5, 6, 6, 5]
    assert rows.combine(torch.ones(8, 2)).tolist() == [[0, 0]] * 3
    with torch.no_grad():
        measured = rows.metric(rows.metric.read(model(rows.pairs.clean.tokens), rows.pairs.clean), rows.pairs)
    assert close(rows.combine(measured), by_hand(model, pairs), tolerance=1e-5)
    plain = expand(model, pairs.select([2]), "kl")
    assert plain.plain
    assert plain.combine(measured) is measured


def test_a_plan_counts_the_runs_of_the_answers():
    model, pairs = model_of("gpt2"), answered((6, 6, 6))
    call_plan = explain(model, pairs, sites="z[0.1]", value=zero(), metric=DIFF)
    assert isinstance(call_plan, plan.CallPlan)
    assert call_plan.cost.runs == 8


def test_small_budgets_give_the_same_numbers():
    model, pairs = model_of("gpt2"), answered()
    whole, cut = (
        effects(model, pairs, sites=grid("z", model), value=add(torch.ones(8)), metric=DIFF, budget=b)
        for b in (None, 300_000)
    )
    assert close(whole, cut, tolerance=1e-5)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"answers": [[[3]], [], [[2]]]}, MetricError, f"The metric {DIFF!r} needs the answer of every example; example 1 has none."),
        ({"wrong": [[[3, -1, 4]], [[1]], [[4]]]}, PromptError,
         "wrong, example 0: an alternative has a gap. Tokens come first, and -1 fills up the rest."),
        ({"wrong": [[[3]], [[1] * N_CTX], [[4]]]}, PromptError,
         f"Example 1: a prompt of 7 tokens and {N_CTX - 1} of an answer do not fit into the model's context of {N_CTX}."),
        ({"wrong": [[[D_VOCAB]], [[1]], [[4]]]}, PromptError,
         f"Token id {D_VOCAB} among the answers is outside the vocabulary of {D_VOCAB} that the model has logits of."),
        ({"wrong": [[[D_VOCAB, 1]], [[1]], [[4]]]}, PromptError, f"Token id {D_VOCAB} is outside the model's vocabulary of {D_VOCAB}."),
    ],
)  # fmt: skip
def test_answers_that_cannot_be_run_are_refused(change, kind, message):
    with pytest.raises(kind, match="^" + re.escape(message) + "$"):
        effects(model_of("gpt2"), answered(**change), sites="z[0.1]", value=zero(), metric=DIFF)


def test_what_does_not_go_with_answers_of_several_tokens_is_said():
    model, pairs = model_of("gpt2"), answered((6, 6, 6))
    clean, _ = capture_pairs(model, pairs)
    with pytest.raises(StoreError, match=re.escape(f"the metric {DIFF!r} runs prompts and their answers")):
        path_effects(model, pairs, senders="a0.1", value=zero(), mlps="frozen", metric=DIFF, store=clean)
    with pytest.raises(SiteError, match=re.escape("No prompt has the position 6: the longest has 6 tokens.")):
        path_effects(
            model, pairs, senders="a0.1", receivers="a1.1<q>@6", value=zero(), mlps="frozen", metric=DIFF
        )
    own = Metric("own", lambda logits, pairs, reference: logits[:, 0, 0], positions="continuation")
    with pytest.raises(
        MetricError, match=re.escape("The metric 'own' reads a continuation, which only sequence_logprob")
    ):
        effects(model, pairs, sites="z[0.1]", value=zero(), metric=own)
    logits = metric(DIFF).read(model(pairs.clean.tokens), pairs.clean)
    with pytest.raises(MetricError, match=re.escape("Answers have up to 3 tokens and the runs go on for 1")):
        metric(DIFF)(logits, pairs)
    moved = PromptPairs(*(wb.Prompts.of(p.tokens.tolist(), positions=[{"END": 4}] * 3) for p in (pairs.clean, pairs.corrupt)),
                        pairs.answers, pairs.wrong)  # fmt: skip
    with pytest.raises(
        PromptError,
        match=re.escape("Prompt 0 goes on after its END, where the answers would have to follow."),
    ):
        effects(model, moved, sites="z[0.1]", value=zero(), metric=DIFF)


@pytest.mark.skipif(not STORIES.is_dir(), reason="the optional model stories260K is not there")
def test_a_real_model_copies_names_of_several_tokens_and_one_head_does_its_pronouns():
    model = wb.load_model(STORIES, device="cpu")

    def of_equal_length(rows: list[dict[str, str]]) -> PromptPairs:
        pairs = PromptPairs.from_dataframe(model, pd.DataFrame(rows))
        return pairs.select(
            [i for i in range(len(pairs)) if pairs.clean.lengths[i] == pairs.corrupt.lengths[i]]
        )

    names = ["Anna", "Jack", "Lucy", "Nina", "Kate", "Ella"]
    story = "Once upon a time, there was a little girl named {}. One day,"
    copying = of_equal_length(
        [
            {"clean": story.format(a), "corrupt": story.format(b), "answer": a, "wrong": b}
            for a in names
            for b in names
            if a != b
        ]
    )
    assert int((copying.answers >= 0).sum(-1).min()) > 1
    assert copying.metric == DIFF
    assert bool((by_hand(model, copying) > 0).all())
    corrupted = effects(
        model, copying, sites="embed", value=from_store(capture_pairs(model, copying)[1]), metric=DIFF
    )
    assert float(corrupted.mean()) < -15, "the other name is then as likely as this one was"
    rows, story = [], "One day, {} went to the park."
    for girl in ("Lily", "Anna", "Mary", "Sara", "Lucy", "Jane", "Amy", "Ella"):
        for boy in ("Tim", "Tom", "Ben", "Sam", "Max", "Jack", "Leo", "Peter"):
            for name, other, right, wrong in ((girl, boy, "She", "He"), (boy, girl, "He", "She")):
                rows.append(
                    {
                        "clean": story.format(name),
                        "corrupt": story.format(other),
                        "answer": right,
                        "wrong": wrong,
                    }
                )
    pronouns = of_equal_length(rows)
    heads = effects(model, pronouns, sites=grid("z", model), value=zero(), metric=DIFF).mean("example")
    assert float(by_hand(model, pronouns).mean()) > 3
    assert float(heads.sel(layer=4, head=2)) < -2.5
    assert float(abs(heads).values.ravel()[torch.arange(40) != 34].max()) < 0.8
