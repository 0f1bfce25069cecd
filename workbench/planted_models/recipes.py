"""The circuits that are planted: for each a drawing, the prompts it solves, and what the two runs share.

Read `Recipe`, then `induction`, the simplest. A recipe declares which wired edges carry the same in the clean
and the corrupt run (`shared`): corrupt patching cannot see them. It declares the sets that only matter
together (`redundant`). Edges are named by roles: `input->previous<q>`. How they become weights is in
`blueprint.py`.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import torch

from workbench.planted_models.blueprint import Blueprint, one_hot


@dataclass(frozen=True)
class Example:
    """One pair of prompts, as words without BOS, and the next words after the clean and the corrupt one."""

    clean: tuple[str, ...]
    corrupt: tuple[str, ...]
    answer: str
    wrong: str


@dataclass(frozen=True)
class Recipe:
    """A drawing with its prompts.

    Attributes:
        blueprint: the drawing.
        draw: `(rng, kind) -> Example`: a pair of prompts; `kind` is the kind of corruption, from 0 to `kinds`
            - 1.
        shared: edges that carry nothing that differs between the runs.
        redundant: sets of edges of which each alone changes little.
    """

    blueprint: Blueprint
    draw: Callable[[random.Random, int], Example]
    kinds: int
    shared: frozenset[str]
    redundant: tuple[frozenset[str], ...] = ()


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
        keys, values, (a, b) = *_deal(rng, words, 3, 3), rng.sample(range(3), 2)
        other_keys, other_values = _swapped(keys, a, b, kind == 1), _swapped(values, a, b, kind == 2)
        clean = (*_interleaved(keys, values), keys[a])
        corrupt = (*_interleaved(other_keys, other_values), keys[b] if kind == 0 else keys[a])
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
    # To the same word, and not to itself.
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
        trade = {a: b, b: a}
        corrupt = tuple(trade.get(word, word) for word in clean) if kind else (*clean[:5], b, "to")
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

    No sum of a term for `a` and a term for `b` gives it.

    A head fetches `a`; one neuron of the MLP for each pair. Corrupt: another `b`, or another `a` at another
    place.
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
        (i, other_i), (j, other_j), fill = (
            rng.sample(range(n), 2),
            rng.sample(range(n), 2),
            rng.sample(fillers, 3),
        )
        at, other_at = rng.sample(range(4), 2) if kind else [rng.randrange(4)] * 2
        other_i, other_j = (other_i, j) if kind else (i, other_j)
        clean, corrupt = (
            (*fill[:p], rows[r], *fill[p:], columns[c])
            for p, r, c in ((at, i, j), (other_at, other_i, other_j))
        )
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
            one[index] = fill[index] if missing else word
        yes, no = (*both, ask), (*one, ask)
        return Example(yes, no, "yes", "no") if kind < 2 else Example(no, yes, "no", "yes")

    return Recipe(drawing, draw, 4, frozenset())


def backup(size: int, gain: float) -> Recipe:
    """The word in capitals → the word. When the main head is silent, a backup head does its work.

    The backup's query is what the main head wrote, with a minus: as long as that is there, it rests at BOS.
    Whatever silences the main head (its k or v corrupted or zeroed) wakes the backup, and the metric hardly
    moves. Corrupt: another of the same words is in capitals.
    """
    drawing, words = _capitals(size, gain)
    _main_and_backup(drawing)
    drawing.read_out("out", words)
    main, spare = _redundant()
    sets = tuple(frozenset(pair) for pair in product(main, spare))
    return Recipe(drawing, _capital_moves(words), 1, frozenset({"main->backup<q>"}), sets)


def negative(size: int, gain: float) -> Recipe:
    """The word in capitals → the word; a negative head opposes it.

    It attends to the word that is about to be the answer and writes half of it with a minus.

    It lowers the metric, and the model is not itself without it: all its edges oppose (2310.04625).
    Corrupt: another word is in capitals, or the word in capitals trades places with another.
    """
    drawing, words = _capitals(size, gain)
    drawing.head("main", 0, [drawing.on("capital")], [drawing.move("capital", "out")])
    drawing.head("negative", 1, [drawing.same("out", "token")], [drawing.move("token", "out", -0.5)])
    drawing.read_out("out", words)
    moves = _capital_moves(words)

    def draw(rng: random.Random, kind: int) -> Example:
        """A pair of prompts with this kind of corruption."""
        example = moves(rng, 0)
        if kind == 0:
            return example
        trade = {example.answer.upper(): example.wrong.upper(), example.wrong: example.answer}
        return Example(
            example.clean,
            tuple(trade.get(word, word) for word in example.clean),
            example.answer,
            example.wrong,
        )

    return Recipe(drawing, draw, 2, frozenset())


def backup_negative(size: int, gain: float) -> Recipe:
    """A main head, its backup, and a negative head that suppresses whichever of the two speaks.

    Corrupt: another of the same words is in capitals.
    """
    drawing, words = _capitals(size, gain)
    _main_and_backup(drawing)
    drawing.head("negative", 2, [drawing.same("out", "token")], [drawing.move("token", "out", -0.5)])
    drawing.read_out("out", words)
    main, spare = _redundant()
    sets = tuple(frozenset(pair) for pair in product(main, (*spare, "backup->negative<q>")))
    shared = {"main->backup<q>", "input->negative<k>", "input->negative<v>"}
    return Recipe(drawing, _capital_moves(words), 1, frozenset(shared), sets)


def q_composition(size: int, gain: float) -> Recipe:
    """`d3 x1 x2 x3 x4 x5 ?` → `x3`: a head fetches a pointer, and that is the next head's query.

    Corrupt: another pointer, or the word it points to trades places with another.
    """
    drawing = Blueprint(length=8, gain=gain)
    drawing.space(token=size, digit=5, pointer=5, out=size)
    words, digits = drawing.alphabet("x", size, "token"), drawing.alphabet("d", 5, "digit")
    drawing.word("?")
    drawing.head("fetch", 0, [drawing.on("digit")], [drawing.move("digit", "pointer")])
    left = torch.zeros(drawing.length, 5)
    # Behind BOS and the digit itself: the first digit points to position 2.
    left[2:7] = torch.eye(5)
    point = replace(drawing.same("pointer", "position"), left=left)
    drawing.head("target", 1, [point], [drawing.move("token", "out")])
    drawing.read_out("out", words)

    def draw(rng: random.Random, kind: int) -> Example:
        """A pair of prompts with this kind of corruption."""
        listed, (a, b) = rng.sample(words, 5), rng.sample(range(5), 2)
        clean = (digits[a], *listed, "?")
        corrupt = (digits[a if kind else b], *_swapped(listed, a, b, kind == 1), "?")
        return Example(clean, corrupt, listed[a], listed[b])

    return Recipe(drawing, draw, 2, frozenset({"input->fetch<k>", "input->target<k>"}))


def v_composition(size: int, gain: float) -> Recipe:
    """`x1 x2 x3 ! x4 x5 ?` → `x3`: a head copies each word one step on, another moves the copy to the end.

    Corrupt: the mark stands elsewhere, or the word before it trades places with another.
    """
    drawing = Blueprint(length=8, gain=gain)
    drawing.space(token=size, mark=1, previous=size, out=size)
    words = drawing.alphabet("x", size, "token")
    drawing.word("!", mark=torch.ones(1))
    drawing.word("?")
    drawing.head(
        "previous", 0, [drawing.same("position", "position", shift=-1)], [drawing.move("token", "previous")]
    )
    drawing.head("target", 1, [drawing.on("mark")], [drawing.move("previous", "out")])
    drawing.read_out("out", words)

    def draw(rng: random.Random, kind: int) -> Example:
        """A pair of prompts with this kind of corruption."""
        listed, (a, b) = rng.sample(words, 5), rng.sample(range(5), 2)
        other, at = _swapped(listed, a, b, kind == 1), a if kind else b
        clean, corrupt = ((*row[: i + 1], "!", *row[i + 1 :], "?") for row, i in ((listed, a), (other, at)))
        return Example(clean, corrupt, listed[a], listed[b])

    return Recipe(drawing, draw, 2, frozenset({"input->previous<q>", "input->previous<k>"}))


def compositions(size: int, gain: float) -> Recipe:
    """`cue (value key ;) (value key ;) (value key ;) ?` → the value whose key is the cue.

    Three heads feed one: the first its query (the cue), the second its keys, the third its values. Nine edges
    of the same shape could be there; three are. Corrupt: another cue, two keys swapped, or two values
    swapped.
    """
    drawing = Blueprint(length=12, gain=gain)
    drawing.space(token=size, separator=1, cue=size, key=size, value=size, out=size)
    words = drawing.alphabet("t", size, "token")
    drawing.word(";", separator=torch.ones(1))
    drawing.word("?")
    drawing.head(
        "feed-q",
        0,
        [drawing.gate("position", "position", q_only=11, k_only=1)],
        [drawing.move("token", "cue")],
    )
    drawing.head(
        "feed-k", 0, [drawing.same("position", "position", shift=-1)], [drawing.move("token", "key")]
    )
    drawing.head(
        "feed-v", 0, [drawing.same("position", "position", shift=-2)], [drawing.move("token", "value")]
    )
    drawing.head(
        "target", 1, [drawing.same("cue", "key"), drawing.on("separator")], [drawing.move("value", "out")]
    )
    drawing.read_out("out", words)

    def draw(rng: random.Random, kind: int) -> Example:
        """A pair of prompts with this kind of corruption."""
        keys, values, (a, b) = *_deal(rng, words, 3, 3), rng.sample(range(3), 2)
        other_keys, other_values = _swapped(keys, a, b, kind == 1), _swapped(values, a, b, kind == 2)
        clean = (keys[a], *_interleaved(values, keys, [";"] * 3), "?")
        corrupt = (keys[b] if kind == 0 else keys[a], *_interleaved(other_values, other_keys, [";"] * 3), "?")
        return Example(clean, corrupt, values[a], values[b])

    places = {f"input->feed-{port}<{end}>" for port in "qkv" for end in "qk"}
    return Recipe(drawing, draw, 3, frozenset(places | {"input->target<k>"}))


def _capitals(size: int, gain: float) -> tuple[Blueprint, tuple[str, ...]]:
    """Words in small letters and in capitals; only the latter are in the subspace `capital`."""
    drawing = Blueprint(length=8, gain=gain)
    drawing.space(token=size, capital=size, bos=1, out=size)
    drawing.word("BOS", bos=torch.ones(1))
    words = drawing.alphabet("w", size, "token")
    drawing.alphabet("W", size, "token", "capital")
    drawing.word("?")
    return drawing, words


def _capital_moves(words: tuple[str, ...]) -> Callable[[random.Random, int], Example]:
    def draw(rng: random.Random, kind: int) -> Example:
        """A pair of prompts with this kind of corruption."""
        listed, (a, b) = rng.sample(words, 6), rng.sample(range(6), 2)
        clean, corrupt = ((*listed[:i], listed[i].upper(), *listed[i + 1 :], "?") for i in (a, b))
        return Example(clean, corrupt, listed[a], listed[b])

    return draw


def _main_and_backup(drawing: Blueprint) -> None:
    drawing.head("main", 0, [drawing.on("capital")], [drawing.move("capital", "out")])
    # What the main head wrote cancels the backup's interest in capitals: BOS is then the best match.
    unless = [drawing.on("capital"), drawing.gate("out", "capital", -1.0), drawing.on("bos", 0.5)]
    drawing.head("backup", 1, unless, [drawing.move("capital", "out")])


def _redundant() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the main head needs in order to speak, and what the backup needs in order to speak for it."""
    return ("input->main<k>", "input->main<v>"), ("input->backup<k>", "input->backup<v>", "backup->logits")


def _deal(rng: random.Random, words: tuple[str, ...], *counts: int) -> list[list[str]]:
    """Disjoint random hands of words."""
    dealt = rng.sample(words, sum(counts))
    return [[dealt.pop() for _ in range(count)] for count in counts]


def _swapped(row: list[str], a: int, b: int, really: bool) -> list[str]:
    order = list(row)
    if really:
        order[a], order[b] = order[b], order[a]
    return order


def _interleaved(*rows: list[str]) -> list[str]:
    return [word for group in zip(*rows, strict=True) for word in group]
