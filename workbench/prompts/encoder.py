"""Text to tokens: what a model's tokenizer makes of a prompt and of what follows it.

Read `TextEncoder`. The only module that calls a tokenizer; it knows nothing of tasks.
"""

import re
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from jaxtyping import Int
from torch import Tensor

from workbench.arguments import shown
from workbench.errors import PromptError, warn
from workbench.models.bos import begins_with_bos, bos_token, check_declared, chosen_bos
from workbench.models.fingerprint import tokenizer_fingerprint
from workbench.models.load import model_name
from workbench.models.model import Model
from workbench.prompts.prompts import Prompts
from workbench.text import lone_surrogates, visible

# What decoding makes of bytes that are no whole character.
_REPLACEMENT = "\ufffd"

# The models of which a warning has said that their prompts begin without BOS.
_warned: "weakref.WeakSet[Any]" = weakref.WeakSet()


def check_text(text: object, where: str) -> None:
    """Raise `PromptError` for what no tokenizer takes: all but text, and text with half a character in it."""
    if not isinstance(text, str):
        raise PromptError(f"{where} is {shown(text)} and not a text.")
    halves = lone_surrogates(text)
    if halves:
        raise PromptError(
            f"{where} holds {visible(halves[0])}, half of a character (a lone surrogate): the text was cut "
            "within it, as within an emoji. Cut it elsewhere, or leave the half out."
        )


class TextEncoder:
    """Text → token ids of a model; whatever goes wrong is a `PromptError` that begins with `where`.

    Args:
        bos: whether prompts begin with BOS; None: as chosen in `load_model`, else as the tokenizer adds it.
        chat: whether each text is one message of a user, put into the tokenizer's chat template.

    Attributes:
        bos_token: the BOS token that the tokenizer declares; None without one.
        bos: whether prompts of text begin with it.
    """

    def __init__(self, model: Model, *, bos: bool | None = None, chat: bool = False) -> None:
        self.tokenizer: Any = getattr(model, "tokenizer", None)
        if self.tokenizer is None:
            raise PromptError("This model has no tokenizer: build prompts with Prompts.of(token_ids).")
        self.context = int(model.cfg.n_ctx)
        self.bos_token = bos_token(model)
        if bos:
            check_declared(model)
        self.bos = begins_with_bos(model) if bos is None else bos
        self.chat = chat
        if chat and not getattr(self.tokenizer, "chat_template", None):
            raise PromptError(
                f"chat=True: the tokenizer of {model_name(model)!r} has no chat template. Leave it out for a "
                "model that was not trained on chats."
            )
        self._model, self._bos_is_chosen = model, bos is not None or chosen_bos(model) is not None
        self.fingerprint = tokenizer_fingerprint(model)

    def plain(self, text: str) -> list[int]:
        """The tokens of a text, without BOS and unchecked."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The characters that each token of `plain(text)` covers."""
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoding.offset_mapping)

    def with_bos(self, tokens: Sequence[int]) -> list[int]:
        """Tokens with BOS in front where prompts begin with it, and never twice."""
        # Chat templates write BOS into the text.
        if self.bos_token is None or list(tokens[:1]) == [self.bos_token]:
            return list(tokens)
        if self.bos:
            return [self.bos_token, *tokens]
        if not self._bos_is_chosen:
            _warn_without_bos(self._model, self.labels([[self.bos_token]])[0][0])
        return list(tokens)

    def text(self, text: str, *, where: str) -> str:
        """What the model reads: the text, or with `chat` the text in the tokenizer's chat template.

        The template is that of one message of a user, with what begins the answer after it.
        """
        check_text(text, where)
        if not self.chat:
            return text
        # The unknown token stands for words, and is refused as such.
        never = set(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}
        special = sorted(never & set(self.plain(text)))
        if special:
            raise PromptError(
                f"{where}: with chat=True the text must not hold {self.labels([special])[0][0]!r}, a special "
                "token: the chat template is put around it once. Give the message alone, or leave chat out."
            )
        message = [{"role": "user", "content": text}]
        return self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)

    def prompt(self, text: str, *, where: str) -> list[int]:
        """The tokens of a prompt, with one BOS where prompts begin with it."""
        read = self.text(text, where=where)
        tokens = self.plain(read)
        self._check_known(read, tokens, where)
        tokens = self.with_bos(tokens)
        if len(tokens) > self.context:
            raise PromptError(
                f"{where}: the prompt has {len(tokens)} tokens; the model's context holds {self.context}."
            )
        return tokens

    def continuation(self, prompt: str, text: str, *, joiner: str, where: str) -> list[int]:
        """The tokens that follow the prompt when both are tokenised together."""
        check_text(text, where)
        prompt = self.text(prompt, where=where)
        if text[:1].isspace() or prompt[-1:].isspace():
            joiner = ""
        joined = prompt + joiner + text
        # Together, since a SentencePiece vocabulary encodes "he" alone and " he" after a prompt differently.
        before, together = self.plain(prompt), self.plain(joined)
        if together[: len(before)] != before or len(together) <= len(before):
            raise PromptError(
                f"{where}: {text!r} melts into the end of the prompt when they are tokenised together. "
                "Put the space at the other side, or end the prompt at a word boundary."
            )
        self._check_known(joined, together, where)
        return together[len(before) :]

    def prompts(
        self, rows: Sequence[Sequence[int]], *, positions: Sequence[Mapping[str, int]] | None = None
    ) -> Prompts:
        """Prompts of rows of this vocabulary's tokens, with labels and named positions."""
        bos, labels = all_begin_with(self.bos_token, rows), self.labels(rows)
        return Prompts.of(rows, strings=labels, positions=positions, bos=bos, tokenizer=self.fingerprint)

    def labels(self, rows: Iterable[Sequence[int]]) -> list[list[str]]:
        """Readable token strings, with the space that a token begins with."""
        return [list(map(self._label, map(int, row))) for row in rows]

    def words(self, *tables: Int[Tensor, "..."]) -> dict[int, str]:
        """Token id → its string, for every id of tables of answers, which are padded with -1."""
        ids = sorted({token for table in tables for token in table.unique().tolist() if token >= 0})
        return dict(zip(ids, self.labels([ids])[0], strict=True))

    def _label(self, token: int) -> str:
        # Tokenizers count in 32 bits; whoever runs such ids refuses them.
        if not 0 <= token < 2**31:
            return str(token)
        raw = self.tokenizer.convert_ids_to_tokens(token)
        # A model may have more rows in its embedding than its tokenizer has tokens.
        if raw is None:
            return str(token)
        # SentencePiece writes a leading space as U+2581, and its `decode` of a single token drops it.
        if raw.startswith("\u2581"):
            return " " + raw[1:]
        text = self.tokenizer.decode([token])
        if _REPLACEMENT in text:
            return _spelled_bytes(raw)
        return text

    def _check_known(self, text: str, tokens: Sequence[int], where: str) -> None:
        unknown = self.tokenizer.unk_token_id
        # GPT-2's unknown token is its BOS token: it never stands for a word.
        if unknown is None or unknown not in tokens or self.tokenizer.unk_token == self.tokenizer.bos_token:
            return
        spans = self.spans(text)
        words = [text[slice(*spans[i])] for i, token in enumerate(tokens) if token == unknown]
        listed = ", ".join(map(repr, dict.fromkeys(words)))
        raise PromptError(
            f"{where}: the vocabulary has no {listed}. "
            "Use words that the model knows (model.tokenizer.get_vocab())."
        )


