"""Stores on disk: every row reads back bit by bit through every reader, and equals what memory holds."""

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from closeness import close
from families import FAMILIES, make_pairs, model_of, ragged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import workbench as wb
from workbench.engine.capture import capture, capture_cost, capture_pairs
from workbench.errors import OutputExists, SiteError, StoreError
from workbench.sites import Key
from workbench.stores.disk import DiskStore, open_store, verify
from workbench.stores.reading import StoredFile
from workbench.stores.store import ActivationStore
from workbench.stores.writing import writing


@dataclass(frozen=True)
class Stores:
    """One capture in memory, and the same on disk in many shards."""

    model: Any
    memory: ActivationStore
    disk: DiskStore


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The stores of a family, each captured once."""

    @cache
    def of(family: str) -> Stores:
        model, prompts = model_of(family), ragged((4, 7, 1, 5, 7, 2, 3, 6, 1, 8))
        folder = tmp_path_factory.mktemp("disk") / "s"
        disk = capture(model, prompts, path=folder, shard_bytes=6000, progress=False)
        assert isinstance(disk, DiskStore)
        return Stores(model, capture(model, prompts), disk)

    return of


@pytest.mark.parametrize("family", FAMILIES)
def test_a_store_on_disk_has_what_one_in_memory_has(stores, family):
    memory, disk = stores(family).memory, stores(family).disk
    assert len(disk.plan.shards) > 3
    assert disk.keys == memory.keys
    assert disk.nbytes() == memory.nbytes()
    assert disk.prompts.ids == memory.prompts.ids
    assert disk.prompts.strings == memory.prompts.strings
    assert (disk.prompts.at("X") == memory.prompts.at("X")).all()
    assert (disk.model, disk.tokenizer, disk.prompts.bos) == (
        memory.model,
        memory.tokenizer,
        memory.prompts.bos,
    )
    for key in memory.keys:
        for i in range(len(memory)):
            assert close(disk[key].prompt(i), memory[key].prompt(i)), (key, i)


@pytest.mark.types
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_reader_gives_the_rows_of_memory(stores, family):
    """By pair, by position, by column, in blocks and padded: all equal what is in memory, row for row."""
    memory, disk = stores(family).memory, stores(family).disk
    for key in memory.keys:
        if key[0] == "pattern":
            assert close(disk[key].padded(), memory[key].padded())
            with pytest.raises(StoreError, match="have no token rows"):
                disk[key].columns([0])
            continue
        held, view = memory[key], disk[key]
        pairs = {"prompt": [9, 0, 4, 4], "pos": [7, 3, 0, 6]}
        assert close(view.rows(**pairs), held.rows(**pairs))
        assert close(view.at("X"), held.at("X"))
        assert close(view.padded([3, 1]), held.padded([3, 1]))
        assert close(view.mean(), held.mean())
        order = (held.index.starts[view.row_prompts] + view.row_positions).tolist()
        assert sorted(order) == list(range(len(held)))
        assert close(view.packed, held.packed[order])
        assert torch.equal(view.columns([1]), view.packed.flatten(1)[:, 1:2])
        assert torch.equal(view.columns([2, 0]), view.packed.flatten(1)[:, [2, 0]])
        assert torch.equal(torch.cat(list(view.blocks(size=3))), view.packed)
        shuffled = torch.cat(list(view.blocks(size=3, shuffle=True, seed=1)))
        assert torch.equal(shuffled.flatten(1).sort(0).values, view.packed.flatten(1).sort(0).values)
        assert not torch.equal(shuffled, view.packed)


def test_workers_of_a_data_loader_share_the_rows(stores):
    view = stores("gpt2").disk["resid_post", 1]
    for shuffle in (False, True):
        loader = torch.utils.data.DataLoader(
            view.dataset(size=4, shuffle=shuffle, seed=2), batch_size=None, num_workers=2
        )
        rows = torch.cat([block.clone() for block in loader])
        assert torch.equal(rows.sort(0).values, view.packed.sort(0).values)
    alone = torch.cat(list(view.dataset(size=4, shuffle=True, seed=2)))
    assert torch.equal(alone, torch.cat(list(view.blocks(size=4, shuffle=True, seed=2))))


def test_a_store_behind_a_url(stores):
    disk = stores("llama").disk
    files = fsspec.filesystem("memory")
    for path in Path(disk.path).rglob("*"):
        if path.is_file():
            files.pipe(f"/far/s/{path.relative_to(disk.path)}", path.read_bytes())
    remote = open_store("memory://far/s")
    for key in disk.keys:
        assert torch.equal(remote[key].packed, disk[key].packed)
        assert torch.equal(remote[key].prompt(4), disk[key].prompt(4))
    with pytest.raises(StoreError, match="There is no store in 'memory://far/none'"):
        open_store("memory://far/none")


def test_patching_from_disk_gives_the_numbers_of_memory(tmp_path):
    """Batches on disk differ from those in memory, so that sums round otherwise: equal up to the metric's magnitude."""
    model = wb.load_model("tiny")
    pairs = wb.load_task("ioi", model, n=6)
    memory = capture_pairs(model, pairs)
    disk = capture_pairs(model, pairs, path=tmp_path, shard_bytes=100_000, progress=False)
    logits = wb.run(model, pairs.clean).logits
    metric_size = float(
        wb.metric("logit_diff")(wb.metric("logit_diff").read(logits, pairs.clean), pairs).abs().max()
    )

    def tables(value):
        common = {"value": value, "progress": False}
        paths = {"senders": ["a0.1", "m1"], "receivers": ["a3.7<v>"], "mlps": "frozen"}
        return {
            "effects": wb.effects(model, pairs, sites=wb.grid("z", model), **common),
            "paths": wb.path_effects(model, pairs, **paths, **common),
            "edges": wb.score_edges(model, pairs, **common),
        }

    for make_value in (wb.from_store, wb.mean, lambda store: wb.resample(store, seed=1)):
        from_memory, from_disk = tables(make_value(memory[1])), tables(make_value(disk[1]))
        for name, table in from_memory.items():
            assert close(from_disk[name], table, scale=metric_size), name
    assert disk[0].path == str(tmp_path / "clean")


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=9),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    sites=st.lists(
        st.sampled_from(["z", "resid_post", "resid_pre", "mlp_post", "pattern", "q[1]", "embed"]),
        min_size=1,
        unique=True,
    ),
    shard_bytes=st.sampled_from([1, 2000, 10**8]),
    budget=st.sampled_from([1, 10**5, 10**9]),
)
def test_ragged_prompts_read_back_bit_by_bit(lengths, dtype, sites, shard_bytes, budget):
    model, prompts = model_of("gpt2"), ragged(lengths)
    with tempfile.TemporaryDirectory() as folder:
        store = capture(
            model,
            prompts,
            sites=sites,
            path=f"{folder}/s",
            dtype=dtype,
            shard_bytes=shard_bytes,
            budget=budget,
            progress=False,
        )
        alone = [
            capture(model, prompts.select([i]), sites=sites, progress=False) for i in range(len(lengths))
        ]
        raw = {path.name: load_file(path) for path in (Path(folder) / "s" / "shards").glob("*.safetensors")}
        for key in store.keys:
            assert store[key].dtype == dtype
            files = [tensors for _, tensors in sorted(raw.items()) if written(store, key) in tensors]
            assert torch.equal(
                store[key].packed, torch.cat([tensors[written(store, key)] for tensors in files])
            )
            for i, one in enumerate(alone):
                got, expected = store[key].prompt(i), one[key].prompt(0)
                assert got.shape == expected.shape
                assert close(got, expected, tolerance=1e-5 if dtype == torch.float32 else 1e-2), (key, i)
                if key[0] != "pattern":
                    every = store[key].rows(prompt=[i] * lengths[i], pos=range(lengths[i]))
                    assert torch.equal(every, got)
                    assert torch.equal(store[key].at(0)[i], got[0])


