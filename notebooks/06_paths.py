# %% [markdown]
# # 6 · Path patching, and how heads compose
#
# **Goal.** Follow a difference from the prompt to the logits edge by edge, and say through which input one
# head feeds another.
#
# **Time** 50 minutes. **Prerequisites** lesson 5.
#
# Activation patching changes a node, and everything after it reacts. *Path patching* changes what one node
# sends to one reader. Three runs make one path effect:
#
# 1. The clean and the corrupt run are stored.
# 2. The clean run goes again with the *sender* set to its corrupt output and every other head held at its
#    clean output. What the *receiver* would read in it is kept.
# 3. The clean run goes again with only that reader's input set; everything after the reader is free.

# %% [markdown]
# ## Predict first
#
# A head reads the residual stream three times: for its queries (what it looks for), its keys (where it can be
# found) and its values (what it moves). In lesson 5 head a3.7 moved the answer to END. Clean and corrupt
# prompt differ in the name at S2. Through which of the three inputs does that difference reach a3.7?

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
corrupt_value = wb.from_store(corrupt)


def change(paths, mlps="frozen", value=corrupt_value):
    """Mean change of the logit difference for each path."""
    table = wb.path_effects(model, pairs, paths=paths, value=value, mlps=mlps, progress=False)
    return dict(zip(paths, table.mean("example").values.tolist(), strict=True))


total = wb.effects(model, pairs, sites=wb.grid("z", model), value=corrupt_value, progress=False).mean(
    "example"
)
whole = float(wb.effects(model, pairs, sites=["resid_pre[0]"], value=corrupt_value, progress=False).mean())
print(f"corrupting the whole input changes the logit difference by {whole:.2f}")
print(f"corrupting a3.7 alone changes it by {float(total[3, 7]):.2f}")

# %% [markdown]
# ## From a head to the logits
#
# `a3.7->logits` is the direct edge. `mlps="frozen"` holds the MLPs too; `mlps="recomputed"` lets them react
# to what reaches them.
#
# **Exercise 6.1** (easy). Head a3.7 is in the last layer; only the MLP of its own block comes after it. What
# share of its total effect has the direct edge? Means over the prompts, then one ratio.
#
# <details><summary>Hint</summary>
#
# Both numbers are changes of the same logit difference; one of them is in `total`.
#
# <details><summary>Nearly the answer</summary>
#
# `change(["a3.7->logits"])["a3.7->logits"] / float(total[3, 7])`.
#
# </details>
#
# </details>

# %%
# SOLUTION
share = change(["a3.7->logits"])["a3.7->logits"] / float(total[3, 7])
# STUDENT
# share = ...
# END
check("6.1", share)

# %% [markdown]
# **Exercise 6.2** (medium). Make a direct edge by hand, as a function of a layer and a head: the change
# [example] of the clean run's logit difference when the head's `z` is corrupt and all *later* heads and MLPs,
# with that of the head's own block, keep their clean outputs. `wb.run(model, pairs.clean, edits={...},
# other=pairs.corrupt)` takes a dictionary from sites to values; `hold` writes the clean output.
#
# <details><summary>Hint</summary>
#
# Which nodes come after the head? The MLP of its own block, and in every later block the attention and the
# MLP.
#
# <details><summary>Nearly the answer</summary>
#
# `edits` has `f"z[{layer}.{head}]": corrupt_value`, `f"mlp_out[{layer}]": hold`, and for each later layer
# `attn_out` and `mlp_out` with `hold`. Subtract the logit differences of the run without edits.
#
# </details>
#
# </details>

# %%
hold = wb.from_store(clean, allow_self=True)
rows, end = torch.arange(64), pairs.clean.lengths - 1


def logit_difference(logits):
    last = logits[rows, end]
    return (last[rows, pairs.answers[:, 0, 0]] - last[rows, pairs.wrong[:, 0, 0]]).numpy()


# %%
# SOLUTION
def direct(layer, head):
    edits = {f"z[{layer}.{head}]": corrupt_value, f"mlp_out[{layer}]": hold}
    for after in range(layer + 1, 4):
        edits |= {f"attn_out[{after}]": hold, f"mlp_out[{after}]": hold}
    patched = wb.run(model, pairs.clean, edits=edits, other=pairs.corrupt).logits
    return logit_difference(patched) - logit_difference(wb.run(model, pairs.clean).logits)


# STUDENT
# def direct(layer, head):
#     edits = ...
#     return ...
# END


check("6.2", direct)

# %% [markdown]
# ## Frozen or recomputed
#
# Both are in the literature, and they answer different questions. Three numbers for one head:

