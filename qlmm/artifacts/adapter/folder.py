"""From a trained model to an adapter folder in PEFT's layout, complete or not there at all.

Usage: ``folder = stage_adapter(model, processor, run.path); …; publish(folder, run.path / "adapter")``
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from peft import PeftModel
from transformers import ProcessorMixin

from qlmm.core.files import atomic_write, file_sha256, fsync_dir, fsync_file
from qlmm.model.loading.hub import locate
from qlmm.model.peft.adapter import save_adapter
from qlmm.recipe.schema import BaseSection

__all__ = ["ADAPTER", "UNPROVEN", "file_hashes", "publish", "run_name", "stage_adapter"]

ADAPTER = "adapter"
UNPROVEN = "adapter-UNPROVEN"
_STAGE = ".adapter.part"


def stage_adapter(
    model: PeftModel, processor: ProcessorMixin, run: Path, base: BaseSection, *, bare: tuple[str, ...] = ()
) -> Path:
    """Write weights, configuration, processor and chat template beside their final place."""
    stage = run / _STAGE
    shutil.rmtree(stage, ignore_errors=True)
    save_adapter(model, stage, bare)
    processor.save_pretrained(str(stage))
    _name_base(stage / "adapter_config.json", base)
    return stage


def _name_base(path: Path, base: BaseSection) -> None:
    """Name the base in PEFT's own file; an assembled base has none that PEFT could load, so it stays unnamed."""
    config = json.loads(path.read_text("utf-8"))
    place = locate(base.model) if base.model is not None else None
    # An id without its revision is what PEFT asks the Hub for; a folder may have an @ in its name.
    name, revision = (place.path, place.revision) if place is not None and place.revision else (base.model, None)
    config |= {"base_model_name_or_path": name, "revision": revision}
    atomic_write(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def file_hashes(folder: Path, *, without: frozenset[str] = frozenset()) -> dict[str, str]:
    """sha256 of every file in a folder and below it, by relative name."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: file_sha256(path) for name, path in files.items() if name not in without}


def run_name(folder: Path) -> str:
    """What people call an adapter: its run's name where it lies in a run directory, else the folder's own."""
    whole = folder.resolve()
    return whole.parent.name if whole.name in (ADAPTER, UNPROVEN) else whole.name


def publish(stage: Path, place: Path, *, replace: bool = False) -> Path:
    """Make a staged folder appear under its name in one rename, readable as the umask says.

    Weights are written with mode 0600 by safetensors; other users' servers would then find no adapter.

    Args:
        stage: the folder, with everything in it.
        place: its name; nothing, or an empty folder.
        replace: whether what is there is our own and gives way.

    Raises:
        OSError: when the disk refuses, or something was put there in the meantime.
    """
    umask = os.umask(0)
    os.umask(umask)
    for path in stage.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
        (fsync_dir if path.is_dir() else fsync_file)(path)
    fsync_dir(stage)
    if place.exists():
        (shutil.rmtree if replace else Path.rmdir)(place)
    stage.rename(place)
    fsync_dir(place.parent)
    return place
