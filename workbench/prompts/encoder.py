"""Text to tokens: what a model's tokenizer makes of a prompt and of what follows it.

Read `TextEncoder`. The only module that calls a tokenizer; it knows nothing of tasks.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from workbench.arguments import shown
from workbench.errors import PromptError
from workbench.models.fingerprint import tokenizer_fingerprint
from workbench.models.model import Model
from workbench.prompts.prompts import Prompts
from workbench.text import lone_surrogates, visible


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
    """Text → token ids of a model; whatever goes wrong is a `PromptError` that begins with `where`."""

    def __init__(self, model: Model) -> None:
        self.tokenizer: Any = getattr(model, "tokenizer", None)
        if self.tokenizer is None:
            raise PromptError("This model has no tokenizer: build prompts with Prompts.of(token_ids).")
        self.context = int(model.cfg.n_ctx)
        # A model that was trained without BOS says so; a tokenizer may lack the token all the same.
        prepends_bos = bool(getattr(model.cfg, "default_prepend_bos", True))
        self.bos = prepends_bos and self.tokenizer.bos_token_id is not None
        self.fingerprint = tokenizer_fingerprint(model)

    def plain(self, text: str) -> list[int]:
        """The tokens of a text, without BOS and unchecked."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The characters that each token of `plain(text)` covers."""
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoding.offset_mapping)

    def prompt(self, text: str, *, where: str) -> list[int]:
        """The tokens of a prompt, with BOS where the model wants it."""
        check_text(text, where)
        tokens = self.plain(text)
        self._check_known(text, tokens, where)
        if self.bos:
            tokens = [self.tokenizer.bos_token_id, *tokens]
        if len(tokens) > self.context:
            raise PromptError(
                f"{where}: the prompt has {len(tokens)} tokens; the model's context holds {self.context}."
            )
        return tokens

    def continuation(self, prompt: str, text: str, *, joiner: str, where: str) -> list[int]:
        """The tokens that follow the prompt when both are tokenised together."""
        check_text(text, where)
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

    def prompts(self, rows: Sequence[Sequence[int]]) -> Prompts:
        """Prompts of rows of tokens that `prompt` gave."""
        return Prompts.of(rows, strings=self.labels(rows), bos=self.bos)

    def labels(self, rows: Iterable[Sequence[int]]) -> list[list[str]]:
        """Readable token strings, with the space that a token begins with."""
        return [list(map(self._label, map(int, row))) for row in rows]

    def _label(self, token: int) -> str:
        raw = self.tokenizer.convert_ids_to_tokens(token)
        # SentencePiece writes a leading space as U+2581, and its `decode` of a single token drops it.
        if raw.startswith("\u2581"):
            return " " + raw[1:]
        return self.tokenizer.decode([token])

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
