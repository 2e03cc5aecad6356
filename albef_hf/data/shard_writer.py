"""Shards from rows: pictures made smaller, what cannot be used left out and noted."""

import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..images_albef import is_turned
from ..processing_albef import encodable
from ..utils.files import written_aside
from ..utils.progress import progress
from .pairs import BadSampleError, image_file, load_image, load_upright, usable_captions
from .row_values import decode_base64_image
from .shards import results_of

DROPPED = "dropped.jsonl"


@dataclass
class PictureEncoder:
    """Makes of a picture the JPEG that goes into a shard.

    A picture is never enlarged, and a JPEG that is small enough stays as it is, byte for byte.

    Args:
        image_root: Folder that paths are relative to.
        short_side: Pixels that the shorter side has at most.
        quality: Of the JPEG, 1 to 100.
        exif_transpose: Turn pictures as their EXIF orientation says, which a training does not.
    """

    image_root: str | None = None
    short_side: int = 384
    quality: int = 90
    exif_transpose: bool = False

    def __call__(self, value: Any) -> tuple[bytes, tuple[int, int], tuple[int, int]]:
        """Encode what `load_image` reads.

        Returns:
            The JPEG, its width and height, and those of the original, which may have been turned.

        Raises:
            BadSampleError: If the picture cannot be used.
        """
        image = (load_upright if self.exif_transpose else load_image)(value, self.image_root)
        original_size = image.size
        scale = self.short_side / min(image.size)
        if scale < 1:
            size = [max(1, round(side * scale)) for side in image.size]
            image = image.resize(size, Image.Resampling.LANCZOS)
        elif not isinstance(value, Image.Image):
            file = image_file(value, self.image_root)
            content = file.read_bytes() if isinstance(file, Path) else file.getvalue()
            with Image.open(io.BytesIO(content)) as encoded:
                stays = not (self.exif_transpose and is_turned(encoded))
                if stays and encoded.format == "JPEG" and encoded.mode in ("RGB", "L"):
                    return content, image.size, original_size
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=self.quality, exif=b"")
        return buffer.getvalue(), image.size, original_size


class ShardWriter(torch.utils.data.Dataset):
    """Writes shard `n` of some rows when item `n` is asked for, unless it is there; so a data loader's workers do it.

    A shard is `00000.tar`, written aside and then named; `00000.dropped.jsonl` has the rows that were left out. A file
    that is not finished has the id of its process in its name, so that a worker that was left over does no harm.

    Args:
        rows: With `image` and `caption`, a text or several.
        folder: Where shards go.
        encode: Makes a JPEG of a picture.
        rows_per_shard: Rows of the source that a shard is made of.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], folder: Path, encode: PictureEncoder, rows_per_shard: int = 4096
    ):
        self.rows, self.folder, self.encode, self.rows_per_shard = rows, folder, encode, rows_per_shard

    def __len__(self) -> int:
        return -(-len(self.rows) // self.rows_per_shard)

    def __getitem__(self, number: int) -> int:
        """Write a shard; returns how many rows of the source it was made of."""
        path, rows = self._path(number), self._rows(number)
        if path.exists():
            return len(rows)
        dropped = []
        with written_aside(path, os.getpid()) as aside:
            with tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT) as tar:
                for row in rows:
                    try:
                        members = self._members(row)
                    except BadSampleError as error:
                        dropped.append({"row": row, "reason": error.issue.name.lower(), "detail": error.detail})
                    else:
                        _add(tar, f"{row:09d}", members)
            _require_parent()
            note = path.with_suffix(f".{DROPPED}")
            if dropped:
                with written_aside(note, os.getpid()) as note_aside:
                    note_aside.write_text("".join(json.dumps(row) + "\n" for row in dropped), encoding="utf-8")
            else:
                note.unlink(missing_ok=True)
        return len(rows)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05d}.tar"

    def _rows(self, number: int) -> range:
        """Rows of the source that a shard is made of."""
        return range(number * self.rows_per_shard, min((number + 1) * self.rows_per_shard, len(self.rows)))

    def expected_pairs(self) -> dict[str, int]:
        """Return how many pairs each shard has to have: its rows without those that were left out."""
        expected = {}
        for number in range(len(self)):
            path = self._path(number)
            note = path.with_suffix(f".{DROPPED}")
            dropped = len(note.read_text(encoding="utf-8").splitlines()) if note.exists() else 0
            expected[path.name] = len(self._rows(number)) - dropped
        return expected

    def require_usable(self, tried: int = 100) -> None:
        """Refuse rows none of which can be used, as when `image_root` is wrong, by trying some.

        Raises:
            ValueError: If none of the first can be used, or there is none.
        """
        last = None
        for row in range(min(tried, len(self.rows))):
            try:
                self._members(row)
            except BadSampleError as error:
                last = error
            else:
                return
        raise ValueError(
            f"The source has {len(self.rows)} rows, and none of the first {tried} can be used"
            f"{f' ({last})' if last else ''}: check its files, image_root and the columns."
        )

    def write_all(self, workers: int = 0) -> None:
        """Write all shards that are not there, and a list of what was left out.

        Args:
            workers: Processes that write; 0 writes in this one.
        """
        for unfinished in self.folder.glob(".*.unfinished"):  # of a preparation that was interrupted
            unfinished.unlink(missing_ok=True)
        with progress(total=len(self.rows), desc="shards", unit="row") as bar:
            for rows in results_of(self, workers):
                bar.update(rows)
        parts = sorted(self.folder.glob(f"*.{DROPPED}"))
        lines = [line for part in parts for line in part.read_text(encoding="utf-8").splitlines()]
        with written_aside(self.folder / DROPPED) as aside:
            aside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def _members(self, number: int) -> dict[str, bytes]:
        """What a row becomes in the tar file."""
        row = self.rows[number]
        captions = [encodable(caption) for caption in usable_captions(row["caption"])]
        image, size, original_size = self.encode(row["image"])
        about = {"key": f"{number:09d}", "caption": captions, "width": size[0], "height": size[1]}
        about |= {"original_width": original_size[0], "original_height": original_size[1]}
        if isinstance(row["image"], str) and decode_base64_image(row["image"]) is None:
            about["image"] = row["image"]
        return {"jpg": image, "json": json.dumps(about).encode(), "txt": captions[0].encode()}


def _require_parent() -> None:
    """Refuse to name a shard in a worker whose preparation has ended: another one may write to the folder by now."""
    parent = torch.multiprocessing.parent_process()
    if parent and os.getppid() != parent.pid:
        raise RuntimeError("the preparation that has started this process has ended")


def _add(tar: tarfile.TarFile, key: str, members: dict[str, bytes]) -> None:
    for kind, content in members.items():
        member = tarfile.TarInfo(f"{key}.{kind}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
