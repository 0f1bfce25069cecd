# %% [markdown]
# # 12 · How a circuit forms
#
# **Goal.** Follow behaviours, heads and a circuit through the training of `tiny`, and say what each measure
# can see of it.
#
# **Time** 40 minutes. **Prerequisites** lessons 4 and 5.
#
# The package keeps twelve checkpoints of `tiny`; `wb.load_model("tiny@1500")` is the model after 1,500 of its
# 8,000 steps.

# %% [markdown]
# ## Predict first
#
# `tiny` learns agreement ("The key near the cabinets" → "is"), capitals ("the capital of France is" →
# "Paris"), indirect objects and induction. In which order? Does the accuracy come before, with or after the
# heads that do the work? Write it down before you run anything.

# %%
my_prediction = ""

# %%
import numpy as np
import torch
import xarray as xr

import workbench as wb
from workbench.course import check
from workbench.models import embedded

final = wb.load_model("tiny")
models = {step: wb.load_model(f"tiny@{step}") for step in embedded.steps("tiny")} | {8000: final}
tasks = {name: wb.load_task(name, final, n=64) for name in ("agreement", "capitals", "ioi", "induction")}
print(*models)

# %% [markdown]
# ## Behaviours
#
# Two measures of the same runs: the share of prompts whose answer is the first choice of all words, and the
# mean logit difference between the right and the wrong answer.


# %%
@torch.no_grad()
def measured(model, pairs):
    rows, right, wrong = torch.arange(len(pairs)), pairs.answers[:, 0, 0], pairs.wrong[:, 0, 0]
    logits = model(pairs.clean.tokens)[rows, pairs.clean.lengths - 1]
    first = (logits.argmax(-1) == right).float()
    return float(first.mean()), float((logits[rows, right] - logits[rows, wrong]).mean())


values = np.array([[measured(model, pairs) for model in models.values()] for pairs in tasks.values()])
coords = {"behaviour": list(tasks), "step": list(models)}
accuracy, logit_diff = (
    xr.DataArray(values[..., i], coords, name=name) for i, name in enumerate(("accuracy", "logit difference"))
)
wb.plot(accuracy)

# %% [markdown]
# **Exercise 12.1** (easy). At which checkpoint is the accuracy of each behaviour for the first time above
# 0.7?
#
# <details><summary>Hint</summary>
#
# `accuracy` is [behaviour, step]. The first step is wanted, not the largest.
#
# <details><summary>Nearly the answer</summary>
#
# `next(step for step in models if accuracy.sel(behaviour=name, step=step) > 0.7)` for each name.
#
# </details>
#
# </details>

# %%
# SOLUTION
learnt = {
    name: next(step for step in models if accuracy.sel(behaviour=name, step=step) > 0.7) for name in tasks
}
# STUDENT
# learnt = {"agreement": ..., "capitals": ..., "ioi": ..., "induction": ...}
# END
check("12.1", learnt)

# %% [markdown]
# Indirect objects go from few prompts to most of them within 100 steps. Induction looks as sudden in
# accuracy; its logit difference has been growing for a thousand steps by then. Accuracy counts only what is
# already the first of 378 words.

# %%
wb.plot(logit_diff)

# %%
growing = logit_diff.sel(
    behaviour="induction", step=[500, 1000, 1250, 1500, 1750, 1850, 1900, 2000, 2250]
).values
assert (np.diff(growing) > 0).all()
assert accuracy.sel(behaviour="induction", step=1500) < 0.05
assert accuracy.sel(behaviour="ioi", step=1750) < 0.2 < 0.7 < accuracy.sel(behaviour="ioi", step=1850)

# %% [markdown]
# ## Heads
#
# The scores of lesson 4 at each checkpoint, for the best head of each kind *in the final model*: a picture to
# remember.

# %%
few = tasks["induction"].select(range(32))
table = []
for model in models.values():
    store = wb.capture(model, few.clean, sites=["pattern"], progress=False)
    table.append(wb.head_scores(store).mean("example"))
heads = xr.concat(table, dim="step").assign_coords(step=list(models))
last = heads.sel(step=8000)
kinds = {}
for kind in last.score.values:
    layer, head = np.unravel_index(last.sel(score=kind).values.argmax(), (4, 8))
    kinds[f"{kind} a{layer}.{head}"] = heads.sel(layer=layer, head=head, score=kind, drop=True).values
wb.plot(
    xr.DataArray(
        np.array(list(kinds.values())), {"head": list(kinds), "step": list(models)}, name="attention"
    )
)

# %% [markdown]
# The induction head attends to the right word before the model says it. The best previous-token head of the
# end comes *after* the behaviour: at the step where induction is right for most prompts, it looks one back
# with less than half of its attention. Whatever told the induction head about previous words at first, it was
# not this head alone.

