"""`workbench probe`, `report` and `diff`: stores probed, and folders of runs shown again and compared."""

from pathlib import Path
from typing import Annotated

import typer

from workbench.cli.options import (
    Json,
    Out,
    Overwrite,
    command_line,
    in_bytes,
    output_folder,
    path_of,
    positions,
)
from workbench.cli.options import names as names_in
from workbench.cli.output import print_json, say

Page = Annotated[
    Path | None,
    typer.Option(
        parser=path_of, metavar="PATH", help="The page; by default in the run's folder, or in this one."
    ),
]


def probe_store(
    path: Annotated[
        str, typer.Argument(metavar="STORE", help="A store on disk (workbench store build), or its URL.")
    ],
    labels: Annotated[
        Path | None,
        typer.Option(
            help="A .csv or .jsonl file: prompt, pos (or start, end), and a column for each concept."
        ),
    ] = None,
    concepts: Annotated[
        str | None,
        typer.Option(
            help="Instead: number, gender, indirect-object, country, or named positions, whose token is the "
            "class."
        ),
    ] = None,
    at: Annotated[
        str | None, typer.Option(help="Where --concepts are read: END or SUBJECT,END; each by itself.")
    ] = None,
    sites: Annotated[
        str | None, typer.Option(help="Kinds with commas; by default resid_post and mlp_post.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Layers with commas; by default all.")] = None,
    k: Annotated[str, typer.Option(help="Numbers of features, with commas.")] = "1,2,4,8,16",
    selectors: Annotated[
        str, typer.Option(help="welch, mean-difference, mutual-information, l1, forward, add-prune.")
    ] = "welch",
    controls: Annotated[
        str, typer.Option(help="shuffle, random-features, control-task, or none.")
    ] = "shuffle,random-features",
    draws: Annotated[int, typer.Option(help="Draws of each control.")] = 3,
    baselines: Annotated[
        str, typer.Option(help="Probes on all features: logistic, mass-mean, erased, or none.")
    ] = "none",
    code_length: Annotated[
        bool, typer.Option("--code-length", help="Online code length of the labels too, in bits.")
    ] = False,
    folds: Annotated[
        int | None, typer.Option(help="Judge by that many folds instead of one held-out part.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of splits, controls and intervals.")] = 0,
    budget: Annotated[int, typer.Option(help="Working memory in MiB.")] = 1024,
    out: Out = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Probe a store for concepts: probes.nc (by layer, with controls), neurons.nc and probes.html."""
    import workbench as wb
    from workbench.files import check_output
    from workbench.workflows.probe import FILES, labels_named, lines, numbers, probe, write

    def chosen(text: str | None) -> list[str] | None:
        """The names in an option; "none" is the empty list, an option that was left out None."""
        return None if text is None else [name for name in names_in(text) if name != "none"]

    pos = None if at is None else positions(at)
    settings = {
        "sites": chosen(sites),
        "layers": numbers(layers, "--layers"),
        "k": numbers(k, "--k"),
        "selectors": chosen(selectors),
        "controls": chosen(controls),
        "draws": draws,
        "baselines": chosen(baselines),
        "code_length": code_length,
        "folds": folds,
        "seed": seed,
        "budget": in_bytes(budget),
        "pos": pos,
        "progress": not as_json,
    }
    # An option that was left out is not passed on, so that the default of the function holds.
    given = {name: setting for name, setting in settings.items() if setting is not None}
    with output_folder(out, "probe") as folder:
        check_output(folder, FILES, overwrite=overwrite)
        store = wb.open_store(path)  # text and not a Path: it may be a URL
        concept_labels = labels_named(store, file=labels, concepts=chosen(concepts) or [], pos=pos)
        probed = probe(store, concept_labels, **given)
        files = write(probed, folder, command=command_line(), source=repr(store), overwrite=overwrite)
        if as_json:
            print_json({"lines": lines(probed), "files": list(files)})
            return
        for line in lines(probed):
            say(line)
        for written in files:
            say(written)


def report_run(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Page = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page.")] = False,
    as_json: Json = False,
) -> None:
    """Show a run's folder again as one page: its circuit, results and tables. Needs no model."""
    from workbench.workflows.runs import report_run as write

    _say_page(write(run, out or run / "run.html", command=command_line(), overwrite=overwrite), as_json)


def diff_runs(
    a: Annotated[Path, typer.Argument(help="Folder of a run.")],
    b: Annotated[Path, typer.Argument(help="Folder of another.")],
    out: Page = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page.")] = False,
    as_json: Json = False,
) -> None:
    """Show what differs between two runs as one page: circuits by edge, results by cell.

    No model is needed.
    """
    from workbench.workflows.runs import report_difference as write

    page = out or Path(f"{a.name}-{b.name}.html")
    _say_page(write(a, b, page, command=command_line(), overwrite=overwrite), as_json)


def _say_page(page: Path, as_json: bool) -> None:
    if as_json:
        print_json({"report": page})
    else:
        say(page)
