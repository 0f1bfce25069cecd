"""Files that were cut, overwritten or edited: what is read is what was written, or it is refused.

Text that anybody may write (tables, specs) has no right content: there only the errors count. A model's
directory is judged by transformers: where it misses weights, or they hold NaN, the model must be refused.
"""

import json
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fuzz_world
import torch
import transformers
import yaml
from fuzz_world import WrongResult, agree, content, told

import workbench as wb

_NOTHING = ("", "nan", "None", "<NA>")


@dataclass(frozen=True)
class Artefact:
    """Something on disk.

    Attributes:
        path: the file or folder, below the folder of artefacts.
        read: what reads it.
        known: whether its content is known, so that another one is a silent mistake.
        partly: whether a part of its content is right too: the lines of a log that are left.
    """

    path: str
    read: Callable[[Path], Any]
    known: bool = True
    partly: bool = False


def _read_lens(path: Path) -> Any:
    lens = wb.TunedLens.load(path)
    return [lens.layers, content(lens.weight), content(lens.bias), lens.model, content(lens.heldout)]


def _read_sweep(path: Path) -> Any:
    rows = wb.load_sweep(path).rows.to_dict("records")
    # Columns that no row of a part has are left out of a table.
    return [
        repr(sorted((key, str(cell)) for key, cell in row.items() if str(cell) not in _NOTHING))
        for row in rows
    ]


def _read_store(path: Path) -> Any:
    return content(wb.open_store(path)) if path.is_dir() else content(wb.open_store(str(path)))


def _plan(path: Path) -> Any:
    return repr(wb.run_sweep(path, out=path.parent / "never", dry_run=True, progress=False))


@cache
def _artefacts() -> list[Artefact]:
    fuzz_world.artefacts()
    return [
        Artefact("circuit.json", lambda path: content(wb.read_circuit(path))),
        Artefact("eap.json", lambda path: content(wb.read_circuit(path, positive="supports")), known=False),
        Artefact("scores.nc", lambda path: content(wb.load(path))),
        Artefact("evaluation.nc", lambda path: content(wb.load(path))),
        Artefact("lens.safetensors", _read_lens),
        Artefact("store", _read_store),
        Artefact("sweep", _read_sweep, partly=True),
        Artefact("sweep.yaml", _plan, known=False),
        Artefact(
            "pairs.csv", lambda path: content(wb.PromptPairs.from_csv(fuzz_world.model(), path)), known=False
        ),
        Artefact(
            "pairs.jsonl",
            lambda path: content(wb.PromptPairs.from_jsonl(fuzz_world.model(), path)),
            known=False,
        ),
        Artefact("corpus.jsonl", lambda path: content(wb.read_corpus(fuzz_world.model(), path)), known=False),
    ]


def _place_of(name: str) -> Path:
    folder = fuzz_world.tables() if name.startswith(("pairs", "corpus")) else fuzz_world.artefacts()
    return folder / name


@cache
def _right(number: int) -> Any:
    artefact = _artefacts()[number]
    return artefact.read(_place_of(artefact.path))


def _copy(name: str) -> Path:
    """A copy that may be damaged."""
    source, place = _place_of(name), Path(tempfile.mkdtemp(dir=fuzz_world.folder()))
    if source.is_dir():
        return Path(shutil.copytree(source, place / name))
    return Path(shutil.copy(source, place / name))


def _check_read(number: int, path: Path, *, known: bool = True) -> str:
    artefact, expected = _artefacts()[number], _right(number)
    try:
        result = artefact.read(path)
    except wb.WorkbenchError as error:
        if len(str(error)) < 10:
            raise WrongResult(f"an error without a message: {error!r}") from None
        return "refused"
    if artefact.partly and set(result) <= set(expected):
        return "a part"
    if known and artefact.known and not agree(result, expected, 0.0):
        raise WrongResult(f"another content of {artefact.path} is read")
    return "the same"


