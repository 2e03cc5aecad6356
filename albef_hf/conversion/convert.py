"""Convert checkpoints between the original code (github.com/salesforce/ALBEF) and albef_hf: the command line.

    albef convert flickr30k albef
    albef convert ALBEF.pth albef
    albef convert albef again.pth --reverse

The weights that come back from `--reverse` are bit-identical.
"""

import argparse
import os
from pathlib import Path

from .parameter_names import HEADS
from .published import PUBLISHED

ONLY_FROM_ORIGINAL = ("task", "config", "image_size", "repo_id")


def main(arguments: list[str] | None = None) -> None:
    """Convert an ALBEF checkpoint, published or your own, to a folder that from_pretrained loads, or back."""
    parser = _make_parser()
    options = parser.parse_args(arguments)
    if options.reverse:
        unused = [f"--{name}" for name in ONLY_FROM_ORIGINAL if getattr(options, name) is not None]
        if unused:
            parser.error(
                f"{', '.join(unused)} cannot be used with --reverse: the folder determines the task and model"
            )
        _to_original(options)
    else:
        _from_original(options)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="albef convert", description=main.__doc__, allow_abbrev=False)
    parser.add_argument(
        "source",
        help=f"a checkpoint that is downloaded from the authors ({', '.join(PUBLISHED)}), or a file of the original "
        "code, TCL, LAVIS or TorchMultimodal; with --reverse, the folder or Hub name of a model",
    )
    parser.add_argument("output", help="the folder to write; with --reverse, the .pth file")
    parser.add_argument(
        "--task",
        choices=HEADS,
        help="what the checkpoint was trained for (default: found by the names of its weights)",
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
    from .checkpoints import MODELS
    from .from_original import convert_checkpoint

    log_library_progress()
    checkpoint, source = _find_checkpoint(options)
    summary = convert_checkpoint(
        checkpoint,
        options.output,
        task=options.task,
        config=options.config,
        image_size=options.image_size,
        repo_id=options.repo_id,
        source=source,
    )
    for name, reason in summary["dropped"].items():
        print(f"dropped {name}: {reason}")
    for note in summary["notes"]:
        print(f"note: {note}")
    image_heads, text_heads = summary["attention_heads"]
    print(
        f"Converted {summary['keys']} keys of {summary['source']} ({summary['library']}, {summary['task']}) to "
        f"{options.output}: {summary['image_size']} pixels, {image_heads} attention heads for images, "
        f"{text_heads} for texts."
    )
    head = MODELS[summary["task"]].__name__
    print(f'Load it with {head}.from_pretrained("{options.output}"); the README.md there shows how.')
    if "reported" in summary:
        print(
            f"Published for this file: {summary['reported']} ({summary['reported_by']}). It has not been "
            "measured with this package, whose authors have not had the file: evaluate before you rely on it."
        )


def _find_checkpoint(options: argparse.Namespace) -> tuple[Path, dict[str, object]]:
    """Return the checkpoint, downloaded if its name is that of a published one, and what is known of it."""
    name = options.source
    if name not in PUBLISHED or os.path.isfile(name):
        return Path(name), {}
    from .download import cached_checkpoint
    from .from_original import refuse_used_folder

    refuse_used_folder(Path(options.output))  # before gigabytes are downloaded
    published = PUBLISHED[name]
    if options.task not in (published.task, None):
        raise ValueError(f"{name} is for the task {published.task}, not for {options.task}. Remove --task.")
    path, record = cached_checkpoint(published.file)
    print(f"{path}: {record['bytes']:,} bytes, SHA-256 {record['sha256']}")
    return path, {"url": record["url"], "reported": published.reported, "reported_by": published.source}


def _to_original(options: argparse.Namespace) -> None:
    from ..utils.progress import log_library_progress
    from .to_original import revert_checkpoint

    log_library_progress()
    revert_checkpoint(options.source, options.output)
