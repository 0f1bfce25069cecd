"""`build_store` and `repair`: model x prompts → a store on disk, planned first, then written shard by shard.

`Request` says what is to be stored; its `plan` is written before any activation is. A call that was
interrupted resumes with the shards that are missing, and writes the same bytes. File formats are in `stores`.
"""

import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.arguments import checked
from workbench.backends import check_backend, run_jobs
from workbench.checksums import file_sum
from workbench.engine.hooked.forward import forward
from workbench.engine.memory import memory_budget, rows_per_forward
from workbench.engine.plain_run import PlainRun
from workbench.errors import OutputExists, SiteError, StoreError
from workbench.files import alone, check_local
from workbench.finite import check_finite, is_finite
from workbench.models.fingerprint import model_fingerprint, tokenizer_fingerprint
from workbench.models.load import load_model, model_device, model_name, model_source
from workbench.models.model import Model
from workbench.progress import log, progress_bar
from workbench.prompts.prompts import Prompts
from workbench.results import versions
from workbench.sites import Key, Position, Site
from workbench.stores.disk import (
    DiskStore,
    exists,
    open_store,
    read_plan,
    verify,
    write_prompts,
)
from workbench.stores.plan import (
    LABELS,
    PLAN,
    PROMPTS,
    SHARD_BYTES,
    SHARDS,
    StorePlan,
    cut,
    file_name,
    key_of,
    name_of,
    record_name,
)
from workbench.stores.records import write_record
from workbench.stores.writing import write_json, writing

# Bytes a second that a disk is taken to write; for estimates only, a common SSD does as much.
WRITING = 1e9
Keep = str | Sequence[Position] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class StoreCost:
    """What a store will take."""

    prompts: int
    rows: int
    shards: int
    nbytes: int
    seconds: float

    def __str__(self) -> str:
        size = f"{self.nbytes / 2**20:.1f} MiB"
        if self.nbytes >= 2**30:
            size = f"{self.nbytes / 2**30:.2f} GiB"
        return (
            f"{self.prompts} prompts, {self.rows} rows, {size} in {self.shards} shards, "
            f"about {self.seconds:.0f} s in one process"
        )


