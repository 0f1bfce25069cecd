"""Edge scores: against TransformerLens, and against finite differences of single edges of the circuit run."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch
import xarray as xr
from closeness import close
from families import (
    FAMILIES,
    NATIVES,
    VARIANTS,
    logit_difference,
    make_pairs,
    model_of,
    native,
    pairs_and_stores,
    run_circuits,
    untyped,
)
from transformer_lens.tools.analysis import attribution_patching as peer

from workbench.circuit.graph import Graph
from workbench.discovery.scores import score_edges
from workbench.discovery.search import find_circuit
from workbench.engine.bound import Bound
from workbench.engine.capture import capture_pairs
from workbench.engine.values import Value, add, constant, from_store, mean, resample, zero
from workbench.errors import CircuitError, EditError, MetricError, ModelError, PromptError, UnknownName
from workbench.interventions.effects import effects
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts

ALL = FAMILIES + NATIVES + VARIANTS


@dataclass(frozen=True, eq=False)
class Toward(Value):
    """The current activation moved by `share` of the way to another value."""

    inner: Value
    share: float

    def bind(self, model, prompts, other=None):
        return TowardBound(self.inner.bind(model, prompts, other), self.share)


class TowardBound(Bound):
    def __init__(self, inner, share):
        self.inner, self.share, self.prompts = inner, share, inner.prompts

    def edited(self, site, current):
        return current + self.share * (self.inner.edited(site, current) - current)


def own_name(node):
    """TransformerLens' node in our spelling."""
    return {
        "embed": "input",
        "attn_head_out": f"a{node.layer}.{node.head}",
        "mlp_out": f"m{node.layer}",
        "mlp_in": f"m{node.layer}",
        "logits": "logits",
    }.get(node.kind, f"a{node.layer}.{node.head}<{node.kind[0]}>")


@pytest.mark.parametrize("family", ["gpt2", "neox"])
def test_eap_equals_transformer_lens_with_the_sides_and_the_sign_turned(family):
    """The gradient is taken at the corrupt input, towards clean; grouped queries and native are refused."""
    model = model_of(family, torch.float64)
    pairs, _, corrupt = pairs_and_stores(family, dtype=torch.float64)
    graph, scores = Graph.of(model), score_edges(model, pairs, value=from_store(corrupt))
    expected = np.full(graph.exists.shape, np.nan)
    expected[graph.exists] = 0
    by_pos = np.full((6, *graph.exists.shape), np.nan)
    for i in range(3):
        one = pairs.select([i])
        config = peer.EdgeAttributionConfig(granularity="edge")
        result = peer.attribution_patch(
            model,
            one.corrupt.tokens,
            one.clean.tokens,
            lambda logits, one=one: logit_difference(logits, one)[0],
            config=config,
        )
        for (writer, reader), score in result.edge_scores.items():
            at = graph.index(f"{own_name(writer)}->{own_name(reader)}")
            expected[at] -= score / 3
            cell = (writer.position, *at)
            by_pos[cell] = np.nan_to_num(by_pos[cell]) - score / 3
        assert len(result.edge_scores) == 6 * graph.n_edges
    largest = np.nanmax(np.abs(expected))
    assert close(scores, expected, tolerance=1e-6)
    kept = score_edges(model, pairs, value=from_store(corrupt), keep=("pos",))
    assert close(kept, by_pos, tolerance=1e-6, scale=largest)
    single = score_edges(model_of(family), pairs, value=from_store(pairs_and_stores(family)[2]))
    assert close(single, scores)


def finite_differences(model, pairs, value, edges, epsilon, measure=logit_difference):
    """[edge]: -(m with the edge moved towards the value, minus m moved away) / 2e, mean over examples."""
    graph = Graph.of(model)
    masks = np.stack([graph.exists] * len(edges))
    for i, (u, v) in enumerate(edges):
        masks[i, u, v] = False
    ends = []
    for share in (epsilon, -epsilon):
        bound = Toward(value, share).bind(model, pairs.clean, pairs.corrupt)
        ends.append(torch.stack([measure(one, pairs).mean() for one in run_circuits(model, masks, bound)]))
    return -(ends[0] - ends[1]) / (2 * epsilon)


