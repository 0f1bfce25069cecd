"""The small language that `tiny` was trained on: its words, its sentences, and which of them are held out.

Read `Sentence`, `Lexicon` and `is_reserved`. Every behaviour is a file beside this one whose `draw` returns a
clean and a corrupt `Sentence`; training text and task prompts come from the same function, so they cannot
drift apart. A sentence carries a `key`, the combination of words that decides its split: keys whose hash
falls in the reserved share are never used for training text. Sentences are lists of words ("park", ",",
"'s"); `render` turns them into the text of an ordinary language model.
"""

import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeVar

# Share of each behaviour's word combinations: it leaves every behaviour at least 600 held-out prompts.
RESERVED_SHARE = 0.15
Word = TypeVar("Word")

FEMALE = tuple(
    "Anna Mary Alice Sara Emma Lucy Kate Julia Laura Nina "
    "Rosa Clara Helen Jane Grace Ella Amy Lily Eva Ruth".split()
)
MALE = tuple(
    "Tom John Paul Mark Peter James Adam Jack Luke David "
    "Simon Ben Max Oscar Henry Leo Sam Tim Carl Eric".split()
)
PLACES = tuple(
    "park store school garden beach library museum station market farm river kitchen office church".split()
)
OBJECTS = tuple(
    "ball key cup book hat pen box coat lamp ring "
    "drum kite bell spoon map flute basket ribbon bottle clock".split()
)
COLOURS = tuple("red blue green yellow black white brown pink gray purple golden silver".split())
ADJECTIVES = tuple("old new big small tall quiet strong clean happy tired".split())
NOUNS = tuple(
    "dog cat boy girl teacher doctor farmer horse bird king friend painter "
    "table door chair tree window car house ship lion tiger pilot guest".split()
)
VERBS = (("is", "are"), ("was", "were"))
PREPOSITIONS = tuple("near behind beside above below by".split())
EVENTS = tuple("war journey strike siege reign voyage drought study plan festival".split())
DURATION_VERBS = tuple("lasted went ran continued".split())
CENTURIES = tuple("11 12 13 14 15 16 17 18".split())
YEARS = tuple(f"{year:02d}" for year in range(100))
_CAPITALS = (
    "France/Paris Germany/Berlin Italy/Rome Spain/Madrid Japan/Tokyo China/Beijing Russia/Moscow "
    "Egypt/Cairo Greece/Athens Norway/Oslo Sweden/Stockholm Poland/Warsaw Austria/Vienna "
    "Hungary/Budapest Portugal/Lisbon Ireland/Dublin Cuba/Havana Peru/Lima Chile/Santiago Canada/Ottawa "
    "Kenya/Nairobi Finland/Helsinki Denmark/Copenhagen Turkey/Ankara"
)
"""Country/capital, the answers of the facts task."""
CAPITALS = {pair.partition("/")[0]: pair.partition("/")[2] for pair in _CAPITALS.split()}
_PUNCTUATION = (",", ".", "'s")
_TEMPLATE_WORDS = tuple(
    "When Then While After Later The Yesterday One In and went to the gave handed sent showed a were "
    "at left met had talk long of which is called lives capital flew where was born knows that "
    "visited asked about so said its are says because took day came lost found she he She He has from "
    "year then saw with in".split()
)
BOS, UNKNOWN = "<bos>", "<unk>"


def plural(noun: str) -> str:
    """The plural of one of `NOUNS`, all of which take -s."""
    return noun + "s"


def vocabulary() -> tuple[str, ...]:
    """Every word of the language in the order of its token id; `<bos>` is 0 and `<unk>` is 1."""
    words: dict[str, None] = {BOS: None, UNKNOWN: None}
    for group in (
        *(_PUNCTUATION, _TEMPLATE_WORDS, FEMALE, MALE, PLACES, OBJECTS, COLOURS, ADJECTIVES, NOUNS),
        *(tuple(map(plural, NOUNS)), PREPOSITIONS, EVENTS, DURATION_VERBS, YEARS),
        *(tuple(CAPITALS), tuple(CAPITALS.values())),
    ):
        words.update(dict.fromkeys(group))
    return tuple(words)


