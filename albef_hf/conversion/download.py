"""Download a published checkpoint once: resumed after an interruption, checked, and kept in the cache."""

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata
from huggingface_hub.file_download import HfFileMetadata, http_get
from transformers.utils import logging

from ..utils.files import atomic_write, file_problem, file_record, locked, write_errors_named
from ..utils.progress import progress
from ..utils.redaction import redact
from .checkpoints import check_archive
from .published import ADDRESS

logger = logging.get_logger(f"transformers.{__name__}")

ADDRESS_VARIABLE = "ALBEF_CHECKPOINTS_URL"  # environment variable: another address, such as a mirror
TORCH_FILES = (b"PK\x03\x04", b"\x80")  # what torch.save writes first: a zip archive, before torch 1.6 a pickle


def cached_checkpoint(file: str) -> tuple[Path, dict[str, Any]]:
    """Return a file of `ADDRESS` from the cache, where it is downloaded to first if it is not there.

    The cache is `albef_hf` in `HF_HOME`. A download that was interrupted is resumed if the file on the server is still
    the same, by its ETag and size. A file that has changed on the server is downloaded again.

    Args:
        file: Name of the file.

    Returns:
        The path, and what is written beside it: `url`, `etag`, `bytes` and `sha256`.

    Raises:
        OSError: If the server cannot be reached, does not have the file, or sent something else than a checkpoint.
        BlockingIOError: If another process downloads the file.
    """
    folder = Path(constants.HF_HOME) / "albef_hf"
    url = f"{os.environ.get(ADDRESS_VARIABLE, ADDRESS).rstrip('/')}/{file}"
    with write_errors_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / file
    with locked(folder / f".{file}.lock"):
        record = _read_record(path)
        if record and record["url"] != redact(url):
            record = None
        try:
            with _errors_named(url):
                served = get_hf_file_metadata(url, token=False)
        except OSError as error:
            if record is None:
                raise
            logger.warning(f"{error} The file in the cache, {path}, is used.")
            return path, record
        if record is None or served.etag != record["etag"] or served.size not in (None, record["bytes"]):
            record = _download(url, path, served)
        return path, record


def _record_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _read_record(path: Path) -> dict[str, Any] | None:
    """Return the record of a complete file; None if it has to be downloaded."""
    try:
        record = json.loads(_record_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    problem = file_problem(path, record)
    if problem:
        logger.warning(f"{problem}: it is downloaded again.")
    return None if problem else record


def _download(url: str, path: Path, served: HfFileMetadata) -> dict[str, Any]:
    """Download to a `.part` file, which only becomes `path` when it is complete and a checkpoint."""
    part = _prepare_part(url, path, served)
    done = part.stat().st_size if part.exists() else 0
    logger.warning(f"Downloading {redact(url)} to {path}" + (f", resumed after {done:,} bytes" if done else ""))
    # Between request and answer the file may change: the server then sends all of it.
    headers = {"Accept-Encoding": "identity"} | ({"If-Range": f'"{served.etag}"'} if served.etag else {})
    with _errors_named(url, part), part.open("ab") as file:
        bar: Any = progress  # http_get calls it as it calls tqdm
        settings = {"expected_size": served.size, "displayed_filename": path.name, "tqdm_class": bar}
        http_get(url, file, resume_size=done, headers=headers, **settings)
    _check_content(url, part)
    record = {"url": redact(url), "etag": served.etag, **file_record(part)}
    with write_errors_named(path), atomic_write(_record_path(path)) as unfinished:
        part.replace(path)
        unfinished.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def _prepare_part(url: str, path: Path, served: HfFileMetadata) -> Path:
    """Return where to download to, and remove parts of other versions of the file."""
    version = hashlib.sha256(f"{url} {served.etag} {served.size}".encode()).hexdigest()[:12]
    part = path.with_name(f"{path.name}.{version}.part")
    for other in path.parent.glob(f"{path.name}.*.part"):
        is_same = other == part and served.etag  # without an ETag nothing tells versions apart
        if not is_same or other.stat().st_size > (served.size or 0):
            other.unlink()
    return part


def _check_content(url: str, part: Path) -> None:
    """Remove a file that is damaged or not a checkpoint, such as the page of a proxy, and raise."""
    with part.open("rb") as file:
        start = file.read(64)
    if not start.startswith(TORCH_FILES):
        size = part.stat().st_size
        part.unlink()
        raise OSError(
            f"{redact(url)} is not a checkpoint: the server sent {size:,} bytes that start with {start!r}. If this is "
            "the page of a proxy or a login, open the address in a browser, save the file, and convert that."
        )
    if start.startswith(b"PK"):
        try:
            check_archive(part)
        except (ValueError, zipfile.BadZipFile) as error:
            part.unlink()
            raise OSError(f"The download of {redact(url)} is damaged and was removed: {error}") from error


@contextlib.contextmanager
def _errors_named(url: str, part: Path | None = None) -> Iterator[None]:
    """Turn the errors of huggingface_hub, whose kinds depend on its version, into an `OSError` with the remedy."""
    try:
        yield
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        problem = f"the server answered {status}" if status else str(error).split("\n")[0] or type(error).__name__
        if status == 416 and part:  # the part is as long as the file, though the server has announced more
            part.unlink()
        arrived = part.stat().st_size if part and part.exists() else 0
        if arrived:
            problem += f" ({arrived:,} bytes have arrived: the same command continues behind them)"
        message = f"{url} cannot be downloaded: {problem}. {ADDRESS_VARIABLE} can be the address of a mirror."
        raise OSError(redact(message)) from error
