"""The short benchmarks run, on little work; what they measure here means nothing."""

import json
import os
import runpy
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from paths import REPOSITORY

only_long = pytest.mark.skipif(not os.environ.get("ALBEF_LONG"), reason="takes long: ALBEF_LONG=1 runs it")


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


@only_long
def test_cheap_steps_are_compared(benchmark):
    variant = "both encoders frozen, states from a cache"
    assert f"| {variant} |" in benchmark(
        "cheap_training.py", "--repetitions", "1", "--batch_size", "2", "--only", variant
    )


@only_long
def test_an_image_encoder_is_tried(benchmark):
    row = next(
        line for line in benchmark("image_encoders.py", "--kinds", "ConvNeXt").splitlines() if "ConvNeXt" in line
    )
    assert row.startswith("| ConvNeXt | pooler | 5x32 | yes | difference 0e+00 | 96x160: 3x5 | 2x2 | 2x2 | yes |")
    assert row.endswith("| difference 0e+00 |")


def test_the_parts_of_a_step_are_measured(benchmark):
    options = ["--repetitions", "1", "--batch_size", "2", "--variants", "float32", "--output", "parts.png"]
    assert "| teacher |" in benchmark("time_by_part.py", *options)
    assert Path("parts.png").stat().st_size > 0


@pytest.mark.parametrize("script", ["growth", "index", "reference_texts", "reranking", "vqa_ranking"])
def test_a_long_benchmark_explains_itself(benchmark, script, capsys):
    with pytest.raises(SystemExit):
        benchmark(f"{script}.py", "--help")
    assert f"python benchmarks/{script}.py" in capsys.readouterr().out


def test_a_step_is_accounted_for(benchmark):
    options = ["--size", "small", "--pairs", "4", "--queue_size", "16", "--precisions", "no", "--operations", "3"]
    printed = benchmark("account.py", *options)
    assert "Assumptions: size small" in printed
    plain, checkpointed = [line.split(" | ") for line in printed.splitlines() if line.startswith("| 4 | float32")]
    assert [int(cells[4].replace(",", "")) > 1000 for cells in (plain, checkpointed)] == [True, True]
    assert float(checkpointed[8]) <= float(plain[8]) and printed.count("| operation |") == 2


def test_all_measurements_of_a_gpu_run_on_a_cpu(benchmark, monkeypatch):
    monkeypatch.setattr("measure.apart", lambda threads, work, *arguments: work(*arguments))  # in this process
    options = ["--repetitions", "1", "--batch_sizes", "2", "--variants", "bf16", "--images", "4", "--workers", "1"]
    printed = benchmark("gpu.py", *options)
    rows = [json.loads(line) for line in Path("gpu.jsonl").read_text().splitlines()]
    assert Counter(row["measurement"] for row in rows) == {
        "training": 1, "evaluation": 2, "index": 1, "search": 1, "loading": 2
    }  # fmt: skip
    assert all(row["per_second"] > 0 and row["size"] == "small" for row in rows)
    assert all(f"| {row['measurement']} | {row['setting']} |" in printed for row in rows)


@only_long
def test_a_checkout_is_compared_with_itself(benchmark):
    options = ["--repetitions", "1", "--pairs", "2", "--images", "2", "--k", "2"]
    printed = benchmark("compare.py", str(REPOSITORY), *options)
    for kind in ("step", "evaluation"):
        assert f"| {kind} float32 |" in printed and f"| {kind} bf16 |" in printed
