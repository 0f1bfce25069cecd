"""The run of a circuit: its two ends, a slow reference that is a plain loop, TransformerLens' faithfulness, and batches."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from closeness import close
from families import (
    FAMILIES,
    NATIVES,
    VARIANTS,
    asked,
    logit_difference,
    logit_size,
    make_pairs,
    max_difference,
    model_of,
    pairs_and_stores,
    run_circuits,
)
from torch import Tensor
from transformer_lens.tools.analysis import attribution_patching as peer

from workbench.circuit.graph import Graph
from workbench.engine.capture import capture, capture_pairs
from workbench.engine.values import add, constant, from_store, mean, resample, scale, zero
from workbench.errors import ModelError
from workbench.interventions.effects import effects

ALL = FAMILIES + NATIVES + VARIANTS


def random_circuits(graph, n, *, seed=0, share=0.5):
    return graph.exists & (np.random.default_rng(seed).random((n, *graph.exists.shape)) < share)


# ---- the slow reference: it knows the model by its hooks only, reads no weight, and adds one edge at a time


def head_outputs(model: Any, tokens: Tensor, layer: int, z: Tensor) -> tuple[list[Tensor], Tensor]:
    """What each head adds to the stream, and what attention adds when every head is silent (its bias)."""
    z_hook, out_hook = f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.hook_attn_out"
    bias = asked(model, tokens, {z_hook: torch.zeros_like(z)}, out_hook)
    alone = []
    for head in range(z.shape[2]):
        only = torch.zeros_like(z)
        only[:, :, head] = z[:, :, head]
        alone.append(asked(model, tokens, {z_hook: only}, out_hook) - bias)
    return alone, bias


def plain_outputs(model: Any, tokens: Tensor) -> dict[str, Tensor]:
    """Every writer's output in a run without edits, [example, pos, d_model]."""
    shape = Graph.of(model).shape
    outputs = {"input": asked(model, tokens, {}, "blocks.0.hook_resid_pre")}
    for layer in range(shape.n_layers):
        z = asked(model, tokens, {}, f"blocks.{layer}.attn.hook_z")
        for head, output in enumerate(head_outputs(model, tokens, layer, z)[0]):
            outputs[f"a{layer}.{head}"] = output
        if not shape.attn_only:
            outputs[f"m{layer}"] = asked(model, tokens, {}, f"blocks.{layer}.hook_mlp_out")
    return outputs


def slow_circuit_logits(
    model: Any, tokens: Tensor, circuit: np.ndarray, other: Mapping[str, Tensor]
) -> Tensor:
    """[example, pos, vocab] of one circuit; `other` is every writer's other output."""
    graph = Graph.of(model)
    shape = graph.shape
    written = {"input": asked(model, tokens, {}, "blocks.0.hook_resid_pre")}
    biases = torch.zeros_like(written["input"])

    def seen_by(reader: str) -> Tensor:
        stream, v = biases.clone(), graph.readers.index(reader)
        for u, writer in enumerate(graph.writers):
            if graph.exists[u, v]:
                stream += written[writer] if circuit[u, v] else other[writer]
        return stream

    for layer in range(shape.n_layers):
        ports = {}
        for port, heads in (("q", shape.n_heads), ("k", shape.n_kv_heads), ("v", shape.n_kv_heads)):
            hook = f"blocks.{layer}.attn.hook_{port}"
            inputs = [
                {f"blocks.{layer}.hook_resid_pre": seen_by(f"a{layer}.{head}<{port}>")}
                for head in range(heads)
            ]
            ports[hook] = torch.stack(
                [asked(model, tokens, write, hook)[:, :, head] for head, write in enumerate(inputs)], 2
            )
        outputs, bias = head_outputs(
            model, tokens, layer, asked(model, tokens, ports, f"blocks.{layer}.attn.hook_z")
        )
        written |= {f"a{layer}.{head}": output for head, output in enumerate(outputs)}
        if not shape.attn_only:
            biases = biases if shape.parallel else biases + bias
            entry = "hook_resid_pre" if shape.parallel else "ln2.hook_in"
            write = {f"blocks.{layer}.{entry}": seen_by(f"m{layer}")}
            written[f"m{layer}"] = asked(model, tokens, write, f"blocks.{layer}.hook_mlp_out")
        biases = biases + bias if shape.parallel or shape.attn_only else biases
    return asked(
        model, tokens, {f"blocks.{shape.n_layers - 1}.hook_resid_post": seen_by("logits")}, "unembed.hook_out"
    )


# ---- the tests


