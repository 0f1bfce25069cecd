"""What a `discover` found, in sentences: its title, whether the model does the task, and the claim.

Read `headline`: a report, the command and `summary.json` begin with it. Nothing is measured here; every verdict
comes from the test prompts, which chose nothing.
"""

from typing import Literal

import numpy as np
import xarray as xr

from workbench.discovery.criteria import USUAL_PROMPTS, Criteria
from workbench.discovery.frontier import failing
from workbench.engine.resemblance import near_model
from workbench.evaluation.controls import OTHER_TASK
from workbench.tasks.measure import Score
from workbench.text import listed
from workbench.workflows.discovery_run import DiscoveryRun
from workbench.workflows.wording import (
    VALUES,
    against,
    against_all,
    beginning_against,
    edges_text,
    metric_words,
    number,
    percent,
    share_text,
)

CAPABLE = 0.85
"""Share of prompts with right above wrong under which a model is said not to do the task."""
LOW_R = 0.5
"""A correlation with the model under which a circuit that passes is said to miss which prompts it does better."""
APART = 0.2
"""Counterfactuals whose faithfulness differs by more are different differences."""
FAR_SHARE = 0.05
"""A share of prompts on which the circuit is far from the model, above which the headline says what it does there."""
COPIES_SHARE = 0.5
"""Share of test prompts that are nearly copies of those that chose, from which on it is said."""
ALIKE = 0.99
"""A cosine between the scores against two counterfactuals, from which on they are hardly two. Those of the tasks of
`tiny` have at most .98; one corruption drawn twice has .997."""
STABLE_SHARE = 0.8
"""Share of draws of the prompts in which the rule has to find a circuit."""
ABOVE_ONE = 1.005
"""A faithfulness from which on it is shown as more than 1."""
BOUNDS = {
    "faithfulness": "interval of faithfulness", "error": "error per prompt",
    "prompts_near": "share of prompts near the model", "kl_recovered": "KL recovered",
    "answers_kept": "right answers kept", "same_choice": "first choices kept", "at_most": "share of edges",
}  # fmt: skip
"""What each bound of `Criteria` is of, in words."""
Verdict = Literal["circuit", "fails on test prompts", "no circuit", "too large"]


def verdict(run: DiscoveryRun) -> Verdict:
    """Whether there is a circuit to believe, one that fails on the test prompts or has too many edges, or none."""
    if run.chosen_by == "criteria" and not run.recommended:
        return "no circuit"
    if run.circuit.n_edges > run.criteria.at_most * run.circuit.graph.n_edges:
        return "too large"
    return "circuit" if passes_on_test(run) else "fails on test prompts"


def title_of(run: DiscoveryRun) -> str:
    """What the run found, in a line: a circuit, the circuit of one difference, or none."""
    subject = f"{run.evaluation.attrs.get('task', 'own prompts')} in {run.evaluation.attrs['model']}"
    found = verdict(run)
    if found == "no circuit":
        n_chose = n_that_chose(run)
        if n_chose is not None and n_chose < USUAL_PROMPTS:
            return (
                f"No circuit under {run.criteria.at_most:.0%} on {n_chose} prompts, which are too few to say that "
                f"there is none: {subject}"
            )
        return f"No circuit under {run.criteria.at_most:.0%} reproduces the model on these prompts: {subject}"
    edges = edges_text(run.circuit.n_edges)
    if found == "too large":
        return f"{edges}, which is too many for a circuit: {subject}"
    name = f"Circuit of {edges}"
    if is_one_difference(run):
        name = f"Circuit of the {_differences(run)} ({edges})"
    elif run.counterfactuals[0] in VALUES:
        name += f" with {run.counterfactuals[0]} values"
    if found == "fails on test prompts":
        name += ", which fails its criteria on the test prompts"
    if run.criteria.looser():
        name += " (criteria looser than the default)"
    right = min(run.competence.right_above_wrong.mean, run.evaluation.attrs.get("right_on_test", 1.0))
    if right < CAPABLE:
        name += f", on prompts of which the model gets {right:.0%} right"
    return f"{name}: {subject}"


def competence_text(score: Score) -> str:
    """Whether the model does the task."""
    right, first = score.right_above_wrong, score.first_choice
    if not np.isfinite(right.mean):
        return (
            f"The right answer is the model's first choice on {percent(first)} of {score.n} prompts. The prompts "
            "do not say which answers are wrong."
        )
    return (
        f"The model puts the right answer above the wrong one on {percent(right)} of {score.n} prompts, and makes "
        f"it its first choice on {percent(first)}."
    )


