"""Lesson 0."""

from functools import lru_cache

import numpy as np
import torch

from workbench.course import fixtures
from workbench.course.first_look import PROMPT


def word(text, at=-1, **how):
    model = fixtures.model()
    return model.to_string(model(model.to_tokens(text, **how))[0, at].argmax())


def probability(turn=torch.Tensor.softmax, dim=-1, name="Anna"):
    model = fixtures.model()
    return turn(model(model.to_tokens(PROMPT))[0], dim)[-1, model.to_single_token(name)]


@lru_cache
def differences(*, last=False):
    model, pairs = fixtures.model(), fixtures.pairs("ioi", 64)
    made = []
    for tokens, length, right, wrong in zip(
        pairs.clean.tokens, pairs.clean.lengths, pairs.answers, pairs.wrong, strict=True
    ):
        logits = model(tokens[None] if last else tokens[None, :length])[0, -1].detach()
        made.append(float(logits[right[0, 0]] - logits[wrong[0, 0]]))
    return tuple(made)


def most_to_s2():
    clean, _ = fixtures.stores("ioi", 64)
    s2, end = clean.prompts.at("S2"), clean.prompts.at("END")
    seen = [
        torch.stack([clean["pattern", layer].prompt(i)[:, end[i], s2[i]] for i in range(64)]).mean(0)
        for layer in range(4)
    ]
    return "a{}.{}".format(*np.unravel_index(int(torch.stack(seen).argmax()), (4, 8)))


CASES = {
    "0.1": (
        lambda: word,
        [
            (lambda: lambda text: word(text, at=0), "after the first token"),
            (
                lambda: lambda text: fixtures.model()(fixtures.model().to_tokens(text))[0, -1].argmax(),
                "a token's number",
            ),
            (lambda: lambda text: "Anna", "another word than 'Anna'"),
            (lambda: lambda text: word(text, prepend_bos=False), "without <bos>"),
            (lambda: lambda text: [word(text)], "a list, not a word"),
            (lambda: lambda text: text[100], "raised IndexError"),
        ],
    ),
    "0.2": (
        lambda: probability(),
        [
            (lambda: probability(lambda logits, dim: logits), "this is the logit"),
            (lambda: probability(torch.log_softmax), "logarithm"),
            (lambda: probability(dim=0), "over the positions"),
            (lambda: 100 * probability(), "percent"),
            (lambda: probability(name="Tom"), "the other name"),
            (0.123, "0.123 is not the answer"),
            (0.0005, "0.0005 is not the answer"),  # nor is it taken for the other name's, which is near 0 too
        ],
    ),
    "0.3": (
        lambda: list(differences()),
        [
            (lambda: differences(last=True), "padding"),
            (lambda: [-each for each in differences()], "signs"),
            (lambda: np.array(differences()).mean(), "shape (64,) is wanted"),
            (lambda: np.array(differences()) + (np.arange(64) < 3), "3 of the 64 are off"),
        ],
    ),
    "0.4": (
        most_to_s2,
        [
            ("a3.1", "another head gives it more"),
            ("3.7", "no head of tiny"),
            (["a3.1", "a2.1"], "these are 2"),
        ],
    ),
}
