"""COCO's captions: a file of one object, whose ``images`` and ``annotations`` are joined by the picture's id.

Facts: cocodataset.org, "Data format". A picture has five captions there, and each is a row.

Usage: ``FORMAT.read(row, ImageRoot("train2017"))``
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qlmm.data.contract import Format, RawRow, present
from qlmm.data.errors import BadRow
from qlmm.data.formats import caption

__all__ = ["FORMAT"]


def _rows(value: RawRow) -> Iterator[RawRow | BadRow] | None:
    """A row for each annotation; None for an object that is not in this layout."""
    pictures, annotations = value.get("images"), value.get("annotations")
    if not isinstance(pictures, list) or not isinstance(annotations, list):
        return None
    names = {str(one.get("id")): one.get("file_name") for one in pictures if isinstance(one, Mapping)}
    return (_row(annotation, names) for annotation in annotations)


def _row(annotation: object, names: Mapping[str, object]) -> RawRow | BadRow:
    if not isinstance(annotation, Mapping) or "caption" not in annotation:
        return BadRow("an annotation without a `caption`", "of COCO's files, those called captions_… have captions")
    identity = annotation.get("image_id")
    if names.get(str(identity)) is None:
        return BadRow(f"no picture has the annotation's image_id {identity}")
    return {"file_name": names[str(identity)], "image_id": identity, "caption": annotation["caption"]}


FORMAT = Format(
    doc="COCO's captions file: {images: [{id, file_name}], annotations: [{image_id, caption}]}.",
    example={"file_name": "cat.jpg", "image_id": 1, "caption": "A cat."},
    required=("file_name", "image_id", "caption"),
    detect=lambda row: present(row, "file_name") and present(row, "image_id") and present(row, "caption"),
    parse=caption.FORMAT.parse,
    # The picture's id makes it more than a caption.
    precedence=1,
    media=("file_name",),
    rows=_rows,
)
