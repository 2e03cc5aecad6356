"""Evaluate a fine-tuned ALBEF on a downstream task: metrics and every prediction go to a folder.

Give --task first: --task NAME --help lists the options, of which --model names what to evaluate. Question answering
chooses from the answers of --train_files, or from an --answer_list. Without --output_dir, results go to the folder
evaluation in that of the model.
"""

import argparse
import os
import sys
from pathlib import Path

# This folder has an evaluate.py, which would hide the library of that name.
sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).parent.resolve()]

from huggingface_hub.errors import StrictDataclassError

from albef_hf.tasks import find_task, task_names
from albef_hf.tasks.base import LATER_RESULTS, FineTuningOptions, Task, load_trained_model, write_results
from albef_hf.training.trainer import make_accelerator
from albef_hf.utils.options import parse_options, redact, with_defaults
from albef_hf.utils.progress import log_library_progress


def main(arguments: list[str]) -> None:
    """Read the options, evaluate, write."""
    chooser = argparse.ArgumentParser(add_help=False)
    chooser.add_argument("--task", choices=task_names(), required=not {"-h", "--help"} & {*arguments})
    chosen, rest = chooser.parse_known_args(arguments)
    kind = find_task(chosen.task or task_names()[0])
    options_class = with_defaults(kind.options_class, output_dir="")
    options = parse_options(options_class, f"{__doc__}\nThese are the options of {kind.name}.", rest)
    log_library_progress()
    try:
        evaluate(kind, options)
    except (ValueError, RuntimeError, OSError, StrictDataclassError) as error:
        if os.environ.get("ALBEF_TRACEBACK"):
            raise
        sys.exit(f"error: {redact(str(error))}\n(set ALBEF_TRACEBACK=1 to see where it happened)")


def results_folder(options: FineTuningOptions) -> Path:
    """Where the results go; beside a model they get a folder of their own, since its training has left such files."""
    folder = Path(options.output_dir or options.model)
    if (folder / "config.json").exists():
        return folder / LATER_RESULTS
    return folder if options.output_dir else Path("runs/evaluation")


def evaluate(kind: type[Task], options: FineTuningOptions) -> dict[str, float]:
    """Metrics of a model on the validation rows; the main process prints and writes them."""
    folder = results_folder(options)
    options.output_dir = str(folder)
    accelerator = make_accelerator(options)
    model, processor = load_trained_model(kind, options)
    task = kind(options, processor)
    rows = task.validation_rows()
    metrics, predictions = task.evaluate(model.to(accelerator.device), rows, accelerator)
    metrics |= task.evaluate_exchanged(model, rows, accelerator)
    if accelerator.is_main_process:
        write_results(folder, metrics, predictions)
        for name, value in metrics.items():
            print(f"{name:28s} {value:8.2f}")
        print(f"left out or cut: {task.findings}")
        print(f"{len(predictions)} predictions and metrics.json are in {folder}")
    return metrics


if __name__ == "__main__":
    main(sys.argv[1:])
