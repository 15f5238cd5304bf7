"""From a trained model to an adapter folder in PEFT's layout, complete or not there at all.

Usage: ``folder = stage_adapter(model, processor, run.path); …; publish(folder, run.path / "adapter")``
"""

from __future__ import annotations

import json
from pathlib import Path

from peft import PeftModel
from transformers import ProcessorMixin

from qlmm.artifacts.adapter.local_paths import name_of
from qlmm.core.filenames import ADAPTER, ADAPTER_CONFIG, UNHASHED, UNPROVEN
from qlmm.core.files import atomic_write, file_sha256
from qlmm.core.staging import emptied
from qlmm.model.loading.hub import locate
from qlmm.model.peft.adapter import save_adapter
from qlmm.recipe.schema import BaseSection

__all__ = ["file_hashes", "run_name", "stage_adapter"]

_STAGE = ".adapter.part"


def stage_adapter(
    model: PeftModel, processor: ProcessorMixin, run: Path, base: BaseSection, *, bare: tuple[str, ...] = ()
) -> Path:
    """Write weights, configuration, processor and chat template beside their final place."""
    stage = emptied(run / _STAGE)
    save_adapter(model, stage, bare)
    processor.save_pretrained(str(stage))
    _name_base(stage / ADAPTER_CONFIG, base)
    return stage


def _name_base(path: Path, base: BaseSection) -> None:
    """Name the base in PEFT's own file; an assembled base has none that PEFT could load, so it stays unnamed."""
    config = json.loads(path.read_text("utf-8"))
    place = locate(base.model) if base.model is not None else None
    # An id without its revision is what PEFT asks the Hub for; a folder may have an @ in its name.
    name, revision = (
        (place.path, place.revision)
        if place is not None and place.revision
        else (name_of(base.model) if base.model is not None else None, None)
    )
    config |= {"base_model_name_or_path": name, "revision": revision}
    atomic_write(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file of an adapter that its manifest names, by relative name."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: file_sha256(path) for name, path in files.items() if name not in UNHASHED}


def run_name(folder: Path) -> str:
    """What people call an adapter: its run's name where it lies in a run directory, else the folder's own."""
    whole = folder.resolve()
    return whole.parent.name if whole.name in (ADAPTER, UNPROVEN) else whole.name
