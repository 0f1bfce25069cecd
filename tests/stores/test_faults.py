"""What goes wrong with a store on disk: it is named, nothing is lost, and what is built after it has the same bytes."""

import errno
import fcntl
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from families import model_of, ragged

import workbench as wb
from workbench.engine import capture_to_disk as build
from workbench.engine.capture import capture
from workbench.engine.plain_run import PlainRun
from workbench.errors import OutputExists, StoreError, WorkbenchError
from workbench.stores.disk import DiskStore, open_store, read_plan, verify
from workbench.stores.plan import content_sum, record_name
from workbench.stores.reading import StoredFile
from workbench.stores.writing import writing

SITES = ["z", "resid_post", "pattern"]
LENGTHS = random.Random(1).choices(range(1, 9), k=60)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def build_in(folder: Path, **settings):
    return capture(
        model_of("gpt2"),
        ragged(LENGTHS),
        sites=SITES,
        path=folder,
        shard_bytes=4000,
        threads=1,
        progress=False,
        **settings,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "s"
    build_in(folder)
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "s")
    return tmp_path / "s"


def die_in_step(number: int) -> None:
    """Let this process kill itself in the middle of the step with that number, of those that change the disk."""
    steps = itertools.count(1)

    def fatal(step):
        def call(*arguments):
            if next(steps) == number:
                if step is pwrite:
                    handle, data, offset = arguments
                    pwrite(handle, data[: len(data) // 2], offset)
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*arguments)

        return call

    pwrite = os.pwrite
    os.pwrite, os.fsync, os.replace = map(fatal, (os.pwrite, os.fsync, os.replace))


def write_until_killed(folder: Path, shards: list[int], fatal_step: int) -> None:
    """One of several writers: it does not live to finish its shards."""
    torch.set_num_threads(1)
    plan, store = read_plan(str(folder)), DiskStore(str(folder))
    die_in_step(fatal_step)
    build.write_shards(model_of("gpt2"), store.prompts, folder, plan, shards, lambda n: None)


def test_writers_killed_at_any_moment_leave_what_an_uninterrupted_run_writes(whole, tmp_path):
    """Killed within a write, before a sync or before a rename: at a step and not after a time, on any machine alike."""
    model_of("gpt2")  # the forked writers have it
    folder, context, draw = tmp_path / "s", multiprocessing.get_context("fork"), random.Random(0)
    (folder / "shards").mkdir(parents=True)
    for name in ("prompts.safetensors", "labels.json", "store.json"):
        shutil.copy(whole / name, folder / name)
    n, finished = len(read_plan(str(folder)).shards), []
    for _ in range(5):
        # A shard takes 21 steps or more: the first writer may finish one of its two or more, the others finish none.
        missing = [shard for shard in range(n) if not (folder / record_name(shard)).exists()]
        fatal_steps = draw.randint(22, 41), draw.randint(1, 20), draw.randint(1, 20)
        writers = [
            context.Process(target=write_until_killed, args=(folder, missing[rank::3], step))
            for rank, step in enumerate(fatal_steps)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert [writer.exitcode for writer in writers] == [-signal.SIGKILL] * 3
        records = [path for path in (folder / "shards").glob("*.json") if not path.name.startswith(".")]
        for path in records:
            json.loads(path.read_text())
        finished.append(len(records))
        with pytest.raises(
            StoreError, match=f"is not finished: {n - len(records)} of its {n} shards are missing"
        ):
            open_store(folder)
    assert finished == sorted(finished)
    assert 0 < finished[-1] < n
    store = build_in(folder)
    assert list(verify(folder)) == []
    assert bytes_of(folder) == bytes_of(whole), "no partial file is left either"
    assert len(store) == len(LENGTHS)


def test_a_build_that_is_stopped_goes_on(whole, tmp_path, monkeypatch):
    folder, runs = tmp_path / "s", []
    plain_run = PlainRun.__call__

    def stops(*given):
        runs.append(1)
        if len(runs) == 8:
            raise KeyboardInterrupt
        return plain_run(*given)

    monkeypatch.setattr(PlainRun, "__call__", stops)
    with pytest.raises(KeyboardInterrupt):
        build_in(folder)
    before = {name: data for name, data in bytes_of(folder).items() if name.startswith("shards/")}
    assert before
    assert not list(folder.rglob(".*"))
    build_in(folder)
    assert bytes_of(folder) == bytes_of(whole)
    n = len(runs)
    build_in(folder)
    assert len(runs) == n  # nothing is left to do


def broken(folder: Path, damage: str) -> str:
    """Damage one file of a store, and return its name."""
    shard = sorted((folder / "shards").glob("*.z.safetensors"))[3]
    if damage == "cut":
        os.truncate(shard, shard.stat().st_size - 7)
    elif damage == "flipped":
        data = bytearray(shard.read_bytes())
        data[-5] ^= 4
        shard.write_bytes(data)
    elif damage == "header":
        data = bytearray(shard.read_bytes())
        data[20] ^= 255
        shard.write_bytes(data)
    elif damage == "empty":
        shard.write_bytes(b"")
    elif damage == "gone":
        shard.unlink()
    return str(shard)


@pytest.mark.parametrize("damage", ["cut", "flipped", "header", "empty", "gone"])
def test_a_damaged_shard_is_named_and_only_it_is_recomputed(whole, copy, monkeypatch, damage):
    name = broken(copy, damage)
    store = open_store(copy)
    if damage != "flipped":
        with pytest.raises(StoreError) as error:
            store["z", 0].packed  # noqa: B018
        assert repr(name) in str(error.value)
        assert "workbench store verify" in str(error.value)
    assert [wrong.file for wrong in verify(copy)] == [name]
    others = {
        path: path.stat().st_mtime_ns for path in copy.rglob("*.safetensors") if "00003" not in path.name
    }
    assert build.repair(model_of("gpt2"), copy, progress=False) == [name]
    assert bytes_of(copy) == bytes_of(whole)
    assert {path: path.stat().st_mtime_ns for path in others} == others
    assert build.repair(model_of("gpt2"), copy, progress=False) == []


def test_a_shard_without_its_record_is_missing(whole, copy):
    (copy / record_name(2)).unlink()
    with pytest.raises(StoreError, match="is not finished: 1 of its"):
        open_store(copy)
    build_in(copy)
    assert bytes_of(copy) == bytes_of(whole)
    (copy / record_name(1)).write_text("{")
    assert [damage.file for damage in verify(copy)] == [str(copy / record_name(1))]
    build.repair(model_of("gpt2"), copy, progress=False)
    assert bytes_of(copy) == bytes_of(whole)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("store.json", None, "There is no store in .*: it has no store.json"),
        ("store.json", b"", "cannot be read as JSON"),
        ("store.json", b"[]", "is not the plan of a store"),
        ("prompts.safetensors", b"\x00" * 30, "is cut off or not a safetensors file"),
        ("prompts.safetensors", None, "is missing"),
    ],
)
def test_a_damaged_manifest_is_named(copy, name, content, message):
    (copy / name).unlink() if content is None else (copy / name).write_bytes(content)
    with pytest.raises(StoreError, match=message):
        open_store(copy)


