"""The names of files and folders that more than one module reads or writes.

Usage: ``manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else None``
"""

from __future__ import annotations

__all__ = [
    "ADAPTER",
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "CARD",
    "CHAT_TEMPLATE",
    "LOCAL_RECIPE",
    "MANIFEST",
    "PICTURES",
    "PROBE",
    "RUN_RECORD",
    "UNHASHED",
    "UNPROVEN",
]

# In a run's directory.
RUN_RECORD = "run.json"
ADAPTER, UNPROVEN = "adapter", "adapter-UNPROVEN"

# In an adapter's folder: PEFT's files, the processor's template, and qlmm's own.
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
MANIFEST, CARD, PROBE, PICTURES = "qlmm.json", "README.md", "probe.json", "held-out"
# The recipe with the paths of the machine it ran on; it never leaves that machine.
LOCAL_RECIPE = "local.json"

# The manifest lists the hashes of all other files: it cannot hold its own, and the card is its owner's to edit.
UNHASHED = frozenset({MANIFEST, CARD, LOCAL_RECIPE})
