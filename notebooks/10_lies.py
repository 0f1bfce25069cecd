# %% [markdown]
# # 10 · How to lie with a circuit
#
# **Goal.** Make a wrong circuit score 1, know seven ways to do it without noticing, and choose the check that
# catches each.
#
# **Time** 60 minutes. **Prerequisites** lesson 9.
#
# Nobody has to mean to deceive. A size that was tried, a metric that was at hand, four prompts that were
# easy to read: each is a choice, and with enough of them some circuit scores 1.

# %% [markdown]
# ## Predict first
#
# Seven authors report seven circuits, each with a faithfulness within 0.05 of 1. How many of the seven would
# you have believed after lesson 8? How many checks will it take to catch them all?

# %%
my_prediction = ""

# %%
import numpy as np

import workbench as wb
from workbench.course import check
from workbench.course.lies import claim

model = wb.load_model("tiny")
claims = {letter: claim(letter) for letter in "ABCDEFG"}
for letter, one in claims.items():
    print(
        f"{letter}  {one.reported():.2f}  {one.circuit.n_edges:4} edges, {len(one.pairs)} prompts.  {one.text}"
    )
    assert abs(one.reported() - 1) < 0.1

# %% [markdown]
# ## A lie of your own
#
# **Exercise 10.1** (easy). Make a circuit of `tiny` that keeps 0.9 to 1.1 of the logit difference of
# indirect objects against `swap`, and at most 0.5 against `abc`. Any size will do.
#
# <details><summary>Hint</summary>
#
# In lesson 9 you met one. Which scores was it made of?
#
# <details><summary>Nearly the answer</summary>
#
# `wb.score_edges` against `swap` alone, and a handful of the best edges. Try some sizes and take the one
# nearest to 1.
#
# </details>
#
# </details>

# %%
pairs, heldout = wb.load_task("ioi", model, n=64), wb.load_task("ioi", model, n=64, split="heldout")
values, held_values = wb.counterfactual_values(model, pairs), wb.counterfactual_values(model, heldout)

# %%
# SOLUTION
scores = wb.score_edges(model, pairs.against("swap"), value=values["swap"], progress=False)
sizes = (5, 10, 15, 20, 30)
tried = wb.evaluate(
    [wb.find_circuit(scores, n_edges=n) for n in sizes],
    model,
    heldout,
    value=held_values,
    checks=(),
    progress=False,
).faithfulness
best = sizes[int(np.abs(tried.sel(ablation="swap").values - 1).argmin())]
mine = wb.find_circuit(scores, n_edges=best)
# STUDENT
# mine = ...
# END
check("10.1", mine)

# %% [markdown]
# That took one ranking and five sizes. The next one takes none: it is in the word "mean".
#
# ## A mean that hides
#
# Faithfulness is a ratio of two means. A circuit that does half too much on some prompts and half too little
# on others scores 1. So look at the prompts one by one:

# %%
seen = claims["B"].measured()
per_prompt = (seen.m_circuit - seen.m_empty) / (seen.m_full - seen.m_empty)
wb.plot(claims["B"].circuit, title=f"Claim B: faithfulness {float(seen.faithfulness):.2f}")

# %%
from workbench.render.figures.canvas import Picture

figure = Picture(figsize=(6.4, 2.8), layout="constrained")
axes = figure.subplots()
axes.hist(per_prompt.values, bins=np.arange(-0.3, 2, 0.1), color="#94a3b8", edgecolor="white")
axes.axvline(1, color="black", label="the model")
axes.axvline(float(seen.faithfulness), color="black", linestyle="--", label="the claim's mean")
axes.set(
    title="Claim B: few prompts are where their mean is",
    xlabel="share of the prompt's own gap",
    ylabel="prompts",
)
axes.legend()
assert abs(float(seen.faithfulness) - 1) < 0.1
assert float(np.mean(abs(per_prompt - 1) > 0.3)) > 0.3
figure