def test_prompts_that_were_changed_are_not_believed(copy):
    data = bytearray((copy / "prompts.safetensors").read_bytes())
    table = StoredFile(str(copy / "prompts.safetensors")).entries["tokens"]
    data[table.start] ^= 1
    (copy / "prompts.safetensors").write_bytes(data)
    with pytest.raises(StoreError, match=r"prompts\.safetensors' is damaged: its bytes are not those"):
        open_store(copy).prompts  # noqa: B018
    with pytest.raises(StoreError, match="the prompts cannot be made from the rest"):
        build.repair(model_of("gpt2"), copy, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 9}, "has version 9; this workbench reads version 1"),
        ({"format": "else"}, "is not the plan of a store"),
        ({"dtype": "float99"}, "is damaged"),
        ({"shards": [[0, 3]]}, "is damaged: its shards, sites and shapes do not fit together"),
        ({"n": "many"}, "is damaged"),
    ],
)
def test_an_edited_plan_is_refused(copy, change, message):
    plan = json.loads((copy / "store.json").read_text()) | change
    del plan["checksum"]
    (copy / "store.json").write_text(json.dumps(plan | {"checksum": content_sum(plan)}))
    with pytest.raises(StoreError, match=message):
        open_store(copy)


def test_a_store_of_something_else_is_not_continued(copy):
    before = bytes_of(copy)
    usual = {"sites": SITES, "path": copy, "progress": False}
    for model, prompts, changes, difference in (
        (model_of("gpt2", seed=1), ragged(LENGTHS), {}, "model"),
        (model_of("gpt2"), ragged(LENGTHS[1:]), {}, "prompts"),
        (model_of("gpt2"), ragged(LENGTHS), {"dtype": torch.float16}, "dtype"),
        (model_of("gpt2"), ragged(LENGTHS), {"sites": ["z"]}, "sites"),
        (model_of("gpt2"), ragged(LENGTHS), {"keep": "mean", "sites": ["z", "resid_post"]}, "sites"),
    ):
        with pytest.raises(StoreError, match=f"holds a store with another {difference}: "):
            capture(model, prompts, **usual | changes)
    with pytest.raises(StoreError, match=f"is a store of another model: {open_store(copy).model[:8]} there"):
        build.repair(model_of("gpt2", seed=1), copy, progress=False)
    assert bytes_of(copy) == before


