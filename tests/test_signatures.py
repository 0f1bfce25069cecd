"""What `?` shows of a public function is short, and the names that editors complete are those that exist."""

import inspect
from typing import get_args

import pytest
import xarray as xr

import workbench as wb
from workbench import names
from workbench.discovery.methods import METHODS
from workbench.engine.named_values import NAMES
from workbench.evaluation.evaluate import CHECKS, Check
from workbench.sites import KINDS, WORDS

LONG = {"fit_probes": 720}
"""Functions of many arguments; all others stay below 500 characters."""


def public_callables():
    for name in wb.__all__:
        thing = getattr(wb, name)
        if callable(thing) and not (inspect.isclass(thing) and issubclass(thing, Exception | Warning)):
            yield name, thing
            for method in vars(thing) if inspect.isclass(thing) else ():
                if not method.startswith("_") and callable(getattr(thing, method)):
                    yield f"{name}.{method}", getattr(thing, method)


def test_signatures_are_short_and_have_no_module_paths():
    long, paths = {}, {}
    for name, function in public_callables():
        text = str(inspect.signature(function))
        if len(text) > LONG.get(name, 500):
            long[name] = len(text)
        if inspect.isfunction(function) and name in wb.__all__ and "workbench." in text:
            paths[name] = text
    assert long == paths == {}


def test_a_short_signature_changes_no_rule():
    with pytest.raises(wb.WorkbenchError, match="does not fit; a finite number is needed"):
        wb.summary(xr.DataArray([1.0], dims="example"), level="high")
    parameters = inspect.signature(wb.effects).parameters
    assert repr(parameters["base"].annotation) == "'clean' | 'corrupt'"
    assert repr(parameters["value"].annotation) == "Value | str"


@pytest.mark.parametrize(
    ("literal", "table"),
    [
        (names.KindName, KINDS), (names.ScoreMethod, names.SCORE_METHODS), (names.MetricName, names.METRICS),
        (names.ValueName, NAMES), (names.SearchMethod, METHODS), (Check, CHECKS),
    ],
)  # fmt: skip
def test_the_names_that_editors_complete_are_those_that_exist(literal, table):
    completed = [name for choice in get_args(literal) for name in get_args(choice)]
    assert sorted(completed) == sorted(table)
    assert set(WORDS.values()) <= set(KINDS)
