"""Where pairs come from: the original's JSON lists, and anything that `datasets.load_dataset` reads."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import datasets

from ..processing_albef import encodable
from ..utils.options import option, redact
from .annotations import read_json_list
from .row_values import flatten_texts, require_readable

CHECKED_ROWS = 100  # of a dataset, spread over all of it, that are checked for forms that no reader knows


@dataclass
class SourceOptions:
    """Where rows come from."""

    train_files: list[str] = option([], 'JSON lists of {"image": path, "caption": text or list}, or of a task\'s rows')
    image_root: str | None = option(None, "folder that image paths are relative to; nothing outside of it is read")
    dataset: str | None = option(None, "what datasets.load_dataset takes: Hub name, folder, imagefolder, webdataset")
    dataset_config: str | None = option(None, "configuration of the dataset")
    data_files: list[str] = option([], "files of the dataset, for parquet, webdataset and the like")
    split: str = option("train", "split of the dataset that rows come from")

    @property
    def has_source(self) -> bool:
        """Whether rows come from somewhere."""
        return bool(self.train_files or self.dataset)

    def require_one_source(self) -> None:
        """Raise a `ValueError` where two are given."""
        if self.train_files and self.dataset:
            raise ValueError("train_files and dataset are two sources of rows: give one of them.")


def read_annotations(files: list[str]) -> datasets.Dataset:
    """Read JSON lists of the original's format into one dataset with the columns `image` and `caption`.

    Args:
        files: Each holds a list of `{"image": path, "caption": text or list of texts}`; other keys are left out. An
            image may be a base64 text or `{"path": ...}` too, and a caption whatever `flatten_texts` reads.

    Raises:
        ValueError: If a file is not such a list, or holds images or captions in a form that cannot be read.
    """
    if not files:
        raise ValueError("There is no file to read annotations from: give one at least.")
    images: list[str] = []
    captions: list[list[str]] = []
    for file in files:
        rows = read_json_list(file)
        require_readable(rows, file)
        for row in rows:
            if "image" not in row or "caption" not in row:
                raise ValueError(f'{file}: a row has {sorted(row)}, but needs "image" and "caption".')
            image = row["image"]
            image = image.get("bytes") or image.get("path") if isinstance(image, Mapping) else image
            images.append(encodable(image) if isinstance(image, str) else None)
            captions.append([encodable(text) for text in flatten_texts(row["caption"]) if isinstance(text, str)])
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
    """Load a dataset by name, with some of its columns under other names and without the others.

    Pictures stay encoded, so that a broken one harms nobody else. Labels get their names, since every dataset numbers
    them in an order of its own.

    Args:
        name: What `datasets.load_dataset` takes: a Hub name, a folder, `imagefolder`, `parquet`, `webdataset`, ...
        config_name: Name of a configuration of the dataset.
        data_files: Files to read, for the packaged formats.
        split: Such as `train` or `train[:90%]`.
        columns: What each column is to be called, and what the dataset calls it.
        streaming: Read on the fly instead of downloading first.
        remedy: The option that names a column, for the error.
        optional: Columns that are kept where there are such.

    Raises:
        ValueError: If a column does not exist, is asked for under two names, or holds images or texts in a form that
            cannot be read.
    """
    source = {"path": name, "name": config_name, "data_files": data_files, "split": split, "streaming": streaming}
    rows, present = _load(source)
    if name == "json" and (field := _field_of_rows(rows, columns.values())):
        rows, present = _load(source | {"field": field})
    name = redact(name)
    for wanted, column in columns.items():
        if column not in present:
            raise ValueError(
                f"{name} has no column {column!r}; set {remedy.format(wanted)} to one of {', '.join(present)}."
            )
    more = {wanted: column for wanted, column in (optional or {}).items() if column in present}
    columns = columns | {wanted: column for wanted, column in more.items() if column not in columns.values()}
    if len(set(columns.values())) < len(columns):
        raise ValueError(
            f"One column of {name} is named twice, for {', '.join(columns)}: name another for one of them."
        )
    rows = rows.select_columns(list(columns.values()))
    for column in columns.values():
        if rows.features is None:  # of a stream, where nothing is decoded then
            break
        feature = rows.features[column]
        if (named := _names_feature(feature)) != feature:
            rows = _with_names(rows, column, feature, named)
        elif (encoded := _encoded(feature)) != feature:
            rows = rows.cast_column(column, encoded)
    rows = rows.rename_columns({column: wanted for wanted, column in columns.items() if column != wanted})
    if not streaming:
        count = min(len(rows), CHECKED_ROWS)
        require_readable(rows, name, [place * len(rows) // count for place in range(count)])
    return rows


def _field_of_rows(rows: datasets.Dataset | datasets.IterableDataset, wanted: Iterable[str]) -> str | None:
    """The key whose list holds the rows, of a JSON file that is one object, such as `{"images": [...]}`."""
    features = rows.features or {}
    if {*wanted} <= {*features}:
        return None
    lists = {name: feature.feature for name, feature in features.items() if isinstance(feature, datasets.List)}
    return next((name for name, row in lists.items() if isinstance(row, dict) and {*wanted} <= {*row}), None)


def _load(source: dict[str, Any]) -> tuple[datasets.Dataset | datasets.IterableDataset, list[str]]:
    """Load a dataset, and the names of its columns; an error does not repeat the secrets of its address."""
    try:
        rows = datasets.load_dataset(**source)
        return rows, rows.column_names or list(next(iter(rows), {}))
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        if isinstance(error, (ValueError, OSError)) and redact(told) == told:
            raise
        told = f"{redact(source['path'])} cannot be loaded. {redact(told)}"
    raise ValueError(told)  # not from the error, whose text may have the secrets


def _encoded(feature: Any) -> Any:
    """A feature whose pictures, inside lists too, are handed out as they are stored."""
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, datasets.List):
        return datasets.List(_encoded(feature.feature), length=feature.length)
    return feature


def _names_feature(feature: Any) -> Any:
    """The feature with texts in place of labels, inside lists and objects too."""
    if isinstance(feature, datasets.ClassLabel):
        return datasets.Value("string")
    if isinstance(feature, datasets.List):
        return datasets.List(_names_feature(feature.feature), length=feature.length)
    if isinstance(feature, dict):
        return {name: _names_feature(part) for name, part in feature.items()}
    return feature


def _names(value: Any, feature: Any) -> Any:
    """A value with the names of labels in place of their numbers; no name where there is no label."""
    if isinstance(feature, datasets.ClassLabel):
        return feature.int2str(value) if value is not None and value >= 0 else None
    if isinstance(feature, datasets.List) and value is not None:
        return [_names(item, feature.feature) for item in value]
    if isinstance(feature, dict) and value is not None:
        return {name: _names(value[name], part) for name, part in feature.items()}
    return value


def _with_names(
    rows: datasets.Dataset | datasets.IterableDataset, column: str, feature: Any, named: Any
) -> datasets.Dataset | datasets.IterableDataset:
    """The dataset with the names of labels in place of their numbers."""
    if isinstance(rows, datasets.IterableDataset):
        features = datasets.Features(rows.features | {column: named})
        return rows.map(lambda row: {column: _names(row[column], feature)}, features=features)
    names = [_names(value, feature) for value in rows.select_columns(column)[:][column]]
    return rows.remove_columns(column).add_column(column, names, feature=named)
