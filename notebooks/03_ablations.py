# %% [markdown]
# # 3 · Ablations: zero, mean, resample, and why they disagree
#
# **Goal.** Switch off parts of a model in several ways, and say which question each way answers.
#
# **Time** 45 minutes. **Prerequisites** lesson 0.
#
# To learn what a part is for, take its output away and see what changes. But the rest of the model expects
# something in its place. What is put there decides what is measured.

# %% [markdown]
# ## Predict first
#
# Take each head of `tiny` and replace its output once by zero, once by its mean over all tokens, once by what
# it wrote for another prompt. Will the three agree on which heads IOI needs? Which of them will find the
# largest effects? Can an ablation make the answer *better*?

# %%
my_prediction = ""

# %%
import numpy as np
import torch
import xarray as xr

import workbench as wb
from workbench.course import check

model = wb.load_model("tiny")
pairs = wb.load_task("ioi", model, n=64)
clean, corrupt = wb.capture_pairs(model, pairs, progress=False)
rows, end = torch.arange(64), pairs.clean.lengths - 1

# %% [markdown]
# ## By hand
#
# A head's `z` [example, pos, head, d_head] is what it fetched, before the output projection. A *hook* is a
# function that is called with an activation in the middle of a run; what it returns goes on in its place.
#
# **Exercise 3.1** (easy). Write the edit that all ablations share: `z` with one head replaced by a value. The
# value is a number, a vector [d_head], or a tensor [example, pos, d_head].
#
# <details><summary>Hint</summary>
#
# Two things go wrong easily: the axis of the head, and changing a tensor that somebody else still reads.
#
# <details><summary>Nearly the answer</summary>
#
# Begin with `z = z.clone()`, assign `value` to `z[:, :, head]`, and return it.
#
# </details>
#
# </details>


# %%
# SOLUTION
def edited(z, head, value):
    z = z.clone()
    z[:, :, head] = value
    return z


# STUDENT
# def edited(z, head, value):
#     return ...
# END


check("3.1", edited)

# %% [markdown]
# With a hook that multiplies by a mask, and the logit difference at END:


# %%
def logit_difference(hooks=()):
    with torch.no_grad():
        logits = model.run_with_hooks(pairs.clean.tokens, fwd_hooks=list(hooks))[rows, end]
    return logits[rows, pairs.answers[:, 0, 0]] - logits[rows, pairs.wrong[:, 0, 0]]


mask = torch.ones(8, 1)
mask[7] = 0
zeroed = logit_difference([("blocks.3.attn.hook_z", lambda z, hook: z * mask)])
by_hand = (zeroed - logit_difference()).mean()
print(f"a3.7 zeroed: {by_hand:+.2f}")

# %% [markdown]
# `wb.effects` does this for every head: m(edited) - m(base), so what hurts is negative.

# %%
values = {
    "zero": wb.zero(),
    "mean": wb.mean(clean),  # over all tokens of all prompts but <bos>
    "mean per position": wb.mean(clean, per="pos"),  # over the prompts, at each position
    "resample": wb.resample(clean),  # another prompt of the same length
}
ablations = {
    name: wb.effects(model, pairs, sites=wb.grid("z", model), value=value, progress=False).mean("example")
    for name, value in values.items()
}
kinds = xr.DataArray(list(ablations), dims="ablation", name="ablation")
table = xr.concat(list(ablations.values()), kinds, combine_attrs="drop_conflicts")
assert np.isclose(table.sel(ablation="zero", layer=3, head=7), by_hand, atol=1e-3)
wb.plot(table)

# %% [markdown]
# That is the picture to remember: the same model, prompts and metric, and four different maps. All agree on
# a3.7 and a0.1, and on little else.

# %%
for name, effect in ablations.items():
    strongest = effect.to_series().sort_values()[:5]
    print(f"{name:18}", [f"a{layer}.{head} {value:+.1f}" for (layer, head), value in strongest.items()])
assert (table.sel(layer=3, head=7) < -7).all()
assert (table.sel(layer=0, head=1) < -2.5).all()
assert table.sel(ablation="zero", layer=1, head=7) == table.sel(ablation="zero").max() > 3
assert abs(table.sel(ablation="resample", layer=1, head=7)) < 0.3