@pytest.mark.parametrize("family", ALL)
def test_the_empty_circuit_is_the_corrupt_run_and_the_full_one_the_clean_run(family):
    model, graph = model_of(family), Graph.of(model_of(family))
    for lengths in ((6, 6, 6), (4, 6, 5)):
        pairs, _, corrupt = pairs_and_stores(family, lengths)
        masks = np.stack([graph.exists & False, graph.exists])
        logits = run_circuits(model, masks, from_store(corrupt).bind(model, pairs.clean, pairs.corrupt))
        assert logits.shape == (2, 3, 6, 50)
        with torch.no_grad():
            ends = model(pairs.corrupt.tokens), model(pairs.clean.tokens)
        for i, length in enumerate(lengths):
            for got, expected in zip(logits, ends, strict=True):
                assert close(got[i, :length], expected[i, :length])
        assert max_difference(logits[0], logits[1]) > 1e-2


VALUES = ("from_store", "zero", "mean")
# Every value on the families; on their variants the values take turns.
TREATED = [(family, value) for family in FAMILIES for value in VALUES]
TREATED += [(family, VALUES[i % 3]) for i, family in enumerate(NATIVES + VARIANTS)]


@pytest.mark.parametrize(("family", "value"), TREATED)
def test_random_circuits_equal_a_loop_over_their_edges(family, value):
    model, (pairs, clean, corrupt) = model_of(family), pairs_and_stores(family)
    graph, tokens = Graph.of(model), pairs.clean.tokens
    if value == "from_store":
        made, other = from_store(corrupt), plain_outputs(model, pairs.corrupt.tokens)
    elif value == "zero":
        made, other = zero(), dict.fromkeys(graph.writers, torch.zeros(3, 6, 32))
    else:
        made = mean(clean)
        other = {
            name: output.mean((0, 1)).expand(3, 6, 32)
            for name, output in plain_outputs(model, tokens).items()
        }
    masks = random_circuits(graph, 2, seed=len(family))
    logits = run_circuits(model, masks, made.bind(model, pairs.clean, pairs.corrupt))
    # The loop takes its time: where the other run is simpler, one of the two circuits is compared.
    for circuit, got in list(zip(masks, logits, strict=True))[: 2 if value == "from_store" else 1]:
        assert close(got, slow_circuit_logits(model, tokens, circuit, other))
    assert max_difference(logits[0], logits[1]) > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "neox"])
def test_random_circuits_equal_transformer_lens_faithfulness(family):
    """One example at a time, the same edges at every position; TransformerLens refuses grouped-query and native models."""
    model, (pairs, _, corrupt) = model_of(family), pairs_and_stores(family)
    graph = Graph.of(model)
    masks = random_circuits(graph, 2, seed=3, share=0.6)
    logits = run_circuits(model, masks, from_store(corrupt).bind(model, pairs.clean, pairs.corrupt))
    with torch.no_grad():
        full, empty = (logit_difference(model(side.tokens), pairs) for side in (pairs.clean, pairs.corrupt))
    for circuit, got in zip(masks, logits, strict=True):
        edges = [
            (peer_writer(graph.writers[u], at), peer_reader(graph.readers[v], at))
            for u, v in np.argwhere(circuit)
            for at in range(6)
        ]
        for i in (0, 2):
            one = pairs.select([i])

            def measured(logits, one=one):
                return logit_difference(logits, one)[0]

            result = peer.faithfulness(model, one.clean.tokens, one.corrupt.tokens, measured, edges)
            expected = result.recovered * float(full[i] - empty[i]) + float(empty[i])
            ours = logit_difference(got[i : i + 1], one)
            assert close(ours, [expected], tolerance=1e-5, scale=logit_size(model, pairs))
            assert result.total_edges == 6 * graph.n_edges


def peer_writer(name, position):
    if name == "input":
        return peer.Node("embed", position)
    if name.startswith("m"):
        return peer.Node("mlp_out", position, int(name[1:]))
    layer, head = map(int, name[1:].split("."))
    return peer.Node("attn_head_out", position, layer, head)


def peer_reader(name, position, last_layer=1):
    if name == "logits":
        return peer.Node("logits", position, last_layer)
    if name.startswith("m"):
        return peer.Node("mlp_in", position, int(name[1:]))
    layer, head = map(int, name[1:].split("<")[0].split("."))
    return peer.Node(f"{name[-2]}_input", position, layer, head)


