"""An adapter folder in PEFT's layout: staged, hashed and named.

Usage: ``folder = stage_adapter(model, processor, run.saving, base.identity); …; publish(folder, run.path / "adapter")``
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
from qlmm.model.loading.identity import BaseIdentity
from qlmm.model.peft.adapter import save_adapter

__all__ = ["file_hashes", "run_name", "stage_adapter"]


def stage_adapter(
    model: PeftModel, processor: ProcessorMixin, part: Path, base: BaseIdentity, *, bare: tuple[str, ...] = ()
) -> Path:
    """Write weights, configuration, processor and chat template into the folder for what is half made."""
    part.mkdir(exist_ok=True)
    stage = emptied(part / ADAPTER)
    save_adapter(model, stage, bare)
    processor.save_pretrained(str(stage))
    # PEFT asks the Hub for an id without its revision. An assembled base stays unnamed: PEFT could not load it.
    whole, config = base.whole, json.loads((stage / ADAPTER_CONFIG).read_text("utf-8"))
    config["base_model_name_or_path"] = name_of(whole.name) if whole is not None else None
    config["revision"] = whole.revision if whole is not None else None
    atomic_write(stage / ADAPTER_CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    return stage


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file of an adapter that its manifest names, by relative name."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: file_sha256(path) for name, path in files.items() if name not in UNHASHED}


def run_name(folder: Path) -> str:
    """The name of an adapter's run where it lies in a run directory, else the folder's own."""
    whole = folder.resolve()
    return whole.parent.name if whole.name in (ADAPTER, UNPROVEN) else whole.name
