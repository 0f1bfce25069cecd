"""Transformers whose weights are set by hand, so that the edges they use are known.

They are the yardstick for finding circuits: read `planted` and the table of `VARIANTS`. Ground truth is
relative to the counterfactual. An edge that carries only what the clean and the corrupt run share (a
previous-token head reads positions) is used, and yet no corrupt patching can see it. So there are two true
sets.
"""

import random
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.arguments import checked
from workbench.errors import ModelError, UnknownName
from workbench.models.calls import model_call
from workbench.models.model import Model
from workbench.planted_models import compositions, recipes, redundancy
from workbench.planted_models.drawing import Embedding
from workbench.planted_models.recipe import Example, Recipe

Split = Literal["train", "heldout"]
MOST_ADDED, MOST_PROMPTS = 64, 100_000
"""Of what may be asked for: more would only take memory and hours."""


@dataclass(frozen=True)
class Variant:
    """A recipe, how it is embedded, and what makes it `hard` for which methods."""

    recipe: Callable[[int, float], Recipe]
    setting: Embedding
    hard: str


VARIANTS: dict[str, Variant] = {
    "induction": Variant(
        recipes.induction,
        Embedding(),
        "Saturated attention: gradients into q and k vanish, "
        "so EAP misses all that decides where the heads look.",
    ),
    "induction-noisy": Variant(
        recipes.induction,
        Embedding(gain=10, noise=0.006, decoys=5, extra=1),
        "Every edge has some effect: rankings must tell small from large, "
        "and loud decoys have the largest activations.",
    ),
    "induction-ln": Variant(
        recipes.induction,
        Embedding(norm="LN", gain=14, noise=0.002, decoys=5, neurons=4),
        "Layer norms: whatever adds to the stream's length reaches every reader; "
        "MLPs that do nothing for the answer.",
    ),
    "ioi": Variant(
        recipes.ioi,
        Embedding(gain=14, decoys=6),
        "Four layers; two signals add up, so zeroing either alone changes little; "
        "three hard heads decide by q and k alone.",
    ),
    "ioi-noisy": Variant(
        recipes.ioi,
        Embedding(gain=14, noise=0.006, decoys=6),
        "As ioi, with small effects at most false edges: "
        "signed EAP ranks true edges of gradient zero among them.",
    ),
    "ioi-ln-gqa": Variant(
        recipes.ioi,
        Embedding(norm="LN", group=2, gain=14, noise=0.002, decoys=7, neurons=4),
        "As ioi, with norms, and kv heads shared with decoys: "
        "a method that splits k and v by query head fails.",
    ),
    "lookup": Variant(
        recipes.lookup,
        Embedding(decoys=4, neurons=6, extra=1),
        "A cell of a table: the gradient sees the neuron that is on; "
        "the one that the other run turns on is flat.",
    ),
    "lookup-noisy": Variant(
        recipes.lookup,
        Embedding(gain=10, noise=0.005, decoys=4, neurons=6, extra=1),
        "As lookup, with soft attention and small effects at most false edges.",
    ),
    "conjunction": Variant(
        recipes.conjunction,
        Embedding(decoys=4, neurons=4, extra=1),
        "An AND: where it is off, one input alone does nothing, and gradients there are exactly zero.",
    ),
    "conjunction-rms": Variant(
        recipes.conjunction,
        Embedding(norm="RMS", gain=10, noise=0.002, decoys=4, neurons=4, extra=1),
        "As conjunction, with RMS norms and noise.",
    ),
    "backup": Variant(
        redundancy.backup,
        Embedding(gain=16, decoys=4, extra=1),
        "Single-edge patching, exact or by ACDC, sees nothing upstream of the main head: "
        "the backup covers for it.",
    ),
    "backup-gqa": Variant(
        redundancy.backup,
        Embedding(group=2, gain=10, noise=0.004, decoys=6),
        "As backup, with kv heads that decoys share, "
        "and false edges whose effects exceed those of the redundant ones.",
    ),
    "negative": Variant(
        redundancy.negative,
        Embedding(gain=12),
        "True edges that oppose: a signed ranking puts the negative head last of all, magnitude finds it.",
    ),
    "backup-negative": Variant(
        redundancy.backup_negative,
        Embedding(gain=9, noise=0.003, decoys=5),
        "Both at once: redundant edges without effect, opposing ones with a large one, noise between them.",
    ),
    "q-composition": Variant(
        compositions.q_composition,
        Embedding(gain=16, decoys=4),
        "The feeder matters through the target's saturated q alone: "
        "EAP scores the feeder and all before it zero.",
    ),
    "v-composition": Variant(
        compositions.v_composition,
        Embedding(decoys=4),
        "What is moved is linear, where the target looks is saturated: gradients find one half of it.",
    ),
    "compositions": Variant(
        compositions.compositions,
        Embedding(gain=14, decoys=4),
        "Three feeders of one head, each through one port: scores of nodes cannot tell three edges of nine.",
    ),
    "compositions-gqa": Variant(
        compositions.compositions,
        Embedding(gain=11, group=2, noise=0.004, decoys=6),
        "As compositions, with noise and kv heads that decoys share.",
    ),
}


