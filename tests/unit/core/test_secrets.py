"""Access keys are found and never shown; what merely resembles one is left alone."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlmm.core.secrets import find, redact, redact_values, shortened, starred

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
    assert redact_values({key: 1}) == {"<redacted>": 1}
    assert redact_values(kept | {"deep": [{"text": f"a {key}"}]}) == kept | {"deep": [{"text": "a <redacted>"}]}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_a_text_is_cut_after_its_keys_are_gone(key: str) -> None:
    for longest in range(20, 80):
        found = shortened(f"{'x' * 30} hooks.slack.com/services/{key} {'y' * 80}", longest)
        assert len(found) == longest
        assert key[:8] not in found


def test_stars_keep_every_place_in_a_text() -> None:
    key = KEYS["Hugging Face token"]
    assert starred(f"a {key} b") == f"a {'*' * len(key)} b"


# Of forty characters, as AWS makes them, without a form of its own.
BARE_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
NAMED = [
    ("aws_secret_access_key = {}", BARE_KEY),
    ("export AWS_SECRET_ACCESS_KEY={}", BARE_KEY),
    ("AWS_SESSION_TOKEN: {}\nregion: x", BARE_KEY),
    ('{{"api_key": "{}", "model": "x"}}', "abcdefghijk"),
    ('a row with \\"apiKey\\": \\"{}\\" in it', "a1b2c3d4"),
    ("client-secret: '{}'", "abc12345"),
    ("login: me\nPassword: {}\nhost: here", "hunter2"),
    ("connect(user='me', db_password='{}')", "correcthorse"),
    ("?user=me&password={}", "hunter2!"),
    ("ACCESS_TOKEN={}", "0a1b2c3d4e5f"),
]


@pytest.mark.parametrize(("around", "value"), NAMED, ids=lambda one: one[:24])
def test_what_stands_after_a_name_that_leaves_no_doubt_is_taken_out(around: str, value: str) -> None:
    text = around.format(value)
    assert [text[found.start : found.end] for found in find(text)] == [value]
    assert redact(text) == around.format("<redacted>")
    assert redact(redact(text)) == redact(text)
    assert starred(text) == around.format("*" * len(value))


@pytest.mark.parametrize(
    "text",
    [
        "the password: is a word",
        "The password: 12 signs or more.",
        "Is an API key: needed? Password: none",
        "password = getpass.getpass()",
        "api_key = os.environ['API_KEY_2']",
        "def login(password: str, api_key=None): ...",
        "api_key: $API_KEY_1",
        "api_key=api_key, password=self.password",
        "password=<redacted>",
        '{"api_key": "", "password": "unset"}',
        "eos_token: </s>1, pad_token=<pad2>, max_new_tokens=256",
        "tokenizer_2: passwords 123456",
    ],
)
def test_a_name_without_a_key_after_it_stays(text: str) -> None:
    assert redact(text) == text


WORDS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=14)
NAMES = st.sampled_from(["password", "the API key", "secret key", "access token", "passphrase", "api_key"])


@given(
    st.lists(WORDS, max_size=5), NAMES, st.sampled_from([": ", " is ", ", ", " ", ": a "]), st.lists(WORDS, max_size=5)
)
@settings(deadline=None)
def test_prose_about_passwords_stays(before: list[str], name: str, between: str, after: list[str]) -> None:
    text = f"{' '.join(before)} {name}{between}{' '.join(after)}."
    assert redact(text) == text


@given(st.text(st.characters(codec="utf-8"), max_size=60), st.from_regex(r"[A-Za-z0-9/+]{39}[0-9]", fullmatch=True))
@settings(deadline=None)
def test_a_key_after_its_name_is_found_in_any_text(before: str, key: str) -> None:
    assert key not in redact(f"{before}\nAWS_SECRET_ACCESS_KEY={key}\n")


def test_a_value_under_such_a_name_is_taken_out_of_json() -> None:
    found = redact_values(
        {"aws_secret_access_key": BARE_KEY, "of": {"clientSecret": "a1b2c3d4"}, "WANDB_API_KEY": "unset"}
    )
    assert found == {
        "aws_secret_access_key": "<redacted>",
        "of": {"clientSecret": "<redacted>"},
        "WANDB_API_KEY": "unset",
    }


def test_two_keys_in_one_place_are_taken_out_together() -> None:
    assert redact("password=postgres2://me:a,b1c2d3@host") == "password=<redacted>@host"


@pytest.mark.parametrize(
    "text", ["aws" * 60_000, "password:" * 20_000, "api_key=" * 20_000, "password" + "\\" * 200_000]
)
def test_a_hostile_text_is_searched_in_one_pass(text: str) -> None:
    begun = time.monotonic()
    redact(text)
    assert time.monotonic() - begun < 20
