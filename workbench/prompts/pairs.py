"""Pairs of a clean and a corrupt prompt, with the next tokens that are right and wrong.

Read `PromptPairs`. It may hold several corruptions of the same clean prompts, each with a name. Sequences are
padded on the right and never by a tokenizer. Positions count the BOS token. Named positions (`END`, `S2`) are
given per example, so that templates of different length mix.
"""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import networkx as nx
import pandas as pd
import torch
import xxhash
from jaxtyping import Int
from torch import Tensor

from workbench.arguments import checked, shown
from workbench.errors import ArgumentError, PromptError, UnknownName
from workbench.models.fingerprint import model_fingerprint
from workbench.models.load import model_name
from workbench.models.model import Model
from workbench.prompts.answers import answer_table, check_answers
from workbench.prompts.encoder import TextEncoder, all_begin_with
from workbench.prompts.pair_tables import encoded_table, read_table
from workbench.prompts.prompts import Prompts
from workbench.prompts.token_tables import Padding, token_rows
from workbench.results import versions
from workbench.text import spelled

SAME_SHARE = 0.5
"""Two corruptions that are the same in more of the pairs than this are one counterfactual."""


@checked
@dataclass(frozen=True, eq=False)
class PromptPairs:
    """Clean and corrupt prompts, and the next words that are right and wrong after the clean ones.

    Attributes:
        clean, corrupt: the prompts of the two runs, example by example.
        answers, wrong: [example, alternative, token] each, padded with -1. Alternatives make sets (all valid
            years), tokens make continuations.
        provenance: task, model, tokenizer, seed, split and what else made them; `answer_words`, the strings of the
            tokens of answers.
        further: name → prompts: more counterfactuals, that is other corruptions of the same clean prompts,
            example by example. What takes pairs reads `corrupt`; `against` and `counterfactuals` give each.
    """

    clean: Prompts
    corrupt: Prompts
    answers: Int[Tensor, "example alternative token"]
    wrong: Int[Tensor, "example wrong_alternative wrong_token"]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    further: Mapping[str, Prompts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = {
            "clean": len(self.clean),
            "corrupt": len(self.corrupt),
            "answers": len(self.answers),
            "wrong": len(self.wrong),
        }
        for name, prompts in self.further.items():
            if not name or name in (*counts, self.counterfactual):
                raise PromptError(
                    f"further: {name!r} is empty or taken. Choose another name for these prompts."
                )
            counts[name] = len(prompts)
        if len(set(counts.values())) != 1 or self.answers.ndim != 3 or self.wrong.ndim != 3:
            listed = ", ".join(f"{n} {name}" for name, n in counts.items())
            raise PromptError(
                f"Pairs need one of each: there are {listed}. "
                "Answers have the shape [example, alternative, token]."
            )
        check_answers(self.answers, self.wrong)

    @property
    def bos(self) -> bool:
        """Whether the prompts begin with the BOS token."""
        return self.clean.bos

    @property
    def equal_lengths(self) -> bool:
        """Whether clean and corrupt have the same length in every pair, with every counterfactual.

        Edits of whole sequences and circuits need that: a position then means the same on both sides.
        """
        sides = (self.corrupt, *self.further.values())
        return all(torch.equal(self.clean.lengths, side.lengths) for side in sides)

    def check_equal_lengths(self, why: str) -> None:
        """Raise `PromptError` with the first pair of unequal length; `why` says what needs them equal."""
        for name, prompts in {"corrupt": self.corrupt, **self.further}.items():
            unequal = (self.clean.lengths != prompts.lengths).nonzero()
            if len(unequal):
                i = int(unequal[0])
                lengths = f"{int(self.clean.lengths[i])} and {int(prompts.lengths[i])}"
                texts = " and ".join(repr("|".join(side.strings[i])) for side in (self.clean, prompts))
                n_others = len(unequal) - 1
                others = f" Other such pairs: {n_others}." if n_others else ""
                raise PromptError(
                    f"Pair {i} has clean and {name} prompts of {lengths} tokens. {why} The prompts: {texts}.{others}"
                )

    @property
    def counterfactual(self) -> str:
        """The name of what `corrupt` is: the task's variant, or "corrupt"."""
        return str(self.provenance.get("variant") or "corrupt")

    @property
    def counterfactuals(self) -> dict[str, "PromptPairs"]:
        """Name → the pairs with that corruption alone, that of `corrupt` first.

        >>> pairs = PromptPairs.of([[5, 7]], [[4, 7]], [9], [8], further={"abc": [[3, 7]]})
        >>> {name: one.corrupt.tokens.tolist() for name, one in pairs.counterfactuals.items()}
        {'corrupt': [[4, 7]], 'abc': [[3, 7]]}
        """
        return {name: self.against(name) for name in (self.counterfactual, *self.further)}

    @checked
    def against(self, name: str) -> "PromptPairs":
        """The pairs with one of their counterfactuals as `corrupt` and no other.

        Args:
            name: `counterfactual` or one of `further`; it becomes the `variant` of the provenance.

        Raises:
            UnknownName: any other.
        """
        sides = {self.counterfactual: self.corrupt, **self.further}
        if name not in sides:
            raise UnknownName("counterfactual", name, sides)
        provenance = self.provenance
        if name != self.counterfactual:
            provenance = {**provenance, "variant": name}
        return PromptPairs(self.clean, sides[name], self.answers, self.wrong, provenance)

    def attrs(self, model: Model) -> dict[str, Any]:
        """The attributes of every result of these pairs: task, model, fingerprints, versions."""
        facts = {key: self.provenance.get(key) for key in ("task", "variant", "seed", "split", "chat")}
        # Which prompts were kept belongs to every number that was measured with them.
        if "competent" in self.provenance:
            facts["competent"] = self.provenance["competent"]
        return facts | {
            "n": len(self),
            "bos": self.bos,
            "model": model_name(model),
            "model_fingerprint": model_fingerprint(model),
            "data_fingerprint": self.fingerprint,
            **versions(),
        }

    @cached_property
    def fingerprint(self) -> str:
        """A hash of `clean`, `corrupt` and the answers: what the results of one counterfactual depend on."""
        answers = self.answers.tolist(), self.wrong.tolist()
        return xxhash.xxh3_128_hexdigest(
            repr((self.clean.fingerprint, self.corrupt.fingerprint, *answers)).encode()
        )

    @checked
    def side(self, name: str) -> Prompts:
        """The prompts of the side `clean` or `corrupt`. Raises `UnknownName` for any other."""
        if name not in ("clean", "corrupt"):
            raise UnknownName("base", name, ("clean", "corrupt"))
        if name == "clean":
            return self.clean
        return self.corrupt

    @property
    def metric(self) -> str:
        """The metric that suits them: that of their task, or one that reads answers of several tokens."""
        several = self.answers.shape[2] > 1 or self.wrong.shape[2] > 1
        return self.provenance.get("metric") or ("sequence_logprob_diff" if several else "logit_diff")

    @checked
    def select(self, indices: Sequence[int] | slice) -> "PromptPairs":
        """Some of the pairs."""
        if isinstance(indices, slice):
            indices = range(len(self))[indices]
        chosen = list(indices)
        sides = (self.clean.select(chosen), self.corrupt.select(chosen))
        rows = torch.as_tensor(chosen, dtype=torch.long, device="cpu")
        further = {name: prompts.select(chosen) for name, prompts in self.further.items()}
        return PromptPairs(*sides, self.answers[rows], self.wrong[rows], self.provenance, further)

    def recoded(self, rows: Int[Tensor, "token"]) -> "PromptPairs":
        """The same pairs for logits of some rows of the vocabulary: answers are indices into `rows`.

        Args:
            rows: token ids, sorted; every answer is among them.
        """
        # -1 is padding, which `searchsorted` would turn into a row of the vocabulary.
        answers = torch.searchsorted(rows, self.answers).where(self.answers >= 0, -1)
        wrong = torch.searchsorted(rows, self.wrong).where(self.wrong >= 0, -1)
        return PromptPairs(self.clean, self.corrupt, answers, wrong, self.provenance, self.further)

    @checked
    def split(self, *, share: float = 0.5, seed: int = 0) -> tuple["PromptPairs", "PromptPairs"]:
        """Two sets that share no prompt: pairs with a prompt in common, on any side, stay together.

        Args:
            share: of the pairs in the first set, as nearly as the groups allow.
            seed: of the order in which groups of pairs are dealt out.

        Raises:
            PromptError: shared prompts connect all pairs, so nothing can be held out.
        """
        # Whole groups go to one side, so that what is held out was never seen, not even as a corrupt prompt.
        groups = list(self._connected())
        order = random.Random(f"split {seed}").sample(range(len(groups)), len(groups))
        first: list[int] = []
        for group in order:
            if len(first) < share * len(self):
                first += groups[group]
        second = sorted(set(range(len(self))) - set(first))
        if not first or not second:
            raise PromptError(
                f"Pairs: {len(self)}, which cannot be split: shared prompts connect all of them, "
                "so nothing could be held out."
            )
        return self.select(sorted(first)), self.select(second)

    @checked
    def parts(self, shares: Sequence[float], *, seed: int = 0) -> tuple["PromptPairs", ...]:
        """As many sets as there are shares, no two of which have a prompt in common, on any side.

        Scores, the choice of a size and the reported numbers each need prompts of their own:
        `find, select, test = pairs.parts((1, 1, 2))`.

        Args:
            shares: how large the sets are, in proportion: (1, 1, 2) gives a quarter, a quarter and a half of
                the pairs, as nearly as the groups of pairs that share prompts allow.
            seed: of the order in which the groups are dealt out.

        Raises:
            PromptError: no shares, one that is not above 0, or fewer groups than sets.

        >>> pairs = PromptPairs.of([[i] for i in range(8)], [[i + 8] for i in range(8)], [1] * 8, [2] * 8)
        >>> [len(part) for part in pairs.parts((1, 1, 2))]
        [2, 2, 4]
        """
        if not shares or not all(0 < share < math.inf for share in shares):
            raise PromptError(f"shares={tuple(shares)}: give one number above 0 for each set.")
        groups = list(self._connected())
        if len(groups) < len(shares):
            raise PromptError(
                f"Pairs: {len(self)}, which cannot be parted into {len(shares)} sets: shared prompts connect "
                f"them into {len(groups)}. Sets of their own need pairs without a prompt in common: exchange words "
                "in twos (A with B, C with D), so that the prompts of two pairs are in no other."
            )
        random.Random(f"parts {seed}").shuffle(groups)
        # The largest first, each to the set that lacks most: small groups then even out what large ones left.
        groups.sort(key=len, reverse=True)
        lacking = [share / math.fsum(shares) * len(self) for share in shares]
        members: list[list[int]] = [[] for _ in shares]
        for n_dealt, group in enumerate(groups):
            empty = [k for k, chosen in enumerate(members) if not chosen]
            # Where there is just one group left for each empty set, no other set may take it.
            choices = empty if len(groups) - n_dealt == len(empty) else range(len(members))
            taker = max(choices, key=lambda k: lacking[k])
            members[taker] += group
            lacking[taker] -= len(group)
        return tuple(self.select(sorted(chosen)) for chosen in members)

    def _connected(self) -> Iterator[list[int]]:
        """Groups of pairs that have a prompt in common, directly or through others."""
        # Pairs are joined by way of the hashes of their prompts, which are nodes too.
        graph = nx.Graph()
        sides = (self.clean, self.corrupt, *self.further.values())
        for i, prompts in enumerate(zip(*(side.ids for side in sides), strict=True)):
            graph.add_edges_from((i, prompt) for prompt in prompts)
        for component in nx.connected_components(graph):
            yield sorted(node for node in component if isinstance(node, int))

    def __len__(self) -> int:
        return len(self.clean)

    def __repr__(self) -> str:
        task = spelled(str(self.provenance.get("task", "own prompts")))
        shortest, longest = int(self.clean.lengths.min()), int(self.clean.lengths.max())
        return f"<PromptPairs: {len(self)} x {task}, {shortest} to {longest} tokens>"

    @classmethod
    @checked
    def of(
        cls,
        clean: Any,
        corrupt: Any,
        answers: Any,
        wrong: Any,
        *,
        model: Model | None = None,
        positions: Mapping[str, Sequence[Mapping[str, int]]] | None = None,
        bos: bool | None = None,
        further: Mapping[str, Any] | None = None,
    ) -> "PromptPairs":
        """Pairs from token ids.

        Args:
            clean, corrupt: `Prompts`, or token ids [example, pos] as lists, a tensor, an array, or what a
                Hugging Face tokenizer returns: its `attention_mask` says what is padding, at either side.
            answers, wrong: token ids of the next words that are right and wrong, as lists, a tensor or an
                array: [example], [example, alternative] or [example, alternative, token], with as many
                alternatives for each example as it has.
            model: whose tokenizer gives the labels, says what is padding, and whether prompts begin with BOS.
            positions: "clean", "corrupt" and names of `further` → name → index, prompt by prompt.
            bos: whether every prompt begins with the BOS token; None asks the tokenizer of `model`, and
                without a model is no.
            further: name → more corruptions of the same clean prompts, given like `corrupt`.

        Raises:
            PromptError: no token ids, padding without a mask, other numbers of clean and corrupt prompts, an
                example without an answer, or a further corruption that is the same as another in more than half
                of the pairs.
            UnknownName: positions of a side that is not there.

        >>> pairs = PromptPairs.of([[0, 5, 7], [0, 6]], [[0, 4, 7], [0, 3]], [9, 8], [[1, 2], [3]])
        >>> pairs.answers.tolist(), pairs.wrong.tolist()
        ([[[9]], [[8]]], [[[1], [2]], [[3], [-1]]])
        """
        tables = {"clean": clean, "corrupt": corrupt, **(further or {})}
        by_side = positions or {}
        for side in by_side:
            if side not in tables:
                raise UnknownName("positions", side, tables)
        sides = {name: _side(table, name, model, by_side.get(name), bos) for name, table in tables.items()}
        _check_distinct(sides)
        return cls(
            sides.pop("clean"),
            sides.pop("corrupt"),
            answer_table(answers, "answers"),
            answer_table(wrong, "wrong"),
            further=sides,
        )

    @classmethod
    @checked
    def from_dataframe(
        cls,
        model: Model | pd.DataFrame,
        frame: pd.DataFrame | Model,
        *,
        joiner: str = " ",
        source: str = "table",
        bos: bool | None = None,
        chat: bool = False,
    ) -> "PromptPairs":
        """Pairs from columns `clean, corrupt, answer, wrong`; the model and the table in either order.

        * Several right or wrong answers stand in one cell with `|` between them, or are a list.
        * Columns `corrupt2`, `corrupt3` and so on are more counterfactuals of the same clean prompts: `further`.
        * A column `pos_S2` names a place of the clean prompt `S2`: a token's index (BOS counted), or a word or phrase
          that is there once (its last token; `Mary#2` is the second Mary). Or mark it in the text: `[[S2:Mary]]`, in
          capitals. The corrupt prompts have it at the same index, unless a column `pos_S2@corrupt` or a mark says
          otherwise. An empty cell: this prompt has no such place.

        Prompt and answer are tokenised together, joined by `joiner` unless the answer begins with a space;
        `joiner=""` takes the text as it stands.

        Args:
            source: what errors and results call the table.
            bos: whether prompts begin with BOS; None: as chosen in `load_model`, else as the tokenizer adds it.
            chat: put each prompt into the tokenizer's chat template, as one message of a user.

        Raises:
            ArgumentError: not a model and a table.
            PromptError: a column is missing, a cell is empty (row number named), a prompt is longer than the
                context, a word is unknown, the prompt's own tokens change when the answer follows, a place is not
                there or ambiguous, two columns of corrupt prompts are the same, or there is no chat template.

        >>> import pandas as pd, workbench as wb
        >>> row = {"clean": "The [[NOUN:dog]] near the cats", "corrupt": "The dogs near the cats"}
        >>> frame = pd.DataFrame([row | {"answer": "is|was", "wrong": "are|were"}])
        >>> pairs = wb.PromptPairs.from_dataframe(frame, wb.load_model("tiny"))
        >>> pairs.clean.at("NOUN").tolist(), pairs.answers.shape[1]
        ([2], 2)
        """
        reader, rows = _model_first("from_dataframe", model, frame, pd.DataFrame)
        table = encoded_table(reader, rows, joiner=joiner, source=source, bos=bos, chat=chat)
        _check_distinct(table.sides)
        sides = dict(table.sides)
        clean, corrupt = sides.pop("clean"), sides.pop("corrupt")
        return cls(clean, corrupt, table.answers, table.wrong, table.provenance, sides)

    @classmethod
    @checked
    def from_file(
        cls,
        model: Model | str | Path,
        path: str | Path | Model,
        *,
        joiner: str = " ",
        bos: bool | None = None,
        chat: bool = False,
    ) -> "PromptPairs":
        """Pairs from a .csv, .tsv, .jsonl, .json or .parquet file; the model and the path in either order.

        Columns (or keys), arguments and errors are as in `from_dataframe`. Other encodings and separators, as
        spreadsheets write them, are recognised; a warning says so.
        """
        reader, file = _model_first("from_file", model, path, str | Path)
        frame = read_table(file)
        return cls.from_dataframe(reader, frame, joiner=joiner, source=Path(file).name, bos=bos, chat=chat)

    @classmethod
    @checked
    def from_csv(
        cls,
        model: Model | str | Path,
        path: str | Path | Model,
        *,
        joiner: str = " ",
        bos: bool | None = None,
        chat: bool = False,
    ) -> "PromptPairs":
        """Pairs from a CSV file with a header, whatever its suffix; the rest as in `from_file`."""
        reader, file = _model_first("from_csv", model, path, str | Path)
        frame = read_table(file, "csv")
        return cls.from_dataframe(reader, frame, joiner=joiner, source=Path(file).name, bos=bos, chat=chat)

    @classmethod
    @checked
    def from_jsonl(
        cls,
        model: Model | str | Path,
        path: str | Path | Model,
        *,
        joiner: str = " ",
        bos: bool | None = None,
        chat: bool = False,
    ) -> "PromptPairs":
        """Pairs from a file with one JSON object per line, whatever its suffix; the rest as in `from_file`."""
        reader, file = _model_first("from_jsonl", model, path, str | Path)
        frame = read_table(file, "jsonl")
        return cls.from_dataframe(reader, frame, joiner=joiner, source=Path(file).name, bos=bos, chat=chat)


def _model_first(call: str, first: Any, second: Any, kind: Any) -> tuple[Any, Any]:
    """A model and what it reads, in this order, from two arguments in either order."""
    if isinstance(first, kind) and not isinstance(second, kind):
        first, second = second, first
    if isinstance(first, kind) or not isinstance(second, kind):
        what = "a table" if kind is pd.DataFrame else "a path"
        raise ArgumentError(
            f"PromptPairs.{call} takes a model and {what}, in either order; given: {shown(first)}, {shown(second)}."
        )
    return first, second


def _side(
    table: Any,
    name: str,
    model: Model | None,
    positions: Sequence[Mapping[str, int]] | None,
    bos: bool | None,
) -> Prompts:
    """The prompts of one side, given as token ids or as prompts."""
    if isinstance(table, Prompts):
        return table
    try:
        rows = token_rows(table, None if model is None else Padding.of(model))
    except PromptError as error:
        raise PromptError(f"{name}: {error}") from error
    if rows is None:
        raise PromptError(f"{name} are texts; PromptPairs.from_dataframe(model, ...) reads texts.")
    labels, fingerprint = None, ""
    if model is not None and getattr(model, "tokenizer", None) is not None:
        encode = TextEncoder(model)
        labels, fingerprint = encode.labels(rows), encode.fingerprint
        if bos is None:
            bos = all_begin_with(encode.bos_token, rows)
    return Prompts.of(rows, strings=labels, positions=positions, bos=bool(bos), tokenizer=fingerprint)


def _check_distinct(sides: Mapping[str, Prompts]) -> None:
    """Raise `PromptError` where two corruptions are the same in most pairs: they would count as two."""
    corruptions = {name: prompts for name, prompts in sides.items() if name != "clean"}
    for (name, some), (other, others) in itertools.combinations(corruptions.items(), 2):
        # That there are as many of each is checked where pairs are made.
        n_same = sum(a == b for a, b in zip(some.ids, others.ids, strict=False))
        if n_same > SAME_SHARE * len(some):
            pairs = "all pairs" if n_same == len(some) else f"{n_same} of {len(some)} pairs"
            raise PromptError(
                f"{name} and {other} are the same prompts in {pairs}, which is one counterfactual and not two. "
                "Leave one of them out."
            )
