"""Files that have to be on the disk, and what they have to hold."""

import contextlib
import errno
import hashlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from .compatibility_albef import follow_umask

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


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
def written_aside(path: Path, process: int | None = None) -> Iterator[Path]:
    """Where to write a file, which gets its name when all of it is on the disk; what had the name is replaced.

    Args:
        path: The name.
        process: Id of the process that writes, where several may write the same file.

    Example:
        ```python
        with written_aside(folder / "index.json") as aside:
            aside.write_text("{}")
        ```
    """
    aside = path.with_name(f".{path.name}{'' if process is None else f'.{process}'}.unfinished")
    yield aside
    follow_umask([aside])
    flush(aside)
    aside.replace(path)
    flush(path.parent)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which ends with this process, however it ends.

    It is a POSIX lock: network file systems support it, and child processes do not inherit it, so that none of them
    can keep it. Where a file system has no locks, there is no lock.

    Raises:
        BlockingIOError: If another process holds it; the message names that process.
    """
    with path.open("a+", encoding="utf-8") as file:
        try:
            if fcntl:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                holder = file.read(200).strip() or "another process"
                raise BlockingIOError(f"{path.parent} is in use by {holder}") from None
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        with contextlib.suppress(OSError):  # the name is only for the message, and the disk may be full
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield
