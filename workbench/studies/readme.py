"""A study as a folder: its page, made of what was measured; and `main`, the command of every `circuits/*/study.py`."""

import re
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer

from workbench.circuit.circuit import Circuit
from workbench.circuit.compare import compare
from workbench.circuit.published import reference_circuit
from workbench.errors import CircuitError, WorkbenchError
from workbench.models.load import load_model, model_name, one_fingerprint
from workbench.files import check_output, replaced
from workbench.render.circuit.export import export
from workbench.render.circuit.svg import CircuitView
from workbench.render.circuit.view import visible
from workbench.studies.study import Bench, Number, Prediction, Study, evidence, tried

_SCORES = ("faithfulness", "complement", "random circuits", "other heads", "stability")
FILES = ("circuit.json", "README.md", "circuit.svg")
_ROW = re.compile(r"^\| ([^|]+?) \| (-?\d+\.\d+) \[(-?\d+\.\d+), (-?\d+\.\d+)\] \|", re.MULTILINE)
_INTERVAL = re.compile(r"(-?\d+\.\d+) \[(-?\d+\.\d+), (-?\d+\.\d+)\]")
_DECIMAL = re.compile(r"(?<![\w.-])-?\d+\.\d+")
_VERDICT = re.compile(r"\| (holds|\*\*fails\*\*) \|")


def page(bench: Bench, command: str) -> str:
    """The README, made of what is measured here."""
    study, circuit, name = bench.study, bench.circuit, _in_code(model_name(bench.model))
    shown, controls, lost = evidence(bench)
    results, why = tried(bench)
    held = sum(each.holds(number.mean) for each, number in results)
    faithful, by_chance, elsewhere = shown[3], controls[0], controls[2]
    unsure = "" if shown[0].above(shown[1]) else f" **`{name}` does not surely do this**: see what is not explained."
    lost += [f"Why *{p.name}* failed: {p.predicted:.3f} predicted, {n} measured." for p, n in results if not p.holds(n.mean)]
    failed = "".join(f"; *{p.name}* failed" for p, number in results if not p.holds(number.mean))
    verdict = (
        f"{held} of {len(results)} predictions held{failed}."
        if results
        else f"Not tested: {why or 'this study makes no prediction'}."
    )
    example = [" ".join(map(visible, side.strings[0])) for side in (bench.pairs.clean, bench.pairs.corrupt)]
    rules = [f"*{role.name}*: {role} ({' '.join(_heads(bench, role.name)) or 'none'})." for role in study.roles]
    parts = [
        f"# {study.title} in `{name}`\n\nMade by `{_in_code(command)}`, which measured every number here.\n",
        f"**Claim.** {circuit.n_edges} of the {circuit.graph.n_edges} edges of `{name}` keep {faithful} of the difference in "
        f"{bench.metric} between the clean and the corrupt run, on {len(bench.pairs)} held-out prompts; random circuits of that size "
        f"keep {by_chance}, the same edges through other heads of each layer {elsewhere}.{unsure}\n",
        f"**Account, to be tested.** {study.account} **{verdict}**\n",
        "![the circuit](circuit.svg)\n",
        f"    clean    {example[0]}\n    corrupt  {example[1]}\n",
        "Edges, strongest first: " + " ".join(f"`{edge}`" for edge in circuit.edge_list) + "\n"
        if circuit.n_edges <= 60 else "Its edges are in `circuit.json`.\n",
        f"## Method\n\n{study.method} scores on {len(bench.train)} training prompts; the fewest best-scored edges that keep "
        f"{study.share:.0%} there, dead ends pruned. Outside the circuit everything has the corrupt prompt's value. All numbers below "
        f"are means over held-out prompts with 95 % bootstrap intervals; seed 0, metric {bench.metric}.\n",
        "## Evidence\n\n" + _table(("", "value", ""), [(n.name, n, n.note) for n in shown]),
        "## Controls\n\n" + _table(("", "faithfulness", ""), [(n.name, n, n.note) for n in controls]),
        "## Components\n\n" + "Each one's output swapped for the corrupt run's alone; what it adds directly to right minus wrong "
        "logits; where heads look from END; whether they write what they look at (copying, -1 to 1).\n\n" + _components(bench),
        "Roles are rules: " + " ".join(rules) + "\n" if rules else "",
        _traced(bench),
        "## Tests of the account\n\n" + (_predictions(results) if results else verdict + "\n"),
        _reference(bench),
        "## Not explained\n\n" + "".join(f"* {line}\n" for line in [*lost, *_SHARED, *study.limits]),
    ]  # fmt: skip
    return "\n".join(part for part in parts if part)


