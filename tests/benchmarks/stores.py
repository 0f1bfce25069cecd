"""Stores on disk against plain files: reading, writing, opening, and what capturing costs beside the forward passes.

    python tests/benchmarks/stores.py [--quick] [--json] [--only PART]

Reading is measured in MB per CPU-second, warm, in one thread, against one `torch.from_file` map of the same bytes; what is read is checked
to be equal. A case that bounds a cost has the bar 1 and the ratio limit / measured. --quick reads and writes 1 GB
instead of 2, and measures memory on a store of 1 GB instead of 4.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from side_by_side import Line, arguments, gpt2, show_cases

import workbench as wb
from workbench.checksums import file_sum
from workbench.prompts.prompts import Prompts
from workbench.stores.disk import DiskStore, open_store, write_prompts
from workbench.stores.plan import LABELS, PLAN, PROMPTS, SHARD_BYTES, SHARDS, StorePlan, cut, file_name
from workbench.stores.records import write_record
from workbench.stores.writing import write_json, writing

WIDTH, LAYERS, LENGTH = 768, 12, 64
BLOCK = 4096


def line(
    case: str, peer: str, bar: float, ratio: float, ours: float, theirs: float, difference: float = 0.0
) -> Line:
    return Line(case, peer, bar, round(ratio, 3), round(ours, 4), round(theirs, 4), difference, 0.0, 0.0, 0.0)


def made(folder: Path, gigabytes: float) -> DiskStore:
    """A store of random bfloat16 rows of 12 layers: the bytes that a capture would have written, without a model."""
    n = int(gigabytes * 1e9 / (WIDTH * LAYERS * LENGTH * 2))
    generator = np.random.default_rng(0)
    prompts = Prompts.of(generator.integers(1, 50_000, (n, LENGTH)).tolist())
    lengths = prompts.lengths.numpy()
    names = [f"resid_post[{layer}]" for layer in range(LAYERS)]
    plan = StorePlan(
        model="none", model_name="random", tokenizer="none", prompts=prompts.fingerprint, n=n, sites={name: name for name in names},
        shapes={name: [WIDTH] for name in names}, dtype="bfloat16", keep="all",
        shards=cut(lengths, lengths, {"resid_post": WIDTH * LAYERS}, 0, 2, SHARD_BYTES), batch_tokens=4096, threads=1, versions={}, checksums={},
    )  # fmt: skip
    (folder / SHARDS).mkdir(parents=True)
    write_prompts(folder, prompts, lengths, None)
    plan = replace(plan, checksums={name: file_sum(folder / name) for name in (PROMPTS, LABELS)})
    write_json(folder / PLAN, plan.to_dict())
    rows = torch.randn(BLOCK, WIDTH).bfloat16()
    for shard in range(len(plan.shards)):
        tensors = plan.tensors("resid_post", shard, lengths, lengths)
        with writing(folder / file_name(shard, "resid_post"), tensors) as file:
            for number, name in enumerate(names):
                left = tensors[name][1][0]
                while left:
                    part = rows[: min(left, BLOCK)] + (shard + number)
                    file.append(name, part)
                    left -= len(part)
        write_record(folder, plan, shard)
    return open_store(folder)


def cpu(*runs: Callable[[], Any], times: int = 9) -> list[float]:
    """Median CPU-seconds of each call, after one that warms it; they take turns, and quick ones are repeated each time."""
    repeats = []
    for run in runs:
        run()
        start = time.process_time()
        run()
        repeats.append(max(1, int(0.05 / max(time.process_time() - start, 1e-5))))
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(times):
        for run, n, taken in zip(runs, repeats, seconds, strict=True):
            start = time.process_time()
            for _ in range(n):
                run()
            taken.append((time.process_time() - start) / n)
    return [statistics.median(taken) for taken in seconds]


def in_one_thread(run: Callable[[], Sequence[Line]]) -> Sequence[Line]:
    """CPU-seconds of a second thread are mostly those of its waiting."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run()
    finally:
        torch.set_num_threads(threads)


