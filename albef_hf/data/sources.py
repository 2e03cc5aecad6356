"""Where pairs come from: the original's JSON lists, and anything that `datasets.load_dataset` reads."""

import json
from pathlib import Path

import datasets


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
        try:
            rows = json.loads(Path(file).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} cannot be read as a JSON list of pairs: {error}.") from error
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f'{file} is not a list of {{"image": path, "caption": text or list of texts}}.')
        for row in rows:
            if "image" not in row or "caption" not in row:
                raise ValueError(f'{file}: a row has {sorted(row)}, but needs "image" and "caption".')
            texts = row["caption"] if isinstance(row["caption"], list) else [row["caption"]]
            images.append(_encodable(row["image"]) if isinstance(row["image"], str) else None)
            captions.append([_encodable(text) for text in texts if isinstance(text, str)])
    text = datasets.Value("string")
    features = datasets.Features({"image": text, "caption": datasets.List(text)})
    return datasets.Dataset.from_dict({"image": images, "caption": captions}, features=features)


def _encodable(text: str) -> str:
    """The text without lone surrogates, which JSON allows and nothing else does."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


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
) -> datasets.Dataset | datasets.IterableDataset:
    """Load a dataset by name, with some of its columns under other names and without the others.

    Pictures stay encoded, so that a broken one harms nobody else.

    Args:
        name: What `datasets.load_dataset` takes: a Hub name, a folder, `imagefolder`, `parquet`, `webdataset`, ...
        config_name: Name of a configuration of the dataset.
        data_files: Files to read, for the packaged formats.
        split: Such as `train` or `train[:90%]`.
        columns: What each column is to be called, and what the dataset calls it.
        streaming: Read on the fly instead of downloading first.
        remedy: The option that names a column, for the error.

    Raises:
        ValueError: If a column does not exist.
    """
    rows = datasets.load_dataset(name, config_name, data_files=data_files, split=split, streaming=streaming)
    present = rows.column_names or list(next(iter(rows), {}))
    for wanted, column in columns.items():
        if column not in present:
            raise ValueError(
                f"{name} has no column {column!r}; set {remedy.format(wanted)} to one of {', '.join(present)}."
            )
    rows = rows.select_columns(list(columns.values()))
    for column in columns.values():
        feature = None if rows.features is None else rows.features[column]
        if isinstance(feature, datasets.Image) or (feature is None and column == columns.get("image")):
            rows = rows.cast_column(column, datasets.Image(decode=False))
    return rows.rename_columns({column: wanted for wanted, column in columns.items() if column != wanted})