@checked
@dataclass(frozen=True, eq=False)
class Planted:
    """A model whose circuit is known by construction, and prompts that it solves.

    Attributes:
        name: the variant; the model is called `planted-NAME`.
        clean, corrupt: [example, pos] token ids; every prompt begins with BOS, all have one length.
        answers, wrong: [example, 1, 1] the next token after the clean and after the corrupt prompt.
        edges: the true edges by kind of value: "corrupt" (they carry what differs between the runs), "zero"
            (they carry anything that is used).
        redundant: sets of true edges that matter together, though one of them alone may not.
        heads: role → place, as in "previous" → "a0.3".
        words: the vocabulary, by token id.
        seed: of the model; `prompt_seed` and `split` of the prompts: those of different splits are disjoint.
    """

    name: str
    model: Model
    clean: Int[Tensor, "example pos"]
    corrupt: Int[Tensor, "example pos"]
    answers: Int[Tensor, "example 1 1"]
    wrong: Int[Tensor, "example 1 1"]
    edges: Mapping[str, frozenset[str]]
    redundant: tuple[frozenset[str], ...]
    heads: Mapping[str, str]
    words: tuple[str, ...]
    recipe: Recipe
    setting: Embedding
    seed: int
    prompt_seed: int
    split: str

    def __repr__(self) -> str:
        known = ", ".join(
            f"{len(edges)} true edges with {value} values" for value, edges in self.edges.items()
        )
        return f"<Planted {self.name}: {len(self.clean)} prompts, {known}, seed {self.seed}>"

    @checked
    def drawn(self, n: int, *, seed: int = 0, split: Split | str = "train") -> "Planted":
        """The same model with other prompts.

        Raises:
            ModelError: there are not so many different prompts.
            UnknownName: `split`.
        """
        tensors = _prompts(self.name, self.recipe, self.words, n, seed, split)
        return replace(self, **tensors, prompt_seed=seed, split=split)


