"""Output that cannot be written."""

import pytest
from tqdm import tqdm

from albef_hf.utils.output import UnfailingStream


def test_output_that_cannot_be_written_is_dropped():
    full = open("/dev/full", "w")  # noqa: SIM115 (it cannot be closed without an error)
    stream = UnfailingStream(full)
    for _ in tqdm(range(3), file=stream):
        print("longer than its buffer" * 1000, file=stream, flush=True)
    with pytest.raises(OSError):
        full.close()
