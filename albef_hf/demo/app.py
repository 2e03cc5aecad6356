"""The command `albef demo`: load a model and serve the page."""

import tempfile
from pathlib import Path

from .arguments import DEFAULT_MODEL, read_arguments


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
        examples = find_images(options.examples) if options.examples else draw_scenes(scenes_folder)
        Page(Handlers(assistant, examples), examples).launch(options.host, options.port)


def _require_model(model: str) -> None:
    if model == DEFAULT_MODEL and not Path(model).exists():
        raise ValueError(
            f"{model} does not exist. Write it with `albef pretrain --config scenes`, or choose another model with "
            "--model FOLDER_OR_HUB_NAME."
        )
