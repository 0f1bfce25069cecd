"""The fields of a sweep as options of the command line: `FIELDS`, and `spec_of`, which makes the spec."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from workbench.cli.options import names

if TYPE_CHECKING:
    from workbench.sweeps.spec import SweepSpec


def _together(text: str) -> list[Any]:
    """A list of sites; those joined by + are edited together."""
    sites: list[Any] = []
    for name in names(text):
        if "+" in name:
            sites.append(name.split("+"))
        else:
            sites.append(name)
    return sites


def _integers(text: str) -> list[int]:
    return [int(number) for number in names(text)]


def _decimals(text: str) -> list[float]:
    return [float(number) for number in names(text)]


FIELDS: dict[str, tuple[Callable[[str], Any], str]] = {
    "preset": (
        str,
        "head-ablation, layer-ablation, neuron-ablation, cumulative-ablation, pairwise-ablation, "
        "position-sweep, ...",
    ),
    "study": (str, "effects, pairs, cumulative, paths, circuits, methods, stability or steering."),
    "models": (names, "Embedded names, local folders or Hub names."),
    "checkpoints": (_integers, "Training steps of an embedded model."),
    "tasks": (names, "Tasks (workbench ls tasks) or .csv files."),
    "split": (str, "train or heldout prompts."),
    "sites": (
        _together,
        "z is every head, resid_pre@each each position, z[1.2], z[1.2]+z[2.0] both together.",
    ),
    "senders": (names, "Of paths."),
    "receivers": (names, "Of paths."),
    "circuits": (names, "Circuit files."),
    "methods": (names, "Methods that find circuits (workbench ls methods)."),
    "n-edges": (_integers, "Sizes of circuits."),
    "strengths": (_decimals, "Of steering."),
    "values": (names, "corrupt (the other run), zero, mean, resample, optimal, constant:X, scale:X."),
    "metrics": (
        names,
        "By default the task's; MODULE:FUNCTION of a module that is installed or in this folder.",
    ),
    "seeds": (_integers, "Of prompts, and of resample."),
    "base": (str, "Which run is edited: clean or corrupt."),
}
"""How the text of an option becomes a field of the spec, and its help."""


def field_option(name: str) -> Any:
    """The option of a field."""
    read, help_text = FIELDS[name]
    if read is not str:
        help_text += " Several with commas."
    return typer.Option(f"--{name}", help=help_text)


def spec_of(path: Path | None, given: dict[str, Any]) -> "SweepSpec":
    """The spec in a file with options in place of its fields, or one made of options alone.

    Args:
        given: name of an option → its text; None where it was left out.

    Raises:
        SweepError: neither a file nor an option was given, or a text is not what its option needs.
    """
    # Imported here, since `--help` must not wait for pydantic and torch.
    from workbench.errors import SweepError
    from workbench.sweeps.spec import read_spec

    fields = {}
    for name, text in given.items():
        if text is None:  # left out, so the field keeps what the file or the preset says
            continue
        try:
            fields[name.replace("-", "_")] = FIELDS[name][0](text) if name in FIELDS else text
        except ValueError as error:
            raise SweepError(
                f"--{name} {text!r}: {error}. Give numbers separated by commas, as in 1,2,3."
            ) from error
    if path is not None:
        return read_spec(path, **fields)
    if not fields:
        raise SweepError(
            "Which sweep? Give a SPEC.yaml, or --preset head-ablation --models tiny --tasks ioi."
        )
    return read_spec(fields)
