# %% [markdown]
# # 7 · Automatic discovery: EAP, EAP-IG, ACDC, masks
#
# **Goal.** Score every edge of a model in four ways, measure the scores against edges that are known, and say
# where each way fails.
#
# **Time** 60 minutes. **Prerequisites** lesson 6.
#
# Trying every edge is *exact* and slow. The methods of this lesson are quicker, or search:
#
# * **EAP**: (clean output - corrupt output of the writer) · (gradient of the metric at what the reader
#   reads), from one backward pass.
# * **EAP-IG**: the same with the gradient averaged over points between the corrupt and the clean input.
# * **ACDC**: take edges away one after the other, latest readers first; leave out for good what costs less
#   than a threshold.
# * **Masks**: a gate on every edge, trained so that few stay open and the output stays.

# %% [markdown]
# ## Predict first
#
# A *planted* model has weights set by hand, so its true edges are known. One has attention so sharp that its
# softmax is saturated; one has a backup head; one has a head that works against the answer. Which method
# fails on which?

# %%
my_prediction = ""

# %%
import numpy as np
import pandas as pd

import workbench as wb
from workbench.course import check
from workbench.discovery.methods import find_by
from workbench.evaluation.ground_truth import edge_auroc


def case(name, seed=0):
    """A planted model, its prompts and the stores of both sides."""
    truth = wb.planted(name, seed=seed, n=24)
    prompts = wb.planted_pairs(truth)
    return truth, prompts, wb.capture_pairs(truth.model, prompts, progress=False)


truth, prompts, (clean, corrupt) = case("induction")
model, corrupt_value = truth.model, wb.from_store(corrupt)
print(" ".join(prompts.clean.strings[0]), "|", " ".join(prompts.corrupt.strings[0]))
print(truth.heads, sorted(truth.edges["corrupt"]), sep="\n")

# %% [markdown]
# ## A ranking in one number
#
# **Exercise 7.1** (easy). The AUROC of a ranking is the chance that a true edge scores higher than a false
# one; a tie counts half. Write it as a function of two arrays [edge]: scores, and whether an edge is true.
#
# <details><summary>Hint</summary>
#
# Compare every true edge with every false one.
#
# <details><summary>Nearly the answer</summary>
#
# `scores[true][:, None] - scores[~true]` is [true, false]. The mean of (above 0) plus half of (equal to 0).
#
# </details>
#
# </details>


# %%
# SOLUTION
def auroc(scores, true):
    above = scores[true][:, None] - scores[~true]
    return ((above > 0) + 0.5 * (above == 0)).mean()


# STUDENT
# def auroc(scores, true):
#     return ...
# END


check("7.1", auroc)

# %% [markdown]
# ## EAP by hand
#
# For an edge into the logits the gradient is known without a backward pass: this model has no norms, so the
# logit difference is a product of the last stream with the difference of two columns of `model.W_U` [d_model,
# vocab].
#
# **Exercise 7.2** (medium). Work out the EAP score of every head's edge to the logits, layer by layer: what
# the head writes at the last token, 7 (`store["z", layer].at(7)` [example, head, d_head], times
# `model.W_O[layer]` [head, d_head, d_model]), clean minus corrupt, times that direction, as a mean over the
# prompts.
#
# <details><summary>Hint</summary>
#
# Two factors: what the head writes differently, and the direction that the logit difference reads.
#
# <details><summary>Nearly the answer</summary>
#
# The direction is `model.W_U.T[answers] - model.W_U.T[wrong]` [example, d_model]. `np.einsum("ehd,hdm->ehm",
# moved, W_O)` makes the writing; its product with the direction, summed over m and averaged over the
# prompts.
#
# </details>
#
# </details>

# %%
# SOLUTION
columns = model.W_U.T[prompts.answers[:, 0, 0]] - model.W_U.T[prompts.wrong[:, 0, 0]]
by_hand = []
for layer in range(model.cfg.n_layers):
    moved = clean["z", layer].at(7) - corrupt["z", layer].at(7)
    written = np.einsum("ehd,hdm->ehm", moved, model.W_O[layer].detach())
    by_hand.extend(np.einsum("ehm,em->h", written, columns.detach()) / len(prompts))
