"""The tasks there are, and how one becomes prompt pairs for a given model.

Read `load_task`. For `tiny` the words of the grammar are its vocabulary. For other models most tasks choose
words of equal token count, with answers of one token if there are enough, and say in `provenance["dropped"]`
what they left out. Where answers are several tokens, `provenance["metric"]` is one that reads them.
"""

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd

from workbench.arguments import checked
from workbench.errors import PromptError, UnknownName, UnsuitableTask
from workbench.models.calls import model_call
from workbench.models.load import model_name
from workbench.models.model import Model
from workbench.prompts.answers import padded_answers
from workbench.prompts.encoder import TextEncoder
from workbench.prompts.pair_tables import KINDS_OF_FILE
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts
from workbench.tasks.grammar import Lexicon, Sentence, is_reserved, vocabulary
from workbench.tasks.task import TASKS, Task, find_task
from workbench.tasks.vocabularies import SubwordVocabulary, WordVocabulary

log = logging.getLogger(__name__)

# So many draws in a row without a new prompt mean that there are no more.
_PATIENCE = 20_000
# Pairs of one call: more take hours to draw, and gigabytes.
_MOST = 1_000_000
Split = Literal["train", "heldout"] | str


PAIR_READERS = dict.fromkeys(KINDS_OF_FILE, PromptPairs.from_file)
"""Suffix of a file of pairs → what reads it."""


@checked
@model_call()
def load_task(
    name: str | Path | pd.DataFrame,
    model: Model,
    *,
    n: int | None = None,
    seed: int = 0,
    split: Split = "train",
    variant: str | None = None,
    bos: bool | None = None,
) -> PromptPairs:
    """Distinct prompt pairs of a task, the same for the same arguments; or pairs of your own.

    Args:
        name: a task; or a file of your own pairs (.csv, .tsv, .jsonl, .json, .parquet), or a table, as in
            `PromptPairs.from_dataframe`.
        n: how many pairs; None: 64 of a task, and all of your own.
        seed: of a task.
        split: of a task, "train" or "heldout"; no prompt, clean or corrupt, is in both. For `tiny`, "heldout" prompts
            use word combinations that were never in its training text.
        variant: the kind of corruption; None gives every counterfactual of the same clean prompts: the task's
            first as `corrupt`, the others as `further`, but for those that this vocabulary has no words for
            (`provenance["left_out"]`).
        bos: whether prompts begin with BOS; None: as chosen in `load_model`, else as the tokenizer adds it.

    Raises:
        UnknownName: no such task, variant or split.
        PromptError: the model's vocabulary does not suit the task, or it has fewer than `n` distinct prompts.

    >>> import workbench as wb
    >>> load_task("ioi", wb.load_model("tiny"), n=8)
    <PromptPairs: 8 x ioi, 14 to 18 tokens>
    """
    if isinstance(name, pd.DataFrame) or Path(name).suffix.lower() in PAIR_READERS:
        if (seed, split) != (0, "train"):
            table = "A table" if isinstance(name, pd.DataFrame) else repr(str(name))
            raise PromptError(
                f"{table} of your own pairs has no seed and no split: take pairs.parts((1, 1, 2)) of it."
            )
        return _own_pairs(name, model, n, variant, bos)
    n, name = (64 if n is None else n), str(name)
    task = find_task(name)
    further: list[str] = []
    if variant is None:
        variant, *further = task.counterfactuals
    if variant not in task.variants:
        raise UnknownName("variant", variant, task.variants)
    if split not in ("train", "heldout"):
        raise UnknownName("split", split, ("train", "heldout"))
    _check_count(n)
    encode = TextEncoder(model, bos=bos)
    has_every_word = set(vocabulary()) <= set(encode.tokenizer.get_vocab())
    wording = WordVocabulary(encode) if has_every_word else SubwordVocabulary(encode)
    if isinstance(wording, SubwordVocabulary) and not task.any_model:
        usable = [other.name for other in TASKS.values() if other.any_model]
        raise UnsuitableTask(
            f"The task {name!r} needs the word-level vocabulary of `tiny`; "
            f"{model_name(model)!r} has another. "
            f"Tasks for any model: {', '.join(usable)}; or bring your own with PromptPairs.from_csv."
        )
    lexicon, dropped = wording.lexicon(name, task.needs)
    pairs = _distinct_pairs(task, wording, lexicon, n, seed, split, variant)
    clean, corrupt = map(wording.prompts, zip(*pairs, strict=True))
    right, others = zip(*(_answers(task, wording, sentence) for sentence, _ in pairs), strict=True)
    answers, wrong = padded_answers(right), padded_answers(others)
    several = answers.shape[2] > 1 or wrong.shape[2] > 1
    provenance = {
        "task": name, "variant": variant, "n": n, "seed": seed, "split": split, "model": model_name(model),
        "tokenizer": encode.fingerprint, "bos": encode.bos, "dropped": dropped,
        "metric": "sequence_logprob_diff" if several else task.metric,
        "answer_words": encode.words(answers, wrong),
    }  # fmt: skip
    drawn = [sentence for sentence, _ in pairs]
    sides: dict[str, Prompts] = {}
    for other in further:
        sentences = _corrupted(task, wording, lexicon, drawn, seed, split, other)
        # A vocabulary may have no word of the same length for one of them; the other pairs are whole.
        if sentences is None:
            provenance["left_out"] = f"{other}: no sentence of the same length in this vocabulary"
        else:
            sides[other] = wording.prompts(sentences)
    log.info(
        "%s: %d %s pairs, metric %s, against %s", name, n, split, provenance["metric"], [variant, *sides]
    )
    return PromptPairs(clean, corrupt, answers, wrong, provenance, sides)


