"""`page(evidence)`: the README of a study, a function of its evidence alone."""

from collections.abc import Sequence
from typing import Any

from workbench.discovery.criteria import LETTERS, Criteria
from workbench.studies.counterfactuals import ALL, CORE, THIS
from workbench.studies.evidence import (
    SHOWN_EDGES,
    Agreement,
    Component,
    Counterfactual,
    Evidence,
    RuleSearch,
    TestResult,
)
from workbench.text import listed, visible

SHARED = 0.2
"""A circuit whose interval on another task lies above this is not particular to its own task."""
_ALWAYS = (
    "What clean and corrupt prompts have in common: an edge whose input is the same in both prompts cannot "
    "be found by patching with the corrupt run, even if the model uses it.",
    "Whether other edges would do as well: the search gives one circuit; `stability` says how much it "
    "depends on the prompts.",
)


def page(evidence: Evidence) -> str:
    """The README as Markdown."""
    sections = [
        f"# {evidence.title} in `{_code(evidence.model)}`\n\n"
        f"Made by `{_code(evidence.command)}`. Every number is in `study.json`.\n",
        _claim(evidence),
        f"**Account** (a hypothesis, tested below). {evidence.account} **{_verdict(evidence)}**\n",
        "![the circuit](circuit.svg)\n",
        _prompts(evidence),
        _edges(evidence),
        _method(evidence),
        "## Evidence\n\n"
        + table(("", "value", ""), [(row.name, row, row.note) for row in evidence.behaviour]),
        _counterfactuals(evidence),
        _frontier(evidence),
        "## Controls\n\n"
        + table(("", "faithfulness", ""), [(row.name, row, row.note) for row in evidence.controls]),
        _components(evidence),
        _roles(evidence),
        _senders(evidence),
        "## Tests of the account\n\n" + _tests(evidence),
        _published(evidence.agreement, evidence.n_edges),
        "## Not explained\n\n" + "".join(f"* {line}\n" for line in not_explained(evidence)),
    ]
    return "\n".join(section for section in sections if section)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def _prompts(evidence: Evidence) -> str:
    """The first held-out pair; of several counterfactuals each by its name."""
    sides = {"clean": evidence.clean, "corrupt": evidence.corrupt}
    if evidence.search is not None:
        sides = {"clean": evidence.clean, **evidence.search.corrupt}
    width = max(map(len, sides)) + 2
    return "".join(f"    {name:{width}}{text}\n" for name, text in sides.items())


def _code(text: str) -> str:
    """A name as one line that fits between backticks."""
    # A backtick would end the code span, and the rest of the name would be read as Markdown.
    return visible(text).replace("`", "'")


def _claim(evidence: Evidence) -> str:
    name = _code(evidence.model)
    doubt = ""
    if not _behaves(evidence):
        doubt = f" **`{name}` is not shown to do this**: see what is not explained."
    if evidence.search is not None:
        return _claim_by_rule(evidence, evidence.search) + doubt + f"\n\n**Scope.** {_scope(evidence)}\n"
    return (
        f"**Claim.** {len(evidence.edges)} of the {evidence.graph_edges} edges of `{name}` are the circuit of the "
        f"difference *{evidence.counterfactuals[0].counterfactual}*: they keep {evidence.estimate('faithfulness')} of "
        f"what {evidence.metric} loses between the clean and the corrupt run, on {evidence.n_heldout} held-out "
        f"prompts. Random circuits of the same size keep {evidence.estimate('random circuits')}; the same edges "
        f"through other heads of each layer keep {evidence.estimate('other heads')}.{doubt}\n\n"
        f"**Scope.** {_scope(evidence)}\n"
    )


def _claim_by_rule(evidence: Evidence, search: RuleSearch) -> str:
    """What is claimed of a circuit that criteria chose."""
    share = search.edges / evidence.graph_edges
    own = [row for row in evidence.counterfactuals if row.circuit == THIS]
    names = listed(f"*{row.counterfactual}*" for row in own)
    if search.passes:
        chosen = (
            f"the smallest circuit found that keeps the criteria below against {names}, on the "
            f"{search.n_select} prompts that chose its size"
        )
    else:
        chosen = (
            f"the circuit nearest to the model: none of up to {search.most} edges keeps the criteria below "
            f"against {names} on the {search.n_select} prompts that choose a size"
        )
    kept = listed(f"{row.faithfulness} against *{row.counterfactual}*" for row in own)
    return (
        f"**Claim.** {search.edges} of the {evidence.graph_edges} edges of `{_code(evidence.model)}` "
        f"({share:.1%}; {search.most} are the most that count) are {chosen}. On {evidence.n_heldout} "
        f"held-out prompts they keep {kept} of what {evidence.metric} loses. "
        "Random circuits of the same size keep "
        f"{evidence.estimate('random circuits')}; the same edges through other heads of each layer keep "
        f"{evidence.estimate('other heads')}. They touch {search.components} of {search.all_components} "
        f"heads and MLPs, so this page is about the {len(evidence.components)} heads that matter most."
    )


