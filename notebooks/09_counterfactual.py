# %% [markdown]
# # 9 · The counterfactual is the question
#
# **Goal.** See that a circuit belongs to the difference between two prompts, and find one that stands
# against two.
#
# **Time** 40 minutes. **Prerequisites** lesson 8.
#
# "Which edges does the model need for this behaviour?" is not a question yet. It lacks an end: need, *instead
# of what*? Whatever the clean and the corrupt prompt share is on both sides of the comparison, and no score
# sees it. The task of indirect objects has two corruptions:
#
# * `swap`: the other name of the sentence gives. The right answer becomes the wrong one.
# * `abc`: a third name gives. Nothing says any more which of the two is right.

# %%
import numpy as np
import torch

import workbench as wb
from workbench.course import check

model = wb.load_model("tiny")
pairs, heldout = wb.load_task("ioi", model, n=64), wb.load_task("ioi", model, n=64, split="heldout")
values, held_values = wb.counterfactual_values(model, pairs), wb.counterfactual_values(model, heldout)
print("clean", " ".join(heldout.clean.strings[0]))
for kind in held_values:
    print(f"{kind:5}", " ".join(heldout.against(kind).corrupt.strings[0]))

# %% [markdown]
# Here are the five edges with the highest scores against `swap`, and what they keep on prompts that they were
# not found on.

# %%
scores = wb.score_edges(model, pairs.against("swap"), value=values["swap"], progress=False)
famous = wb.find_circuit(scores, n_edges=5)
swapped = wb.evaluate(
    famous, model, heldout.against("swap"), value=held_values["swap"], checks=("random",), progress=False
).isel(circuit=0)
print(f"five of {famous.graph.n_edges} edges keep {float(swapped.faithfulness):.0%} "
      f"[{float(swapped.low):.0%}, {float(swapped.high):.0%}]; random fives {float(swapped.random):.0%}; "
      f"error of a single prompt {float(swapped.error):.0%}; right answers kept {float(swapped.answers_kept):.0%}")  # fmt: skip
assert float(swapped.faithfulness) > 0.9
assert float(swapped.error) < 0.15
famous

# %% [markdown]
# Held-out prompts, a narrow interval, random circuits at nothing, every prompt near the model, every answer
# right. A small circuit could hardly look better.
#
# ## Predict first
#
# How faithful are these five edges against `abc`: same model, same clean prompts, same edges; only what the
# *other* edges carry comes from another corrupt prompt?
#
# **Exercise 9.1** (easy). Bet before you measure: a range, at most 0.5 wide.
#
# <details><summary>Hint</summary>
#
# No answer is wrong. What would you have to see to say afterwards that you had been wrong?
#
# <details><summary>Nearly the answer</summary>
#
# A dict with two numbers, such as a half and one, less than 0.5 apart.
#
# </details>
#
# </details>

# %%
# SOLUTION
my_prediction = {"low": 0.6, "high": 1.0}
# STUDENT
# my_prediction = {"low": ..., "high": ...}
# END
check("9.1", my_prediction)

# %% [markdown]
# **Exercise 9.2** (easy). Now measure: the faithfulness of `famous` on `heldout` against each of the two.
# `value=` also takes a dict of values by name, and the result then has an axis `ablation`.
#
# <details><summary>Hint</summary>
#
# `held_values` is a dict with both values. `evaluate` takes it as it is.
#
# <details><summary>Nearly the answer</summary>
#
# `wb.evaluate(famous, model, heldout, value=held_values, checks=())`, then
# `.faithfulness.sel(ablation="abc")` of its one circuit.
#
# </details>
#
# </details>

# %%
# SOLUTION
result = wb.evaluate(famous, model, heldout, value=held_values, checks=(), progress=False).isel(circuit=0)
measured = {kind: float(result.faithfulness.sel(ablation=kind)) for kind in ("swap", "abc")}
# STUDENT
# measured = {"swap": ..., "abc": ...}
# END
check("9.2", measured)

# %% [markdown]
# ## Why
#
# Look at what each corruption takes away: the logits of the two names.


# %%
def name_logits(prompts):
    last = wb.run(model, prompts).logits[torch.arange(64), prompts.lengths - 1]
    return [
        float(last[torch.arange(64), table[:, 0, 0]].mean()) for table in (heldout.answers, heldout.wrong)
    ]


logits = {"clean": name_logits(heldout.clean)}
logits |= {kind: name_logits(heldout.against(kind).corrupt) for kind in held_values}
for name, (right, wrong) in logits.items():
    print(f"{name:5}  right name {right:5.1f}  wrong name {wrong:5.1f}  difference {right - wrong:+5.1f}")
assert logits["swap"][0] - logits["swap"][1] < -7
assert abs(logits["abc"][0] - logits["abc"][1]) < 1

# %% [markdown]
# Under `swap` every activation outside the circuit pulls towards the wrong name as hard as the model pulls
# towards the right one, and one strong head decides between the two. Under `abc` the rest holds no opinion:
# the circuit has to make all of the preference itself. Noising single heads shows who helps in that.