# %% [markdown]
# Zeroing a1.7 raises the logit difference by 3.3. By this map it is the model's strongest opponent of the
# right answer; by resampling it does nothing.
#
# **Exercise 3.2** (medium). Which heads lower the logit difference by more than 1.25 when they are zeroed,
# and change it by less than 0.3, up or down, when they are resampled (with `resample`'s own seed)?
#
# <details><summary>Hint</summary>
#
# `table` has an axis `ablation`. Compare two of its entries cell by cell.
#
# <details><summary>Nearly the answer</summary>
#
# `(table.sel(ablation="zero") < -1.25) & (abs(table.sel(ablation="resample")) < 0.3)`; `np.argwhere` of its
# values lists layer and head.
#
# </details>
#
# </details>

# %%
# SOLUTION
picked = (table.sel(ablation="zero") < -1.25) & (abs(table.sel(ablation="resample")) < 0.3)
names = [f"a{layer}.{head}" for layer, head in np.argwhere(picked.values)]
# STUDENT
# names = ...
# END
check("3.2", names)

# %% [markdown]
# ## What each one asks
#
# | value | what stays | what is asked |
# |---|---|---|
# | zero | nothing | what if the head had never written anything? |
# | mean | what it writes always | what is lost with all that varies? |
# | mean per position | what it writes at that place | what is lost with all that varies between prompts there? |
# | resample | a whole activation, of another prompt | what is lost if it belongs to another prompt? |
# | the corrupt prompt's | all that the pair shares | what is lost with what differs between the two? |
#
# From top to bottom less is taken away. a1.4 shows it: what it writes depends on the place in the sentence,
# hardly on the names.

# %%
print({name: round(float(table.sel(ablation=name, layer=1, head=4)), 2) for name in ablations})
assert table.sel(ablation="mean", layer=1, head=4) < -2.5
assert table.sel(ablation="mean per position", layer=1, head=4) > -1
assert abs(table.sel(ablation="resample", layer=1, head=4)) < 0.1
at = {
    (int(length), int(place))
    for length, place in zip(pairs.clean.lengths, pairs.clean.positions["S2"], strict=True)
}
assert len(at) == len({length for length, _ in at})  # one place of S2 for each length

# %% [markdown]
# IOI needs a1.4, and resampling cannot see it: the other prompt is as long, and has S2 and END at the same
# places. Neither is wrong. Zero says that it is used, resampling that it is not used to tell names apart.
#
# ## Off-distribution
#
# A head can also look important because zero is a place where the model has never been. On prompts such as
# "Emma lost the clock near the market so", where the answer is a pronoun:

# %%
pronouns = wb.load_task("pronoun", model, n=64)
theirs, _ = wb.capture_pairs(model, pronouns, progress=False)
for name, value in {"zero": wb.zero(), "mean": wb.mean(theirs), "resample": wb.resample(theirs)}.items():
    effect = float(wb.effects(model, pronouns, sites=["z[0.4]"], value=value, progress=False).mean())
    print(f"a0.4 {name}: {effect:+.2f}")
    assert effect < -1 if name == "zero" else abs(effect) < 0.1

# %% [markdown]
# a0.4 writes nearly the same everywhere, and later layers have learned to live with it, as with a bias.
#
# **Exercise 3.3** (medium). How much of each head's z is constant on these prompts? Compute, over all tokens
# but `<bos>` of all prompts, the squared length of the mean z divided by the mean squared length of z: an
# array [layer, head]. `theirs["z", layer].prompt(i)` is one prompt's z [pos, head, d_head].
#
# <details><summary>Hint</summary>
#
# Put the tokens of all prompts below each other first, without position 0; then there is one mean for each
# head.
#
# <details><summary>Nearly the answer</summary>
#
# With `tokens` [token, head, d_head]: `tokens.mean(0).pow(2).sum(-1)` is the squared length of the mean,
# `tokens.pow(2).sum(-1).mean(0)` the mean squared length.
#
# </details>
#
# </details>

# %%
# SOLUTION
shares = np.zeros((4, 8))
for layer in range(4):
    tokens = torch.cat([theirs["z", layer].prompt(i)[1:] for i in range(64)])
    shares[layer] = tokens.mean(0).pow(2).sum(-1) / tokens.pow(2).sum(-1).mean(0)
# STUDENT
# shares = ...
# END
check("3.3", shares)

# %% [markdown]
# Zero is farther from every activation that a0.4 ever has here than any of these is from their mean.

