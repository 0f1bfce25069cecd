"""What callers pass to public functions, checked against the annotations before anything begins.

Read `checked`, the decorator of every public function. The annotations of a function are its table of rules:
they are read once, at the first call, and a check takes a few microseconds. Types only: whether a layer
exists or a share is below 1 is for the function to say. Nothing here knows what the arguments mean.
"""

import errno
import functools
import inspect
import math
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from workbench.errors import (
    ArgumentError,
    CircuitError,
    EditError,
    MetricError,
    ModelError,
    ProbeError,
    PromptError,
    SiteError,
    StoreError,
    WorkbenchError,
)
from workbench.text import listed, lone_surrogates, visible, with_article

Checked = TypeVar("Checked", bound=Callable[..., Any])

# What a parameter of a class is called in messages, and the error for anything else. By name, because this
# module stands before theirs.
CLASSES: dict[str, tuple[str, type[WorkbenchError]]] = {
    "Model": ("a model, as from wb.load_model(...)", ModelError),
    "Shape": ("a Shape", SiteError),
    "Grid": ("a grid, as from wb.grid('z', model)", SiteError),
    "Site": ("a Site", SiteError),
    "Edge": ("an Edge", SiteError),
    "Prompts": ("Prompts, as from wb.Prompts.of([[5, 7]])", PromptError),
    "PromptPairs": ("wb.PromptPairs, as from wb.load_task(...)", PromptError),
    "PairsInModel": ("PairsInModel, of which wb.Experiment.of(model, task) makes both", PromptError),
    "ActivationStore": ("a store, as from wb.capture(...)", StoreError),
    "HasPrompts": ("a store, as from wb.capture(...)", StoreError),
    "Value": ("a value such as wb.zero(), wb.mean(store) or wb.from_store(store)", EditError),
    "Metric": ("a Metric", MetricError),
    "Circuit": ("a Circuit, as from wb.find_circuit(...)", CircuitError),
    "Graph": ("a Graph, as from wb.Graph.of(model)", CircuitError),
    "Labels": ("wb.Labels, as from wb.Labels.per_prompt(...)", ProbeError),
    "Probes": ("Probes, as from wb.fit_probes(...)", ProbeError),
    "DataArray": ("a DataArray", ArgumentError),
    "Dataset": ("a Dataset", ArgumentError),
    "ndarray": ("a NumPy array", ArgumentError),
    "Tensor": ("a tensor", ArgumentError),
    "DataFrame": ("a pandas DataFrame", ArgumentError),
}

# The largest integer that torch and numpy hold.
LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Rule:
    """What fits a parameter.

    Attributes:
        fits: whether a value does.
        expected: what does, in words.
        error: for anything else.
        is_series: whether it is a list of something.
    """

    fits: Callable[[Any], bool]
    expected: str
    error: type[WorkbenchError] = ArgumentError
    is_series: bool = False


def checked(function: Checked) -> Checked:
    """The function, or the class whose constructor it is, refusing arguments that do not fit its annotations.

    The error names the argument, what was given and what is expected. Names that the function does not have
    are Python's own `TypeError`, as in any call.
    """
    if inspect.isclass(function):
        function.__init__ = _checking(function.__init__, function.__qualname__)
        return typing.cast(Checked, function)
    return typing.cast(Checked, _checking(function, function.__qualname__))


