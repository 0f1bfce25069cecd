# %% [markdown]
# # 13 · A study of your own
#
# **Goal.** Take a behaviour from a question to a report that somebody else can check.
#
# **Time** 60 minutes. **Prerequisites** lessons 7 and 10.
#
# The rubric has five items, one exercise each; the checkers take your prompts and your circuit and measure
# again.
#
# | | item | asked |
# |---|---|---|
# | 1 | prompts | your own, 24 to 200 pairs in each of two sets; none shared; `tiny` is right in 90 %; the corrupt side takes the answer away |
# | 2 | circuit | at most 5 % of the edges; at least 0.8 faithful on held-out prompts, with an interval |
# | 3 | controls | random circuits of that size, the complement, and zero values instead of corrupt ones |
# | 4 | claims | which components are needed |
# | 5 | report | question, prompts, circuit, controls, limits |

# %% [markdown]
# ## Choose a question
#
# `tiny` knows 378 words and seven behaviours (`workbench ls tasks`). New sentences of known words make new
# questions: two distractors between subject and verb; attributes told directly ("the ball is red and the key
# is blue . the key is"); one template of the pronoun task alone. The solutions study the first: *after two
# distractors, does the verb still follow the first noun, and through which components?*

# %%
import random
import tempfile
from pathlib import Path

import pandas as pd

import workbench as wb
from workbench.course import check
from workbench.tasks import grammar

model = wb.load_model("tiny")
study = {}
folder = Path(tempfile.mkdtemp())


def part(*keys):
    """What the study has under these keys."""
    return {key: study.get(key, ...) for key in keys}


print(
    "words:",
    ", ".join(grammar.NOUNS[:6]),
    "...",
    ", ".join(grammar.PREPOSITIONS),
    "...",
    ", ".join(grammar.COLOURS[:4]),
    "...",
)

# %% [markdown]
# ## Predict first
#
# Write down your question, how many heads you expect, in which layers, and a result that would show you
# wrong.

# %%
my_prediction = ""

# %% [markdown]
# ## Prompts
#
# A CSV file with the columns `clean,corrupt,answer,wrong` becomes pairs. Here is one of two rows, to show the
# form; a word that `tiny` does not know is refused by name.

# %%
rows = [
    {"clean": "The dog near the cats by the ship", "corrupt": "The dogs near the cats by the ship", "answer": "is", "wrong": "are"},
    {"clean": "The trees by the car near the dogs", "corrupt": "The tree by the car near the dogs", "answer": "are", "wrong": "is"},
]  # fmt: skip
pd.DataFrame(rows).to_csv(folder / "two.csv", index=False)
two = wb.PromptPairs.from_csv(model, folder / "two.csv")
print(two)
both = wb.evaluate(
    wb.Circuit.empty(model),
    model,
    two,
    value=wb.from_store(wb.capture_pairs(model, two, progress=False)[1]),
    checks=(),
    progress=False,
)
print("logit difference, clean:", both["m_full"].values.round(1), "corrupt:", both["m_empty"].values.round(1))
assert (both["m_full"] > 0).all()
assert (both["m_empty"] < 0).all()

# %% [markdown]
# Vary everything that the answer should not depend on, independently of the answer. `pairs.split(share=0.5)`
# makes two sets without a common prompt.
#
# **Exercise 13.1** (medium). Make two sets: `found`, to search on, and `heldout`, to judge by.
#
# <details><summary>Hint</summary>
#
# Write sentences in a loop, clean and corrupt with their answers, into a table; leave out doubles; split it
# in two.
#
# <details><summary>Nearly the answer</summary>
#
# Columns `clean,corrupt,answer,wrong`, `wb.PromptPairs.from_csv(model, path)`, then `.split(share=0.5,
# seed=0)`. Change only the word that decides the answer, and draw the others at random.
#
# </details>
#
# </details>

# %%
# SOLUTION
rng = random.Random(0)
table = {}
while len(table) < 128:
    nouns, preps = rng.sample(grammar.NOUNS, 3), rng.sample(grammar.PREPOSITIONS, 2)
    many = [rng.random() < 0.5 for _ in nouns]
    sides = []
    for first in (many[0], not many[0]):
        one, two_, three = (
            grammar.plural(noun) if several else noun
            for noun, several in zip(nouns, [first, *many[1:]], strict=True)
        )
        sides.append(f"The {one} {preps[0]} the {two_} {preps[1]} the {three}")
    table[sides[0]] = (*sides, *(("are", "is") if many[0] else ("is", "are")))
