"""The folder of a sweep: `spec.json` says what was asked for, beside the log. Read `begin` and `read_header`.

Which of its jobs have run is in the log (`log`), and who may write (`lock`) in the lock; neither is decided
here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.checksums import KEY, is_unchanged, signed
from workbench.documents import read_json
from workbench.errors import OutputExists, SweepError
from workbench.files import check_local, whole
from workbench.sweeps.lock import LOCK

if TYPE_CHECKING:
    from workbench.sweeps.spec import SweepSpec

SPEC, TABLE = "spec.json", "rows.parquet"


def read_header(folder: str | Path) -> dict[str, Any]:
    """What `spec.json` holds: `spec`, `jobs`, `made` (when), `versions`, `command`.

    Raises:
        SweepError: there is no such folder, or it is not a sweep's.
    """
    folder = Path(folder)
    path = folder / SPEC
    if not folder.is_dir():
        raise SweepError(
            f"There is no folder {str(folder)!r}. Give the folder of a sweep, as `workbench sweep run --out` "
            "made it."
        )
    if not path.exists():
        names = sorted(entry.name for entry in folder.iterdir())[:8]
        raise SweepError(
            f"{str(folder)!r} is not the folder of a sweep: it has no {SPEC}. It holds: "
            f"{', '.join(names) or 'nothing'}. Start one with `workbench sweep run --out FOLDER`."
        )
    try:
        header = read_json(path)
    except (OSError, ValueError) as error:
        raise SweepError(
            f"{str(path)!r} cannot be read: {error}. Run the sweep again into another folder."
        ) from error
    if not isinstance(header, dict) or not isinstance(header.get("spec"), dict):
        raise SweepError(
            f"{str(path)!r} cannot be read: it has no object 'spec'. Run the sweep again into another folder."
        )
    if not is_unchanged(header):
        raise SweepError(
            f"{str(path)!r} was changed since it was written (checksum). If you changed it yourself, take "
            f"its line {KEY!r} out."
        )
    return header


def claim(folder: Path) -> None:
    """Make the folder.

    Raises:
        OutputExists: it is a file, or holds other things than a sweep.
        CannotWrite: it is a URL.
    """
    check_local(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in folder.iterdir()]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputExists(
            f"{str(folder)!r} cannot be a sweep's folder: {reason}. Choose another with --out."
        ) from error
    # A lock or a partial spec is of a runner that has just begun, or was killed then.
    others = [name for name in names if not name.lstrip(".").startswith((SPEC, LOCK))]
    if others and SPEC not in names:
        raise OutputExists(
            f"{str(folder)!r} is not a sweep and not empty (it has {others[0]!r}). Choose another folder."
        )


def begin(folder: Path, spec: "SweepSpec", facts: Mapping[str, Any], *, extend: bool) -> None:
    """Write the spec into a folder that this process has locked, or check that it is the one there.

    Args:
        facts: what the header says beside the spec. `command` is added to those of earlier specs.
        extend: replace another spec. The caller has checked that none of its jobs is left behind.

    Raises:
        SweepError: the folder holds another spec, and `extend` is not set; the message says what differs.
    """
    from workbench.sweeps.spec import read_spec  # pydantic and the engine, which a status does not need

    if (folder / SPEC).exists():
        header = read_header(folder)
        before, now = read_spec(header["spec"]).to_dict(), spec.to_dict()
        changed: list[str] = []
        for name in now:
            if before[name] != now[name]:
                changed.append(f"{name}: {_difference(before[name], now[name])}")
        if changed and not extend:
            raise SweepError(
                f"{str(folder)!r} holds another sweep: {'; '.join(changed)}. Choose another folder, or pass "
                "extend=True (--extend) to add these jobs to it."
            )
        if not changed:
            return
        # Rows of the folder come from either command, so both are kept.
        commands = [header.get("command"), facts.get("command")]
        facts = {**facts, "command": "\n".join(filter(None, commands))}
    with whole(folder / SPEC) as partial:
        header = signed({"spec": spec.to_dict(), **facts})
        partial.write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")


def _difference(before: Any, now: Any) -> str:
    """A field of both specs; of lists only the entries that differ."""
    if isinstance(before, list) and isinstance(now, list):
        only_before = [entry for entry in before if entry not in now]
        only_now = [entry for entry in now if entry not in before]
        return f"{only_before} in the folder, {only_now} in this spec"
    return f"{before} in the folder, {now} in this spec"
