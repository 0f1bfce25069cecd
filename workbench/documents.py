"""JSON and YAML as anybody may have written them: bounded in size and depth, and no key twice.

Read `read_json`, `parse_json` and `read_yaml`. What cannot be read is a `ValueError` or an `OSError`, which
the reader of each kind of file turns into its own error. Nothing here knows what a document means.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from workbench.files import read_bytes

DEPTH = 64
"""How deeply lists and objects may be nested."""
YAML_BYTES, YAML_NODES = 2**20, 100_000
"""The largest size of a YAML file, and the most entries, with every alias written out."""
_TOO_DEEP = f"it is nested more than {DEPTH} deep"


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. Raises `OSError` or `ValueError`."""
    return parse_json(read_bytes(path))


def parse_json(text: str | bytes) -> Any:
    """The content of JSON in UTF-8. Raises `ValueError`."""
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        document = json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    # Most documents have fewer brackets than `DEPTH`, and cannot be too deep.
    if text.count("[") + text.count("{") > DEPTH:
        _check_depth(document)
    return document


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file, by the safe loader. Raises `OSError` or `ValueError`."""
    text = read_bytes(path, most=YAML_BYTES).decode("utf-8")
    try:
        return yaml.load(text, Loader=_BoundedLoader)
    except (yaml.YAMLError, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys must differ: of two equal ones, `json` would silently keep the last."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError(f"{_doubled(key for key, _ in pairs)!r} is there twice")
    return fields


def _doubled(keys: Iterable[str]) -> str | None:
    """The first key that has come before."""
    known: set[str] = set()
    for key in keys:
        if key in known:
            return key
        known.add(key)
    return None


def _check_depth(document: Any) -> None:
    """Raise `ValueError` where lists and objects are nested too deeply."""
    level = [document]
    for _ in range(DEPTH):
        inner: list[Any] = []
        for outer in level:
            if isinstance(outer, dict):
                outer = outer.values()
            inner += [entry for entry in outer if isinstance(entry, dict | list)]
        if not inner:
            return
        level = inner
    raise ValueError(_TOO_DEEP)


class _BoundedLoader(yaml.SafeLoader):
    """The safe loader, which refuses depth, doubled keys, and aliases that multiply."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def get_single_node(self) -> Any:
        """The root, once it is known to be small: aliases of aliases grow without bound when written out."""
        root = super().get_single_node()
        waiting, n = [root], 0
        while waiting:
            node = waiting.pop()
            n += 1
            if n > YAML_NODES:
                raise yaml.YAMLError(f"it has more than {YAML_NODES} entries, aliases written out")
            if isinstance(node, yaml.SequenceNode):
                waiting += node.value
            elif isinstance(node, yaml.MappingNode):
                for pair in node.value:
                    waiting += pair
        return root

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node, no deeper than `DEPTH`."""
        self._depth += 1
        if self._depth > DEPTH:
            raise yaml.YAMLError(_TOO_DEEP)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """A mapping whose keys differ: of two equal ones, YAML's loader would silently keep the last."""
        # Before keys are merged in (`<<`): those may be replaced by the mapping's own.
        doubled = _doubled(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if doubled is not None:
            raise yaml.YAMLError(f"{doubled!r} is there twice")
        return super().construct_mapping(node, deep=deep)
