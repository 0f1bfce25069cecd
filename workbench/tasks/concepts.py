"""What the tasks' prompts are about: concepts to probe for, without labelling by hand.

Read `values_of`. A concept is decided by the word at a named position, as the number of the subject.
"""

from collections.abc import Callable
from dataclasses import dataclass

from workbench.errors import PromptError, UnknownName
from workbench.prompts.prompts import Prompts
from workbench.tasks.grammar import FEMALE, MALE, NOUNS, plural

_PLURALS = set(map(plural, NOUNS))


def _number(word: str) -> str | None:
    if word in _PLURALS:
        return "plural"
    if word in NOUNS:
        return "singular"
    return None


def _gender(word: str) -> str | None:
    if word in FEMALE:
        return "female"
    if word in MALE:
        return "male"
    return None


@dataclass(frozen=True)
class WordConcept:
    """A concept that the word at a named position decides: `of` gives its class, None if it has none."""

    position: str
    of: Callable[[str], str | None]
    task: str


CONCEPTS = {
    "number": WordConcept("SUBJECT", _number, "agreement"),
    "gender": WordConcept("NAME", _gender, "pronoun"),
    "indirect-object": WordConcept("IO", str, "ioi"),
    "country": WordConcept("COUNTRY", str, "capitals"),
}


def values_of(prompts: Prompts, name: str) -> list[str]:
    """A concept's class in every prompt: one of `CONCEPTS`, or a named position, whose token is the class.

    Raises:
        UnknownName: neither a concept nor a named position of these prompts.
        PromptError: a prompt lacks the position, or has a word there that the concept does not know.
    """
    if name not in CONCEPTS and name not in prompts.positions:
        raise UnknownName("concept", name, [*CONCEPTS, *prompts.positions])
    concept = CONCEPTS.get(name, WordConcept(name, str, ""))
    if concept.position not in prompts.positions:
        raise PromptError(
            f"The concept {name!r} is read at {concept.position}, which these prompts do not name; they name "
            f"{', '.join(prompts.positions)}. Prompts of the task {concept.task!r} do."
        )
    values = []
    for i, at in enumerate(prompts.at(concept.position).tolist()):
        # Tokens of subword vocabularies carry their leading space.
        word = prompts.strings[i][at].strip() if at >= 0 else None
        label = None if word is None else concept.of(word)
        if label is None:
            raise PromptError(
                f"Prompt {i} has {word!r} at {concept.position}, of which the concept {name!r} knows nothing."
            )
        values.append(label)
    return values
