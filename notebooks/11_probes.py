# %% [markdown]
# # 11 · Sparse probes: used or merely decodable
#
# **Goal.** Fit a probe, know what to compare its accuracy with, and test whether the model uses what the
# probe reads.
#
# **Time** 50 minutes. **Prerequisites** lesson 1.
#
# A *probe* is a classifier from activations to a concept. A *k-sparse* probe gets only the k features that
# look best on the training prompts; it asks where a concept is, and not only whether it is somewhere.

# %% [markdown]
# ## Predict first
#
# "Ruth says that the window near the trees" goes on with "is": the subject "window" is singular, whatever
# stands between. At the last token, "trees", in which of the four layers of `tiny` can the *subject's* number
# be read? In which does the model use it there?

# %%
my_prediction = ""

# %%
import numpy as np
import torch

import workbench as wb
from workbench.course import check

model = wb.load_model("tiny")
pairs = wb.load_task("agreement", model, n=200)
clean, corrupt = wb.capture_pairs(model, pairs, sites=["resid_post"], progress=False)
for side in (pairs.clean, pairs.corrupt):
    print(" ".join(side.strings[0]))

# %% [markdown]
# ## Which features?
#
# Features are ranked by how far apart the two classes are, on the training prompts only. Welch's t does it:
# the gap between the class means in units of its standard error, $|m_1 - m_0| \, / \sqrt{s_1^2/n_1 +
# s_0^2/n_0}$, with $s_c^2$ the variance within a class of $n_c$ rows.
#
# **Exercise 11.1** (easy). Write it: `x` is [row, feature], `labels` [row] holds True and False.
#
# <details><summary>Hint</summary>
#
# Class means, class variances (of a sample, as `.var(0)` makes them), and the numbers of rows: one of each
# for each class.
#
# <details><summary>Nearly the answer</summary>
#
# `one, zero = x[labels], x[~labels]`; the size of the difference of the means, divided by the root of
# `one.var(0) / len(one) + zero.var(0) / len(zero)`.
#
# </details>
#
# </details>


# %%
# SOLUTION
def welch(x, labels):
    one, zero = x[labels], x[~labels]
    return (one.mean(0) - zero.mean(0)).abs() / (one.var(0) / len(one) + zero.var(0) / len(zero)).sqrt()


# STUDENT
# def welch(x, labels):
#     return ...
# END


check("11.1", welch)

# %% [markdown]
# ## How well does it read, and compared with what?
#
# `Labels.of_concepts` labels each prompt by its subject, "plural" or "singular", read at END. `fit_probes`
# holds out whole prompts (`test_share`) and adds two controls, ten draws of each:
#
# * `shuffle-i`: the same features and rows with permuted labels. What it reaches is luck.
# * `random-features-i`: k features drawn at random instead of the k best.

# %%
labels = wb.Labels.of_concepts(clean, ["number"], pos="END")
probes = wb.fit_probes(clean, labels, k=[1, 2, 4, 8, 16], draws=10)
accuracy = probes.results["accuracy"].sel(concept="number", selector="welch")
print("axes", accuracy.dims, "- controls", accuracy["control"].values[[0, 1, 11]], "...")
print("chosen features, [layer, k]:\n", accuracy.sel(control="none").values.round(2))
assert (accuracy.sel(control="none", k=16) == 1).all()
wb.plot(probes)

# %% [markdown]
# That is the picture to remember: an accuracy never stands alone. Grey are shuffled labels, brown random
# features (16 of them), each with the range of its ten draws.
#
# **Exercise 11.2** (easy). In layer 2, how much better are the chosen features than random ones, for each k?
# Give chosen minus the mean of the ten draws.
#
# <details><summary>Hint</summary>
#
# Ten of the controls are called `random-features-0` to `random-features-9`.
#
# <details><summary>Nearly the answer</summary>
#
# `accuracy.sel(layer=2)`: its entry `control="none"` minus the mean over those ten.
#
# </details>
#
# </details>

# %%
# SOLUTION
in_layer = accuracy.sel(layer=2)
random = in_layer.sel(control=[f"random-features-{draw}" for draw in range(10)]).mean("control")
advantage = (in_layer.sel(control="none") - random).values
# STUDENT
# advantage = ...
# END
check("11.2", advantage)

# %% [markdown]
# ## A perfect score on held-out prompts
#
# With k=16 the subject's number is read without an error in every layer, layer 0 too, and on prompts that the
# probe never saw. Before believing it, try the probe on other prompts: the corrupt ones, where the subject
# has the other number and all else is the same.
#
# `probes.direction("number", layer=…, k=…)` is the probe as a vector [d_model]; with `intercept` it gives a
# logit, positive for the *last* of `labels.concept("number").classes`.
#
# **Exercise 11.3** (medium). What is the accuracy of the k=16 probes on the 200 corrupt prompts, layer by
# layer? Label the corrupt prompts by their own subjects.
#
# <details><summary>Hint</summary>
#
# The probe is a vector and an intercept; its logit says the class. Whose labels, and whose activations?
#
# <details><summary>Nearly the answer</summary>
#
# `corrupt["resid_post", layer].at("END").double() @ probes.direction("number", layer=layer, k=16)` plus the
# intercept of that layer and k; above 0 is the second class. Compare with labels made of `corrupt`.
#
# </details>
#
# </details>

