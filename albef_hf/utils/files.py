"""Files that have to be on the disk, what they have to hold, and who may write them."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


TORCH_WRITE_ERRORS = r"PytorchStreamWriter|inline_container|iostream error|Parent directory .* does not exist"


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
    try:
        yield aside
        flush(aside)
        aside.replace(path)
    finally:
        with contextlib.suppress(OSError):
            remove(aside)
    flush(path.parent)


def load_weights(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        ValueError: If the file is empty or damaged.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        size = os.path.getsize(path)
        what = f"is damaged after {size:,} bytes ({error})" if size else "is empty"
        raise ValueError(f"{path} {what}: download it or write it again.") from None


def listed(names: Iterable[object], most: int = 5) -> str:
    """Return the first of some names, and how many there are beside."""
    names = [str(name) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


@contextlib.contextmanager
def folder_written_aside(folder: Path) -> Iterator[Path]:
    """Yield an empty folder; its files replace those of the same names in `folder`, once all of them are on the disk.

    So the files belong together: if one of them cannot be written, all old ones stay.
    """
    aside = folder / ".new.unfinished"
    remove(aside)
    aside.mkdir(parents=True)
    try:
        yield aside
        files = [path for path in sorted(aside.rglob("*")) if path.is_file()]
        for path in files:
            flush(path)
        for path in files:
            target = folder / path.relative_to(aside)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        flush(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file, a folder or a link, if it exists; what a link points to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Writer:
    """Writes what a run leaves behind; a write that fails, such as on a full disk, is reported and the run continues.

    Args:
        say: Takes the reports.

    Attributes:
        failed: What could not be written, with the error, until it is written after all.
    """

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.failed: dict[str, str] = {}

    def attempt(self, what: str, write: Callable[[], object]) -> bool:
        """Write; `write` has to leave the old files alone until the new ones are on the disk.

        Args:
            what: Its name in the report; the same error is reported once in a row.
            write: Writes.

        Returns:
            Whether it has been written.
        """
        try:
            write()
        except Exception as error:
            if not is_write_error(error):
                raise
            problem, before = f"{type(error).__name__}: {error}", self.failed.get(what)
            self.failed[what] = problem
            if problem != before:
                self.say(f"{what} could not be written ({problem}); training continues")
            return False
        self.forget(what)
        return True

    def forget(self, *names: str) -> None:
        """Take note that these are written after all."""
        for name in names:
            self.failed.pop(name, None)


class UnfailingStream:
    """A text stream that drops what cannot be written, as on a full disk or when its reader is gone."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write, if that is possible."""
        with contextlib.suppress(OSError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, if that is possible."""
        with contextlib.suppress(OSError):
            self.stream.flush()


def keep_output_from_failing() -> None:
    """Let no progress bar or message end this process when its standard output or error cannot be written."""
    sys.stdout, sys.stderr = UnfailingStream(sys.stdout), UnfailingStream(sys.stderr)


def is_write_error(error: Exception) -> bool:
    """Return True for what the system and the libraries raise when a file cannot be written."""
    if type(error) is RuntimeError:  # of torch.save; CUDA's errors and those of the training are others
        return re.search(TORCH_WRITE_ERRORS, str(error)) is not None
    return isinstance(error, (OSError, SafetensorError)) or type(error) is Exception  # which tokenizers raises


@contextlib.contextmanager
def write_errors_named(path: Path) -> Iterator[None]:
    """Turn the error of safetensors for a file that cannot be written into an `OSError` that names the path."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from error


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
            os.ftruncate(file.fileno(), 0)  # unbuffered, as closing the file would write the rest and fail again
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
