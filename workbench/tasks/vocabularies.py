"""How a task's sentences become the tokens of a model, and which words of the grammar its vocabulary can use.

Read `WordVocabulary` (`tiny`: a word is a token) and `SubwordVocabulary`. The latter gets ordinary text, and
words of equal token count that stand in for each other: of one token where there are enough of them, else of
the token count that most have.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, product
from typing import Any

from workbench.errors import UnsuitableTask
from workbench.prompts.encoder import TextEncoder
from workbench.prompts.prompts import Prompts
from workbench.tasks.grammar import CENTURIES, YEARS, Lexicon, Sentence, joiner, render
from workbench.tasks.induction import LONGEST_GAP, LONGEST_LIST

FEW_YEARS, MOST_SHOWN = 20, 12


class WordVocabulary:
    """Sentences as word-level tokens: one word, one token."""

    def __init__(self, encode: TextEncoder) -> None:
        self.encode, self.ids = encode, encode.tokenizer.get_vocab()

    def lexicon(self, task: str, needs: Sequence[str]) -> tuple[Lexicon, str]:
        """The words, and those left out."""
        return Lexicon(), ""

    def length(self, sentence: Sentence) -> int:
        """Tokens of a prompt, without BOS."""
        return len(sentence.words)

    def prompts(self, sentences: Sequence[Sentence]) -> Prompts:
        """The prompts with their named positions."""
        # Word indices become token positions: a word is a token, and BOS comes first.
        offset = int(self.encode.bos)
        rows = [self.encode.prompt(" ".join(s.words), where=f"Prompt {i}") for i, s in enumerate(sentences)]
        positions = [_shifted(sentence.positions, offset) for sentence in sentences]
        return self.encode.prompts(rows, positions=positions)

    def words(self, sentence: Sentence, words: Sequence[str]) -> list[list[int]]:
        """The tokens of words that follow a prompt."""
        return [[self.ids[word]] for word in words]


class SubwordVocabulary:
    """Sentences as ordinary text for a subword vocabulary."""

    def __init__(self, encode: TextEncoder) -> None:
        self.encode = encode

    def lexicon(self, task: str, needs: Sequence[str]) -> tuple[Lexicon, str]:
        """The words that a task may use, and those left out.

        Args:
            needs: which of them matter (keys of `CHOICES`).

        Raises:
            UnsuitableTask: too few are left.
        """
        chosen: dict[str, Any] = {}
        for need in needs:
            chosen |= CHOICES[need](self)
        lexicon, whole = Lexicon(**chosen, is_english=True), Lexicon()
        dropped: list[str] = []
        for field in chosen:
            dropped += _missing(getattr(whole, field), getattr(lexicon, field))
        lacking = ", ".join(field for field, words in chosen.items() if not words)
        if lacking:
            shown = " ".join(dropped[:MOST_SHOWN])
            if len(dropped) > MOST_SHOWN:
                shown += f" and {len(dropped) - MOST_SHOWN} more"
            raise UnsuitableTask(
                f"The task {task!r} needs words of equal token count ({lacking}), "
                f"and this vocabulary has too few (dropped {shown}). "
                "Bring your own prompts with PromptPairs.from_csv."
            )
        return lexicon, " ".join(dropped)

    def length(self, sentence: Sentence) -> int:
        """Tokens of a prompt, without BOS."""
        return len(self.encode.plain(render(sentence.words)[0]))

    def prompts(self, sentences: Sequence[Sentence]) -> Prompts:
        """The prompts; a word's named position is that of its last token."""
        rows, positions = [], []
        for i, sentence in enumerate(sentences):
            text, spans = render(sentence.words)
            tokens = self.encode.spans(text)
            offset = int(self.encode.bos)
            # The last token of a word is the last that begins before the word ends. Tokens are in order,
            # so that it is the one before the first that begins at or after that end.
            starts = [start for start, _ in tokens]
            ends = [bisect_left(starts, end) - 1 for _, end in spans]
            rows.append(self.encode.prompt(text, where=f"Prompt {i}"))
            positions.append({name: ends[at] + offset for name, at in sentence.positions.items()})
        return self.encode.prompts(rows, positions=positions)

    def words(self, sentence: Sentence, words: Sequence[str]) -> list[list[int]]:
        """The tokens of words that follow a prompt."""
        text, last = render(sentence.words)[0], sentence.words[-1]
        tokens = []
        for word in words:
            where = f"Answer {word!r}"
            tokens.append(self.encode.continuation(text, word, joiner=joiner(last, word), where=where))
        return tokens

    def size(self, word: str) -> int:
        """Tokens of a word within a sentence."""
        return len(self.encode.continuation("and", word, joiner=" ", where=f"Word {word!r}"))

    def names(self) -> dict[str, Any]:
        """Names that are answers: all of one token count."""
        whole = Lexicon()
        kept = self._alike(whole.names, least=4)
        return {"female": _within(whole.female, kept), "male": _within(whole.male, kept)}

    def people(self) -> dict[str, Any]:
        """Names with one of the other gender of the same token count."""
        whole = Lexicon()
        shared = set(map(self.size, whole.female)) & set(map(self.size, whole.male))
        # A prompt with "Anna" and one with "Tom" must be equally long, or positions mean different tokens.
        kept = [name for name in whole.names if self.size(name) in shared]
        return {"female": _within(whole.female, kept), "male": _within(whole.male, kept)}

    def pronouns(self) -> dict[str, Any]:
        """Pairs of pronouns, of one token each where there is such a pair."""
        she, he, she_first, he_first = Lexicon().pronouns
        pairs = self._short([(she, he), (she_first, he_first)])
        return {"pronouns": tuple(chain.from_iterable(pairs))}

    def items(self) -> dict[str, Any]:
        """Words of one token count, as many as the longest list holds and two that replace others."""
        return {"items": self._alike(Lexicon().items, least=LONGEST_LIST + LONGEST_GAP + 2)}

    def nouns(self) -> dict[str, Any]:
        """A singular with a plural of the same token count: its own, or that of another noun without one."""
        whole = Lexicon().nouns
        own = [pair for pair in whole if self.size(pair[0]) == self.size(pair[1])]
        # "dogs" may be two tokens where "dog" is one: a plural of one token takes its place.
        others = [pair for pair in whole if pair not in own]
        plurals = [plural for _, plural in others]
        for singular, _ in others:
            sizes = [self.size(plural) for plural in plurals]
            if self.size(singular) in sizes:
                # Taken out, so that no two nouns share a plural.
                own.append((singular, plurals.pop(sizes.index(self.size(singular)))))
        if len(own) < 4:
            own = []
        return {"nouns": tuple(own)}

    def verbs(self) -> dict[str, Any]:
        """Singular and plural, of one token each where there is such a pair."""
        return {"verbs": tuple(self._short(Lexicon().verbs))}

    def capitals(self) -> dict[str, Any]:
        """Countries whose capitals have one token count."""
        # A pair may have countries of any token count, as long as they are equally long.
        whole = Lexicon().capitals
        kept = self._alike([capital for _, capital in whole], least=4)
        return {"capitals": tuple(pair for pair in whole if pair[1] in kept)}

    def years(self) -> dict[str, Any]:
        """Years that split after their century, all of one token count."""
        sizes = {(century, year): self._year(century, year) for century, year in product(CENTURIES, YEARS)}
        # Few tokens first: the first token count for which some century keeps enough years is taken.
        for size in sorted(set(sizes.values()) - {0}):
            kept = {}
            for century in CENTURIES:
                years = tuple(year for year in YEARS if sizes[century, year] == size)
                # 01 is the year of every corrupt prompt, so that a century without it is left out.
                if "01" in years and len(years) >= FEW_YEARS:
                    kept[century] = years
            if kept:
                return {"years": kept}
        return {"years": {}}

    def _year(self, century: str, year: str) -> int:
        """Tokens of a year after its century; 0 where the two are not apart."""
        # "1732" may be one token, or split as "173" "2": then no token stands for the two last digits.
        before = self.encode.plain(f"the year {century}")
        together = self.encode.plain(f"the year {century}{year}")
        if together[: len(before)] != before:
            return 0
        return len(together) - len(before)

    def _short(self, pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """The pairs of one token each; all of them if there are none."""
        listed = list(pairs)
        return [pair for pair in listed if self.size(pair[0]) == self.size(pair[1]) == 1] or listed

    def _alike(self, words: Sequence[str], *, least: int) -> tuple[str, ...]:
        """The words of one token if there are `least`, else those of the commonest token count, or none."""
        sizes = {word: self.size(word) for word in words}
        counts = Counter(sizes.values())
        size = 1
        if counts[1] < least:
            # Of counts that are equally common, the smaller: answers of few tokens are simpler to measure.
            size = max(counts, key=lambda n: (counts[n], -n))
        if counts[size] < least:
            return ()
        return tuple(word for word in words if sizes[word] == size)


_CHOICES = (
    SubwordVocabulary.names,
    SubwordVocabulary.people,
    SubwordVocabulary.pronouns,
    SubwordVocabulary.items,
    SubwordVocabulary.nouns,
    SubwordVocabulary.verbs,
    SubwordVocabulary.capitals,
    SubwordVocabulary.years,
)
CHOICES: Mapping[str, Callable[[SubwordVocabulary], dict[str, Any]]] = {
    choice.__name__: choice for choice in _CHOICES
}


def _shifted(positions: Mapping[str, int], offset: int) -> dict[str, int]:
    """Word indices as token positions after `offset` tokens."""
    return {name: at + offset for name, at in positions.items()}


def _within(words: Sequence[str], kept: Iterable[str]) -> tuple[str, ...]:
    return tuple(filter(set(kept).__contains__, words))


def _missing(whole: Any, kept: Any) -> list[str]:
    """The words of a field of the lexicon that were left out."""
    # Each once, in the order of the lexicon: the text goes into the provenance of the pairs.
    present = set(_listed(kept))
    return [word for word in dict.fromkeys(_listed(whole)) if word not in present]


def _listed(words: Any) -> list[str]:
    listed: list[str] = []
    if isinstance(words, Mapping):
        for century, years in words.items():
            listed += [century + year for year in years]
        return listed
    for word in words:
        if isinstance(word, str):
            listed.append(word)
        else:
            # A noun is a pair of singular and plural, and either word may be left out.
            listed += word
    return listed