def competence_warning(score: Score) -> str:
    """What to think of a model that does not do the task; "" where it does."""
    if not score.right_above_wrong.mean < CAPABLE:
        return ""
    return (
        f"Right above wrong on under {CAPABLE:.0%} of the prompts: a circuit for them explains a behaviour that the "
        "model hardly has. Use prompts that it can do, or keep those that it gets right: wb.competent(model, pairs)."
    )


def headline(run: DiscoveryRun) -> str:
    """What the circuit does on the test prompts, in units that a person has, and where it fails."""
    return " ".join(sentences(run))


def sentences(run: DiscoveryRun) -> list[str]:
    """Those of the headline: the claim first, then its numbers, then what speaks against it."""
    told = [_claim(run), _in_units(run), _prompt_by_prompt(run), _faithfulness(run)]
    told += [_failures(run, name) for name in run.counterfactuals]
    told += [_nearest_difference(run), *_above_one(run)]
    if len(run.counterfactuals) == 1:
        (name,) = run.counterfactuals
        told.append(
            f"It was tested against one counterfactual only ({name}): another may need other edges."
            if name not in VALUES
            else f"It was tested with {name} values only, and against no counterfactual prompt."
        )
    n_chose = n_that_chose(run)
    if n_chose is not None and n_chose < USUAL_PROMPTS:
        told.append(
            f"Only {n_chose} prompts chose its size. On so few it is luck at times whether a circuit passes or fails: "
            f"give {USUAL_PROMPTS} or more, of a file {4 * USUAL_PROMPTS} rows."
        )
    elif run.evaluation.attrs["n"] < USUAL_PROMPTS:
        told.append(
            f"Only {run.evaluation.attrs['n']} prompts tested it. On so few it is luck at times whether a circuit "
            "passes or fails."
        )
    return list(filter(None, [*told, *_caveats(run)]))


def n_that_chose(run: DiscoveryRun) -> int | None:
    """How many prompts the criteria chose the circuit on; None where they did not choose it."""
    if run.frontier is None or run.chosen_by != "criteria":
        return None
    return int(run.frontier.attrs["n"])


def differences_text(run: DiscoveryRun) -> str:
    """The circuit of each single difference beside that of all; "" with one counterfactual."""
    if len(run.counterfactuals) < 2 or run.frontier is None:
        return ""
    sizes = {name: run.circuits.get(f"difference {name}") for name in run.counterfactuals}
    texts = []
    for name, circuit in sizes.items():
        if circuit is None:
            texts.append(f"no circuit under {run.criteria.at_most:.0%} carries the difference {name}")
        else:
            texts.append(f"{_carry(circuit.n_edges)} the difference {name}")
    names, before, joint = listed(run.counterfactuals), run.circuits.get("before refining"), run.circuit
    if run.chosen_by != "criteria":
        joint = before
    largest = max((circuit.n_edges for circuit in sizes.values() if circuit is not None), default=0)
    start = ""
    if joint is None or verdict(run) == "no circuit":
        texts.append(f"none reproduces the model against {names}")
    elif joint is run.circuit and verdict(run) == "circuit" and largest <= joint.n_edges:
        texts.append(f"{joint.n_edges:,} reproduce the model against {names}")
    else:
        # In larger models only the circuit of all differences is refined: it is compared as it was before.
        if before is not None and joint.n_edges < min(largest, before.n_edges):
            start, joint = "Before refining: ", before
        texts.append(f"{joint.n_edges:,} keep the criteria against {names} on the prompts that chose them")
    sentence = "; ".join(texts)
    return f"{start}{sentence if start else sentence[0].upper() + sentence[1:]}."


def passes_on_test(run: DiscoveryRun) -> bool:
    """Whether all criteria hold on the test prompts against every counterfactual."""
    return all(holds_on_test(run, name) for name in run.counterfactuals)


def holds_on_test(run: DiscoveryRun, name: str) -> bool:
    """Whether all criteria hold on the test prompts against one counterfactual."""
    row = run.evaluation.sel(circuit="circuit", ablation=name)
    return not failing(row)


