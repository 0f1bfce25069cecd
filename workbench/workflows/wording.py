"""How numbers, metrics and counterfactuals are called in the sentences of `discover`."""

from collections.abc import Sequence

import numpy as np

from workbench.tasks.measure import Estimate
from workbench.text import listed

VALUES = ("zero", "mean")
"""Ablations that are values and no counterfactuals."""
_WORDS = {
    "diff": "difference", "prob": "probability", "logprob": "log probability", "nll": "negative log likelihood",
    "kl": "KL",
}  # fmt: skip


def edges_text(n: int) -> str:
    """A number of edges in words."""
    return f"{n:,} {'edge' if n == 1 else 'edges'}"


def number(value: object) -> str:
    """A number with two digits after the point, and no minus before a zero; a dash where it is unknown.

    >>> number(-0.001), number(float("nan"))
    ('0.00', '–')
    """
    known = float(value)  # pyright: ignore[reportArgumentType]
    return f"{round(known, 2) + 0.0:.2f}" if np.isfinite(known) else "–"


def metric_words(name: str) -> str:
    """A metric as it is called in a sentence.

    >>> metric_words("logit_diff")
    'logit difference'
    """
    return " ".join(_WORDS.get(part, part) for part in name.split("_"))


def percent(estimate: Estimate) -> str:
    """A share with its interval, where it has one."""
    text = f"{estimate.mean:.0%}"
    if np.isfinite(estimate.low) and np.isfinite(estimate.high):
        text += f" [{estimate.low:.0%}, {estimate.high:.0%}]"
    return text


def against(name: str) -> str:
    """What a circuit was run against, or with.

    >>> against("swap"), against("zero")
    ('against swap', 'with zero values')
    """
    return f"with {name} values" if name in VALUES else f"against {name}"


def beginning_against(name: str) -> str:
    """The same at the beginning of a sentence."""
    text = against(name)
    return f"{text[0].upper()}{text[1:]}"


def against_all(names: Sequence[str]) -> str:
    """ "against swap and abc", or "with zero values"."""
    if names[0] in VALUES:
        return listed(map(against, names))
    return f"against {listed(names)}"


def share_text(value: object) -> str:
    """A share in percent; "not measured" where it is unknown."""
    share = float(value)  # pyright: ignore[reportArgumentType]
    return f"{share:.1%}" if np.isfinite(share) else "not measured"
