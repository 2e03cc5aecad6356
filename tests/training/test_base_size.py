"""The paper's size runs on a CPU."""

import os
import subprocess
import sys

import pytest
from paths import TESTS

SCRIPT = TESTS / "base_size_step.py"


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="peak memory is read from the resource module, which Unix has")
def test_one_step_at_base_size_within_six_gigabytes():
    run = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    parameters, finite, gigabytes = run.stdout.split()[-3:]
    assert parameters == str(304444 + 209633281)  # those of the original, see misc.json
    assert finite == "True"
    assert float(gigabytes) < 6