@dataclass(frozen=True)
class Request:
    """What is to be stored of which prompts: everything that a plan is made of.

    Attributes:
        keys: site → the site whose activations it shares.
        keep: "all", "mean", positions, or the positions of each prompt.
        dtype: of the rows; None: the model's.
    """

    prompts: Prompts
    keys: Mapping[Key, Key]
    keep: Keep = "all"
    dtype: torch.dtype | None = None
    shard_bytes: int = SHARD_BYTES
    budget: int | None = None
    threads: int | None = None

    def rows(self) -> tuple[Int[np.ndarray, "example"], Int[Tensor, "row"] | None]:
        """How many rows each prompt gets, and each row's position, prompt after prompt (None: all)."""
        lengths = self.prompts.lengths.cpu()
        if self.keep == "all":
            return lengths.numpy().astype(np.int64), None
        if any(kind == "pattern" for kind, _ in self.keys):
            raise SiteError(
                "Attention patterns are stored whole: leave them out of sites= where keep= takes some "
                "positions."
            )
        if self.keep == "mean":
            return np.ones(len(lengths), dtype=np.int64), torch.full((len(lengths),), -1)
        if isinstance(self.keep, str) or not len(self.keep):
            raise StoreError(
                f"keep={self.keep!r}: it is 'all', 'mean', positions such as ['END', 3], or those of each "
                "prompt."
            )
        if not isinstance(self.keep[0], str | int | Sequence):
            raise StoreError(f"keep={self.keep!r}: positions are names or whole numbers.")
        if isinstance(self.keep[0], str | int):
            chosen = self._at_positions(self.keep)  # pyright: ignore[reportArgumentType]
        else:
            chosen = self._prompt_by_prompt(self.keep)  # pyright: ignore[reportArgumentType]
        if not any(chosen):
            raise StoreError(
                f"keep={self.keep!r}: no prompt has such a position, so nothing would be stored."
            )
        return np.array(list(map(len, chosen))), torch.tensor(list(chain.from_iterable(chosen)))

    def _at_positions(self, keep: Sequence[Position]) -> list[list[int]]:
        """The kept positions of each prompt, in order, where all prompts keep the same names or indices."""
        indices = torch.stack([self.prompts.at(position).cpu() for position in keep])
        chosen = []
        for of_prompt in indices.T.tolist():
            # A set, because two names may be the same token; -1 means that the prompt lacks the position.
            chosen.append(sorted(set(of_prompt) - {-1}))
        return chosen

    def _prompt_by_prompt(self, keep: Sequence[Sequence[int]]) -> list[list[int]]:
        """The kept positions of each prompt, in order, where each prompt has its own list."""
        chosen = [sorted(set(positions)) for positions in keep]
        lengths = self.prompts.lengths.tolist()
        if len(chosen) != len(lengths):
            raise StoreError(f"keep= names positions of {len(chosen)} prompts, and there are {len(lengths)}.")
        for i, (positions, length) in enumerate(zip(chosen, lengths, strict=True)):
            if positions and not 0 <= positions[0] <= positions[-1] < length:
                raise StoreError(
                    f"keep=: prompt {i} has {length} tokens, and one of its positions {positions} lies "
                    "outside."
                )
        return chosen

    def plan(self, model: Any) -> StorePlan:
        """What will be stored, and how it is cut."""
        written = list(dict.fromkeys(self.keys.values()))
        # One token says how wide every activation is, whatever the architecture.
        probe = forward(model, self.prompts.tokens[:1, :1], record=written).recorded
        shapes: dict[str, list[int]] = {}
        widths: dict[str, int] = {}
        for key in written:
            # Positions differ between prompts, so only the other axes are planned: [head] for a pattern
            # [example, head, query, key], what follows [example, pos] for all others.
            shape = probe[key].shape[1:2] if key[0] == "pattern" else probe[key].shape[2:]
            shapes[name_of(key)] = list(shape)
            widths[key[0]] = widths.get(key[0], 0) + int(np.prod(shape))
        dtype = self.dtype or next(iter(probe.values())).dtype
        lengths, (counts, _) = self._lengths, self.rows()
        longest = int(lengths.max())
        # A quarter of the budget is left for the rows that wait to be written.
        forward_budget = max(1, memory_budget(model_device(model), self.budget) * 3 // 4)
        fit = rows_per_forward(model, longest, budget=forward_budget, extra=2 * sum(widths.values()))
        keep = _described(self.keep)
        return StorePlan(
            model=model_fingerprint(model, full=True), model_name=model_name(model),
            tokenizer=tokenizer_fingerprint(model), prompts=self.prompts.fingerprint, n=len(self.prompts),
            sites={name_of(key): name_of(own) for key, own in self.keys.items()}, shapes=shapes,
            dtype=str(dtype).removeprefix("torch."), keep=keep,
            shards=cut(lengths, counts, widths, widths.get("pattern", 0), dtype.itemsize, self.shard_bytes),
            batch_tokens=fit * longest, threads=self.threads or torch.get_num_threads(),
            versions=versions(), checksums={},
        )  # fmt: skip

    def cost(
        self, model: Any, plan: StorePlan, shards: Sequence[int] | None = None, *, timed: bool = True
    ) -> StoreCost:
        """What the shards (None: all) will take; one forward pass is timed, else the seconds are NaN."""
        chosen = range(len(plan.shards)) if shards is None else shards
        if not len(chosen):
            return StoreCost(0, 0, 0, 0, 0.0)
        lengths, (counts, _) = self._lengths, self.rows()
        size = 0
        for shard, group in product(chosen, plan.groups):
            for dtype, shape in plan.tensors(group, shard, lengths, counts).values():
                size += dtype.itemsize * int(np.prod(shape))
        inside = np.concatenate([np.arange(*plan.shards[shard]) for shard in chosen])
        rows, seconds = int(counts[inside].sum()), float("nan")
        if timed:
            seconds = (
                self._seconds_per_token(model, plan, inside) * int(lengths[inside].sum()) + size / WRITING
            )
        return StoreCost(len(inside), rows, len(chosen), size, seconds)

    @property
    def _lengths(self) -> Int[np.ndarray, "example"]:
        """Tokens of each prompt."""
        return self.prompts.lengths.cpu().numpy().astype(np.int64)

    def _seconds_per_token(self, model: Any, plan: StorePlan, inside: Int[np.ndarray, "prompt"]) -> float:
        """Measured in one forward pass of four prompts of about the median length."""
        lengths = self._lengths[inside]
        middle = int(np.median(lengths))
        # Near the median, because attention makes long prompts dearer per token than short ones.
        near = inside[np.argsort(np.abs(lengths - middle), kind="stable")[:4]]
        batch = self.prompts.select(near.tolist())
        # Made outside of the clock: a model's first use is checked, once.
        plain_run = PlainRun.of(model, [key_of(name) for name in plan.shapes], int(self._lengths.max()))
        start = time.perf_counter()
        plain_run(batch)
        return (time.perf_counter() - start) / int(batch.lengths.sum())


def build_store(
    model: Any,
    request: Request,
    path: Path,
    *,
    workers: int = 1,
    backend: str = "local",
    progress: bool = True,
) -> DiskStore:
    """Write what is missing of a store, then open it.

    Raises:
        StoreError: the folder holds a store of something else, another process writes the same shard, the
            disk is too small.
        OutputExists: the folder holds something that is not a store.
    """
    check_backend(backend, workers)
    # Workers load the model from its source, so that none is copied; asked first, because a model without one
    # must be refused before the folder is made.
    source = None
    if workers > 1 or backend != "local":
        source = model_source(model)
    plan = _plan_in_folder(model, request, path)
    # Shards with a record are finished, by whichever call: the others are what is left to do.
    todo = [shard for shard in range(len(plan.shards)) if not exists(str(path / record_name(shard)))]
    cost = request.cost(model, plan, todo, timed=False)
    free = shutil.disk_usage(path).free
    if cost.nbytes > free:
        raise StoreError(
            f"The disk of {str(path)!r} has {free / 2**30:.2f} GiB free, and the store needs "
            f"{cost.nbytes / 2**30:.2f}."
        )
    with progress_bar(cost.prompts, "capture", "prompt", shown=progress) as bar:
        if not bar.disable and todo:  # the estimate costs a forward pass: only where somebody sees it
            # to the log: stdout may be read by a program, and a notebook keeps what is printed
            log.info("%s", request.cost(model, plan, todo))
        if source is None:
            write_shards(model, request.prompts, path, plan, todo, bar.update)
        else:
            # Each worker has shards of its own from the start: no two ever write the same file.
            jobs = [(str(path), source, todo[rank::workers]) for rank in range(workers)]
            for prompts in run_jobs(_job, [job for job in jobs if job[-1]], workers=workers, backend=backend):
                bar.update(prompts)
    return open_store(path)


@checked
def repair(model: Model, path: str | Path, *, progress: bool = True) -> list[str]:
    """Recompute the damaged shards, and no others. Returns the files that were damaged.

    Raises:
        StoreError: the prompts or the plan are damaged, or the store is of another model: nothing is changed.
    """
    path = Path(path)
    damaged = list(verify(path))
    common = [damage for damage in damaged if damage.shard is None]
    if common:
        raise StoreError(
            f"{common[0].file!r} is damaged ({common[0].why}), and the prompts cannot be made from the rest. "
            "Call capture with the prompts into a fresh folder."
        )
    plan = read_plan(str(path))
    _same_model(model, plan, path)
    prompts = DiskStore(str(path)).prompts
    todo = sorted({damage.shard for damage in damaged if damage.shard is not None})
    folders = [damage.file for damage in damaged if Path(damage.file).is_dir()]
    if folders:
        raise StoreError(
            f"{folders[0]!r} is a folder where a file of the store was. Remove it, then repair the store."
        )
    try:
        # A shard counts as finished while its record exists: without it, `write_shards` makes it again.
        for shard in todo:
            (path / record_name(shard)).unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{str(path)!r} cannot be written: {error.strerror}.") from error
    with progress_bar(_n_prompts(plan, todo), "repair", "prompt", shown=progress) as bar:
        write_shards(model, prompts, path, plan, todo, bar.update)
    return [damage.file for damage in damaged]


def _plan_in_folder(model: Any, request: Request, path: Path) -> StorePlan:
    """The plan of the store in a folder: the one that is there if it stores the same, else a new one."""
    check_local(path)
    fresh = request.plan(model)
    if not exists(str(path / PLAN)):
        _make_folder(path)
        with alone(path):
            # Another process that began with this one may have written its plan in the meantime.
            if not exists(str(path / PLAN)):
                counts, kept = request.rows()
                write_prompts(path, request.prompts, counts, kept)
                plan = replace(fresh, checksums={name: file_sum(path / name) for name in (PROMPTS, LABELS)})
                write_json(path / PLAN, plan.to_dict())  # last: with a plan the prompts are taken to be whole
                return plan
    plan = read_plan(str(path))
    differs = plan.same_store(fresh)
    if differs:
        name = differs[0]
        raise StoreError(
            f"{str(path)!r} holds a store with another {name}: {_short(getattr(plan, name))} there, "
            f"{_short(getattr(fresh, name))} here. Choose another path for this one."
        )
    return plan


def _make_folder(path: Path) -> None:
    """Make the folder of a store. Raises `OutputExists` where something else is, `StoreError` where it cannot."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Prompts without a plan are what a kill before the plan leaves behind: such a folder is begun again.
        ours = (PROMPTS, LABELS, SHARDS)
        others = [name for name in os.listdir(path) if name not in ours and not name.startswith(".")]
        if others:
            raise OutputExists(
                f"{str(path)!r} is not a store, and not empty (it has {others[0]!r}). Choose another path."
            )
        (path / SHARDS).mkdir(exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise OutputExists(
            f"{str(path)!r} is a file where a folder is needed. Choose another path."
        ) from error
    except OSError as error:
        raise StoreError(f"{str(path)!r} cannot be written: {error.strerror}.") from error


def write_shards(
    model: Any, prompts: Prompts, path: Path, plan: StorePlan, shards: Iterable[int], done: Any
) -> None:
    """Run the prompts of some shards and write them; `done(n)` is called after each n prompts."""
    store = DiskStore(str(path))
    # The plan's own number of threads: another one rounds sums otherwise, and a resumed store would differ.
    with _threads(plan.threads):
        for shard in shards:
            if not exists(str(path / record_name(shard))):
                _write_shard(model, prompts, store, path, plan, shard, done)
                # After its files are closed: a record says that they are whole.
                write_record(path, plan, shard)


def _write_shard(
    model: Any, prompts: Prompts, store: DiskStore, path: Path, plan: StorePlan, shard: int, done: Any
) -> None:
    """Write the files of one shard, all of them open at once: a forward pass gives rows of each."""
    lengths = prompts.lengths.cpu().numpy().astype(np.int64)
    counts = store.index.counts.numpy()
    plain_run = PlainRun.of(model, [key_of(name) for name in plan.shapes], int(lengths.max()))
    with ExitStack() as open_files:
        files = {}
        for group in plan.groups:
            file = writing(path / file_name(shard, group), plan.tensors(group, shard, lengths, counts))
            files[group] = open_files.enter_context(file)
        for batch in plan.batches(shard, lengths):
            chosen = prompts.select(batch)
            recorded = plain_run(chosen)
            rows = _BatchRows(store, batch, chosen.lengths)
            for group, names in plan.groups.items():
                for name in names:
                    key = key_of(name)
                    kept = rows.kept(key[0], recorded[key]).to(plan.torch_dtype)
                    check_captured(kept, [kept], key)
                    files[group].append(name, kept)
            done(len(batch))


def check_captured(activation: Tensor, rows: Sequence[Tensor], key: Key) -> None:
    """Raise `NotFinite` where an activation is not finite at some token of a prompt.

    Args:
        activation: [example, pos, ...] of the whole batch, looked at first: one look is nearly always enough.
        rows: the same without padding, which may hold anything.
        key: the kind and layer of the activation.
    """
    if is_finite(activation):
        return
    dtype = str(activation.dtype).removeprefix("torch.")
    largest = torch.finfo(activation.dtype).max
    for unpadded in rows:
        cure = f"Check the model's weights; {dtype} holds numbers up to {largest:.3g}."
        check_finite(unpadded, f"The activation {Site(*key)} in {dtype}", cure)


class _BatchRows:
    """Which rows of a batch's activations are kept."""

    def __init__(self, store: DiskStore, batch: Sequence[int], lengths: Tensor) -> None:
        self.lengths, self.mean = lengths.tolist(), store.plan.keep == "mean"
        index = store.index
        # Positions and examples index a batch's activations together, so both are [row], prompt after prompt.
        self.positions = torch.cat([index.positions[index.starts[i] :][: index.counts[i]] for i in batch])
        self.examples = torch.arange(len(batch)).repeat_interleave(index.counts[list(batch)])

    def kept(self, kind: str, value: Float[Tensor, "example ..."]) -> Tensor:
        """[row, ...] in the order of the batch."""
        if kind == "pattern":
            return torch.cat([value[i, :, :n, :n].reshape(-1) for i, n in enumerate(self.lengths)])
        if self.mean:
            return torch.stack([value[i, :n].mean(0) for i, n in enumerate(self.lengths)])
        return value[self.examples.to(value.device), self.positions.to(value.device)]


def _job(path: str, source: Mapping[str, Any], shards: Sequence[int]) -> int:
    """What a worker does: it loads the model, which has to be the one that the store was planned for."""
    plan = read_plan(path)
    model = load_model(**source)
    _same_model(model, plan, Path(path))
    write_shards(model, DiskStore(path).prompts, Path(path), plan, shards, lambda n: None)
    return _n_prompts(plan, shards)


def _n_prompts(plan: StorePlan, shards: Iterable[int]) -> int:
    """How many prompts some shards hold."""
    return sum(stop - start for start, stop in map(plan.shards.__getitem__, shards))


def _same_model(model: Any, plan: StorePlan, path: Path) -> None:
    """Raise `StoreError` where a store was made with another model or tokenizer."""
    fingerprints = (
        ("model", plan.model, model_fingerprint(model, full=True)),
        ("tokenizer", plan.tokenizer, tokenizer_fingerprint(model)),
    )
    for noun, stored, own in fingerprints:
        if stored != own:
            raise StoreError(
                f"{str(path)!r} is a store of another {noun}: {stored[:8]} there ({plan.model_name}), "
                f"{own[:8]} here."
            )


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """This many threads of torch inside, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _described(keep: Keep) -> str:
    """`keep` as the plan spells it: positions by name; lists of single prompts are in the index anyway."""
    if isinstance(keep, str):
        return keep
    if isinstance(keep[0], str | int):
        return ", ".join(map(str, keep))
    return "rows chosen prompt by prompt"


def _short(value: Any) -> str:
    """A field of a plan, cut to the width of a message."""
    text = str(value)
    if len(text) > 60:
        text = f"{text[:60]}..."
    return text