# Every value on gpt2, every family on some value: what a value is does not depend on the family.
VALUES = ("from_store", "zero", "mean")
FAMILIES_AND_VALUES = [("gpt2", value) for value in VALUES]
FAMILIES_AND_VALUES += [(family, VALUES[i % 3]) for i, family in enumerate(ALL) if family != "gpt2"]


@pytest.mark.types
@pytest.mark.parametrize(("family", "value"), FAMILIES_AND_VALUES)
def test_eap_equals_finite_differences_of_single_edges(family, value):
    """In float64. In transformers the norms of Llama and Qwen and GPT-J's attention scores are computed in
    float32 all the same: a larger step there, and a looser comparison."""
    model = model_of(family, torch.float64)
    pairs, clean, corrupt = pairs_and_stores(family, dtype=torch.float64)
    patched = {"from_store": from_store(corrupt), "zero": zero(), "mean": mean(clean)}[value]
    scores = score_edges(model, pairs, value=patched)
    graph = Graph.of(model)
    every = np.argwhere(graph.exists)
    chosen = every[np.random.default_rng(1).permutation(len(every))[:15]]
    ends = [
        graph.index(edge)
        for edge in ("input->logits", "input->a0.0<v>", "a0.1->a1.1<k>", "a0.2->a1.0<v>", "a1.3->logits")
    ]
    edges = np.concatenate([chosen, np.array(ends)])
    epsilon, tolerance = (3e-3, 1e-3) if family in ("llama", "qwen2", "gptj") else (1e-4, 1e-6)
    expected = finite_differences(model, pairs, patched, edges, epsilon)
    got = scores.values[tuple(edges.T)]
    assert scores.dtype == "float64"
    assert close(got, expected, tolerance=tolerance)


@pytest.mark.parametrize("family", ALL)
def test_kept_axes_sum_over_positions_and_average_over_examples(family):
    model, (pairs, _, corrupt) = (
        model_of(family, torch.float64),
        pairs_and_stores(family, (4, 6, 5), torch.float64),
    )
    plain = score_edges(model, pairs, value=from_store(corrupt))
    largest = float(abs(plain).max())
    assert plain.dims == ("writer", "reader")
    for keep, dims in (
        (("example",), ("example",)),
        (("pos",), ("pos",)),
        (("example", "pos"), ("example", "pos")),
        (("pos", "example"), ("example", "pos")),
    ):
        kept = score_edges(model, pairs, value=from_store(corrupt), keep=keep)
        assert kept.dims == (*dims, "writer", "reader")
        total = kept.sum("pos", min_count=1) if "pos" in dims else kept
        total = total.mean("example") if "example" in dims else total
        assert close(total, plain, tolerance=2e-6), keep
    for i, length in enumerate((4, 6, 5)):
        graph = Graph.of(model)
        assert np.isfinite(kept.values[i, :length][:, graph.exists]).all()
        assert np.isnan(kept.values[i, length:]).all()
        alone = score_edges(model, pairs.select([i]), value=from_store(corrupt))
        assert close(kept[i].sum("pos", min_count=1), alone, tolerance=2e-6, scale=largest)


@pytest.mark.parametrize("family", ALL)
def test_scores_are_nan_exactly_where_no_edge_exists(family):
    model, (pairs, _, corrupt) = model_of(family), pairs_and_stores(family)
    graph, scores = Graph.of(model), score_edges(model, pairs, value=from_store(corrupt))
    assert (scores.isnull().values == ~graph.exists).all()
    assert scores.writer.values.tolist() == list(graph.writers)
    assert scores.reader.values.tolist() == list(graph.readers)
    assert scores.dtype == "float32"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", ["from_store", "resample"])
