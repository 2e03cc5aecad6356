"""The command line of image search.

It imports torch, transformers and faiss only to run a command, so that `--help` is immediate.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..utils.dtypes import AS_SAVED, DTYPES

INDEX = Path("images.index")
FORMER_INDEX = Path("pictures.index")  # the default of earlier versions, which is still found
INDEX_DESCRIPTION = """Index images for `albef search`.

    albef index build FOLDER --model you/albef
    albef search "two dogs in the snow" --html page.html"""
SEARCH_DESCRIPTION = """Find indexed images by a text or by an image.

    albef search "two dogs in the snow" --html page.html --open
    albef search --image dog.jpg

The cosines of image and text features (ITC) select the best candidates, and the matching head (ITM), which reads image
and text together, orders them. The match in the table is its probability, or the calibrated one if the model is
calibrated (`albef evaluate retrieval --calibrate`), which then decides the order, unless the index has reference
texts: these lower the score of images that match nearly every text."""


class RenamedOption(argparse.Action):
    """Refuse an option that has a new name, which is given as `const`."""

    def __init__(self, option_strings: Sequence[str], dest: str, const: str):
        super().__init__(option_strings, dest, nargs="?", const=const, help=argparse.SUPPRESS)

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> NoReturn:
        """Exit with an error that names the new option."""
        parser.error(f"{option} has been renamed: use {self.const}")


def build_index_parser() -> argparse.ArgumentParser:
    """Return the parser of `albef index`, with the commands build, add, remove and info."""
    parser = _parser("albef index", INDEX_DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    summary = "index the images of a folder, resume an interrupted build, or update an index"
    build = _add_command(commands, "build", summary)
    build.add_argument("folder", type=Path, help="folder of the images, which is searched with its subfolders")
    build.add_argument("--model", required=True, help="folder or Hub name of a pretraining or retrieval model")
    build.add_argument(
        "--index_factory", help="faiss index_factory string; by default Flat, above a million images IVF...,Flat"
    )
    build.add_argument(
        "--dtype",
        choices=(*DTYPES, AS_SAVED),
        help="precision of the model, kept in the index; auto: as it is saved; by default bfloat16 on a GPU that has "
        "it, float32 otherwise, and that of the index if it is resumed or updated",
    )
    build.add_argument(
        "--reference_texts",
        "--reference-texts",
        type=Path,
        metavar="FILE",
        help="captions of other images, by which scores are normalized: reference_texts.json of an `albef evaluate "
        "retrieval --calibrate --reference_files`. An image that matches nearly every text does not rank above the "
        "right ones then",
    )
    build.add_argument("--factory", action=RenamedOption, const="--index_factory")

    add = _add_command(commands, "add", "index more images, also from elsewhere")
    add.add_argument("images", type=Path, nargs="+", help="files and folders")
    for command in (build, add):
        command.add_argument(
            "--batch_size", "--batch-size", type=int, default=64, help="images encoded at a time (%(default)s)"
        )

    remove = _add_command(commands, "remove", "remove images from the index; their files stay")
    remove.add_argument("keys", nargs="+", help="keys of the images, as search prints them")

    info = _add_command(commands, "info", "describe an index, and check every byte of it")
    for command in (add, remove, info):
        _add_location_options(command)
    for command in (build, add, remove, info):
        _add_shared_options(command)
    return parser


def build_search_parser() -> argparse.ArgumentParser:
    """Return the parser of `albef search`."""
    parser = _parser("albef search", SEARCH_DESCRIPTION)
    parser.add_argument("query", nargs="?", help="text to search for, in quotation marks")
    parser.add_argument("--image", type=Path, help="image to search for")
    parser.add_argument("--top_k", "--top-k", type=int, default=10, help="number of images to find (%(default)s)")
    parser.add_argument(
        "--rerank_k",
        "--rerank-k",
        type=int,
        default=128,
        help="candidates with the highest cosine that are matched; 0: order by cosine (%(default)s)",
    )
    parser.add_argument(
        "--itc_weight",
        "--itc-weight",
        type=float,
        help="weight of the cosine beside the log-odds of a match; by default that of the model's calibration, or 0. "
        "Reference texts have no effect then",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="precision of the model for this query, by default that of the index; bfloat16 is twice as fast on many "
        "CPUs",
    )
    parser.add_argument("--html", type=Path, help="file of a page to write, with images and a heat map for each word")
    parser.add_argument(
        "--all_words",
        "--all-words",
        action="store_true",
        help="draw heat maps of function words, such as a and of, too",
    )
    parser.add_argument("--open", action="store_true", help="open that page in a browser")
    parser.add_argument("-k", action=RenamedOption, const="--top_k")
    parser.add_argument("--rerank", action=RenamedOption, const="--rerank_k")
    parser.add_argument("--picture", action=RenamedOption, const="--image")
    parser.set_defaults(command="search")
    _add_location_options(parser)
    _add_shared_options(parser)
    return parser


def index_main(arguments: list[str]) -> None:
    """Run `albef index`."""
    _run(build_index_parser().parse_args(arguments))


def search_main(arguments: list[str]) -> None:
    """Run `albef search`."""
    _run(build_search_parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> None:
    try:
        from ..utils.progress import log_library_progress
        from . import commands

        log_library_progress()
        getattr(commands, options.command)(options)
    except KeyboardInterrupt:
        sys.exit("interrupted; repeat the command to resume" if options.command == "build" else "interrupted")


def _parser(program: str, description: str) -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(program, description=description, formatter_class=formatter, allow_abbrev=False)


def _add_command(commands: Any, name: str, summary: str) -> argparse.ArgumentParser:
    return commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.", allow_abbrev=False)


def _add_location_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, help="current folder of the images, if it has moved")
    parser.add_argument("--model", help="current folder or name of the model of the index, if it has moved")


def _add_shared_options(parser: argparse.ArgumentParser) -> None:
    default = FORMER_INDEX if FORMER_INDEX.exists() and not INDEX.exists() else INDEX
    parser.add_argument("--index", type=Path, default=default, help="folder of the index (%(default)s)")
    parser.add_argument("--revision", help="revision of the model on the Hub: a tag, branch or commit")
    parser.add_argument("--device", help="device, such as cpu or cuda:0; by default a GPU if there is one")