def reading(store: DiskStore, folder: Path) -> Sequence[Line]:
    """Blocks, a column and random rows of one site, against a plain map of the same rows."""
    view = store["resid_post", 5]
    plain_file = folder / "plain"
    rows = view.packed
    plain_file.write_bytes(rows.view(torch.uint8).numpy().tobytes())
    plain = torch.from_file(str(plain_file), shared=False, size=rows.numel(), dtype=torch.bfloat16).view(
        rows.shape
    )
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:20_000]
    prompts, places = view.row_prompts[chosen], view.row_positions[chosen]

    def blocks() -> float:
        return sum(float(block[0, 0]) for block in view.blocks(shuffle=True, seed=1, size=BLOCK))

    def plain_blocks() -> float:
        rng, total = np.random.default_rng(1), 0.0
        for start in rng.permutation(np.arange(0, len(plain), BLOCK)).tolist():
            block = plain[start : start + BLOCK]
            total += float(block[torch.from_numpy(rng.permutation(len(block)))][0, 0])
        return total

    lines = []
    for case, bar, ours, theirs, share in (
        ("shuffled blocks", 0.6, blocks, plain_blocks, 1.0),
        ("a whole column", 0.8, lambda: view.columns([3]), lambda: plain[:, 3:4].clone(), 1 / WIDTH),
        (
            "20,000 random rows",
            0.35,
            lambda: view.rows(prompt=prompts, pos=places),
            lambda: plain[chosen],
            20_000 / len(rows),
        ),
    ):
        a, b = cpu(ours, theirs)
        megabytes = rows.numel() * 2 * share / 1e6
        difference = 0.0
        if share < 1:
            difference = float((ours().float() - theirs().float()).abs().max())
        lines.append(
            line(
                f"{case}, {megabytes / a:.0f} MB per CPU-second",
                f"torch.from_file map, {megabytes / b:.0f}",
                bar,
                b / a,
                a,
                b,
                difference,
            )
        )
    return lines


def written(folder: Path, gigabytes: float) -> Line:
    """Rows appended, checked and synced, against the same bytes written raw and synced."""
    rows = torch.randn(8192, WIDTH).bfloat16()
    times = max(1, int(gigabytes * 1e9 / rows.numel() / 2 / 8))
    ours, theirs = [], []
    for attempt in range(3):
        start = time.perf_counter()
        for shard in range(8):
            place = folder / f"ours-{attempt}-{shard}.safetensors"
            with writing(place, {"a": (torch.bfloat16, [len(rows) * times, WIDTH])}) as file:
                for _ in range(times):
                    file.append("a", rows)
            file_sum(place)
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        data = rows.view(torch.uint8).numpy().tobytes()
        for shard in range(8):
            with (folder / f"raw-{attempt}-{shard}").open("wb") as file:
                for _ in range(times):
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
        theirs.append(time.perf_counter() - start)
        for path in [*folder.glob("ours-*"), *folder.glob("raw-*")]:
            path.unlink()
    a, b = statistics.median(ours), statistics.median(theirs)
    return line(
        f"writing {8 * times * rows.numel() * 2 / 1e9:.1f} GB with checksums",
        "the same bytes raw, with fsync",
        0.5,
        b / a,
        a,
        b,
    )


def opening(store: DiskStore) -> Sequence[Line]:
    """Open a store and read one prompt at all sites, warm and with its files dropped from the page cache."""
    assert store.path is not None
    files = sorted(Path(store.path).rglob("*.safetensors"))

    def dropped() -> None:
        for file in files:
            handle = os.open(file, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)

    def once() -> tuple[float, list[torch.Tensor]]:
        start = time.perf_counter()
        opened = open_store(store.path or "")
        found = [opened[key].prompt(17) for key in opened.keys]
        return time.perf_counter() - start, found

    shard = next(i for i, (a, b) in enumerate(store.plan.shards) if a <= 17 < b)
    start = time.perf_counter()
    whole = load_file(str(Path(store.path) / file_name(shard, "resid_post")))
    library = time.perf_counter() - start
    first = int(store.index.starts[17]) - int(store.index.starts[store.plan.shards[shard][0]])
    lines = []
    for how, limit, prepare in (("warm", 0.020, lambda: None), ("cold", 0.100, dropped)):
        seconds = []
        for _ in range(5):
            prepare()
            took, found = once()
            seconds.append(took)
        for tensor, name in zip(found, store.plan.shapes, strict=True):
            assert torch.equal(tensor, whole[name][first : first + LENGTH])
        a = statistics.median(seconds)
        size = f"{store.nbytes() / 1e9:.1f} GB"
        lines.append(
            line(
                f"open {size} and read a prompt at all sites, {how}, at most {limit * 1000:.0f} ms",
                "safetensors load_file of one shard",
                1,
                limit / a,
                a,
                library,
            )
        )
    return lines