_SHARED = (
    "Whatever clean and corrupt prompts share: an edge that carries only that is used by the model and invisible here.",
    "Whether other edges would do as well: the search gives one circuit, and `stability` says how it depends on the prompts.",
)


def _in_code(text: str) -> str:
    """A text of one line that does not end the backticks around it."""
    return visible(text).replace("`", "'")


def _heads(bench: Bench, role: str) -> list[str]:
    return [name for name, given in bench.roles.items() if given == role]


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def _components(bench: Bench) -> str:
    rows, measured = [], bench.measured
    places = [name for name in bench.pairs.clean.positions if name != "END"]
    for name in bench.parts:
        row = bench.heads.loc[name].to_dict()
        each = [Number.of("", measured[c].sel(component=name).values) if c in measured else "-" for c in ("swapped", "direct")]
        seen = sorted((-row[place], place) for place in places if not np.isnan(row[place]))
        where = ", ".join(f"{place} {-share:.2f}" for share, place in seen[:2])
        copying = "-" if np.isnan(row["copying"]) else f"{row['copying']:.2f}"
        rows.append((name, *each, where or "-", copying, bench.roles.get(name, "")))
    return _table(("", f"swapped ({bench.metric})", "direct (logits)", "from END to", "copying", "role"), rows)


def _traced(bench: Bench) -> str:
    heads = _heads(bench, bench.study.watched)
    if not heads:
        return ""
    rows = [(n.name, n, "") for port in "qk" for n in bench.senders(heads, port)]
    return (
        f"## What tells {' '.join(heads)} where to look\n\nDirect paths into their queries and keys with the sender's mean over tokens "
        f"in its place: the three that change the metric most, for each.\n\n" + _table(("", bench.metric, ""), rows)
    )


_PREDICTED = (
    "Each prediction was computed before its edit was run; the account, its rules and the criteria were written after looking at "
    "`tiny`. A criterion is on the mean: where it holds, the interval need not contain the prediction.\n\n"
)


def _predictions(results: Sequence[tuple[Prediction, Number]]) -> str:
    rows = [
        (p.name, n, f"{p.predicted:.3f}", p.criterion, "holds" if p.holds(n.mean) else "**fails**", p.claim) for p, n in results
    ]
    return _PREDICTED + _table(("", "measured", "predicted", "criterion", "verdict", "what it tries"), rows)


def _reference(bench: Bench) -> str:
    """How far the circuit agrees with a published one, for a model that it can be compared on."""
    if bench.study.reference is None:
        return ""
    published = reference_circuit(bench.study.reference)
    try:
        found = compare(published, bench.circuit)
    except CircuitError:
        return ""
    heads = [(row["role"], row["a"], row["both"], row["missing"] or "none") for row in found.by_role.to_dict("records")]
    return (
        f"## Beside the published circuit\n\nOf {published.n_edges} edges published, {found.both.n_edges} are among the "
        f"{bench.circuit.n_edges} found: precision {found.precision:.3f}, recall {found.recall:.3f}, Jaccard {found.jaccard:.3f}; "
        f"nodes {found.node_jaccard:.3f}.\n\n" + _table(("role", "published", "found", "missing"), heads)
    )


