"""The prompts of a planted model as pairs, so that everything that takes pairs takes them.

Read `planted_pairs`.
"""

from collections.abc import Sequence

from torch import Tensor

from workbench.arguments import checked
from workbench.planted_models.planted import Planted, Split
from workbench.prompts.pairs import PromptPairs
from workbench.prompts.prompts import Prompts


@checked
def planted_pairs(
    planted: Planted, *, n: int | None = None, seed: int = 0, split: Split | str = "train"
) -> PromptPairs:
    """Clean and corrupt prompts of a planted model, with its words as labels.

    Args:
        n: None: the prompts that the model came with; otherwise so many others, drawn with `seed` and
            `split`. Clean prompts of the split "heldout" never occur in "train".

    Raises:
        ModelError: there are not so many different prompts.
        UnknownName: an unknown split.

    >>> import workbench as wb
    >>> planted = wb.planted("induction", n=4)
    >>> pairs, heldout = wb.planted_pairs(planted), wb.planted_pairs(planted, n=8, split="heldout")
    >>> len(pairs), len(heldout), pairs.clean.strings[0][0]
    (4, 8, 'BOS')
    """
    source = planted
    if n is not None:
        source = planted.drawn(n, seed=seed, split=split)
    provenance = {
        "task": f"planted-{source.name}", "variant": source.name,
        "seed": source.prompt_seed, "split": source.split, "model_seed": source.seed,
    }  # fmt: skip
    clean, corrupt = _prompts(source.clean, source.words), _prompts(source.corrupt, source.words)
    return PromptPairs(clean, corrupt, source.answers, source.wrong, provenance)


def _prompts(tokens: Tensor, words: Sequence[str]) -> Prompts:
    rows = tokens.tolist()
    # A word is a token, and token ids are the order of the words.
    strings = [list(map(words.__getitem__, row)) for row in rows]
    return Prompts.of(rows, strings=strings, bos=True)
