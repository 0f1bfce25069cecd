# %% [markdown]
# # 5 · Activation patching, denoising and noising
#
# **Goal.** Put an activation of one run into another, read off what it carries, and say what that proves:
# sufficient, necessary, or neither.
#
# **Time** 45 minutes. **Prerequisites** lesson 3.
#
# An ablation destroys an activation. A *patch* replaces it by the one that the same model has on another
# prompt, a minimal change of the first. What moves the outcome is then exactly the difference between the two
# prompts, and nothing that they share.
#
# * **Denoising**: the corrupt run with a clean activation. Does this place suffice to bring the behaviour
#   back?
# * **Noising**: the clean run with a corrupt activation. Is this place needed to keep it?

# %% [markdown]
# ## Predict first
#
# The two prompts below differ in one name, S2, and the answer flips. `tiny` has 32 heads in four layers. How
# many of them, patched one at a time, restore more than half of the difference? Will noising and denoising
# name the same ones?

# %%
my_prediction = ""

# %%
import numpy as np
import torch

import workbench as wb
from workbench.course import check

model = wb.load_model("tiny")
pairs = wb.load_task("ioi", model, n=64)
clean, corrupt = wb.capture_pairs(model, pairs, progress=False)
for name, side, answer in (("clean", pairs.clean, pairs.answers), ("corrupt", pairs.corrupt, pairs.wrong)):
    print(f"{name:8}", " ".join(side.strings[0]), "->", model.to_string(answer[0, 0]))

rows, end = torch.arange(64), pairs.clean.lengths - 1


def logit_difference(logits):
    """[example]: the clean prompt's answer over the corrupt prompt's, at END."""
    last = logits[rows, end]
    return (last[rows, pairs.answers[:, 0, 0]] - last[rows, pairs.wrong[:, 0, 0]]).numpy()


m_clean = logit_difference(wb.run(model, pairs.clean).logits)
m_corrupt = logit_difference(wb.run(model, pairs.corrupt).logits)
print(f"mean logit difference: clean {m_clean.mean():.2f}, corrupt {m_corrupt.mean():.2f}")

# %% [markdown]
# ## A patch by hand
#
# `wb.run(model, prompts, edits={site: value}, other=...)` is one forward pass with edits; `.logits` holds
# what comes out. The value `wb.from_store(store)` takes, for each prompt, the activation of its partner, and
# `other` names the partners.
#
# **Exercise 5.1** (easy). Write denoising as a function: it takes a site such as `"z[3.7]"` (what head 7 of
# layer 3 reads from the tokens it attends to) and returns the logit differences [example] of the corrupt run
# with the clean activation there.
#
# <details><summary>Hint</summary>
#
# Which run is edited, and whose activation is written into it? Noising would be the other way round.
#
# <details><summary>Nearly the answer</summary>
#
# `wb.run(model, pairs.corrupt, edits={site: wb.from_store(clean)}, other=pairs.clean).logits`, and
# `logit_difference` of it.
#
# </details>
#
# </details>


# %%
# SOLUTION
def denoised(site):
    run = wb.run(model, pairs.corrupt, edits={site: wb.from_store(clean)}, other=pairs.clean)
    return logit_difference(run.logits)


# STUDENT
# def denoised(site):
#     return ...
# END


check("5.1", denoised)

# %% [markdown]
# Logit differences depend on the prompts; shares of the distance between the two runs can be compared. The
# *normalized recovery* of a patch is 0 where the corrupt run is and 1 where the clean run is.
#
# **Exercise 5.2** (easy). Write it as a function of three arrays [example]: logit differences of the patched,
# the clean and the corrupt run. It returns one number for all prompts, and one prompt whose two runs hardly
# differ must not decide it.
#
# <details><summary>Hint</summary>
#
# A mean of ratios is decided by the prompt with the smallest denominator. What does not have this fault?
#
# <details><summary>Nearly the answer</summary>
#
# The mean of patched minus corrupt, divided by the mean of clean minus corrupt.
#
# </details>
#
# </details>


