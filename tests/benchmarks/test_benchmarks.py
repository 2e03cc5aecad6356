"""The short benchmarks run, on little work; what they measure here means nothing."""

import os
import subprocess
import sys

import pytest
from paths import REPOSITORY


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("image_loading.py", ["--repetitions", "1"], "| 640x480 |"),
        (
            "cheap_training.py",
            ["--repetitions", "1", "--batch_size", "2", "--only", "both encoders frozen, states from a cache"],
            "| both encoders frozen, states from a cache |",
        ),
        ("time_by_part.py", ["--repetitions", "1", "--batch_size", "2", "--output", "parts.png"], "| teacher |"),
    ],
)
def test_a_benchmark_runs(script, arguments, said, tmp_path):
    command = [sys.executable, str(REPOSITORY / "benchmarks" / script), *arguments]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert said in ended.stdout


@pytest.mark.parametrize("script", ["growth", "index", "reranking", "vqa_ranking"])
def test_a_long_benchmark_explains_itself(script, tmp_path):
    command = [sys.executable, str(REPOSITORY / "benchmarks" / f"{script}.py"), "--help"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert f"python benchmarks/{script}.py" in shown.stdout
