"""The patched value of every writer of a batch, and what readers see when all writers have theirs.

Read `PatchedValues.of`. A circuit's run starts from these tables and adds what its edges bring back; edges
are not known here.
"""

from dataclasses import dataclass

from torch import Tensor

from workbench.circuit.graph import Graph
from workbench.engine.bound import Bound
from workbench.engine.fast.base_run import BaseRun
from workbench.sites import Key, Site


@dataclass(frozen=True, eq=False)
class PatchedValues:
    """The patched value z' of every writer of a batch.

    Attributes:
        values: key of a writer's activation → [example, pos, ...], z' of it.
        seen: (reader, layer) with reader "attn", "mlp" or "logits" → [example, pos, d_model], what it reads
            when every writer has its patched value.
    """

    values: dict[Key, Tensor]
    seen: dict[tuple[str, int], Tensor]

    @classmethod
    def of(cls, base: BaseRun, bound: Bound, graph: Graph) -> "PatchedValues":
        """The patched values for the prompts of a base run, whose activations give only the shapes."""
        decoder, shape, values, seen = base.decoder, graph.shape, {}, {}

        def patched(kind: str, layer: int) -> Tensor:
            """z' of an activation, which is kept."""
            values[kind, layer] = bound.edited(Site(kind, layer), base.whole((kind, layer)))
            return values[kind, layer]

        # Sums of what writers write, biases of o included: they are written whatever the heads do.
        stream = patched("resid_pre", 0)
        for layer, block in enumerate(decoder.layers):
            seen["attn", layer] = stream
            after = stream + block.o(patched("z", layer).flatten(-2))
            # The MLP of a parallel block reads what its attention reads.
            seen["mlp", layer] = after
            if shape.parallel:
                seen["mlp", layer] = stream
            if not shape.attn_only and layer in graph.neurons:
                assert block.mlp_out is not None
                after = after + block.mlp_out(patched("mlp_post", layer))
            elif not shape.attn_only:
                after = after + patched("mlp_out", layer)
            stream = after
        seen["logits", shape.n_layers] = stream
        return cls(values, seen)


def writer_kinds(graph: Graph, layer: int) -> list[str]:
    """The kinds of activation that a block's writers have."""
    if graph.shape.attn_only:
        return ["z"]
    if layer in graph.neurons:
        return ["z", "mlp_post"]
    return ["z", "mlp_out"]