def written(store: DiskStore, key: Key) -> str:
    """The name under which the rows of a site are written: two names of one activation share them."""
    name = key[0] if key[1] is None else f"{key[0]}[{key[1]}]"
    return store.plan.sites[name]


def test_two_names_of_one_activation_are_written_once(stores):
    disk = stores("native").disk
    assert disk.plan.sites["resid_post[0]"] == "resid_pre[1]"
    assert not any(
        "resid_post[0]" in StoredFile(str(path)).entries for path in Path(disk.path).rglob("*.resid_post.*")
    )


@pytest.mark.types
@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ("mean", lambda rows, x: [rows.mean(0)]),
        (["END"], lambda rows, x: [rows[-1]]),
        ([0, "END"], lambda rows, x: [rows[p] for p in sorted({0, len(rows) - 1})]),
        (["X"], lambda rows, x: [rows[x]] if x >= 0 else []),
        ([[0], [1, 2], [0], []], lambda rows, x: None),
    ],
)
def test_some_rows_of_each_prompt(tmp_path, keep, expected):
    model, prompts = model_of("llama"), ragged((4, 7, 1, 5))
    store = capture(model, prompts, sites=["z", "resid_post"], keep=keep, path=tmp_path / "s", progress=False)
    memory = capture(model, prompts, sites=["z", "resid_post"])
    view, held = store["z", 1], memory["z", 1]
    for i in range(4):
        rows = held.prompt(i)
        wanted = expected(rows, int(prompts.at("X")[i]))
        wanted = [rows[p] for p in keep[i]] if wanted is None else wanted
        assert close(view.prompt(i), torch.stack(wanted) if wanted else rows[:0])
    with pytest.raises(StoreError, match=r"holds .* of each prompt and not its whole sequence"):
        view.padded()
    if keep == ["END"]:
        assert close(view.at("END"), held.at("END"))
        with pytest.raises(StoreError, match=r"position 0 was not kept; the store keeps END\."):
            view.at(0)
        with pytest.raises(StoreError, match=r"or is not among those kept \(END\)\."):
            view.rows(prompt=[1], pos=[0])