def test_the_memory_budget_and_the_order_of_examples_do_not_change_a_score(family, value):
    model, pairs = model_of(family), make_pairs((6, 4, 6, 6, 4), seed=2)
    clean, corrupt = capture_pairs(model, pairs)
    patched = from_store(corrupt) if value == "from_store" else resample(clean, seed=4)
    usual = score_edges(model, pairs, value=patched, keep=("example",))
    for budget in (1, 400_000):
        small = score_edges(model, pairs, value=patched, keep=("example",), budget=budget)
        assert close(small, usual), budget
    order = [3, 1, 4, 0, 2]
    mixed = score_edges(model, pairs.select(order), value=patched, keep=("example",))
    assert close(mixed, usual[order])


@pytest.mark.parametrize("family", ALL)
def test_edges_out_of_a_writer_sum_to_its_first_order_effect(family):
    """A writer reaches the metric through its readers and nothing else."""
    model, (pairs, _, corrupt) = model_of(family), pairs_and_stores(family)
    scores = score_edges(model, pairs, value=from_store(corrupt), keep=("example",))
    writers = {"input": "resid_pre[0]", "a0.1": "z[0.1]", "a1.3": "z[1.3]"}
    writers |= {} if "attn-only" in family else {"m0": "mlp_out[0]", "m1": "mlp_out[1]"}
    for writer, site in writers.items():
        node = effects(model, pairs, sites=site, value=from_store(corrupt), method="gradient")[:, 0]
        total = scores.sel(writer=writer).sum("reader")
        largest = float(abs(scores.sel(writer=writer)).sum("reader").max())
        assert close(-node, total, tolerance=1e-4, scale=largest), writer


@pytest.mark.parametrize("metric", ["logit_diff", "prob_diff", "nll"])
def test_scores_follow_the_metric(metric):
    model = model_of("gpt2", torch.float64)
    pairs, _, corrupt = pairs_and_stores("gpt2", dtype=torch.float64)
    scores = score_edges(model, pairs, value=from_store(corrupt), metric=metric)

    def measure(logits, pairs):
        rows, log = torch.arange(3), logits[:, -1].log_softmax(-1)
        answer, wrong = log[rows, pairs.answers[:, 0, 0]], log[rows, pairs.wrong[:, 0, 0]]
        return {"logit_diff": answer - wrong, "prob_diff": answer.exp() - wrong.exp(), "nll": -answer}[metric]

    edges = np.array(
        [Graph.of(model).index(edge) for edge in ("input->m0", "a0.1->a1.1<v>", "m0->logits", "m1->logits")]
    )
    expected = finite_differences(model, pairs, from_store(corrupt), edges, 1e-4, measure)
    assert close(scores.values[tuple(edges.T)], expected, tolerance=1e-6)
    assert scores.attrs["metric"] == metric


def test_a_function_that_reads_every_position_is_scored():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")

    def ends(logits):
        rows = torch.arange(3)
        return logits[rows, -1, pairs.answers[:, 0, 0]] - logits[rows, -1, pairs.wrong[:, 0, 0]]

    got = score_edges(model, pairs, value=from_store(corrupt), metric=ends)
    assert close(got, score_edges(model, pairs, value=from_store(corrupt)))


