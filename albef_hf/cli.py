"""The command `albef`, also `python -m albef_hf`.

It parses the command line first and imports what a command needs afterwards, so that `--help` is fast.
"""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .training.signals import end_with_launcher
from .utils.output import keep_output_from_failing
from .utils.redaction import redact

TRACEBACK = "ALBEF_TRACEBACK"  # environment variable

# The extra of setup.cfg that brings a library, which is imported under this name.
EXTRAS = {
    "accelerate": "train",
    "datasets": "train",
    "evaluate": "train",
    "faiss": "search",
    "filelock": "search",
    "gradio": "demo",
    "matplotlib": "train",
    "onnx": "export",
    "onnxruntime": "export",
    "onnxscript": "export",
    "peft": "lora",
    "scipy": "train",
    "sklearn": "train",
    "yaml": "train",
}


def pretrain(arguments: list[str]) -> None:
    """Pretrain ALBEF on image-text pairs, by default on the built-in scenes."""
    from .training.arguments import PretrainingArguments
    from .utils.command_line import parse_arguments

    description = (
        "Pretrain ALBEF: contrast, matching and masked language, with a momentum teacher. Without data options it "
        "trains on the built-in scenes. The defaults are the paper's settings at base size; a recipe such as "
        "--config scenes changes them. AlbefForPreTraining.from_pretrained loads the resulting directory."
    )
    args = parse_arguments(PretrainingArguments, description, arguments, prog="albef pretrain", recipes="pretraining")
    _train("pretraining", args)


def finetune(arguments: list[str]) -> None:
    """Fine-tune ALBEF on a task, and keep the best model."""
    from .utils.command_line import parse_arguments

    name, arguments = _task_name("finetune", arguments, finetune.__doc__)
    from .tasks import find_arguments
    from .tasks.arguments import EVALUATION_OPTIONS

    description = (
        f"Fine-tune ALBEF on {name}, with a momentum teacher, and keep the best model. Without data options it trains "
        "on tasks posed by the built-in scenes. The defaults are the paper's; a recipe such as --config scenes "
        "changes them."
    )
    kind = find_arguments(name)
    unused = {*EVALUATION_OPTIONS, *kind.unused_options}
    args = parse_arguments(kind, description, arguments, prog=f"albef finetune {name}", recipes=name, unused=unused)
    _train(name, args)


def evaluate(arguments: list[str]) -> None:
    """Evaluate a model on a task, pretrained or fine-tuned."""
    name, arguments = _task_name("evaluate", arguments, evaluate.__doc__)
    from .evaluation.arguments import parse_evaluation
    from .tasks import find_arguments, find_task

    args = parse_evaluation(name, find_arguments(name), arguments)
    from .evaluation.evaluate import evaluate as evaluate_task

    evaluate_task(find_task(name), args)


def convert(arguments: list[str]) -> None:
    """Convert a checkpoint of the original code, which it can download, or back; or of TCL, LAVIS, TorchMultimodal."""
    from .conversion.convert import main

    main(arguments)


def shards(arguments: list[str]) -> None:
    """Pack image-text pairs into shards for fast reading."""
    from .data.prepare_shards import main

    main(arguments)


def index(arguments: list[str]) -> None:
    """Build or change a search index of images."""
    from .search.cli import index_main

    index_main(arguments)


def search(arguments: list[str]) -> None:
    """Search an index by text or image."""
    from .search.cli import search_main

    search_main(arguments)


def export(arguments: list[str]) -> None:
    """Export a model to ONNX, for onnxruntime."""
    from .export.command import main

    main(arguments)


def card(arguments: list[str]) -> None:
    """Write the model card of a directory again."""
    from .model_card import main

    main(arguments)


def renew(arguments: list[str]) -> None:
    """Update the code in a directory or Hub repository."""
    from .conversion.code_renewal import main

    main(arguments)


def demo(arguments: list[str]) -> None:
    """Open the demo in a browser."""
    from .demo.app import main

    main(arguments)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    command.__name__: command
    for command in (pretrain, finetune, evaluate, convert, shards, index, search, export, card, renew, demo)
}


def main(arguments: list[str] | None = None) -> None:
    """Run a command.

    Args:
        arguments: Command line without the program's name; by default that of this process.
    """
    end_with_launcher(os.getppid())
    keep_output_from_failing()
    summary = "\n".join(f"  {name:9} {command.__doc__}" for name, command in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="albef",
        usage="%(prog)s COMMAND [--help] ...",
        description=f"ALBEF (Align before Fuse) for the Hugging Face ecosystem.\n\ncommands:\n{summary}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the above; `--help` after it")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    with explained_errors():
        COMMANDS[chosen.command](chosen.arguments)


@contextlib.contextmanager
def explained_errors() -> Iterator[None]:
    """End the program with one line for an expected error, a missing library, or Ctrl-C."""
    try:
        yield
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None or os.environ.get(TRACEBACK):
            raise
        sys.exit(f'error: {error.name} is not installed: pip install "albef_hf[{extra}]"')
    except KeyboardInterrupt:
        if os.environ.get(TRACEBACK):
            raise
        print("interrupted", file=sys.stderr, flush=True)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)  # a shell ends a loop only for a program that died of the signal
    except Exception as error:
        from huggingface_hub.errors import StrictDataclassError

        is_expected = isinstance(error, (ValueError, RuntimeError, OSError, StrictDataclassError))
        if os.environ.get(TRACEBACK) or not is_expected:
            raise
        sys.exit(f"error: {redact(str(error))}\n(set {TRACEBACK}=1 to see where it happened)")


def _task_name(command: str, arguments: list[str], description: str | None) -> tuple[str, list[str]]:
    """Return the task that the command line begins with, and the rest of it."""
    from .tasks import EVALUATION_ONLY, evaluation_names, task_names

    names = evaluation_names() if command == "evaluate" else task_names()
    parser = argparse.ArgumentParser(
        prog=f"albef {command}", usage="%(prog)s TASK [--help] ...", description=description
    )
    if arguments and arguments[0].startswith("--task"):
        parser.error(f"--task was replaced by a word after the command, such as albef {command} vqa")
    if arguments and arguments[0] in EVALUATION_ONLY.keys() - {*names}:
        parser.error(
            f"{arguments[0]} trains nothing: albef evaluate {arguments[0]} takes a pretrained model, or one of "
            f"albef {command} {EVALUATION_ONLY[arguments[0]]}"
        )
    parser.add_argument("task", choices=names, metavar="TASK", help=f"one of {', '.join(names)}")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    return chosen.task, chosen.arguments


def _train(name: str, args: Any) -> None:
    from .tasks import find_task
    from .training.run import run

    run(find_task(name), args)
