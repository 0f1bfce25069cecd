# %% [markdown]
# # 1 · Residual stream and logit lens
#
# **Goal.** Read a model's guess in the middle of its computation, and say what that reading can and cannot
# show.
#
# **Time** 40 minutes. **Prerequisites** lesson 0.
#
# Every block of a transformer adds to one running sum per token, the *residual stream*. The last sum is
# normed and unembedded into logits. The *logit lens* does the same to the sums in between, as if the model
# stopped there.

# %% [markdown]
# ## Predict first
#
# `tiny` has four layers and completes "When Anna and Tom went to the park , Tom gave a ball to" with "Anna".
# Will the right name rise layer by layer, or appear at once? In which layer? Write it down before you run
# anything.

# %%
my_prediction = ""

# %%
import numpy as np

import workbench as wb
from workbench.course import check

model = wb.load_model("tiny")
pairs = wb.load_task("ioi", model, n=64)
clean, _ = wb.capture_pairs(model, pairs, progress=False)
print(" ".join(pairs.clean.strings[0]), "->", model.to_string(pairs.answers[0, 0]))

# %% [markdown]
# ## The lens by hand
#
# `clean["resid_post", layer].at("END")` is the stream [example, d_model] after a block, at the last token of
# each prompt. The model ends with `model.ln_final` and `model.unembed`; both want [example, pos, d_model].
#
# **Exercise 1.1** (easy). Write the lens as a function from streams to logits.
#
# <details><summary>Hint</summary>
#
# The two modules at the model's end, one after the other. Mind the axis that they want and you do not have.
#
# <details><summary>Nearly the answer</summary>
#
# `stream[:, None]` makes [example, 1, d_model]. Norm it, unembed it, and take position 0 of what comes out.
#
# </details>
#
# </details>


# %%
# SOLUTION
def read(stream):
    return model.unembed(model.ln_final(stream[:, None]))[:, 0]


# STUDENT
# def read(stream):
#     return ...
# END


check("1.1", read)

# %% [markdown]
# The workbench has it as `wb.logit_lens`, for every layer and position at once. `targets` and `minus` make it
# a logit difference: the right name's logit minus the wrong one's.

# %%
lens = wb.logit_lens(clean, model, targets=pairs.answers, minus=pairs.wrong)
wb.plot(lens.isel(example=[0]))

# %% [markdown]
# That is the picture to remember: positions from left to right, layers from bottom to top, the answer
# arriving in the upper right corner.

# %% [markdown]
# ## When does the answer appear?
#
# `measure="rank"` counts the words whose logit is higher than the right one's: 0 is the first choice. Prompts
# differ in length, so END is at another index in each.

# %%
ranks = wb.logit_lens(clean, model, targets=pairs.answers, measure="rank")
end = pairs.clean.lengths - 1
print("after the last layer:", np.mean(ranks.values[np.arange(64), 3, end] == 0))

# %% [markdown]
# **Exercise 1.2** (easy). After which layer is the right name for the first time the first choice for more
# than half of the prompts?
#
# <details><summary>Hint</summary>
#
# For each layer, the share of prompts whose rank at their own END is 0.
#
# <details><summary>Nearly the answer</summary>
#
# `ranks.values[np.arange(64), layer, end] == 0` is [example]; its mean is the share. Go through the layers
# until it is above one half.
#
# </details>
#
# </details>

# %%
# SOLUTION
layer = next(at for at in range(4) if np.mean(ranks.values[np.arange(64), at, end] == 0) > 0.5)
# STUDENT
# layer = ...
# END
check("1.2", layer)

# %% [markdown]
# **Exercise 1.3** (medium). How much does each of the layers 1, 2 and 3 add to the mean logit difference at
# END?
#
# <details><summary>Hint</summary>
#
# What a layer adds is the difference between two readings of the lens.
#
# <details><summary>Nearly the answer</summary>
#
# Take the mean of `lens` over the prompts at END, one number a layer; `np.diff` gives the three steps.
#
# </details>
#
# </details>

# %%
# SOLUTION
reached = lens.values[np.arange(64), :, end].mean(0)
added = np.diff(reached)
# STUDENT
# added = ...
# END
check("1.3", added)

# %% [markdown]
# ## What could be wrong with this conclusion?
#
# * The lens reads every layer with the *last* layer's norm and unembedding. A layer may hold the answer in
#   another direction, which only a later block turns into the one that the unembedding reads: what the lens
#   does not read may still be there. The tuned lens fits a translation for each layer, so that the lens gives
#   the final logits as nearly as it can.

# %%
train = wb.capture(
    model, wb.load_task("ioi", model, n=300, seed=1).clean, sites=["resid_post"], progress=False
)
tuned = wb.fit_tuned_lens(train, model, progress=False)
kl = {}
for name, translation in {"logit lens": None, "tuned lens": tuned}.items():
    distance = wb.logit_lens(clean, model, measure="kl", lens=translation).mean(("example", "pos")).values
    kl[name] = distance
    print(f"{name}: nats to the final prediction after layers 0, 1, 2: {distance[:3].round(2)}")
assert (kl["tuned lens"][:3] < kl["logit lens"][:3]).all()

# %% [markdown]
# * Reading is not using. That the name can be read in a layer does not say that the model reads it there: for
#   that, change it and look at the answer (lessons 3 and 5).
#
# **Further reading.** nostalgebraist, *interpreting GPT: the logit lens* (2020); Belrose et al., *Eliciting
# Latent Predictions from Transformers with the Tuned Lens*, arXiv 2303.08112; Elhage et al., *A Mathematical
# Framework for Transformer Circuits* (2021).
#
# **You may not conclude** that the model reads a name in a layer because the lens can read it there.
