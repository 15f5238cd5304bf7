"""Shaded emoji pictures with their English names: 732 animals, foods, places, activities and objects.

About one concept in five is held out. A hash of its name decides, so that the split never changes. All variants of one
emoji (man, woman, person; skin tones; cat and cat face) are one concept.

Usage: ``data.sources: [{path: "builtin:emoji"}]`` in a recipe, ``builtin:emoji-heldout`` for evaluation
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qlmm.builtin.downloads import Tarball, read_tarball
from qlmm.builtin.registry import Packaged

__all__ = ["PACKAGED", "concept", "held_out", "kind", "look_alikes", "rows"]

PICTURES = Tarball(
    "@lobehub/fluent-emoji-3d", "1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"
)
NAMES = Tarball("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a")

QUESTION = "What is this?"
KIND_QUESTION = "What kind of thing is this?"
# The beginning of an Emojibase subgroup (animal-mammal, transport-air, …) to a word of one token; the first that fits.
KINDS = {
    "animal": "animal",
    "plant": "plant",
    "food": "food",
    "drink": "drink",
    "place": "place",
    "hotel": "place",
    "transport": "vehicle",
    "time": "clock",
    "sky": "weather",
    "clothing": "clothing",
    "event": "activity",
    "award": "activity",
    "sport": "activity",
    "game": "activity",
    "arts": "activity",
}
OTHER_KIND = "object"
LISTED, GROUPED = "package/en/data.json", "package/meta/groups.json"
# Emojibase's groups: 3 animals and nature, 4 food and drink, 5 travel and places, 6 activities, 7 objects.
GROUPS = range(3, 8)
ONE_IN = 5
# Words that make a variant of an emoji, not another thing: who does it, in which skin tone, seen from where.
_VARIANT = re.compile(r"\b(man|men|woman|women|person|people)(['’]s)?\b|:.*skin tone.*|\b(face|oncoming)\b")


def concept(label: str) -> str:
    """What a name stands for once its variant is left out: ``woman biking`` -> ``biking``, ``cat face`` -> ``cat``."""
    return " ".join(_VARIANT.sub(" ", label.lower()).split()) or label.lower()


def held_out(label: str) -> bool:
    """Whether a name's concept belongs to the held-out side."""
    return _hash(concept(label)) % ONE_IN == 0


def _hash(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)


def kind(subgroup: str) -> str:
    """The kind of thing an emoji of a subgroup shows, in one word: ``animal-mammal`` -> ``animal``."""
    return KINDS.get(subgroup.partition("-")[0], OTHER_KIND)


def rows(
    names: list[dict[str, Any]], subgroups: Mapping[str, str], pictures: set[str]
) -> Iterator[tuple[str, str, str]]:
    """Label, kind and picture name of every emoji of the groups that has a picture.

    Args:
        names: Emojibase's list.
        subgroups: Emojibase's names of subgroups, by number.
        pictures: file names without extension; some lack the variation selector.
    """
    for entry in names:
        code = str(entry["hexcode"]).lower()
        for candidate in (code, code.replace("-fe0f", "")):
            if entry.get("group") in GROUPS and candidate in pictures:
                yield str(entry["label"]), kind(subgroups[str(entry["subgroup"])]), candidate
                break


def build(fetched: Mapping[str, Path], into: Path) -> None:
    """Write the pictures as they were packaged; rows with names and with kinds; pairs of a right and a wrong kind."""
    listed = dict(read_tarball(fetched[NAMES.name], lambda name: name in (LISTED, GROUPED)))
    names: list[dict[str, Any]] = json.loads(listed[LISTED])
    subgroups: dict[str, str] = json.loads(listed[GROUPED])["subgroups"]
    pictures = {
        Path(name).stem: content
        for name, content in read_tarball(
            fetched[PICTURES.name], lambda name: bool(re.fullmatch(r"package/assets/[0-9a-f-]+\.webp", name))
        )
    }
    (into / "images").mkdir()
    sides: dict[str, list[tuple[str, str, str]]] = {"train": [], "heldout": []}
    # In the order of a hash, so that the first so many rows are a fair sample of all groups.
    for row in sorted(rows(names, subgroups, set(pictures)), key=lambda row: _hash(row[0])):
        (into / "images" / f"{row[2]}.webp").write_bytes(pictures[row[2]])
        sides["heldout" if held_out(row[0]) else "train"].append(row)
    for side, members in sides.items():
        rivals = look_alikes([(sort, pictures[picture]) for _, sort, picture in members])
        pairs = [(sort, rival, picture) for (_, sort, picture), rival in zip(members, rivals, strict=True)]
        files = {
            "": [_row(picture, messages=[_asked(QUESTION), _said(label)]) for label, _, picture in members],
            "kinds-": [_row(picture, messages=[_asked(KIND_QUESTION), _said(sort)]) for _, sort, picture in members],
            "pairs-": [
                _row(picture, prompt=[_asked(KIND_QUESTION)], chosen=[_said(sort)], rejected=[_said(rival)])
                for sort, rival, picture in pairs
                if rival != sort
            ],
        }
        for name, lines in files.items():
            (into / f"{name}{side}.jsonl").write_text("".join(lines), encoding="utf-8")


def look_alikes(members: Sequence[tuple[str, bytes]]) -> list[str]:
    """For each picture (kind, file) the kind of the most similar one of another kind, by colours at 8 x 8 pixels."""
    small = np.stack([_thumbnail(content) for _, content in members])
    kinds = np.array([sort for sort, _ in members])
    found = []
    for number, own in enumerate(small):
        far = np.where(kinds == kinds[number], np.inf, np.square(small - own).sum(axis=1))
        found.append(str(kinds[int(far.argmin())]))
    return found


def _thumbnail(content: bytes) -> NDArray[np.float64]:
    with Image.open(BytesIO(content)) as picture:
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture.convert("RGBA"))
    return np.asarray(white.convert("RGB").resize((8, 8), Image.Resampling.BOX), dtype=np.float64).reshape(-1)


def _asked(question: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}


def _said(answer: str) -> dict[str, str]:
    return {"role": "assistant", "content": answer}


def _row(picture: str, **turns: list[Mapping[str, Any]]) -> str:
    return json.dumps({**turns, "images": [f"images/{picture}.webp"]}, ensure_ascii=False) + "\n"


PACKAGED = Packaged(
    folder="emoji-1.1.0-17.0.0-r3",
    entries={
        "emoji": "train.jsonl",
        "emoji-heldout": "heldout.jsonl",
        # Rows that ask what kind of thing the picture shows, in one of eleven words.
        "emoji-kinds": "kinds-train.jsonl",
        "emoji-kinds-heldout": "kinds-heldout.jsonl",
        # Pairs: that kind, preferred to the kind of the most similar picture of another kind.
        "emoji-pairs": "pairs-train.jsonl",
        "emoji-pairs-heldout": "pairs-heldout.jsonl",
    },
    packages=(PICTURES, NAMES),
    build=build,
    notice="""Pictures: Fluent Emoji by Microsoft, MIT licence.
They were packaged as @lobehub/fluent-emoji-3d 1.1.0 by LobeHub, MIT licence.
Names: emojibase-data 17.0.0 by Miles Johnson, MIT licence; the names themselves come from Unicode CLDR.
Changed: a selection (animals and nature, food and drink, travel and places, activities, objects), split by concept.
""",
)
