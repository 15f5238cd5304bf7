"""What of an adapter's folder is sent: what is on the list and safe, under clean papers whose hashes hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlmm.artifacts.adapter.allowed_files import allowed
from qlmm.artifacts.adapter.folder import file_hashes
from qlmm.artifacts.adapter.load import check_files
from qlmm.artifacts.adapter.manifest import read_manifest, write_manifest
from qlmm.artifacts.cards.adapter_card import card, public_ids
from qlmm.artifacts.hub.package import Package, pack
from qlmm.core.errors import ModelError
from qlmm.core.filenames import CARD, LOCAL_RECIPE, MANIFEST, UNPROVEN
from qlmm.proof.records import Promise
from qlmm.recipe.schema import Source
from tests.run_facts import PROOF
from tests.sharing import COMMIT, PRIVATE, contents, local_manifest, shared_adapter
from tests.unit.artifacts.adapters import learned

KEY = "hf_" + "aB3dE5gH7j" * 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shared_adapter(tmp_path)


def packed(folder: Path, *, unproven: bool = False) -> Package:
    return pack(folder, "me/owl", unproven=unproven)


def rewritten(folder: Path, **changes: Any) -> None:
    """The folder's manifest with other facts, and the hashes of what lies there now."""
    hashes = file_hashes(folder)
    write_manifest(folder, read_manifest(folder).model_copy(update={"files": hashes} | changes))


def sent(parcel: Package, parent: Path) -> Path:
    """The parcel as a folder."""
    place = parent / "sent"
    for name, given in parcel.files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        content = given if isinstance(given, bytes) else given.read_bytes()
        assert parcel.sizes[name] == len(content)
        (place / name).write_bytes(content)
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
        ("held-out/2.png", False),
        ("held-out/answer-1.png", True),
        ("named.json", True),
        ("additional_chat_templates/named.jinja", True),
        ("unnamed.json", False),
        ("named.bin", False),
        ("named.safetensors", False),
        ("qformer_tokenizer/named.json", True),
        ("qformer_tokenizer/named.bin", False),
        ("deep/deeper/named.json", False),
        (".hidden/named.json", False),
        ("held-out/a/1.png", False),
        ("held-out/1.jpg", False),
        (".hidden.json", False),
        ("optimizer.pt", False),
        ("metrics.jsonl", False),
    ],
)
def test_only_the_list_is_allowed(name: str, may: bool) -> None:
    unnamed = {"unnamed.json", "held-out/2.png", MANIFEST, CARD}
    files = {"named.json": "0"} if name in unnamed else {name: "0"}
    assert allowed(name, local_manifest(files=files)) is may


def test_the_folder_is_sent_clean_and_stays_as_it_is(folder: Path, tmp_path: Path) -> None:
    (folder / "notes.txt").write_text("mine", "utf-8")
    before = contents(folder)
    parcel = packed(folder)
    assert parcel.left == ("notes.txt",)
    place = sent(parcel, tmp_path)
    there = contents(place)
    assert set(there) == set(before) - {"notes.txt", LOCAL_RECIPE}
    assert not [name for name, content in there.items() if PRIVATE.encode() in content]
    assert PRIVATE.encode() in before[LOCAL_RECIPE]
    check_files(place, read_manifest(place))
    assert contents(folder) == before
    assert json.loads(there["adapter_config.json"])["revision"] == COMMIT
    assert read_manifest(place).base == read_manifest(folder).base
    assert not parcel.local_base


def test_a_base_of_this_machine_is_told(tmp_path: Path) -> None:
    folder = shared_adapter(tmp_path)
    manifest = read_manifest(folder)
    part = manifest.base.parts["model"].model_copy(update={"id": "models/mine", "revision": None})
    base = manifest.base.model_copy(update={"parts": {"model": part}})
    write_manifest(folder, manifest.model_copy(update={"base": base}))
    assert packed(folder).local_base


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("training_args.bin", b"x", "training_args.bin is a pickle by its name"),
        ("deep/optimizer.PT", b"x", "deep/optimizer.PT is a pickle by its name"),
        (".env", b"x", ".env looks like a file of access keys"),
        ("server.pem", b"x", "server.pem looks like a file of access keys"),
        ("token", b"x", "token looks like a file of access keys"),
        ("held-out/answer-2.png", b"\x80\x04x", "held-out/answer-2.png is a pickle by its content"),
        ("held-out/answer-2.png", b"JFIF", "held-out/answer-2.png is not a PNG picture"),
        ("adapter_model.safetensors", b"no such thing", "adapter_model.safetensors is not a safetensors file"),
        ("adapter_model.safetensors", b"\2\0\0\0\0\0\0\0{}x", "adapter_model.safetensors is not a safetensors file"),
        (CARD, b"\xff\xfe", "README.md is not text in UTF-8"),
        (CARD, f"my key is {KEY}".encode(), "README.md seems to contain a Hugging Face token"),
    ],
)
def test_what_must_not_be_sent_stops_everything(folder: Path, name: str, content: bytes, why: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    if name in read_manifest(folder).files:
        rewritten(folder)
    code, message = refused(folder)
    assert code == "H011"
    assert message.startswith(why)
    assert KEY not in message


def test_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "private").write_text("x", "utf-8")
    (folder / "held-out" / "9.png").symlink_to(tmp_path / "private")
    assert refused(folder) == ("H011", "held-out/9.png is a link, and what it leads to may be anything")


