"""A study as a folder: its page, made of what was measured; and `main`, the command of every `circuits/*/study.py`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.circuit.compare import compare
from workbench.circuit.published import reference_circuit
from workbench.errors import CircuitError
from workbench.models.load import model_name
from workbench.studies.bench import Bench
from workbench.studies.evidence import evidence, tried
from workbench.studies.study import Number, Prediction
from workbench.text import visible


def page(bench: Bench, command: str) -> str:
    """The README, made of what is measured here."""
    study, circuit, name = bench.study, bench.circuit, _in_code(model_name(bench.model))
    shown, controls, lost = evidence(bench)
    results, why = tried(bench)
    held = sum(each.holds(number.mean) for each, number in results)
    faithful, by_chance, elsewhere = shown[3], controls[0], controls[2]
    unsure = (
        ""
        if shown[0].above(shown[1])
        else f" **`{name}` does not surely do this**: see what is not explained."
    )
    lost += [
        f"Why *{p.name}* failed: {p.predicted:.3f} predicted, {n} measured."
        for p, n in results
        if not p.holds(n.mean)
    ]
    failed = "".join(f"; *{p.name}* failed" for p, number in results if not p.holds(number.mean))
    verdict = (
        f"{held} of {len(results)} predictions held{failed}."
        if results
        else f"Not tested: {why or 'this study makes no prediction'}."
    )
    example = [" ".join(map(visible, side.strings[0])) for side in (bench.pairs.clean, bench.pairs.corrupt)]
    rules = [
        f"*{role.name}*: {role} ({' '.join(_heads(bench, role.name)) or 'none'})." for role in study.roles
    ]
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
        each = [
            Number.of("", measured[c].sel(component=name).values) if c in measured else "-"
            for c in ("swapped", "direct")
        ]
        seen = sorted((-row[place], place) for place in places if not np.isnan(row[place]))
        where = ", ".join(f"{place} {-share:.2f}" for share, place in seen[:2])
        copying = "-" if np.isnan(row["copying"]) else f"{row['copying']:.2f}"
        rows.append((name, *each, where or "-", copying, bench.roles.get(name, "")))
    return _table(
        ("", f"swapped ({bench.metric})", "direct (logits)", "from END to", "copying", "role"), rows
    )


def _traced(bench: Bench) -> str:
    heads = _heads(bench, bench.study.watched)
    if not heads:
        return ""
    rows = [(n.name, n, "") for port in "qk" for n in bench.senders(heads, port)]
    return (
        f"## What tells {' '.join(heads)} where to look\n\nDirect paths into their queries and keys with the sender's mean over tokens "
        f"in its place: the three that change the metric most, for each.\n\n"
        + _table(("", bench.metric, ""), rows)
    )


_PREDICTED = (
    "Each prediction was computed before its edit was run; the account, its rules and the criteria were written after looking at "
    "`tiny`. A criterion is on the mean: where it holds, the interval need not contain the prediction.\n\n"
)


def _predictions(results: Sequence[tuple[Prediction, Number]]) -> str:
    rows = [
        (p.name, n, f"{p.predicted:.3f}", p.criterion, "holds" if p.holds(n.mean) else "**fails**", p.claim)
        for p, n in results
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
    heads = [
        (row["role"], row["a"], row["both"], row["missing"] or "none")
        for row in found.by_role.to_dict("records")
    ]
    return (
        f"## Beside the published circuit\n\nOf {published.n_edges} edges published, {found.both.n_edges} are among the "
        f"{bench.circuit.n_edges} found: precision {found.precision:.3f}, recall {found.recall:.3f}, Jaccard {found.jaccard:.3f}; "
        f"nodes {found.node_jaccard:.3f}.\n\n" + _table(("role", "published", "found", "missing"), heads)
    )


# ---- the command
