"""Files of published datasets with invented content, in `fixtures/formats`, and their images."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
from paths import REPOSITORY
from PIL import Image

from albef_hf.data.row_files import read_rows

FORMATS = REPOSITORY / "tests" / "fixtures" / "formats"
VQA_RAD = "vqa_rad/VQA_RAD Dataset Public.json"
REFERENCES = [
    {
        "ref_id": ref_id,
        "ann_id": 70,
        "category_id": 1,
        "image_id": 7,
        "file_name": "COCO_train2014_000000000007_1.jpg",
        "split": split,
        "sent_ids": [3, 4],
        "sentences": [
            {"raw": "The red one", "sent": "the red one", "sent_id": 3, "tokens": ["the", "red", "one"]},
            {"raw": "left", "sent": "left", "sent_id": 4, "tokens": ["left"]},
        ],
    }
    for ref_id, split in enumerate(("train", "val", "testA"))
]


def rows_of(*names: str, **settings: object) -> list[dict]:
    """Return the rows of fixtures, with the paths of images as published."""
    return read_rows([str(FORMATS / name) for name in names], image_root="nowhere", **settings)


def write_images(folder: Path, rows: list[dict]) -> None:
    for name in [path for row in rows for path in row.get("images", [row.get("image")])]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 50), "red").save(folder / name, "PNG")


def parquet(file: Path, **columns: list) -> str:
    pyarrow.parquet.write_table(pa.table(columns), file)
    return str(file)
