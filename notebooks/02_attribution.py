# %% [markdown]
# # 2 · Direct logit attribution
#
# **Goal.** Split a logit difference into what each layer, head and neuron wrote to it, and say what such a
# split leaves out.
#
# **Time** 40 minutes. **Prerequisites** lesson 1.
#
# The last residual stream is a sum: the embeddings, and the output of every head and MLP. If the read-out
# were linear, the logit difference would be a sum with the same parts. Only the final norm stands in the way,
# and it can be held still.

# %% [markdown]
# ## Predict first
#
# For IOI prompts `tiny` reaches a mean logit difference of 9.0 at END. How much of it do the 32 heads write,
# and how much the four MLPs? In which layers? Does one part write more than half?

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
answers, wrong = pairs.answers[:, 0, 0], pairs.wrong[:, 0, 0]
final = clean["resid_post", 3].at("END")  # [example, d_model]

# %% [markdown]
# ## The frozen scale
#
# The final LayerNorm takes a stream $x$, subtracts its mean over d_model, divides by its standard deviation
# (the *scale*), multiplies by the weight `model.ln_final.w` and adds the bias `model.ln_final.b`. All of it
# is linear but the scale. Direct logit attribution computes the scale from the whole stream, once, and uses
# this number for every part.
#
# **Exercise 2.1** (medium). Write it: `part` [example, d_model] is what a component wrote, `final` [example,
# d_model] the whole last stream, `answers` and `wrong` [example] are token numbers. Return what the part adds
# to the logit difference, [example]. `model.W_U` is [d_model, vocab]; `model.cfg.eps` is added to the
# variance. Leave out the norm's bias: it belongs to no part.
#
# <details><summary>Hint</summary>
#
# Five steps of the norm, of which one uses `final` and all others use `part`. Which one is the scale?
#
# <details><summary>Nearly the answer</summary>
#
# The scale is the root of `final.var(-1, unbiased=False, keepdim=True) + model.cfg.eps`. Centre `part`,
# divide by it, multiply by `model.ln_final.w`, and project on `model.W_U[:, answers] - model.W_U[:, wrong]`,
# which is [d_model, example].
#
# </details>
#
# </details>


# %%
# SOLUTION
def attribute(part, final, answers, wrong):
    scale = (final.var(-1, unbiased=False, keepdim=True) + model.cfg.eps).sqrt()
    normed = (part - part.mean(-1, keepdim=True)) / scale * model.ln_final.w
    return (normed * (model.W_U[:, answers] - model.W_U[:, wrong]).T).sum(-1)


# STUDENT
# def attribute(part, final, answers, wrong):
#     return ...
# END


check("2.1", attribute)

# %% [markdown]
# ## All parts
#
# `wb.direct_attribution` does it for every part. `bias` holds what depends on no activation. The parts add up
# to the logit difference of each prompt, up to rounding.

# %%
parts = wb.direct_attribution(clean, model, targets=pairs.answers, minus=pairs.wrong, by="head")
with torch.no_grad():
    logits = model(pairs.clean.tokens)[torch.arange(64), pairs.clean.lengths - 1]
    differences = logits[torch.arange(64), answers] - logits[torch.arange(64), wrong]
assert np.allclose(parts.sum("component"), differences, atol=1e-3)
print("mean logit difference:", round(float(differences.mean()), 2))
wb.plot(parts, title="What each part writes at END")

# %% [markdown]
# That is the picture to remember. One head and one MLP of the last layer stand out:

# %%
mean = parts.mean("example")
strong = mean.sortby(mean, ascending=False)[:4]
print(
    {
        str(name): round(float(value), 2)
        for name, value in zip(strong.component.values, strong.values, strict=True)
    }
)
assert list(strong.component.values[:2]) == ["m3", "a3.7"]
assert strong.values[0] > 0.5 * mean.sum()