def damaged(rng: random.Random) -> str:
    """A file that was cut, of which bits were turned, or that something else took the place of."""
    if rng.random() < 0.2:
        return _damaged_model(rng)
    number = rng.randrange(len(_artefacts()))
    path = _copy(_artefacts()[number].path)
    way = _damage(path, rng)
    # Another whole file of ours in its place is as good a file.
    return _check_read(number, path, known=way != "other" or path.is_dir())


def _damage(path: Path, rng: random.Random) -> str:
    """Damage a file of an artefact; how, in a word."""
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    file = rng.choice(files)
    data = bytearray(file.read_bytes())
    way = rng.choice(
        ("cut", "bit", "bit", "bit", "zeros", "empty", "more", "folder", "absent", "other", "text")
    )
    at = rng.randrange(max(1, len(data)))
    told.append(f"{file.name}: {way} at {at} of {len(data)}")
    if way == "cut":
        file.write_bytes(data[:at])
    elif way == "bit" and data:
        data[at] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
    elif way == "zeros":
        data[at : at + 16] = bytes(len(data[at : at + 16]))
        file.write_bytes(data)
    elif way == "empty":
        file.write_bytes(b"")
    elif way == "more":
        file.write_bytes(data + data[:64])
    elif way == "folder":
        file.unlink()
        file.mkdir()
    elif way == "absent":
        file.unlink()
    elif way == "other":
        file.write_bytes(_place_of(rng.choice(_artefacts()[:5]).path).read_bytes())
    elif way == "text":
        text = rng.choice(
            (
                "null",
                "[]",
                "{}",
                '""',
                "NaN",
                "[" * 5000,
                "\ufeff{}",
                "a: &a [*a]",
                "\x00" * 64,
                "\x1b]0;x\x07",
            )
        )
        file.write_text(text, encoding="utf-8")
    return way


# ---- edited JSON and YAML

_ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 2**63, 10**40, 1e308, float("nan"), float("inf"), "", "x", "../../etc/passwd", "\x1b[2J",
    "\u202e", [], {}, [None], [[[[]]]], {"a": {}}, "a" * 5000, "os:system", "!!python/object:os.system", "z[0.1]", 1e-9,
)  # fmt: skip


def edited(rng: random.Random) -> str:
    """A value, a key or an entry of JSON or YAML that was changed, removed, added or doubled."""
    if rng.random() < 0.35:
        return _edited_config(rng)
    editable = [
        number
        for number, one in enumerate(_artefacts())
        if not one.path.endswith((".nc", ".csv", ".safetensors"))
    ]
    number = rng.choice(editable)
    path = _copy(_artefacts()[number].path)
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*.json*") if one.is_file())
    file = rng.choice(files)
    doubled = _edit(file, rng)
    said = _check_read(number, path)
    if doubled and said == "the same" and not _artefacts()[number].known:
        raise WrongResult(f"a doubled key of {file.name} is read without a word")
    return said