# STUDENT
# by_hand = ...
# END
check("7.2", by_hand)

# %% [markdown]
# ## Where a gradient says nothing
#
# `wb.score_edges` scores every edge; edges are ranked by magnitude.

# %%
scores = {name: wb.score_edges(model, prompts, value=corrupt_value, method=name, progress=False) for name in
          ("exact", "eap", "eap-ig-inputs")}  # fmt: skip
for name, table in scores.items():
    print(f"{name:14} AUROC {edge_auroc(table, truth.edges['corrupt']):.3f}")
assert edge_auroc(scores["eap"], truth.edges["corrupt"]) < 0.9
assert edge_auroc(scores["eap-ig-inputs"], truth.edges["corrupt"]) == 1

# %% [markdown]
# **Exercise 7.3** (easy). Which true edges (`truth.edges["corrupt"]`) have an EAP score of 0 (less than a
# millionth)? Look at what they have in common.
#
# <details><summary>Hint</summary>
#
# Go through the true edges and look up each in `scores["eap"]`.
#
# <details><summary>Nearly the answer</summary>
#
# `table.sel(writer=..., reader=...)` with the two halves of `edge.split("->")`; keep those below 1e-6 in
# size.
#
# </details>
#
# </details>

# %%
# SOLUTION
flat = [edge for edge in truth.edges["corrupt"] if abs(scores["eap"].sel(
    writer=edge.split("->")[0], reader=edge.split("->")[1])) < 1e-6]  # fmt: skip
# STUDENT
# flat = ...
# END
check("7.3", flat)

# %% [markdown]
# EAP-IG takes gradients between the two inputs, where the softmax is not saturated, and finds them all. Here
# is its circuit:

# %%
circuit = wb.find_circuit(scores["eap-ig-inputs"], n_edges=5, by="magnitude")
assert {str(edge) for edge in circuit.edge_list} == truth.edges["corrupt"]
circuit

# %% [markdown]
# This is the picture to remember: a previous-token head feeds the keys of an induction head.

# %% [markdown]
# ## True for what?
#
# `truth.edges["zero"]` are the edges that carry anything used; `truth.edges["corrupt"]` those that carry what
# differs between the prompts.
#
# **Exercise 7.4** (medium). Name the edges that are used, and that even exact patching with corrupt values
# cannot see. Find them by scores: `value=wb.zero()` against `value=corrupt_value`.
#
# <details><summary>Hint</summary>
#
# An edge that carries what both prompts share has an exact score with zeros and none with corrupt values.
#
# <details><summary>Nearly the answer</summary>
#
# Score with `method="exact"` and `value=wb.zero()`. Keep edges with more than 0.01 in size there, and less
# than 0.01 in `scores["exact"]`.
#
# </details>
#
# </details>

# %%
# SOLUTION
zeroed = wb.score_edges(model, prompts, value=wb.zero(), method="exact", progress=False)
edges = [str(edge) for edge in wb.Circuit.full(model).edge_list]
at = [{"writer": edge.split("->")[0], "reader": edge.split("->")[1]} for edge in edges]
unseen = [edge for edge, place in zip(edges, at, strict=True)
          if abs(zeroed.sel(place)) > 0.01 and abs(scores["exact"].sel(place)) < 0.01]  # fmt: skip
# STUDENT
# unseen = ...
# END
check("7.4", unseen)

# %% [markdown]
# ## Where each fails
#
# Four methods of discovery and the exact scores, on three models.

# %%
methods = {"exact": {}, "eap": {}, "eap-ig-inputs": {}, "acdc": {}, "learn-edges": {"steps": 60}}
lines = {}
for name in ("induction", "backup", "negative"):
    truth, rows, sides = case(name)
    for method, more in methods.items():
        result = find_by(method, truth.model, rows, value=wb.from_store(sides[1]), progress=False, **more)
        lines[method, name] = edge_auroc(result.scores, truth.edges["corrupt"])