# %%
# SOLUTION
theirs = wb.Labels.of_concepts(corrupt, ["number"], pos="END").concept("number").codes == 1
moved = []
for layer in range(4):
    intercept = float(probes.results["intercept"].sel(layer=layer, k=16, control="none").squeeze())
    logit = (
        corrupt["resid_post", layer].at("END").double() @ probes.direction("number", layer=layer, k=16)
        + intercept
    )
    moved.append(np.mean((logit > 0).numpy() == theirs))
# STUDENT
# moved = ...
# END
check("11.3", moved)

# %% [markdown]
# In every clean prompt of this task the noun at END has the other number than the subject:

# %%
at_end = np.array([strings[-1].endswith("s") for strings in pairs.clean.strings])
subject = labels.concept("number").codes == 0
print(
    "classes:",
    labels.concept("number").classes,
    "- subject and last noun have the same number:",
    np.mean(at_end == subject),
)
assert (at_end != subject).all()

# %% [markdown]
# So "the subject is plural" and "this noun is singular" are one labelling. No held-out share and neither
# control can tell them apart: all are taken from the same prompts. Prompts that break the tie can. In a
# mixture of clean and corrupt prompts the last noun says nothing about the subject.

# %%
sides = (pairs.clean, pairs.corrupt)
mixed = wb.Prompts.of(
    [side.tokens[i, : side.lengths[i]].tolist() for side in sides for i in range(200)],
    strings=pairs.clean.strings + pairs.corrupt.strings,
    positions=[
        {name: int(at[i]) for name, at in side.positions.items()} for side in sides for i in range(200)
    ],
    bos=True,
)
store = wb.capture(model, mixed, sites=["resid_post"], progress=False)
held_out = np.arange(400) % 200 < 60  # a clean prompt and its corrupt one stay on the same side
fair_labels = wb.Labels.of_concepts(store, ["number"])
fair = wb.fit_probes(
    store, fair_labels, k=[4, 16, 64], controls=[], baselines=["mass-mean"], held_out=held_out
)
fair_accuracy = fair.results["accuracy"].squeeze()
print("mixed prompts, [layer, k=4, 16, 64]:\n", fair_accuracy.values.round(2))
assert fair_accuracy.sel(k=4, layer=[0, 1]).max() < 0.75
assert fair_accuracy.sel(k=4, layer=3).min() > 0.98

# %% [markdown]
# Four features read the subject at END in layer 3. In layers 0 and 1 they hardly do: the early score belonged
# to the noun. What 64 of the 128 coordinates find there is spread thin.
#
# ## Is it used?
#
# To read is not to use. Take the probe's direction, and give a clean run the part along it that the corrupt
# run has (*swap*), or that the average run has (*erase*). If the model reads that direction, its answer
# moves. The control: random directions drawn from the same activations. Exchanging a direction in which
# activations vary a lot changes a lot, whatever the concept.
#
# **Exercise 11.4** (medium). Write the swap: `x` and `other` are [example, d], `direction` [d] has any length.
#
# <details><summary>Hint</summary>
#
# Only the part along the direction changes. A direction twice as long is the same direction.
#
# <details><summary>Nearly the answer</summary>
#
# With `unit = direction / direction.norm()`: add `((other - x) @ unit)[:, None] * unit` to `x`.
#
# </details>
#
# </details>


# %%
# SOLUTION
def swap(x, other, direction):
    unit = direction / direction.norm()
    return x + ((other - x) @ unit)[:, None] * unit


# STUDENT
# def swap(x, other, direction):
#     return ...
# END


check("11.4", swap)

# %% [markdown]
# `wb.causal_check` does it. `used` is 1 where the effect is at least 1 % of the whole difference between the
# runs, its interval excludes 0, and at most one in twenty directions, the probe's among them, is as strong.

# %%
few = pairs.select(range(16))
stores = wb.capture_pairs(model, few, sites=["resid_post"], progress=False)
options = {"concept": "number", "kind": "resid_post", "stores": stores, "n_random": 19}
checks = {
    "layer 1, clean prompts, k=16": wb.causal_check(probes, model, few, layers=[1], k=16, **options),
    "layer 3, mixed prompts, k=4": wb.causal_check(fair, model, few, layers=[3], k=4, **options),
    "layer 3, mixed prompts, mass-mean": wb.causal_check(
        fair, model, few, layers=[3], baseline="mass-mean", **options
    ),
}
for name, checked in checks.items():
    one = checked.isel(layer=0).sel(edit="swap")
    print(f"{name}: reads {float(one.accuracy):.2f}, swap {float(one.effect):+.2f} of {one.attrs['total']:.1f}, "
          f"random up to {float(one.random):.2f}, p {float(one.p):.2f}, used {float(one.used):.0f}")  # fmt: skip
