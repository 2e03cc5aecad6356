"""Read files of rows: JSON lists of this package's format, and the files of published datasets."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .annotations import read_json_list
from .dataset_formats import READERS, recognize
from .file_contents import Row, read_content
from .image_paths import locate_images
from .img2dataset import read_img2dataset
from .row_values import require_readable
from .source_arguments import DATASET_FORMATS

logger = logging.get_logger(f"transformers.{__name__}")

IMG2DATASET = "img2dataset"  # which is read from the files, not from their contents
NOTES = ("dropped", "language")  # keys of rows that only decide whether they are used
DEFAULT_SPLITS = ("train", "validation")  # the defaults of the options
SAME_SPLIT = {"validation": "val", "dev": "val"}
KNOWN_FORMATS = f"Datasets that are read as they are published (dataset_format): {', '.join(DATASET_FORMATS)}."


def read_rows(
    files: list[str],
    dataset_format: str | None = None,
    split: str | None = None,
    image_root: str | None = None,
    language: str | None = None,
    needs_splits: bool = False,
) -> Any:
    """Return the rows of files: a list, or a `datasets.Dataset` if they contain the images.

    Args:
        files: JSON lists of this package's format, or one or more files of a published dataset.
        dataset_format: Name of the published dataset; default: what the keys of the rows say.
        split: Split that rows belong to, or several, such as `train+restval`, for published files that name it;
            otherwise all rows are used. `val`, `dev` and `validation` are the same.
        image_root: Folder in which the images of a published dataset are looked for, with and without the folders of
            its layout; default: that of the first file, with which the paths in the rows begin then.
        language: Language of the questions, for published files that name it; default: all.
        needs_splits: Refuse files that name no splits.

    Raises:
        ValueError: If the files are neither JSON lists nor of a known format, no row is left, or texts or images have
            a form that cannot be read.
    """
    settings = {"split": split, "language": language, "image_root": image_root}
    if dataset_format == IMG2DATASET or (dataset_format is None and all(file.endswith(".parquet") for file in files)):
        _check_splits(files, split, needs_splits)
        return _use(read_img2dataset(files), IMG2DATASET, files, **settings)
    groups: dict[str | None, dict[str, Any]] = {}
    for file in files:
        content = read_content(file)
        name = _format_of(file, content, dataset_format)
        groups.setdefault(name, {})[file] = content
    rows: list[Row] = []
    for name, contents in groups.items():
        if name is None:
            used = [row for file, content in contents.items() for row in _own_rows(file, content)]
        else:
            used = _use(_published_rows(name, contents), name, [*contents], **settings)
        if name is None or not any("split" in row for row in used):
            _check_splits([*contents], split, needs_splits)
        rows += used
    return rows


def require_columns(rows: Any, files: list[str], required: Iterable[str]) -> None:
    """Raise a `ValueError` if a row lacks one of the required columns."""
    for row in [dict.fromkeys(rows.column_names)] if hasattr(rows, "column_names") else rows:
        missing = [name for name in required if name not in row]
        if missing:
            raise ValueError(
                f"A row of {', '.join(files)} has {sorted(row)}, but not {', '.join(missing)}. {KNOWN_FORMATS}"
            )


def _check_splits(files: list[str], split: str | None, needs_splits: bool) -> None:
    """Warn of a split that has no effect, because files name none.

    Raises:
        ValueError: If they need to.
    """
    names = ", ".join(files)
    if needs_splits:
        raise ValueError(
            f"{names}: no splits are named, so that the rows to train on would be evaluated on. Set other "
            "validation_files, or remove validation_split."
        )
    if split not in (None, *DEFAULT_SPLITS):
        logger.warning_once(f"{names}: no splits are named; all rows are used, not only those of {split}")


def _format_of(file: str, content: Any, dataset_format: str | None) -> str | None:
    """Return the format of a file: the given one, or what its keys say.

    Raises:
        ValueError: If the two differ.
    """
    found = recognize(content)
    if dataset_format and found and READERS[found] is not READERS[dataset_format]:
        raise ValueError(f"{file} has the keys of {found}, but dataset_format is {dataset_format}; remove it.")
    return dataset_format or found


def _own_rows(file: str, content: Any) -> list[Row]:
    """Return the rows of a parsed file of this package's format."""
    if type(content) is list and all(isinstance(row, dict) for row in content):
        require_readable(content, file)
        return content
    try:
        return read_json_list(file)  # which says what is wrong
    except ValueError as error:
        if content is None:  # it cannot be parsed
            raise
        raise ValueError(f"{error} {KNOWN_FORMATS}") from error


def _published_rows(name: str, contents: dict[str, Any]) -> list[Row]:
    """Return the rows of files, by name, in a format.

    Raises:
        ValueError: If they are not in it.
    """
    files = ", ".join(contents)
    try:
        return READERS[name]([*contents.values()])
    except (KeyError, TypeError, AttributeError, IndexError, StopIteration) as error:
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"{files}: not in the format {name} ({problem}). {KNOWN_FORMATS}") from error
    except ValueError as error:
        raise ValueError(f"{files}: {error}") from error


def _use(
    rows: Any, name: str, files: list[str], split: str | None, language: str | None, image_root: str | None
) -> Any:
    """Return the rows of the wanted splits and language that the reader did not drop, with images that are found.

    Raises:
        ValueError: If there is no such split, or no row.
    """
    is_list = isinstance(rows, list)
    texts = rows if is_list else rows.select_columns("dropped")
    described = f"{', '.join(files)} ({name})"
    reasons = _reasons_to_drop(texts, described, split, language)
    kept = [index for index, reason in enumerate(reasons) if reason is None]
    counts = ", ".join(f"{reason} {count}" for reason, count in Counter(filter(None, reasons)).items())
    if not kept:
        raise ValueError(f"{described} has {len(reasons)} rows, none of which is used: {counts or 'it is empty'}.")
    logger.warning_once(
        f"{described}: {len(kept)} of {len(reasons)} rows" + (f"; not used: {counts}" if counts else "")
    )
    if not is_list:
        return rows.select(kept).remove_columns("dropped")
    used = [{key: value for key, value in rows[index].items() if key not in NOTES} for index in kept]
    locate_images(used, image_root or str(Path(files[0]).parent), is_given=image_root is not None)
    return used


def _reasons_to_drop(rows: Any, described: str, split: str | None, language: str | None) -> list[str | None]:
    """Return why each row is not used, or None.

    Raises:
        ValueError: If there are splits, but not the wanted ones.
    """
    wanted = {SAME_SPLIT.get(name, name) for name in split.split("+")} if split else set()
    present = {row["split"] for row in rows if "split" in row}
    if present and wanted - present:
        raise ValueError(
            f"{described} has no split {', '.join(sorted(wanted - present))}, but {', '.join(sorted(present))}: "
            "choose from them with split, to train on, and validation_split, to evaluate on; a+b is both."
        )

    def reason(row: Row) -> str | None:
        if wanted and row.get("split", "") not in ("", *wanted):
            return f"split {row['split']}"
        if language and row.get("language", language) != language:
            return f"language {row['language']}"
        return row.get("dropped")

    return [reason(row) for row in rows]