def _scope(evidence: Evidence) -> str:
    """Which counterfactuals the circuit holds against, and how many edges all of them need."""
    own = [row for row in evidence.counterfactuals if row.circuit == THIS]
    failing = [row for row in own if row.fails]
    held = [f"*{row.counterfactual}*" for row in own if not row.fails]
    text = "It keeps the criteria of a circuit that may be believed against "
    text += f"{listed(held)}." if held else "no counterfactual."
    if failing:
        kept = listed(
            f"*{row.counterfactual}* ({row.fails}; it keeps {row.faithfulness.mean:z.2f})" for row in failing
        )
        of_what = "it keeps the mean of the metric, and not all that the model does"
        if held:
            of_what = "the account is of one difference, not of the whole task"
        text += f" It fails them against {kept}: {of_what}."
    if evidence.search is not None:
        core = [row for row in evidence.counterfactuals if row.circuit == CORE]
        kept = listed(f"{row.faithfulness.mean:z.2f} against *{row.counterfactual}*" for row in core)
        return (
            f"{text} Its core, the {core[0].edges} edges that stay in nine of ten of "
            f"{evidence.search.core_draws} resamples of the prompts, keeps {kept}."
        )
    others = [row for row in evidence.counterfactuals if row.circuit == ALL]
    if not others:
        most = f"{Criteria().at_most:.0%}"
        return f"{text} No circuit of up to {most} of the edges keeps them against all."
    if any(row.fails for row in others):
        return f"{text} The {others[0].edges} edges that keep them on other prompts fail some on these."
    return f"{text} {others[0].edges} edges keep them against {listed(f'*{row.counterfactual}*' for row in others)}."


def _counterfactuals(evidence: Evidence) -> str:
    """The circuit, and that of all counterfactuals, against each of them."""
    criteria = Criteria()
    bounds = "; ".join(criteria.text(letter) for letter in LETTERS)
    beside = (
        f'"{ALL}" is the smallest circuit that keeps them against every counterfactual, chosen on other '
        "prompts, with nothing refined."
    )
    if evidence.search is not None:
        beside = f'"{CORE}" is what stays when the prompts that made the scores are drawn again.'
    return (
        "## Against which counterfactuals\n\nPrompt by prompt on the held-out prompts: error is the mean |m(circuit) "
        "- m(model)| as a share of the mean gap, r the correlation over prompts. A circuit that may be believed keeps "
        f"four criteria: {bounds}. {beside}\n\n" + _resemblances(evidence.counterfactuals)
    )


def _resemblances(circuits: Sequence[Counterfactual]) -> str:
    """Circuits against counterfactuals, a row for each of both."""
    header = ("", "edges", "against", "faithfulness", "error", "r", "KL recovered", "fails")
    rows = []
    for row in circuits:
        measures = (row.faithfulness, row.error, row.r, row.kl_recovered)
        rows.append((row.circuit, row.edges, row.counterfactual, *measures, row.fails or "-"))
    return table(header, rows)


def _frontier(evidence: Evidence) -> str:
    """Circuits of other sizes of the same ranking."""
    if evidence.search is None:
        return ""
    return (
        "## How many edges it takes\n\nThe best edges of the same ranking, on the held-out prompts: how "
        "many, as a share of the graph and after dead ends are left out.\n\n"
        + _resemblances(evidence.search.frontier)
    )


def _behaves(evidence: Evidence) -> bool:
    """Whether the clean run's interval lies above the corrupt run's: else there is nothing to explain."""
    return evidence.estimate("metric of the model").above(evidence.estimate("metric of the corrupt run"))


def _verdict(evidence: Evidence) -> str:
    if not evidence.tests:
        return f"Not tested: {evidence.untested}."
    failed = "".join(f"; *{test.name}* failed" for test in evidence.tests if not test.holds)
    return f"{evidence.n_held} of {len(evidence.tests)} predictions held{failed}."


def _edges(evidence: Evidence) -> str:
    if len(evidence.edges) > SHOWN_EDGES:
        return "Its edges are in `circuit.json`.\n"
    named = " ".join(f"`{edge}`" for edge in evidence.edges)
    if len(evidence.edges) < evidence.n_edges:
        return f"Its {len(evidence.edges)} strongest edges, the others are in `circuit.json`: {named}\n"
    return f"Edges, strongest first: {named}\n"