# %% [markdown]
# **Exercise 2.2** (easy). How much do the heads and the MLP of each layer write together? `by="component"`
# has the attention of a layer, `a0`, as one part, beside its MLP, `m0`.
#
# <details><summary>Hint</summary>
#
# The function of the cell above does it with another `by`. Two parts belong to each layer.
#
# <details><summary>Nearly the answer</summary>
#
# Average over the prompts; `table.sel(component=[f"a{layer}", f"m{layer}"]).sum()` is one of the four
# numbers.
#
# </details>
#
# </details>

# %%
# SOLUTION
table = wb.direct_attribution(clean, model, targets=pairs.answers, minus=pairs.wrong, by="component").mean(
    "example"
)
layers = [float(table.sel(component=[f"a{layer}", f"m{layer}"]).sum()) for layer in range(4)]
# STUDENT
# layers = ...
# END
check("2.2", layers)

# %% [markdown]
# Lesson 1 gave other numbers for the same question. There each layer's stream was normed with its own scale;
# here all parts share the last one's.

# %%
lens = wb.logit_lens(clean, model, targets=pairs.answers, minus=pairs.wrong)
read = lens.values[np.arange(64), :, pairs.clean.lengths - 1].mean(0)
print("lens, layer after layer:", np.diff(read).round(2))
layer_of = np.array([str(name)[1] for name in mean.component.values])  # "3" for a3.7 and m3
by_layer = [float(mean.values[layer_of == str(at)].sum()) for at in range(4)]
print("attribution, layers 1 to 3:", np.round(by_layer[1:], 2))

# %% [markdown]
# ## Neurons
#
# An MLP's output is a sum over its neurons, each with an activation and a fixed direction. `by="neuron"`
# gives (example, layer, neuron).

# %%
neurons = wb.direct_attribution(clean, model, targets=pairs.answers, minus=pairs.wrong, by="neuron")
m3 = neurons.sel(layer=3)
print(m3.dims, m3.shape)

# %% [markdown]
# **Exercise 2.3** (medium). Sort m3's neurons by their mean over the prompts, the largest first. How many
# does it take until they write at least as much as all 512 together?
#
# <details><summary>Hint</summary>
#
# A running sum of the sorted means crosses their total before it is through: some neurons write against the
# answer.
#
# <details><summary>Nearly the answer</summary>
#
# `np.cumsum(ordered) >= ordered.sum()` is true from some place on; `np.argmax` finds the first, and one
# neuron stands at place 0.
#
# </details>
#
# </details>

# %%
# SOLUTION
ordered = np.sort(m3.mean("example").values)[::-1]
many = int(np.argmax(np.cumsum(ordered) >= ordered.sum())) + 1
# STUDENT
# many = ...
# END
check("2.3", many)

# %% [markdown]
# A mean over prompts hides that the prompts use different neurons. The answer is another name in each:

# %%
strongest = m3.values.argmax(1)
print("neurons that are the strongest of some prompt:", len(set(strongest.tolist())))
assert len(set(strongest.tolist())) > 20

# %% [markdown]
# ## What it misses: indirect effects
#
# Attribution counts what a part writes straight to the logits. A part may also change what later parts do. To
# see that, replace a head's output by that of the corrupt prompt and run the rest again: the change is the
# head's *total effect* (lesson 5 is about such swaps).

# %%
swapped = wb.effects(
    model, pairs, sites=wb.grid("z", model), value=wb.from_store(corrupt), progress=False
).mean("example")
direct = mean.sel(component=[f"a{at}.{head}" for at in range(4) for head in range(8)]).values.reshape(4, 8)
both = xr.concat(
    [swapped.copy(data=-direct), swapped], xr.DataArray(["-written", "swapped"], dims="what", name="what")
)
wb.plot(both.drop_attrs(), title="What heads write, with a minus, and what swapping them does")

# %% [markdown]
# **Exercise 2.4** (hard). Which heads write less than 0.3 in size, for or against, and yet lower the logit
# difference by more than 0.5 when they are swapped?
#
# <details><summary>Hint</summary>
#
# Two conditions on two tables [layer, head] that you have: `direct` and `swapped`.
#
# <details><summary>Nearly the answer</summary>
#
# `np.nonzero((np.abs(direct) < 0.3) & (swapped.values < -0.5))` gives the layers and the heads.
#
# </details>
#
# </details>