# %%
shares = {
    kind: wb.effects(
        model,
        heldout.against(kind),
        sites=wb.grid("z", model),
        value=held_values[kind],
        normalized=True,
        progress=False,
    ).mean("example")
    for kind in held_values
}
display(wb.plot(shares["swap"], title="Share of the gap that each head takes: swap"))
wb.plot(shares["abc"], title="Share of the gap that each head takes: abc")

# %% [markdown]
# Those two are the picture to remember: one model, one behaviour, two maps.
#
# **Exercise 9.3** (medium). Which heads take more than 30 % of the gap against `abc`, and less than 5 % (up
# or down) against `swap`?
#
# <details><summary>Hint</summary>
#
# Two conditions on two tables [layer, head], as in exercise 3.2.
#
# <details><summary>Nearly the answer</summary>
#
# `(shares["abc"] > 0.3) & (abs(shares["swap"]) < 0.05)`; `np.argwhere` of its values lists layer and head.
#
# </details>
#
# </details>

# %%
# SOLUTION
picked = (shares["abc"] > 0.3) & (abs(shares["swap"]) < 0.05)
unseen = [f"a{layer}.{head}" for layer, head in np.argwhere(picked.values)]
# STUDENT
# unseen = ...
# END
check("9.3", unseen)

# %% [markdown]
# ## A circuit for both
#
# Scores against each corruption can be joined: `score_edges` takes the dict of values, and `find_circuit`
# ranks edges by the mean of the two magnitudes, each as a share of its largest. This is what that buys, size
# by size:

# %%
joint = wb.score_edges(model, pairs, value=values, progress=False)
sizes = (5, 20, 50, 100)
curves = {"swap alone": scores, "both": joint}
for name, table in curves.items():
    grown = wb.evaluate(
        [wb.find_circuit(table, n_edges=n) for n in sizes],
        model, heldout, value=held_values, checks=(), progress=False,
    )  # fmt: skip
    for kind in held_values:
        row = grown.faithfulness.sel(ablation=kind).values
        print(
            f"scores of {name:10}  faithfulness against {kind:4}",
            dict(zip(sizes, row.round(2).tolist(), strict=True)),
        )

# %% [markdown]
# **Exercise 9.4** (hard). Find a circuit of at most 150 edges whose faithfulness is between 0.88 and 1.12 on
# held-out prompts against *both*. Choose it without looking at `heldout`: on `chosen_on`, for example.
#
# <details><summary>Hint</summary>
#
# Scores against one corruption rank edges for that one. You have a table that joins them. Which sizes keep
# both, on `chosen_on`?
#
# <details><summary>Nearly the answer</summary>
#
# `wb.find_circuit(joint, n_edges=n)` for some n between 100 and 160; evaluate all of them on `chosen_on`
# with `wb.counterfactual_values(model, chosen_on)`, and take the best that has at most 150 edges.
#
# </details>
#
# </details>

# %%
chosen_on = wb.load_task("ioi", model, n=64, seed=3)

# %%
# SOLUTION
candidates = [wb.find_circuit(joint, n_edges=n) for n in (100, 120, 140, 150, 160)]
tried = wb.evaluate(
    candidates,
    model,
    chosen_on,
    value=wb.counterfactual_values(model, chosen_on),
    checks=(),
    progress=False,
)
distance = abs(tried.faithfulness - 1).max("ablation").values
allowed = [i for i, one in enumerate(candidates) if one.n_edges <= 150]
circuit = candidates[min(allowed, key=lambda i: distance[i])]
# STUDENT
# circuit = ...
# END
check("9.4", circuit)

# %% [markdown]
# It takes about thirty times as many edges as the celebrated five. They were not wrong: they are the circuit
# of the difference between two names that both stand in the sentence. They are not the circuit of "indirect
# objects".

# %% [markdown]
# ## What could be wrong with this conclusion?
#
# * **Two are not all.** A circuit that stands against `swap` and `abc` can still fall against a third. With
#   zeros outside of it even a large one keeps next to nothing:

# %%
large = wb.find_circuit(joint, n_edges=150)
zeros = wb.evaluate(large, model, heldout, value=wb.zero(), checks=(), progress=False)
print(f"{large}: faithfulness with zeros {float(zeros.faithfulness[0]):.2f}")
assert float(zeros.faithfulness[0]) < 0.3

# %% [markdown]
# * **Not every value is a fair question.** Zeros take away that this is English. Failing there is no proof
#   against the circuit; it says that the circuit counts on the rest. Say which questions you asked.
# * **Half is nothing.** Under `swap` the empty circuit prefers the wrong name as strongly as the model
#   prefers the right one. A circuit without any preference scores 0.5 there, and 0 under `abc`.
#
# **Further reading.** Wang et al., *Interpretability in the Wild*, arXiv 2211.00593 (whose circuit is found
# against `abc`); Zhang and Nanda, *Towards Best Practices of Activation Patching*, arXiv 2309.16042; Miller
# et al., *Transformer Circuit Faithfulness Metrics Are Not Robust*, arXiv 2407.08734.
#
# **You may not conclude** that a circuit is the circuit of a behaviour, when all you have is the
# circuit of one difference between prompts.
