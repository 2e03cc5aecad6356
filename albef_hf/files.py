"""Files that have to be on the disk, and what they have to hold."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from .compatibility_albef import follow_umask


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":  # where folders cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Where to write a file, which gets its name when all of it is on the disk; what had the name is replaced.

    Example:
        ```python
        with written_aside(folder / "index.json") as aside:
            aside.write_text("{}")
        ```
    """
    aside = path.with_name(f".{path.name}.unfinished")
    yield aside
    follow_umask([aside])
    flush(aside)
    aside.replace(path)
    flush(path.parent)