def _method(evidence: Evidence) -> str:
    if evidence.search is not None:
        return _method_by_rule(evidence, evidence.search)
    return (
        f"## Method\n\nEdges are scored by {evidence.method} on {evidence.n_train} training prompts. The "
        f"circuit is the smallest set of best-scored edges that keeps {evidence.share:.0%} of the difference "
        "on those prompts; dead ends are pruned. Every edge outside the circuit carries its value from the "
        "corrupt run. All numbers below are means over held-out prompts with 95 % bootstrap intervals; seed "
        f"0, metric {evidence.metric}.\n"
    )


def _method_by_rule(evidence: Evidence, search: RuleSearch) -> str:
    return (
        f"## Method\n\nEdges are scored by {evidence.method} on {evidence.n_train} training prompts against "
        f"every counterfactual, and ranked by the size of their scores. Other {search.n_select} training "
        "prompts choose the smallest size that keeps the criteria, and edges are left out as long as they "
        "are kept; dead ends are pruned. Every edge outside the circuit carries its value from the corrupt "
        "run. Roles, rules and predicted numbers come from training prompts; all numbers below are means "
        "over held-out prompts with 95 % bootstrap intervals, against "
        f"*{evidence.counterfactuals[0].counterfactual}* unless another counterfactual is named; copying "
        f"scores and path patching are of {search.few} of them. Seed 0, metric {evidence.metric}.\n"
    )


def _components(evidence: Evidence) -> str:
    if evidence.search is not None:
        return _components_by_rule(evidence)
    header = ("", f"swapped ({evidence.metric})", "direct (logits)", "from END to", "copying", "role")
    rows = [_component_row(component) for component in evidence.components]
    return (
        "## Components\n\nFor each component: the change of the metric when its output alone is replaced by "
        "the corrupt run's; its direct contribution to the right minus the wrong logit; where a head attends "
        "from END; and its copying score, -1 to 1, which is positive when a head raises the logits of the "
        "tokens that it attends to.\n\n" + table(header, rows)
    )


def _components_by_rule(evidence: Evidence) -> str:
    """The strongest components, and what the rules of their roles read."""
    first = evidence.components[0]
    swaps = [f"swapped *{name}*" for name in (evidence.counterfactuals[0].counterfactual, *first.further)]
    header = ("", *swaps, "direct (logits)", "from END to", "copying", "other scores", "role")
    rows = []
    for component in evidence.components:
        name, swapped, *rest, role = _component_row(component)
        scores = ", ".join(f"{column} {score:z.2f}" for column, score in component.scores.items()) or "-"
        rows.append((name, swapped, *component.further.values(), *rest, scores, role))
    return (
        f"## Components\n\nThe {len(evidence.components)} heads of the circuit whose swap changes the "
        "metric most, as the scores of the training prompts estimate it: the sum of the scores of a head's "
        "outgoing edges, its size averaged over the counterfactuals. For each: the change of the metric "
        "when its output alone is replaced by the corrupt run's; its direct contribution to the right "
        "minus the wrong logit; where a head attends from END; its copying score, -1 to 1; and what else "
        "the rules of the roles read.\n\n" + table(header, rows)
    )


def _roles_by_rule(evidence: Evidence, search: RuleSearch) -> str:
    """The heads of each role, beside how many have it in the published circuit of another model."""
    rows = []
    for role in evidence.roles:
        row = [role.name, role.rule, len(role.heads), " ".join(role.heads)]
        if search.published_model:
            row.append("no such role" if role.published is None else role.published)
        rows.append(row)
    header = ["role", "rule", "heads", ""]
    text = "## Roles\n\nOf the heads above, those that meet the rule of a role on training prompts."
    if search.published_model:
        header.append(search.published_model)
        text += (
            f" The last column is how many heads of {search.published_model} have the role in its published "
            "circuit. The two models have different graphs, so no edges are compared; and the published "
            "roles were given by hand, after more experiments than a rule holds."
        )
    return f"{text}\n\n" + table(header, rows)


def _component_row(component: Component) -> tuple[Any, ...]:
    direct = "-" if component.direct is None else component.direct
    # By share, then by name, so that ties do not depend on the order of a dict.
    strongest = sorted(component.attention.items(), key=lambda item: (-item[1], item[0]))[:2]
    attention = ", ".join(f"{position} {share:.2f}" for position, share in strongest) or "-"
    copying = "-" if component.copying is None else f"{component.copying:.2f}"
    return component.name, component.swapped, direct, attention, copying, component.role


def _roles(evidence: Evidence) -> str:
    if not evidence.roles:
        return ""
    if evidence.search is not None:
        return _roles_by_rule(evidence, evidence.search)
    rules = [f"*{role.name}*: {role.rule} ({' '.join(role.heads) or 'none'})." for role in evidence.roles]
    return "Roles are given by rules: " + " ".join(rules) + "\n"