# %%
kinds = {"frozen": change(["a0.1->logits"]), "recomputed": change(["a0.1->logits"], mlps="recomputed")}
effect = {name: found["a0.1->logits"] for name, found in kinds.items()} | {"total": float(total[0, 1])}
print({name: round(value, 2) for name, value in effect.items()})
assert abs(effect["frozen"]) < 0.1
assert effect["recomputed"] < 1.5 * effect["total"] < 0

# %% [markdown]
# * *frozen*: a0.1 writes nothing that the unembedding reads.
# * *recomputed*: through MLPs, with the later heads held, it matters.
# * *total*: less than that. The later heads, once they are free, take part of it back.
#
# Through which MLP?

# %%
through = change([f"a0.1->m{layer}->logits" for layer in range(4)])
print({path: round(value, 2) for path, value in through.items()})
assert min(through, key=through.get) == "a0.1->m0->logits"

# %% [markdown]
# ## Into the mover's q, k and v
#
# `senders` and `receivers` make a table. A receiver such as `a3.7<v>` is one input of the head.

# %%
senders = ["input", "m0", "m1", "m2", "a0.1", "a1.0", "a2.1", "a2.6", "a2.7"]
readers = ["a3.7<q>", "a3.7<k>", "a3.7<v>"]
into = wb.path_effects(
    model, pairs, senders=senders, receivers=readers, value=corrupt_value, mlps="frozen", progress=False
)
wb.plot(into, title="Into a3.7: queries, keys, values")

# %% [markdown]
# That is the picture to remember, with the queries on the left, then the keys, then the values: of all that
# head a3.7 reads, one edge carries the difference.

# %%
mean = into.mean("example")
assert mean.idxmin("writer").sel(reader="a3.7<v>") == "m0"
assert np.isclose(float(mean.sel(writer="m0", reader="a3.7<v>")), whole, rtol=0.02)
assert float(abs(mean.sel(reader=readers[:2])).max()) < 0.1 * abs(whole)

# %% [markdown]
# **Exercise 6.3** (medium). A reader can be named at one position: `"m0->a3.7<k>@S1->logits"` patches only
# the key at S1. Through which input at which of the positions IO, S1, S2 and END does what m0 writes change
# most? Answer as in `"a2.0<k>@S1"`.
#
# <details><summary>Hint</summary>
#
# Three inputs at four positions are twelve paths; `change` takes them in one list.
#
# <details><summary>Nearly the answer</summary>
#
# `f"m0->{reader}@{position}->logits"` for each, with `mlps="recomputed"`. The most negative one is the
# answer.
#
# </details>
#
# </details>

# %%
# SOLUTION
inputs = [f"{reader}@{position}" for reader in readers for position in ("IO", "S1", "S2", "END")]
changes = change([f"m0->{reader}->logits" for reader in inputs], mlps="recomputed")
reader = min(changes, key=changes.get).split("->")[1]
# STUDENT
# reader = ...
# END
check("6.3", reader)

# %% [markdown]
# Where the values come from says where the head looks. In GPT-2's circuit for this task the name movers
# attend to the IO and copy it, and the difference reaches them through their *queries*. `tiny` found a
# shortcut: a3.7 attends to S2 itself and suppresses that name.

# %%
looks = wb.attention_to(clean, ["IO", "S1", "S2"]).mean("example").sel(layer=3, head=7)
print({str(at): round(float(looks.sel(key_pos=at)), 2) for at in looks.key_pos.values})
assert float(looks.sel(key_pos="S2")) > 0.5

for name, target in (("IO", pairs.answers), ("S2", pairs.wrong)):
    written = (
        wb.direct_attribution(clean, model, targets=target, by="head").mean("example").sel(component="a3.7")
    )
    print(f"a3.7 writes {float(written):.2f} to the logit of {name}")
    assert (float(written) < -3) == (name == "S2")

# %% [markdown]
# ## Three kinds of composition
#
# The planted model `compositions` has a head that three others feed, each through another input: *Q-*, *K-*
# and *V-composition*. Noising the three heads does not tell them apart.

# %%
planted = wb.planted("compositions", seed=3, n=24)
prompts = wb.planted_pairs(planted)
_, changed = wb.capture_pairs(planted.model, prompts, progress=False)
print(" ".join(prompts.clean.strings[0]), "| target:", planted.heads["target"])
one_by_one = wb.effects(
    planted.model,
    prompts,
    sites=wb.grid("z", planted.model, layer=0),
    value=wb.from_store(changed),
    progress=False,
).mean("example")
print(one_by_one.values.round(2))
assert np.isclose(np.sort(one_by_one.values[0])[:3], one_by_one.values.min(), atol=0.01).all()