# %%
# SOLUTION
def recovery(patched, clean, corrupt):
    return (patched - corrupt).mean() / (clean - corrupt).mean()


# STUDENT
# def recovery(patched, clean, corrupt):
#     return ...
# END


check("5.2", recovery)

# %% [markdown]
# ## Where the difference is
#
# `wb.effects` does all sites in one call: `base="corrupt"` with clean values is denoising. First the residual
# stream before each block, one named position at a time; S1 and S2 are the two positions of the repeated
# name, IO is the other.

# %%
positions = ["IO", "S1", "S2", "END"]
streams = wb.effects(
    model,
    pairs,
    sites=wb.grid("resid_pre", model, pos=positions),
    value=wb.from_store(clean),
    base="corrupt",
    progress=False,
)
distance = (m_clean - m_corrupt).mean()
stream = (streams.mean("example") / distance).assign_attrs(unit="share")
wb.plot(stream, title="Share restored by a clean residual stream")

# %% [markdown]
# This is the picture to remember. Before block 0 all of the difference is at S2: that is the only token that
# differs. Before block 3 most of it is still there, and hardly any at END. Whatever tells END about it is in
# the last block.

# %%
at = stream.sel(pos="S2").values, stream.sel(pos="END").values
assert np.isclose(at[0][0], 1)
assert at[0][3] > 0.8
assert at[1][3] < 0.2

# %% [markdown]
# ## Which head moves it
#
# The same for every head, in both directions.

# %%
heads = wb.grid("z", model)
restored = (
    wb.effects(model, pairs, sites=heads, value=wb.from_store(clean), base="corrupt", progress=False).mean(
        "example"
    )
    / distance
)
taken = (
    -wb.effects(model, pairs, sites=heads, value=wb.from_store(corrupt), progress=False).mean("example")
    / distance
)
for name, share in (("denoising restores", restored), ("noising takes", taken)):
    layer, head = np.unravel_index(share.values.argmax(), share.shape)
    n_over_half = int((share > 0.5).sum())
    print(f"{name} most with a{layer}.{head}: {float(share.max()):.2f}; heads over one half: {n_over_half}")
assert int((restored > 0.5).sum()) == int((taken > 0.5).sum()) == 1
assert restored.values.argmax() == taken.values.argmax()
wb.plot(restored.assign_attrs(unit="share"), title="Share restored by a clean head")

# %% [markdown]
# **Exercise 5.3** (medium). A head's `z` at END and at S2 are two different activations. At which *one*
# position does the patch of which head restore most? Answer with a site that names a position, written like
# `"z[0.3]@S1"`. `wb.grid("z", model, pos=positions)` has them all.
#
# <details><summary>Hint</summary>
#
# The same call as for the streams, with `z` in place of `resid_pre`.
#
# <details><summary>Nearly the answer</summary>
#
# Average over the prompts, and find the largest cell of [layer, head, pos]: `table.where(table ==
# table.max(), drop=True)` keeps its coordinates.
#
# </details>
#
# </details>

# %%
# SOLUTION
by_place = wb.effects(
    model,
    pairs,
    sites=wb.grid("z", model, pos=positions),
    value=wb.from_store(clean),
    base="corrupt",
    progress=False,
).mean("example")
best = by_place.where(by_place == by_place.max(), drop=True)
site = f"z[{int(best.layer[0])}.{int(best['head'][0])}]@{best.pos.values[0]}"
# STUDENT
# site = ...
# END
check("5.3", site)

# %% [markdown]
# ## Sufficient, necessary
#
# In `tiny` both directions agree about that head. That is luck. Two planted models (their weights are set by
# hand) show the two ways in which they disagree:
#
# * `gate("and")` says `yes` if the prompt has a p word and a q word; the corrupt prompt has neither.
# * `gate("or")` repeats the word in capitals; the corrupt prompt has none. A second head does the work where
#   the first is silent.

