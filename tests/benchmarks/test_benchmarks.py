"""The short benchmarks run, on little work; what they measure here means nothing."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from paths import REPOSITORY


@pytest.fixture
def benchmark(monkeypatch, tmp_path, capsys) -> Callable[..., str]:
    """Run a script as a program, in this process and an empty folder; return what it has printed."""

    def run(script: str, *arguments: str) -> str:
        path = REPOSITORY / "benchmarks" / script
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        monkeypatch.chdir(tmp_path)
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


def test_loading_of_images_is_measured(benchmark):
    assert "| 640x480 |" in benchmark("image_loading.py", "--repetitions", "1")


def test_the_parts_of_a_step_are_measured(benchmark):
    options = ["--repetitions", "1", "--batch_size", "2", "--variants", "float32", "--output", "parts.png"]
    assert "| teacher |" in benchmark("time_by_part.py", *options)
    assert Path("parts.png").stat().st_size > 0


@pytest.mark.parametrize("script", ["growth", "index", "reranking", "vqa_ranking"])
def test_a_long_benchmark_explains_itself(benchmark, script, capsys):
    with pytest.raises(SystemExit):
        benchmark(f"{script}.py", "--help")
    assert f"python benchmarks/{script}.py" in capsys.readouterr().out
