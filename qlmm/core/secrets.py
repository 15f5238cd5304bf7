"""Finding access keys and control characters in text: neither is stored in a log, a card or a trace.

Usage: ``shareable("token hf_…")``; ``for span in find(text): ...``
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import JsonValue

__all__ = ["STYLE", "Secret", "find", "redact", "redact_values", "shareable", "shortened", "starred", "visible"]

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
# Names that leave no doubt what stands after them; any word may stand before, as in DB_PASSWORD.
_NAME = (
    r"(?:secret[_-]?access[_-]?key|(?:api|secret|access)[_ -]?key|client[_-]?secret|passw(?:or)?d|passphrase"
    r"|(?:access|auth|refresh|api|bearer|aws[_-]?[a-z]{1,12})[_-]?token)"
)
# No word of a language, no variable and no call: six characters with a digit or a sign among them. In quotes eight
# letters are enough.
_SIGNS = r"""(?=[^\s"'\\,;<>(){}\[\]]{0,512}[\d!@#%^&+=~])"""
_WORD = r"""[^\s"'\\,;<>(){}\[\]]"""
_QUOTED = rf"(?!\$)(?:{_SIGNS}{_WORD}{{6,512}}+|{_WORD}{{8,512}}+)"
_BARE = rf"(?!\$){_SIGNS}{_WORD}{{6,512}}+"
_NAMED = re.compile(
    rf"""{_NAME}\\*["']?[ \t]{{0,8}}(?:"""
    rf"""[:=][ \t]{{0,8}}\\*["']({_QUOTED})(?=\\*["'])"""
    rf"""|=[ \t]{{0,8}}({_BARE})(?![(\[])"""
    rf"""|:[ \t]{{0,8}}({_BARE})(?=[ \t]*(?:$|[,;}}\]"'\\])))""",
    re.IGNORECASE | re.MULTILINE,
)
_NAMED_KEY, _NAMED_VALUE = re.compile(rf"{_NAME}\Z", re.IGNORECASE), re.compile(_QUOTED)
_KIND_OF_NAMED = "password or key after its name"
# Names in JSON whose values read like keys and are none.
_NO_KEYS = ("commit", "revision", "picture")
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
    known = [Secret(list(_PATTERNS)[(one.lastindex or 1) - 1], *one.span()) for one in _ANY.finditer(text)]
    named = [Secret(_KIND_OF_NAMED, *one.span(one.lastindex or 0)) for one in _NAMED.finditer(text)]
    found: list[Secret] = []
    for one in sorted((*known, *named), key=lambda secret: secret.start):
        if found and one.start < found[-1].end:
            # One inside another, or both in a part: together they are one.
            found[-1] = replace(found[-1], end=max(found[-1].end, one.end))
        else:
            found.append(one)
    return iter(found)


def redact(text: str) -> str:
    """``text`` with every access key replaced by ``<redacted>``."""
    pieces = enumerate(STYLE.split(text))
    return "".join(piece if place % 2 else _replaced(piece, lambda length: "<redacted>") for place, piece in pieces)


def shortened(text: str, longest: int) -> str:
    """The beginning of a text without its access keys, which nobody would know for keys once they are cut in two."""
    kept = redact(text)
    return kept if len(kept) <= longest else f"{kept[: longest - 1]}…"


def starred(text: str) -> str:
    """``text`` with a star for every character of an access key, so that each place in it stays where it is."""
    return _replaced(text, lambda length: "*" * length)


def _replaced(text: str, by: Callable[[int], str]) -> str:
    """``text`` with something else, made for its length, in the place of every access key."""
    pieces, end = [], 0
    for one in find(text):
        pieces += [text[end : one.start], by(one.end - one.start)]
        end = one.end
    return "".join([*pieces, text[end:]])


def redact_values(value: JsonValue, key: str = "") -> JsonValue:
    """A copy of a JSON value without access keys; a commit, and a picture in base64, can read like one."""
    if isinstance(value, dict):
        return {redact(str(name)): redact_values(one, str(name)) for name, one in value.items()}
    if isinstance(value, list):
        return [redact_values(one, key) for one in value]
    if not isinstance(value, str) or key in _NO_KEYS:
        return value
    return "<redacted>" if _NAMED_KEY.search(key) and _NAMED_VALUE.fullmatch(value) else redact(value)


def visible(text: str) -> str:
    """Text from data or a model with its control characters spelt out, so that it cannot steer the terminal."""
    return _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text.replace("\r\n", "\n"))


def shareable(text: str) -> str:
    """Text from data or a model as it may be stored in what others read."""
    return visible(redact(text))