# %% [markdown]
# That is the picture to remember: two heaps, and the mean between them, where hardly any prompt is.
#
# **Exercise 10.2** (medium). Write the *error* that sees it, as a function of three arrays [example]: the mean
# size of `m_circuit - m_full`, as a share of the mean size of `m_full - m_empty`.
#
# <details><summary>Hint</summary>
#
# Take sizes first and means afterwards, above and below the line.
#
# <details><summary>Nearly the answer</summary>
#
# `np.abs(m_circuit - m_full).mean()` divided by the same of `m_full - m_empty`.
#
# </details>
#
# </details>


# %%
# SOLUTION
def per_prompt_error(m_circuit, m_full, m_empty):
    return np.abs(m_circuit - m_full).mean() / np.abs(m_full - m_empty).mean()


# STUDENT
# def per_prompt_error(m_circuit, m_full, m_empty):
#     return ...
# END


check("10.2", per_prompt_error)

# %% [markdown]
# ## Seven checks
#
# Each is one call. A claim has `model`, `circuit`, `pairs` and `metric`, and
#
# * `one.measured(...)` is `wb.evaluate` of it, with values of the pairs' own corrupt prompts; what you give
#   (`pairs=`, `metric=`, `circuit=`, `checks=`) replaces the author's choice;
# * `one.reported(...)` is the number that the author would have reported then.


# %%
def error(one):
    """How far is it from the model on a single prompt? Want: below 0.25."""
    return float(one.measured().error)


def fresh(one):
    """Does it hold on other prompts of the same kind? Want: 0.85 to 1.15."""
    return one.reported(pairs=one.fresh)


def other(one):
    """Does it hold against the other corruption? Want: 0.85 to 1.15."""
    kind = "swap" if one.pairs.counterfactual == "abc" else "abc"
    return one.reported(pairs=heldout.against(kind))


def random(one):
    """Would random edges, as many, have done? Want: below 0.75."""
    return float(one.measured(checks="random").random)


def logits(one):
    """Does it hold in logits, which do not saturate? Want: 0.85 to 1.15."""
    return one.reported(metric="logit_diff")


def competence(one):
    """How often does the model prefer the right answer? Want: above 0.85."""
    return float(wb.measure(one.model, one.pairs, progress=False)[0].right_above_wrong.mean)


def empty(one):
    """What would the author report of no edge at all? Want: below 0.75."""
    return one.reported(circuit=wb.Circuit.empty(one.model))


print("for example, claim A:", f"error {error(claims['A']):.2f}, random {random(claims['A']):.2f}")

# %% [markdown]
# Before you run all of them on all claims, which would be the easy way: read what each author did, and say
# where you would look.
#
# **Exercise 10.3** (hard). For each claim the check that catches it, by name: a dict such as `{"A": "error",
# ...}`. Use each check once.
#
# <details><summary>Hint</summary>
#
# Two claims are caught by one check alone: begin with these. For the others ask what the author chose:
# prompts, size, metric, model, base.
#
# <details><summary>Nearly the answer</summary>
#
# A asks one question only; C scores what is right or wrong; G is about a model in the middle of its
# training; E has no run to compare with; F is nearly the whole model. B and D are left, and one of them was
# tested on four prompts.
#
# </details>
#
# </details>

# %%
# SOLUTION
caught = {
    "A": "other",
    "B": "error",
    "C": "logits",
    "D": "fresh",
    "E": "empty",
    "F": "random",
    "G": "competence",
}
# STUDENT
# caught = {"A": ..., "B": ..., "C": ..., "D": ..., "E": ..., "F": ..., "G": ...}
# END
check("10.3", caught)

# %% [markdown]
# All checks on all claims, with a mark on those that speak against the claim:

# %%
wants = {
    error: (-np.inf, 0.25),
    fresh: (0.85, 1.15),
    other: (0.85, 1.15),
    random: (-np.inf, 0.75),
    logits: (0.85, 1.15),
    competence: (0.85, 1),
    empty: (-np.inf, 0.75),
}
print("  " + "".join(f"{how.__name__:>12}" for how in wants))
marks = {}
for letter, one in claims.items():
    found = {how.__name__: how(one) for how in wants}
    marks[letter] = [name for how, (name, value) in zip(wants, found.items(), strict=True)
                     if not wants[how][0] <= value <= wants[how][1]]  # fmt: skip
    print(
        letter,
        "".join(f"{value:10.2f}{' ✗' if name in marks[letter] else '  '}" for name, value in found.items()),
    )
