"""Tokens and images in a meta file, there and back."""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from mask_impact.results.table_files import clean_text
from mask_impact.results.tokens import ImageRecord, Moment, TokenTable


def image_entry(image: ImageRecord) -> dict[str, Any]:
    """An image as JSON; its preview in base64; its region where it is a part of an image."""
    entry = asdict(image) | {"preview": base64.b64encode(image.preview).decode()}
    region = entry.pop("region")
    del entry["moment"]
    if region is not None:
        entry["region"] = [round(edge, 2) for edge in region]
    if image.moment is not None:
        entry |= _moment_entry(image.moment) | {"seconds": list(image.moment.seconds)}
    return entry


def _moment_entry(moment: Moment) -> dict[str, Any]:
    return {"video": moment.video, "frames": list(moment.frames), "time_s": round(moment.time_s, 3)}


def token_entries(tokens: TokenTable, images: Sequence[ImageRecord] | None = None) -> Iterator[dict[str, Any]]:
    """A dictionary for each position; image, row, column and box (left, top, right, bottom in pixels of the original image)
    are null where the token is not part of an image; without images there is no box. A video's tokens have video, frames (the
    first and the last of the pair) and time_s, too."""
    cells = zip(tokens.image.tolist(), tokens.row.tolist(), tokens.column.tolist(), strict=True)
    for position, (token_id, text, kind, cell) in enumerate(
        zip(tokens.ids.tolist(), tokens.texts, tokens.kinds, cells, strict=True)
    ):
        image, row, column = (None if number < 0 else number for number in cell)
        entry = {
            "position": position,
            "id": token_id,
            "text": clean_text(text),
            "kind": kind,
            "image": image,
            "row": row,
            "column": column,
        }
        if images is not None:
            box = None if image is None else images[image].in_original(images[image].box(row, column))
            entry["box"] = box and [round(edge, 2) for edge in box]
            if image is not None and (moment := images[image].moment) is not None:
                entry |= _moment_entry(moment)
        yield entry


def image_from(entry: dict[str, Any]) -> ImageRecord:
    """The image of an entry."""
    moment = None
    if entry.get("video") is not None:
        moment = Moment(entry["video"], tuple(entry["frames"]), tuple(entry["seconds"]))
    pairs = {name: tuple(entry[name]) for name in ("size", "resized", "grid")}
    region = entry.get("region")
    return ImageRecord(
        source=entry["source"],
        **pairs,
        preview=base64.b64decode(entry["preview"]),
        region=region and tuple(region),
        moment=moment,
    )


def tokens_from(entries: list[dict[str, Any]]) -> TokenTable:
    """The tokens of entries, in their order."""

    def cells(name: str) -> np.ndarray:
        return np.array([-1 if entry[name] is None else entry[name] for entry in entries], dtype=np.int32)

    return TokenTable(
        ids=np.array([entry["id"] for entry in entries], dtype=np.int64),
        texts=tuple(entry["text"] for entry in entries),
        kinds=tuple(entry["kind"] for entry in entries),
        image=cells("image"),
        row=cells("row"),
        column=cells("column"),
    )
