"""Panels of the tokens of one prompt: `tokens`, on the colour of a value, and `log_probs`, what came next.

The likeliest tokens at every layer are a table of their own, in `lens_panels`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.errors import WorkbenchError
from workbench.render.panel import Panel
from workbench.render.panel_inputs import (
    Decode,
    as_array,
    as_decoder,
    as_finite,
    as_names,
    as_strings,
    quoted,
)
from workbench.render.token_svg import TokenLine, tokens_svg, top_k_svg
from workbench.render.writing import BLUE, ORANGE, signed

STILL_LINES = 60
"""Lines of tokens in a still picture; the interactive panel has all."""


def tokens(
    strings: Sequence[str],
    values: Any,
    *,
    names: Sequence[object] | None = None,
    unit: str = "",
    title: str | None = None,
) -> Panel:
    """Tokens on the colour of their values: blue above 0, orange below; one scale for all rows.

    Args:
        strings: token strings of one prompt.
        values: [pos], or [row, pos] for several values of each token (layers, heads, ...) to choose from.
        names: of the rows.
        unit: of the values, such as "logit".
        title: of the figure; None says which token has the largest value.
    Raises:
        WorkbenchError: shapes that do not fit each other, or numbers that are not finite.

    >>> tokens(["the", " dog", " dogs"], [0.1, 0.3, -0.9], unit="logit").title
    'Largest: −0.9 logit at "dogs" (2)'
    """
    strings, numbers = as_strings(strings), as_finite(values, "The values of the tokens")
    rows = numbers
    if numbers.ndim == 1:
        rows = numbers[None]
    if rows.ndim != 2 or not len(rows) or rows.shape[1] != len(strings):
        raise WorkbenchError(
            f"Values of shape {numbers.shape} do not fit {len(strings)} tokens: [pos] = ({len(strings)},) or "
            "[row, pos] is needed."
        )
    rows_named = as_names("names", names, len(rows), "row ")
    # a single row that was not named needs no heading
    headings = rows_named
    if names is None and len(rows) == 1:
        headings = [""]
    lines = []
    for heading, row in list(zip(headings, rows.tolist(), strict=True))[:STILL_LINES]:
        lines.append(TokenLine(heading, strings, row))
    note = ""
    if len(rows) > STILL_LINES:
        note = f"the first {STILL_LINES} of {len(rows)} rows are drawn"
    signs = bool((rows < 0).any())
    if title is None:
        title = _largest(strings, rows, headings, unit, signs=signs)
    still = tokens_svg(lines, title=title, note=note, unit=unit, signs=signs)
    scale = float(np.abs(rows).max()) or 1.0
    if len(rows) == 1:
        props = {
            "tokens": strings,
            "values": rows[0],
            "maxValue": scale,
            "minValue": -scale,
            "negativeColor": ORANGE,
            "positiveColor": BLUE,
        }
        return Panel("ColoredTokens", props, still, title)
    # the component writes its bounds with six decimals, and divides by them
    bound = max(scale, 1e-6)
    props = {
        "tokens": strings,
        "values": rows.T,
        "labels": rows_named,
        "positiveBounds": [bound] * len(rows),
        "negativeBounds": [-bound] * len(rows),
    }
    return Panel("ColoredTokensMulti", props, still, title)


def _largest(
    strings: Sequence[str], rows: np.ndarray, headings: Sequence[str], unit: str, *, signs: bool
) -> str:
    """Which token of which row has the value farthest from 0, in words."""
    row, pos = map(int, np.unravel_index(np.abs(rows).argmax(), rows.shape))
    value = float(rows[row, pos])
    amount = f"{signed(value) if signs else f'{value:.3g}'} {unit}".strip()
    text = f"Largest: {amount} at {quoted(strings[pos])} ({pos})"
    if headings[row]:
        text += f", {headings[row]}"
    return text


def log_probs(
    strings: Sequence[str],
    logprobs: Any,
    *,
    ids: Sequence[int],
    decode: Decode,
    k: int = 10,
    title: str | None = None,
) -> Panel:
    """The probability that the model gave each token of a prompt, and the tokens that it found likelier.

    Args:
        strings: token strings of one prompt.
        logprobs: [pos, token] log-probabilities of the next token at each position, in nats, as from
            `log_softmax(-1)`.
        ids: [pos] the prompt's token ids.
        decode: a model, or a token's string from its id: a function such as `tokenizer.decode`, or the list
            of all strings.
        k: how many guesses to show at each position.
        title: of the figure; None says how often the likeliest token came.
    Raises:
        WorkbenchError: shapes that do not fit each other, or numbers that are not log-probabilities.
    """
    strings, table = as_strings(strings), as_array(logprobs, "the log-probabilities")
    numbers = as_array(ids, "ids")
    if not np.array_equal(numbers, numbers.round()):
        raise WorkbenchError("ids are token ids, and not all of them are whole numbers.")
    numbers = numbers.astype(int)
    n = len(strings)
    _check_log_probs(table, numbers, n, k)
    # [pos, token] without the last position, whose next token is not in the prompt; JSON has no -inf
    table = np.maximum(table[:-1], -1e4)
    right = table[np.arange(n - 1), numbers[1:]]
    # stable, so that equal guesses keep their order
    best = np.stack([np.argsort(-row, kind="stable")[:k] for row in table])
    best_logprobs = np.take_along_axis(table, best, 1)
    word = as_decoder(decode)
    words = [list(map(word, row)) for row in best.tolist()]
    props = {
        "prompt": strings,
        "topKLogProbs": best_logprobs,
        "topKTokens": words,
        "correctTokenRank": (table > right[:, None]).sum(1),
        "correctTokenLogProb": right,
    }
    actual = [[(token, prob)] for token, prob in zip(strings[1:], np.exp(right).tolist(), strict=True)]
    likeliest = []
    for row, probs in zip(words, np.exp(best_logprobs).tolist(), strict=True):
        likeliest.append(list(zip(row, probs, strict=True)))
    note = "after each token: the probability of the next one, and the likeliest ones"
    if title is None:
        n_first = int((props["correctTokenRank"] == 0).sum())
        title = (
            f"The likeliest token came {n_first} of {n - 1} times; mean log-probability of what came "
            f"{signed(float(right.mean()))} nats"
        )
    still = top_k_svg(strings[:-1], ["next", "likeliest"], [actual, likeliest], title=title, note=note)
    return Panel("TokenLogProbs", props, still, title)


def _check_log_probs(table: np.ndarray, numbers: np.ndarray, n: int, k: int) -> None:
    """Raises `WorkbenchError` for anything but log-probabilities [pos, token] and ids [pos] of `n` tokens."""
    if table.ndim != 2 or len(table) != n or numbers.shape != (n,) or n < 2:
        raise WorkbenchError(
            f"Log-probabilities of shape {table.shape} and ids of shape {numbers.shape} do not fit {n} "
            f"tokens: [pos, token] = ({n}, ...) and [pos] = ({n},), for two tokens or more, are needed."
        )
    if numbers.min() < 0 or numbers.max() >= table.shape[1]:
        raise WorkbenchError(
            f"ids reach from {numbers.min()} to {numbers.max()}; there are {table.shape[1]} "
            "log-probabilities."
        )
    if not isinstance(k, int | np.integer) or not 1 <= k <= table.shape[1]:
        raise WorkbenchError(f"k={k}; ask for 1 to {table.shape[1]} guesses, as many tokens as there are.")
    # logits in place of log-probabilities may be large enough to overflow, and are refused just below
    with np.errstate(over="ignore"):
        sums = np.exp(table).sum(1)
    # loose, because log-probabilities of half precision are rounded; logits and probabilities are far from it
    if not (np.abs(sums - 1) < 0.02).all():
        raise WorkbenchError(
            "These are not log-probabilities: their exponentials do not sum to 1 at every position. Pass "
            "logits.log_softmax(-1)."
        )
