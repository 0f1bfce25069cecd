"""`mixed`: what readers see when each edge carries one of two values, a weighted sum of what writers wrote.

Both engines' circuit runs take it. `token_classes` says which position of a graph each token is at.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.circuit.graph import REST, Graph
from workbench.errors import PromptError
from workbench.prompts.prompts import Prompts


def mixed(
    written: Float[Tensor, "circuit_or_one writer example pos d_model"],
    weight: Float[Tensor, "circuit *pos_class writer reader"],
    classes: Int[Tensor, "example pos"] | None,
) -> Float[Tensor, "circuit reader example pos d_model"]:
    """The sum over writers of what each wrote, times the weight of its edge.

    Args:
        written: of every circuit, or one for all of them.
        classes: the position class of every token, where weights differ between them.
    """
    if classes is not None:
        # Each token takes the weights of its own class: these become axes [example, pos] of the weights,
        # before the axes of writers (u) and readers (v).
        return torch.einsum("cbpuv,cubpd->cvbpd", weight[:, classes], written)
    circuits, n, readers = weight.shape
    _, _, *tokens = written.shape
    if len(written) == 1:
        # One matrix product for all circuits, instead of a batch of them over copies of what was written.
        return (weight.transpose(1, 2).reshape(-1, n) @ written[0].flatten(1)).view(
            circuits, readers, *tokens
        )
    return (weight.transpose(1, 2) @ written.flatten(2)).view(circuits, readers, *tokens)


def check_classes(graph: Graph, prompts: Prompts) -> None:
    """Raise when the prompts lack a position of the graph.

    Raises:
        PromptError: no prompt has it, or the prompts call a position of their own as graphs call the rest.
        UnknownName: the prompts have no position of such a name.
    """
    positions = graph.positions or ()
    if positions and REST in prompts.positions:
        raise PromptError(
            f"These prompts name a position {REST!r}, which in a graph means the tokens at none of its "
            "positions: rename it."
        )
    for position in positions[:-1]:  # the last is the rest of the tokens, which no prompt names
        if not bool((prompts.at(position) >= 0).any()):
            longest = int(prompts.lengths.max())
            raise PromptError(
                f"No prompt has the position {position!r} of the graph: the longest has {longest} tokens."
            )


def token_classes(graph: Graph, prompts: Prompts) -> Int[Tensor, "example pos"] | None:
    """The position class of every token, an index into `graph.positions`; None for a graph without positions.

    Raises:
        UnknownName: the prompts have no position of such a name.
    """
    if graph.positions is None:
        return None
    rest = len(graph.positions) - 1
    classes = torch.full(prompts.tokens.shape, rest)
    # Backwards, so that of two positions at the same token the first one named counts.
    for number in reversed(range(rest)):
        index = prompts.at(graph.positions[number])
        has = (index >= 0).nonzero().flatten()
        classes[has, index[has]] = number
    return classes
