"""The emoji pictures: split by concept, in three kinds of rows."""

from __future__ import annotations

import hashlib
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qlmm.builtin.assets import emoji
from qlmm.core.naming import load
from qlmm.data.contract import Format
from qlmm.data.media.media_root import ImageRoot
from tests.packages import tarball_bytes

GROUPED = json.dumps(
    {"subgroups": {"36": "animal-mammal", "42": "food-fruit", "57": "place-other", "65": "tool"}}
).encode()
NAMED: list[dict[str, Any]] = [
    {"hexcode": "1F34E", "label": "red apple", "group": 4, "subgroup": 42},
    {"hexcode": "1F6E0-FE0F", "label": "hammer and wrench", "group": 7, "subgroup": 65},
    {"hexcode": "1F600", "label": "grinning face", "group": 0},
    {"hexcode": "1F1E6", "label": "regional indicator A"},
    {"hexcode": "1F408", "label": "cat", "group": 3, "subgroup": 36},
    {"hexcode": "1F431", "label": "cat face", "group": 3, "subgroup": 36},
    {"hexcode": "1F47F", "label": "has no picture", "group": 5, "subgroup": 57},
    *({"hexcode": f"1F5{n:02X}", "label": f"thing number {n}", "group": 7, "subgroup": 65} for n in range(60)),
]


def drawn(name: str) -> bytes:
    """A picture of one colour, which its name decides."""
    stream = BytesIO()
    colour = hashlib.sha256(name.encode()).digest()[:3]
    Image.new("RGBA", (16, 16), (*colour, 255)).save(stream, "WEBP", lossless=True)
    return stream.getvalue()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    into, source = tmp_path_factory.mktemp("emoji"), tmp_path_factory.mktemp("packages")
    have = [str(entry["hexcode"]).lower() for entry in NAMED if entry["label"] != "has no picture"]
    have[1] = "1f6e0"
    (source / "names.tgz").write_bytes(
        tarball_bytes({"package/en/data.json": json.dumps(NAMED).encode(), "package/meta/groups.json": GROUPED})
    )
    (source / "pictures.tgz").write_bytes(
        tarball_bytes({f"package/assets/{name}.webp": drawn(name) for name in have} | {"package/../x.webp": b"no"})
    )
    emoji.build({emoji.NAMES.name: source / "names.tgz", emoji.PICTURES.name: source / "pictures.tgz"}, into)
    return into


def labels(file: Path) -> list[str]:
    return [json.loads(line)["messages"][1]["content"] for line in file.read_text("utf-8").splitlines()]


def test_no_concept_stands_on_both_sides(pictures: Path) -> None:
    train, held = labels(pictures / "train.jsonl"), labels(pictures / "heldout.jsonl")
    assert not {emoji.concept(label) for label in train} & {emoji.concept(label) for label in held}
    assert 0.08 < len(held) / (len(held) + len(train)) < 0.35
    assert {"cat", "cat face"} <= set(train) or {"cat", "cat face"} <= set(held)


@pytest.mark.parametrize(
    ("variants", "same"),
    [
        (("man biking", "woman biking", "person biking", "person biking: medium-dark skin tone"), True),
        (("cat", "cat face"), True),
        (("bus", "oncoming bus"), True),
        (("red apple", "green apple"), False),
        (("man’s shoe", "running shoe"), False),
    ],
)
def test_variants_share_a_concept(variants: tuple[str, ...], same: bool) -> None:
    assert (len({emoji.concept(label) for label in variants}) == 1) == same


def test_rows_are_pictures_of_the_wanted_groups_in_the_messages_format(pictures: Path) -> None:
    found = labels(pictures / "train.jsonl") + labels(pictures / "heldout.jsonl")
    assert sorted(found) == sorted(
        str(entry["label"]) for entry in NAMED if entry.get("group", 0) >= 3 and entry["label"] != "has no picture"
    )
    form = load("qlmm.data.formats", "messages", "FORMAT", Format)
    root = ImageRoot(pictures)
    for line in (pictures / "train.jsonl").read_text("utf-8").splitlines():
        turns = form.read(json.loads(line), root)
        assert [turn.role for turn in turns] == ["user", "assistant"]
        picture, question = turns[0].parts
        assert question == emoji.QUESTION
        assert picture.path.read_bytes() == drawn(picture.path.stem)
    assert (pictures / "images" / "1f6e0.webp").is_file()


def test_kinds_are_asked_for_the_same_pictures_on_the_same_sides(pictures: Path) -> None:
    for side in ("train", "heldout"):
        named = [json.loads(line) for line in (pictures / f"{side}.jsonl").read_text("utf-8").splitlines()]
        sorted_out = [json.loads(line) for line in (pictures / f"kinds-{side}.jsonl").read_text("utf-8").splitlines()]
        assert [row["images"] for row in named] == [row["images"] for row in sorted_out]
    kinds = set(labels(pictures / "kinds-train.jsonl") + labels(pictures / "kinds-heldout.jsonl"))
    assert kinds == {"animal", "food", "object"}


def test_a_pair_is_a_kind_against_that_of_the_look_alike(pictures: Path) -> None:
    rows = [json.loads(line) for line in (pictures / "pairs-train.jsonl").read_text("utf-8").splitlines()]
    kinds = [json.loads(line) for line in (pictures / "kinds-train.jsonl").read_text("utf-8").splitlines()]
    right = {row["images"][0]: row["messages"][1]["content"] for row in kinds}
    assert rows
    assert all(row["chosen"][0]["content"] == right[row["images"][0]] != row["rejected"][0]["content"] for row in rows)


def test_the_look_alike_is_the_nearest_picture_of_another_kind() -> None:
    def of(colour: tuple[int, int, int]) -> bytes:
        stream = BytesIO()
        Image.new("RGB", (9, 9), colour).save(stream, "PNG")
        return stream.getvalue()

    members = [
        ("food", of((250, 0, 0))),
        ("food", of((245, 0, 0))),
        ("tool", of((200, 0, 0))),
        ("cat", of((0, 0, 250))),
    ]
    assert emoji.look_alikes(members) == ["tool", "tool", "food", "tool"]


@pytest.mark.parametrize(
    ("subgroup", "kind"),
    [("animal-mammal", "animal"), ("transport-air", "vehicle"), ("time", "clock"), ("light-video", "object")],
)
def test_a_kind_is_read_off_the_subgroup(subgroup: str, kind: str) -> None:
    assert emoji.kind(subgroup) == kind
