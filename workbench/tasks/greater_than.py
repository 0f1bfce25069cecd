"""Greater-than: "The war lasted from the year 17 32 to the year 17" -> any of 33..99
(Hanna et al. 2305.00586).

Read `draw`; `training_sentence` adds sentences that count on.
"""

import random
from dataclasses import replace
from typing import Literal

from workbench.tasks.grammar import DURATION_VERBS, EVENTS, YEARS, Lexicon, Sentence, fill, selected

TEMPLATE = "The {event} {verb} from the year {CENTURY} {YEAR} to the year {century}"
Variant = Literal["year01", "earlier"]
VARIANTS: tuple[Variant, ...] = ("year01", "earlier")
COUNTERFACTUALS = VARIANTS


def draw(rng: random.Random, lexicon: Lexicon, variant: Variant = "year01") -> tuple[Sentence, Sentence]:
    """The first year is 02..98; corrupt: it is 01, so nearly every year may follow.

    `earlier`: it is another year, at most half as late in its century (12 for 34; 01 where there is none).
    Named positions: `CENTURY`, `YEAR` (the two digits to exceed), `END`. The corrupt side keeps the clean
    answers.
    """
    clean = _sentence(rng, lexicon, rng.randint(2, 98))
    # Drawn again where there are no answers: the lexicon lacks that year, or has none after it.
    while not clean.answers:
        clean = _sentence(rng, lexicon, rng.randint(2, 98))
    if variant == "earlier":
        return clean, corrupted(rng, lexicon, clean)
    return clean, _with_year(clean, YEARS[1])


def corrupted(rng: random.Random, lexicon: Lexicon, clean: Sentence) -> Sentence:
    """A clean sentence with the corruption `earlier`."""
    year, century = (clean.words[clean.positions[name]] for name in ("YEAR", "CENTURY"))
    earlier = [other for other in lexicon.years[century] if 1 < int(other) <= int(year) // 2]
    return _with_year(clean, rng.choice(earlier or [YEARS[1]]))


def _with_year(clean: Sentence, year: str) -> Sentence:
    """The sentence with another first year."""
    words = list(clean.words)
    words[clean.positions["YEAR"]] = year
    # The clean answers stay, so that the metric measures the same years on both sides.
    return replace(clean, words=tuple(words))


def training_sentence(rng: random.Random, lexicon: Lexicon) -> Sentence:
    """Half of the sentences go on with ever later years: that teaches the order of the numbers faster."""
    clean = _sentence(rng, lexicon, rng.randint(1, 98))
    century = clean.words[-1]
    year = int(rng.choice(clean.answers))
    rest = [YEARS[year]]
    while rng.random() < 0.5 and year < 99:
        year = rng.randint(year + 1, 99)
        rest += [",", "then", "to", "the", "year", century, YEARS[year]]
    return replace(clean, rest=(*rest, "."))


def _sentence(rng: random.Random, lexicon: Lexicon, year: int) -> Sentence:
    """A sentence of that first year, without answers where the lexicon lacks the year."""
    century = rng.choice(tuple(lexicon.years))
    slots = {"event": rng.choice(EVENTS), "verb": rng.choice(DURATION_VERBS)}
    words, positions = fill(TEMPLATE, **slots, CENTURY=century, YEAR=YEARS[year], century=century)
    named = selected(positions, "CENTURY", "YEAR", "END")
    # A year that the vocabulary splits otherwise can be compared with none.
    years = lexicon.years[century]
    if YEARS[year] not in years:
        years = ()
    later = tuple(later for later in years if int(later) > year)
    # Only later years are right, so that the first year itself is a wrong answer too.
    others = tuple(other for other in years if int(other) <= year)
    return Sentence(words, later, others, (*slots.values(), century), named)
