"""Prompts from a corpus: text files, JSON Lines, Hugging Face `datasets`, any iterable.

Read `read_corpus`. A text file holds one text per line. A text longer than a model's context becomes several
prompts (`long="split"`), or its beginning (`"truncate"`), or an error.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from workbench.errors import PromptError, UnknownName
from workbench.models.model import Model
from workbench.prompts.encoder import TextEncoder
from workbench.prompts.prompts import Prompts

LONG = ("split", "truncate", "error")
TOKEN_COLUMNS = ("tokens", "input_ids")
TEXT_COLUMN = "text"


def read_corpus(
    model: Model,
    source: Any,
    *,
    column: str | None = None,
    long: Literal["split", "truncate", "error"] | str = "split",
    context: int | None = None,
    limit: int | None = None,
) -> Prompts:
    """Prompts of a model from a corpus; empty lines and texts are left out.

    Args:
        source: a path to a text file (a text a line) or a .jsonl file, several of them, a Hugging Face
            `Dataset`, or an iterable of texts, of token lists or of rows (mappings).
        column: of rows: text or token ids; None takes `tokens`, `input_ids` or `text`, whichever there is.
        long: what to do with a text that is longer than the context: "split", "truncate" or "error".
        context: tokens per prompt at most, BOS included; None takes the model's.
        limit: prompts at most.

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
    if limit is not None and (type(limit) is not int or limit < 1):
        raise PromptError(f"limit={limit!r}: at least one prompt is needed, and a whole number of them.")
    n_ctx = int(model.cfg.n_ctx)
    if context is not None:
        if type(context) is not int or not 1 < context <= n_ctx:
            raise PromptError(f"context={context!r}: prompts of this model have 2 to {n_ctx} tokens.")
        n_ctx = context
    # Without a tokenizer token ids can still be read.
    encode = None
    if getattr(model, "tokenizer", None) is not None:
        encode = TextEncoder(model)
    rows = list(islice(_rows(encode, _entries(source), column, long, n_ctx), limit))
    if not rows:
        raise PromptError(f"The corpus {_name(source)} holds no prompts: every line is empty.")
    if encode is None:
        return Prompts.of(rows)
    bos = encode.tokenizer.bos_token_id
    # Read off the rows: lists of token ids may begin with BOS whatever the model's default is.
    has_bos = bos is not None and all(row[0] == bos for row in rows)
    return Prompts.of(rows, strings=encode.labels(rows), bos=has_bos)


def _rows(
    encode: TextEncoder | None, entries: Iterable[tuple[str, Any]], column: str | None, long: str, n_ctx: int
) -> Iterator[list[int]]:
    """Token ids of prompts of up to `n_ctx` tokens."""
    for where, entry in entries:
        content = _content(entry, column, where)
        if isinstance(content, str):
            if not content.strip():
                continue
            if encode is None:
                raise PromptError(
                    f"{where}: this model has no tokenizer, so texts cannot be read. Give token ids."
                )
            tokens = encode.plain(content)
            first = [encode.tokenizer.bos_token_id] if encode.bos else []
        else:
            # Token ids are taken as they are: the caller has decided about BOS already.
            tokens, first = _ids(content, where), []
        room = n_ctx - len(first)
        if len(tokens) > room and long == "error":
            raise PromptError(
                f"{where}: {len(tokens) + len(first)} tokens; prompts have {n_ctx} at most. "
                "Use long='split' or long='truncate'."
            )
        if long == "truncate":
            tokens = tokens[:room]
        # BOS again in front of each piece: a model that was trained with it attends to it.
        for start in range(0, len(tokens), room):
            yield [*first, *tokens[start : start + room]]


def _entries(source: Any) -> Iterator[tuple[str, Any]]:
    """Each entry of a corpus, after what names it in an error: its file and line, or its number."""
    if isinstance(source, Path):
        yield from _lines(source)
    elif isinstance(source, str | bytes | Mapping) or not isinstance(source, Iterable):
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
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path.name}, line {number}"
                if path.suffix.lower() != ".jsonl":
                    yield where, line.rstrip("\r\n")
                elif line.strip():
                    yield where, json.loads(line)
    except FileNotFoundError as error:
        raise PromptError(f"There is no file {str(path)!r}.") from error
    except (ValueError, OSError) as error:
        raise PromptError(f"{str(path)!r} cannot be read: {error}") from error


def _content(entry: Any, column: str | None, where: str) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    # Tokens before text: a tokenised data set often keeps its text too.
    names = (*TOKEN_COLUMNS, TEXT_COLUMN)
    if column is not None:
        names = (column,)
    for name in names:
        if name in entry:
            return entry[name]
    columns = ", ".join(map(str, entry)) or "none"
    raise PromptError(f"{where} has no column {' or '.join(map(repr, names))}; it has {columns}.")


def _ids(content: Any, where: str) -> list[int]:
    listed = content
    # Elements of tensors and arrays are no integers of Python, which alone pass the check below.
    if hasattr(content, "tolist"):
        listed = content.tolist()
    if not isinstance(listed, Sequence) or not all(type(token) is int and token >= 0 for token in listed):
        raise PromptError(f"{where} is neither a text nor a list of token ids: {str(content)[:40]!r}.")
    return list(listed)


def _name(source: Any) -> str:
    return repr(source.name) if isinstance(source, Path) else f"of type {type(source).__name__}"
