"""`Resemblance`: circuits beside the model, prompt by prompt, against one counterfactual.

A ratio of means (`faithfulness`) can be 1 while a circuit misses the model on most prompts, once upwards and
once downwards. So a circuit is compared with the model on every prompt, in its metric, in the distribution
over the whole vocabulary and in its choices. Read `Resemblance`; `resemblance` runs the circuits.

Sources: 2407.08734 (choices that move faithfulness), 2504.13151 (ratios of means).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.engine.circuits import Circuits
from workbench.metrics.metric import BUILT_IN, Metric
from workbench.prompts.pairs import PromptPairs
from workbench.statistics import central, check_level, check_seed, gap_of_means

MEASURES = ("faithfulness", "error", "prompts_near", "r", "kl_recovered", "answers_kept", "same_choice")
NEAR_SHARE = 0.5
"""A circuit is near the model on a prompt up to this share of what the prompt's own corruption changes."""
DRAWS = 1000


def _same_choice(logits: Tensor, pairs: PromptPairs, reference: Tensor | None) -> Tensor:
    assert reference is not None
    return (logits.argmax(-1) == reference.argmax(-1)).to(logits.dtype)


def _along_answer(of_tokens: Tensor, pairs: PromptPairs) -> Tensor:
    """[example, step]: numbers of an answer's tokens, 0 behind its last."""
    steps = (pairs.answers >= 0).any(1)[:, : of_tokens.shape[1]].to(of_tokens.device)
    return torch.where(steps, of_tokens, torch.zeros_like(of_tokens))


def _answer_kl(logits: Tensor, pairs: PromptPairs, reference: Tensor | None) -> Tensor:
    return _along_answer(BUILT_IN["kl"].function(logits, pairs, reference), pairs).sum(1)


def _answer_same_choice(logits: Tensor, pairs: PromptPairs, reference: Tensor | None) -> Tensor:
    differs = 1 - _same_choice(logits, pairs, reference)
    return 1 - _along_answer(differs, pairs).amax(1)


SAME_CHOICE = Metric("same_choice", _same_choice, needs_reference=True, unit="share", rowwise=True)
"""1 where the most likely token, of the whole vocabulary, is that of the clean run."""
# At the end of the prompt answers of several tokens may all begin alike, and nothing would be compared there.
ANSWER_KL = Metric("answer_kl", _answer_kl, "continuation", needs_reference=True, unit="nats", rowwise=True)
"""KL of the tokens of the answer, each after those before it: the sum over them."""
ANSWER_SAME_CHOICE = Metric(
    "answer_same_choice",
    _answer_same_choice,
    "continuation",
    needs_reference=True,
    unit="share",
    rowwise=True,
)
"""1 where at every token of the answer the most likely one is that of the clean run."""


