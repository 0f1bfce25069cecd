"""Prompts from a corpus: text files, JSON Lines, Hugging Face `datasets`, any iterable.

Read `read_corpus`. A text file holds one text per line. A text longer than a model's context becomes several
prompts (`long="split"`), or its beginning (`"truncate"`), or an error.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from workbench.arguments import checked
from workbench.documents import parse_json
from workbench.errors import PromptError, UnknownName
from workbench.models.model import Model
from workbench.prompts.encoder import TextEncoder
from workbench.prompts.prompts import Prompts
from workbench.prompts.tables import text_lines
from workbench.prompts.token_tables import IDS, MASK, Padding, row_tokens

LONG = ("split", "truncate", "error")
TEXT_COLUMN = "text"


@checked
def read_corpus(
    model: Model,
    source: Any,
    *,
    column: str | None = None,
    long: Literal["split", "truncate", "error"] | str = "split",
    context: int | None = None,
    limit: int | None = None,
    bos: bool | None = None,
    chat: bool = False,
) -> Prompts:
    """Prompts of a model from a corpus; empty lines and texts are left out.

    Args:
        source: a path to a text file (a text a line) or a .jsonl file, several of them, a Hugging Face
            `Dataset`, a data frame, or an iterable of texts, of token lists or of rows (mappings).
        column: of rows: text or token ids; None takes `tokens`, `input_ids` or `text`, whichever there is.
            A row's `attention_mask` says which of its token ids are padding; without one padding is refused.
        long: what to do with a text that is longer than the context: "split", "truncate" or "error".
        context: tokens per prompt at most, BOS included; None takes the model's.
        limit: prompts at most.
        bos: whether texts get a BOS; None: as chosen in `load_model`, else as the tokenizer adds it.
        chat: put each text into the tokenizer's chat template, as one message of a user; texts that are too
            long are then refused.

    Raises:
        PromptError: a file or column is missing, a text is too long, or nothing is left; file and line are
            named.
        UnknownName: an unknown `long`.

    >>> import workbench as wb
    >>> read_corpus(wb.load_model("tiny"), ["The dog near the cats is", "Anna met Tom"]).lengths.tolist()
    [7, 4]
    """
    if long not in LONG:
        raise UnknownName("long", long, LONG)
    if limit is not None and limit < 1:
        raise PromptError(f"limit={limit}: at least one prompt is needed.")
    n_ctx = int(model.cfg.n_ctx)
    if context is not None:
        if not 1 < context <= n_ctx:
            raise PromptError(f"context={context!r}: prompts of this model have 2 to {n_ctx} tokens.")
        n_ctx = context
    # Without a tokenizer token ids can still be read.
    encode = None
    if getattr(model, "tokenizer", None) is not None or bos or chat:
        encode = TextEncoder(model, bos=bos, chat=chat)
    rows = list(islice(_rows(model, encode, _entries(source), column, long, n_ctx), limit))
    if not rows:
        raise PromptError(f"The corpus {_name(source)} holds no prompts: every line is empty.")
    if encode is None:
        return Prompts.of(rows)
    return encode.prompts(rows)


def _rows(
    model: Model,
    encode: TextEncoder | None,
    entries: Iterable[tuple[str, Any]],
    column: str | None,
    long: str,
    n_ctx: int,
) -> Iterator[list[int]]:
    """Token ids of prompts of up to `n_ctx` tokens."""
    padding = Padding.of(model)
    for where, entry in entries:
        content, mask = _content(entry, column, where)
        prefix: list[int] = []
        if isinstance(content, str):
            if not content.strip():
                continue
            if encode is None:
                raise PromptError(
                    f"{where}: this model has no tokenizer, so texts cannot be read. Give token ids."
                )
            tokens = encode.with_bos(encode.plain(encode.text(content, where=where)))
            if encode.bos:  # apart from the text, since each piece of a long text gets one
                prefix, tokens = tokens[:1], tokens[1:]
        else:
            # Token ids are taken as they are: the caller has decided about BOS already.
            tokens = row_tokens(content, mask, padding, where)
        room = n_ctx - len(prefix)
        # A part of a chat template would be no chat.
        is_chat = encode is not None and encode.chat and isinstance(content, str)
        if len(tokens) > room and (long == "error" or is_chat):
            raise PromptError(
                f"{where}: {len(tokens) + len(prefix)} tokens; prompts have {n_ctx} at most. "
                "Use long='split' or long='truncate'."
            )
        if long == "truncate":
            tokens = tokens[:room]
        # BOS in front of each piece: a model that was trained with it attends to it.
        for start in range(0, len(tokens), room):
            yield [*prefix, *tokens[start : start + room]]


def _entries(source: Any) -> Iterator[tuple[str, Any]]:
    """Each entry of a corpus, after what names it in an error: its file and line, or its number."""
    if isinstance(source, Path):
        yield from _lines(source)
    elif isinstance(source, pd.DataFrame):
        # Iterating over a data frame gives the names of its columns.
        for i, row in enumerate(source.to_dict("records")):
            yield f"Row {i}", row
    elif (
        isinstance(source, str | bytes | Mapping)
        or not isinstance(source, Iterable)
        or getattr(source, "ndim", 1) == 0
    ):
        raise PromptError(
            "A corpus is a Path, a list of texts, token lists or rows, or a Dataset, not "
            f"{type(source).__name__}. Wrap a single text in a list; write Path(...) for a file."
        )
    else:
        for i, entry in enumerate(source):
            if isinstance(entry, Path):
                yield from _lines(entry)
            else:
                yield f"Prompt {i}", entry


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    is_json = path.suffix.lower() == ".jsonl"
    for number, line in enumerate(text_lines(path, PromptError), start=1):
        where = f"{path.name}, line {number}"
        if not is_json:
            yield where, line
        elif line.strip():
            try:
                yield where, parse_json(line)
            except ValueError as error:
                raise PromptError(f"{where} cannot be read as JSON: {error}") from error


def _content(entry: Any, column: str | None, where: str) -> tuple[Any, Any]:
    """The text or the token ids of an entry, and its attention mask or None."""
    if not isinstance(entry, Mapping):
        return entry, None
    # Tokens before text: a tokenised data set often keeps its text too.
    names: tuple[str, ...] = (*IDS, TEXT_COLUMN)
    if column is not None:
        names = (column,)
    for name in names:
        if name in entry:
            return entry[name], entry.get(MASK)
    columns = ", ".join(map(str, entry)) or "none"
    raise PromptError(f"{where} has no column {' or '.join(map(repr, names))}; it has {columns}.")


def _name(source: Any) -> str:
    return repr(source.name) if isinstance(source, Path) else f"of type {type(source).__name__}"
