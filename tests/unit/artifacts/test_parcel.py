"""What of an adapter's folder is sent: what is on the list and safe, under clean papers whose hashes hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from qlmm.artifacts.adapter import UNPROVEN
from qlmm.artifacts.card import card
from qlmm.artifacts.load import check_files
from qlmm.artifacts.manifest import MANIFEST, read_manifest
from qlmm.artifacts.parcel import CARD, Parcel, allowed, pack
from qlmm.core.errors import ModelError
from qlmm.training.facts import Promise
from tests.run_facts import PROOF
from tests.sharing import COMMIT, PRIVATE, contents, local_manifest, shared_adapter

KEY = "hf_" + "aB3dE5gH7j" * 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shared_adapter(tmp_path)


def packed(folder: Path, *, unproven: bool = False) -> Parcel:
    return pack(folder, "me/owl", unproven=unproven)


def sent(parcel: Parcel, parent: Path) -> Path:
    """The parcel as a folder."""
    place = parent / "sent"
    for item in parcel.items:
        (place / item.name).parent.mkdir(parents=True, exist_ok=True)
        content = item.content if isinstance(item.content, bytes) else item.content.read_bytes()
        assert item.size == len(content)
        (place / item.name).write_bytes(content)
    return place


def refused(folder: Path, *, unproven: bool = False) -> tuple[str, str]:
    with pytest.raises(ModelError) as caught:
        packed(folder, unproven=unproven)
    problem = caught.value.problems[0]
    assert problem.help
    return problem.code, problem.message


@pytest.mark.parametrize(
    ("name", "may"),
    [
        ("adapter_config.json", True),
        ("adapter_model.safetensors", True),
        (MANIFEST, True),
        (CARD, True),
        ("probe.json", True),
        ("held-out/1.png", True),
        ("held-out/answer-1.png", True),
        ("named.json", True),
        ("additional_chat_templates/named.jinja", True),
        ("unnamed.json", False),
        ("named.bin", False),
        ("named.safetensors", False),
        ("../named.json", False),
        ("/named.json", False),
        ("deep/named.json", False),
        ("held-out/../1.png", False),
        ("held-out/a/1.png", False),
        ("held-out/1.jpg", False),
        (".hidden.json", False),
        ("optimizer.pt", False),
        ("metrics.jsonl", False),
    ],
)
def test_only_the_list_is_allowed(name: str, may: bool) -> None:
    stem = ["named.json", "named.bin", "../named.json", "/named.json", "deep/named.json", ".hidden.json"]
    named = [*stem, "named.safetensors", "additional_chat_templates/named.jinja", "optimizer.pt", "metrics.jsonl"]
    assert allowed(name, local_manifest(files=dict.fromkeys(named, "0"))) is may


def test_the_folder_is_sent_clean_and_stays_as_it_is(folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text("mine", "utf-8")
    before = contents(folder)
    parcel = packed(folder)
    assert parcel.left == ("notes.txt",)
    place = sent(parcel, tmp_path)
    there = contents(place)
    assert set(there) == set(before) - {"notes.txt"}
    assert not [name for name, content in there.items() if PRIVATE.encode() in content]
    assert any(PRIVATE.encode() in content for content in before.values())
    check_files(place, read_manifest(place))
    assert contents(folder) == before
    assert json.loads(there["adapter_config.json"])["revision"] == COMMIT
    assert read_manifest(place).base == read_manifest(folder).base
    assert {one.before for one in parcel.replaced} == {f"{PRIVATE}/rows.jsonl", f"{PRIVATE}/run"}
    assert not parcel.local_base


def test_a_key_in_the_recipe_is_taken_out(tmp_path: Path) -> None:
    made = local_manifest()
    extra = made.recipe.training.model_copy(update={"extra": {"run_name": KEY}})
    folder = shared_adapter(tmp_path)
    own = read_manifest(folder)
    recipe = own.recipe.model_copy(update={"training": extra})
    (folder / MANIFEST).write_text(own.model_copy(update={"recipe": recipe}).model_dump_json(), "utf-8")
    parcel = packed(folder)
    assert not [name for name, content in contents(sent(parcel, tmp_path)).items() if KEY.encode() in content]
    assert ("qlmm.json recipe.training.extra.run_name", "Hugging Face token") in [
        (one.where, one.before) for one in parcel.replaced
    ]
    assert KEY not in str(parcel.replaced)


def test_a_base_of_this_machine_is_told(tmp_path: Path) -> None:
    folder = shared_adapter(tmp_path)
    manifest = read_manifest(folder)
    part = manifest.base["parts"]["model"] | {"id": "models/mine", "revision": None}
    changed = manifest.model_copy(update={"base": {"kind": "native", "parts": {"model": part}}})
    (folder / MANIFEST).write_text(changed.model_dump_json(), "utf-8")
    assert packed(folder).local_base


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("training_args.bin", b"x", "training_args.bin is a pickle by its name"),
        ("deep/optimizer.PT", b"x", "deep/optimizer.PT is a pickle by its name"),
        (".env", b"x", ".env looks like a file of access keys"),
        ("server.pem", b"x", "server.pem looks like a file of access keys"),
        ("token", b"x", "token looks like a file of access keys"),
        ("held-out/2.png", b"\x80\x04x", "held-out/2.png is a pickle or an archive by its content"),
        ("held-out/2.png", b"JFIF", "held-out/2.png is no PNG picture"),
        (CARD, b"\xff\xfe", "README.md is not text in UTF-8"),
        (CARD, f"my key is {KEY}".encode(), "README.md seems to hold a Hugging Face token"),
    ],
)
def test_what_must_not_be_sent_stops_everything(folder: Path, name: str, content: bytes, why: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    code, message = refused(folder)
    assert code == "H011"
    assert message.startswith(why)
    assert KEY not in message


def test_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "private").write_text("x", "utf-8")
    (folder / "held-out" / "9.png").symlink_to(tmp_path / "private")
    assert refused(folder) == ("H011", "held-out/9.png is a link, and what it leads to may be anything")


def test_weights_must_be_safetensors(folder: Path) -> None:
    weights, manifest = folder / "adapter_model.safetensors", read_manifest(folder)
    weights.write_bytes(b"no such thing")
    (folder / MANIFEST).write_text(manifest.model_copy(update={"files": {}}).model_dump_json(), "utf-8")
    assert refused(folder) == ("H011", "adapter_model.safetensors is no safetensors file")


def test_a_folder_that_is_not_as_it_was_written_is_not_sent(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("other", "utf-8")
    assert refused(folder)[0] == "A003"
    assert refused(folder.parent)[0] == "A001"


def test_only_what_is_proven_is_sent_unless_asked(tmp_path: Path) -> None:
    broken = replace(PROOF, promises=(Promise("connector was trained", False, "0 of 4 tensors moved"),))
    for number, folder in enumerate(
        [
            shared_adapter(tmp_path, broken),
            shared_adapter(tmp_path, replace(PROOF, promises=()), "none"),
            shared_adapter(tmp_path, name=UNPROVEN),
        ]
    ):
        code, message = refused(folder)
        assert code == "H010"
        assert ("0 of 4 tensors moved" in message) is (number == 0)
        parcel = packed(folder, unproven=True)
        assert not parcel.proven
        assert parcel.card.count("**Unproven.**") == 1
    assert packed(shared_adapter(tmp_path, name="good")).proven


def test_without_a_proof_at_all_the_card_says_so(folder: Path) -> None:
    manifest = read_manifest(folder).model_copy(update={"proof": None})
    (folder / MANIFEST).write_text(manifest.model_dump_json(), "utf-8")
    (folder / CARD).unlink()
    assert refused(folder)[0] == "H010"
    assert "**Unproven.**" in packed(folder, unproven=True).card


def test_the_card_that_is_missing_is_made_anew(folder: Path) -> None:
    (folder / CARD).unlink()
    text = packed(folder).card
    assert 'PeftModel.from_pretrained(base, "me/owl")' in text
    assert PRIVATE not in text


def test_words_of_the_owner_stay(folder: Path) -> None:
    text = card(read_manifest(folder), PROOF).replace("library_name: peft\n", "library_name: peft\nlicense: mit\n")
    (folder / CARD).write_text(f"{text}\n## Limits\n\nOnly owls.\n", "utf-8")
    parcel = packed(folder).licensed({"some/llava": "apache-2.0"})
    assert "\nlicense: mit\n" in parcel.card
    assert parcel.card.endswith("\n## Limits\n\nOnly owls.\n")
    assert f"| {COMMIT} | apache-2.0 |" in parcel.card


def test_a_card_whose_head_is_broken_is_refused(folder: Path) -> None:
    (folder / CARD).write_text("---\na: [\n---\n", "utf-8")
    assert refused(folder)[0] == "H015"
