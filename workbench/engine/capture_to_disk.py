"""Model x prompts → store on disk: planned first, written shard by shard, gone on with where it stopped."""

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from workbench.backends import check_backend, run_jobs
from workbench.engine.hooked.forward import forward
from workbench.engine.memory import memory_budget, rows_per_forward
from workbench.errors import OutputExists, SiteError, StoreError
from workbench.models.load import (
    load_model,
    model_device,
    model_fingerprint,
    model_name,
    model_source,
    tokenizer_fingerprint,
)
from workbench.prompts.prompts import Prompts
from workbench.results import versions
from workbench.sites import Key, Position
from workbench.stores.disk import (
    DiskStore,
    exists,
    finish_shard,
    open_store,
    read_plan,
    verify,
    write_prompts,
)
from workbench.stores.format import checksum, write_json, writing
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

WRITING = 1e9
"""Bytes a second that a disk is taken to write, for estimates."""
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
        size = f"{self.nbytes / 2**20:.1f} MiB" if self.nbytes < 2**30 else f"{self.nbytes / 2**30:.2f} GiB"
        return f"{self.prompts} prompts, {self.rows} rows, {size} in {self.shards} shards, about {self.seconds:.0f} s in one process"


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
        """How many rows each prompt gets, and the position of each row, prompt after prompt (None: all of
        them).
        """
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
                f"prompt."
            )
        if not isinstance(self.keep[0], str | int | Sequence):
            raise StoreError(f"keep={self.keep!r}: positions are names or whole numbers.")
        if isinstance(self.keep[0], str | int):
            places = torch.stack([self.prompts.at(where).cpu() for where in self.keep])  # pyright: ignore[reportArgumentType]
            chosen = [sorted({p for p in column if p >= 0}) for column in places.T.tolist()]
        else:
            chosen = [sorted(set(each)) for each in self.keep]  # pyright: ignore[reportArgumentType]
            if len(chosen) != len(lengths):
                raise StoreError(
                    f"keep= names positions of {len(chosen)} prompts, and there are {len(lengths)}."
                )
            for i, (each, length) in enumerate(zip(chosen, lengths.tolist(), strict=True)):
                if each and not 0 <= each[0] <= each[-1] < length:
                    raise StoreError(
                        f"keep=: prompt {i} has {length} tokens, and one of its positions {each} lies "
                        f"outside."
                    )
        if not any(chosen):
            raise StoreError(
                f"keep={self.keep!r}: no prompt has such a position, so nothing would be stored."
            )
        return np.array([len(each) for each in chosen]), torch.tensor([p for each in chosen for p in each])

    def plan(self, model: Any) -> StorePlan:
        """What will be stored, and how it is cut."""
        written = list(dict.fromkeys(self.keys.values()))
        probe = forward(model, self.prompts.tokens[:1, :1], record=written).recorded
        shapes = {
            name_of(key): list(value.shape[1:2] if key[0] == "pattern" else value.shape[2:])
            for key, value in probe.items()
        }
        shapes = {name_of(key): shapes[name_of(key)] for key in written}
        dtype = self.dtype or next(iter(probe.values())).dtype
        widths: dict[str, int] = {}
        for key in written:
            widths[key[0]] = widths.get(key[0], 0) + int(np.prod(shapes[name_of(key)]))
        lengths, (counts, _) = self.prompts.lengths.cpu().numpy().astype(np.int64), self.rows()
        longest = int(lengths.max())
        # the rest is for the rows that are written
        forward_budget = max(1, memory_budget(model_device(model), self.budget) * 3 // 4)
        fit = rows_per_forward(model, longest, budget=forward_budget, extra=2 * sum(widths.values()))
        keep = self.keep if isinstance(self.keep, str) else _described(self.keep)
        return StorePlan(
            model=model_fingerprint(model), model_name=model_name(model), tokenizer=tokenizer_fingerprint(model),
            prompts=self.prompts.fingerprint, n=len(self.prompts), sites={name_of(a): name_of(b) for a, b in self.keys.items()},
            shapes=shapes, dtype=str(dtype).removeprefix("torch."), keep=keep,
            shards=cut(lengths, counts, widths, widths.get("pattern", 0), dtype.itemsize, self.shard_bytes),
            batch_tokens=fit * longest, threads=self.threads or torch.get_num_threads(), versions=versions(), checksums={},
        )  # fmt: skip

    def cost(
        self, model: Any, plan: StorePlan, shards: Sequence[int] | None = None, *, timed: bool = True
    ) -> StoreCost:
        """What the shards (None: all) will take; one forward pass is timed, else the seconds are NaN."""
        chosen = range(len(plan.shards)) if shards is None else shards
        lengths, (counts, _) = self.prompts.lengths.cpu().numpy().astype(np.int64), self.rows()
        size = sum(
            dtype.itemsize * int(np.prod(shape))
            for shard in chosen for group in plan.groups for dtype, shape in plan.tensors(group, shard, lengths, counts).values()
        )  # fmt: skip
        inside = (
            np.concatenate([np.arange(*plan.shards[shard]) for shard in chosen])
            if len(chosen)
            else np.array([], dtype=int)
        )
        if not len(inside):
            return StoreCost(0, 0, 0, 0, 0.0)
        rows, seconds = int(counts[inside].sum()), float("nan")
        if timed:
            middle = int(np.median(lengths[inside]))
            near = inside[np.argsort(np.abs(lengths[inside] - middle), kind="stable")[:4]]
            batch = self.prompts.select(near.tolist())
            start = time.perf_counter()
            forward(model, batch.tokens, record=[key_of(name) for name in plan.shapes])
            each = (time.perf_counter() - start) / int(batch.lengths.sum())
            seconds = each * int(lengths[inside].sum()) + size / WRITING
        return StoreCost(len(inside), rows, len(chosen), size, seconds)


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
        OutputExists: the folder holds something that is no store.
    """
    check_backend(backend, workers)
    source = None if workers == 1 and backend == "local" else model_source(model)
    plan = _begun(model, request, path)
    todo = [shard for shard in range(len(plan.shards)) if not exists(str(path / record_name(shard)))]
    cost = request.cost(model, plan, todo, timed=False)
    free = shutil.disk_usage(path).free
    if cost.nbytes > free:
        raise StoreError(
            f"The disk of {str(path)!r} has {free / 2**30:.2f} GiB free, and the store needs "
            f"{cost.nbytes / 2**30:.2f}."
        )
    with tqdm(
        total=cost.prompts, desc="capture", unit="prompt", disable=None if progress else True, leave=False
    ) as bar:
        if not bar.disable and todo:
            bar.write(str(request.cost(model, plan, todo)))
        if source is None:
            write_shards(model, request.prompts, path, plan, todo, bar.update)
        else:
            jobs = [(str(path), source, todo[rank::workers]) for rank in range(workers)]
            for prompts in run_jobs(_job, [job for job in jobs if job[-1]], workers=workers, backend=backend):
                bar.update(prompts)
    return open_store(path)


def repair(model: Any, path: str | Path, *, progress: bool = True) -> list[str]:
    """Build the damaged shards of a store anew, and only those; the files that were damaged.

    Raises:
        StoreError: the prompts or the plan are damaged, or the store is of another model: nothing is changed.
    """
    path = Path(path)
    damaged = list(verify(path))
    common = [damage for damage in damaged if damage.shard is None]
    if common:
        raise StoreError(
            f"{common[0].file!r} is damaged ({common[0].why}), and the prompts cannot be made from the rest. "
            f"Call capture with "
            "the prompts into a fresh folder."
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
        for shard in todo:
            (path / record_name(shard)).unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{str(path)!r} cannot be written: {error.strerror}.") from error
    total = sum(plan.shards[shard][1] - plan.shards[shard][0] for shard in todo)
    with tqdm(
        total=total, desc="repair", unit="prompt", disable=None if progress else True, leave=False
    ) as bar:
        write_shards(model, prompts, path, plan, todo, bar.update)
    return [damage.file for damage in damaged]


def _begun(model: Any, request: Request, path: Path) -> StorePlan:
    """The plan of the store in a folder: the one that is there if it stores the same, else a new one."""
    fresh = request.plan(model)
    if exists(str(path / PLAN)):
        plan = read_plan(str(path))
        differs = plan.same_store(fresh)
        if differs:
            name = differs[0]
            raise StoreError(
                f"{str(path)!r} holds a store with another {name}: {_short(getattr(plan, name))} there, "
                f"{_short(getattr(fresh, name))} here. Choose another path for this one."
            )
        return plan
    try:
        path.mkdir(parents=True, exist_ok=True)
        others = [
            each.name
            for each in path.iterdir()
            if not each.name.startswith(".") and each.name not in (PROMPTS, LABELS, SHARDS)
        ]
        if others:
            raise OutputExists(
                f"{str(path)!r} is no store and not empty (it has {others[0]!r}). Choose another path."
            )
        (path / SHARDS).mkdir(exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise OutputExists(
            f"{str(path)!r} is a file where a folder is needed. Choose another path."
        ) from error
    except OSError as error:
        raise StoreError(f"{str(path)!r} cannot be written: {error.strerror}.") from error
    counts, kept = request.rows()
    write_prompts(path, request.prompts, counts, kept)
    plan = replace(fresh, checksums={name: checksum(path / name) for name in (PROMPTS, LABELS)})
    write_json(path / PLAN, plan.to_dict())
    return plan


def write_shards(
    model: Any, prompts: Prompts, path: Path, plan: StorePlan, shards: Iterable[int], done: Any
) -> None:
    """Run the prompts of some shards and write them; `done(n)` hears of every n prompts."""
    lengths = prompts.lengths.cpu().numpy().astype(np.int64)
    store = DiskStore(str(path))
    counts = store.index.counts.numpy()
    record = [key_of(name) for name in plan.shapes]
    with _threads(plan.threads):
        for shard in shards:
            if exists(str(path / record_name(shard))):
                continue
            with ExitStack() as open_files:
                files = {
                    group: open_files.enter_context(
                        writing(path / file_name(shard, group), plan.tensors(group, shard, lengths, counts))
                    )
                    for group in plan.groups
                }
                for batch in plan.batches(shard, lengths):
                    chosen = prompts.select(batch)
                    recorded = forward(model, chosen.tokens, record=record).recorded
                    rows = _RowsOf(store, batch, chosen.lengths)
                    for group, names in plan.groups.items():
                        for name in names:
                            files[group].append(name, rows.of(key_of(name)[0], recorded[key_of(name)]))
                    done(len(batch))
            finish_shard(path, plan, shard)


class _RowsOf:
    """Which rows of a batch's activations are kept."""

    def __init__(self, store: DiskStore, batch: Sequence[int], lengths: Tensor) -> None:
        self.lengths, self.mean = lengths.tolist(), store.plan.keep == "mean"
        where = [
            store.index.positions[
                int(store.index.starts[i]) : int(store.index.starts[i] + store.index.counts[i])
            ]
            for i in batch
        ]
        self.places = torch.cat(where)
        self.examples = torch.repeat_interleave(
            torch.arange(len(batch)), torch.tensor([len(each) for each in where])
        )

    def of(self, kind: str, value: Float[Tensor, "example ..."]) -> Tensor:
        """[row, ...] in the order of the batch."""
        if kind == "pattern":
            return torch.cat([value[i, :, :n, :n].reshape(-1) for i, n in enumerate(self.lengths)])
        if self.mean:
            return torch.stack([value[i, :n].mean(0) for i, n in enumerate(self.lengths)])
        return value[self.examples.to(value.device), self.places.to(value.device)]


def _job(path: str, source: Mapping[str, Any], shards: Sequence[int]) -> int:
    """A worker's part: the model is loaded anew, and has to be the one that the store was planned for."""
    plan = read_plan(path)
    model = load_model(**source)
    _same_model(model, plan, Path(path))
    write_shards(model, DiskStore(path).prompts, Path(path), plan, shards, lambda n: None)
    return sum(plan.shards[shard][1] - plan.shards[shard][0] for shard in shards)


def _same_model(model: Any, plan: StorePlan, path: Path) -> None:
    for what, there, here in (
        ("model", plan.model, model_fingerprint(model)),
        ("tokenizer", plan.tokenizer, tokenizer_fingerprint(model)),
    ):
        if there != here:
            raise StoreError(
                f"{str(path)!r} is a store of another {what}: {there[:8]} there ({plan.model_name}), "
                f"{here[:8]} here."
            )


@contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _described(keep: Sequence[Any]) -> str:
    return ", ".join(map(str, keep)) if isinstance(keep[0], str | int) else "rows chosen prompt by prompt"


def _short(value: Any) -> str:
    return f"{str(value)[:60]}{'...' if len(str(value)) > 60 else ''}"
