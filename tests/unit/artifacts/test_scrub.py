"""What leaves the machine names neither its folders nor anybody's keys; everything else stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlmm.artifacts.scrub import Replaced, local_paths, scrub, secrets_in, shorten

COMMIT = "0123456789abcdef" * 2 + "01234567"
KEY = "hf_" + "aB3dE5gH7j" * 3


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("/srv/me/rows.jsonl", "rows.jsonl"),
        ("/srv/me/my rows.jsonl", "my rows.jsonl"),
        ("/data", "data"),
        ("/runs/x/", "x"),
        ("~/rows.jsonl", "rows.jsonl"),
        ("~", "~"),
        ("C:\\Users\\me\\rows.jsonl", "rows.jsonl"),
        ("D:/data/rows.jsonl", "rows.jsonl"),
        ("\\\\server\\share\\rows.jsonl", "rows.jsonl"),
        ("/", "/"),
        ("read /srv/me/rows.jsonl, then stop", "read rows.jsonl, then stop"),
        ("see file:///srv/me/x", "see x"),
        ("(C:\\Users\\me\\x)", "(x)"),
    ],
)
def test_a_local_path_keeps_its_last_part(text: str, short: str) -> None:
    assert shorten(text) == short


@pytest.mark.parametrize(
    "text",
    [
        "rows.jsonl",
        "runs/x/rows.jsonl",
        "../data/rows.jsonl",
        f"llava-hf/llava-1.5-7b-hf@{COMMIT}",
        "builtin:emoji",
        "https://huggingface.co/some/model",
        "1/2 of 3/4/5",
        "</s>",
        "a: b",
        "",
    ],
)
def test_everything_else_stays_as_it_is(text: str) -> None:
    assert shorten(text) == text
    assert scrub({"key": [text, 1, None, True]}, "x") == ({"key": [text, 1, None, True]}, [])


def test_every_replacement_is_told_and_no_key_is_shown() -> None:
    raw = {"output": {"dir": "/runs/mine/x"}, "extra": [f"token {KEY}"], "revision": COMMIT, "other": COMMIT}
    clean, replaced = scrub(raw, "qlmm.json")
    assert clean == {
        "output": {"dir": "x"},
        "extra": ["token <redacted>"],
        "revision": COMMIT,
        "other": "<redacted>",
    }
    assert replaced == [
        Replaced("qlmm.json output.dir", "/runs/mine/x", "x"),
        Replaced("qlmm.json extra.0", "Hugging Face token", "<redacted>"),
        Replaced("qlmm.json other", "Weights & Biases key", "<redacted>"),
    ]


def test_paths_are_looked_for_elsewhere_the_longest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/srv/me"))
    found = [Replaced("a", "/data/x", "x"), Replaced("b", "/d", "d"), Replaced("c", "/data/x/long", "long")]
    found.append(Replaced("d", "see /data/y/z", "see z"))
    assert list(local_paths(found).items()) == [("/data/x/long", "long"), ("/srv/me", "~"), ("/data/x", "x")]
    monkeypatch.setattr(Path, "home", lambda: Path("/"))
    assert local_paths([]) == {}


def test_a_commit_that_is_known_is_no_key() -> None:
    text = f'revision="{COMMIT}" {KEY}'
    assert secrets_in(text) == ["Hugging Face token", "Weights & Biases key"]
    assert secrets_in(text, [COMMIT]) == ["Hugging Face token"]