def content_words() -> tuple[str, ...]:
    """The words of random lists (induction): names, places, things, colours, adjectives, nouns, countries."""
    groups = (
        FEMALE,
        MALE,
        PLACES,
        OBJECTS,
        COLOURS,
        ADJECTIVES,
        NOUNS,
        tuple(map(plural, NOUNS)),
        tuple(CAPITALS),
    )
    # A dict keeps the first of equal words and their order: token ids depend on it.
    return tuple(dict.fromkeys(chain.from_iterable(groups)))


@dataclass(frozen=True)
class Lexicon:
    """The words that a task may use with a model: all for `tiny`, those of suitable token counts for others.

    Attributes:
        items: what random lists are made of.
        nouns: (singular, plural) that stand in for each other.
        verbs: (singular, plural).
        years: century → the two-digit years that may follow it, "01" among them.
        capitals: (country, capital).
        is_english: whether the model learned from ordinary text. Tasks then use sentences after which hardly
            anything but the answers can follow; `tiny` was trained on the others.
    """

    female: tuple[str, ...] = FEMALE
    male: tuple[str, ...] = MALE
    places: tuple[str, ...] = PLACES
    objects: tuple[str, ...] = OBJECTS
    pronouns: tuple[str, ...] = ("she", "he", "She", "He")
    items: tuple[str, ...] = field(default_factory=content_words)
    nouns: tuple[tuple[str, str], ...] = tuple((noun, plural(noun)) for noun in NOUNS)
    verbs: tuple[tuple[str, str], ...] = VERBS
    years: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict.fromkeys(CENTURIES, YEARS))
    capitals: tuple[tuple[str, str], ...] = tuple(CAPITALS.items())
    is_english: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """First names, female before male."""
        return self.female + self.male


@dataclass(frozen=True)
class Sentence:
    """A prompt of the language with its right and wrong next words.

    `rest` is what follows the prompt in training text (it begins with a right answer); `positions` are word
    indices.
    """

    words: tuple[str, ...]
    answers: tuple[str, ...]
    wrong: tuple[str, ...]
    key: tuple[str, ...]
    positions: Mapping[str, int] = field(default_factory=dict)
    rest: tuple[str, ...] = ()


def fill(template: str, **slots: str) -> tuple[tuple[str, ...], dict[str, int]]:
    """The words of a template with its `{slots}` filled, and the word index of each slot and of `END`.

    >>> fill("{S} gave a {object}", S="Tom", object="ball")
    (('Tom', 'gave', 'a', 'ball'), {'S': 0, 'object': 3, 'END': 3})
    """
    positions = {word[1:-1]: i for i, word in enumerate(template.split()) if word.startswith("{")}
    words = tuple(template.format(**slots).split())
    return words, positions | {"END": len(words) - 1}


def selected(positions: Mapping[str, int], *names: str) -> dict[str, int]:
    """The positions of these names: those that a task calls its own, of all slots of a template."""
    return {name: positions[name] for name in names}


def is_reserved(behaviour: str, key: Sequence[str]) -> bool:
    """Whether the word combination is kept out of training text: a fixed hash, the same on every machine."""
    # The separator cannot occur in a word, so that different keys are different texts.
    digest = zlib.crc32("\x1f".join((behaviour, *key)).encode())
    return digest / 2**32 < RESERVED_SHARE


def choose_two(rng: random.Random, words: Sequence[Word]) -> tuple[Word, Word]:
    """Two different words in random order."""
    first, second = rng.sample(words, 2)
    return first, second


def joiner(before: str, word: str) -> str:
    """What stands between two words in ordinary spelling."""
    # A year is two words, its century and its last two digits, which are written together.
    is_attached = word in _PUNCTUATION or (before.isdigit() and word.isdigit())
    if is_attached:
        return ""
    return " "


def render(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """The text of a sentence in ordinary spelling, and the character span of each word.

    Two numbers in a row are one: "17" and "32" become "1732".

    >>> render(["Tom", "'s", "key", "is", "red", "."])[0]
    "Tom's key is red."
    """
    text, spans = "", []
    for i, word in enumerate(words):
        # A span leaves out the space before the word: tokens of the word begin where the word does.
        if i > 0:
            text += joiner(words[i - 1], word)
        spans.append((len(text), len(text) + len(word)))
        text += word
    return text, spans
