"""Finding access keys and control characters in text: neither is stored in a log, a card or a trace.

Usage: ``shareable("token hf_…")``; ``for span in find(text): ...``
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import JsonValue

__all__ = ["STYLE", "Secret", "find", "redact", "redact_values", "shareable", "visible"]

# A W&B key is 40 hex digits, as is a git commit; id@, snapshots/ stands before a commit.
_PATTERNS = {
    "Hugging Face token": r"(?<![A-Za-z0-9])(?:hf|api_org)_[A-Za-z0-9]{16,}",
    "API key": r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{16,}",
    "JSON web token": r"(?<![A-Za-z0-9])eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
    "registry token": r"(?<![A-Za-z0-9])(?:npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,})",
    "payment key": r"(?<![A-Za-z0-9])[sr]k_(?:live|test)_[A-Za-z0-9]{16,}",
    "Weights & Biases key": r"(?<![A-Za-z0-9@/])(?:[0-9a-f]{40}(?![A-Za-z0-9])|wandb_v\d_[A-Za-z0-9_]{20,})",
    "GitHub token": r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})",
    "GitLab token": r"(?<![A-Za-z0-9])glpat-[A-Za-z0-9_-]{16,}",
    "AWS key": r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    "Google key": r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{30,}",
    "Slack token": r"(?<![A-Za-z0-9])(?:xox[abeposr]-|xapp-)[A-Za-z0-9-]{10,}",
    "Slack address": r"(?<=hooks\.slack\.com/services/)[A-Za-z0-9/]{20,}",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[^-]+-----END [A-Z ]*PRIVATE KEY-----)?",
    "password in an address": r"(?<=://)[^\s/:@]{0,256}:[^\s/@]{1,256}(?=@)",
}
# Everything a terminal acts on rather than shows, tab and line feed excepted.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Sets a colour on a terminal; its last letter would seem to belong to the word that follows.
STYLE = re.compile(r"(\x1b\[[0-9;?]*[ -/]*[@-~])")
_ANY = re.compile("|".join(f"({pattern})" for pattern in _PATTERNS.values()))


@dataclass(frozen=True, slots=True)
class Secret:
    """Where something that looks like an access key stands in a text, and of which kind; never the key itself."""

    kind: str
    start: int
    end: int


def find(text: str) -> Iterator[Secret]:
    """Everything in ``text`` that looks like an access key, in order."""
    for match in _ANY.finditer(text):
        yield Secret(list(_PATTERNS)[(match.lastindex or 1) - 1], *match.span())


def redact(text: str) -> str:
    """``text`` with every access key replaced by ``<redacted>``."""
    pieces = enumerate(STYLE.split(text))
    return "".join(piece if place % 2 else _ANY.sub("<redacted>", piece) for place, piece in pieces)


def redact_values(value: JsonValue, key: str = "") -> JsonValue:
    """A copy of a JSON value without access keys; a commit, and a picture in base64, can read like one."""
    if isinstance(value, dict):
        return {name: redact_values(one, name) for name, one in value.items()}
    if isinstance(value, list):
        return [redact_values(one, key) for one in value]
    return redact(value) if isinstance(value, str) and key not in ("revision", "picture") else value


def visible(text: str) -> str:
    """Text from data or a model with its control characters spelt out, so that it cannot steer the terminal."""
    return _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text.replace("\r\n", "\n"))


def shareable(text: str) -> str:
    """Text from data or a model as it may be stored in what others read."""
    return visible(redact(text))