def test_what_cannot_be_kept(tmp_path):
    model, prompts = model_of("gpt2"), ragged((4, 2))
    for error, arguments, message in (
        (SiteError, {"keep": "mean", "sites": ["pattern"]}, "Attention patterns are stored whole"),
        (StoreError, {"keep": "first"}, "it is 'all', 'mean', positions"),
        (StoreError, {"keep": [[0], [2]]}, "prompt 1 has 2 tokens"),
        (StoreError, {"keep": [[0]]}, "names positions of 1 prompts, and there are 2"),
        (StoreError, {"keep": [9]}, "no prompt has such a position"),
    ):
        with pytest.raises(error, match=message):
            capture(model, prompts, path=tmp_path / "s", progress=False, **arguments)
        assert not (tmp_path / "s").exists()
    with pytest.raises(StoreError, match="are for stores on disk: give path= too"):
        capture(model, prompts, keep="mean")


def test_the_cost_is_what_is_written(stores):
    disk = stores("neox").disk
    cost = capture_cost(model_of("neox"), disk.prompts, shard_bytes=6000)
    assert (cost.prompts, cost.rows, cost.shards) == (len(disk), 44, len(disk.plan.shards))
    assert cost.nbytes == disk.nbytes()
    assert f"{cost.rows} rows" in str(cost)


def test_a_folder_with_something_else_is_not_touched(tmp_path):
    model = model_of("gpt2")
    (tmp_path / "notes.txt").write_text("mine")
    for place, message in (
        (tmp_path, "is not a store, and not empty"),
        (tmp_path / "notes.txt", "is a file where a folder is needed"),
    ):
        with pytest.raises(OutputExists, match=message):
            capture(model, ragged((3,)), path=place, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_is_whole_or_not_there(tmp_path):
    shape = {"a": (torch.float32, [2, 3])}
    for rows, message in ((1, "fewer rows than the 2"), (3, "more rows than the 2")):
        with pytest.raises(StoreError, match=message), writing(tmp_path / "f.safetensors", shape) as file:
            file.append("a", torch.zeros(rows, 3))
        assert list(tmp_path.iterdir()) == []
    with writing(tmp_path / "f.safetensors", shape) as file:
        with (
            pytest.raises(StoreError, match="is being written by another process"),
            writing(tmp_path / "f.safetensors", shape),
        ):
            pass
        file.append("a", torch.arange(6).view(2, 3))
    assert torch.equal(load_file(tmp_path / "f.safetensors")["a"], torch.arange(6.0).view(2, 3))


def test_nothing_is_wrong_with_a_whole_store(stores):
    disk = stores("neox").disk
    assert list(verify(Path(disk.path))) == []
    mapped = disk["z", 0].packed
    mapped += 1  # a private map: the file stays as it was
    assert list(verify(Path(disk.path))) == []


def test_pairs_keep_their_two_sides_apart(tmp_path):
    model, pairs = model_of("neox"), make_pairs((4, 3))
    clean, corrupt = capture_pairs(model, pairs, path=tmp_path, sites=["z"], progress=False)
    assert clean.prompts.ids == pairs.clean.ids
    assert corrupt.prompts.ids == pairs.corrupt.ids
