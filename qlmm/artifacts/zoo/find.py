"""The adapter folder that a user means: by its path, a run directory, ``zoo:NAME``, or an id on the Hub.

Usage: ``folder = find_adapter("runs/owl_lora")``
"""

from __future__ import annotations

from pathlib import Path

from qlmm.artifacts.adapter.allowed_files import HUB_PATTERNS
from qlmm.artifacts.zoo.catalogue import located
from qlmm.core.errors import UsageError
from qlmm.core.filenames import ADAPTER, LOCAL_RECIPE, MANIFEST, RUN_RECORD, UNPROVEN

__all__ = ["find_adapter"]


def find_adapter(target: str) -> Path:
    """The adapter folder that a command names.

    Raises:
        UsageError: A001 for a folder that is not there, A012 for a run without a finished adapter, A013 when it cannot
            be had from the Hub, Z001 for an unknown entry of the zoo.
    """
    path = located(target)
    if path.is_dir():
        if (path / MANIFEST).is_file() or not (path / RUN_RECORD).is_file():
            return path
        return _of_run(path)
    if target.count("/") != 1 or target.startswith((".", "/", "~")):
        raise UsageError.one("A001", f"there is no folder {target}", help="name an adapter folder, a run or a Hub id")
    return _from_hub(target)


def _of_run(run: Path) -> Path:
    if (run / ADAPTER / MANIFEST).is_file():
        return run / ADAPTER
    if (run / UNPROVEN / MANIFEST).is_file():
        help = f"{run / 'report.html'} names it; to look at it all the same, name {run / UNPROVEN}"
        raise UsageError.one("A012", f"the run {run} broke a promise: it has no proven adapter", help=help)
    help = "qlmm finetune with its recipe goes on"
    raise UsageError.one("A012", f"the run {run} is not finished: it has no adapter", help=help)


def _from_hub(target: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    name, _, revision = target.partition("@")
    try:
        allowed, local = list(HUB_PATTERNS), [LOCAL_RECIPE]
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=allowed, ignore_patterns=local))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        why = f"{target} is neither a folder here nor an adapter in the cache, and the Hub cannot be reached"
        help = "check the spelling; offline (HF_HUB_OFFLINE=1) only adapters already in the cache are found"
        raise UsageError.one("A013", why, help=help) from error
    except (HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        help = "for a private one run `hf auth login`"
        raise UsageError.one("A013", f"{target} cannot be had from the Hub: {reason}", help=help) from error
