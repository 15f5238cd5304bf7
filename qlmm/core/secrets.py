"""Finding access keys in text, so that none is stored in a recipe copy, a log, a card or a trace.

Usage: ``redact("token hf_…")``; ``for span in find(text): ...``
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Secret", "find", "redact"]

# A W&B key is 40 hex digits, as is a git commit; id@ or snapshots/ stands before a commit.
_PATTERNS = {
    "Hugging Face token": r"(?<![A-Za-z0-9])(?:hf|api_org)_[A-Za-z0-9]{16,}",
    "API key": r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{16,}",
    "Weights & Biases key": r"(?<![A-Za-z0-9@/])(?:[0-9a-f]{40}(?![A-Za-z0-9])|wandb_v\d_[A-Za-z0-9_]{20,})",
    "GitHub token": r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})",
    "GitLab token": r"(?<![A-Za-z0-9])glpat-[A-Za-z0-9_-]{16,}",
    "AWS key": r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])",
    "Google key": r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{30,}",
    "Slack token": r"(?<![A-Za-z0-9])xox[abposr]-[A-Za-z0-9-]{10,}",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "password in an address": r"(?<=://)[^\s/:@]{0,256}:[^\s/@]{1,256}(?=@)",
}
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
    return _ANY.sub("<redacted>", text)
