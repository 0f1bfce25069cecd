# %% [markdown]
# # 0 · First look
#
# **Goal.** See what goes into a language model, what comes out and where its heads look, and run a first
# study of it.
#
# **Time** 30 minutes. **Prerequisites** Python; nothing about transformers beyond what they are for.
#
# A language model reads tokens and gives, at every position, a score to each token that could come next.
# Mechanistic interpretability asks which of its parts compute that score, and how. This course asks it of
# `tiny`, a transformer of four layers with eight attention heads each, which runs on a laptop in
# milliseconds. Here is one of its 32 heads, reading a sentence:

# %%
import workbench as wb
from workbench.render import panels

model = wb.load_model("tiny")
prompt = "When Anna and Tom went to the park , Tom gave a ball to"
panels.attention(wb.capture(model, [prompt], sites=["pattern"], progress=False), heads=["a3.7"])

# %% [markdown]
# The row of the last word, "to", is where the model decides what comes next. There the head looks at "Tom".
# Does the model then say "Tom"?
#
# ## Predict first
#
# `tiny` was trained on short sentences like this one. Which word does it put next, and with what probability?
# What is the head's look at "Tom" for? Would it do the same with the two names the other way round? Write it
# down before you go on.

# %%
my_prediction = ""

# %% [markdown]
# ## The parts
#
# ![A transformer as a line from left to right, the residual stream. Tokens are embedded into it; in each layer eight heads read it and add to it, then an MLP does; at the end the sum is normed and unembedded into logits.](attachment:transformer.png)
#
# Every lesson uses these names. Come back to the picture when one of them means nothing to you.

# %%
import numpy as np
import torch

from workbench.course import check

print(model.cfg.n_layers, "layers,", model.cfg.n_heads, "heads in each,", model.cfg.d_vocab, "words")

# %% [markdown]
# ## Tokens
#
# A tokenizer cuts text into tokens from a fixed vocabulary. Large models use pieces of words; for `tiny` a
# token is a word or a punctuation mark, with spaces between. A beginning-of-sequence token, `<bos>`, comes
# first: it stood before every training text.

# %%
tokens = model.to_tokens(prompt)
print(tokens.shape, "[example, pos]")
print(list(zip(model.to_str_tokens(tokens), tokens[0].tolist(), strict=True)))

# %% [markdown]
# ## Logits
#
# The output has a number for every word of the vocabulary at every position: the *logits* [example, pos,
# vocab]. Those at a position say what comes after it. Attention is causal, so a position sees only itself and
# what is before it.

# %%
with torch.no_grad():
    logits = model(tokens)
    shorter = model(tokens[:, :9])
print(tuple(logits.shape))
assert torch.allclose(logits[:, :9], shorter, atol=1e-4)  # later words change nothing at earlier positions

# %% [markdown]
# **Exercise 0.1** (easy). Write a function from a text to the word with the highest logit after it.
# `model.to_string` makes a word of a token's number.
#
# <details><summary>Hint</summary>
#
# The logits are [example, pos, vocab]. Which position says what comes after the text?
#
# <details><summary>Nearly the answer</summary>
#
# Take `model(model.to_tokens(text))[0, -1]`, the logits after the last token, and give the place of the
# largest (`.argmax()`) to `model.to_string`.
#
# </details>
#
# </details>


# %%
# SOLUTION
def next_word(text):
    return model.to_string(model(model.to_tokens(text))[0, -1].argmax())


# STUDENT
# def next_word(text):
#     return ...
# END


check("0.1", next_word)

# %% [markdown]
# The softmax turns the logits of a position into probabilities: $p_w = e^{l_w} / \sum_v e^{l_v}$. Adding the
# same number to all logits changes no probability, so one logit alone means nothing; a difference of two
# does: it is the logarithm of the ratio of their probabilities.

# %%
probabilities, shifted = logits.softmax(-1), (logits + 5).softmax(-1)
assert torch.allclose(probabilities, shifted, atol=1e-5)