@dataclass(frozen=True, eq=False)
class Resemblance:
    """What circuits do on each prompt, and what the model does.

    Attributes:
        metric: of the circuits; `full` of the model, `empty` of the circuit without an edge.
        kl: KL(model || circuit) over the vocabulary, in nats, at `END`; where the metric reads answers of several
            tokens, the sum over those of the first right answer. `kl_empty` of the empty circuit.
        right: whether the right answer is above the wrong one; None where pairs do not say what is wrong.
        full_right: the same of the model.
        same_choice: whether the most likely token is that of the model; of answers of several tokens, at each.
    """

    metric: Float[np.ndarray, "circuit example"]
    full: Float[np.ndarray, "example"]
    empty: Float[np.ndarray, "example"]
    kl: Float[np.ndarray, "circuit example"]
    kl_empty: Float[np.ndarray, "example"]
    right: Bool[np.ndarray, "circuit example"] | None
    full_right: Bool[np.ndarray, "example"] | None
    same_choice: Bool[np.ndarray, "circuit example"]

    def measures(self, weights: Float[np.ndarray, "draw example"] | None = None) -> dict[str, np.ndarray]:
        """Each of `MEASURES`, [draw, circuit]; NaN where there is nothing to divide by.

        faithfulness: (mean m_C - mean m_empty) / (mean m_full - mean m_empty).
        error: mean |m_C - m_full| / mean |m_full - m_empty|.
        prompts_near: the share of prompts with |m_C - m_full| <= `NEAR_SHARE` |m_full - m_empty|. The sums of `error`
            are those of the prompts with large gaps; here each prompt counts once.
        r: Pearson's correlation of m_C with m_full over prompts.
        kl_recovered: 1 - mean KL(full, C) / mean KL(full, empty).
        answers_kept: of the prompts that the model gets right, the share that the circuit gets right.
        same_choice: the share of prompts with the model's first choice.

        Args:
            weights: how often each example counts in each draw; None: one draw of all of them.
        """
        n = len(self.full)
        if weights is None:
            weights = np.ones((1, n))
        share = weights / weights.sum(1, keepdims=True)

        def mean(table: np.ndarray) -> np.ndarray:
            """[draw, circuit] from [circuit, example], or [draw, 1] from [example]."""
            return share @ np.atleast_2d(table).T

        # Of the whole sample, so that a draw cannot divide by a gap that is rounding.
        known = np.isfinite(gap_of_means(self.full, self.empty))
        sizes = np.abs(self.full - self.empty)
        is_gap = sizes.mean() > 1e-6 * max(1e-12, float(np.abs(self.full).mean() + np.abs(self.empty).mean()))
        with np.errstate(divide="ignore", invalid="ignore"):
            gap = np.where(known, mean(self.full) - mean(self.empty), np.nan)
            scale = np.where(is_gap, mean(sizes), np.nan)
            kl_gap = np.where(self.kl_empty.mean() > 1e-9, mean(self.kl_empty), np.nan)
            measured = {
                "faithfulness": (mean(self.metric) - mean(self.empty)) / gap,
                "error": mean(np.abs(self.metric - self.full)) / scale,
                "prompts_near": np.where(
                    is_gap, mean(near_model(self.metric, self.full, self.empty).astype(float)), np.nan
                ),
                "r": self._correlation(mean),
                "kl_recovered": 1 - mean(self.kl) / kl_gap,
                "answers_kept": np.full((len(weights), len(self.metric)), np.nan),
                "same_choice": mean(self.same_choice.astype(float)),
            }
            if self.right is not None and self.full_right is not None:
                kept = mean((self.right & self.full_right).astype(float))
                measured["answers_kept"] = kept / mean(self.full_right.astype(float))
        return measured

    def _correlation(self, mean) -> np.ndarray:
        """[draw, circuit]: r over prompts; NaN where the model or the circuit is the same on all of them."""
        # Centred first: of numbers far from 0 the moments alone would lose their digits.
        x = self.metric - self.metric.mean(1, keepdims=True)
        y = self.full - self.full.mean()
        covariance = mean(x * y) - mean(x) * mean(y)
        spread = (mean(x**2) - mean(x) ** 2) * (mean(y**2) - mean(y) ** 2)
        least = 1e-14 * max(float((self.full**2).mean()), 1e-300) ** 2
        return np.where(spread > least, covariance / np.sqrt(np.maximum(spread, least)), np.nan)

    def interval(
        self, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Each of `MEASURES` → both ends [circuit] of its percentile bootstrap interval over prompts."""
        check_level(level)
        resampled = self.resampled(draws=draws, seed=seed)
        return {name: central(sample, level) for name, sample in resampled.items()}

    def resampled(self, *, draws: int = DRAWS, seed: int = 0) -> dict[str, Float[np.ndarray, "draw circuit"]]:
        """Each of `MEASURES` on prompts that are drawn again; NaN for a single prompt."""
        n = len(self.full)
        if n < 2:
            return {name: np.full((1, len(self.metric)), np.nan) for name in MEASURES}
        # How often each example is drawn: all measures of a draw are of the same prompts.
        drawn = np.random.default_rng(check_seed(seed)).integers(0, n, (draws, n))
        weights = np.zeros((draws, n))
        np.add.at(weights, (np.arange(draws)[:, None], drawn), 1)
        return self.measures(weights)


def near_model(
    metric: Float[np.ndarray, "*circuit example"],
    full: Float[np.ndarray, "example"],
    empty: Float[np.ndarray, "example"],
) -> Bool[np.ndarray, "*circuit example"]:
    """Whether circuits miss the model by at most `NEAR_SHARE` of the prompt's own gap.

    Args:
        metric: of circuits.
        full: of the model.
        empty: of the circuit without an edge.
    """
    # Where a prompt's gap is rounding, so is what a right circuit misses.
    rounding = 1e-6 * (np.abs(full) + np.abs(empty))
    return np.abs(metric - full) <= NEAR_SHARE * np.abs(full - empty) + rounding


def resemblance(
    runs: Circuits, circuits: Bool[np.ndarray, "circuit *pos_class writer reader"], *, progress: bool = False
) -> Resemblance:
    """Run circuits, pruned of dead ends, and the empty one, and compare them with the model."""
    pairs, further = runs.pairs, [BUILT_IN["kl"], SAME_CHOICE]
    if not runs.expansion.plain:
        further = [ANSWER_KL, ANSWER_SAME_CHOICE]
    accuracy = BUILT_IN["accuracy"]
    is_readable = _has_one_token(pairs.answers) and _has_one_token(pairs.wrong)
    if is_readable:
        further.append(accuracy)
    masks = np.concatenate([np.zeros((1, *runs.graph.exists.shape), dtype=bool), circuits])
    # [metric, circuit, example]; the empty circuit comes first.
    metric, kl, same_choice, *accurate = runs.measure_with(masks, further, progress=progress)
    right = full_right = None
    if is_readable:
        right, full_right = accurate[0][1:] > 0, runs.full_by(accuracy) > 0
    elif runs.pairs_metric is BUILT_IN["sequence_logprob_diff"]:
        # Of answers of several tokens the metric is the right one's log-probability minus the wrong one's.
        right, full_right = metric[1:] > 0, runs.full > 0
    return Resemblance(
        metric=metric[1:], full=runs.full, empty=metric[0], kl=kl[1:], kl_empty=kl[0], right=right,
        full_right=full_right, same_choice=same_choice[1:] > 0,
    )  # fmt: skip


def _has_one_token(table: Int[Tensor, "example alternative token"]) -> bool:
    """Whether every example has an alternative, and each is one token."""
    tokens = (table >= 0).sum(-1)
    return bool((tokens <= 1).all()) and bool((tokens > 0).any(1).all())