# %% [markdown]
# **Exercise 6.4** (medium). Which head feeds the target's queries, which its keys, which its values? Read it
# off path effects, not off `planted.heads`. Answer with a dictionary from "q", "k" and "v" to heads.
#
# <details><summary>Hint</summary>
#
# A table of senders by receivers, with all heads of layer 0 as senders and the target's three inputs as
# receivers.
#
# <details><summary>Nearly the answer</summary>
#
# `wb.path_effects(planted.model, prompts, senders=[...], receivers=[f"{target}<{port}>" for port in "qkv"],
# value=wb.from_store(changed), mlps="frozen")`; in each column the sender with the most negative mean.
#
# </details>
#
# </details>

# %%
# SOLUTION
target = planted.heads["target"]
fed = wb.path_effects(
    planted.model,
    prompts,
    senders=[f"a0.{head}" for head in range(planted.model.cfg.n_heads)],
    receivers=[f"{target}<{port}>" for port in "qkv"],
    value=wb.from_store(changed),
    mlps="frozen",
    progress=False,
).mean("example")
feeds = {port: str(fed.sel(reader=f"{target}<{port}>").idxmin().values) for port in "qkv"}
# STUDENT
# feeds = {"q": ..., "k": ..., "v": ...}
# END
check("6.4", feeds)

# %% [markdown]
# ## Longer paths
#
# A path may have any length: the same step is repeated along it.
#
# **Exercise 6.5** (hard). Find one path in `tiny` from `input` to `logits` with three nodes in between, MLPs
# frozen, that alone carries at least 30 % of the whole difference. You know its first two nodes. Write it as
# in `"input->a0.0->a2.0<k>->m3->logits"`.
#
# <details><summary>Hint</summary>
#
# The first two nodes are where the difference enters, and the head it reaches through its values. What comes
# after a3.7 in its own block?
#
# <details><summary>Nearly the answer</summary>
#
# `input->m0->a3.7<v>->` and one more node before `logits`: the only one that can read a3.7.
#
# </details>
#
# </details>

# %%
# SOLUTION
path = "input->m0->a3.7<v>->m3->logits"
print(change([path])[path] / whole)
# STUDENT
# path = ...
# END
check("6.5", path)

# %% [markdown]
# ## What could be wrong with this conclusion?
#
# * **The pair again.** "Through the values" is about what differs between *these* prompts. Both make a3.7
#   look at S2, so its query hardly carries a difference; it is used nevertheless, and another value shows it.

# %%
query = {
    name: float(wb.effects(model, pairs, sites=["q[3.7]"], value=value, progress=False).mean())
    for name, value in {"corrupt": corrupt_value, "mean": wb.mean(clean), "zero": wb.zero()}.items()
}
print({name: round(value, 2) for name, value in query.items()})
assert abs(query["corrupt"]) < 1.5
assert max(query["mean"], query["zero"]) < -5

# %% [markdown]
# * **Paths do not add up.** MLPs are not linear, and attention multiplies. The two edges into the AND of
#   lesson 5, one by one and both at once:

# %%
from workbench.course.patching import gate

planted, both = gate("and")
_, neither = wb.capture_pairs(planted, both, progress=False)
parts = wb.path_effects(
    planted,
    both,
    senders=["a1.0", "a1.2", ("a1.0", "a1.2")],
    receivers="m1",
    value=wb.from_store(neither),
    mlps="frozen",
    progress=False,
).mean("example")
print("one by one", parts.values[:2, 0].round(2), "at once", parts.values[2].round(2))
assert np.isclose(parts.values[0], parts.values[2]).all()

# %% [markdown]
# * **A held node is an intervention.** Frozen nodes do not react to what they would have seen; the model
#   never runs like that on any prompt. The effect of a path may be small because the nodes that usually pass
#   it on are held, or large because those that usually reduce it are held, as with a0.1 above.
# * **The choice of senders.** A path that was not tried was not excluded. `senders=None` takes all heads,
#   MLPs and the input.
#
# **Further reading.** Wang et al., *Interpretability in the Wild*, arXiv 2211.00593; Goldowsky-Dill et al.,
# *Localizing Model Behavior with Path Patching*, arXiv 2304.05969; Elhage et al., *A Mathematical Framework
# for Transformer Circuits* (2021), on Q-, K- and V-composition.
#
# **You may not conclude** that an input of a head is not used because no difference between two prompts
# passes through it.
