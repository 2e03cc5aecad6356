"""Convert the image-text pairs of a dataset to shards: tar files with downscaled images, and an index.

Pretraining reads them with `--shards FOLDER`. Rows that cannot be used are dropped, counted by reason and listed in
dropped.jsonl. The same command resumes an interrupted preparation. Without a source, it indexes the tar files that are
already in the folder, such as those of img2dataset.
"""

from ..utils.command_line import parse_arguments
from .shard_arguments import ShardArguments


def main(arguments: list[str]) -> None:
    """Prepare or check shards."""
    options = parse_arguments(ShardArguments, __doc__, arguments, prog="albef shards")
    from ..utils.progress import log_library_progress  # slow to import, and --help does not need them
    from .shard_preparation import check, prepare

    log_library_progress()
    if options.check:
        check(options)
    else:
        prepare(options)