# %% [markdown]
# **Exercise 0.2** (easy). What probability does `tiny` give to "Anna" after `prompt`?
# `model.to_single_token("Anna")` is her number.
#
# <details><summary>Hint</summary>
#
# Probabilities come from the softmax over the vocabulary, which is done above. Which position, and which
# word?
#
# <details><summary>Nearly the answer</summary>
#
# Index `probabilities` three times: example 0, the last position, and the number that
# `model.to_single_token` gives for "Anna".
#
# </details>
#
# </details>

# %%
# SOLUTION
probability = probabilities[0, -1, model.to_single_token("Anna")]
# STUDENT
# probability = ...
# END
check("0.2", probability)

# %% [markdown]
# And with the names in the other roles?

# %%
turned = "When Anna and Tom went to the park , Anna gave a ball to"
with torch.no_grad():
    words = [model.to_string(model(model.to_tokens(text))[0, -1].argmax()) for text in (prompt, turned)]
print(words)
assert words == ["Anna", "Tom"]

# %% [markdown]
# ## Many prompts
#
# One prompt is an anecdote. `wb.load_task` makes as many as you want, with the right and the wrong next word
# of each, and a *corrupt* partner: the same prompt with a small change that reverses the answer. This task is
# *indirect object identification* (IOI): of two names the repeated one gives, so the other one (the indirect
# object) receives.

# %%
pairs = wb.load_task("ioi", model, n=64)
print("clean:  ", " ".join(pairs.clean.strings[0]), "->", model.to_string(pairs.answers[0, 0]))
print("corrupt:", " ".join(pairs.corrupt.strings[0]), "->", model.to_string(pairs.wrong[0, 0]))

# %% [markdown]
# Prompts have names for their positions. IO is the indirect object, S1 and S2 are the two places of the
# repeated name, END is the last token. `pairs.clean.tokens` [example, pos] is padded with zeros after the
# shorter prompts; `pairs.clean.lengths` says where each one ends.

# %%
print({name: int(at[0]) for name, at in pairs.clean.positions.items()}, pairs.clean.lengths[:6].tolist())

# %% [markdown]
# **Exercise 0.3** (medium). Compute the *logit difference* of each prompt: the right name's logit minus the
# wrong one's, at the prompt's own last token. `pairs.answers[:, 0, 0]` and `pairs.wrong[:, 0, 0]` are the two
# names [example].
#
# <details><summary>Hint</summary>
#
# Prompts differ in length, so the last token is at another index in each. What stands after it is padding.
#
# <details><summary>Nearly the answer</summary>
#
# With `rows = torch.arange(64)` and `end = pairs.clean.lengths - 1`, `model(pairs.clean.tokens)[rows, end,
# tokens]` picks one logit of each prompt. Do it for the right and for the wrong names, and subtract.
#
# </details>
#
# </details>

# %%
# SOLUTION
rows, end = torch.arange(64), pairs.clean.lengths - 1
out = model(pairs.clean.tokens)
differences = out[rows, end, pairs.answers[:, 0, 0]] - out[rows, end, pairs.wrong[:, 0, 0]]
# STUDENT
# differences = ...
# END
check("0.3", differences)

# %% [markdown]
# Their mean is the number that most lessons try to explain.

# %% [markdown]
# ## Attention
#
# Heads are the only parts that move information between positions. At each position (the *query*) a head
# spreads a weight of 1 over the positions it sees (the *keys*) and fetches a mixture of what stands there.
# Head 4 of layer 2 is called a2.4. `wb.capture_pairs` runs both sides of the pairs once and keeps all
# activations.

# %%
clean, corrupt = wb.capture_pairs(model, pairs, progress=False)
pattern = clean["pattern", 3].prompt(0)  # [head, query_pos, key_pos]
assert np.allclose(pattern.sum(-1), 1, atol=1e-4)  # each query's weights add up to 1
assert not pattern.triu(1).any()  # and none lies on a later position
panels.attention(clean, heads=["a0.1", "a2.6", "a3.1", "a3.7"], prompt=0)

# %% [markdown]
# That is the picture to remember: a row for each query, a column for each key, nothing above the diagonal.
# Hover over a token to see where it looks. The last row, END, is where the answer is made.
#
# `wb.attention_to` averages it: how much each head attends from END to named positions.

# %%
looks = wb.attention_to(clean, ["IO", "S1"])
wb.plot(looks.sel(key_pos="IO"), title="From END to IO")

