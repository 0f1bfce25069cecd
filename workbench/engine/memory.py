"""`memory_budget` and `rows_per_forward`: the working memory of a call, and how many prompts it holds.

An estimate from a model's sizes; nothing is measured and nothing is run.
"""

import torch

from workbench.errors import WorkbenchError
from workbench.models.load import model_device
from workbench.models.model import Model
from workbench.sites import Shape


def memory_budget(device: torch.device, budget: int | None) -> int:
    """Bytes of working memory: as given, else 1 GiB on a CPU and half of the free memory of a GPU."""
    if budget is not None:
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
            raise WorkbenchError(
                f"budget={budget!r}: bytes of working memory are a whole number from 1 up, or None."
            )
        return budget
    if device.type == "cuda":
        # Half, because estimates leave out the allocator's own fragments.
        return torch.cuda.mem_get_info(device)[0] // 2
    return 2**30


def rows_per_forward(
    model: Model, length: int, *, budget: int | None = None, gradients: bool = False, extra: int = 0
) -> int:
    """How many prompts of this length fit into one forward pass under a memory budget; at least one.

    Args:
        length: tokens of the longest prompt.
        gradients: whether a backward pass follows, for which every layer's activations are kept.
        budget: bytes; None takes 1 GiB on a CPU and half of the free memory of a GPU.
        extra: numbers per token that the caller keeps beside the model's own.
    """
    shape = Shape.of(model)
    budget = memory_budget(model_device(model), budget)
    # Numbers per token: logits and two copies (softmax, metric), one MLP, the streams and q, k, v of a block,
    # attention's rows.
    per_token = extra + 3 * shape.d_vocab + 4 * shape.d_mlp + 12 * shape.d_model + 4 * shape.n_heads * length
    if gradients:
        per_token += shape.n_layers * (4 * shape.d_mlp + 16 * shape.d_model + 4 * shape.n_heads * length)
    itemsize = next(model.parameters()).element_size()
    return max(1, int(budget // (per_token * length * itemsize)))
