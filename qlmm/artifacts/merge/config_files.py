"""The files beside the weights of a merged checkpoint: processor, configuration, generation settings.

Usage: ``write_config_files(stage, folder, manifest, base, sources, dtype=torch.bfloat16)``
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import torch
from pydantic import JsonValue

from qlmm.artifacts.adapter.base_files import base_file
from qlmm.artifacts.adapter.manifest import Manifest
from qlmm.artifacts.merge.tensor_plan import Sources
from qlmm.core.filenames import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD, MANIFEST, PICTURES, PROBE
from qlmm.core.files import atomic_write
from qlmm.model.image_budget.budget import agree
from qlmm.model.loading.base import Base

__all__ = ["write_config_files"]

# Files of an adapter that a merged model has no use for; the rest is its processor.
OF_ADAPTER = frozenset({ADAPTER_CONFIG, ADAPTER_WEIGHTS, MANIFEST, PROBE, CARD})
GENERATION = "generation_config.json"


def write_config_files(
    stage: Path, folder: Path, manifest: Manifest, base: Base, sources: Sources, *, dtype: torch.dtype
) -> None:
    """Write them beside weights that lie in `stage` already; `dtype` is that of most weights."""
    for name in manifest.files:
        # Shards lie there already; no manifest can put another file into their place.
        if name in OF_ADAPTER or PurePosixPath(name).parts[0] == PICTURES or (stage / name).exists():
            continue
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, stage / name)
    if (settings := base_file(*base.text_place, GENERATION)) is not None:
        shutil.copyfile(settings, stage / GENERATION)
    # The processor may have been given another pixel budget, which some configurations repeat.
    agree(sources.model, base.saved_processor(folder))
    config = sources.config()
    if "image_grid_pinpoints" in config:
        config["image_grid_pinpoints"] = vars(sources.model.config).get("image_grid_pinpoints")
    config["architectures"] = [type(sources.merged).__name__]
    written = _with_dtype(config, str(dtype).removeprefix("torch."))
    atomic_write(stage / "config.json", json.dumps(written, indent=2) + "\n")


def _with_dtype(config: Mapping[str, JsonValue], name: str) -> dict[str, JsonValue]:
    """A configuration that names the dtype of its weights, its parts' configurations too."""
    changed: dict[str, JsonValue] = {}
    for key, value in config.items():
        part = key.endswith("_config") and isinstance(value, dict) and ("dtype" in value or "torch_dtype" in value)
        changed[key] = _with_dtype(value, name) if part and isinstance(value, dict) else value
    changed.pop("torch_dtype", None)
    return changed | {"dtype": name}