# %%
seen = torch.cat([theirs["z", 0].prompt(i)[1:, 4] for i in range(64)])
nearest, spread = float(seen.norm(dim=1).min()), float((seen - seen.mean(0)).norm(dim=1).max())
print(f"from zero to the nearest activation {nearest:.2f}; from the mean to the farthest {spread:.2f}")
assert nearest > 1.5 * spread

# %% [markdown]
# ## Backups
#
# An ablation of one head can also show too little. `wb.planted("backup")` is a transformer whose weights were
# set by hand. Its main head writes the answer; a backup head rests as long as the main head has written
# anything, and otherwise does its work.

# %%
planted = wb.planted("backup")
tasks = wb.planted_pairs(planted)
clean_runs, corrupt_runs = wb.capture_pairs(planted.model, tasks, progress=False)
main, backup = (wb.Site.parse(f"z[{planted.heads[role][1:]}]") for role in ("main", "backup"))
for name, value in {"zero": wb.zero(), "corrupt": wb.from_store(corrupt_runs)}.items():
    cells = (
        wb.effects(planted.model, tasks, sites=[main, backup, (main, backup)], value=value, progress=False)
        .mean("example")
        .values
    )
    print(name, dict(zip(("main", "backup", "both"), cells.round(2).tolist(), strict=True)))
    assert abs(cells[1]) < 0.01
    assert abs(cells[0]) < 0.01 if name == "zero" else cells[0] < -7

# %% [markdown]
# Zero wakes the backup, and neither head alone seems to matter. The corrupt prompt's activation does not: the
# main head has written, though the wrong word, so the backup rests.
#
# Heads of trained models cover for each other too. In induction ("A B ... A" is continued with "B") five
# heads of `tiny`'s last layer do the same work.
#
# **Exercise 3.4** (hard). Zero a3.0, a3.3, a3.4, a3.5 and a3.6 of `tiny` on 64 prompts of the task
# `induction`: one at a time, and all together (a tuple of sites is edited at once). How much does the effect
# of all exceed the sum of the five? Give together minus sum.
#
# <details><summary>Hint</summary>
#
# Six effects in one call: five sites, and a tuple of the five.
#
# <details><summary>Nearly the answer</summary>
#
# `sites=[*five, tuple(five)]` with `value=wb.zero()`. Average over the prompts; the last number minus the
# sum of the others.
#
# </details>
#
# </details>

# %%
# SOLUTION
induction = wb.load_task("induction", model, n=64)
five = [wb.Site("z", 3, head) for head in (0, 3, 4, 5, 6)]
cells = (
    wb.effects(model, induction, sites=[*five, tuple(five)], value=wb.zero(), progress=False)
    .mean("example")
    .values
)
synergy = cells[-1] - cells[:-1].sum()
# STUDENT
# synergy = ...
# END
check("3.4", synergy)

# %% [markdown]
# ## What could be wrong with this conclusion?
#
# * "Zeroing it hurts" may mean that the model was thrown off, "zeroing it does nothing" that something else
#   stepped in. Name the value with every effect, and look at two.
# * One resampling is one draw of other prompts. With another seed some cells are quite different; average
#   several.

# %%
again = wb.effects(
    model, pairs, sites=wb.grid("z", model), value=wb.resample(clean, seed=1), progress=False
).mean("example")
for seed, effect in {0: ablations["resample"], 1: again}.items():
    print(f"a3.3 resampled with seed {seed}: {float(effect.sel(layer=3, head=3)):+.2f}")
assert abs(again - ablations["resample"]).max() > 0.5

# %% [markdown]
# * A mean is no activation of any prompt either. And it depends on the prompts it is taken over: on IOI
#   prompts alone it keeps what all of them share.
# * Effects of single parts do not add up, as the backups show; a list of heads with small effects is not a
#   list of heads that can go.
#
# **Further reading.** Wang et al., *Interpretability in the Wild*, arXiv 2211.00593, on mean ablation and
# backup heads; McGrath et al., *The Hydra Effect*, arXiv 2307.15771, on self-repair; Chan et al., *Causal
# Scrubbing* (2022), on resampling; Li and Janson, *Optimal Ablation for Interpretability*, arXiv 2409.09951.
#
# **You may not conclude** that a head does nothing for a behaviour because one kind of ablation of it
# changes nothing.