table = pd.Series(lines).unstack()[["induction", "backup", "negative"]].loc[list(methods)]
print(table.round(3))
assert table.loc["eap"].idxmin() == "induction"
assert table.loc["exact"].idxmin() == "backup"
assert table.loc["learn-edges"].idxmin() == "induction"
assert table.loc["acdc"].idxmin() == "negative"
assert table.loc["acdc", "backup"] < 0.9
assert (table.loc["eap-ig-inputs"] == 1).all()

# %% [markdown]
# * **EAP on `induction`**: no gradient where attention is saturated.
# * **exact on `backup`**: two ways to the answer cover for each other, and taking out any single edge of the
#   second costs nothing.
# * **masks on `induction`**: they were asked for 2 % of the edges, fewer than the true ones, so the gates of
#   some true edges close like all others. Ask for a size that can hold the mechanism.
# * **ACDC on `negative`**: an edge that works against the answer costs nothing when it goes; the search drops
#   it. On `backup` it is hardly better: one of two ways may go at no cost.
#
# **Exercise 7.5** (hard). Find the circuit of `wb.planted("backup", seed=5, n=24)` for corrupt values, six
# edges, without looking at `.edges`. A method of `score_edges` that was not used so far also scores edges
# where one of the strongest is taken out. Answer with a circuit.
#
# <details><summary>Hint</summary>
#
# Among those that `workbench ls methods` lists is one that scores edges in a model from which a strong edge was already taken.
#
# <details><summary>Nearly the answer</summary>
#
# `method="conditional"`, then `find_circuit(..., n_edges=6)`.
#
# </details>
#
# </details>

# %%
# SOLUTION
hidden, rows, sides = case("backup", seed=5)
conditional = wb.score_edges(
    hidden.model, rows, value=wb.from_store(sides[1]), method="conditional", progress=False
)
circuit = wb.find_circuit(conditional, n_edges=6)
# STUDENT
# circuit = ...
# END
check("7.5", circuit)

# %% [markdown]
# ## What could be wrong with this conclusion?
#
# * **Planted is not trained.** These models have no superposition and few edges; a method that wins here has
#   passed a test, no more.
# * **Steps.** EAP-IG depends on where the gradients are taken. One midpoint misses an AND that two find:

# %%
truth, rows, sides = case("conjunction")
value = wb.from_store(sides[1])
for steps in (1, 2):
    table = wb.score_edges(
        truth.model, rows, value=value, method="eap-ig-inputs", steps=steps, progress=False
    )
    print(f"{steps} steps: AUROC {edge_auroc(table, truth.edges['corrupt']):.3f}")
    assert (edge_auroc(table, truth.edges["corrupt"]) == 1) == (steps == 2)

# %% [markdown]
# * **Sign or magnitude.** Ranked by sign, edges that oppose come last; a circuit of supporting edges alone is
#   not the model's mechanism.

# %%
truth, rows, sides = case("negative")
table = wb.score_edges(truth.model, rows, value=wb.from_store(sides[1]), method="exact", progress=False)
by = {by: edge_auroc(table, truth.edges["corrupt"], by=by) for by in ("signed", "magnitude")}
print(by)
assert by["signed"] < by["magnitude"] == 1

# %% [markdown]
# * **A high AUROC is not a circuit.** It says nothing about where to cut. Measure what is cut (lesson 8).
#
# **Further reading.** Conmy et al., *Towards Automated Circuit Discovery*, arXiv 2304.14997; Syed et al.,
# *Attribution Patching Outperforms Automated Circuit Discovery*, arXiv 2310.10348; Hanna et al., *Have Faith
# in Faithfulness*, arXiv 2403.17806; Bhaskar et al., *Finding Transformer Circuits with Edge Pruning*, arXiv
# 2406.16778; Mueller et al., *MIB*, arXiv 2504.13151.
#
# **You may not conclude** that an edge is not part of the mechanism because a method ranks it low.
