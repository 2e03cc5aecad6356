"""Convert checkpoints between the original code (github.com/salesforce/ALBEF) and albef_hf: the command line.

    albef convert ALBEF.pth albef --task pretraining
    albef convert albef again.pth --reverse

The weights that come back from `--reverse` are bit-identical.
"""

import argparse

from .parameter_names import HEADS

ONLY_FROM_ORIGINAL = ("task", "config", "image_size", "repo_id")


def main(arguments: list[str] | None = None) -> None:
    """Convert a checkpoint of the original ALBEF code to a folder that from_pretrained loads, or back."""
    parser = _make_parser()
    options = parser.parse_args(arguments)
    if options.reverse:
        unused = [f"--{name}" for name in ONLY_FROM_ORIGINAL if getattr(options, name) is not None]
        if unused:
            parser.error(
                f"{', '.join(unused)} cannot be used with --reverse: the folder determines the task and model"
            )
    elif options.task is None:
        parser.error(f"--task is required; choose one of {', '.join(HEADS)}")
    if options.reverse:
        _to_original(options)
    else:
        _from_original(options)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="albef convert", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("source", help="the .pth file; with --reverse, the folder or Hub name of a model")
    parser.add_argument("output", help="the folder to write; with --reverse, the .pth file")
    parser.add_argument(
        "--task",
        choices=HEADS,
        help="what the checkpoint was trained for; required unless --reverse is given; retrieval for refcoco.pth",
    )
    parser.add_argument(
        "--config",
        help="JSON file with settings of an AlbefConfig that shapes do not determine: attention heads (default: one "
        "for every 64 of width) and dropout",
    )
    parser.add_argument(
        "--image_size",
        "--image-size",
        type=int,
        help="interpolate the image positions to this resolution, in pixels (default: the checkpoint's)",
    )
    parser.add_argument(
        "--repo_id", "--repo-id", help="name of the model on the Hub, for its card (default: the folder's name)"
    )
    parser.add_argument("--reverse", action="store_true", help="convert from albef_hf to the original")
    return parser


def _from_original(options: argparse.Namespace) -> None:
    from ..utils.progress import log_library_progress
    from .from_original import convert_checkpoint

    log_library_progress()
    summary = convert_checkpoint(
        options.source,
        options.output,
        task=options.task,
        config=options.config,
        image_size=options.image_size,
        repo_id=options.repo_id,
    )
    for name, reason in summary["dropped"].items():
        print(f"dropped {name}: {reason}")
    image_heads, text_heads = summary["attention_heads"]
    print(
        f"Converted {summary['keys']} keys of {summary['source']} to {options.output}: "
        f"{summary['image_size']} pixels, {image_heads} attention heads for images, {text_heads} for texts."
    )


def _to_original(options: argparse.Namespace) -> None:
    from ..utils.progress import log_library_progress
    from .to_original import revert_checkpoint

    log_library_progress()
    revert_checkpoint(options.source, options.output)