def is_one_difference(run: DiscoveryRun) -> bool:
    """Whether the circuit is known to reproduce one counterfactual only, or much better than another."""
    if len(run.counterfactuals) == 1:
        return run.counterfactuals[0] not in VALUES
    return _are_twins(run) or _are_apart(run)


def _nearest_difference(run: DiscoveryRun) -> str:
    """Which difference the circuit carries best; "" where it carries all alike."""
    # Of twins the caveats say that they are nearly one.
    if verdict(run) != "fails on test prompts" or _are_twins(run) or not _are_apart(run):
        return ""
    if any(holds_on_test(run, name) for name in run.counterfactuals):
        return f"So it is the circuit of the {_differences(run)}, not of the task."
    return f"It carries the {_differences(run)} better than the others, and none of them fully."


def _differences(run: DiscoveryRun) -> str:
    """The counterfactuals that the circuit reproduces; where it reproduces none, the nearest to 1."""
    names = [name for name in run.counterfactuals if holds_on_test(run, name)]
    if len(names) in (0, len(run.counterfactuals)):
        known = [name for name in run.counterfactuals if np.isfinite(_value(run, name, "faithfulness"))]
        names = [
            min(known or run.counterfactuals, key=lambda name: abs(_value(run, name, "faithfulness") - 1))
        ]
    return f"difference{'s' if len(names) > 1 else ''} {listed(names)}"


def _are_apart(run: DiscoveryRun) -> bool:
    """Whether the circuit reproduces one counterfactual much better than another."""
    if passes_on_test(run):
        return False
    values = [_value(run, name, "faithfulness") for name in run.counterfactuals]
    known = [value for value in values if np.isfinite(value)]
    return bool(known) and max(known) - min(known) > APART


def _are_twins(run: DiscoveryRun) -> bool:
    """Whether there are two counterfactuals, which are nearly one."""
    return len(run.counterfactuals) == 2 and _are_alike(run)


def _are_alike(run: DiscoveryRun) -> bool:
    """Whether two of the counterfactuals are nearly one."""
    return run.evaluation.attrs.get("likeness", 0.0) >= ALIKE


def _carry(n: int) -> str:
    return f"{edges_text(n)} {'carries' if n == 1 else 'carry'}"


def _value(run: DiscoveryRun, ablation: str, name: str) -> float:
    """A measure of the circuit on the test prompts."""
    return float(run.evaluation.sel(circuit="circuit", ablation=ablation)[name].mean())


def _ablations(run: DiscoveryRun) -> list[str]:
    return [str(name) for name in run.evaluation["ablation"].values]


def _claim(run: DiscoveryRun) -> str:
    """How many edges do what."""
    circuit, n = run.circuit, run.evaluation.attrs["n"]
    edges = f"{circuit.n_edges:,} of the model's {edges_text(circuit.graph.n_edges)}"
    share = f"({circuit.n_edges / circuit.graph.n_edges:.1%})"
    counterfactuals = against_all(run.counterfactuals)
    found = verdict(run)
    if found == "too large":
        kept = "keep the criteria" if passes_on_test(run) else "fail the criteria"
        return (
            f"{edges} {share} {kept} {counterfactuals}, on {n} test prompts. More than {run.criteria.at_most:.0%} of "
            "the edges are not called a circuit: with all of them the model reproduces itself."
        )
    if found == "circuit":
        asked = " (a number that was asked for)" if run.chosen_by == "size" else ""
        chose = "" if run.chosen_by == "size" else " that chose nothing"
        return f"{edges} {share}{asked} reproduce it {counterfactuals}, on {n} test prompts{chose}."
    if found == "no circuit":
        on_test = ""
        if passes_on_test(run):
            on_test = (
                ", and keeps them on the test prompts: those that choose ask for a margin, and of the next two sizes "
                "too"
            )
        return (
            f"No circuit of up to {run.criteria.at_most:.0%} of the edges keeps the criteria {counterfactuals}. The "
            f"best trade-off has {edges} {share}{on_test}."
        )
    chosen = {
        "criteria": "kept the criteria on the prompts that chose them, and fail them on",
        "size": "were asked for, and fail the criteria on",
        "method": "were chosen by the method, and fail the criteria on",
    }[run.chosen_by]
    return f"{edges} {share} {chosen} {n} test prompts."


