"""Whether prompts of text begin with a BOS token: what the caller chose, else what the tokenizer itself adds.

Read `begins_with_bos`. TransformerLens (4.3) loads every tokenizer anew so that it adds BOS, and puts it in
front unless it knows an architecture to be trained without: here the tokenizer's own files are asked.
"""

import weakref
from typing import Any

from workbench.errors import ModelError
from workbench.models.model import Model

# By weak reference: a model or a tokenizer that nobody uses any more is freed.
_chosen: "weakref.WeakKeyDictionary[Any, bool]" = weakref.WeakKeyDictionary()
_adds_bos: "weakref.WeakKeyDictionary[Any, bool]" = weakref.WeakKeyDictionary()


def bos_token(model: Model) -> int | None:
    """The BOS token that a model's tokenizer declares; None without one."""
    tokenizer: Any = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return None
    # TransformerLens 4.3 gives a tokenizer without BOS its EOS for one, which no prompt began with in
    # training. What the tokenizer's own files say is in `init_kwargs`. GPT-2 and Pythia declare a BOS, which
    # is also their EOS.
    is_declared = tokenizer.init_kwargs.get("bos_token") is not None
    if not is_declared and tokenizer.bos_token == tokenizer.eos_token:
        return None
    return tokenizer.bos_token_id


def choose_bos(model: Model, bos: bool | None) -> None:
    """Keep with a model whether its prompts of text begin with BOS; None leaves it as it was.

    Raises:
        ModelError: `bos=True` and its tokenizer declares no BOS, or it has no tokenizer.
    """
    if bos is None:
        return
    if bos:
        check_declared(model)
    _chosen[model] = bos


def chosen_bos(model: Model) -> bool | None:
    """What was chosen for a model; None where nothing was."""
    return _chosen.get(model)


def begins_with_bos(model: Model) -> bool:
    """Whether a model's prompts of text begin with BOS: as chosen for it, else as its tokenizer adds it."""
    chosen = chosen_bos(model)
    if chosen is None:
        return bos_token(model) is not None and tokenizer_adds_bos(model)
    return chosen


def check_declared(model: Model) -> None:
    """Raise `ModelError` where there is no BOS token to put in front."""
    if bos_token(model) is None:
        raise ModelError(
            "bos=True: this model's tokenizer declares no BOS token, or the model has no tokenizer; EOS is "
            "not put in its place. Leave bos out, or give token ids that begin with the token you mean."
        )


def tokenizer_adds_bos(model: Model) -> bool:
    """Whether the tokenizer of a model's files puts its BOS in front of a text by itself."""
    tokenizer: Any = model.tokenizer
    if tokenizer not in _adds_bos:
        _adds_bos[tokenizer] = _begins_with_bos(_as_in_its_files(tokenizer))
    return _adds_bos[tokenizer]


def _as_in_its_files(tokenizer: Any) -> Any:
    """A tokenizer without what TransformerLens set in it; as it stands where it comes from no files."""
    source = str(tokenizer.name_or_path or "")
    if not source:
        return tokenizer
    # Without the network: it was loaded from these files a moment ago.
    return type(tokenizer).from_pretrained(source, local_files_only=True)


def _begins_with_bos(tokenizer: Any) -> bool:
    with_its_own, plain = tokenizer("a").input_ids, tokenizer("a", add_special_tokens=False).input_ids
    return with_its_own[:1] == [tokenizer.bos_token_id] != plain[:1]