def numbers(readme: str) -> dict[str, tuple[float, float, float]]:
    """Name → (mean, low, high) of every row of a study's README that begins with a number with its interval."""
    return {name: (float(a), float(b), float(c)) for name, a, b, c in _ROW.findall(readme)}


def table(circuits: Path) -> str:
    """The studies in a folder of circuits side by side, a row for each, from their committed files."""
    head = ("study", "edges", *_SCORES, "most of another task", "predictions held")
    folders = [path.parent for path in sorted(circuits.glob("*/study.py")) if (path.parent / "circuit.json").is_file()]
    return _table(head, [_line(folder) for folder in folders])


def _line(folder: Path) -> tuple[str, ...]:
    circuit, readme = Circuit.load(folder / "circuit.json"), (folder / "README.md").read_text(encoding="utf-8")
    known = {name: Number(name, *three) for name, three in numbers(readme).items()}
    other = max((number for name, number in known.items() if name.startswith("on ")), key=lambda number: number.mean)
    verdicts = _VERDICT.findall(readme)
    return (
        f"[{folder.name}]({folder.name}/README.md)",
        f"{circuit.n_edges} of {circuit.graph.n_edges}",
        *(str(known[name]) for name in _SCORES),
        f"{other} {other.name}",
        f"{verdicts.count('holds')} of {len(verdicts)}",
    )


# ---- the command


@one_fingerprint()
def write(study: Study, model: Any, out: Path, *, command: str, n: int | None = None, overwrite: bool = False) -> Bench:
    """Study a model, and write `circuit.json`, `README.md` and `circuit.svg`, all or none."""
    check_output(out, FILES, overwrite=overwrite)
    bench = Bench.of(study, model, n=n)
    text = page(bench, command)
    faithful = numbers(text).get("faithfulness")
    with replaced(out, FILES, overwrite=overwrite) as partial:
        bench.circuit.save(partial / "circuit.json")
        (partial / "README.md").write_text(text, encoding="utf-8")
        view = CircuitView.of(bench.circuit, title=f"{study.task} in {model_name(model)}", faithfulness=faithful)
        export(view, partial / "circuit.svg")
    return bench


def differences(folder: Path, other: Path) -> list[str]:
    """How a recomputed study differs from a committed one, whose every edge, number and word counts.

    Means have to lie in each other's intervals, and their ends and all other decimals near each other, because another
    machine rounds otherwise; everything else has to be the same.
    """
    found = _other_circuit(*(Circuit.load(each / "circuit.json") for each in (folder, other)))
    texts = [(each / "README.md").read_text(encoding="utf-8") for each in (folder, other)]
    known, again = map(numbers, texts)
    found += [f"{name} is in one README only" for name in sorted(known.keys() ^ again.keys())]
    lines = [text.splitlines() for text in texts]
    if len(lines[0]) != len(lines[1]):
        found.append(f"the README has {len(lines[0])} lines, and {len(lines[1])} when made anew")
    else:
        found += [said for ours, theirs in zip(*lines, strict=True) if (said := _other_line(ours, theirs))]
    pictures = [_DECIMAL.sub("", (each / "circuit.svg").read_text(encoding="utf-8")) for each in (folder, other)]
    return found + ([] if pictures[0] == pictures[1] else ["circuit.svg shows something else"])


def _other_circuit(ours: Circuit, theirs: Circuit) -> list[str]:
    if ours != theirs:
        return [f"edges differ: {', '.join(map(str, (ours ^ theirs).edge_list))}"]
    found = ["the roles in circuit.json differ"] if ours.labels != theirs.labels else []
    scores = [np.zeros(0) if each.scores is None else each.scores[each.edges] for each in (ours, theirs)]
    if scores[0].shape != scores[1].shape or not np.allclose(*scores, rtol=0.01, atol=1e-4):
        found.append("the scores in circuit.json differ")
    facts = [{k: v for k, v in each.attrs.items() if not k.startswith("version_")} for each in (ours, theirs)]
    odd = sorted(key for key in facts[0].keys() | facts[1].keys() if facts[0].get(key) != facts[1].get(key))
    odd += ["prompt_ids"] if ours.prompt_ids != theirs.prompt_ids else []
    return found + ([f"circuit.json differs in {', '.join(odd)}"] if odd else [])