pd.DataFrame(table.values(), columns=["clean", "corrupt", "answer", "wrong"]).to_csv(
    folder / "distractors.csv", index=False
)
everything = wb.PromptPairs.from_csv(model, folder / "distractors.csv")
found, heldout = everything.split(share=0.5, seed=0)
study |= {"found": found, "heldout": heldout}
# STUDENT
# study |= {"found": ..., "heldout": ...}
# END
check("13.1", part("found", "heldout"))

# %% [markdown]
# ## Circuit
#
# Any method of lesson 7 will do: scores of edges on `found`, and of these a circuit; `acdc`; masks. Decide on
# a size *before* you look at `heldout`: a size that is chosen there is fitted to it. `wb.evaluate(…)` gives
# `faithfulness`, `low` and `high`.
#
# **Exercise 13.2** (medium). Give the circuit, and its score on `heldout` with corrupt values.
#
# <details><summary>Hint</summary>
#
# Score on `found`, choose a size, judge once on `heldout`.
#
# <details><summary>Nearly the answer</summary>
#
# `wb.score_edges(model, found, value=..., method="eap-ig-inputs")`, `wb.find_circuit(scores, n_edges=20)`,
# and `wb.evaluate` on `heldout` with values of *its* corrupt prompts. Each entry is a float.
#
# </details>
#
# </details>

# %%
# SOLUTION
value, held_value = (
    wb.from_store(wb.capture_pairs(model, pairs, progress=False)[1]) for pairs in (found, heldout)
)
scores = wb.score_edges(model, found, value=value, method="eap-ig-inputs", progress=False)
circuit = wb.find_circuit(scores, n_edges=20)
on_found = wb.evaluate(circuit, model, found, value=value, checks=(), progress=False)
result = wb.evaluate(
    circuit, model, heldout, value=held_value, checks=("random", "complement"), progress=False
)
numbers = {name: float(result[name][0]) for name in ("faithfulness", "low", "high", "random", "complement")}
study |= {"circuit": circuit} | {name: numbers[name] for name in ("faithfulness", "low", "high")}
print(circuit, "- where it was found:", on_found["faithfulness"].values.round(3), "- held out:", numbers)
# STUDENT
# study |= {"circuit": ..., "faithfulness": ..., "low": ..., "high": ...}
# END
check("13.2", part("circuit", "heldout", "faithfulness", "low", "high"))

# %% [markdown]
# ## Controls
#
# * `random`: mean faithfulness of random circuits with as many edges. A score says something about *these*
#   edges only beside it.
# * `complement`: all edges but yours. If they do the job too, there is a second way.
# * `zero`: your circuit, everything else set to zero. Corrupt values leave in place what clean and corrupt
#   prompts share (that this is a sentence, that a verb is due); zero takes it away. Report both.
#
# **Exercise 13.3** (medium). Measure all three on `heldout`.
#
# <details><summary>Hint</summary>
#
# Two come from `checks=`, the third from another `value=`.
#
# <details><summary>Nearly the answer</summary>
#
# `checks=("random", "complement")` with corrupt values; once more with `value=wb.zero()` and no checks,
# whose faithfulness is `zero`.
#
# </details>
#
# </details>

# %%
# SOLUTION
zero = wb.evaluate(circuit, model, heldout, value=wb.zero(), checks=(), progress=False)
numbers["zero"] = float(zero["faithfulness"][0])
study |= {name: numbers[name] for name in ("random", "complement", "zero")}
print({name: round(number, 3) for name, number in numbers.items()})
# STUDENT
# study |= {"random": ..., "complement": ..., "zero": ...}
# END
check("13.3", part("circuit", "heldout", "random", "complement", "zero"))

# %% [markdown]
# ## Claims
#
# A circuit is a list of edges; a claim says what goes wrong without one of its parts. `circuit.nodes` names
# the parts, `circuit.restricted(where=…)` keeps the edges for which a function is true, `edge.writer` and
# `edge.reader` are the two ends of one.
#
# **Exercise 13.4** (hard). Which heads and MLPs are needed: without one of them, *by itself*, the circuit's
# faithfulness on `heldout` falls by 0.1 or more?
#
# <details><summary>Hint</summary>
#
# Take out one component after the other, with all edges into it and out of it, and measure again.
#
# <details><summary>Nearly the answer</summary>
#
# `circuit.restricted(where=lambda edge: name not in (edge.writer, edge.reader.split("<")[0])).pruned` for
# each name; all in one call of `evaluate`. Keep those that cost at least 0.1.
#
# </details>
#
# </details>


# %%
# SOLUTION
def without(name):
    return circuit.restricted(where=lambda edge: name not in (edge.writer, edge.reader.split("<")[0])).pruned


