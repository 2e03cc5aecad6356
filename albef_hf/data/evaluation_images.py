"""The images of a retrieval evaluation, each with its captions."""

import re
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any, cast

from PIL import Image

from ..utils.progress import progress
from .captions import valid_captions
from .images import load_image
from .row_errors import InvalidSampleError
from .row_values import IMAGE_COLUMNS


def image_id(row: Mapping[str, Any]) -> str | int | None:
    """Return `image_id` or the path, which rows with the same image share; None if the row contains the image."""
    value = row.get("image_id", row.get("image"))
    if isinstance(value, float) and value.is_integer():  # pandas converts integers with missing values to floats
        return int(value)
    return value if isinstance(value, (str, int)) else None


def image_ids(rows: Sequence[Mapping[str, Any]]) -> list[str | int | None]:
    """Return the `image_id` of each row, without decoding images; None for rows that would have to be computed."""
    if isinstance(rows, list):
        return [image_id(row) for row in rows]
    features = getattr(rows, "features", None) or {}  # of a `datasets.Dataset`
    types = {name: getattr(features.get(name), "dtype", "") for name in ("image_id", "image")}
    names = [name for name, kind in types.items() if re.fullmatch(r"u?int\d+|float\d+|(large_)?string", kind)]
    if not names:
        return [None] * len(rows)
    return [image_id(row) for row in rows.select_columns(names[:1])]  # type: ignore[attr-defined]


def drop_image_columns(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return a dataset without its images, which it would decode for nothing; other rows are returned as they are."""
    columns = {*IMAGE_COLUMNS} & {*(getattr(rows, "features", None) or {})}
    return rows.remove_columns(sorted(columns)) if columns else rows  # type: ignore[attr-defined]


class EvaluationImages(Sequence):
    """Images that are loaded on access. Rows with the same image are one image with several captions.

    Every image is loaded once in advance, so that invalid ones are skipped before anything is ranked.

    Args:
        rows: Rows with `image` and a caption, a text or a list of texts; an iterable is read once and kept.
        image_root: Folder that paths are relative to.
        caption_column: Name of the captions.
        max_images: Maximum number of images.

    Attributes:
        captions: Captions of each image.
        bad_rows: The error of each skipped row, by the index of the row.
    """

    def __init__(
        self,
        rows: Iterable[Mapping[str, Any]],
        image_root: str | None = None,
        caption_column: str = "caption",
        max_images: int | None = None,
    ):
        self.image_root = image_root
        self.captions: list[list[str]] = []
        self.bad_rows: dict[int, InvalidSampleError] = {}
        self.row_indices: list[int] = []  # the row that each image is loaded from
        is_stored = isinstance(rows, Sized)
        stream_rows: list[Mapping[str, Any]] = []
        self.rows = cast(Sequence[Mapping[str, Any]], rows) if is_stored else stream_rows
        positions: dict[Any, int] = {}
        items: Iterable[Any] = range(len(self.rows)) if is_stored else rows
        for index, item in enumerate(progress(items, "read images", leave=False)):
            try:
                row = self.rows[index] if is_stored else item
                shared_id = image_id(row)
                key = ("row", index) if shared_id is None else shared_id
                if len(self.row_indices) == max_images and key not in positions:
                    break
                if not is_stored:
                    stream_rows.append(row)
                texts = valid_captions(row[caption_column])
                if key not in positions:
                    load_image(row["image"], image_root)
                    positions[key] = len(self.row_indices)
                    self.row_indices.append(index)
                    self.captions.append([])
                self.captions[positions[key]] += texts
            except InvalidSampleError as error:
                self.bad_rows[index] = error

    def __len__(self) -> int:
        return len(self.row_indices)

    def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]  # slices are not supported
        return load_image(self.rows[self.row_indices[index]]["image"], self.image_root)