def _other_line(ours: str, theirs: str) -> str:
    """How a line of a README differs from the one made anew, or nothing."""
    name = ours.split("|")[1].strip() if ours.startswith("| ") else f"{ours[:40]} ..."
    for (a, *ends), (b, *others) in zip(_intervals(ours), _intervals(theirs), strict=False):
        width = max(ends[1] - ends[0], others[1] - others[0])
        if not all(low - 0.002 <= mean <= high + 0.002 for mean in (a, b) for low, high in (ends, others)):
            return f"{name}: {b:.3f}, and the README says {a:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"
        if not np.allclose(ends, others, rtol=0, atol=0.002 + width / 10):
            return f"{name}: [{others[0]:.3f}, {others[1]:.3f}], and the README says [{ends[0]:.3f}, {ends[1]:.3f}]"
    rest = [_INTERVAL.sub("", line) for line in (ours, theirs)]
    if _DECIMAL.sub("", rest[0]) != _DECIMAL.sub("", rest[1]):
        return f"{name}: the README says other words"
    near = all(map(_near, *map(_DECIMAL.findall, rest)))
    return "" if near else f"{name}: the README says other numbers"


def _near(ours: str, theirs: str) -> bool:
    """Whether two decimals are within 1 % and their last digit."""
    return abs(float(ours) - float(theirs)) <= 0.01 * abs(float(ours)) + 1.5 * 10 ** -len(ours.partition(".")[2])


def _intervals(line: str) -> list[tuple[float, float, float]]:
    return [(float(mean), float(low), float(high)) for mean, low, high in _INTERVAL.findall(line)]


def _asked(study: str, *options: str) -> str:
    return shlex.join(["python", f"circuits/{study}/study.py", *options])


def main(study: Study, folder: Path) -> None:
    """The command line of a study: `study.py [--model tiny] [--out DIR] [--n N] [--check] [--overwrite]`."""

    def command(
        model: str = typer.Option("tiny", help="A name, or a Hugging Face directory."),
        out: Path | None = typer.Option(None, help="Where to write; for tiny the study's own folder."),  # noqa: B008
        n: int | None = typer.Option(None, help="Prompts; None takes the study's."),
        check: bool = typer.Option(False, help="Compute it anew and compare with the committed files; write nothing."),
        overwrite: bool = typer.Option(False, help="Replace what is in --out."),
    ) -> None:
        own = model == "tiny" and n is None
        if check and (out is not None or overwrite):
            raise WorkbenchError("--check writes nothing: leave out --out and --overwrite.")
        if out is None and not own and not check:
            raise WorkbenchError("Only tiny with the study's own prompts is written to its folder: give --out DIR.")
        if not own and (check or (out is not None and out.resolve() == folder.resolve())):
            raise WorkbenchError(
                "The committed files are about tiny with the study's own prompts: give another --out, no --check."
            )
        if check:
            with tempfile.TemporaryDirectory() as place:
                write(study, load_model(model), Path(place) / folder.name, command=_asked(folder.name), n=n)
                found = differences(folder, Path(place) / folder.name)
            print("\n".join(found) or f"{folder.name}: the edges are the same, and every number is within its interval")
            raise typer.Exit(bool(found))
        target = folder if out is None else out
        loaded = load_model(model)
        asked = _asked(folder.name, *(() if own else ("--model", model_name(loaded), "--n", str(n or study.n))))
        write(study, loaded, target, command=asked, n=n, overwrite=overwrite or out is None)
        print(target / "README.md")

    try:
        typer.run(command)
    except WorkbenchError as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from error
