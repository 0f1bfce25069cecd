"""A real language model against TransformerLens: heads ablated one by one, and scores of edges.

    python tests/benchmarks/real_model.py [--model NAME] [--quick] [--json] [--only PART]

NAME is a pinned model that `workbench models get` brought. 16 prompts of `ioi` of one length, without BOS. The peer
is timed on every 30th head (--quick: every 90th) and on one prompt, and multiplied. It refuses edges of grouped
queries, so edges are scored on SmolLM2's shape without groups, with random weights and NAME's vocabulary; on NAME
itself its scores of nodes, which are less work, stand beside our scores of edges for information.
"""

import argparse
import dataclasses
import warnings
from functools import partial
from typing import Any

import torch
import transformers
from discovery import difference, scored
from side_by_side import Line, compare, logit_difference, show_cases
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
from transformer_lens.tools.analysis import attribution_patching as peer

import workbench as wb
from workbench.circuit.graph import Graph
from workbench.prompts.pairs import PromptPairs

N = 16


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct-q4")
    parser.add_argument("--quick", action="store_true", help="the peer on every 90th head")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    model = wb.load_model(options.model, bos=False)
    pairs = of_one_length(wb.load_task("ioi", model, n=8 * N))
    cases = {
        "heads": lambda: [heads(model, pairs, every=90 if options.quick else 30)],
        "edges": lambda: [edges(without_groups(model.cfg.d_vocab), pairs), nodes(model, pairs)],
    }
    list(show_cases(cases, options))


def of_one_length(pairs: PromptPairs) -> PromptPairs:
    """The first `N` pairs of the commonest length: the peer's hooks read tables without padding."""
    commonest = pairs.clean.lengths.mode().values
    return pairs.select(torch.nonzero(pairs.clean.lengths == commonest).flatten()[:N].tolist())


def without_groups(d_vocab: int) -> Any:
    """A Llama of SmolLM2-135M's shape, but with as many heads of keys and values as of queries."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=9, vocab_size=d_vocab, tie_word_embeddings=True,
        )  # fmt: skip
        llama = transformers.LlamaForCausalLM(config).eval()
        return build_bridge_from_module(llama, "LlamaForCausalLM", hf_config=config).eval()


def heads(model: Any, pairs: PromptPairs, every: int) -> Line:
    """Every head's output replaced by zero at all positions; the peer's time is that of a sample, multiplied."""
    sample = [(i // model.cfg.n_heads, i % model.cfg.n_heads) for i in range(0, n_heads(model), every)]
    tokens, measured = pairs.clean.tokens, logit_difference(pairs)

    def ours() -> torch.Tensor:
        mean = (
            wb.effects(model, pairs, sites=wb.grid("z", model), value=wb.zero(), progress=False)
            .mean("example")
            .values
        )
        return torch.tensor([mean[layer, head] for layer, head in sample])

    def zeroed(z: torch.Tensor, hook: Any, *, head: int) -> torch.Tensor:
        z[:, :, head] = 0
        return z

    def theirs() -> torch.Tensor:
        measures = []
        for layer, head in sample:
            hook = (f"blocks.{layer}.attn.hook_z", partial(zeroed, head=head))
            measures.append(measured(model.run_with_hooks(tokens, fwd_hooks=[hook])))
        return torch.stack(measures) - base

    with torch.no_grad():
        base = measured(model(tokens))
        line = compare(
            f"zero-ablating {n_heads(model)} heads, {len(pairs)} prompts",
            f"TransformerLens run_with_hooks per head ({len(sample)} timed)",
            3, ours, theirs, repeats=1, peer_repeats=1,
        )  # fmt: skip
    return scaled(line, n_heads(model) / len(sample))


def n_heads(model: Any) -> int:
    return model.cfg.n_layers * model.cfg.n_heads


def edges(model: Any, pairs: PromptPairs) -> Line:
    """EAP per prompt; the scores of one prompt are compared, relative to the largest."""
    one, graph = pairs.select([0]), Graph.of(model)
    config = peer.EdgeAttributionConfig(granularity="edge")
    of_peer: list[Any] = []

    def theirs() -> torch.Tensor:
        measured = logit_difference(one)
        of_peer[:] = [
            peer.attribution_patch(model, one.corrupt.tokens, one.clean.tokens, measured, config=config)
        ]
        return torch.zeros(())

    line = compare(
        f"EAP per prompt, {graph.n_edges:,} edges, SmolLM2's shape without groups, of {len(pairs)} prompts",
        "TransformerLens attribution_patch(edge)", 10, scored(model, pairs), theirs, repeats=1, peer_repeats=1,
    )  # fmt: skip
    relative = difference(graph, scored(model, one)(), of_peer[0].edge_scores)
    return dataclasses.replace(scaled(line, len(pairs)), max_abs_diff=relative)


def nodes(model: Any, pairs: PromptPairs) -> Line:
    """Our scores of edges beside the peer's scores of nodes, per prompt: it gives no edges here."""
    one = pairs.select([0])

    def theirs() -> torch.Tensor:
        peer.attribution_patch(model, one.corrupt.tokens, one.clean.tokens, logit_difference(one))
        return torch.zeros(())

    line = compare(
        f"EAP per prompt, {Graph.of(model).n_edges:,} edges, of {len(pairs)} prompts, for information",
        "TransformerLens attribution_patch(node)", 0, scored(model, pairs), theirs, repeats=1, peer_repeats=3,
    )  # fmt: skip
    return dataclasses.replace(scaled(line, len(pairs)), max_abs_diff=float("nan"))


def scaled(line: Line, factor: float) -> Line:
    """The line where the peer's work was timed on one of `factor` parts."""
    return dataclasses.replace(
        line, ratio=round(line.ratio * factor, 2), peer_s=round(line.peer_s * factor, 2)
    )


if __name__ == "__main__":
    main()