@pytest.mark.parametrize("family", ALL)
def test_a_batch_of_circuits_equals_one_at_a_time_and_any_order_of_examples(family):
    model, (pairs, clean, corrupt) = model_of(family), pairs_and_stores(family)
    masks = random_circuits(Graph.of(model), 3, seed=1)
    for value in (from_store(corrupt), mean(clean, per="pos"), constant(0.1), add(0.1), scale(0.5)):
        bound = value.bind(model, pairs.clean, pairs.corrupt)
        together = run_circuits(model, masks, bound)
        alone = torch.cat([run_circuits(model, masks[i : i + 1], bound) for i in range(3)])
        assert close(together, alone), value.describe()
    turned = pairs.select([2, 0, 1])
    got = run_circuits(model, masks, from_store(corrupt).bind(model, turned.clean, turned.corrupt))
    plain = run_circuits(model, masks, from_store(corrupt).bind(model, pairs.clean, pairs.corrupt))
    assert close(got, plain[:, [2, 0, 1]])


@pytest.mark.parametrize("family", FAMILIES)
def test_examples_of_mixed_length_equal_each_alone(family):
    model, lengths = model_of(family), (4, 6, 5)
    pairs, _, corrupt = pairs_and_stores(family, lengths)
    masks = random_circuits(Graph.of(model), 2)
    together = run_circuits(model, masks, from_store(corrupt).bind(model, pairs.clean, pairs.corrupt))
    for i, length in enumerate(lengths):
        one = pairs.select([i])
        alone = run_circuits(model, masks, from_store(corrupt).bind(model, one.clean, one.corrupt))
        assert close(together[:, i, :length], alone[:, 0])


@pytest.mark.parametrize("family", ALL)
def test_the_clean_run_as_the_other_value_changes_nothing(family):
    model, (pairs, clean, _) = model_of(family), pairs_and_stores(family)
    masks = random_circuits(Graph.of(model), 2)
    logits = run_circuits(
        model, masks, from_store(clean, allow_self=True).bind(model, pairs.clean, pairs.corrupt)
    )
    with torch.no_grad():
        plain = model(pairs.clean.tokens)
    assert all(close(one, plain) for one in logits)


@pytest.mark.types
@pytest.mark.parametrize("family", ["gpt2", "llama", "native-attn-only"])
def test_cutting_every_edge_out_of_a_writer_is_patching_that_writer(family):
    model, (pairs, _, corrupt) = model_of(family), pairs_and_stores(family)
    graph = Graph.of(model)
    masks = np.stack([graph.exists] * 2)
    for i, writer in enumerate(("input", "a1.2")):
        masks[i, graph.writers.index(writer)] = False
    logits = run_circuits(model, masks, from_store(corrupt).bind(model, pairs.clean, pairs.corrupt))
    patched = effects(model, pairs, sites=["resid_pre[0]", "z[1.2]"], value=from_store(corrupt))
    with torch.no_grad():
        base = logit_difference(model(pairs.clean.tokens), pairs)
    for i in range(2):
        assert close(logit_difference(logits[i], pairs) - base, patched[:, i], scale=logit_size(model, pairs))


def test_resampled_values_are_the_same_for_every_writer_of_an_example():
    model, pairs = model_of("gpt2"), make_pairs((6,) * 4)
    store = capture(model, pairs.clean, sites=["resid_pre", "z", "mlp_out"])
    bound = resample(store, seed=2).bind(model, pairs.clean)
    empty = run_circuits(model, Graph.of(model).exists[None] & False, bound)[0]
    donors = torch.stack([pairs.clean.tokens[pairs.clean.ids.index(donor)] for donor in bound.source.ids])
    with torch.no_grad():
        assert close(empty, model(donors))


def test_models_that_scale_what_their_heads_write_are_refused_rather_than_run_wrongly():
    """Granite multiplies attention's output before it is added, so z . W_O is not what a head writes."""
    model, (pairs, _, corrupt) = model_of("granite"), pairs_and_stores("granite")
    masks = random_circuits(Graph.of(model), 1)
    with pytest.raises(ModelError, match="scale"):
        run_circuits(model, masks, from_store(corrupt).bind(model, pairs.clean, pairs.corrupt))


def test_a_circuit_run_leaves_the_model_as_it_was():
    model, pairs = model_of("neox"), make_pairs()
    _, corrupt = capture_pairs(model, pairs)
    with torch.no_grad():
        before = model(pairs.clean.tokens)
        run_circuits(
            model,
            random_circuits(Graph.of(model), 1),
            from_store(corrupt).bind(model, pairs.clean, pairs.corrupt),
        )
        assert torch.equal(model(pairs.clean.tokens), before)
