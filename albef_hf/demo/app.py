"""The command `albef demo`: load a model and serve the page."""

import sys
import tempfile
from pathlib import Path

from .arguments import DEFAULT_MODEL, DemoArguments, read_arguments

# Option, and the tab that needs it with what writes its value.
TABS = {
    "question_model": ("Question", "albef finetune vqa"),
    "caption_model": ("Describe", "albef finetune captioning"),
    "index": ("Search", "albef index build"),
}


def main(arguments: list[str]) -> None:
    """Serve the page until the program is interrupted or terminated.

    Args:
        arguments: Command line without the program's name.
    """
    options = read_arguments(arguments)
    from .assistant import Assistant  # slow to import, as the others, and `--help` does not need them
    from .examples import draw_scenes, find_images
    from .handlers import Handlers
    from .page import Page
    from .uploads import temporary_upload_folder

    _require_model(options.model)
    with temporary_upload_folder(), tempfile.TemporaryDirectory() as scenes_folder:
        assistant = Assistant.from_pretrained(
            options.model,
            question_model=options.question_model,
            index=options.index,
            images=options.images,
            caption_model=options.caption_model,
        )
        _report_missing(options)
        examples = find_images(options.examples) if options.examples else draw_scenes(scenes_folder)
        Page(Handlers(assistant, examples), examples).launch(options.host, options.port)


def _report_missing(options: DemoArguments) -> None:
    """Print the missing tabs in the terminal, since only the owner of the page can add them."""
    for name, (tab, command) in TABS.items():
        if getattr(options, name) is None:
            sys.stdout.write(f"no tab {tab}: it needs --{name}, which `{command}` writes\n")


def _require_model(model: str) -> None:
    if model == DEFAULT_MODEL and not Path(model).exists():
        raise ValueError(
            f"{model} does not exist. Write it with `albef pretrain --config scenes`, or choose another model with "
            "--model FOLDER_OR_HUB_NAME."
        )