# %%
induction = next(values for name, values in kinds.items() if name.startswith("induction"))
previous = next(values for name, values in kinds.items() if name.startswith("previous"))
steps = list(models)
assert induction[steps.index(1750)] > 0.4 > accuracy.sel(behaviour="induction", step=1750)
assert previous[steps.index(2250)] < 0.5 < accuracy.sel(behaviour="induction", step=2250)

# %% [markdown]
# ## The circuit of the end
#
# The forty best edges for induction in the final model.


# %%
def circuit_of(model, pairs=few):
    _, corrupt = wb.capture_pairs(model, pairs, progress=False)
    scores = wb.score_edges(
        model, pairs, value=wb.from_store(corrupt), method="eap-ig-inputs", progress=False
    )
    return wb.find_circuit(scores, n_edges=40), scores


circuit, scores_after = circuit_of(final)
heldout = wb.load_task("induction", final, n=32, split="heldout")
circuit

# %% [markdown]
# **Exercise 12.2** (medium). How faithful is this circuit on `heldout` when it is run in the checkpoints
# 1500, 1850 and 2250? What is outside of it takes the checkpoint's own activations on the corrupt prompts.
#
# <details><summary>Hint</summary>
#
# Three models, one circuit. The value has to come from the same checkpoint that is run.
#
# <details><summary>Nearly the answer</summary>
#
# For each step: `wb.capture_pairs(models[step], heldout)`, then `wb.evaluate(circuit, models[step], heldout,
# value=wb.from_store(corrupt), checks=())`.
#
# </details>
#
# </details>

# %%
# SOLUTION
faithful = []
for step in (1500, 1850, 2250):
    _, corrupt = wb.capture_pairs(models[step], heldout, progress=False)
    result = wb.evaluate(
        circuit, models[step], heldout, value=wb.from_store(corrupt), checks=(), progress=False
    )
    faithful.append(float(result["faithfulness"][0]))
# STUDENT
# faithful = ...
# END
check("12.2", faithful)

# %% [markdown]
# The other way round: find the circuit of an early checkpoint.
#
# **Exercise 12.3** (medium). What is the Jaccard overlap (edges in both by edges in either) of the circuits
# of forty edges of `tiny@1850` and of the final model?
#
# <details><summary>Hint</summary>
#
# `circuit_of` makes the other circuit; circuits can be joined by `&` and `|`.
#
# <details><summary>Nearly the answer</summary>
#
# `(early & circuit).n_edges / (early | circuit).n_edges`.
#
# </details>
#
# </details>

# %%
# SOLUTION
early, _ = circuit_of(models[1850])
overlap = (early & circuit).n_edges / (early | circuit).n_edges
# STUDENT
# overlap = ...
# END
check("12.3", overlap)

# %%
before, scores_before = circuit_of(models[1850])
print("heads at 1850:", *(f"a{layer}.{head}" for layer, head in before.heads))
print("heads at the end:", *(f"a{layer}.{head}" for layer, head in circuit.heads))
sums = [float(scores.values[circuit.edges].sum()) for scores in (scores_before, scores_after)]
print(f"sum of the scores of the final edges, in logits: {sums[0]:.0f} at 1850, {sums[1]:.0f} at the end")
shared = set(before.heads) & set(circuit.heads)
assert {layer for layer, _ in set(before.heads) - shared} <= {0, 1, 2}
assert sums[1] > 4 * sums[0]

# %% [markdown]
# The induction heads of the last layer are there before the phase change and stay. What feeds them is
# exchanged: the early circuit runs through other heads of the lower layers.

# %% [markdown]
# ## What could be wrong with this conclusion?
#
# * Faithfulness is a ratio. At step 1500 the circuit keeps a good part of a behaviour that is hardly there:
#   look at the denominator too.

# %%
for step in (1500, 8000):
    _, corrupt = wb.capture_pairs(models[step], heldout, progress=False)
    result = wb.evaluate(
        circuit, models[step], heldout, value=wb.from_store(corrupt), checks=(), progress=False
    )
    whole = float((result["m_full"] - result["m_empty"]).mean())
    print(f"step {step}: faithfulness {float(result['faithfulness'][0]):.2f} of {whole:.1f} logits")

# %% [markdown]
# * A jump may be the metric's. A threshold (first choice or not) turns steady growth into a phase change.
# * The heads were chosen at the end: what matters early and is given up again is invisible in such curves. So
#   find circuits at both ends.
# * One training run is one sample. In another run, behaviours may come in another order and in other heads.
#
# **Further reading.** Olsson et al., *In-context Learning and Induction Heads*, arXiv 2209.11895; Nanda et
# al., *Progress Measures for Grokking via Mechanistic Interpretability*, arXiv 2301.05217; Schaeffer et al.,
# *Are Emergent Abilities of Large Language Models a Mirage?*, arXiv 2304.15004; Tigges et al., *LLM Circuit
# Analyses Are Consistent Across Training and Scale*, arXiv 2407.10827.
#
# **You may not conclude** that the parts which matter at the end of training are those by which the
# behaviour was learnt.