@checked
@model_call()
def planted(
    name: str,
    *,
    size: int = 10,
    seed: int = 0,
    decoys: int | None = None,
    noise: float | None = None,
    extra: int | None = None,
    n: int = 32,
    prompt_seed: int = 0,
    split: Split | str = "train",
) -> Planted:
    """A planted model with its prompts and its true edges.

    Args:
        name: one of `VARIANTS`, whose entries say what each is hard for.
        size: how many words the circuit works on (6 to 12): the width of its subspaces.
        seed: of the places of heads and layers, of the basis of the residual stream, of decoys and noise.
        decoys: heads beside the circuit; None: as many as the variant has.
        noise: standard deviation of the noise on every weight; None: the variant's.
        extra: layers beyond those that the circuit needs; None: the variant's.
        n: pairs of prompts. `prompt_seed` and `split` choose them: "heldout" ones never occur in "train".

    Raises:
        UnknownName: no such variant or split.
        ModelError: a size out of range, or too few different prompts.

    >>> model = planted("induction", n=4)
    >>> model.clean.shape, len(model.edges["corrupt"]), len(model.edges["zero"])
    (torch.Size([4, 8]), 5, 7)
    """
    if name not in VARIANTS:
        raise UnknownName("name", name, VARIANTS)
    if not 6 <= size <= 12:
        raise ModelError(
            f"A planted model of size {size} is not possible: its circuit works on 6 to 12 words."
        )
    for word, count in (("decoys", decoys), ("extra", extra)):
        if count is not None and not 0 <= count <= MOST_ADDED:
            raise ModelError(
                f"planted: {word}={count}; heads and layers beside the circuit are 0 to {MOST_ADDED}."
            )
    if noise is not None and noise < 0:
        raise ModelError(f"planted: noise={noise}; it is a standard deviation, from 0 up.")
    variant = VARIANTS[name]
    changes = {"decoys": decoys, "noise": noise, "extra": extra}
    setting = variant.setting
    for key, value in changes.items():
        if value is not None:
            setting = replace(setting, **{key: value})
    recipe = variant.recipe(size, setting.gain)
    words = tuple(recipe.blueprint.words)
    built = recipe.blueprint.build(name, setting, seed=seed)
    # Recipes name heads by their roles; the builder has decided where each of them lies.
    shared = frozenset(map(built.edge, recipe.shared))
    if not shared <= built.wired:
        raise ModelError(
            f"The recipe of {name!r} shares edges that nothing runs along: {sorted(shared - built.wired)}."
        )
    sets = tuple(frozenset(map(built.edge, texts)) for texts in recipe.redundant)
    return Planted(
        name, built.model, **_prompts(name, recipe, words, n, prompt_seed, split),
        edges={"corrupt": built.wired - shared, "zero": built.wired},
        redundant=sets, heads=built.heads, words=words, recipe=recipe, setting=setting, seed=seed,
        prompt_seed=prompt_seed, split=split,
    )  # fmt: skip


def _prompts(
    name: str, recipe: Recipe, words: tuple[str, ...], n: int, seed: int, split: str
) -> dict[str, Tensor]:
    """Different clean prompts of one split, the kinds of corruption in turn."""
    if split not in ("train", "heldout"):
        raise UnknownName("split", split, ("train", "heldout"))
    if n > MOST_PROMPTS:
        raise ModelError(f"n={n}: a planted model gives {MOST_PROMPTS:,} pairs of prompts at most.")
    rng = random.Random(f"prompts {name} {seed} {split}")
    examples: dict[tuple[str, ...], Example] = {}
    # Draws repeat themselves: a hundred for each prompt before giving up.
    for _ in range(100 * n):
        example = recipe.draw(rng, len(examples) % recipe.kinds)
        # A fixed hash of the clean prompt: no prompt is in both splits, whatever the seed.
        is_heldout = zlib.crc32(" ".join(example.clean).encode()) % 3 == 0
        if is_heldout == (split == "heldout") and len(examples) < n:
            examples.setdefault(example.clean, example)
    if len(examples) < n or n < 1:
        raise ModelError(
            f"There are no {n} different prompts of {name!r} in the split {split!r}: found {len(examples)}."
        )
    ids = {word: i for i, word in enumerate(words)}
    tables: dict[str, list[list[int]]] = {"clean": [], "corrupt": [], "answers": [], "wrong": []}
    for example in examples.values():
        tables["clean"].append([ids["BOS"], *map(ids.__getitem__, example.clean)])
        tables["corrupt"].append([ids["BOS"], *map(ids.__getitem__, example.corrupt)])
        tables["answers"].append([ids[example.answer]])
        tables["wrong"].append([ids[example.wrong]])
    tensors = {name: torch.tensor(rows) for name, rows in tables.items()}
    # [example, token] → [example, alternative, token]: each pair has one answer, of one token.
    return tensors | {"answers": tensors["answers"][:, None], "wrong": tensors["wrong"][:, None]}
