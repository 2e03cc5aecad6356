"""Write files that survive a crash and a full disk, verify them, and lock folders."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


TORCH_WRITE_ERRORS = r"PytorchStreamWriter|inline_container|iostream error|Parent directory .* does not exist"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_record(path: Path) -> dict[str, Any]:
    """Return the size and SHA-256 of a file, to be compared with later."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def size_problem(path: Path, size: int | None) -> str | None:
    """Return how the size of a file differs from the recorded one, or None."""
    if not path.is_file():
        return f"{path} is missing"
    actual_size = path.stat().st_size
    return None if actual_size == size else f"{path} has {actual_size} bytes instead of {size}"


def file_problem(path: Path, record: Mapping[str, Any]) -> str | None:
    """Return how a file differs from its record, or None; this reads the whole file."""
    problem = size_problem(path, record["bytes"])
    if problem is None and sha256(path) != record["sha256"]:
        problem = f"the content of {path} has changed since it was written (SHA-256)"
    return problem


def fsync(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces `path` once it is complete and on the disk.

    If writing fails, the old file stays. Only one process at a time may write a file.

    Example:
        ```python
        with atomic_write(folder / "index.json") as unfinished:
            unfinished.write_text("{}")
        ```
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        yield unfinished
        fsync(unfinished)
        unfinished.replace(path)
    finally:
        with contextlib.suppress(OSError):
            remove(unfinished)
    fsync(path.parent)


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


def listed(names: Iterable[object], limit: int = 5) -> str:
    """Join the first names, and append how many more there are."""
    texts = [str(name) for name in names]
    more = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return f"{', '.join(texts[:limit])}{more}"


@contextlib.contextmanager
def atomic_write_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder, whose files replace those of the same names in `folder`.

    They are replaced only after all of them are on the disk. If one of them cannot be written, all old files stay.
    """
    unfinished = folder / ".new.unfinished"
    remove(unfinished)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        files = [path for path in sorted(unfinished.rglob("*")) if path.is_file()]
        for path in files:
            fsync(path)
        for path in files:
            target = folder / path.relative_to(unfinished)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        fsync(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file, a folder or a link, if it exists; the target of a link stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Writer:
    """Run writes whose failure, for example on a full disk, is reported but does not end the run.

    Args:
        report: Prints a message.

    Attributes:
        failed: The error of each file that could not be written, by its name; removed when it is written later.
    """

    def __init__(self, report: Callable[[str], None]):
        self.report = report
        self.failed: dict[str, str] = {}

    def attempt(self, what: str, write: Callable[[], object]) -> bool:
        """Call `write`, which must keep the old files until the new ones are on the disk.

        Args:
            what: Name of the file in reports. A repeated error is reported once.
            write: Writes the file.

        Returns:
            Whether the file was written.
        """
        try:
            write()
        except Exception as error:
            if not is_write_error(error):
                raise
            problem = f"{type(error).__name__}: {error}"
            is_repeated = self.failed.get(what) == problem
            self.failed[what] = problem
            if not is_repeated:
                self.report(f"{what} could not be written ({problem}); training continues")
            return False
        self.forget(what)
        return True

    def forget(self, *names: str) -> None:
        """Remove files from `failed`, because they were written after all."""
        for name in names:
            self.failed.pop(name, None)


def is_write_error(error: Exception) -> bool:
    """Return True for the errors that the system and the libraries raise when a file cannot be written."""
    if type(error) is RuntimeError:  # of torch.save; other RuntimeErrors come from CUDA or training
        return re.search(TORCH_WRITE_ERRORS, str(error)) is not None
    return isinstance(error, (OSError, SafetensorError)) or type(error) is Exception  # tokenizers raises it


@contextlib.contextmanager
def write_errors_named(path: Path) -> Iterator[None]:
    """Turn any error of a file that cannot be written into an `OSError` that names the path and what to do."""
    try:
        yield
    except Exception as error:
        if not is_write_error(error):
            raise
        raise OSError(
            f"{path} could not be written: {error}. Free disk space, check the permissions, or choose another path."
        ) from error


@contextlib.contextmanager
def new_folder(output_dir: Path) -> Iterator[Path]:
    """Yield where to write the files of `output_dir`; they appear there together, or not at all."""
    existed = output_dir.exists()
    with write_errors_named(output_dir):
        try:
            with atomic_write_folder(output_dir) as folder:
                yield folder
        except BaseException:
            if not existed:
                shutil.rmtree(output_dir, ignore_errors=True)
            raise


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on a file, which the system releases when this process ends, even if it is killed.

    It is a POSIX lock: network file systems support it, and child processes do not inherit it, so an orphaned child
    cannot keep it. On file systems without locks this does nothing.

    Raises:
        BlockingIOError: If another process holds the lock; the message contains its id.
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
        with contextlib.suppress(OSError):  # the name is only used in the message, and the disk may be full
            os.ftruncate(file.fileno(), 0)  # unbuffered; otherwise closing the file would write again, and fail again
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