def _own_pairs(
    table: str | Path | pd.DataFrame, model: Model, n: int | None, variant: str | None, bos: bool | None
) -> PromptPairs:
    """Pairs of a file or a table: the first n of them, against one corruption where that is named."""
    if isinstance(table, pd.DataFrame):
        pairs = PromptPairs.from_dataframe(model, table, bos=bos)
    else:
        pairs = PAIR_READERS[Path(table).suffix.lower()](model, table, bos=bos)
    if variant is not None:
        pairs = pairs.against(variant)
    if n is None:
        return pairs
    _check_count(n)
    if n > len(pairs):
        raise PromptError(
            f"n={n}: there are {len(pairs)} pairs in {pairs.provenance.get('task', 'this table')}."
        )
    return pairs.select(slice(n))


def _check_count(n: int) -> None:
    """Raise `PromptError` for a number of pairs that no task gives."""
    if n < 1:
        raise PromptError(f"n={n}: at least one pair is needed.")
    if n > _MOST:
        raise PromptError(f"n={n}: a task gives up to {_MOST:,} pairs.")


def _fits(wording: WordVocabulary | SubwordVocabulary, sentence: Sentence) -> bool:
    """Whether a prompt and its answers fit into the context."""
    answers = wording.words(sentence, (sentence.answers[0], sentence.wrong[0]))
    # The last answer token is only predicted, never read.
    n_tokens = int(wording.encode.bos) + wording.length(sentence) + max(map(len, answers)) - 1
    return n_tokens <= wording.encode.context


def _answers(
    task: Task, wording: WordVocabulary | SubwordVocabulary, sentence: Sentence
) -> tuple[list[list[int]], list[list[int]]]:
    """The tokens of right answers and of wrong ones; none where a task by first token is undecided by it.

    >>> from types import SimpleNamespace
    >>> digits = SimpleNamespace(words=lambda _, words: [[int(digit) for digit in word] for word in words])
    >>> sentence = SimpleNamespace(answers=("30", "31", "40"), wrong=("29", "28", "11"))
    >>> _answers(TASKS["greater_than"], digits, sentence)
    ([[3], [4]], [[2], [1]])
    """
    right, wrong = (wording.words(sentence, words) for words in (sentence.answers, sentence.wrong))
    if not task.by_first_token or max(map(len, [*right, *wrong])) == 1:
        return right, wrong
    # Dicts keep the order of the answers.
    first_of_right, first_of_wrong = ({tokens[0]: None for tokens in listed} for listed in (right, wrong))
    if first_of_right.keys() & first_of_wrong.keys():
        return [], []
    return [[token] for token in first_of_right], [[token] for token in first_of_wrong]


def _distinct_pairs(
    task: Task,
    wording: WordVocabulary | SubwordVocabulary,
    lexicon: Lexicon,
    n: int,
    seed: int,
    split: Split,
    variant: str,
) -> list[tuple[Sentence, Sentence]]:
    """Pairs whose clean prompts differ, both sides of each in the split and equally long."""
    # A text as seed, since `hash` of one differs from process to process.
    rng = random.Random(f"{task.name} {variant} {split} {seed}")
    pairs: dict[tuple[str, ...], tuple[Sentence, Sentence]] = {}
    misses = 0
    while misses < _PATIENCE:
        clean, corrupt = task.module.draw(rng, lexicon, variant)
        misses += 1
        # A corrupt prompt is a prompt too: it must not have been in training text either.
        in_split = all(is_reserved(task.name, side.key) == (split == "heldout") for side in (clean, corrupt))
        alike = wording.length(clean) == wording.length(corrupt)
        usable = in_split and clean.words not in pairs and alike and _fits(wording, clean)
        # Digit by digit only years that end in 9 are decided by the next digit: after 1652 a 5 may be 53 or 51.
        if usable and (not task.by_first_token or all(_answers(task, wording, clean))):
            pairs[clean.words] = (clean, corrupt)
            misses = 0
        if len(pairs) == n:
            return list(pairs.values())
    raise PromptError(
        f"The task {task.name!r} has only {len(pairs)} distinct {split} prompts for this model; "
        f"n={n} were asked for."
    )


def _corrupted(
    task: Task,
    wording: WordVocabulary | SubwordVocabulary,
    lexicon: Lexicon,
    drawn: Sequence[Sentence],
    seed: int,
    split: Split,
    variant: str,
) -> list[Sentence] | None:
    """Clean sentences with another corruption, each in the split and as long as the clean one.

    None where a sentence has none in this vocabulary.
    """
    # A stream of its own: clean prompts and the first corruption are the same with it and without.
    rng = random.Random(f"{task.name} {variant} of given sentences {split} {seed}")
    sentences: list[Sentence] = []
    for clean in drawn:
        for _ in range(_PATIENCE):
            corrupt = task.module.corrupted(rng, lexicon, clean)
            in_split = is_reserved(task.name, corrupt.key) == (split == "heldout")
            if in_split and wording.length(corrupt) == wording.length(clean):
                sentences.append(corrupt)
                break
        else:
            return None
    return sentences


def pairs_of(
    task: str, model: Model, *, n: int, seed: int = 0, split: str = "train", variant: str | None = None
) -> PromptPairs:
    """The pairs of a task by name, or of a file of pairs.

    Of a file they are all the pairs: `n`, `seed`, `split` and `variant` are for tasks.
    """
    _check_count(n)
    read = PAIR_READERS.get(Path(task).suffix.lower())
    if read is not None:
        return read(model, task)
    return load_task(task, model, n=n, seed=seed, split=split, variant=variant)
