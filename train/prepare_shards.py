"""Make shards of the pairs that pretraining reads: tar files with smaller pictures, and an index.

`python train/pretrain.py --shards FOLDER` trains on them. Rows that cannot be used are left out, counted by reason and
listed in dropped.jsonl. A preparation that was interrupted goes on where it was when the same command is given again.
Without a source, an index is made of the tar files that lie in the folder, such as img2dataset's.
"""

import json
import os
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from albef_hf.data.shard_writer import DROPPED, PictureEncoder, ShardWriter
from albef_hf.data.shards import INDEX, check_folder, index_folder
from albef_hf.data.sources import SourceOptions, load_hub_rows, read_annotations
from albef_hf.utils.files import digest, locked, written_aside
from albef_hf.utils.options import option, parse_options, redact
from albef_hf.utils.progress import log_library_progress

LOCK = ".preparation.lock"
SETTINGS = "preparation.json"  # what the shards of a folder are made of, and how


@dataclass
class ShardOptions(SourceOptions):
    """What to make shards of, and how."""

    output_dir: str = option("", "folder for the shards")
    image_column: str = option("image", "column of the picture")
    caption_column: str = option("caption", "column of the caption, a text or a list of texts")
    short_side: int = option(384, "pixels of the shorter side of a picture, at most; none is enlarged")
    quality: int = option(90, "of the JPEG; one that is small enough already stays as it is")
    exif_transpose: bool = option(False, "turn pictures as their EXIF orientation says, unlike the original")
    rows_per_shard: int = option(4096, "rows of the source in a shard; about 250 MB at a short side of 384")
    num_workers: int = option(os.cpu_count() or 1, "processes that read and write; 0 for none beside this one")
    check: bool = option(False, "read the shards that are there and compare them with their SHA-256")

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise ValueError("output_dir is missing: say where the shards are to be, or are.")
        self.require_one_source()
        if min(self.short_side, self.rows_per_shard) < 1 or self.num_workers < 0:
            raise ValueError("short_side and rows_per_shard must be at least 1, and num_workers at least 0.")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}; it is a number between 1 and 100.")


def main(arguments: list[str]) -> None:
    """Read the options and do what they say."""
    options = parse_options(ShardOptions, __doc__, arguments)
    log_library_progress()
    try:
        if options.check:
            check(options)
        else:
            prepare(options)
    except (ValueError, OSError) as error:
        if os.environ.get("ALBEF_TRACEBACK"):
            raise
        sys.exit(f"error: {redact(str(error))}\n(set ALBEF_TRACEBACK=1 to see where it happened)")


def check(options: ShardOptions) -> None:
    """Compare shards with their index; ends with 1 where they differ."""
    faults = check_folder(Path(options.output_dir), options.num_workers)
    if faults:
        sys.exit("\n".join(faults))
    tell("All shards are what they were.")


def prepare(options: ShardOptions) -> None:
    """Write shards, if there is a source, and an index; one process at a time."""
    folder = Path(options.output_dir)
    if options.has_source:
        folder.mkdir(parents=True, exist_ok=True)
    elif not folder.is_dir():
        raise ValueError(f"There is no folder {folder}: give a source to make shards of, or another output_dir.")
    with locked(folder / LOCK):
        expected = write_shards(options, folder) if options.has_source else None
        index = index_folder(folder, options.num_workers, expected, **known_of(folder))
    size = sum(shard["bytes"] for shard in index["shards"]) / 1e9
    tell(f"{index['rows']} pairs in {len(index['shards'])} shards, {size:.2f} GB, listed in {folder / INDEX}")
    for name in ("dropped", "left_out"):
        if index.get(name):
            counts = ", ".join(f"{reason} {count}" for reason, count in sorted(index[name].items()))
            tell(f"{name.replace('_', ' ')}: {counts}" + (f"; see {folder / DROPPED}" if name == "dropped" else ""))
    for reason, member in index["left_out_first"].items():
        tell(f"    the first of {reason}: {member}")


def write_shards(options: ShardOptions, folder: Path) -> dict[str, int]:
    """Write the shards that are not there; returns how many pairs each of all has to have."""
    rows = load_rows(options)
    encode = PictureEncoder(options.image_root, options.short_side, options.quality, options.exif_transpose)
    writer = ShardWriter(rows, folder, encode, options.rows_per_shard)
    writer.require_usable()
    remember(folder, settings_of(options, rows))
    writer.write_all(options.num_workers)
    return writer.expected_pairs()


def load_rows(options: ShardOptions):
    """The rows of the source, with `image` and `caption`."""
    if options.train_files:
        return read_annotations(options.train_files)
    columns = (options.image_column, options.caption_column)
    files = options.data_files or None
    return load_hub_rows(options.dataset, options.dataset_config, files, options.split, False, *columns)


def settings_of(options: ShardOptions, rows) -> dict[str, object]:
    """What decides the content of each shard."""
    content = [digest(Path(file)) for file in options.train_files] or rows._fingerprint
    settings = redact(asdict(options)) | {"rows": len(rows), "content": content}
    return {name: value for name, value in settings.items() if name not in ("output_dir", "num_workers", "check")}


def remember(folder: Path, settings: dict[str, object]) -> None:
    """Note what the shards of a folder are made of; refuse a folder that has others."""
    path = folder / SETTINGS
    before = redact(read_settings(path)) if path.exists() else {}
    other = [name for name, value in settings.items() if before.get(name) != value]
    if other and any(folder.glob("*.tar")):
        raise ValueError(
            f"{folder} holds shards of something else ({', '.join(other)}): set another output_dir, or remove them."
        )
    with written_aside(path) as aside:
        aside.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_settings(path: Path) -> dict[str, object]:
    """What the shards of a folder are made of, as it was noted."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(settings, dict):
            return settings
        problem = "it is no JSON object"
    except (ValueError, RecursionError) as error:
        problem = str(error)
    raise ValueError(f"{path} cannot be read ({problem}): set another output_dir, or remove all of the folder.")


def read_reasons(path: Path) -> list[str]:
    """The reasons of the rows that were left out."""
    reasons = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            reasons.append(str(json.loads(line)["reason"]))
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ValueError(f"Line {number} of {path} cannot be read: remove the file, and try again.") from error
    return reasons


def known_of(folder: Path) -> dict[str, object]:
    """What shards were made of and what was dropped, as far as this script has written them."""
    source, dropped = folder / SETTINGS, folder / DROPPED
    known: dict[str, object] = {"source": read_settings(source)} if source.exists() else {}
    if dropped.exists():
        known["dropped"] = dict(Counter(read_reasons(dropped)))
    return known


def tell(text: str) -> None:
    """A line for who has started this."""
    sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
