"""The reference texts of an index, by which its scores are normalized: captions of images that are not in it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..calibration_albef import MatchCalibration
from ..data.captions import is_blank, valid_captions
from ..data.evaluation_images import drop_image_columns, image_id
from ..data.row_errors import InvalidSampleError
from ..data.row_files import read_rows, require_columns


def checked_references(texts: Iterable[str] | None, calibration: MatchCalibration) -> list[str] | None:
    """Return reference texts as a list; None stays None.

    Raises:
        ValueError: If there is none or a blank one, or the model has no weight for them.
    """
    if texts is None:
        return None
    references = [texts] if isinstance(texts, str) else list(texts)
    invalid = [text for text in references if not isinstance(text, str) or is_blank(text)]
    if invalid or not references or isinstance(texts, str):
        example = f" Not a text with a word: {invalid[0]!r:.100}." if invalid else ""
        raise ValueError(f"reference_texts must be a list of texts, captions of other images.{example}")
    if calibration.reference_weight is None:
        raise ValueError(
            "The model has no weight for references: calibrate it with them first, by `albef evaluate retrieval "
            "--calibrate --reference_files`."
        )
    return references


def read_reference_texts(files: Sequence[str], size: int, indexed: Iterable[str]) -> tuple[list[str], str]:
    """Read the captions of the first images of files of rows, without those that are indexed.

    Args:
        files: As for `albef evaluate retrieval --reference_files`.
        size: Images at most.
        indexed: Names of the files that are indexed. An image of the same name is left out: its own captions would
            say that it matches everything.

    Returns:
        The captions, and how many there are and how many rows were left out and why.

    Raises:
        ValueError: If a file cannot be read, or no caption is left.
    """
    rows = read_rows(list(files))
    require_columns(rows, list(files), ("image", "caption"))
    names = set(indexed)
    captions: dict[Any, list[str]] = {}
    left_out: Counter[str] = Counter()
    for index, row in enumerate(drop_image_columns(rows)):
        shared_id = image_id(row)
        key = ("row", index) if shared_id is None else shared_id
        if len(captions) == size and key not in captions:
            continue
        if Path(str(row.get("image", ""))).name in names:
            left_out["indexed, too"] += 1
            continue
        try:
            texts = valid_captions(row["caption"])
            captions.setdefault(key, []).extend(texts)
        except InvalidSampleError as error:
            left_out[error.reason.name.lower()] += 1
    texts = [text for of_image in captions.values() for text in of_image]
    reasons = "".join(f", {count} rows left out ({reason})" for reason, count in left_out.items())
    if not texts:
        raise ValueError(f"reference_files: there is no caption to use{reasons}. Give captions of other images.")
    return texts, f"{len(texts):,} of {len(captions):,} images{reasons}"
