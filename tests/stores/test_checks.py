"""What is read of a store as a whole is compared with its checksum; single rows are not; a manifest names its own files alone."""

import itertools
import json
import os
import pickle
import shutil
from pathlib import Path

import fsspec
import pytest
import torch
from families import model_of, ragged

from workbench.checksums import signed
from workbench.engine.capture import capture
from workbench.engine.capture_to_disk import repair
from workbench.errors import StoreError
from workbench.stores import records
from workbench.stores.disk import open_store, read_plan, verify
from workbench.stores.plan import content_sum, file_name, record_name
from workbench.stores.reading import StoredFile

LENGTHS = (4, 7, 1, 5, 7, 2, 3, 6)
DAMAGED = 1  # the shard, of several, whose bytes are changed
WHOLE = {
    "packed": lambda view: view.packed,
    "columns": lambda view: view.columns([1]),
    "several columns": lambda view: view.columns([0, 3]),
    "blocks": lambda view: list(view.blocks(size=3)),
    "shuffled blocks": lambda view: list(view.blocks(shuffle=True)),
    "mean": lambda view: view.mean(),
    "dataset": lambda view: list(view.dataset()),
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A store of each family in several shards."""
    folder = tmp_path_factory.mktemp("stores")
    for family in ("gpt2", "llama", "neox"):
        capture(
            model_of(family),
            ragged(LENGTHS),
            sites=["z", "resid_post"],
            path=folder / family,
            shard_bytes=2000,
            progress=False,
        )
    return folder


@pytest.fixture
def store(stores, tmp_path):
    shutil.copytree(stores / "gpt2", tmp_path / "s")
    return tmp_path / "s"


def rot(folder: Path, name: str = "z[1]") -> Path:
    """Change one bit of the first number of a tensor in one shard."""
    path = folder / file_name(DAMAGED, name.partition("[")[0])
    place = StoredFile(str(path)).entries[name].start
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    return path


def of_an_earlier_version(folder: Path) -> None:
    """Records as version 0.2 wrote them: the checksums of files alone."""
    for shard in range(len(read_plan(str(folder)).shards)):
        path = folder / record_name(shard)
        sums = json.loads(path.read_text())
        path.write_text(
            json.dumps({name: text for name, text in sums.items() if "#" not in name and name != "checksum"})
        )


@pytest.mark.parametrize(
    "family", ["gpt2", *(pytest.param(family, marks=pytest.mark.slow) for family in ("llama", "neox"))]
)
@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
def test_a_bit_that_rotted_is_seen_by_every_reader_of_a_whole(stores, tmp_path, family, old):
    folder = tmp_path / "s"
    shutil.copytree(stores / family, folder)
    if old:
        of_an_earlier_version(folder)
    sound = {name: read(open_store(folder)["z", 1]) for name, read in WHOLE.items()}
    assert list(verify(folder)) == []
    path = rot(folder)
    for name, read in WHOLE.items():
        held = open_store(folder)
        for _ in range(2):  # asked for again it is refused again
            with pytest.raises(
                StoreError, match=rf"{path.name}' is damaged: its bytes are not those that were written"
            ):
                read(held["z", 1])
        assert read(held["resid_post", 1]) is not None, name
        if not old:
            assert read(held["z", 0]) is not None, "the tensor of another layer in the same file is sound"
        assert len(sound[name]) == len(read(open_store(folder, verify=False)["z", 1])), name
    with pytest.raises(StoreError, match=f"{path.name}' is damaged"):
        open_store(folder, verify=True)
    assert [damage.file for damage in verify(folder)] == [str(path)]


def test_single_rows_are_never_checked(store, monkeypatch):
    rot(store)
    monkeypatch.setattr(records, "tensor_sum", lambda tensor: pytest.fail("checked"))
    held = open_store(store)
    assert len(held["z", 1].prompt(0)) == LENGTHS[0]
    assert len(held["z", 1].rows(prompt=[0, 3], pos=[1, 2])) == 2
    assert len(held["z", 1].at("END")) == len(LENGTHS)


def test_a_tensor_is_checked_once(store, monkeypatch):
    n, plain = itertools.count(), records.tensor_sum
    monkeypatch.setattr(records, "tensor_sum", lambda tensor: (next(n), plain(tensor))[1])
    held = open_store(store)
    for _ in range(3):
        list(held["z", 1].blocks(size=2))
        held["z", 1].columns([0])
    assert next(n) == len(held.plan.shards)
    list(pickle.loads(pickle.dumps(held["z", 1].dataset())))  # as a worker of a data loader gets it
    assert next(n) == len(held.plan.shards) + 1


@pytest.mark.parametrize("name", ["prompts.safetensors", "labels.json"])
def test_prompts_and_token_strings_are_checked(store, name):
    path = store / name
    content = bytearray(path.read_bytes())
    place = len(content) - 2
    if name == "labels.json":
        place = content.index(b'"') + 1
    content[place] ^= 1
    path.write_bytes(content)
    for read in (lambda held: held.prompts, lambda held: held["z", 0].packed):
        with pytest.raises(StoreError, match=rf"{name}' is damaged: its bytes|contradicts itself"):
            read(open_store(store))


def test_a_store_behind_a_url_is_checked_too(store):
    path = rot(store)
    files = fsspec.filesystem("memory")
    files.put(str(store), "/checks", recursive=True)
    held = open_store("memory://checks")
    assert held["z", 0].packed.shape[0] == sum(LENGTHS)
    with pytest.raises(StoreError, match=f"{path.name}' is damaged"):
        held["z", 1].packed  # noqa: B018
    with pytest.raises(StoreError, match=f"{path.name}' is damaged"):
        open_store("memory://checks", verify=True)


def changed_plan(folder: Path, **changes) -> None:
    plan = json.loads((folder / "store.json").read_text()) | changes
    del plan["checksum"]
    (folder / "store.json").write_text(json.dumps(plan | {"checksum": content_sum(plan)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"checksums": {"../../secret": "0" * 32}},
            "it names other files than prompts.safetensors and labels.json",
        ),
        ({"checksums": {"/etc/passwd": "0" * 32}}, "it names other files"),
        ({"shapes": {"../../secret": [4]}}, "its shards, sites and shapes do not fit together|is no site"),
        ({"sites": {"secret[0]": "secret[0]"}, "shapes": {"secret[0]": [4]}}, "'secret' is no kind of site"),
        ({"n": 10**15}, "not a whole number from 0 to"),
        ({"threads": 10**9}, "no machine has 1000000000 threads"),
        ({"shards": [[0, 10], [10, 8]]}, "do not fit together"),
        ({"batch_tokens": -1}, "not a whole number"),
        ({"n": True}, "not a whole number"),
    ],
)
def test_a_plan_that_names_other_files_or_impossible_sizes_is_refused(store, changes, message):
    changed_plan(store, **changes)
    for read in (lambda: open_store(store), lambda: list(verify(store))):
        with pytest.raises(StoreError, match=message):
            read()


def test_a_record_that_names_other_files_is_damaged(store):
    path = store / record_name(0)
    sums = json.loads(path.read_text())
    path.write_text(json.dumps(signed({**sums, "../../secret": "0" * 32})))
    (damage,) = verify(store)
    assert "lists other files than the plan" in damage.why
    path.write_text(json.dumps(sums | {next(iter(sums)): "0" * 32}))
    assert "00000.json' is damaged" in next(verify(store)).why


def test_prompts_that_promise_more_tokens_than_there_are_are_refused(store):
    path = store / "prompts.safetensors"
    content, entry = bytearray(path.read_bytes()), StoredFile(str(path)).entries["lengths"]
    content[entry.start : entry.start + 4] = (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"prompts\.safetensors' contradicts itself about its lengths"):
        open_store(store)


def test_a_pipe_in_the_place_of_a_file_is_not_opened(store):
    shard = store / file_name(0, "z")
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(StoreError, match="it is a device or a pipe"):
        open_store(store)["z", 0].packed  # noqa: B018
    with pytest.raises(StoreError, match="it is a device or a pipe"):
        list(verify(store))
    assert torch.isfinite(open_store(store)["resid_post", 0].packed).all()


def test_a_plan_with_another_shape_or_precision_than_the_files_is_refused(store):
    shapes = dict(read_plan(str(store)).shapes)
    name = next(iter(shapes))
    for changes in ({"dtype": "float16"}, {"shapes": shapes | {name: [1, *shapes[name]]}}):
        changed_plan(store, **changes)
        with pytest.raises(
            StoreError, match=r"safetensors' holds .* as torch\.float32 of shape .*, and the plan says"
        ):
            open_store(store)[name.partition("[")[0], 0].packed  # noqa: B018


def test_a_link_in_the_place_of_an_unfinished_file_is_not_written_through(store, tmp_path):
    """The folder may be anybody's: repairing it must not write into the files of whoever repairs it."""
    own = tmp_path / "own.txt"
    own.write_text("mine")
    (store / record_name(0)).unlink()
    for target in (own, tmp_path / "new"):
        partial = store / f"shards/.{Path(file_name(0, 'z')).name}.partial"
        partial.unlink(missing_ok=True)
        partial.symlink_to(target)
        with pytest.raises(
            StoreError, match=r"z\.safetensors' cannot be written: Too many levels of symbolic links"
        ):
            repair(model_of("gpt2"), store)
    assert own.read_text() == "mine"
    assert not (tmp_path / "new").exists()
