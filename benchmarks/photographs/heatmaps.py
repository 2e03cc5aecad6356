"""Draw heat maps of nouns in photographs, to be judged by eye: on their own scale, and on that of all words.

    python benchmarks/photographs/heatmaps.py MODEL nouns.json runs/heatmaps --image_root FOLDER

`nouns.json` is a list of [image, caption, noun]; the noun is a word of the caption. The output folder gets sheets,
`sheet_00.png` and so on, with each photograph three times: plain, with the map on its own scale (before), and on the
scale of all content words, faded by the probability of a match (after). A square marks the middle of the hottest
patch, which is the same in both. `heatmaps.jsonl` gets a line for each noun: the `row` and `column` of that patch in a
grid of `rows` by `columns`, its `heat`, its `share` of the scale, the `probability` that caption and photograph match,
and the product of these two, the `strength` of the color.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from albef_hf import AlbefForRetrieval, AlbefProcessor
from albef_hf.data.images import load_image
from albef_hf.heatmaps_albef import match_probabilities, overlay
from albef_hf.search.html_report import contain, word_maps

CELL = 240  # longer side of an image in pixels
TITLE_HEIGHT = 40
MARGIN = 8
COLUMNS = 2  # of nouns, each with three images


def load_model(folder: Path) -> AlbefForRetrieval:
    """Load a model, also if its image encoder is that of `efficientnet_lite.py`."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["vision_config"]["model_type"] == "efficientnet_lite":
        import efficientnet_lite  # noqa: F401, registers the class
    return AlbefForRetrieval.from_pretrained(folder).eval()


def read_nouns(path: Path) -> list[tuple[str, str, str]]:
    """Return image, caption and noun of each entry of the file."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    for entry in entries:
        if not (isinstance(entry, list) and len(entry) == 3 and all(isinstance(part, str) for part in entry)):
            raise ValueError(f"{path} has {json.dumps(entry):.200}: write [image, caption, noun].")
    return [(image, caption, noun) for image, caption, noun in entries]


def draw_noun(
    model: AlbefForRetrieval, processor: AlbefProcessor, image: Image.Image, caption: str, noun: str
) -> tuple[dict[str, Any], list[Image.Image]]:
    """Return what is measured of a noun, and the photograph plain, before and after.

    Raises:
        ValueError: If the noun is no content word of the caption.
    """
    words, maps = word_maps(model, processor, caption, image)
    if noun.lower() not in words:
        raise ValueError(f"{noun!r} is none of the content words that are read of {caption!r}: {', '.join(words)}.")
    inputs = processor(images=[image], text=[caption], return_tensors="pt").to(model.device)
    probability = match_probabilities(model, **inputs).item()
    heatmap = maps[words.index(noun.lower())]
    scale = maps.max().item()
    rows, columns = heatmap.shape
    row, column = divmod(int(heatmap.argmax()), columns)
    heat = heatmap.max().item()
    share = heat / scale if scale else 0.0
    strength = share * probability
    patch = {"rows": rows, "columns": columns, "row": row, "column": column}
    shown = contain(image.convert("RGB"), CELL)
    before = overlay(shown, heatmap)
    after = overlay(shown, heatmap, scale=scale, probability=probability)
    drawings = [shown, *(mark_patch(drawing, **patch) for drawing in (before, after))]
    return {**patch, "heat": heat, "share": share, "probability": probability, "strength": strength}, drawings


def mark_patch(image: Image.Image, rows: int, columns: int, row: int, column: int) -> Image.Image:
    """Draw a small square in the middle of a patch."""
    x = (column + 0.5) * image.width / columns
    y = (row + 0.5) * image.height / rows
    draw = ImageDraw.Draw(image)
    for radius, color in ((6, "black"), (5, "cyan"), (3, "black")):
        draw.rectangle((x - radius, y - radius, x + radius, y + radius), outline=color)
    return image


def draw_sheet(results: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    """Draw the three images of each noun below its title, on a sheet of two columns."""
    width = 3 * (CELL + MARGIN) + MARGIN
    height = CELL + TITLE_HEIGHT + MARGIN
    sheet = Image.new("RGB", (COLUMNS * width, -(-len(results) // COLUMNS) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (title, drawings) in enumerate(results):
        left = MARGIN + index % COLUMNS * width
        top = index // COLUMNS * height
        draw.multiline_text((left, top + 4), title, fill="black", font=ImageFont.load_default(13))
        for place, drawing in enumerate(drawings):
            sheet.paste(drawing, (left + place * (CELL + MARGIN), top + TITLE_HEIGHT))
    return sheet


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a pretraining or retrieval model")
    parser.add_argument("nouns", type=Path, help="JSON file of a list of [image, caption, noun]")
    parser.add_argument("output", type=Path, help="folder to write the sheets and heatmaps.jsonl to")
    parser.add_argument("--image_root", type=Path, default=Path(), help="folder of the images (the current one)")
    parser.add_argument("--per_sheet", type=int, default=10, help="nouns on a sheet (%(default)s)")
    return parser.parse_args()


def main() -> None:
    """Draw the sheets and write what is measured."""
    options = parse_options()
    nouns = read_nouns(options.nouns)
    model = load_model(options.model)
    processor = AlbefProcessor.from_pretrained(options.model)
    options.output.mkdir(parents=True, exist_ok=True)
    results = []
    with (options.output / "heatmaps.jsonl").open("w", encoding="utf-8") as lines:
        for number, (path, caption, noun) in enumerate(tqdm(nouns, file=sys.stderr)):
            image = load_image(options.image_root / path, exif_transpose=True)
            measured, drawings = draw_noun(model, processor, image, caption, noun)
            print(json.dumps({"image": path, "caption": caption, "noun": noun, **measured}), file=lines)
            figures = ", ".join(f"{name} {measured[name]:.2f}" for name in ("share", "probability", "strength"))
            results.append((f"{number} {noun.upper()}: {figures}\n{caption[:100]}", drawings))
    for start in range(0, len(results), options.per_sheet):
        sheet = draw_sheet(results[start : start + options.per_sheet])
        sheet.save(options.output / f"sheet_{start // options.per_sheet:02}.png")


if __name__ == "__main__":
    main()