assert all(float(checked["accuracy"].squeeze()) == 1 for checked in checks.values())
assert [float(checked["used"].sel(edit="swap").squeeze()) for checked in checks.values()] == [0, 0, 1]

# %% [markdown]
# Three probes that read without an error, and three different answers:
#
# * Layer 1: decodable and not used there. Even the whole activation matters little (`whole`): the answer is
#   made elsewhere.
# * Layer 3, four coordinates of the stream: swapping what the probe reads does less than random directions
#   do. What the model reads lies mostly elsewhere (the cosine below).
# * Layer 3, *mass-mean*: the direction from one class mean to the other, over all coordinates. Swapping it
#   reverses the answer.
#
# So "not used" is a verdict on a direction, not on a concept.

# %%
assert abs(float(checks["layer 1, clean prompts, k=16"]["whole"][0])) < 0.1 * 26
sparse, dense = (
    fair.direction("number", layer=3, k=4),
    fair.direction("number", layer=3, baseline="mass-mean"),
)
cosine = float(torch.nn.functional.cosine_similarity(sparse.flatten(), dense.flatten().double(), dim=0))
print(f"cosine between the two directions of layer 3: {cosine:.2f}")
assert abs(cosine) < 0.5
wb.plot(checks["layer 3, mixed prompts, mass-mean"])

# %% [markdown]
# ## Where the truth is known
#
# In `wb.planted("induction")` every weight was set by hand: one head of layer 1 writes the answer, another,
# the *decoy*, holds it just as well and is read by nothing. The function below probes one head's output `z`
# for which word is the answer.

# %%
planted = wb.planted("induction", n=120)
answer_pairs = wb.planted_pairs(planted)
runs = wb.capture_pairs(planted.model, answer_pairs, progress=False)
answers = wb.Labels.per_prompt(
    runs[0], {"answer": [f"w{token}" for token in answer_pairs.answers[:, 0, 0].tolist()]}
)
width = wb.Shape.of(planted.model).d_head


def probed(head):
    """A probe of layer 1 that is given the features of one head."""
    features = {("z", 1): list(range(head * width, (head + 1) * width))}
    return wb.fit_probes(
        runs[0], answers, sites=["z"], layers=[1], k=[width], selectors=["given"], given=features, controls=[]
    )


print("can be read in head 0:", float(probed(0).results["accuracy"].squeeze()))

# %% [markdown]
# **Exercise 11.5** (hard). Which head of layer 1 (`a1.0`, `a1.1`, `a1.2`) is used, and which is the decoy?
# `causal_check` takes `concept="answer"`, `kind="z"` and `stores=runs`.
#
# <details><summary>Hint</summary>
#
# Which heads can be read at all? Of those, which does the model read?
#
# <details><summary>Nearly the answer</summary>
#
# For each head `wb.causal_check(probed(head), planted.model, answer_pairs, concept="answer", kind="z",
# stores=runs)`: both heads have an accuracy above 0.9, and `used` at the edit `swap` tells them apart.
#
# </details>
#
# </details>

# %%
# SOLUTION
verdicts = {"used": "", "decoy": ""}
for head in range(3):
    checked = wb.causal_check(
        probed(head), planted.model, answer_pairs, concept="answer", kind="z", stores=runs
    ).isel(layer=0)
    if float(checked["accuracy"]) > 0.9:
        verdicts["used" if float(checked["used"].sel(edit="swap")) else "decoy"] = f"a1.{head}"
# STUDENT
# verdicts = {"used": ..., "decoy": ...}
# END
check("11.5", verdicts)

# %% [markdown]
# ## What could be wrong with this conclusion?
#
# * **The labels.** A probe learns whatever goes with them. Held-out prompts of the same kind share the
#   confound, as above; ask which prompts would break it.
# * **The direction.** Erasing what a probe reads need not erase the concept: a second probe may find it again
#   elsewhere. A probe that is not used does not show a concept that is not used.
# * **The edit.** A swapped direction can make activations that no prompt makes. Random directions of the same
#   activations are the guard, and it is a weak one where one direction holds nearly all of the variance.
# * **The place.** These probes read one position. "Not used at END in layer 1" leaves SUBJECT, where the
#   number enters:

# %%
whole = wb.effects(
    model,
    few,
    sites=["resid_post[1]@SUBJECT", "resid_post[1]@END"],
    value=wb.from_store(stores[1]),
    progress=False,
)
print("whole activation of layer 1 swapped, at SUBJECT and at END:", whole.mean("example").values.round(1))
assert abs(whole.mean("example").values[0]) > 10 * abs(whole.mean("example").values[1])

# %% [markdown]
# **Further reading.** Alain & Bengio, *Understanding intermediate layers using linear classifier probes*,
# arXiv 1610.01644; Hewitt & Liang, *Designing and Interpreting Probes with Control Tasks*, arXiv 1909.03368;
# Elazar et al., *Amnesic Probing*, arXiv 2006.00995; Gurnee et al., *Finding Neurons in a Haystack: Case
# Studies with Sparse Probing*, arXiv 2305.01610.
#
# **You may not conclude** that a model uses a concept because a probe reads it, nor that it does not
# because one direction is idle.