def _senders(evidence: Evidence) -> str:
    if not evidence.traced_heads:
        return ""
    return (
        f"## What tells {' '.join(evidence.traced_heads)} where to attend\n\nPath patching into the queries "
        "(q) and keys (k) of these heads: a sender's direct path carries the sender's mean over tokens. "
        "Shown are the three senders that change the metric most, for each.\n\n"
        + table(("", evidence.metric, ""), [(row.name, row, "") for row in evidence.senders])
    )


def _tests(evidence: Evidence) -> str:
    if not evidence.tests:
        return _verdict(evidence) + "\n"
    rows = []
    for test in evidence.tests:
        verdict = "holds" if test.holds else "**fails**"
        rows.append((test.name, test.measured, f"{test.predicted:.3f}", test.criterion, verdict, test.claim))
    looked = "looking at `tiny`"
    if evidence.search is not None:
        looked = "looking at training prompts, and the predicted numbers were measured on them"
    return (
        "Each prediction was computed before its edit was run. The account, the rules and the criteria were "
        f"written after {looked}. A criterion is about the mean: where it holds, the interval need "
        "not contain the prediction.\n\n"
        + table(("", "measured", "predicted", "criterion", "verdict", "claim"), rows)
    )


def _published(agreement: Agreement | None, n_edges: int) -> str:
    if agreement is None:
        return ""
    rows = [(role.name, role.published, role.found, role.missing or "none") for role in agreement.roles]
    return (
        f"## Beside the published circuit\n\nOf {agreement.published_edges} edges published, "
        f"{agreement.shared_edges} are among the {n_edges} found: precision {agreement.precision:.3f}, "
        f"recall {agreement.recall:.3f}, Jaccard {agreement.jaccard:.3f}; "
        f"nodes {agreement.node_jaccard:.3f}.\n\n" + table(("role", "published", "found", "missing"), rows)
    )


def not_explained(evidence: Evidence) -> list[str]:
    """What the evidence leaves open, a sentence each, from what was measured to what the author adds."""
    faithfulness = evidence.estimate("faithfulness")
    zero = evidence.estimate("faithfulness, zero values")
    mean = evidence.estimate("faithfulness, mean values")
    lines = []
    if not _behaves(evidence):
        lines.append(
            "Whether there is anything to explain: the metric of the clean run, "
            f"{evidence.estimate('metric of the model')}, is not clearly above that of the corrupt run, "
            f"{evidence.estimate('metric of the corrupt run')}."
        )
    missed = f"{1 - faithfulness.mean:z.1%} of the difference: the circuit keeps {faithfulness}."
    if evidence.search is not None:
        errors = [
            f"{row.error} of the gap against *{row.counterfactual}*"
            for row in evidence.counterfactuals
            if row.circuit == THIS
        ]
        missed = f"What single prompts do: the circuit misses the model by {listed(errors)}, on average."
    lines += [
        missed,
        f"The whole behaviour: with zeros outside the circuit it keeps {zero}, with means {mean}. A circuit "
        "found against corrupt prompts explains the difference between the two prompts.",
    ]
    if evidence.minimal is not None:
        lines.append(
            f"Components that the minimality test finds unnecessary: {evidence.unneeded or 'none'} "
            f"({evidence.minimal:.0%} are needed)."
        )
    other_heads = evidence.estimate("other heads")
    # Where the intervals overlap, the choice of heads is not shown to matter.
    if other_heads.high >= faithfulness.low:
        lines.append(
            "Which heads it has to be: the same edges through other heads of the same layers keep up to "
            f"{other_heads.high:.3f}."
        )
    shared = [f"{row.mean:.3f} {row.name}" for row in evidence.other_tasks if row.low > SHARED]
    if shared:
        lines.append(f"What is particular to this behaviour: the same edges keep {', '.join(shared)}.")
    for test in evidence.tests:
        if not test.holds:
            lines.append(
                f"Why *{test.name}* failed: {test.predicted:.3f} predicted, {test.measured} measured."
            )
    apart = [f"*{test.name}*" for test in evidence.tests if test.holds and _misses(test)]
    if evidence.search is not None and apart:
        lines.append(
            f"How large the effects are: {listed(apart)} held by their criteria, and the intervals of what "
            "was measured leave the predicted numbers out."
        )
    return [*lines, *_ALWAYS, *evidence.limits]


def _misses(test: TestResult) -> bool:
    """Whether the interval of what was measured leaves the predicted number out."""
    return not test.measured.low <= test.predicted <= test.measured.high