# %%
# SOLUTION
missed = [
    f"a{at}.{head}"
    for at, head in zip(*np.nonzero((np.abs(direct) < 0.3) & (swapped.values < -0.5)), strict=True)
]
# STUDENT
# missed = ...
# END
check("2.4", missed)

# %% [markdown]
# a3.7 too does more than it writes. The other heads of its layer run beside it, so only m3 and the norm come
# after. Run the model with a3.7 swapped, keep m3's new output, and read it as `direct_attribution` does:

# %%
theirs = wb.direct_attribution(corrupt, model, targets=pairs.answers, minus=pairs.wrong, by="head").mean(
    "example"
)
own, total = float((theirs - mean).sel(component="a3.7")), float(swapped.sel(layer=3, head=7))
run = wb.run(
    model, pairs.clean, edits={"z[3.7]": wb.from_store(corrupt)}, record=["mlp_out[3]"], other=pairs.corrupt
)
new = run.recorded["mlp_out", 3][torch.arange(64), pairs.clean.lengths - 1]
change = new - clean["mlp_out", 3].at("END")
with torch.no_grad():
    scale = (final.var(-1, unbiased=False, keepdim=True) + model.cfg.eps).sqrt()
    normed = (change - change.mean(-1, keepdim=True)) / scale * model.ln_final.w
    through = float((normed * (model.W_U[:, answers] - model.W_U[:, wrong]).T).sum(-1).mean())
print(f"a3.7 swapped: its own part {own:+.1f}, m3's part {through:+.1f}, in total {total:+.1f}")
assert abs(through) > abs(own)
assert abs(own + through - total) < 0.5

# %% [markdown]
# ## What could be wrong with this conclusion?
#
# * "m3 writes half of the answer" does not say that m3 found it. It may pass on what a head brought: when
#   a3.7 is swapped, m3's part goes as well.
# * "Without this part the logit difference would be smaller by what it wrote" is not true: the scale changes
#   with the stream. Take m3's output out of the last stream and norm what is left:

# %%
with torch.no_grad():
    without = model.unembed(model.ln_final((final - clean["mlp_out", 3].at("END"))[:, None]))[:, 0]
lost = differences - (without[torch.arange(64), answers] - without[torch.arange(64), wrong])
print(f"m3 wrote {float(mean.sel(component='m3')):.2f}; taking it out costs {float(lost.mean()):.2f}")
assert abs(float(lost.mean()) - float(mean.sel(component="m3"))) > 0.2

# %% [markdown]
# * A difference does not say which of its two logits moved. a3.7 supports the right name by lowering the
#   logit of the wrong one:

# %%
logits = {
    name: float(
        wb.direct_attribution(clean, model, targets=targets, by="head").mean("example").sel(component="a3.7")
    )
    for name, targets in {"right": pairs.answers, "wrong": pairs.wrong}.items()
}
print({name: round(value, 2) for name, value in logits.items()})
assert logits["right"] < 0
assert logits["wrong"] < -3

# %% [markdown]
# * A part that raises all names alike scores 0 in a difference of two names, and yet without it the answer
#   might not be a name at all. m1 raises both names and hardly tells them apart:

# %%
m1 = float(
    wb.direct_attribution(clean, model, targets=pairs.answers, by="head").mean("example").sel(component="m1")
)
print(f"m1: right name {m1:+.2f}, difference {float(mean.sel(component='m1')):+.2f}")
assert m1 > 4 * abs(float(mean.sel(component="m1")))

# %% [markdown]
# **Further reading.** Elhage et al., *A Mathematical Framework for Transformer Circuits* (2021); Wang et al.,
# *Interpretability in the Wild*, arXiv 2211.00593, section 3; McGrath et al., *The Hydra Effect*, arXiv
# 2307.15771, on direct against total effects.
#
# **You may not conclude** that a part which writes nothing to the logit difference has no part in the
# answer.