members = [name for name in circuit.nodes if name not in ("input", "logits")]
reduced = wb.evaluate(
    [without(name) for name in members], model, heldout, value=held_value, checks=(), progress=False
)
cost = pd.Series(numbers["faithfulness"] - reduced["faithfulness"].values, index=members).sort_values(
    ascending=False
)
study["needed"] = cost.index[cost >= 0.1].tolist()
print(cost.round(3).to_dict())
# STUDENT
# study["needed"] = ...
# END
check("13.4", part("circuit", "heldout", "needed"))

# %% [markdown]
# ## Report
#
# `wb.report([(heading, item, caption), …], path, title=…)` takes circuits, results, tables and text. The
# picture to remember of a study is its circuit with the score and its controls beside it. For example, of the
# task that your tools were made on:

# %%
ioi = wb.load_task("ioi", model, n=32)
ioi_value = wb.from_store(wb.capture_pairs(model, ioi, progress=False)[1])
example = wb.find_circuit(wb.score_edges(model, ioi, value=ioi_value, progress=False), n_edges=12)
page = wb.report(
    [("Circuit", example, f"{example.n_edges} edges, not evaluated.")],
    folder / "example.html",
    title="Indirect objects",
)
print(page.name, page.stat().st_size // 1024, "KiB")
wb.plot(example)

# %% [markdown]
# **Exercise 13.5** (easy). Write the report, with sections called Question, Prompts, Circuit, Controls and
# Limits; in it the score and both ends of its interval, to two digits at least.
#
# <details><summary>Hint</summary>
#
# Sections are tuples of a heading, an item and a caption. The score and both ends of its interval have to
# stand in the text.
#
# <details><summary>Nearly the answer</summary>
#
# `wb.report([("Question", "..."), ("Prompts", table, "..."), ("Circuit", circuit, f"keeps {score:.3f}
# ({low:.3f} to {high:.3f})"), ("Controls", table), ("Limits", "...")], path, title="...")`.
#
# </details>
#
# </details>

# %%
# SOLUTION
examples = pd.read_csv(folder / "distractors.csv").head(3)
scores_table = pd.Series(numbers, name="value").rename_axis("score").reset_index()
score = "{faithfulness:.3f} (95 % interval {low:.3f} to {high:.3f})".format(**numbers)
sections = [
    ("Question", "After two distractors, does the verb of tiny still follow the first noun, and through which components?"),
    ("Prompts", examples, f"{len(found)} pairs to search on, {len(heldout)} held out; the corrupt side changes the first noun's number."),
    ("Circuit", circuit, f"EAP-IG on the first set, 20 edges, a size fixed beforehand. Held out it keeps {score}."),
    ("Controls", [scores_table, cost.rename("cost when it goes").rename_axis("component").reset_index()]),
    (
        "Limits",
        "Corrupt values keep what both prompts share; with zero values the same edges keep nothing, so this is a circuit for the "
        "number alone and not for producing a verb. One template, present tense only. Another template in which the first noun is "
        "not the subject would show whether the rule is about the first noun or about the subject.",
    ),
]  # fmt: skip
study["report"] = wb.report(sections, folder / "study.html", title="Agreement after two distractors")
# STUDENT
# study["report"] = ...
# END
check("13.5", part("circuit", "heldout", "report"))

# %% [markdown]
# ## What could be wrong with this conclusion?
#
# * **It is about your prompts.** Held out are other words in the same places, not other sentences. A second
#   template is the next study.
# * **It is about the counterfactual.** Another corrupt side asks another question, and finds other edges:

# %%
swap, abc = (wb.load_task("ioi", model, n=32, variant=variant) for variant in ("swap", "abc"))
circuits = [
    wb.find_circuit(
        wb.score_edges(
            model,
            pairs,
            value=wb.from_store(wb.capture_pairs(model, pairs, progress=False)[1]),
            progress=False,
        ),
        n_edges=30,
    )
    for pairs in (swap, abc)
]
shared = len((circuits[0] & circuits[1]).edge_list)
print(
    "edges for the swapped name:", len(circuits[0]), "for a third name:", len(circuits[1]), "shared:", shared
)
assert shared < min(map(len, circuits))

# %% [markdown]
# * **"Needed" is one at a time.** Two components that stand in for each other each cost nothing when they go
#   (lesson 8).
# * **You looked.** A size, a method or a threshold that was tried on `heldout` has been fitted to it. Say how
#   many you tried, or draw new prompts for the last number.
#
# **Further reading.** Wang et al., *Interpretability in the Wild*, arXiv 2211.00593, the study whose form
# this is; Miller et al., *Transformer Circuit Faithfulness Metrics Are Not Robust*, arXiv 2407.08734; Shi et
# al., *Hypothesis Testing the Circuit Hypothesis in LLMs*, arXiv 2410.13032.
#
# **You may not conclude** that your circuit explains the behaviour on sentences unlike those that you
# wrote.