def _warn_without_bos(model: Model, token: str) -> None:
    """Warn once for each model whose tokenizer declares a BOS token and puts none in front of texts."""
    if model in _warned:
        return
    _warned.add(model)
    warn(
        f"The tokenizer of {model_name(model)!r} declares the BOS token {token!r} and puts none in front of "
        "texts, and so neither do prompts. bos=True (in load_model, or where prompts are read; --bos) puts "
        "it there, as published circuits of GPT-2 have it; bos=False says that none is meant."
    )


def all_begin_with(bos: int | None, rows: Sequence[Sequence[int]]) -> bool:
    """Whether every row of token ids begins with BOS; False where there is no such token.

    Read off the rows: token ids may begin with BOS whatever the model's default is.
    """
    return bos is not None and all(len(row) > 0 and row[0] == bos for row in rows)


def token_labels(model: Model, tokens: Sequence[int]) -> list[str]:
    """Readable strings of token ids; without a tokenizer the ids themselves."""
    if getattr(model, "tokenizer", None) is None:
        return list(map(str, tokens))
    return TextEncoder(model).labels([tokens])[0]


def _spelled_bytes(raw: str) -> str:
    """A token that holds part of a character: its whole characters, and the other bytes as in `<0xF0>`."""
    byte_of = _bytes_by_character()
    # A vocabulary with byte fallback (Llama 2) writes single bytes in this way itself.
    if re.fullmatch("<0x[0-9A-F]{2}>", raw) or not set(raw) <= set(byte_of):
        return raw
    text = bytes(byte_of[character] for character in raw).decode("utf-8", "surrogateescape")
    return "".join(f"<0x{ord(c) - 0xDC00:02X}>" if "\udc80" <= c <= "\udcff" else c for c in text)


@cache
def _bytes_by_character() -> dict[str, int]:
    """The character that byte-level vocabularies (GPT-2 and after) write each byte as → the byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    # Bytes that print as themselves stay; the others, in order, become the characters from U+0100 on.
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