def test_a_tokenizer_that_differs_is_named(copy, monkeypatch):
    monkeypatch.setattr(build, "tokenizer_fingerprint", lambda model: "another")
    with pytest.raises(StoreError, match="another tokenizer: none there, another here"):
        build_in(copy)
    with pytest.raises(StoreError, match="is a store of another tokenizer"):
        build.repair(model_of("gpt2"), copy, progress=False)


def test_a_disk_that_fills_up_keeps_what_was_finished(whole, tmp_path, monkeypatch):
    written, write = [0], os.pwrite

    def full(handle, data, place):
        written[0] += len(data)
        if written[0] > 100_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data, place)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(
        StoreError, match=r"cannot be written: No space left on device\. What was written before it is kept\."
    ):
        build_in(tmp_path / "s")
    assert list((tmp_path / "s" / "shards").glob("*.json"))
    assert not list(tmp_path.rglob("*.partial"))
    monkeypatch.setattr(os, "pwrite", write)
    build_in(tmp_path / "s")
    assert bytes_of(tmp_path / "s") == bytes_of(whole)


def test_a_disk_that_is_too_small_is_refused_before_the_work(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StoreError, match="GiB free, and the store needs"):
        build_in(tmp_path / "s")
    assert not list((tmp_path / "s" / "shards").iterdir())


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    with pytest.raises(StoreError, match="cannot be written: "):
        build_in(Path("/proc/store"))
    opened = os.open

    def read_only(path, flags, *more, **rest):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(path, flags, *more, **rest)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(StoreError, match="cannot be written: Read-only file system"):
        build_in(tmp_path / "s")


def test_two_processes_do_not_write_the_same_shard(copy):
    (copy / record_name(0)).unlink()
    plan = read_plan(str(copy))
    store = DiskStore(str(copy), check=False)  # the record of a shard is gone
    lengths, counts = store.prompts.lengths.numpy(), store.index.counts.numpy()
    shard = copy / "shards" / "00000.z.safetensors"
    with writing(shard, plan.tensors("z", 0, lengths, counts)) as other:
        with pytest.raises(
            StoreError, match=r"00000\.z\.safetensors' is being written by another process\. Let it finish"
        ):
            build_in(copy)
        for name in plan.groups["z"]:
            other.append(
                name,
                store[("z", int(name[2:-1]))].packed[: plan.tensors("z", 0, lengths, counts)[name][1][0]],
            )
    build_in(copy)
    assert list(verify(copy)) == []


@pytest.mark.slow
@pytest.mark.xdist_group("kills")
@pytest.mark.parametrize("backend", ["local", "ray"])
def test_two_workers_write_what_one_process_writes(tmp_path, backend):
    if backend == "ray":
        pytest.importorskip("ray")
    model = wb.load_model("tiny", device="cpu")
    prompts = wb.load_task("ioi", model, n=40).clean
    alone, shared = (
        capture(
            model, prompts, sites=["z", "resid_post"], path=tmp_path / name, shard_bytes=20_000, threads=1, workers=workers,
            backend=own, progress=False,
        )
        for name, workers, own in (("one", 1, "local"), ("two", 2, backend))
    )  # fmt: skip
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    assert torch.equal(alone["z", 3].packed, shared["z", 3].packed)


def test_what_workers_cannot_do(tmp_path):
    with pytest.raises(WorkbenchError, match=r"was not loaded by wb\.load_model from a name or a directory"):
        build_in(tmp_path / "s", workers=2)
    with pytest.raises(WorkbenchError, match="backend='slurm' is not known"):
        build_in(tmp_path / "t", backend="slurm")
    with pytest.raises(WorkbenchError, match="at least one is needed"):
        build_in(tmp_path / "u", workers=0)
    assert not list(tmp_path.iterdir())