def test_scores_of_a_value_that_changes_nothing_are_zero():
    model, (pairs, clean, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    usual = abs(score_edges(model, pairs, value=from_store(corrupt))).max()
    same = score_edges(model, pairs, value=from_store(clean, allow_self=True))
    assert close(same, xr.zeros_like(same).where(same.notnull()), scale=float(usual))
    assert float(abs(score_edges(model, pairs, value=add(0.0))).max()) == 0


def test_scores_say_where_they_come_from():
    model, (pairs, _, corrupt) = model_of("llama"), pairs_and_stores("llama")
    scores = score_edges(model, pairs, value=from_store(corrupt))
    attrs = {
        "kind": "edge_scores",
        "method": "eap",
        "value": "from_store",
        "metric": "logit_diff",
        "unit": "logits",
        "n": 3,
    }
    attrs |= {"model_fingerprint": corrupt.model, "data_fingerprint": pairs.fingerprint}
    assert {key: scores.attrs[key] for key in attrs} == attrs
    assert scores.attrs["prompt_ids"].split() == [*pairs.clean.ids, *pairs.corrupt.ids]
    assert all(
        isinstance(value, str | int | float) and not isinstance(value, bool)
        for value in scores.attrs.values()
    )


def test_a_gradient_run_leaves_no_trace_on_the_model():
    model, (pairs, _, corrupt) = model_of("neox"), pairs_and_stores("neox")
    with torch.no_grad():
        before = model(pairs.clean.tokens)
    score_edges(model, pairs, value=from_store(corrupt))
    with torch.no_grad():
        assert torch.equal(model(pairs.clean.tokens), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_cannot_be_scored_is_refused():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    value = from_store(corrupt)
    with pytest.raises(UnknownName) as unknown:
        untyped(score_edges)(model, pairs, value=value, method="epa")
    assert str(unknown.value) == (
        "method='epa' is not known. Did you mean 'eap' or 'exact'? Choices: atp-star, "
        "clean-corrupt, conditional, eap, "
        "eap-ig-activations, eap-ig-inputs, exact, ig-activations, random."
    )
    with pytest.raises(UnknownName) as unknown:
        untyped(score_edges)(model, pairs, value=value, keep=("layer",))
    assert str(unknown.value) == "keep='layer' is not known. Choices: example, pos."
    with pytest.raises(EditError) as edit:
        score_edges(model, pairs, value=cast(Any, corrupt))
    assert str(edit.value) == (
        "score_edges: value=an ActivationStore does not fit; a value such as wb.zero(), wb.mean(store) or "
        "wb.from_store(store), text, a mapping of which each key is text and each value is a value such as "
        "wb.zero(), wb.mean(store) or wb.from_store(store) or text or None is needed."
    )
    uneven = PromptPairs(
        Prompts.of([[1, 2]]), Prompts.of([[1, 2, 3]]), torch.tensor([[[1]]]), torch.tensor([[[2]]])
    )
    with pytest.raises(PromptError) as error:
        score_edges(model, uneven, value=zero())
    assert str(error.value).startswith(
        "Pair 0 has clean and corrupt prompts of 2 and 3 tokens. Edges and circuits need equal "
        "lengths within a pair."
    )
    with pytest.raises(MetricError):
        score_edges(model, pairs, value=zero(), metric=lambda logits: logits[:, -1, 0] * float("nan"))
    fresh = native().train()
    with pytest.raises(ModelError) as train:
        score_edges(fresh, pairs, value=zero())
    assert (
        str(train.value) == "The model is in train mode, so its numbers are random. Call model.eval() first."
    )


def test_models_that_scale_what_their_heads_write_are_refused_rather_than_scored_wrongly():
    with pytest.raises(ModelError, match="scale"):
        score_edges(model_of("granite"), make_pairs(), value=zero())


def test_a_value_that_is_no_number_never_comes_back_as_a_score():
    with pytest.raises((EditError, MetricError)):
        score_edges(model_of("gpt2"), make_pairs(), value=constant(float("nan")))


@pytest.mark.parametrize("name", ["rank", "accuracy"])
def test_a_metric_without_a_gradient_is_refused(name):
    model, pairs = model_of("gpt2"), make_pairs()
    with pytest.raises(MetricError, match=repr(name)):
        score_edges(model, pairs, value=zero(), metric=name)


def test_a_metric_that_falls_with_the_behaviour_finds_the_edges_that_support_it():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    scores = score_edges(model, pairs, value=from_store(corrupt), metric="nll")
    best = find_circuit(scores, n_edges=10).scores
    assert best is not None
    assert np.array_equal(best, -scores.values, equal_nan=True)
    with pytest.raises(MetricError, match="its gradient there is zero and every score would be noise"):
        score_edges(model, pairs, value=from_store(corrupt), metric="kl")


def test_scores_that_were_sorted_or_selected_are_refused():
    model, (pairs, _, corrupt) = model_of("gpt2"), pairs_and_stores("gpt2")
    scores = score_edges(model, pairs, value=from_store(corrupt))
    for changed in (scores.isel(writer=slice(1, None)), scores.sortby("writer", ascending=False)):
        with pytest.raises(CircuitError, match="not over the whole graph in its own order"):
            find_circuit(changed, n_edges=3)
