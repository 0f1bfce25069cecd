"""The tasks there are, and how one becomes prompt pairs for a given model.

For `tiny` the words of the grammar are its vocabulary. For other models most tasks choose words of equal
token count, with answers of one token if there are enough, and say in `provenance["dropped"]` what they left
out. Where answers are several tokens `provenance["metric"]` is one that reads them.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from workbench.errors import PromptError, UnknownName, UnsuitableTask
from workbench.models.load import model_name
from workbench.prompts.encoder import TextEncoder
from workbench.prompts.pairs import PromptPairs, padded_answers
from workbench.tasks import agreement, binding, capitals, greater_than, induction, ioi, pronoun
from workbench.tasks.grammar import Lexicon, Sentence, is_reserved, vocabulary
from workbench.tasks.vocabularies import TextSpeaker, WordSpeaker

_PATIENCE = 20_000
Split = Literal["train", "heldout"] | str


@dataclass(frozen=True)
class Task:
    """A behaviour.

    Attributes:
        module: draws its sentences.
        metric: the one that suits it where answers are one token.
        needs: the words that must suit another vocabulary (`speakers.CHOICES`); none where it needs that of
            `tiny`.
        measured: the variants that `measure` scores a model on.
        bar: the score that `tiny` must reach.
    """

    name: str
    module: ModuleType
    metric: str = "logit_diff"
    needs: tuple[str, ...] = ()
    measured: tuple[str, ...] = ()
    bar: float = 0.95

    @property
    def any_model(self) -> bool:
        """Whether it works with any vocabulary, or needs the words of `tiny`."""
        return bool(self.needs)

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
        Task("ioi", ioi, needs=("names",), measured=("swap", "three")),
        Task("induction", induction, needs=("items",)),
        Task("greater_than", greater_than, metric="prob_diff", needs=("years",), bar=0.9),
        Task("agreement", agreement, needs=("nouns", "verbs")),
        Task("pronoun", pronoun, needs=("people", "pronouns")),
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
        split: "train" or "heldout"; no prompt, clean or corrupt, is in both. For `tiny`, "heldout" prompts
            use word combinations that were never in its training text.
        variant: the kind of corruption; None takes the task's first.

    Raises:
        UnknownName: no such task, variant or split.
        PromptError: the model's vocabulary does not suit the task, or it has fewer than `n` distinct prompts.
    """
    task = find_task(name)
    variant = task.variants[0] if variant is None else variant
    if variant not in task.variants:
        raise UnknownName("variant", variant, task.variants)
    if split not in ("train", "heldout"):
        raise UnknownName("split", split, ("train", "heldout"))
    if type(n) is not int or n < 1:
        raise PromptError(f"n={n}: at least one pair is needed, and a whole number of them.")
    encode = TextEncoder(model)
    speaker = (
        WordSpeaker(encode) if set(vocabulary()) <= set(encode.tokenizer.get_vocab()) else TextSpeaker(encode)
    )
    if isinstance(speaker, TextSpeaker) and not task.any_model:
        usable = [other.name for other in TASKS.values() if other.any_model]
        raise UnsuitableTask(
            f"The task {name!r} needs the word-level vocabulary of `tiny`; {model_name(model)!r} has another. "
            f"Tasks for any model: {', '.join(usable)}; or bring your own with PromptPairs.from_csv."
        )
    lexicon, dropped = speaker.lexicon(name, task.needs)
    pairs = _distinct_pairs(task, speaker, lexicon, n, seed, split, variant)
    sides = [speaker.prompts([pair[i] for pair in pairs]) for i in (0, 1)]
    answers = padded_answers([speaker.words(clean, clean.answers) for clean, _ in pairs])
    wrong = padded_answers([speaker.words(clean, clean.wrong) for clean, _ in pairs])
    several = answers.shape[2] > 1 or wrong.shape[2] > 1
    provenance = {
        "task": name, "variant": variant, "n": n, "seed": seed, "split": split, "model": model_name(model),
        "tokenizer": encode.fingerprint, "dropped": dropped, "metric": "sequence_logprob_diff" if several else task.metric,
    }  # fmt: skip
    return PromptPairs(sides[0], sides[1], answers, wrong, provenance)


def _fits(speaker: WordSpeaker | TextSpeaker, sentence: Sentence) -> bool:
    """Whether a prompt and its answers fit into the context."""
    answers = speaker.words(sentence, (sentence.answers[0], sentence.wrong[0]))
    return (
        int(speaker.encode.bos) + speaker.length(sentence) + max(map(len, answers)) - 1
        <= speaker.encode.context
    )


def _distinct_pairs(
    task: Task,
    speaker: WordSpeaker | TextSpeaker,
    lexicon: Lexicon,
    n: int,
    seed: int,
    split: Split,
    variant: str,
) -> list[tuple[Sentence, Sentence]]:
    """Pairs whose clean prompts differ, both sides of each in the split and equally long."""
    rng = random.Random(f"{task.name} {variant} {split} {seed}")
    found: dict[tuple[str, ...], tuple[Sentence, Sentence]] = {}
    misses = 0
    while misses < _PATIENCE:
        clean, corrupt = task.module.draw(rng, lexicon, variant)
        misses += 1
        in_split = all(is_reserved(task.name, side.key) == (split == "heldout") for side in (clean, corrupt))
        alike = speaker.length(clean) == speaker.length(corrupt)
        if in_split and clean.words not in found and alike and _fits(speaker, clean):
            found[clean.words] = (clean, corrupt)
            misses = 0
        if len(found) == n:
            return list(found.values())
    raise PromptError(
        f"The task {task.name!r} has only {len(found)} distinct {split} prompts for this model; n={n} were asked for."
    )


_READERS = {".csv": PromptPairs.from_csv, ".jsonl": PromptPairs.from_jsonl}


def pairs_of(
    task: str, model: Any, *, n: int, seed: int = 0, split: str = "train", variant: str | None = None
) -> PromptPairs:
    """The pairs of a task by name, or of a .csv or .jsonl file (all of them; `n`, `seed` and `split` are a
    task's).
    """
    read = _READERS.get(Path(task).suffix.lower())
    return read(model, task) if read else load_task(task, model, n=n, seed=seed, split=split, variant=variant)
