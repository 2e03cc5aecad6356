"""The reference texts of an index, by which its scores are normalized: captions of images that are not in it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..calibration_albef import MatchCalibration
from ..data.captions import is_blank

logger = logging.get_logger(f"transformers.{__name__}")


def read_reference_texts(path: Path) -> list[str]:
    """Read the reference texts that an evaluation has written, a JSON list of texts.

    Raises:
        ValueError: If the file is missing or something else.
    """
    try:
        texts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}). Give the reference_texts.json that `albef evaluate retrieval "
            "--calibrate --reference_files` has written, or another JSON list of texts."
        ) from error
    return _require_texts(texts, str(path))


def checked_references(texts: Iterable[str] | None, calibration: MatchCalibration) -> list[str] | None:
    """Return reference texts as a list; None stays None.

    Raises:
        ValueError: If there is none or a blank one, or the model has no weight for them.
    """
    if texts is None:
        return None
    references = _require_texts(texts if isinstance(texts, str) else list(texts), "reference_texts")
    if not calibration.reference_weight:
        weight = "no weight" if calibration.reference_weight is None else "a weight of 0"
        raise ValueError(
            f"The model has {weight} for references: calibrate it with some first, by `albef evaluate retrieval "
            "--calibrate --reference_files`, or index without reference texts."
        )
    return references


def warn_of_other_references(sha256: str | None, calibration: MatchCalibration) -> None:
    """Warn if the weight for references was fitted with other texts than those of an index, if both are known."""
    if calibration.reference_weight and sha256 and calibration.reference_texts_sha256 not in (None, sha256):
        logger.warning(
            "The reference texts of the index are others than those that the model was calibrated with, for which its "
            "weight holds: build an index with those in another folder, or calibrate the model with these."
        )


def _require_texts(texts: Any, name: str) -> list[str]:
    if not isinstance(texts, list) or not texts:
        raise ValueError(f"{name} must be a list of texts, captions of other images, not {texts!r:.100}.")
    invalid = [text for text in texts if not isinstance(text, str) or is_blank(text)]
    if invalid:
        raise ValueError(
            f"{name}: {len(invalid)} of {len(texts)} are no texts with a word, such as {invalid[0]!r:.99}."
        )
    return texts
