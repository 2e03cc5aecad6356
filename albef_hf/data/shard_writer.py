"""Write rows as shards of downscaled images; rows that cannot be used are skipped and listed."""

import io
import json
import tarfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..images_albef import needs_exif_transpose
from ..processing_albef import replace_surrogates
from ..utils.files import atomic_write, fsync
from ..utils.progress import progress
from .captions import valid_captions
from .images import image_file, load_image
from .row_errors import InvalidSampleError
from .row_values import decode_base64_image
from .workers import run_in_workers

DROPPED = "dropped.jsonl"


@dataclass
class JpegEncoder:
    """Encode an image as the JPEG that is stored in a shard.

    Images are never enlarged. A JPEG that is small enough is stored byte for byte.

    Args:
        image_root: Folder that paths are relative to.
        short_side: Maximum of the shorter side in pixels.
        quality: JPEG quality, 1 to 100.
        exif_transpose: Turn images upright by their EXIF orientation, which training does not do.
    """

    image_root: str | None = None
    short_side: int = 384
    quality: int = 90
    exif_transpose: bool = False

    def __call__(self, value: Any) -> tuple[bytes, tuple[int, int], tuple[int, int]]:
        """Encode anything that `load_image` reads.

        Returns:
            The JPEG, its (width, height), and those of the original, after it was turned.

        Raises:
            InvalidSampleError: If the image cannot be used.
        """
        image = load_image(value, self.image_root, self.exif_transpose)
        original_size = image.size
        scale = self.short_side / min(image.size)
        if scale < 1:
            width, height = (max(1, round(side * scale)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        elif not isinstance(value, Image.Image):
            file = image_file(value, self.image_root)
            content = file.read_bytes() if isinstance(file, Path) else file.getvalue()
            with Image.open(io.BytesIO(content)) as encoded:
                is_upright = not (self.exif_transpose and needs_exif_transpose(encoded))
                if is_upright and encoded.format == "JPEG" and encoded.mode in ("RGB", "L"):
                    return content, image.size, original_size
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=self.quality, exif=b"")
        return buffer.getvalue(), image.size, original_size


class ShardWriter(torch.utils.data.Dataset):
    """Write rows as shards: item `n` of this dataset writes shard `n`, so that DataLoader workers write in parallel.

    Shard 0 is `00000.tar`; `00000.dropped.jsonl` lists the rows that were dropped from it. Workers write unfinished
    files only, whose names contain a random id of this run. The process that called `write_all` renames them. So a
    worker that outlives a killed run, maybe one of other settings, neither finishes a shard nor writes to a file of
    another run.

    Args:
        rows: Rows with `image` and `caption`, a text or several.
        folder: Folder for the shards; one process at a time may write there.
        encode: Encodes an image as JPEG.
        rows_per_shard: Source rows per shard.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], folder: Path, encode: JpegEncoder, rows_per_shard: int = 4096
    ):
        self.rows = rows
        self.folder = folder
        self.encode = encode
        self.rows_per_shard = rows_per_shard
        self.run_id = uuid.uuid4().hex[:12]

    def __len__(self) -> int:
        return -(-len(self.rows) // self.rows_per_shard)

    def __getitem__(self, index: int) -> list[dict[str, Any]] | None:
        """Write the unfinished file of a shard.

        Returns:
            The rows that were dropped, each with the reason; None if the shard exists already.
        """
        if self._path(index).exists():
            return None
        unfinished = self._unfinished_path(index)
        try:
            dropped = self._write(unfinished, self._rows(index))
            fsync(unfinished)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        return dropped

    def _write(self, path: Path, rows: range) -> list[dict[str, Any]]:
        dropped = []
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for row in rows:
                try:
                    members = self._members(row)
                except InvalidSampleError as error:
                    dropped.append({"row": row, "reason": error.reason.name.lower(), "detail": error.detail})
                else:
                    _add(tar, f"{row:09d}", members)
        return dropped

    def _finish(self, index: int, dropped: list[dict[str, Any]]) -> None:
        """List the rows that were dropped, then give the shard its name: a shard that exists has its list."""
        listing = self._dropped_path(index)
        if dropped:
            with atomic_write(listing) as unfinished_listing:
                unfinished_listing.write_text("".join(json.dumps(row) + "\n" for row in dropped), encoding="utf-8")
        else:
            listing.unlink(missing_ok=True)
        self._unfinished_path(index).replace(self._path(index))
        fsync(self.folder)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:05d}.tar"

    def _unfinished_path(self, index: int) -> Path:
        return self.folder / f".{index:05d}.tar.{self.run_id}.unfinished"

    def _dropped_path(self, index: int) -> Path:
        return self.folder / f"{index:05d}.{DROPPED}"

    def _rows(self, index: int) -> range:
        """Return the indices of the source rows of a shard."""
        return range(index * self.rows_per_shard, min((index + 1) * self.rows_per_shard, len(self.rows)))

    def _dropped_lines(self, index: int) -> list[str]:
        path = self._dropped_path(index)
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []

    def expected_pairs(self) -> dict[str, int]:
        """Return the number of pairs that each shard must have: its rows without those that were dropped."""
        return {
            self._path(index).name: len(self._rows(index)) - len(self._dropped_lines(index))
            for index in range(len(self))
        }

    def require_usable(self, max_tries: int = 100) -> None:
        """Check that one of the first rows can be used, which fails for example with a wrong `image_root`.

        Raises:
            ValueError: If none of the first rows can be used, or there is no row.
        """
        last_error = None
        for row in range(min(max_tries, len(self.rows))):
            try:
                self._members(row)
            except InvalidSampleError as error:
                last_error = error
            else:
                return
        raise ValueError(
            f"The source has {len(self.rows)} rows, and none of the first {max_tries} can be used"
            f"{f' ({last_error})' if last_error else ''}: check its files, image_root and the columns."
        )

    def write_all(self, workers: int = 0) -> None:
        """Write all shards that do not exist yet, and `dropped.jsonl`, the list of all rows that were dropped.

        Args:
            workers: Processes that write; 0 writes in this process.
        """
        self._remove_unfinished()
        with progress(total=len(self.rows), desc="shards", unit="row") as bar:
            for index, dropped in enumerate(run_in_workers(self, workers)):
                if dropped is not None:
                    self._finish(index, dropped)
                bar.update(len(self._rows(index)))
        self._remove_unfinished()
        lines = [line for index in range(len(self)) for line in self._dropped_lines(index)]
        with atomic_write(self.folder / DROPPED) as unfinished:
            unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def _remove_unfinished(self) -> None:
        """Remove what interrupted runs left, and their workers, which may live a moment longer than the run."""
        for path in self.folder.glob(".*.unfinished"):
            path.unlink(missing_ok=True)

    def _members(self, row_index: int) -> dict[str, bytes]:
        """Return the files of a row, by their extension."""
        row = self.rows[row_index]
        captions = [replace_surrogates(caption) for caption in valid_captions(row["caption"])]
        image, size, original_size = self.encode(row["image"])
        about: dict[str, Any] = {"key": f"{row_index:09d}", "caption": captions, "width": size[0], "height": size[1]}
        about |= {"original_width": original_size[0], "original_height": original_size[1]}
        if isinstance(row["image"], str) and decode_base64_image(row["image"]) is None:
            about["image"] = row["image"]
        return {"jpg": image, "json": json.dumps(about).encode(), "txt": captions[0].encode()}


def _add(tar: tarfile.TarFile, key: str, members: dict[str, bytes]) -> None:
    for extension, content in members.items():
        member = tarfile.TarInfo(f"{key}.{extension}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
