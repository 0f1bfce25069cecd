"""The circuits that are planted: for each a drawing, the prompts it solves, and what the two runs share.

Read `Recipe`, then `induction`, the simplest. A recipe declares which wired edges carry the same in the clean
and the corrupt run (`shared`): corrupt patching cannot see them. It declares the sets that only matter
together (`redundant`). Edges are named by roles: `input->previous<q>`. How they become weights is in
`weights.py`. Heads that compose are in `compositions.py`, heads that are redundant in `redundancy.py`.
"""

import random
from itertools import product

import torch

from workbench.planted_models.blueprint import Blueprint
from workbench.planted_models.drawing import one_hot
from workbench.planted_models.recipe import Example, Recipe, deal, interleaved, swapped, traded


def induction(size: int, gain: float) -> Recipe:
    """`x1 y1 x2 y2 x3 y3 x2` → `y2`: a previous-token head (K-composition) and an induction head.

    Corrupt: another query, two keys swapped, or two values swapped.
    """
    drawing = Blueprint(length=8, gain=gain)
    drawing.space(token=size, previous=size, out=size)
    words = drawing.alphabet("t", size, "token")
    drawing.head(
        "previous", 0, [drawing.same("position", "position", shift=-1)], [drawing.move("token", "previous")]
    )
    drawing.head("induction", 1, [drawing.same("token", "previous")], [drawing.move("token", "out")])
    drawing.read_out("out", words)

    def draw(rng: random.Random, kind: int) -> Example:
        """A pair of prompts with this kind of corruption."""
        keys, values, (a, b) = *deal(rng, words, 3, 3), rng.sample(range(3), 2)
        other_keys, other_values = swapped(keys, a, b, kind == 1), swapped(values, a, b, kind == 2)
        clean = (*interleaved(keys, values), keys[a])
        query = keys[b] if kind == 0 else keys[a]
        corrupt = (*interleaved(other_keys, other_values), query)
        return Example(clean, corrupt, values[a], values[b])

    return Recipe(drawing, draw, 3, frozenset({"input->previous<q>", "input->previous<k>"}))


def ioi(size: int, gain: float) -> Recipe:
    """Two names in a list, one again, `to` → the other name.

    A duplicate-token head and an induction head (fed by a previous-token head) both tell the second mention
    where the first one was; an inhibition head carries that to the end; the mover attends to names, but not
    there (2211.00593). Corrupt: the repeated name is the other one, or the two names trade places everywhere.
    """
    drawing = Blueprint(length=8, gain=gain)
    drawing.space(token=size, previous=size, seen=8, inhibit=8, out=size)
    names, fillers, second = drawing.alphabet("n", size, "token"), drawing.alphabet("f", 6), 6
    drawing.word("to")
    drawing.head(
        "previous", 0, [drawing.same("position", "position", shift=-1)], [drawing.move("token", "previous")]
    )
    # A word is most like itself, so the second score takes its own position off.
    twice = [drawing.same("token", "token"), drawing.same("position", "position", -1.0)]
    drawing.head("duplicate", 0, twice, [drawing.move("position", "seen", 0.5)])
    drawing.head(
        "induction", 1, [drawing.same("token", "previous")], [drawing.move("position", "seen", 0.5, shift=-1)]
    )
    drawing.head(
        "inhibition",
        2,
        [drawing.gate("position", "position", q_only=7, k_only=second)],
        [drawing.move("seen", "inhibit")],
    )
    # A saturated mover would need only one of the two signals.
    soft = 6.0 / gain
    choice = [
        drawing.on("token", soft),
        drawing.on("position", -soft, only=second),
        drawing.same("inhibit", "position", -0.8 * soft),
    ]
    drawing.head("mover", 3, choice, [drawing.move("token", "out")])
    drawing.read_out("out", names)

    def draw(rng: random.Random, kind: int) -> Example:
        """A pair of prompts with this kind of corruption."""
        (a, b), fill = rng.sample(names, 2), rng.sample(fillers, 3)
        listed = rng.sample([a, b, *fill[:2]], 4)
        clean = (*listed, fill[2], a, "to")
        corrupt = (*clean[:5], b, "to")
        if kind == 1:
            corrupt = traded(clean, {a: b, b: a})
        return Example(clean, corrupt, b, a)

    shared = {"input->previous<q>", "input->previous<k>", "input->duplicate<v>", "input->induction<v>"}
    return Recipe(
        drawing,
        draw,
        2,
        frozenset(shared | {"input->inhibition<q>", "input->inhibition<k>", "input->mover<k>"}),
    )


