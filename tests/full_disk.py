"""Make every write of this process fail above a file size, with the errors that a full disk causes."""

import contextlib
import resource
from collections.abc import Iterator

import pytest

# TensorBoard writes in a thread of its own, where an error cannot be caught.
TENSORBOARD = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let the operating system refuse files above `size` bytes, which every library reports as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
