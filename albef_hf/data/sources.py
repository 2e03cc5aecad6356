"""Where pairs come from: the original's JSON lists, and anything that `datasets.load_dataset` reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets

from ..options import option
from ..processing_albef import encodable
from .annotations import read_json_list


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
        files: Each holds a list of `{"image": path, "caption": text or list of texts}`; other keys are left out.

    Raises:
        ValueError: If a file is not such a list.
    """
    images: list[str] = []
    captions: list[list[str]] = []
    for file in files:
        for row in read_json_list(file):
            if "image" not in row or "caption" not in row:
                raise ValueError(f'{file}: a row has {sorted(row)}, but needs "image" and "caption".')
            texts = row["caption"] if isinstance(row["caption"], list) else [row["caption"]]
            images.append(encodable(row["image"]) if isinstance(row["image"], str) else None)
            captions.append([encodable(text) for text in texts if isinstance(text, str)])
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
        ValueError: If a column does not exist, or is asked for under two names.
    """
    rows = datasets.load_dataset(name, config_name, data_files=data_files, split=split, streaming=streaming)
    present = rows.column_names or list(next(iter(rows), {}))
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
        feature = None if rows.features is None else rows.features[column]
        if feature is None and column == columns.get("image"):
            rows = rows.cast_column(column, datasets.Image(decode=False))
        elif isinstance(feature, datasets.ClassLabel) and not streaming:
            rows = _with_names(rows, column, feature)
        elif (encoded := _encoded(feature)) != feature:
            rows = rows.cast_column(column, encoded)
    return rows.rename_columns({column: wanted for wanted, column in columns.items() if column != wanted})


def _encoded(feature: Any) -> Any:
    """A feature whose pictures, inside lists too, are handed out as they are stored."""
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(feature, datasets.List):
        return datasets.List(_encoded(feature.feature), length=feature.length)
    return feature


def _with_names(rows: datasets.Dataset, column: str, feature: datasets.ClassLabel) -> datasets.Dataset:
    """The dataset with the names of labels in place of their numbers; no name where a row has no label."""
    numbers = rows.select_columns(column)[:][column]
    names = [feature.int2str(number) if number is not None and number >= 0 else None for number in numbers]
    return rows.remove_columns(column).add_column(column, names, feature=datasets.Value("string"))