# %%
from workbench.course.patching import gate

for kind in ("and", "or"):
    _, prompts = gate(kind)
    print(f"{kind:4}", " ".join(prompts.clean.strings[0]), " | ", " ".join(prompts.corrupt.strings[0]))

# %% [markdown]
# **Exercise 5.4** (medium). Call a head *sufficient* if denoising it alone restores at least 90 % of the
# difference, and *necessary* if noising it alone takes at least 90 %. Name both kinds in both models
# (`normalized=True` makes effects shares; a list may be empty). Heads are written `"a1.0"`.
#
# <details><summary>Hint</summary>
#
# Sufficient: base corrupt, clean values. Necessary: base clean, corrupt values. Each for both gates, with
# `normalized=True`.
#
# <details><summary>Nearly the answer</summary>
#
# `sides = wb.capture_pairs(planted, prompts, progress=False)`; then `wb.effects(planted, prompts,
# sites=wb.grid("z", planted), value=wb.from_store(sides[0]), base="corrupt", normalized=True)` for the first
# kind. Keep heads with a mean of at least 0.9.
#
# </details>
#
# </details>

# %%
# SOLUTION
gates = {}
for kind in ("and", "or"):
    planted, prompts = gate(kind)
    sides = wb.capture_pairs(planted, prompts, progress=False)
    gates[kind] = {}
    for which, base, other in (("sufficient", "corrupt", sides[0]), ("necessary", "clean", sides[1])):
        share = wb.effects(
            planted,
            prompts,
            sites=wb.grid("z", planted),
            value=wb.from_store(other),
            base=base,
            normalized=True,
            progress=False,
        ).mean("example")
        gates[kind][which] = [f"a{layer}.{head}" for layer, head in np.argwhere(share.values >= 0.9)]
# STUDENT
# gates = {
#     "and": {"sufficient": ..., "necessary": ...},
#     "or": {"sufficient": ..., "necessary": ...},
# }
# END
check("5.4", gates)

# %% [markdown]
# `normalized=True` counts each effect from its base towards the other run, so that 1 is "all of it" in both
# directions.
#
# **Exercise 5.5** (hard). In `gate("or")` some heads take the whole behaviour only when they are noised
# *together*. Find the smallest such set. A tuple of sites, `sites=[("z[0.0]", "z[1.0]"), ...]`, is edited at
# once.
#
# <details><summary>Hint</summary>
#
# No single head is necessary, so try sets of two.
#
# <details><summary>Nearly the answer</summary>
#
# `itertools.combinations` of the sites of `wb.grid("z", planted)`, two at a time, as `sites=`; the largest
# mean share is the set.
#
# </details>
#
# </details>

# %%
# SOLUTION
from itertools import combinations

planted, prompts = gate("or")
_, without = wb.capture_pairs(planted, prompts, progress=False)
sets = list(combinations([str(one) for one in wb.grid("z", planted)], 2))
share = wb.effects(
    planted, prompts, sites=sets, value=wb.from_store(without), normalized=True, progress=False
).mean("example")
together = ["a" + one[2:-1] for one in sets[int(share.values.argmax())]]
# STUDENT
# together = ...
# END
check("5.5", together)

# %% [markdown]
# Sufficient means: in *this* context, where all else is corrupt. Necessary means: as long as nothing else
# changes. Neither says that the place is the whole mechanism.

# %% [markdown]
# ## What could be wrong with this conclusion?
#
# * **A place on the way is not a mechanism.** The first MLP restores nearly everything, for every behaviour
#   of this model: all words pass through it. A patch shows that the difference goes through a place, not that
#   the place computes the answer.


