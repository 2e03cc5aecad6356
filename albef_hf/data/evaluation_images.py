"""The pictures that rows name and the captions of each, for the evaluation of retrieval."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from ..utils.progress import progress
from .pairs import BadSampleError, load_image, usable_captions


def picture_of(row: Mapping[str, Any]) -> str | int | None:
    """What rows of the same picture share: its `image_id` or its path; None for a row that embeds its picture."""
    image = row.get("image_id", row.get("image"))
    if isinstance(image, float) and image.is_integer():  # as pandas makes of integers, where some are absent
        return int(image)
    return image if isinstance(image, (str, int)) else None


def pictures_of(rows: Sequence[Mapping[str, Any]]) -> list[str | int | None]:
    """What `picture_of` says of each row, without reading more than that; None where a row would have to be drawn."""
    if isinstance(rows, list):
        return [picture_of(row) for row in rows]
    features = getattr(rows, "features", None) or {}  # of a `datasets.Dataset`
    kinds = {name: getattr(features.get(name), "dtype", "") for name in ("image_id", "image")}
    names = [name for name, kind in kinds.items() if re.fullmatch(r"u?int\d+|float\d+|(large_)?string", kind)]
    return [picture_of(row) for row in rows.select_columns(names[:1])] if names else [None] * len(rows)


def without_pictures(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The rows, of a dataset without their pictures, which it would read for nothing; to learn what is beside them."""
    pictures = {"image", "images", "left_image", "right_image"} & {*(getattr(rows, "features", None) or {})}
    return rows.remove_columns(sorted(pictures)) if pictures else rows


class Pictures(Sequence):
    """Pictures, each read when it is asked for; rows that name the same one are one picture with several captions.

    Every picture is read once in advance, so that broken ones are left out before anything is ranked.

    Args:
        rows: With `image` and a caption, a text or a list of texts; a stream is read once and kept.
        image_root: Folder that paths are relative to.
        caption_column: Name of the captions.
        most: Number of pictures at most.

    Attributes:
        captions: Those of each picture.
        bad_rows: Numbers of the rows left out, and what is wrong with them.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        image_root: str | None = None,
        caption_column: str = "caption",
        most: int | None = None,
    ):
        self.image_root = image_root
        stored = hasattr(rows, "__len__")
        self.rows = rows if stored else []
        self.captions: list[list[str]] = []
        self.bad_rows: dict[int, BadSampleError] = {}
        self.numbers: list[int] = []  # of the row that each picture is read from
        position: dict[Any, int] = {}
        for number, row in enumerate(progress(range(len(rows)) if stored else rows, "read pictures", leave=False)):
            try:
                row = rows[number] if stored else row
                named = picture_of(row)
                picture = ("row", number) if named is None else named
                if len(self.numbers) == most and picture not in position:
                    break
                if not stored:
                    self.rows.append(row)
                texts = usable_captions(row[caption_column])
                if picture not in position:
                    load_image(row["image"], image_root)
                    position[picture] = len(self.numbers)
                    self.numbers.append(number)
                    self.captions.append([])
                self.captions[position[picture]] += texts
            except BadSampleError as error:
                self.bad_rows[number] = error

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Image.Image:
        return load_image(self.rows[self.numbers[index]]["image"], self.image_root)
