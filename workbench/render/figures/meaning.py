"""What a number of a result means for the behaviour: which sign supports it, and the words for both.

Support is blue and opposition orange in every picture. An ablation that hurts the behaviour shows support, so
that the sign of an effect alone does not decide the colour: `supporting_sign` does.
"""

from typing import Any

import xarray as xr

LOWER_IS_BETTER = ("kl", "nll", "rank")
"""Metrics that fall where the behaviour gets better."""
_SCORES = ("edge_scores", "node_scores")
_TOWARDS = ("direct_attribution", "logit_lens")
"""Kinds of results whose positive numbers write towards the right answer."""


def supporting_sign(result: xr.DataArray | xr.Dataset) -> int:
    """The sign of numbers that show support of the behaviour: 1, -1, or 0 where a sign means no such thing.

    >>> supporting_sign(xr.DataArray([1.0], attrs={"kind": "effects", "base": "clean", "metric": "logit_diff"}))
    -1
    """
    attrs = result.attrs
    kind = str(attrs.get("kind", ""))
    if kind in _SCORES:
        return 1
    if kind in _TOWARDS:
        return 1 if attrs.get("minus") else 0
    if kind not in ("effects", "paths") or attrs.get("base") not in ("clean", "corrupt"):
        return 0
    # What is written into the clean run harms where the component supports; what is written into the corrupt
    # run restores there.
    sign = -1 if attrs["base"] == "clean" else 1
    return -sign if str(attrs.get("metric")) in LOWER_IS_BETTER else sign


def words_of(result: xr.DataArray | xr.Dataset) -> str:
    """What the two colours mean, for the scale of a picture; "" where they mean no more than a sign."""
    kind = str(result.attrs.get("kind", ""))
    if not supporting_sign(result):
        return ""
    if kind in _TOWARDS:
        return "blue: towards the answer, orange: away"
    return "blue: supports, orange: opposes"


def quantity_of(result: xr.DataArray, word: str) -> str:
    """The word of a quantity with its unit, as in `effect (logits)`."""
    unit = str(result.attrs.get("unit", ""))
    if not unit or str(result.name) not in ("effect", "score", "mean", "attribution"):
        return word
    return f"{word} ({unit})"


def oriented(values: Any, sign: int) -> Any:
    """Numbers turned so that support is positive, for colours alone."""
    return values if sign >= 0 else -values
