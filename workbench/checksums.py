"""Checksums: whether a file still holds what was written into it.

`signed` adds one to a JSON object, as one of its fields; `file_sum` is that of a file's bytes, and `seal`
appends it to the file. Files of earlier versions have none, and are taken as they are. A checksum finds
damage and not forgery: whoever edits a file can sign it again.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

KEY = "checksum"
_CHUNK = 2**22
"""Bytes read at once."""
_SEAL = "\nworkbench xxh3_128 {}\n"
_SEALED = re.compile(re.escape(_SEAL).replace(r"\{\}", "([0-9a-f]{32})").encode())
_SEAL_LENGTH = len(_SEAL.format("0" * 32))


def content_sum(content: Mapping[str, Any]) -> str:
    """xxh3_128 of an object's content, however it is laid out."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def signed(content: Mapping[str, Any]) -> dict[str, Any]:
    """An object as JSON holds it, with its checksum."""
    # The checksum is of what will be read back: JSON turns numbers that are keys into text, for one.
    plain = json.loads(json.dumps(content))
    plain.pop(KEY, None)
    return {**plain, KEY: content_sum(plain)}


def is_unchanged(content: Mapping[str, Any]) -> bool:
    """Whether an object is as it was signed, or was never signed."""
    unsigned = {name: value for name, value in content.items() if name != KEY}
    return KEY not in content or content[KEY] == content_sum(unsigned)


def file_sum(path: Path) -> str:
    """xxh3_128 of a file's bytes."""
    return _digest(path, path.stat().st_size)


def seal(path: Path) -> None:
    """Append the checksum of a file to it. For formats whose readers stop where their own data end."""
    text = _SEAL.format(file_sum(path))
    with path.open("ab") as file:
        file.write(text.encode())


def seal_holds(path: Path) -> bool:
    """Whether a file is as it was sealed, or has no seal."""
    size = path.stat().st_size - _SEAL_LENGTH
    if size < 0:
        return True
    with path.open("rb") as file:
        file.seek(size)
        sealed = _SEALED.fullmatch(file.read())
    return sealed is None or sealed[1].decode() == _digest(path, size)


def _digest(path: Path, size: int) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while size > 0 and (block := os.read(file.fileno(), min(size, _CHUNK))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest()
