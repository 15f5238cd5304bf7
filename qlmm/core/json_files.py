"""JSON files that somebody else may have written: read within limits, and refused where they ask to run code.

Usage: ``stated = read_object(folder / "config.json"); refuse_code(folder / "config.json")``
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

from pydantic import JsonValue

from qlmm.core.errors import ModelError

__all__ = ["read_object", "read_small", "refuse_code"]

# The largest files of this kind, probes of long rows, have a few megabytes.
MOST_BYTES = 16 << 20
# Keys by which libraries choose Python code of a repository.
RUNS_CODE = frozenset({"auto_map", "custom_generate", "trust_remote_code"})


def read_small(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        OSError: when it cannot be read, or has more than 16 MB.
    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return content


def read_object(path: Path) -> dict[str, JsonValue]:
    """The object in a JSON file.

    Raises:
        OSError: as `read_small`.
        ValueError: when it has no object, or one that is nested too deeply.
    """
    try:
        found: JsonValue = json.loads(read_small(path))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")
    return found


def refuse_code(path: Path) -> None:
    """Refuse (M004) a configuration that asks a library to run code; what cannot be read asks for nothing."""
    try:
        key = _code_key(read_object(path))
    except (OSError, ValueError):
        return
    if key is not None:
        message = f"{path} has the key {key}, which asks for Python code from a repository; qlmm never runs that"
        help = "choose a model that transformers supports itself, in a copy without that key"
        raise ModelError.one("M004", message, help=help)


def _code_key(value: JsonValue) -> str | None:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    own = sorted(RUNS_CODE & value.keys()) if isinstance(value, dict) else []
    return own[0] if own else next((key for one in inner if (key := _code_key(one)) is not None), None)
