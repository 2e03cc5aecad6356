"""Options of `albef shards`; only light libraries are imported here, so that `--help` is fast."""

import os
from dataclasses import dataclass, field

from .source_arguments import SourceArguments


@dataclass
class ShardArguments(SourceArguments):
    """Which rows to convert to shards, and how."""

    output_dir: str = field(default="", metadata={"help": "folder of the shards"})
    image_column: str = field(default="image", metadata={"help": "column of the dataset that has the image"})
    caption_column: str = field(
        default="caption", metadata={"help": "column of the dataset that has the caption, a text or a list of texts"}
    )
    short_side: int = field(
        default=384, metadata={"help": "downscale images to this shorter side in pixels; none is enlarged"}
    )
    quality: int = field(
        default=90, metadata={"help": "JPEG quality, 1 to 100; a JPEG that is small enough is kept as it is"}
    )
    exif_transpose: bool = field(
        default=False, metadata={"help": "turn images upright by their EXIF orientation, unlike the original"}
    )
    rows_per_shard: int = field(
        default=4096, metadata={"help": "source rows per shard; about 250 MB at a short side of 384"}
    )
    num_workers: int = field(
        default=os.cpu_count() or 1, metadata={"help": "processes that read and write; 0 uses the main process alone"}
    )
    check: bool = field(default=False, metadata={"help": "only compare existing shards with their SHA-256"})

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise ValueError("output_dir is missing: give the folder of the shards.")
        self.check_source()
        if min(self.short_side, self.rows_per_shard) < 1 or self.num_workers < 0:
            raise ValueError("short_side and rows_per_shard must be at least 1, and num_workers at least 0.")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}; it must be between 1 and 100.")