def _in_units(run: DiscoveryRun) -> str:
    """The metric of the circuit, of the model, and with no edge."""
    unit = f" {run.evaluation.attrs.get('unit', '')}".rstrip()
    texts = []
    for name in run.counterfactuals:
        ours, model, empty = (_value(run, name, key) for key in ("m_circuit", "m_full", "m_empty"))
        text = f"{number(ours)} of the model's {number(model)}{unit}" if not texts else number(ours)
        texts.append(f"{text} {against(name)} (with no edge {number(empty)})")
    words = metric_words(run.evaluation.attrs["metric"])
    return f"{words[0].upper()}{words[1:]}: {', '.join(texts)}."


def _prompt_by_prompt(run: DiscoveryRun) -> str:
    texts = []
    for name in run.counterfactuals:
        r = _value(run, name, "r")
        told = f"r {number(r)}"
        if not np.isfinite(r):
            told = "r not defined (the model or the circuit gives the same on every prompt)"
        texts.append(f"{told} and error {number(_value(run, name, 'error'))} {against(name)}")
    return f"Prompt by prompt (the error as a share of the mean gap): {', '.join(texts)}."


def _faithfulness(run: DiscoveryRun) -> str:
    chosen_for = [
        f"{number(_value(run, name, 'faithfulness'))} {against(name)}" for name in run.counterfactuals
    ]
    others = [
        f"{number(_value(run, name, 'faithfulness'))} {against(name)}"
        for name in _ablations(run)
        if name not in run.counterfactuals
    ]
    text = f"Faithfulness: {listed(chosen_for)}"
    if others:
        text += f"; {listed(others)}, for which it was not chosen"
    return f"{text}."


def _above_one(run: DiscoveryRun) -> list[str]:
    """What a faithfulness above 1 means, where one is shown."""
    above = [name for name in _ablations(run) if _value(run, name, "faithfulness") >= ABOVE_ONE]
    certain = [name for name in above if _value(run, name, "low") > 1]
    uncertain = [name for name in above if _value(run, name, "low") <= 1]
    unknown = [name for name in above if name not in (*certain, *uncertain)]
    further = (
        "means that the circuit changes the metric more than the whole model does, both measured from the circuit "
        "without an edge. It can where edges that work against the behaviour are left out."
    )
    meanings = [
        (certain, further),
        (uncertain, "may be chance: the interval holds 1."),
        (unknown, "may be chance: there is no interval."),
    ]
    return [
        f"That faithfulness is above 1 {listed(map(against, names))} {meaning}"
        for names, meaning in meanings
        if names
    ]


def _far_off(run: DiscoveryRun, name: str) -> str:
    """What the circuit does on prompts where it is far from the model; "" where these are few.

    A mean error hides them: where the corruption changes little, the circuit may do nothing at all.
    """
    share = 1 - _value(run, name, "prompts_near")
    # A share of .95 leaves .05 and its rounding.
    if not share > FAR_SHARE + 1e-9 or name in VALUES:
        return ""
    row = run.evaluation.sel(circuit="circuit", ablation=name)
    text = (
        f"{beginning_against(name)} it misses the model on {share:.0%} of the prompts by more than half of their own "
        "gap"
    )
    if "example" not in row["m_circuit"].dims:
        return f"{text}."
    ours, model, empty = (row[key].values for key in ("m_circuit", "m_full", "m_empty"))
    missed, gap = np.abs(ours - model), np.abs(model - empty)
    far = ~near_model(ours, model, empty)
    if not far.any() or float(gap[far].mean()) == 0:
        return f"{text}."
    return f"{text}: there its error is {number(missed[far].mean() / gap[far].mean())}, and 1 is that of no edge."


