"""Find the images of published datasets, whose folders differ between the machines that have them."""

from pathlib import Path, PurePosixPath
from typing import Any

LOCATED_ROWS = 100  # spread over all rows, whose images are looked for


def locate_images(rows: list[dict[str, Any]], root: str, is_given: bool) -> None:
    """Change the paths of images to where they lie, which may lack leading folders of the published ones.

    Args:
        rows: With published paths, relative to a folder that contains all images.
        root: Folder of the images.
        is_given: Whether readers of images know this folder; if not, the paths begin with it.
    """
    count = min(len(rows), LOCATED_ROWS)
    paths = [PurePosixPath(path) for i in range(count) for path in _images(rows[i * len(rows) // count])]
    depths = range(max(len(path.parts) for path in paths))
    folder = Path(root)
    found = [sum((folder / _without_folders(path, depth)).is_file() for path in paths) for depth in depths]
    depth = found.index(max(found))

    def located(path: str) -> str:
        short = _without_folders(PurePosixPath(path), depth)
        return str(short if is_given else folder / short)

    for row in rows:
        if "images" in row:
            row["images"] = [located(path) for path in row["images"]]
        else:
            row["image"] = located(row["image"])


def _images(row: dict[str, Any]) -> list[str]:
    return row["images"] if "images" in row else [row["image"]]


def _without_folders(path: PurePosixPath, count: int) -> PurePosixPath:
    """Return a path without its first folders; the name stays."""
    return PurePosixPath(*path.parts[min(count, len(path.parts) - 1) :])
