"""Access keys are found and never shown; what merely resembles one is left alone."""

from __future__ import annotations

import pytest

from qlmm.core.secrets import find, redact, redact_values

KEYS = {
    "Hugging Face token": "hf_" + "aB3" * 12,
    "API key": "sk-proj-" + "x9" * 20,
    "Weights & Biases key": "0123456789abcdef0123456789abcdef01234567",
    "GitHub token": "ghp_" + "a1" * 18,
    "GitLab token": "glpat-" + "a1" * 10,
    "AWS key": "AKIA" + "A1B2" * 4,
    "Google key": "AIza" + "b" * 35,
    "Slack token": "xoxb-" + "1" * 20,
    "Slack address": "T0" + "A1b2" * 6,
    "JSON web token": ".".join(("eyJhbGciOiJIUzI1NiJ9", "eyJzdWIiOiIxMjM0NTY3ODkwIn0", "a1B2c3D4e5F6")),
    "registry token": "npm_" + "a1B2" * 9,
    "payment key": "sk_live_" + "a1B2" * 6,
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIE" + "a1B2" * 9 + "=\n-----END RSA PRIVATE KEY-----",
}


@pytest.mark.parametrize(("kind", "key"), KEYS.items())
@pytest.mark.parametrize("around", ["{}", "token: {}", "'{}',", "a={} b", "# {}\n"])
def test_keys_are_found_and_taken_out(kind: str, key: str, around: str) -> None:
    around = around.replace("{}", "hooks.slack.com/services/{}") if kind == "Slack address" else around
    text = around.format(key)
    assert [(found.kind, text[found.start : found.end]) for found in find(text)] == [(kind, key)]
    assert redact(text) == around.format("<redacted>")


def test_a_colour_before_a_key_hides_nothing() -> None:
    key = KEYS["Hugging Face token"]
    assert redact(f"a \x1b[1;31m{key}\x1b[0m") == "a \x1b[1;31m<redacted>\x1b[0m"


def test_a_password_inside_an_address_is_taken_out() -> None:
    assert redact("https://me:pass@host/x") == "https://<redacted>@host/x"


@pytest.mark.parametrize(
    "text",
    [
        "lmsys/vicuna-7b-v1.5@0123456789abcdef0123456789abcdef01234567",
        "snapshots/0123456789abcdef0123456789abcdef01234567/config.json",
        "task-specific-instructions-and-answers",
        "hf-internal-testing/tiny-random-llava",
        "data/hf_pictures.json",
        "https://huggingface.co:443/datasets",
        "e" * 64,
    ],
)
def test_what_is_not_a_key_stays(text: str) -> None:
    assert redact(text) == text


def test_keys_are_taken_out_of_values_and_commits_and_pictures_are_not() -> None:
    key, commit = KEYS["Hugging Face token"], KEYS["Weights & Biases key"]
    kept = {"revision": commit, "answers": [{"picture": KEYS["Google key"]}], "steps": 3, "none": None}
    assert redact_values(kept | {"deep": [{"text": f"a {key}"}]}) == kept | {"deep": [{"text": "a <redacted>"}]}
