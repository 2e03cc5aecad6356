"""Uploaded files: where they are kept, when they are removed, and which files a visitor may name."""

import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from gradio.utils import get_upload_folder

UPLOAD_FOLDER = "GRADIO_TEMP_DIR"  # environment variable of Gradio
NOT_UPLOADED = "This file was not uploaded here. Drop an image into the field, or pick an example."


@contextlib.contextmanager
def temporary_upload_folder() -> Iterator[None]:
    """Keep uploads in a folder of this page, which is removed at the end, on SIGTERM too.

    If `GRADIO_TEMP_DIR` is set, uploads are kept in that folder instead, which is not removed.
    """
    previous = signal.signal(signal.SIGTERM, _exit)
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.environ.setdefault(UPLOAD_FOLDER, folder)
            yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _exit(signum: int, frame: FrameType | None) -> None:
    """Exit by an exception, so that temporary folders are removed; by default, a signal runs no cleanup."""
    signal.signal(signum, signal.SIG_IGN)  # a second signal must not interrupt the cleanup
    sys.exit(128 + signum)


def uploaded_path(upload: Any, example_files: Collection[str]) -> str | None:
    """Return the path of an uploaded image or of an example, and of no other file of the server.

    Gradio passes on what a client sends, and checks the paths of some kinds of requests only.

    Args:
        upload: The value of an image field, a mapping with a path; None if the field is empty.
        example_files: Resolved paths of the examples.

    Raises:
        ValueError: If the path belongs to neither.
    """
    if upload is None:
        return None
    path = upload.get("path") if isinstance(upload, Mapping) else None
    if not isinstance(path, str) or not _may_be_read(path, example_files):
        raise ValueError(NOT_UPLOADED)
    return path


def _may_be_read(path: str, example_files: Collection[str]) -> bool:
    """Whether a path is an example or resolves to an uploaded file; no other place is accessed to find out."""
    folder = Path(get_upload_folder())
    resolved_folder = os.path.realpath(folder)
    try:
        absolute = Path(os.path.abspath(path))
        if not any(absolute.is_relative_to(root) for root in (os.path.abspath(folder), resolved_folder)):
            return str(absolute) in example_files
        return Path(os.path.realpath(absolute)).is_relative_to(resolved_folder)
    except (OSError, ValueError):  # such as a null byte in the path
        return False
