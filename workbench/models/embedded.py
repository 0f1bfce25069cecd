"""The embedded models: which there are, and the training steps of which a checkpoint is kept.

Read `find` first. It knows the files of `data/models`, and nothing of how they are loaded.
"""

from dataclasses import dataclass
from pathlib import Path

from workbench import resources
from workbench.errors import UnknownName


@dataclass(frozen=True)
class Embedded:
    """A model that comes with this package.

    Attributes:
        checkpoint: the bfloat16 weights of one training step; None: the final weights of `folder`.
    """

    name: str
    folder: Path
    checkpoint: Path | None


def names() -> list[str]:
    """The embedded models, without checkpoints."""
    folder = resources.data() / "models"
    return sorted(path.parent.name for path in folder.glob("*/config.json"))


def steps(name: str) -> list[int]:
    """The training steps with a checkpoint, as in `tiny@1500`."""
    folder = resources.data() / "models" / name / "checkpoints"
    return sorted(int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.safetensors"))


def find(source: str) -> Embedded | None:
    """The embedded model called `name` or `name@step`; None when there is none of that name.

    Raises:
        UnknownName: the model is embedded but has no checkpoint of that step.
    """
    name, _, step = source.partition("@")
    if name not in names():
        return None
    folder = resources.data() / "models" / name
    if not step:
        return Embedded(source, folder, None)
    path = folder / "checkpoints" / f"step-{step}.safetensors"
    if not path.is_file():
        raise UnknownName("checkpoint", source, [f"{name}@{kept}" for kept in steps(name)])
    return Embedded(source, folder, path)
