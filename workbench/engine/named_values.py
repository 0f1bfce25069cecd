"""Values by name: one table from names, as commands, sweep specs and files spell them, to values.

The names are `NAMES`. `clean` and `corrupt` are the two runs of a pair; the run that is edited (`base`)
cannot be its own value. Without a name the value is the other run. `other` and `from_store` are older
spellings of it and stay readable.

    # Before a model is loaded:
    name = canonical_name(option, base="clean", choices=("corrupt", "zero", "mean"))
    value = make_value(name, base="clean", store_of=lambda side: capture(model, pairs.side(side)))
    # What keys of sweep jobs hold:
    spelling = key_name(name, base="clean")

A value that has to be fitted (`optimal`) is fitted above the engine: a caller that can fit it passes
`optimal=` to `make_value`, one that cannot leaves the name out of `choices`. This module runs no model.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from workbench.engine.values import Value, constant, from_store, mean, resample, scale, zero
from workbench.errors import EditError, UnknownName
from workbench.names import OTHER_SIDE, SIDES, other_side
from workbench.stores.store import ActivationStore


@dataclass(frozen=True)
class _Sources:
    """What the makers draw on.

    The store of a run by its side (captured only when asked for), a seed, a number, a fit.
    """

    base: str
    store_of: Callable[[str], ActivationStore]
    seed: int
    number: float
    optimal: Callable[[], Value] | None

    @property
    def base_store(self) -> ActivationStore:
        """The store of the run that is edited."""
        return self.store_of(self.base)

    @property
    def other_store(self) -> ActivationStore:
        """The store of the other run."""
        return self.store_of(other_side(self.base))

    def fitted(self) -> Value:
        """What the caller's fit returns."""
        # The engine cannot fit: a fit measures edited runs, and imports what stands above the engine.
        if self.optimal is None:
            raise EditError(
                "value='optimal' is a constant fitted to each site, which effects(..., value='optimal') and "
                "sweeps of effects do. Values that need no fit: " + ", ".join(WITHOUT_FIT) + "."
            )
        return self.optimal()


@dataclass(frozen=True)
class _NamedValue:
    """A row of the table.

    Attributes:
        make: what makes the value.
        covers_answers: `Value.covers_answers` of what `make` returns. Keys of jobs need it before there is a
            store to make the value of.
    """

    make: Callable[[_Sources], Value]
    covers_answers: bool = False


# Both sides share a maker: the base's own side never gets this far, so either name is the other run.
_TABLE: Mapping[str, _NamedValue] = {
    "clean": _NamedValue(lambda s: from_store(s.other_store)),
    "corrupt": _NamedValue(lambda s: from_store(s.other_store)),
    "zero": _NamedValue(lambda s: zero(), covers_answers=True),
    "mean": _NamedValue(lambda s: mean(s.base_store), covers_answers=True),
    "resample": _NamedValue(lambda s: resample(s.base_store, s.seed)),
    "optimal": _NamedValue(lambda s: s.fitted()),
    "constant:X": _NamedValue(lambda s: constant(s.number), covers_answers=True),
    "scale:X": _NamedValue(lambda s: scale(s.number), covers_answers=True),
}
NAMES = tuple(_TABLE)
WITHOUT_FIT = tuple(name for name in NAMES if name != "optimal")
"""The names of values that need no fit."""


def canonical_name(
    name: str | None, *, base: str = "clean", choices: Sequence[str] = NAMES, argument: str = "value"
) -> str:
    """The one spelling of a value's name; `None`, `other`, `from_store` become the side that is not the base.

    Numbers keep their spelling (`constant:2` is not made `constant:2.0`), because keys of sweep jobs hold it.

    Args:
        base: "clean" or "corrupt": the run that is edited.
        choices: those of `NAMES` that the caller can use. Both sides may be listed; the base's own is
            refused.
        argument: what the caller calls the name, for the message.

    Raises:
        UnknownName: it is not among the choices.
        EditError: it is the run that is edited, or the number of `constant:X` or `scale:X` is not a finite
            number.

    >>> canonical_name("from_store"), canonical_name(None, base="corrupt"), canonical_name("scale:0.5")
    ('corrupt', 'clean', 'scale:0.5')
    """
    other = other_side(base)
    # One spelling from here on, so that messages, keys and tables cannot call one value two names.
    if name is None or name in OTHER_SIDE:
        name = other
    if name == base:
        rest = [choice for choice in choices if choice not in SIDES]
        raise EditError(
            f"{argument}={name!r} is the run that is edited (base={base!r}), "
            f"so writing it would change nothing. Choices: {', '.join([other, *rest])}."
        )
    if not isinstance(name, str) or _entry(name) not in choices:
        raise UnknownName(argument, name, [choice for choice in choices if choice != base])
    if ":" in name:
        _number(name, argument)  # refused now, not after the model is loaded
    return name


def key_name(name: str | None, *, base: str = "clean") -> str:
    """The name as keys of sweep jobs spell it: `other` for the other run, as in folders of earlier versions.

    >>> key_name("corrupt"), key_name("zero")
    ('other', 'zero')
    """
    canonical = canonical_name(name, base=base)
    # Keys name jobs that are already done: another spelling would run finished sweeps again.
    return "other" if canonical in SIDES else canonical


def covers_answers(name: str | None, *, base: str = "clean") -> bool:
    """Whether the value of that name is written at the tokens of answers too."""
    return _TABLE[_entry(canonical_name(name, base=base))].covers_answers


def make_value(
    name: str | None,
    *,
    base: str = "clean",
    store_of: Callable[[str], ActivationStore],
    seed: int = 0,
    optimal: Callable[[], Value] | None = None,
) -> Value:
    """The value that a name means for one set of pairs.

    Args:
        name: any spelling that `canonical_name` reads.
        base: the run that is edited: `mean` and `resample` are over its own activations.
        store_of: side → the activations of that run. It is called only for the values that need them, and
            only for the side that is read.
        seed: chooses the donors of `resample`.
        optimal: returns the fitted value; needed for that name alone.

    Raises:
        UnknownName: no such name.
        EditError: the base's own run, a number that is not finite, or `optimal` without a fit.
    """
    canonical = canonical_name(name, base=base)  # again, because a caller may not have asked before
    number = math.nan  # for the names without a number: their makers do not read it
    if ":" in canonical:
        number = _number(canonical, "value")
    return _TABLE[_entry(canonical)].make(_Sources(base, store_of, seed, number, optimal))


def _entry(name: str) -> str:
    """The row of the table that a name belongs to: that of `scale:X` for `scale:0.5`."""
    stem, colon, _ = name.partition(":")
    if colon:
        return f"{stem}:X"
    return stem


def _number(name: str, argument: str) -> float:
    """The number after the colon."""
    stem, _, digits = name.partition(":")
    try:
        number = float(digits)
    except ValueError:
        number = math.nan  # refused below, together with "inf" and "nan", which `float` reads
    if not math.isfinite(number):
        raise EditError(f"{argument}={name!r}: after the colon comes a finite number, as in {stem}:0.5.")
    return number
