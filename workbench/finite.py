"""Numbers that are not finite are refused, by `NotFinite`, which names where they were met.

`check_finite` is called wherever activations and logits are handed on: captured, read by a lens or a probe,
written by an edit. It knows no model; which layer of a run such numbers come from is found by
`engine.first_not_finite`.
"""

import torch
from torch import Tensor

from workbench.errors import NotFinite


def is_finite(numbers: Tensor) -> bool:
    """Whether all numbers are finite."""
    if not numbers.is_floating_point():
        return True
    # A sum of numbers of which one is not finite is not finite either, and needs no memory, as a mask would.
    # That of half precision is taken in float32, which seldom overflows.
    wide = torch.promote_types(numbers.dtype, torch.float32)
    if bool(torch.isfinite(numbers.detach().sum(dtype=wide))):
        return True
    return bool(torch.isfinite(numbers).all())  # many large numbers may have a sum beyond float32


def check_finite(numbers: Tensor, place: str, cure: str) -> None:
    """Raise `NotFinite` unless all numbers are finite.

    Args:
        place: what they are, as in "resid_post[3] of these prompts".
        cure: what to do, one or two sentences.
    """
    if is_finite(numbers):
        return
    words = []
    for word, is_so in (("NaN", torch.isnan(numbers)), ("infinite", torch.isinf(numbers))):
        if bool(is_so.any()):
            words.append(f"{int(is_so.sum()):,} are {word}")
    raise NotFinite(f"{place} holds numbers that are not finite ({', '.join(words)}). {cure}", place=place)
