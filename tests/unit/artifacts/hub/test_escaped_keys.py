"""A key is found in whatever form a reader gets back the key itself."""

from __future__ import annotations

import json

import pytest

from qlmm.artifacts.adapter.local_paths import secrets_in

KEY = "hf_" + "aB3dE5gH7j" * 3


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        KEY.replace("_", r"\_"),
        KEY.replace("_", "&#95;"),
        KEY.replace("_", "&lowbar;"),
        KEY.replace("B", "**B**"),
        KEY.replace("B", "<b>B</b>"),
        f"`{KEY}`",
        f"\\x1b[31m{KEY}",
        f"\x1b[31m{KEY}",
        json.dumps(f"\x1b[31m{KEY}"),
        json.dumps(KEY).replace("h", "\\u0068"),
    ],
)
def test_a_key_is_found_behind_marks(text: str) -> None:
    assert secrets_in(f"| the key | {text} |") == ["Hugging Face token"]


def test_marks_alone_make_no_key_and_a_known_commit_is_none() -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    assert secrets_in(f"task\\-specific **text** <b> `{commit}`", [commit]) == []
