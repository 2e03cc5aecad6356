"""Load rows: JSON lists of the original's format, and everything that `datasets.load_dataset` reads."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import datasets

from ..processing_albef import replace_surrogates
from ..utils.redaction import redact
from .row_files import read_rows, require_columns
from .row_values import flatten_texts, require_readable

CHECKED_ROWS = 100  # spread over the dataset, that are checked for unknown forms of images and texts

AnyDataset = TypeVar("AnyDataset", datasets.Dataset, datasets.IterableDataset)


def read_annotations(
    files: list[str],
    dataset_format: str | None = None,
    split: str | None = None,
    image_root: str | None = None,
    needs_splits: bool = False,
) -> datasets.Dataset:
    """Read JSON lists of the original's format, or a published dataset, into one with `image` and `caption`.

    Args:
        files: Each contains a list of `{"image": path, "caption": text or list of texts}`; other keys are ignored. An
            image may be base64 or `{"path": ...}` too, and a caption anything that `flatten_texts` reads. Or they
            are those of a published dataset; see `row_files.read_rows`, also for the other arguments.
        dataset_format: Name of the published dataset; default: what the keys of the rows say.
        split: Splits of it.
        image_root: Folder in which its images are looked for.
        needs_splits: Refuse files that name no splits.

    Raises:
        ValueError: If a file is not such a list, or contains images or captions in a form that cannot be read.
    """
    if not files:
        raise ValueError("There is no annotation file to read: give at least one.")
    rows = read_rows(files, dataset_format, split, image_root, needs_splits=needs_splits)
    require_columns(rows, files, ("image", "caption"))
    if isinstance(rows, datasets.Dataset):
        return rows
    images: list[str | None] = []
    captions: list[list[str]] = []
    for row in rows:
        image = row["image"]
        image = image.get("bytes") or image.get("path") if isinstance(image, Mapping) else image
        images.append(replace_surrogates(image) if isinstance(image, str) else None)
        captions.append([replace_surrogates(text) for text in flatten_texts(row["caption"]) if isinstance(text, str)])
    text = datasets.Value("string")
    features = datasets.Features({"image": text, "caption": datasets.List(text)})
    return datasets.Dataset.from_dict({"image": images, "caption": captions}, features=features)


def load_hub_rows(
    name: str,
    config_name: str | None,
    data_files: list[str] | None,
    split: str,
    streaming: bool,
    image_column: str,
    caption_column: str,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load pairs by name, with their two columns as `image` and `caption`; see `load_columns`."""
    columns = {"image": image_column, "caption": caption_column}
    return load_columns(name, config_name, data_files, split, columns, streaming)


