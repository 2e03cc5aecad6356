"""Another version of the package against this one: a repetition of each in turn, so that both meet the same machine.

    git worktree add ../before COMMIT
    python benchmarks/compare.py ../before
    python benchmarks/compare.py ../before --size base --pairs 4 --images 16 --repetitions 3

A pretraining step (as in `pretraining_step.py`), a retrieval evaluation (as in `retrieval_evaluation.py`) and a whole
fine-tuning for VQA on built-in scenes, each in a process of its own with one thread, in units of a matrix product that
is measured beside each repetition.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import retrieval_evaluation
import torch
from pretraining_step import ALPHA, package_training
from sizes import QUEUES, SIZES, make_config
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar

from albef_hf.retrieval_albef import score_all
from albef_hf.tasks.arguments import VqaArguments
from albef_hf.tasks.vqa import VisualQuestionAnswering
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.run import run

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
EAGER = [("step", "bf16"), ("vqa", "bf16")]  # works for which eager attention is faster on a CPU
KINDS = ("step", "evaluation", "vqa")


def make_step(options: argparse.Namespace, precision: str, attention: str) -> Callable[[], object]:
    """Return a training step on the same batch."""
    args = TrainingArguments(
        alpha=ALPHA,
        alpha_ramp_steps=0,
        per_device_train_batch_size=options.pairs,
        mixed_precision="bf16" if precision == "bf16" else "no",
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    _, step = package_training(make_config(options.size, attention), QUEUES[options.size], options.pairs, args)
    step()  # in the first one the training itself counts operations, which would be counted too
    return step


def make_evaluation(options: argparse.Namespace, precision: str, attention: str) -> Callable[[], object]:
    """Return an evaluation of the same images and texts."""
    inputs = retrieval_evaluation.make_inputs(options.size, options.images, DTYPES[precision], attention)
    captions = torch.arange(retrieval_evaluation.CAPTIONS * options.images).view(options.images, -1).tolist()
    return lambda: score_all(*inputs, range(options.images), captions, options.k)


def make_vqa(options: argparse.Namespace, precision: str, attention: str) -> Callable[[], object]:
    """Return a fine-tuning from new weights, with few rows to evaluate on."""
    args = VqaArguments(
        model_config=json.dumps(SIZES[options.size]),
        output_dir=options.folder,
        overwrite_output_dir=True,
        scenes=options.pairs * options.vqa_steps,
        validation_size=10,
        num_train_epochs=1,
        per_device_train_batch_size=options.pairs,
        mixed_precision="bf16" if precision == "bf16" else "no",
        attn_implementation=attention,
        dataloader_num_workers=0,
        exchanged_images=False,
        text_only_baseline=False,
    )
    return lambda: run(VisualQuestionAnswering, args)


def serve(options: argparse.Namespace) -> None:
    """Measure a repetition for each line of the standard input, and print it."""
    with tempfile.TemporaryDirectory() as options.folder:
        serve_in(options)


def serve_in(options: argparse.Namespace) -> None:
    """Measure as `serve` does, with a folder in `options` for what trainings write."""
    torch.set_num_threads(1)
    disable_progress_bar()
    kind, precision = options.work
    make = {"step": make_step, "evaluation": make_evaluation, "vqa": make_vqa}[kind]
    # A training counts operations itself, which would be counted, too.
    flops = 0 if kind == "vqa" else measure.count_flops(make(options, "float32", "eager"))
    work = make(options, precision, "eager" if (kind, precision) in EAGER else "sdpa")
    work()
    print(json.dumps("ready"), flush=True)
    for _ in sys.stdin:
        measured = measure.repeat(work, 1, 1, DTYPES[precision], warm_up=0)
        share = flops / measured.seconds[0] / measured.rate
        print(json.dumps({"units": measured.units[0], "share": share}), flush=True)


def start(checkout: Path, work: tuple[str, str]) -> subprocess.Popen:
    """Start a process that serves repetitions of some work of the package in a checkout."""
    command = [sys.executable, __file__, *sys.argv[1:], "--work", *work]
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer(process: subprocess.Popen) -> Any:
    """Return the next line that a process prints as JSON."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(('"', "{")):  # not what a training prints
            return json.loads(line)
    raise SystemExit(f"a measurement ended with exit code {process.wait()}; its error is above")


def repetition(process: subprocess.Popen) -> dict[str, float]:
    """Let a process measure one repetition, and return the result."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return answer(process)


def compare(options: argparse.Namespace, work: tuple[str, str]) -> str:
    """Return a line of the table."""
    here = Path(__file__).resolve().parents[1]
    processes = [start(checkout, work) for checkout in (options.checkout, here)]
    for process in processes:
        answer(process)  # so that neither is measured while the other one prepares
    rounds = [[repetition(process) for process in processes] for _ in range(options.repetitions)]
    for process in processes:
        process.communicate()
    before, now = zip(*rounds, strict=True)
    units = [f"{statistics.median(entry['units'] for entry in version):.1f}" for version in (before, now)]
    shares = [statistics.median(entry["share"] for entry in version) for version in (before, now)]
    speedups = [first["units"] / second["units"] for first, second in rounds]
    speedup = f"{statistics.median(speedups):.2f} ({min(speedups):.2f} to {max(speedups):.2f})"
    cells = [" ".join(work), *units, speedup, *(f"{share:.0%}" if share else "" for share in shares)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Compare all kinds of work, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5, help="of each version; the median counts")
    parser.add_argument("checkout", type=Path, help="folder of another version of the repository")
    parser.add_argument("--size", choices=SIZES, default="small", help="base is the paper's")
    parser.add_argument("--pairs", type=int, default=16, help="pairs in a step")
    parser.add_argument("--images", type=int, default=64, help="images of an evaluation, with five texts each")
    parser.add_argument("--k", type=int, default=16, help="candidates of each query that are reranked")
    parser.add_argument("--vqa_steps", type=int, default=50, help="steps of the fine-tuning")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of work; by default all")
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=list(DTYPES), help="by default both")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        serve(options)
        return
    if not (options.checkout / "albef_hf").is_dir():
        parser.error(f"{options.checkout} has no folder albef_hf")
    print("| work | before, units | now | speedup | of the matmul rate, before | now |")
    print("|---|---|---|---|---|---|", flush=True)
    for work in tqdm([(kind, precision) for kind in options.kinds for precision in options.precisions]):
        tqdm.write(compare(options, work))


if __name__ == "__main__":
    main()
