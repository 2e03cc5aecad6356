"""Rows of what img2dataset has downloaded, from its parquet files."""

from pathlib import Path
from typing import Any

ENCODINGS = ("jpg", "png", "webp")  # of its option encode_format
SUCCESS = "success"
COLUMNS = {"key", "status", "caption"}


def read_img2dataset(files: list[str]) -> Any:
    """Return the rows of img2dataset's parquet files (https://github.com/rom1504/img2dataset, `writer.py`).

    With `--output_format parquet` a column called `jpg` holds the images as bytes; the rows are a `datasets.Dataset`.
    With `--output_format files` the images of `00000.parquet` are in the folder `00000` beside it; the rows are a
    list. Rows whose `status` is another than success have it as `dropped`.

    Raises:
        ValueError: If a file is none of img2dataset's, or lies beside a tar file, which is a shard.
    """
    import pyarrow.parquet  # an optional dependency

    columns = [{*pyarrow.parquet.read_schema(file).names} for file in files]
    for file, names in zip(files, columns, strict=True):
        if not names >= COLUMNS:
            raise ValueError(
                f"{file} has {', '.join(sorted(names))}, but an img2dataset with captions has {', '.join(COLUMNS)}: "
                f"--dataset parquet --data_files {file} reads other parquet files."
            )
    encoding = next((name for name in ENCODINGS if all(name in names for names in columns)), None)
    if encoding:
        return _embedded_images(files, encoding)
    return [row for file in files for row in _images_beside(Path(file), pyarrow.parquet)]


def _embedded_images(files: list[str], encoding: str) -> Any:
    import datasets

    rows = datasets.load_dataset("parquet", data_files=files, split="train")
    reasons = [None if status == SUCCESS else f"status {status}" for status in rows["status"]]
    rows = rows.select_columns([encoding, "caption"]).rename_column(encoding, "image")
    return rows.add_column("dropped", reasons, feature=datasets.Value("string"))


def _images_beside(file: Path, parquet: Any) -> list[dict[str, Any]]:
    folder = file.with_suffix("")
    if not folder.is_dir() and file.with_suffix(".tar").exists():
        raise ValueError(
            f"The images of {file} are in {file.with_suffix('.tar')}: `albef shards --output_dir {file.parent}` "
            "indexes the tar files there, and --shards trains on them."
        )
    rows = parquet.read_table(file, columns=sorted(COLUMNS)).to_pylist()
    keys = [row["key"] for row in rows if row["status"] == SUCCESS]
    found = (name for name in ENCODINGS if keys and (folder / f"{keys[0]}.{name}").exists())
    encoding = next(found, ENCODINGS[0])
    return [
        {
            "image": f"{folder.name}/{row['key']}.{encoding}",
            "caption": row["caption"],
            "dropped": None if row["status"] == SUCCESS else f"status {row['status']}",
        }
        for row in rows
    ]
