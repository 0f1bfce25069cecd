"""The components of circuitsvis: which properties each has, and what is checked of them.

`COMPONENTS` names them; `check_names` and `check_shapes` raise before a browser would fail silently.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError

COMPONENTS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "AttentionHeads": (
        ("attention", "tokens"),
        ("attentionHeadNames", "maxValue", "minValue", "negativeColor", "positiveColor", "maskUpperTri"),
    ),
    "AttentionPattern": (
        ("attention", "tokens"),
        (
            "maxValue",
            "minValue",
            "negativeColor",
            "positiveColor",
            "showAxisLabels",
            "zoomed",
            "maskUpperTri",
        ),
    ),
    "AttentionPatterns": (("attention", "tokens"), ("headLabels",)),
    "ColoredTokens": (
        ("tokens", "values"),
        ("maxValue", "minValue", "negativeColor", "positiveColor", "paddingBottom"),
    ),
    "ColoredTokensMulti": (("tokens", "values"), ("labels", "positiveBounds", "negativeBounds")),
    "Hello": (("name",), ()),
    "TextNeuronActivations": (
        ("tokens", "activations"),
        ("firstDimensionName", "secondDimensionName", "firstDimensionLabels", "secondDimensionLabels"),
    ),
    "TokenLogProbs": (
        ("prompt", "topKLogProbs", "topKTokens", "correctTokenRank", "correctTokenLogProb"),
        (),
    ),
    "TopkSamples": (
        ("tokens", "activations"),
        ("zerothDimensionName", "firstDimensionName", "zerothDimensionLabels", "firstDimensionLabels"),
    ),
    "TopkTokens": (
        ("tokens", "topkVals", "topkIdxs", "bottomkVals", "bottomkIdxs"),
        ("firstDimensionName", "thirdDimensionName", "sampleLabels", "firstDimensionLabels"),
    ),
}
"""Component → (the properties it needs, those it can do without)."""
_AXES: Mapping[str, Mapping[str, str]] = {
    "AttentionHeads": {"attention": "head token token", "tokens": "token", "attentionHeadNames": "head"},
    "AttentionPattern": {"attention": "token token", "tokens": "token"},
    "AttentionPatterns": {"attention": "head token token", "tokens": "token", "headLabels": "head"},
    "ColoredTokens": {"values": "token", "tokens": "token"},
    "ColoredTokensMulti": {"values": "token row", "tokens": "token", "labels": "row"},
    "TokenLogProbs": {
        "topKLogProbs": "token k", "topKTokens": "token k",
        "correctTokenRank": "token", "correctTokenLogProb": "token",
    },
}  # fmt: skip
"""The axes of properties that have to fit together: an axis has the same size wherever its name stands."""


def check_names(component: str, props: Mapping[str, Any]) -> None:
    """Raises `WorkbenchError` where properties are missing, or unknown to the component."""
    needed, optional = COMPONENTS[component]
    missing = [name for name in needed if name not in props]
    extra = sorted(set(props) - {*needed, *optional})
    problems = []
    if extra:
        problems.append(f"has no {', '.join(extra)}")
    if missing:
        problems.append(f"needs {', '.join(missing)}")
    if problems:
        raise WorkbenchError(
            f"{component} {' and '.join(problems)}. Needed: {', '.join(needed)}; optional: "
            f"{', '.join(optional) or 'none'}."
        )


def check_shapes(component: str, props: Mapping[str, Any]) -> None:
    """Raises `WorkbenchError` where arrays disagree about the size of an axis that they share."""
    axes = {name: words.split() for name, words in _AXES.get(component, {}).items() if name in props}
    shapes = {name: _shape(props[name]) for name in axes}
    sizes: dict[str, int] = {}
    for name, words in axes.items():
        fits = len(shapes[name]) == len(words)
        for word, size in zip(words, shapes[name], strict=False):
            fits = fits and sizes.setdefault(word, size) == size
        if not fits:
            needed = "; ".join(f"{name} [{', '.join(words)}]" for name, words in axes.items())
            shown = "; ".join(f"{name} {shape or 'uneven'}" for name, shape in shapes.items())
            raise WorkbenchError(
                f"The shapes of {component} do not fit each other: {shown}. Needed: {needed}."
            )


def _shape(value: Any) -> tuple[int, ...]:
    """The lengths of lists in lists, () where they are uneven."""
    try:
        return np.shape(value)
    except ValueError:
        return ()
