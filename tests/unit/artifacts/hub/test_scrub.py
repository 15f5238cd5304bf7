"""What leaves the machine names neither its folders nor anybody's keys; everything else stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlmm.artifacts.hub.scrub import Replaced, local_paths, places_in, scrub, secrets_in, shorten

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


def test_keys_are_cleaned_as_values_are_and_none_is_lost() -> None:
    raw = {"losses": {"/runs/mine/x": 1.0, "/runs/other/x": 2.0, "x (2)": 3.0, KEY: 4.0}}
    clean, replaced = scrub(raw, "qlmm.json")
    assert clean == {"losses": {"x": 1.0, "x (2)": 2.0, "x (2) (2)": 3.0, "<redacted>": 4.0}}
    assert replaced == [
        Replaced("qlmm.json losses, a key", "/runs/mine/x", "x"),
        Replaced("qlmm.json losses, a key", "/runs/other/x", "x"),
        Replaced("qlmm.json losses, a key", "Hugging Face token", "<redacted>"),
    ]


def test_a_text_can_be_given_another_name() -> None:
    clean, replaced = scrub(["/data/x/squad", "/data/x/y"], "a", {"/data/x/squad": "./squad"})
    assert clean == ["./squad", "y"]
    assert replaced[0] == Replaced("a.0", "/data/x/squad", "./squad")


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("x:/home/ann", ["/home/ann"]),
        ("file:///Users/ann/x and /home/bob.b", ["/Users/ann", "/home/bob.b"]),
        ('"C:\\\\Users\\\\ann\\\\x"', ["C:\\\\Users\\\\ann"]),
        ("see /srv/people/me/x", ["/srv/people/me"]),
        ("https://some.org/home/page", []),
        ("~/home/x, /srv/home/x, /data/x", []),
    ],
)
def test_folders_of_people_are_found(text: str, places: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/srv/people/me"))
    assert places_in(text) == places


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