def _checking(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function with a check of its arguments in front; `name` is what messages call it."""
    table: list[tuple[dict[str, Rule | None], tuple[tuple[str, Rule | None], ...]]] = []
    # As variables of this function: `call` gets the globals of another module below.
    read, refuse = _rules, _refuse

    def call(*args: Any, **kwargs: Any) -> Any:
        if not table:
            # At the first call and not before: by then every module that an annotation names is imported.
            read_rules = read(function)
            table.append((read_rules, tuple(read_rules.items())))
        by_name, in_order = table[0]
        for (argument, rule), value in zip(in_order, args, strict=False):
            if rule is not None and not rule.fits(value):
                refuse(name, argument, value, rule)
        for argument, value in kwargs.items():
            rule = by_name.get(argument)
            if rule is not None and not rule.fits(value):
                refuse(name, argument, value, rule)
        return function(*args, **kwargs)

    # With the globals of the function's own module: doctest looks there whether it is to test a function.
    home = getattr(inspect.unwrap(function), "__globals__", call.__globals__)
    wrapper = types.FunctionType(call.__code__, home, function.__name__, None, call.__closure__)
    functools.update_wrapper(wrapper, function)
    if not _are_types_checked():
        wrapper.__signature__ = shortened(inspect.signature(function))  # pyright: ignore[reportFunctionMemberAccess]
    return wrapper


def _rules(function: Callable[..., Any]) -> dict[str, Rule | None]:
    """The rule of each parameter in order; None: anything fits."""
    whole = inspect.unwrap(function)
    hints = typing.get_type_hints(whole)
    rules: dict[str, Rule | None] = {}
    for name, parameter in inspect.signature(whole).parameters.items():
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            rules[name] = rule_of(hints[name]) if name in hints else None
    return rules


def _refuse(call: str, argument: str, value: Any, rule: Rule) -> None:
    if isinstance(value, str | Path) and (reason := _out_of_reach(str(value))):
        raise rule.error(f"{call}: {argument}={shown(str(value))} cannot be looked at: {reason}.")
    raise rule.error(f"{call}: {argument}={shown(value)} does not fit; {rule.expected} is needed.")


def called(
    name: str, function: Callable[..., Any], *given: Any, error: type[WorkbenchError] = ArgumentError
) -> Any:
    """What a function of the caller's own returns; where it fails, `error` says whose function it was."""
    try:
        return function(*given)
    except (WorkbenchError, MemoryError):
        raise
    except Exception as failure:
        # torch's own. Whoever chose how much to do at once catches it, and does less.
        if type(failure).__name__ == "OutOfMemoryError":
            raise
        raise error(f"{name} failed with {type(failure).__name__}: {failure}") from failure


def shown(value: Any) -> str:
    """A value in a message: short, on one line, and without running code of its class (a `__repr__`)."""
    kind = type(value)
    if kind is int and abs(value) > LARGEST:
        return "an integer of more than 64 bits"
    is_empty = kind in (list, tuple, dict) and not value
    if is_empty or kind in (bool, int, float, str, bytes, type(None)):
        text = visible(repr(value))
        return text if len(text) <= 60 else f"{text[:57]}..."
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if hasattr(value, "dtype") and isinstance(getattr(value, "shape", None), tuple):
        return f"{with_article(kind.__name__)} of {value.dtype} and shape {tuple(value.shape)}"
    return with_article(kind.__name__)


# ---- how `?` shows a signature

FEW = 4
"""Of a longer list of names a signature says only that it is text: the documentation below it lists them."""


class _Short:
    """An annotation that is written out short, when somebody looks at it."""

    def __init__(self, annotation: Any, default: Any = None) -> None:
        self.annotation, self.default = annotation, default

    def __repr__(self) -> str:
        text = short(self.annotation)
        # The default says it: `= None`.
        return text.removesuffix(" | None") if self.default is None else text


def _are_types_checked() -> bool:
    """Whether jaxtyping checks types at run time: it reads them from signatures, and needs them whole."""
    return any("jaxtyping" in type(finder).__module__ for finder in sys.meta_path)


def shortened(signature: inspect.Signature) -> inspect.Signature:
    """The signature as `?` and `help` show it: without module paths, and with long unions cut short.

    >>> def effects(sites: Sequence[Path | str] | None = None, base: Literal["clean", "corrupt"] | str = "clean"): ...
    >>> print(shortened(inspect.signature(effects)))
    (sites: Sequence = None, base: 'clean' | 'corrupt' = 'clean')
    """
    parameters = []
    for parameter in signature.parameters.values():
        if parameter.annotation is not parameter.empty:
            parameter = parameter.replace(annotation=_Short(parameter.annotation, parameter.default))
        parameters.append(parameter)
    returned = signature.return_annotation
    if returned is not signature.empty:
        returned = _Short(returned, signature.empty)
    return signature.replace(parameters=parameters, return_annotation=returned)


def short(annotation: Any, *, inside: bool = False) -> str:
    """An annotation in a few words.

    Args:
        inside: of what a container holds: unions are left out there.

    >>> short(Literal["clean", "corrupt"] | str), short(Sequence[Path | str] | None)
    ("'clean' | 'corrupt'", 'Sequence | None')
    """
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (None, type(None)):
        return "None"
    if hasattr(annotation, "dim_str"):
        return annotation.__name__
    if origin is typing.Annotated:
        return short(inner[0], inside=inside)
    if origin is Literal:
        return "str" if len(inner) > FEW and isinstance(inner[0], str) else " | ".join(map(repr, inner))
    if origin in (Union, types.UnionType):
        names = any(typing.get_origin(choice) is Literal for choice in inner)
        parts = [short(choice) for choice in inner if not (names and choice is str)]
        return " | ".join(dict.fromkeys(parts))
    # Of a function nothing more: what it is called with is for the documentation.
    if origin is not None and inner and origin.__name__ != "Callable" and not inside:
        held = [short(choice, inside=True) for choice in inner if choice is not ...]
        if not any(" | " in one for one in held):
            return f"{origin.__name__}[{', '.join(held)}]"
    if isinstance(annotation, str):
        return annotation
    return getattr(origin or annotation, "__name__", str(annotation))


# ---- annotations


def rule_of(annotation: Any, *, shallow: bool = False) -> Rule | None:
    """The rule of an annotation; None where anything fits.

    Args:
        shallow: leave unchecked what a container holds. Containers within containers are checked like that:
            the token ids of a corpus are millions of numbers, and are checked where they are read.
    """
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (Any, inspect.Parameter.empty, object):
        return None
    if isinstance(annotation, TypeVar):
        if annotation.__constraints__:
            return _either([rule_of(choice) for choice in annotation.__constraints__])
        return rule_of(annotation.__bound__) if annotation.__bound__ is not None else None
    if origin in (Union, types.UnionType):
        # `str | Path` is a path, however it is written: the rule of text would let a NUL pass.
        choices = [choice for choice in inner if choice is not str or Path not in inner]
        return _either([rule_of(choice, shallow=shallow) for choice in choices])
    if origin is Literal:
        # The type alone: the function itself says which names exist, and which is nearest.
        return _either([rule_of(kind) for kind in dict.fromkeys(map(type, inner))])
    if origin is typing.Annotated:
        return rule_of(inner[0], shallow=shallow)
    if annotation in _SIMPLE:
        return _SIMPLE[annotation]
    if hasattr(annotation, "dim_str"):
        return _array_rule(annotation)
    return _class_rule(origin or annotation, () if shallow else inner)


def _either(rules: Sequence[Rule | None]) -> Rule | None:
    """What fits any of several rules."""
    known = [rule for rule in rules if rule is not None]
    if len(known) < len(rules):
        return None
    if len(known) == 1:
        return known[0]
    tests = tuple(rule.fits for rule in known)
    words = list(dict.fromkeys(rule.expected for rule in known))
    expected = ", ".join(words[:-1]) + f" or {words[-1]}" if len(words) > 1 else words[0]
    errors = [rule.error for rule in known if rule.error is not ArgumentError]
    error = (errors or [ArgumentError])[0]
    is_series = all(rule.is_series for rule in known)
    return Rule(lambda value: any(fits(value) for fits in tests), expected, error, is_series)


def _is_whole(value: Any) -> bool:
    if type(value) is int:  # nearly always, and ten times as fast as asking for `Integral`
        return -LARGEST <= value <= LARGEST
    return isinstance(value, Integral) and not isinstance(value, bool) and abs(int(value)) <= LARGEST


def _is_number(value: Any) -> bool:
    if isinstance(value, Integral):
        # An integer beyond the largest float cannot be converted to one.
        return not isinstance(value, bool) and abs(int(value)) <= sys.float_info.max
    return isinstance(value, Real) and math.isfinite(value)


def _is_truth_value(value: Any) -> bool:
    # numpy's bool is no subclass of Python's, and is called bool_ before numpy 2.
    return isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not lone_surrogates(value)


def _is_path(value: Any) -> bool:
    if not isinstance(value, str | Path):
        return False
    text = str(value)
    try:
        # Names that are not UTF-8 are real files: their bytes are surrogates in Python, and these alone pass.
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return text != "" and "\0" not in text and _out_of_reach(text) is None


def _out_of_reach(path: str) -> str | None:
    """Why nobody can say what is at a path: a name too long for any file, or a folder of somebody else."""
    try:
        os.lstat(path)
    except OSError as error:
        # `Path.exists` raises these; URLs are for others to read.
        if error.errno in (errno.ENAMETOOLONG, errno.EACCES, errno.EIO) and "://" not in path:
            return error.strerror
    except ValueError:
        return None
    return None


_SIMPLE: dict[Any, Rule] = {
    None: Rule(lambda value: value is None, "None"),
    type(None): Rule(lambda value: value is None, "None"),
    int: Rule(_is_whole, "a whole number"),
    float: Rule(_is_number, "a finite number"),
    bool: Rule(_is_truth_value, "True or False"),
    str: Rule(_is_text, "text"),
    Path: Rule(_is_path, "a path"),
}


def _array_rule(annotation: Any) -> Rule:
    """The rule of a tensor with named axes, as jaxtyping writes it: its precision and its number of axes.

    Not by `isinstance`, which compares the sizes of axes by name and takes ten times as long: prompts are
    made for every batch that is run.
    """
    kind, axes = annotation.array_type, annotation.dim_str.split()
    n_axes = len(axes)
    if any(axis.startswith("*") or axis == "..." for axis in axes):
        n_axes = None
    dtypes = frozenset(annotation.dtypes) if isinstance(annotation.dtypes, list | tuple) else None

    def fits(value: Any) -> bool:
        if not isinstance(value, kind) or (n_axes is not None and value.ndim != n_axes):
            return False
        return dtypes is None or str(value.dtype).removeprefix("torch.") in dtypes

    words = "a tensor of integers" if annotation.__name__.startswith("Int") else "a tensor"
    return Rule(fits, f"{words} [{annotation.dim_str}]")


def _class_rule(kind: Any, inner: Sequence[Any]) -> Rule | None:
    """The rule of a class, or of a container with what it holds."""
    if not inspect.isclass(kind):
        return None
    if kind.__name__ == "Callable":
        return Rule(callable, "a function")
    # Classes of other libraries may be mappings too (an xarray Dataset is): they are taken as themselves.
    if kind.__module__ in ("builtins", "collections.abc"):
        if issubclass(kind, Mapping):
            return _mapping_rule(inner)
        if issubclass(kind, Iterable):
            return _series_rule(kind, inner)
    words, error = CLASSES.get(kind.__name__, (with_article(kind.__name__), ArgumentError))
    if kind.__name__ == "Model":
        return Rule(_is_model, words, error)
    if getattr(kind, "_is_protocol", False) and not getattr(kind, "_is_runtime_protocol", False):
        return None
    return Rule(lambda value: isinstance(value, kind), words, error)


def _is_model(value: Any) -> bool:
    # Not `isinstance` of the protocol: that evaluates the properties of the model, all its hooks among them.
    return not isinstance(value, type) and getattr(getattr(value, "cfg", None), "n_layers", None) is not None


def _mapping_rule(inner: Sequence[Any]) -> Rule:
    keys, values = [rule_of(part, shallow=True) for part in (inner or (Any, Any))]

    def fits(value: Any) -> bool:
        if not isinstance(value, Mapping):
            return False
        return _all_fit(keys, value.keys()) and _all_fit(values, value.values())

    if keys is None or values is None:
        return Rule(fits, "a mapping")
    expected = f"a mapping of which each key is {keys.expected} and each value is {values.expected}"
    # An edit that is not a value is an `EditError`, by itself or in a mapping.
    return Rule(fits, expected, values.error)


def _series_rule(kind: Any, inner: Sequence[Any]) -> Rule:
    """The rule of lists, tuples, sets and other iterables."""
    parts = [rule_of(part, shallow=True) for part in inner if part is not ...]
    # tuple[A, B] is a pair; tuple[A, ...] and list[A] have any number of one kind.
    is_fixed = kind is tuple and len(inner) > 0 and inner[-1] is not ...
    each = parts[0] if parts and not is_fixed else None

    def fits(value: Any) -> bool:
        # Text is a sequence too, but nobody means its letters.
        if isinstance(value, str | bytes) or not _is_series(list if is_fixed else kind, value):
            return False
        if isinstance(value, range):
            return each is None or each.fits(0)
        if is_fixed:
            return not hasattr(value, "ndim") and len(value) == len(parts) and all(map(_fits, parts, value))
        if hasattr(value, "ndim"):
            if value.ndim > 1:
                return each is None or each.is_series
            # As a list of numbers, because the elements of a tensor are tensors. Empty ones are refused:
            # functions write `if names`, which arrays without elements do not answer.
            return value.ndim == 1 and (each is None or (len(value) > 0 and _all_fit(each, value.tolist())))
        # An iterator gives its elements only once: they are left to the function.
        return isinstance(value, Iterator) or _all_fit(each, value)

    words = {tuple: "a tuple", frozenset: "a frozenset", set: "a set"}.get(kind, "a list")
    expected = words if each is None else f"{words} of which each is {each.expected}"
    if is_fixed:
        expected = f"{words} of {listed('anything' if part is None else part.expected for part in parts)}"
    return Rule(fits, expected, is_series=True)


def _is_series(kind: Any, value: Any) -> bool:
    """Whether a value can be read one element after the other, as a parameter of that kind is."""
    if kind in (tuple, frozenset, set):
        return isinstance(value, kind)
    if kind is Iterable or kind is Iterator:
        return isinstance(value, Iterable)
    # Sequences of other libraries (arrays, tensors, an Index of pandas) are not registered as such.
    return (
        isinstance(value, Iterable)
        and hasattr(value, "__len__")
        and hasattr(value, "__getitem__")
        and not isinstance(value, Mapping | type)
    )


def _fits(rule: Rule | None, value: Any) -> bool:
    return rule is None or rule.fits(value)


def _all_fit(rule: Rule | None, values: Iterable[Any]) -> bool:
    return rule is None or all(map(rule.fits, values))