def test_a_store_is_not_made_where_something_is(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "shards.txt").write_text("mine")
    with pytest.raises(OutputExists):
        build_in(tmp_path / "s")


@pytest.mark.slow
@pytest.mark.xdist_group("kills")
def test_workers_of_a_script_without_a_main_guard(tmp_path):
    """Processes that are started anew would run such a script again, and start processes of their own."""
    script = tmp_path / "script.py"
    script.write_text(
        "import workbench as wb\n"
        "print('once')\n"
        "model = wb.load_model('tiny')\n"
        "prompts = wb.Prompts.of([[0, i, i + 1] for i in range(1, 40)], bos=True)\n"
        f"print(len(wb.capture(model, prompts, sites=['resid_post'], path={str(tmp_path / 's')!r}, workers=2, shard_bytes=2**14)))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.split() == ["once", "39"], done.stderr


def test_a_plan_that_was_changed_is_refused_everywhere(tmp_path):
    model, store = model_of("gpt2"), tmp_path / "s"
    capture(model, ragged([3, 5]), sites=["resid_post"], path=store, progress=False)
    text = (store / "store.json").read_text()
    for old, new in (
        ('"resid_post[1]": "resid_post[1]"', '"resid_post[1]": "resid_post[0]"'),
        ('"dtype": "float32"', '"dtype": "float16"'),
    ):
        assert old in text
        (store / "store.json").write_text(text.replace(old, new))
        for run in (
            lambda: open_store(str(store)),
            lambda: list(verify(store)),
            lambda: wb.repair(model, store),
        ):
            with pytest.raises(StoreError, match=r"store\.json' was changed since it was written"):
                run()
    (store / "store.json").write_text(text)
    assert list(verify(store)) == []


def test_a_folder_in_the_place_of_a_shard_is_named(tmp_path):
    model, store = model_of("gpt2"), tmp_path / "s"
    capture(model, ragged([3, 5]), sites=["resid_post"], path=store, progress=False)
    shard = next((store / "shards").glob("*.safetensors"))
    shard.unlink()
    shard.mkdir()
    assert [damage.why for damage in verify(store)] == ["a folder where a file was"]
    with pytest.raises(StoreError, match="is a folder where a file of the store was"):
        wb.repair(model, store)


def test_two_stores_that_begin_at_once_in_one_folder_do_not_mix(tmp_path, monkeypatch):
    """The second process finds no plan when it begins, and must not write its own over the first one's."""
    model, written = model_of("gpt2"), threading.Event()
    requests = {
        name: build.Request(prompts, {("z", 0): ("z", 0)}, threads=1)
        for name, prompts in (("first", ragged(LENGTHS)), ("second", ragged(LENGTHS[::-1])))
    }
    errors: list[str] = []

    def second() -> None:
        written.wait(10)
        try:
            build.build_store(model, requests["second"], tmp_path / "s", progress=False)
        except StoreError as error:
            errors.append(str(error))

    thread, write = threading.Thread(target=second), build.write_prompts

    def slowly(folder, prompts, *rest):
        write(folder, prompts, *rest)
        if not written.is_set():
            written.set()
            thread.join(0.3)  # as long as the second needs to come as far

    monkeypatch.setattr(build, "write_prompts", slowly)
    thread.start()
    store = build.build_store(model, requests["first"], tmp_path / "s", progress=False)
    thread.join()
    assert errors == [
        f"{str(tmp_path / 's')!r} holds a store with another prompts: "
        f"{requests['first'].prompts.fingerprint} there, {requests['second'].prompts.fingerprint} here. "
        "Choose another path for this one."
    ]
    assert store.prompts.fingerprint == requests["first"].prompts.fingerprint
    assert list(verify(tmp_path / "s")) == []


def test_a_writer_that_came_too_late_leaves_the_next_one_s_file(tmp_path, monkeypatch):
    """The file was finished between its opening and its lock, and a third process has begun another."""
    partial, lock = tmp_path / ".a.partial", fcntl.flock

    def meanwhile(handle, operation):
        monkeypatch.setattr(fcntl, "flock", lock)
        os.replace(partial, tmp_path / "a")
        partial.write_text("of a third process")
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", meanwhile)
    refused = pytest.raises(StoreError, match="was written by another process just now")
    with refused, writing(tmp_path / "a", {"x": (torch.float32, (1,))}):
        pytest.fail("the writer was not refused")
    assert partial.read_text() == "of a third process"
