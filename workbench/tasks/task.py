"""The tasks there are: `TASKS`. How one becomes prompt pairs is in `registry`.

Kept apart from it, so that a list of tasks needs no model and no tensor library.
"""

from dataclasses import dataclass
from types import ModuleType

from workbench.errors import UnknownName
from workbench.tasks import agreement, binding, capitals, greater_than, induction, ioi, pronoun


@dataclass(frozen=True)
class Task:
    """A behaviour.

    Attributes:
        module: draws its sentences.
        metric: the one that suits it where answers are one token.
        needs: the words that must suit another vocabulary (keys of `vocabularies.CHOICES`); empty where only
            that of `tiny` will do.
        by_first_token: whether, where answers are several tokens, only their first is asked for, in sentences
            where no token begins right and wrong answers alike.
        measured: the variants that `measure` scores a model on.
        bar: the score that `tiny` must reach.
    """

    name: str
    module: ModuleType
    metric: str = "logit_diff"
    needs: tuple[str, ...] = ()
    by_first_token: bool = False
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
    def counterfactuals(self) -> tuple[str, ...]:
        """The corruptions that the same clean prompts have side by side, the default first."""
        return self.module.COUNTERFACTUALS

    @property
    def description(self) -> str:
        """The first paragraph of its module's docstring, in one line."""
        return " ".join((self.module.__doc__ or "").split("\n\n")[0].split())


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("ioi", ioi, needs=("names",), measured=("swap", "three")),
        Task("induction", induction, needs=("items",)),
        # A vocabulary that writes years digit by digit has 99 answers of two tokens: eleven runs of each prompt.
        Task(
            "greater_than", greater_than, metric="prob_diff", needs=("years",), by_first_token=True, bar=0.9
        ),
        Task("agreement", agreement, needs=("nouns", "verbs")),
        Task("pronoun", pronoun, needs=("people", "pronouns")),
        Task("capitals", capitals, needs=("capitals",)),
        Task("binding", binding),
    )
}


def find_task(name: str) -> Task:
    """The task of that name, or `UnknownName` with near matches."""
    if name not in TASKS:
        raise UnknownName("task", name, TASKS)
    return TASKS[name]