def lookup(size: int, gain: float) -> Recipe:
    """`f a2 f f b3` → `y0`: the cell of a Latin square.

    No sum of a term for `a` and a term for `b` gives it. A head fetches `a`; the MLP has one neuron for each
    pair of an `a` and a `b`. Corrupt: another `b`, or another `a` at another place.
    """
    n = size // 2
    drawing = Blueprint(length=6, gain=gain)
    drawing.space(first=n, second=n, fetched=n, out=n)
    rows, columns, answers = (
        drawing.alphabet("a", n, "first"),
        drawing.alphabet("b", n, "second"),
        drawing.alphabet("y", n),
    )
    fillers = drawing.alphabet("f", 6)
    drawing.head("fetch", 0, [drawing.on("first")], [drawing.move("first", "fetched")])
    for i, j in product(range(n), range(n)):
        cell = {"out": one_hot((i + j) % n, n)}
        drawing.neuron(0, {"fetched": one_hot(i, n), "second": one_hot(j, n)}, -1.0, cell)
    drawing.read_out("out", answers)

    def draw(rng: random.Random, kind: int) -> Example:
        """A pair of prompts with this kind of corruption."""
        (i, other_i), (j, other_j) = rng.sample(range(n), 2), rng.sample(range(n), 2)
        fill = rng.sample(fillers, 3)
        if kind == 0:
            at = other_at = rng.randrange(4)
            other_i = i
        else:
            at, other_at = rng.sample(range(4), 2)
            other_j = j
        clean = (*fill[:at], rows[i], *fill[at:], columns[j])
        corrupt = (*fill[:other_at], rows[other_i], *fill[other_at:], columns[other_j])
        return Example(clean, corrupt, answers[(i + j) % n], answers[(other_i + other_j) % n])

    return Recipe(drawing, draw, 2, frozenset())


def conjunction(size: int, gain: float) -> Recipe:
    """`yes` when there are both a `p` word and a `q` word, else `no`: two heads and an AND in the MLP.

    Corrupt: one of the two is missing; in half of the pairs the other way round.
    """
    n = size // 2
    drawing = Blueprint(length=8, gain=gain)
    drawing.space(token=size, p=1, q=1, has_p=1, has_q=1, out=2)
    for kind in ("p", "q"):
        for i in range(n):
            drawing.word(f"{kind}{i}", **{kind: torch.ones(1), "token": one_hot(i, size)})
        drawing.head(f"find-{kind}", 0, [drawing.on(kind)], [drawing.move(kind, f"has_{kind}")])
    fillers, ask = drawing.alphabet("f", size, "token"), "?"
    for word in (ask, "yes", "no"):
        drawing.word(word)
    drawing.neuron(
        0, {"has_p": torch.ones(1), "has_q": torch.ones(1)}, -1.0, {"out": torch.tensor([2.0, 0.0])}
    )
    # "no" is what the model says on its own: the neuron must outweigh it.
    drawing.always("out", torch.tensor([0.0, 1.0]))
    drawing.read_out("out", ("yes", "no"))

    def draw(rng: random.Random, kind: int) -> Example:
        """A pair of prompts with this kind of corruption."""
        p, q, fill = f"p{rng.randrange(n)}", f"q{rng.randrange(n)}", rng.sample(fillers, 6)
        indices = rng.sample(range(6), 2)
        both, one = list(fill), list(fill)
        for index, word, missing in zip(indices, (p, q), (kind % 2 == 0, kind % 2 == 1), strict=True):
            both[index] = word
            if not missing:
                one[index] = word
        yes, no = (*both, ask), (*one, ask)
        if kind < 2:
            return Example(yes, no, "yes", "no")
        return Example(no, yes, "no", "yes")

    return Recipe(drawing, draw, 4, frozenset())