def load_columns(
    name: str,
    config_name: str | None,
    data_files: list[str] | None,
    split: str,
    columns: dict[str, str],
    streaming: bool = False,
    remedy: str = "{}_column",
    optional: Mapping[str, str] | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """Load a dataset by name, keeping and renaming only some of its columns.

    Images stay encoded, so that a broken one affects no other row. Class labels are converted to their names, because
    each dataset has its own order of labels.

    Args:
        name: Argument of `datasets.load_dataset`: a Hub name, a folder, `imagefolder`, `parquet`, `webdataset`, ...
        config_name: Configuration of the dataset.
        data_files: Files to read, for the packaged formats.
        split: Split, such as `train` or `train[:90%]`.
        columns: From the wanted name of each column to its name in the dataset.
        streaming: Read on the fly instead of downloading first.
        remedy: The option that names a column, for error messages.
        optional: Further columns, likewise, which are kept if the dataset has them.

    Raises:
        ValueError: If a column does not exist, is requested under two names, or contains images or texts in a form
            that cannot be read.
    """
    source = {"path": name, "name": config_name, "data_files": data_files, "split": split, "streaming": streaming}
    rows, present = _load(source)
    if name == "json" and (field := _field_of_rows(rows, columns.values())):
        rows, present = _load(source | {"field": field})
    name = redact(name)
    columns = _choose_columns(name, present, columns, remedy, optional or {})
    rows = _convert_features(rows.select_columns(list(columns.values())), columns.values())
    rows = rows.rename_columns({column: wanted for wanted, column in columns.items() if column != wanted})
    if isinstance(rows, datasets.Dataset):
        count = min(len(rows), CHECKED_ROWS)
        require_readable(rows, name, [index * len(rows) // count for index in range(count)])
    return rows


def _choose_columns(
    name: str, present: list[str], columns: dict[str, str], remedy: str, optional: Mapping[str, str]
) -> dict[str, str]:
    """Add the optional columns that exist, and check that all columns exist and differ."""
    for wanted, column in columns.items():
        if column not in present:
            raise ValueError(
                f"{name} has no column {column!r}; set {remedy.format(wanted)} to one of {', '.join(present)}."
            )
    extra = {
        wanted: column for wanted, column in optional.items() if column in present and column not in columns.values()
    }
    chosen = columns | extra
    if len(set(chosen.values())) < len(chosen):
        raise ValueError(
            f"One column of {name} is named twice, for {', '.join(chosen)}: choose another column for one of them."
        )
    return chosen


def _convert_features(rows: AnyDataset, columns: Iterable[str]) -> AnyDataset:
    """Keep images encoded, and convert class labels to their names."""
    for column in columns:
        if rows.features is None:  # in a stream without features nothing is decoded
            break
        feature = rows.features[column]
        named = _names_feature(feature)
        encoded = _encoded_feature(feature)
        if named != feature:
            rows = _label_names(rows, column, feature, named)
        elif encoded != feature:
            rows = rows.cast_column(column, encoded)
    return rows


def _field_of_rows(rows: datasets.Dataset | datasets.IterableDataset, wanted: Iterable[str]) -> str | None:
    """Return the key of the list of rows in a JSON file that contains one object, such as `{"images": [...]}`."""
    features = rows.features or {}
    if {*wanted} <= {*features}:
        return None
    lists = {name: feature.feature for name, feature in features.items() if isinstance(feature, datasets.List)}
    return next((name for name, row in lists.items() if isinstance(row, dict) and {*wanted} <= {*row}), None)


def _load(source: dict[str, Any]) -> tuple[datasets.Dataset | datasets.IterableDataset, list[str]]:
    """Load a dataset and its column names; errors do not repeat the secrets of an address."""
    try:
        rows = datasets.load_dataset(**source)
        return rows, rows.column_names or list(next(iter(rows), {}))
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        if isinstance(error, (ValueError, OSError)) and redact(message) == message:
            raise
        message = f"{redact(source['path'])} cannot be loaded. {redact(message)}"
    raise ValueError(message)  # without the cause, whose text may contain the secrets


def _encoded_feature(feature: Any) -> Any:
    """Return a feature whose images, including those in lists, are not decoded."""
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, datasets.List):
        return datasets.List(_encoded_feature(feature.feature), length=feature.length)
    return feature


def _names_feature(feature: Any) -> Any:
    """Return a feature with strings in place of class labels, including those in lists and objects."""
    if isinstance(feature, datasets.ClassLabel):
        return datasets.Value("string")
    if isinstance(feature, datasets.List):
        return datasets.List(_names_feature(feature.feature), length=feature.length)
    if isinstance(feature, dict):
        return {name: _names_feature(part) for name, part in feature.items()}
    return feature


def _to_names(value: Any, feature: Any) -> Any:
    """Convert class indices in a value to their names; missing labels become None."""
    if isinstance(feature, datasets.ClassLabel):
        return feature.int2str(value) if value is not None and value >= 0 else None
    if isinstance(feature, datasets.List) and value is not None:
        return [_to_names(item, feature.feature) for item in value]
    if isinstance(feature, dict) and value is not None:
        return {name: _to_names(value[name], part) for name, part in feature.items()}
    return value


def _label_names(rows: AnyDataset, column: str, feature: Any, named: Any) -> AnyDataset:
    """Convert the class indices of a column to their names."""
    if isinstance(rows, datasets.IterableDataset):
        features = datasets.Features(rows.features | {column: named})
        return rows.map(lambda row: {column: _to_names(row[column], feature)}, features=features)
    names = [_to_names(value, feature) for value in rows.select_columns(column)[:][column]]
    return rows.remove_columns(column).add_column(column, names, feature=named)
