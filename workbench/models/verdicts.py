"""Verdicts of checks of models, kept on disk: what was found right once is not tried again in every process.

Read `is_right` and `keep_right`. Only "right" is ever kept, in one file per model below `cache_folder()`. A file
holds for one fingerprint, precision, kind of device, structure of modules, source of this package and set of
versions; one that is damaged counts as none. Which checks there are is not known here.
"""

import inspect
import json
import platform
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import xxhash

from workbench.cache import cache_folder
from workbench.checksums import KEY, content_sum, is_unchanged, signed
from workbench.errors import CannotWrite
from workbench.files import read_bytes, whole
from workbench.models.fingerprint import model_fingerprint
from workbench.models.model import Model, every_module
from workbench.results import versions

FOLDER = "verdicts"
_OWN_HOOKS = ("transformer_lens", "transformers.")
MOST_FILES = 1000
"""Files that are kept, the newest ones: every model, and every version of a package, has one of its own."""


def is_right(model: Model, check: str) -> bool:
    """Whether a model is known to pass a check, with this very code.

    Args:
        check: its name, with all that it depends on beside the model.
    """
    return check in _right(_key(model))


def keep_right(model: Model, check: str) -> None:
    """Remember that a model passes a check. Where the cache cannot be written, the check is made again."""
    key = _key(model)
    try:
        path = _path(key)
        with whole(path) as partial:
            content = signed({"model": key, "right": sorted({*_right(key), check})})
            partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
        _remove_oldest(path.parent)
    except (CannotWrite, OSError, RuntimeError):  # no disk, no permission, no home: a cache is no duty
        return


def _right(key: dict[str, str]) -> Sequence[str]:
    """The names of the checks that are known to be passed."""
    try:
        content = json.loads(read_bytes(_path(key)))
    except (OSError, ValueError, RuntimeError):  # none yet, or not what was written: nothing is known
        return ()
    if not isinstance(content, dict) or KEY not in content or not is_unchanged(content):
        return ()
    # A name is a hash of what is in the file: both are asked for, in case a file was renamed.
    return content["right"] if content.get("model") == key else ()


def _path(key: dict[str, str]) -> Path:
    return cache_folder() / FOLDER / f"{content_sum(key)}.json"


def _remove_oldest(folder: Path) -> None:
    """Leave the newest files."""
    files = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in files[:-MOST_FILES]:
        path.unlink(missing_ok=True)


def _key(model: Model) -> dict[str, str]:
    """All that a verdict depends on."""
    weight = next(iter(model.parameters()))
    return {
        "fingerprint": model_fingerprint(model),
        "dtype": str(weight.dtype),
        "device": weight.device.type,
        "structure": _structure(model),
        "code": _package_hash(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "matmul": torch.get_float32_matmul_precision(),
        "python": platform.python_version(),
        **versions(),
    }


def _structure(model: Model) -> str:
    """A hash of what the modules of a model do beside their weights: classes, forward functions, hooks.

    Weights do not tell a model from one whose modules somebody has changed: those are checked anew.
    """
    digest, known = xxhash.xxh3_128(), dict[int, bytes]()
    for module in every_module(model):
        # `forward` may be set on the module itself.
        forward = vars(module).get("forward", type(module).forward)
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        # TransformerLens (4.3) and transformers install some of their own while a model runs.
        hooks = [hook for hook in hooks if not str(hook.__module__).startswith(_OWN_HOOKS)]
        digest.update(f"{type(module).__module__}.{type(module).__qualname__}".encode())
        for function in (forward, *hooks):
            if id(function) not in known:
                known[id(function)] = _of_function(function)
            digest.update(known[id(function)])
    return digest.hexdigest()


def _of_function(function: Any) -> bytes:
    """What tells a function from another one in every process: its name, its instructions and its constants."""
    plain = inspect.unwrap(getattr(function, "__func__", function))
    name = f"{getattr(plain, '__module__', '')}.{getattr(plain, '__qualname__', type(plain).__qualname__)}"
    code = getattr(plain, "__code__", None)
    if code is None:
        return name.encode()
    # Others are shown with their address (code) or in an order that changes (sets).
    constants = [constant for constant in code.co_consts if isinstance(constant, int | float | str | tuple)]
    return name.encode() + code.co_code + repr((constants, code.co_names)).encode()


@lru_cache(maxsize=1)
def _package_hash() -> str:
    """A hash of the source of this package, so that a change of the engine is a reason to check again."""
    package, digest = Path(__file__).parents[1], xxhash.xxh3_128()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