def test_weights_may_begin_as_a_pickle_would(folder: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(128)
    content = len(header).to_bytes(8, "little") + header + bytes(4)
    assert content[0] == 0x80
    (folder / "adapter_model.safetensors").write_bytes(content)
    rewritten(folder)
    assert "adapter_model.safetensors" in packed(folder).files


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "probe.json"])
def test_a_file_without_a_hash_is_as_good_as_changed(folder: Path, name: str) -> None:
    files = {one: digest for one, digest in read_manifest(folder).files.items() if one != name}
    rewritten(folder, files=files)
    code, message = refused(folder)
    assert code == "A003"
    assert message.endswith(f"{MANIFEST} has no hash of {name}")


def test_a_second_tokenizer_goes_with_its_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "qformer_tokenizer").mkdir()
    (folder / "qformer_tokenizer" / "tokenizer.json").write_text(json.dumps({"vocab": {KEY: 1}}), "utf-8")
    rewritten(folder)
    parcel = packed(folder)
    assert parcel.left == ()
    place = sent(parcel, tmp_path)
    check_files(place, read_manifest(place))


def test_an_adapter_that_would_arrive_incomplete_is_not_sent(folder: Path) -> None:
    (folder / "prompts.parquet").write_bytes(b"x")
    rewritten(folder)
    assert refused(folder) == ("H011", f"{MANIFEST} names prompts.parquet, which is not a kind of file to share")


def test_a_picture_that_nobody_named_stays_here(folder: Path) -> None:
    (folder / "held-out" / "family.png").write_bytes((folder / "held-out" / "answer-1.png").read_bytes())
    parcel = packed(folder)
    assert parcel.left == ("held-out/family.png",)
    assert "held-out/family.png" not in parcel.files


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (CARD, "trained on x:/home/somebody"),
        ("chat_template.jinja", "{# C:\\Users\\somebody\\x #}"),
        ("adapter_config.json", '{"revision": "made by:/home/somebody"}'),
        ("adapter_config.json", '{"base_model_name_or_path": "/srv/private/somebody"}'),
        (MANIFEST, "/Users/somebody/x"),
    ],
)
def test_a_path_of_this_machine_stops_everything(folder: Path, name: str, text: str) -> None:
    if name == MANIFEST:
        manifest = read_manifest(folder, local=False)
        (folder / name).write_text(manifest.model_copy(update={"frozen_sha256": text}).model_dump_json(), "utf-8")
    else:
        (folder / name).write_text(text, "utf-8")
        rewritten(folder)
    code, message = refused(folder)
    assert code == "H011"
    assert message.startswith(f"{name} names ")
    assert "somebody" in message
    assert message.endswith("of this machine")


def test_words_of_a_row_may_look_like_a_path(folder: Path) -> None:
    (folder / "probe.json").write_text(json.dumps({"rows": ["What is in /home/somebody?", "/etc/init.d/x"]}), "utf-8")
    rewritten(folder)
    assert packed(folder).files["probe.json"] == (folder / "probe.json").read_bytes()


@pytest.mark.parametrize("path", ["/Users/me/data/squad", "data/rows"])
def test_rows_of_this_machine_are_never_taken_for_a_public_data_set(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A relative folder is there where the run started, and not where it is pushed from."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "rows").mkdir(parents=True)
    source = Source(path=path)
    recipe = read_manifest(folder).recipe
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"sources": (source,)})})
    rewritten(folder, recipe=recipe, data=learned(path, kept=3))
    (folder / CARD).write_text(card(read_manifest(folder), PROOF), "utf-8")
    monkeypatch.chdir("/")
    for _ in range(2):
        parcel = packed(folder)
        assert public_ids(parcel.manifest)[1] == []
        assert "huggingface.co/datasets" not in parcel.card
        short = f"./{'squad' if path[0] == '/' else path}"
        assert parcel.manifest.data.sources[0].path == parcel.manifest.recipe.data.sources[0].path == short
        # What was pulled is pushed again, somewhere else.
        folder = sent(parcel, tmp_path)


def test_a_data_set_of_the_hub_stays_one(folder: Path) -> None:
    rewritten(folder, data=learned("some/rows@v1", kept=3))
    for text in (card(read_manifest(folder), PROOF), "words of my own"):
        (folder / CARD).write_text(text, "utf-8")
        assert public_ids(packed(folder).manifest)[1] == ["some/rows"]


def test_a_proof_that_cannot_be_read_is_no_proof(folder: Path) -> None:
    raw = json.loads((folder / MANIFEST).read_text("utf-8"))
    (folder / MANIFEST).write_text(json.dumps(raw | {"proof": {"x": 1}}), "utf-8")
    assert refused(folder) == ("A002", f"{folder / MANIFEST} is damaged: proof.parts: Field required")


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
    write_manifest(folder, manifest)
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
