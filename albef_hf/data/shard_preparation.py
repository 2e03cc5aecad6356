"""Prepare a folder of shards: write them, index them, and check them."""

import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets

from ..utils.files import atomic_write, locked, sha256
from ..utils.redaction import redact
from .shard_arguments import ShardArguments
from .shard_index import check_folder, index_folder
from .shard_writer import DROPPED, JpegEncoder, ShardWriter
from .shards import INDEX
from .sources import load_hub_rows, read_annotations

LOCK = ".preparation.lock"
SETTINGS = "preparation.json"  # the source of the shards in a folder, and the options that decide their content
IRRELEVANT_OPTIONS = ("output_dir", "num_workers", "check")  # to the content of shards


def check(options: ShardArguments) -> None:
    """Compare shards with their index; exit with an error if they differ."""
    problems = check_folder(Path(options.output_dir), options.num_workers)
    if problems:
        sys.exit("\n".join(problems))
    print("All shards match their index.")


def prepare(options: ShardArguments) -> None:
    """Write shards, if there is a source, and an index; holds a lock on the folder."""
    folder = Path(options.output_dir)
    if options.has_source:
        folder.mkdir(parents=True, exist_ok=True)
    elif not folder.is_dir():
        raise ValueError(f"There is no folder {folder}: give a source to make shards from, or another output_dir.")
    with locked(folder / LOCK):
        expected_pairs = write_shards(options, folder) if options.has_source else None
        index = index_folder(folder, options.num_workers, expected_pairs, read_preparation(folder))
    print_summary(index, folder)


def print_summary(index: dict[str, Any], folder: Path) -> None:
    """Print the number of pairs, and what was dropped or skipped for which reason."""
    gigabytes = sum(shard["bytes"] for shard in index["shards"]) / 1e9
    print(f"{index['rows']} pairs in {len(index['shards'])} shards, {gigabytes:.2f} GB, indexed in {folder / INDEX}")
    if index.get("dropped"):
        print(f"rows dropped: {_format_counts(index['dropped'])}; see {folder / DROPPED}")
    if index["left_out"]:
        print(f"members skipped: {_format_counts(index['left_out'])}")
    for reason, member in index["left_out_first"].items():
        print(f"    first {reason}: {member}")


def _format_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))


def write_shards(options: ShardArguments, folder: Path) -> dict[str, int]:
    """Write the shards that do not exist yet; returns the number of pairs that each shard must have."""
    rows = load_rows(options)
    encode = JpegEncoder(
        image_root=options.image_root,
        short_side=options.short_side,
        quality=options.quality,
        exif_transpose=options.exif_transpose,
    )
    writer = ShardWriter(rows, folder, encode, options.rows_per_shard)
    writer.require_usable()
    save_settings(folder, content_settings(options, rows))
    writer.write_all(options.num_workers)
    return writer.expected_pairs()


def load_rows(options: ShardArguments) -> datasets.Dataset:
    """Load the rows of the source, with `image` and `caption`."""
    if not options.dataset:
        return read_annotations(options.train_files, options.dataset_format, options.split, options.image_root)
    return load_hub_rows(
        options.dataset,
        options.dataset_config,
        options.data_files or None,
        options.split,
        streaming=False,
        image_column=options.image_column,
        caption_column=options.caption_column,
    )


def content_settings(options: ShardArguments, rows: datasets.Dataset) -> dict[str, Any]:
    """Return everything that decides the content of the shards, without the secrets of addresses."""
    content = [sha256(Path(file)) for file in options.train_files] or rows._fingerprint
    settings = redact(asdict(options)) | {"rows": len(rows), "content": content}
    return {name: value for name, value in settings.items() if name not in IRRELEVANT_OPTIONS}


def save_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Save the settings of the shards in a folder; refuse a folder with shards of other settings."""
    path = folder / SETTINGS
    previous = redact(read_settings(path)) if path.exists() else {}
    changed = [name for name, value in settings.items() if previous.get(name) != value]
    if changed and any(folder.glob("*.tar")):
        raise ValueError(
            f"{folder} contains shards of other settings ({', '.join(changed)}): set another output_dir, or remove "
            "them."
        )
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def read_settings(path: Path) -> dict[str, Any]:
    """Read the settings that `save_settings` saved."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(settings, dict):
            return settings
        problem = "it is not a JSON object"
    except (ValueError, RecursionError) as error:
        problem = str(error)
    raise ValueError(f"{path} cannot be read ({problem}): set another output_dir, or remove the whole folder.")


def read_reasons(path: Path) -> list[str]:
    """Read the reason of each row in a list of dropped rows."""
    reasons = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            reasons.append(str(json.loads(line)["reason"]))
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise ValueError(f"Line {number} of {path} cannot be read: remove the file, and try again.") from error
    return reasons


def read_preparation(folder: Path) -> dict[str, Any]:
    """Return the settings of the shards and the number of dropped rows by reason, if this command wrote them."""
    known: dict[str, Any] = {}
    if (folder / SETTINGS).exists():
        known["source"] = read_settings(folder / SETTINGS)
    if (folder / DROPPED).exists():
        known["dropped"] = dict(Counter(read_reasons(folder / DROPPED)))
    return known