assert all(marks.values())
assert not set.intersection(*map(set, marks.values()))
assert marks["A"] == ["other"]
assert marks["C"] == ["logits"]

# %% [markdown]
# * **A** *one counterfactual*: the circuit of a difference, not of a behaviour (lesson 9).
# * **B** *an average*: too much on some prompts, too little on others. Held-out prompts do not help: these
#   are as mixed.
# * **C** *a metric that saturates*: a little more than nothing is enough for the right answer.
# * **D** *selection*: not found on these prompts, but the size was chosen by them, and they by their score.
# * **E** *the wrong base*: after these prompts the model says a name whatever is cut.
# * **F** *a crowd*: with nineteen in twenty edges, which ones hardly matters.
# * **G** *incompetence*: the ratio of two differences that are both nearly nothing.
#
# No check catches all, and two claims pass six of the seven.

# %% [markdown]
# ## No lie
#
# `wb.Criteria` holds what this lesson asks together: the interval of faithfulness, the error prompt by prompt,
# the distances of the whole prediction, and the answers, at most 15 % of the edges, against every
# counterfactual that it is given. `wb.find_circuit(..., criteria=)` looks for the smallest circuit that keeps
# them.
#
# **Exercise 10.4** (hard). Find one for indirect objects in `tiny`. The checker draws prompts that you have
# not seen. Scores come from `pairs`; let other prompts, `choosing`, choose the size.
#
# <details><summary>Hint</summary>
#
# Scores of both corruptions together, as in lesson 9; then let the criteria choose the size.
#
# <details><summary>Nearly the answer</summary>
#
# `wb.find_circuit(joint, criteria=wb.Criteria(), model=model, pairs=choosing,
# value=wb.counterfactual_values(model, choosing))`, with `joint` from `wb.score_edges(model, pairs,
# value=values)`.
#
# </details>
#
# </details>

# %%
choosing = wb.load_task("ioi", model, n=64, seed=3)

# %%
# SOLUTION
joint = wb.score_edges(model, pairs, value=values, progress=False)
honest = wb.find_circuit(
    joint,
    criteria=wb.Criteria(),
    model=model,
    pairs=choosing,
    value=wb.counterfactual_values(model, choosing),
)
print(honest)
# STUDENT
# honest = ...
# END
check("10.4", honest)

# %% [markdown]
# ## What could be wrong with this conclusion?
#
# * **Passing seven checks is not truth.** They are the lies that we thought of. The circuit of exercise 10.4
#   falls against a question that it was not asked, zeros (lesson 9).
# * **More than 1 is not more.** A circuit of supporting edges alone exceeds the model, because what opposes
#   the behaviour is gone:

# %%
support = wb.find_circuit(
    wb.score_edges(model, pairs.against("swap"), value=values["swap"], progress=False),
    n_edges=120,
    by="signed",
)
above = wb.evaluate(
    support, model, heldout.against("swap"), value=held_values["swap"], checks=(), progress=False
).isel(circuit=0)
print(f"faithfulness {float(above.faithfulness):.2f} [{float(above.low):.2f}, {float(above.high):.2f}]")
assert float(above.low) > 1.1

# %% [markdown]
# * **Checks can be chosen too.** Whoever runs seven and reports the four that passed has found an eighth way.
#   Say beforehand which ones you will run, and report them all.
#
# **Further reading.** Miller et al., *Transformer Circuit Faithfulness Metrics Are Not Robust*, arXiv
# 2407.08734; Shi et al., *Hypothesis Testing the Circuit Hypothesis in LLMs*, arXiv 2410.13032; Makelov et
# al., *Is This the Subspace You Are Looking for?*, arXiv 2311.17030; Huff, *How to Lie with Statistics*
# (1954).
#
# **You may not conclude** that a circuit is right because it passed the checks that you chose after you
# had seen it.