def capturing(folder: Path, name: str, model: Any, limit: float, n: int, length: int) -> Line:
    """A store of residual streams and head outputs, against the plain forward passes of the same batches."""
    generator = np.random.default_rng(0)
    prompts = Prompts.of(generator.integers(1, model.cfg.d_vocab, (n, length)).tolist())
    sites, place = ["resid_post", "z"], folder / "captured"
    ours, theirs = [], []
    for _ in range(5):
        shutil.rmtree(place, ignore_errors=True)
        start = time.perf_counter()
        store = wb.capture(model, prompts, sites=sites, path=place, progress=False)
        ours.append(time.perf_counter() - start)
        assert isinstance(store, DiskStore)
        batches = [
            b
            for shard in range(len(store.plan.shards))
            for b in store.plan.batches(shard, prompts.lengths.numpy())
        ]
        start = time.perf_counter()
        with torch.no_grad():
            for batch in batches:
                model(prompts.tokens[batch])
        theirs.append(time.perf_counter() - start)
    a, b = statistics.median(ours), statistics.median(theirs)
    return line(
        f"capture, {name}, {n} x {length} tokens, at most {limit} x",
        "plain forward passes of the same batches",
        1,
        limit * b / a,
        a,
        b,
    )


MEMORY = """
import sys, threading, time
import numpy as np
sys.path.insert(0, {here!r})
from side_by_side import small_model
import workbench as wb
from workbench.tasks.pairs import Prompts

def own():
    # What the process holds itself; mapped pages of files are given back when memory is wanted.
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

model = small_model()
prompts = Prompts.of(np.random.default_rng(0).integers(1, 2000, ({n}, 60)).tolist())
wb.capture(model, prompts.select(range(4)), path={warm!r}, progress=False)
before, peak, done = own(), [0], threading.Event()

def watch():
    while not done.wait(0.005):
        peak[0] = max(peak[0], own())

threading.Thread(target=watch, daemon=True).start()
store = wb.capture(model, prompts, sites=["resid_post", "mlp_post", "z", "q", "k", "v"], path={place!r}, progress=False)
for block in store["mlp_post", 2].blocks(shuffle=True):
    pass
done.set()
print(store.nbytes(), peak[0] - before)
"""


def memory(folder: Path, gigabytes: float) -> Line:
    """Growth of a process that captures and reads a store, against the default budget of 1 GiB."""
    n = int(gigabytes * 1e9 / (60 * 4 * (4 * 1024 + 4 * 5 * 256)))
    code = MEMORY.format(
        here=str(Path(__file__).parent), n=n, warm=str(folder / "warm"), place=str(folder / "large")
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    size, peak = map(int, done.stdout.split())
    return line(
        f"peak memory of capturing {size / 1e9:.1f} GB at most 1 GiB: {peak / 2**20:.0f} MiB",
        "the default budget",
        1,
        2**30 / max(peak, 1),
        0,
        0,
    )


def main() -> None:
    asked = arguments(__doc__)
    size = 1.0 if asked.quick else 2.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases: dict[str, Callable[[], Sequence[Line]]] = {
            "reading": lambda: in_one_thread(lambda: reading(made(folder / "read", size), folder)),
            "opening": lambda: opening(made(folder / "open", 2.0)),
            "writing": lambda: [written(folder, size)],
            "capture tiny": lambda: [
                capturing(folder, "tiny", wb.load_model("tiny", device="cpu"), 1.6, 1024, 24)
            ],
            "capture GPT-2 small": lambda: [capturing(folder, "GPT-2-small shape", gpt2(), 1.25, 64, 64)],
            "memory": lambda: [memory(folder, 1.0 if asked.quick else 4.0)],
        }
        for _ in show_cases(cases, asked):
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    main()
