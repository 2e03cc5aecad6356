"""Options of `albef demo`; only the standard library is imported here, so that `--help` is fast."""

import argparse
import os
from dataclasses import dataclass

DEFAULT_MODEL = "runs/scenes"  # written by `albef pretrain --config scenes`
RENAMED_OPTIONS = {"pictures": "images"}
DESCRIPTION = """Open a page to try a model on: score captions, see where the model looks for each word, ask questions,
have images described, and search images.

Environment variables replace options that are not given, so that a Space starts without options."""


@dataclass
class DemoArguments:
    """Which models and images the page shows, and where it is served."""

    model: str
    question_model: str | None
    caption_model: str | None
    index: str | None
    images: str | None
    examples: str | None
    host: str | None
    port: int | None


def read_arguments(arguments: list[str]) -> DemoArguments:
    """Read the command line, and the environment variables of options that are not given.

    An option or a variable that was renamed ends the program with an error that gives its new name.

    Args:
        arguments: Command line without the program's name.
    """
    parser = argparse.ArgumentParser(
        prog="albef demo",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_option(parser, "model", "folder or Hub name of a pretraining or retrieval model", default=DEFAULT_MODEL)
    _add_option(parser, "question_model", "folder or Hub name of a model that answers questions")
    _add_option(parser, "caption_model", "folder or Hub name of a model that writes captions")
    _add_option(parser, "index", "folder that `albef index build` has written with this model")
    _add_option(parser, "images", "current folder of the indexed images, if it has moved")
    _add_option(parser, "examples", "folder of example images; without it, built-in scenes are drawn")
    parser.add_argument("--host", help="address to serve (GRADIO_SERVER_NAME); by default this computer only")
    parser.add_argument(
        "--port", type=int, help="port to serve (GRADIO_SERVER_PORT); by default the first free one from 7860"
    )
    _refuse_renamed(parser, arguments)
    return DemoArguments(**vars(parser.parse_args(arguments)))


def _add_option(parser: argparse.ArgumentParser, name: str, description: str, default: str | None = None) -> None:
    """Add an option whose default is an environment variable."""
    variable = _variable(name)
    parser.add_argument(
        f"--{name}",
        default=os.environ.get(variable) or default,
        help=f"{description} ({variable})" + (f"; by default {default}" if default else ""),
    )


def _variable(option: str) -> str:
    return f"ALBEF_{option.upper()}"


def _refuse_renamed(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    options = {argument.split("=")[0] for argument in arguments}
    for former, current in RENAMED_OPTIONS.items():
        if f"--{former}" in options:
            parser.error(f"--{former} was renamed to --{current}")
        if _variable(former) in os.environ:
            parser.error(f"the environment variable {_variable(former)} was renamed to {_variable(current)}")
