"""The names that can be asked for, each with what it means: methods, metrics, sides and values of the commands.

Lists and completions in the shell read them here, so that nothing heavy is imported to print a name. What a
name does is known where it is used; tests compare both.
"""

from typing import Literal

from workbench.errors import UnknownName

# For annotations: editors complete these names. `| str`, because a name that does not exist is refused where it is
# read, with those that are near it. A test compares them with the tables below.
KindName = (
    Literal[
        "embed", "pos_embed", "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z",
        "pattern", "mlp_pre", "mlp_post", "logits",
    ]
    | str
)  # fmt: skip
ScoreMethod = (
    Literal[
        "exact", "conditional", "eap", "eap-ig-inputs", "eap-ig-activations", "ig-activations", "clean-corrupt",
        "atp-star", "random",
    ]
    | str
)  # fmt: skip
SearchMethod = ScoreMethod | Literal["acdc", "learn-edges", "learn-nodes"]
MetricName = (
    Literal[
        "logit_diff", "prob_diff", "kl", "nll", "rank", "accuracy", "sequence_logprob", "sequence_logprob_diff",
    ]
    | str
)  # fmt: skip
ValueName = Literal["clean", "corrupt", "zero", "mean", "resample", "optimal", "constant:X", "scale:X"] | str
"""The names of values; X stands for a number, as in "scale:0.5"."""

SIDES = ("clean", "corrupt")
OTHER_SIDE = ("other", "from_store")
"""Older spellings of the run that is not edited, which stay readable."""

SCORE_METHODS: dict[str, str] = {
    "exact": "every edge alone is patched",
    "conditional": "exact, also where each important edge is already patched: "
    "finds edges that stand in for another",
    "eap": "first-order, at the clean run (Syed et al. 2310.10348)",
    "eap-ig-inputs": "gradients on the path between input embeddings (Hanna et al. 2403.17806)",
    "eap-ig-activations": "one group of writers moves at a time, every edge counts each time "
    "(published code of 2403.17806)",
    "ig-activations": "one group of writers moves at a time and counts then (Marks et al. 2403.19647)",
    "clean-corrupt": "mean of the gradients at both ends",
    "atp-star": "softmax recomputed for queries and keys, gradients with each layer dropped; 0 where all "
    "passes a saturated softmax or closed neurons later on (Kramár et al. 2403.00745)",
    "random": "noise, to compare with",
}
SEARCHES: dict[str, str] = {
    "acdc": "edges left out one after the other, from the logits down "
    "(Conmy et al. 2304.14997); it decides the size",
    "learn-edges": "hard-concrete gates on edges (Bhaskar et al. 2406.16778)",
    "learn-nodes": "hard-concrete gates on heads and MLPs, subnetwork probing (Cao et al. 2104.03514)",
}
EFFECT_METHODS: dict[str, str] = {
    "exact": "every site is edited and the model run",
    "gradient": "first-order, one backward pass: attribution patching (Nanda 2023)",
    "integrated": "gradients at points between the activation and the value (Sundararajan et al. 1703.01365)",
    "atp-star": "as gradient, with the softmax recomputed for queries and keys (Kramár et al. 2403.00745)",
}
METRICS: dict[str, str] = {
    "logit_diff": "mean logit of right answers minus that of wrong ones, at the last token",
    "prob_diff": "probability of right answers minus that of wrong ones",
    "kl": "KL divergence from the unedited clean run, in nats",
    "nll": "negative log likelihood of the right answer, in nats",
    "rank": "how many tokens are above the right answer; 0 is the top",
    "accuracy": "whether the right answer is above the wrong ones",
    "sequence_logprob": "log probability of a right answer of several tokens, in nats",
    "sequence_logprob_diff": "the same minus that of the wrong answer, in nats",
}
VALUES: dict[str, str] = {
    "clean": "the activation of the clean run",
    "corrupt": "the activation of the corrupt run",
    "zero": "zero",
    "mean": "the mean activation of the run that is edited",
    "resample": "that of another prompt of equal length",
    "optimal": "the optimal constant (lowest loss)",
    "constant:X": "the number X",
    "scale:X": "the current activation times X",
}


def other_side(base: str) -> str:
    """The side of a pair that is not the base. Raises `UnknownName` for another base.

    >>> other_side("clean")
    'corrupt'
    """
    if base not in SIDES:
        raise UnknownName("base", base, SIDES)
    return "corrupt" if base == "clean" else "clean"