def _edit(file: Path, rng: random.Random) -> bool:
    """Edit it; True where a key is there twice, with another value."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".yaml":
        if rng.random() < 0.15:
            key = rng.choice(("study: pairs", "seeds: [1]", "values: [mean]"))
            told.append(f"{file.name}: {key} once more")
            file.write_text(f"{text}{key}\n", encoding="utf-8")
            return True
        content_of = yaml.safe_load(text)
        told.append(f"{file.name}: {_alter(content_of, rng)}")
        file.write_text(yaml.safe_dump(content_of, allow_unicode=True), encoding="utf-8")
        return False
    lines = text.splitlines() if file.suffix == ".jsonl" else [text]
    index = rng.randrange(len(lines)) if lines else 0
    if lines:
        content_of = json.loads(lines[index])
        told.append(f"{file.name} {index}: {_alter(content_of, rng)}")
        lines[index] = json.dumps(content_of)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return False


def _alter(content_of: Any, rng: random.Random) -> str:
    """Change one place of a tree of dicts and lists; what was done, in words."""
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in list(pairs)[:60]:
            places.append((node, key))
            collect(value)

    collect(content_of)
    if not places:
        return "nothing"
    node, key = rng.choice(places)
    way = rng.choice(("odd", "odd", "odd", "absent", "more", "number"))
    if way == "absent":
        del node[key]
    elif way == "more" and isinstance(node, dict):
        node[rng.choice(("unknown", "", "__class__", "version"))] = rng.choice(_ODD)
    elif way == "number" and isinstance(node[key], int | float) and not isinstance(node[key], bool):
        node[key] = rng.choice((node[key] + 1, -node[key], node[key] * 2, 0))
    else:
        node[key] = rng.choice(_ODD)
        return f"{key!r} = {str(node[key])[:40]!r}"
    return f"{key!r} {way}"


# ---- the model's directory


def _damaged_model(rng: random.Random) -> str:
    path = _copy_model()
    name = rng.choice(
        ("model.safetensors", "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
    )
    _damage_file(path / name, rng)
    return _check_model(path)


def _damage_file(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    at = rng.randrange(len(data))
    way = rng.choice(("cut", "bit", "bit", "header", "nan", "absent"))
    told.append(f"model/{file.name}: {way} at {at}")
    if way == "cut":
        file.write_bytes(data[:at])
    elif way == "absent":
        file.unlink()
    elif way == "nan" and file.suffix == ".safetensors":
        at = len(data) - 4 * rng.randrange(1, 200)
        data[at : at + 4] = b"\x00\x00\xc0\x7f"  # NaN, little-endian
        file.write_bytes(data)
    else:
        if way == "header":
            at = rng.randrange(min(len(data), 2000))
        data[at] ^= 1 << rng.randrange(8)
        file.write_bytes(data)


def _edited_config(rng: random.Random) -> str:
    path = _copy_model()
    file = path / "config.json"
    settings = json.loads(file.read_text())
    if rng.random() < 0.6:
        key = rng.choice(("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "vocab_size",
                          "intermediate_size", "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
                          "hidden_act", "model_type", "architectures", "rope_parameters", "attention_bias", "mlp_bias"))  # fmt: skip
        settings[key] = rng.choice((1, 2, 3, 4, 8, 64, 0, -2, 1e-3, True, "gelu", "gpt2", *_ODD[:10]))
        told.append(f"model/config.json: {key} = {settings[key]!r}")
    else:
        told.append(f"model/config.json: {_alter(settings, rng)}")
    file.write_text(json.dumps(settings))
    return _check_model(path)


def _copy_model() -> Path:
    place = Path(tempfile.mkdtemp(dir=fuzz_world.folder()))
    return Path(shutil.copytree(fuzz_world.model_folder(), place / "model"))


def _check_model(path: Path) -> str:
    """The model gives transformers' logits, or is refused; where transformers misses weights it is refused."""
    row = [0, 5, 9, 3]
    try:
        ours = wb.run(wb.load_model(path, device="cpu"), [row]).logits[0]
    except wb.WorkbenchError as error:
        if len(str(error)) < 10:
            raise WrongResult(f"an error without a message: {error!r}") from None
        return "refused"
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            plain, info = transformers.AutoModelForCausalLM.from_pretrained(
                path, output_loading_info=True, attn_implementation="eager"
            )
            right = plain.eval()(torch.tensor([row])).logits[0]
    except Exception as error:
        raise WrongResult(f"loaded, which transformers does not: {type(error).__name__} {error}") from None
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(what):
            raise WrongResult(f"loaded with {what}: {list(info[what])[:2]}")
    if not all(bool(weight.isfinite().all()) for weight in plain.parameters()):
        raise WrongResult("loaded with weights that are not finite")
    if not agree(ours.numpy(), right.numpy(), 1e-4):
        raise WrongResult("other logits than transformers'")
    return "the same"