def _caveats(run: DiscoveryRun) -> list[str]:
    """Reasons to doubt the circuit even where the criteria hold."""
    caveats = []
    if verdict(run) == "circuit":
        caveats += filter(None, (_far_off(run, name) for name in run.counterfactuals))
    if "competent" in run.evaluation.attrs:
        caveats.append(
            f"The prompts are the {run.evaluation.attrs['competent']} that the model gets right: of the others nothing "
            "is known."
        )
    for name, bound in run.criteria.looser().items():
        caveats.append(
            f"Looser than the default: the bound of the {BOUNDS[name]}, {bound.value} instead of {bound.default}."
        )
    if run.evaluation.attrs["metric"] == "kl":
        caveats.append(
            "KL is a distance from the model, so that (a), (b) and (c) are nearly one criterion: take a metric that "
            "the model itself has, such as the logit difference."
        )
    elif verdict(run) == "circuit" and any(_value(run, name, "r") < LOW_R for name in run.counterfactuals):
        caveats.append("A low r: the circuit does not reproduce on which prompts the model does better.")
    right_on_test = run.evaluation.attrs.get("right_on_test", 1.0)
    if right_on_test < CAPABLE <= run.competence.right_above_wrong.mean:
        caveats.append(
            f"The model gets only {right_on_test:.0%} of the test prompts right, and "
            f"{run.competence.right_above_wrong.mean:.0%} of those to find with: they may be prompts of different "
            "kinds."
        )
    near_copies = run.evaluation.attrs.get("near_copies", 0.0)
    if near_copies >= COPIES_SHARE:
        caveats.append(
            f"{near_copies:.0%} of the test prompts differ in at most one token from a prompt that made the scores or "
            "chose the size: the numbers hold for sentences like these."
        )
    if _are_alike(run):
        caveats.append(
            f"The scores of all edges against {run.evaluation.attrs['most_alike']} are nearly proportional: these "
            "are hardly two counterfactuals."
        )
    if run.controls is not None and other_task_passes(run.controls):
        task = run.controls.attrs.get("other_task", "")
        other = f" ({task})" if task else ""
        caveats.append(
            f"The circuit of another task{other}, of as many edges, keeps all criteria on {run.controls.attrs['n']} "
            "test prompts: nothing here is particular to this task."
        )
    # Resamples are not refined: where refining alone led to a circuit, they say nothing of it.
    if run.stability is not None and run.chosen_by == "criteria" and "before refining" in run.circuits:
        sizes = run.stability["size"]
        n_draws, n_passing = sizes.sizes["draw"], int(sizes.notnull().sum())
        if n_passing < STABLE_SHARE * n_draws:
            caveats.append(
                f"With the scored prompts resampled, a size passes in only {n_passing} of {n_draws} draws (before "
                "refining)."
            )
    return caveats


def other_task_passes(controls: xr.Dataset) -> bool:
    """Whether the circuit of another task keeps all criteria; False where no other task suits the vocabulary."""
    if OTHER_TASK not in controls["control"].values:
        return False
    return bool((controls.sel(control=OTHER_TASK)["holds"] == 1).all())


def _failures(run: DiscoveryRun, name: str) -> str:
    """Which criteria fail against a counterfactual, and by how much; "" where all hold."""
    row, bounds = run.evaluation.sel(circuit="circuit", ablation=name), run.criteria
    text = beginning_against(name)
    if not np.isfinite(float(row["error"])):
        return f"{text} nothing can be judged: the metric does not change on these prompts."
    low, high = bounds.faithfulness
    texts = {
        "a": f"(a) the interval of faithfulness is [{number(row['low'])}, {number(row['high'])}], "
        f"not inside [{low:g}, {high:g}]",
        "b": f"(b) {_error_text(row, bounds)}",
        "c": f"(c) KL recovered is {number(row['kl_recovered'])}, less than {bounds.kl_recovered:g}",
        "d": f"(d) {_answers_text(row, bounds)}",
    }  # fmt: skip
    reasons = [texts[letter] for letter in failing(row)]
    if not reasons:
        return ""
    return f"{text} it fails: {'; '.join(reasons)}."


def _error_text(row: xr.Dataset, bounds: Criteria) -> str:
    """Which part of (b) fails."""
    texts = []
    if not float(row["error"]) <= bounds.error:
        texts.append(f"the error per prompt is {number(row['error'])}, more than {bounds.error:g}")
    if not float(row["prompts_near"]) >= bounds.prompts_near:
        texts.append(
            "the share of prompts on which it misses the model by at most half of the prompt's own gap is "
            f"{share_text(row['prompts_near'])} ({bounds.prompts_near:.0%} needed)"
        )
    return ", and ".join(texts)


def _answers_text(row: xr.Dataset, bounds: Criteria) -> str:
    """Which part of (d) fails."""
    texts = []
    if not float(row["answers_kept"]) >= bounds.answers_kept:
        texts.append(
            f"right answers kept are {share_text(row['answers_kept'])} ({bounds.answers_kept:.0%} needed)"
        )
    if not float(row["same_choice"]) >= bounds.same_choice:
        texts.append(
            f"first choices kept are {share_text(row['same_choice'])} ({bounds.same_choice:.0%} needed)"
        )
    return ", and ".join(texts)