# %% [markdown]
# **Exercise 0.4** (medium). Which head gives most of its attention, from END and on average over the 64
# prompts, to S2, the second place of the repeated name?
#
# <details><summary>Hint</summary>
#
# `wb.attention_to` was used for IO and S1 just above. Average over the prompts, then look for the largest
# cell.
#
# <details><summary>Nearly the answer</summary>
#
# `wb.attention_to(clean, ["S2"]).mean("example")` is [layer, head, key_pos].
# `np.unravel_index(table.argmax(), table.shape)` turns the place of its largest cell into a layer and a
# head.
#
# </details>
#
# </details>

# %%
# SOLUTION
seen = wb.attention_to(clean, ["S2"]).mean("example").values[..., 0]
layer, head = np.unravel_index(seen.argmax(), seen.shape)
name = f"a{layer}.{head}"
# STUDENT
# name = ...
# END
check("0.4", name)

# %% [markdown]
# ## The workbench in ten lines
#
# The names below are what the lessons are about. `effects` edits one head after the other and says how the
# logit difference changes (lessons 3 and 5); `score_edges` and `find_circuit` look for the connections that
# matter (lesson 7); `evaluate` runs the model with those alone, on prompts it was not found on (lesson 8):
# 100 % is what the whole model does, and more is possible where the rest opposes.

# %%
model = wb.load_model("tiny")
pairs, heldout = wb.load_task("ioi", model, n=64), wb.load_task("ioi", model, n=64, split="heldout")
clean, corrupt = wb.capture_pairs(model, pairs, progress=False)
_, held_corrupt = wb.capture_pairs(model, heldout, progress=False)
heads = wb.effects(model, pairs, sites=wb.grid("z", model), value=wb.zero(), progress=False)
scores = wb.score_edges(model, pairs, value=wb.from_store(corrupt), metric="logit_diff", progress=False)
circuit = wb.find_circuit(scores, n_edges=30)
result = wb.evaluate(circuit, model, heldout, value=wb.from_store(held_corrupt), checks=[], progress=False)
print(circuit, "keeps", f"{float(result.faithfulness[0]):.0%} of the logit difference on held-out prompts")
circuit

# %%
wb.plot(heads, title="Each head zeroed: change of the logit difference")

# %% [markdown]
# ## What could be wrong with this conclusion?
#
# * A head that looks at the right name need not be the reason that the model says it. Attention says where a
#   head looks; what it fetches from there, and whether anything reads it, is another question. Here is one
#   that looks at IO and can be switched off:

# %%
at_io = float(looks.sel(layer=3, head=3, key_pos="IO").mean())
lost = float(heads.sel(layer=3, head=3).mean())
print(f"a3.3 attends {at_io:.0%} to IO from END; zeroing it changes the logit difference by {lost:+.2f}")
assert at_io > 0.5
assert abs(lost) < 0.1

# %% [markdown]
# * The model may not have read what you think. A word outside the vocabulary becomes `<unk>`, without a word
#   of warning. And without `<bos>` in front the same prompts are answered differently:

# %%
assert model.to_str_tokens("When Anna and Thomas went")[4] == "<unk>"
ends, whole = pairs.clean.lengths - 1, pairs.clean.tokens
with torch.no_grad():
    first = {
        "with": model(whole)[torch.arange(64), ends],
        "without": model(whole[:, 1:])[torch.arange(64), ends - 1],
    }
share = {
    name: float((each.argmax(-1) == pairs.answers[:, 0, 0]).float().mean()) for name, each in first.items()
}
print({f"right {name} <bos>": f"{value:.0%}" for name, value in share.items()})
assert share["with"] > 0.95
assert share["without"] < 0.5

# %% [markdown]
# * `tiny` was trained on sentences of the same few forms. Doing them well does not show that it would handle
#   others.
#
# **Further reading.** Elhage et al., *A Mathematical Framework for Transformer Circuits* (2021); Wang et al.,
# *Interpretability in the Wild: a Circuit for Indirect Object Identification in GPT-2 small*, arXiv
# 2211.00593; Jain and Wallace, *Attention is not Explanation*, arXiv 1902.10186.
#
# **You may not conclude** that a head which looks at the right name is the reason why the model says
# it.
