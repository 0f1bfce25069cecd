"""The tasks there are, and how one becomes prompt pairs for a given model.

For `tiny` the words of the grammar are its vocabulary. For other models `ioi` and `pronoun` choose words of equal
token count whose answers are one token, and say in `provenance["dropped"]` what they left out.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from workbench.errors import PromptError, UnknownName, UnsuitableTask
from workbench.models.load import model_name
from workbench.tasks import agreement, binding, capitals, greater_than, induction, ioi, pronoun
from workbench.tasks.grammar import Lexicon, Sentence, is_reserved, render, vocabulary
from workbench.tasks.pairs import PromptPairs, Prompts, TextEncoder, padded_answers

_PATIENCE = 20_000
Split = Literal["train", "heldout"] | str


@dataclass(frozen=True)
class Task:
    """A behaviour.

    Attributes:
        module: draws its sentences.
        metric: the one that suits it.
        any_model: whether it works with any vocabulary, or needs the words of `tiny`.
        answers_are_names: then names must be single tokens.
        measured: the variants that `measure` scores a model on.
        bar: the score that `tiny` must reach.
    """

    name: str
    module: ModuleType
    metric: str = "logit_diff"
    any_model: bool = False
    answers_are_names: bool = False
    measured: tuple[str, ...] = ()
    bar: float = 0.95

    @property
    def variants(self) -> tuple[str, ...]:
        """The kinds of corruption, the default first."""
        return self.module.VARIANTS

    @property
    def description(self) -> str:
        return (self.module.__doc__ or "").strip().splitlines()[0]


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("ioi", ioi, any_model=True, answers_are_names=True, measured=("swap", "three")),
        Task("induction", induction),
        Task("greater_than", greater_than, metric="prob_diff", bar=0.9),
        Task("agreement", agreement),
        Task("pronoun", pronoun, any_model=True),
        Task("capitals", capitals),
        Task("binding", binding),
    )
}


def find_task(name: str) -> Task:
    """The task of that name, or `UnknownName` with near matches."""
    if name not in TASKS:
        raise UnknownName("task", name, TASKS)
    return TASKS[name]


def load_task(
    name: str, model: Any, *, n: int = 64, seed: int = 0, split: Split = "train", variant: str | None = None
) -> PromptPairs:
    """Distinct prompt pairs of a task, the same for the same arguments.

    Args:
        n: how many pairs.
        split: "train" or "heldout"; no prompt, clean or corrupt, is in both. For `tiny`, "heldout" prompts use word
            combinations that were never in its training text.
        variant: the kind of corruption; None takes the task's first.

    Raises:
        UnknownName: no such task, variant or split.
        PromptError: the model's vocabulary does not suit the task, or it has fewer than `n` distinct prompts.
    """
    task = find_task(name)
    variant = task.variants[0] if variant is None else variant
    if variant not in task.variants:
        raise UnknownName(f"variant of the task {name!r}", variant, task.variants)
    if split not in ("train", "heldout"):
        raise UnknownName("split", split, ("train", "heldout"))
    if type(n) is not int or n < 1:
        raise PromptError(f"n={n}: at least one pair is needed, and a whole number of them.")
    encode = TextEncoder(model)
    speaker = WordSpeaker(encode) if set(vocabulary()) <= set(encode.tokenizer.get_vocab()) else TextSpeaker(encode)
    if isinstance(speaker, TextSpeaker) and not task.any_model:
        usable = [other.name for other in TASKS.values() if other.any_model]
        raise UnsuitableTask(
            f"The task {name!r} needs the word-level vocabulary of `tiny`; {model_name(model)!r} has another. "
            f"Tasks for any model: {', '.join(usable)}; or bring your own with PromptPairs.from_csv."
        )
    lexicon, dropped = speaker.lexicon(task)
    pairs = _distinct_pairs(task, speaker, lexicon, n, seed, split, variant)
    sides = [speaker.prompts([pair[i] for pair in pairs]) for i in (0, 1)]
    answers = [speaker.words(clean, clean.answers) for clean, _ in pairs]
    wrong = [speaker.words(clean, clean.wrong) for clean, _ in pairs]
    provenance = {
        "task": name, "variant": variant, "n": n, "seed": seed, "split": split, "model": model_name(model),
        "tokenizer": encode.fingerprint, "dropped": dropped,
    }  # fmt: skip
    return PromptPairs(sides[0], sides[1], padded_answers(answers), padded_answers(wrong), provenance)


def _distinct_pairs(
    task: Task, speaker: "WordSpeaker | TextSpeaker", lexicon: Lexicon, n: int, seed: int, split: Split, variant: str
) -> list[tuple[Sentence, Sentence]]:
    """Pairs whose clean prompts differ, both sides of each in the split and equally long."""
    rng = random.Random(f"{task.name} {variant} {split} {seed}")
    found: dict[tuple[str, ...], tuple[Sentence, Sentence]] = {}
    misses = 0
    while misses < _PATIENCE:
        clean, corrupt = task.module.draw(rng, lexicon, variant)
        misses += 1
        in_split = all(is_reserved(task.name, side.key) == (split == "heldout") for side in (clean, corrupt))
        if in_split and clean.words not in found and speaker.length(clean) == speaker.length(corrupt):
            found[clean.words] = (clean, corrupt)
            misses = 0
        if len(found) == n:
            return list(found.values())
    raise PromptError(
        f"The task {task.name!r} has only {len(found)} distinct {split} prompts for this model; n={n} were asked for."
    )


class WordSpeaker:
    """Sentences as word-level tokens: one word, one token."""

    def __init__(self, encode: TextEncoder) -> None:
        self.encode, self.ids = encode, encode.tokenizer.get_vocab()

    def lexicon(self, task: Task) -> tuple[Lexicon, str]:
        return Lexicon(), ""

    def length(self, sentence: Sentence) -> int:
        return len(sentence.words)

    def prompts(self, sentences: Sequence[Sentence]) -> Prompts:
        offset = int(self.encode.bos)
        rows = [self.encode.prompt(" ".join(s.words), where=f"Prompt {i}") for i, s in enumerate(sentences)]
        positions = [{name: at + offset for name, at in s.positions.items()} for s in sentences]
        return Prompts.of(rows, strings=self.encode.labels(rows), positions=positions, bos=self.encode.bos)

    def words(self, sentence: Sentence, words: Sequence[str]) -> list[list[int]]:
        return [[self.ids[word]] for word in words]


class TextSpeaker:
    """Sentences as ordinary text for a subword vocabulary."""

    def __init__(self, encode: TextEncoder) -> None:
        self.encode = encode

    def lexicon(self, task: Task) -> tuple[Lexicon, str]:
        """Names with a partner of equal token count (one token where the name is the answer), pronouns of one token."""
        whole = Lexicon()
        sizes = {word: len(self._inside(word)) for word in (*whole.names, *whole.pronouns)}
        shared = {sizes[name] for name in whole.female} & {sizes[name] for name in whole.male}
        names_fit = {1} if task.answers_are_names else shared
        lexicon = Lexicon(
            female=tuple(name for name in whole.female if sizes[name] in names_fit),
            male=tuple(name for name in whole.male if sizes[name] in names_fit),
            pronouns=tuple(word for word in whole.pronouns if sizes[word] == 1),
        )
        left = [word for word in sizes if word not in (*lexicon.names, *lexicon.pronouns)]
        both = any({*pair} <= {*lexicon.pronouns} for pair in (("she", "he"), ("She", "He")))
        enough = len(lexicon.names) >= 4 if task.answers_are_names else bool(lexicon.female and lexicon.male and both)
        if not enough:
            raise UnsuitableTask(
                f"The task {task.name!r} needs answers of one token, and this vocabulary splits them "
                f"(dropped {' '.join(left)}). Bring your own prompts with PromptPairs.from_csv."
            )
        return lexicon, " ".join(left)

    def length(self, sentence: Sentence) -> int:
        return len(self.encode.plain(render(sentence.words)[0]))

    def prompts(self, sentences: Sequence[Sentence]) -> Prompts:
        rows, positions = [], []
        for i, sentence in enumerate(sentences):
            text, spans = render(sentence.words)
            tokens = self.encode.spans(text)
            offset = int(self.encode.bos)
            ends = [max(t for t, (start, _) in enumerate(tokens) if start < end) for _, end in spans]
            rows.append(self.encode.prompt(text, where=f"Prompt {i}"))
            positions.append({name: ends[at] + offset for name, at in sentence.positions.items()})
        return Prompts.of(rows, strings=self.encode.labels(rows), positions=positions, bos=self.encode.bos)

    def words(self, sentence: Sentence, words: Sequence[str]) -> list[list[int]]:
        text, _ = render(sentence.words)
        return [self.encode.continuation(text, word, joiner=" ", where=f"Answer {word!r}") for word in words]

    def _inside(self, word: str) -> list[int]:
        """The tokens of a word within a sentence."""
        return self.encode.continuation("and", word, joiner=" ", where=f"Word {word!r}")