# %%
def share_restored(task, site, variant=None):
    prompts = wb.load_task(task, model, n=32, variant=variant)
    sides = wb.capture_pairs(model, prompts, progress=False)
    options = {"base": "corrupt", "normalized": True, "progress": False}
    return float(wb.effects(model, prompts, sites=[site], value=wb.from_store(sides[0]), **options).mean())


for task in ("ioi", "induction", "greater_than", "agreement", "pronoun", "capitals", "binding"):
    shares = share_restored(task, "mlp_out[0]"), share_restored(task, "z[3.7]")
    print(f"{task:12} mlp_out[0] {shares[0]:.2f}   z[3.7] {shares[1]:.2f}")
    assert shares[0] > 0.9
    assert (shares[1] > 0.5) == (task == "ioi")

# %% [markdown]
# * **What both prompts share is invisible.** The query of a3.7 decides where it looks. Both prompts make it
#   look at the same place, so its patch does little. Zeroing it destroys the head's work.

# %%
query = {
    name: float(wb.effects(model, pairs, sites=["q[3.7]"], value=value, progress=False).mean())
    for name, value in {"corrupt": wb.from_store(corrupt), "zero": wb.zero()}.items()
}
print({name: round(change, 2) for name, change in query.items()})
assert abs(query["corrupt"]) < 1.5
assert query["zero"] < -5

# %% [markdown]
# * **Another corruption is another question.** With a third name at S2 (`variant="abc"`) the corrupt prompt
#   favours neither answer, and the same head restores a smaller share: the pair differs in something else.

# %%
swap, abc = share_restored("ioi", "z[3.7]"), share_restored("ioi", "z[3.7]", "abc")
print(f"z[3.7] restores {swap:.2f} of the swapped pair's difference, {abc:.2f} of the other's")
third = wb.load_task("ioi", model, n=64, variant="abc")
last = wb.run(model, third.corrupt).logits[rows, third.corrupt.lengths - 1]
between = float((last[rows, third.answers[:, 0, 0]] - last[rows, third.wrong[:, 0, 0]]).mean())
print(f"mean logit difference of the other corrupt prompts: {between:+.2f}")
assert abs(between) < 0.5
assert swap > 0.7
assert abc < 0.5

# %% [markdown]
# * **The metric.** Probabilities saturate: a head that restores a tenth of the logit difference restores next
#   to nothing of the probability difference. Logit differences do not see a patch that raises or lowers both
#   names alike.

# %%
for metric in ("logit_diff", "prob_diff"):
    options = {"base": "corrupt", "normalized": True, "metric": metric, "progress": False}
    share = float(wb.effects(model, pairs, sites=["z[0.1]"], value=wb.from_store(clean), **options).mean())
    print(f"{metric:10} z[0.1] restores {share:.3f}")
    assert (share > 0.05) == (metric == "logit_diff")

# %% [markdown]
# * **Effects do not add up.** Layers after a patch react to it. Heads patched together restore less here than
#   the sum of what each restores alone.

# %%
best = [f"z[{layer}.{head}]" for layer, head in ((3, 7), (0, 1), (2, 1), (3, 4), (1, 0))]
shares = (
    wb.effects(
        model, pairs, sites=[*best, tuple(best)], value=wb.from_store(clean), base="corrupt", progress=False
    ).mean("example")
    / distance
)
print(f"sum of five heads {float(shares[:-1].sum()):.2f}, all five together {float(shares[-1]):.2f}")
assert shares[:-1].sum() > shares[-1] + 0.1

# %% [markdown]
# **Further reading.** Vig et al., *Causal Mediation Analysis for Interpreting Neural NLP*, arXiv 2004.12265;
# Meng et al., *Locating and Editing Factual Associations in GPT*, arXiv 2202.05262; Zhang & Nanda, *Towards
# Best Practices of Activation Patching*, arXiv 2309.16042; Heimersheim & Nanda, *How to use and interpret
# activation patching*, arXiv 2404.15255.
#
# **You may not conclude** that a place which restores the answer is where the model computes it.
