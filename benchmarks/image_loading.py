"""Measure how many images per second one core prepares for training, and how long each step takes.

    python benchmarks/image_loading.py

Synthetic JPEGs of several sizes are read as in training: decoded, cropped and resized, augmented, normalized. The
number of cores that a GPU needs is its pairs per second divided by the images per second of a core.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from albef_hf import AlbefConfig
from albef_hf.data import embedded_tokenizer, make_processor
from albef_hf.data.augmentation import Augmentation, random_augment, random_resized_crop
from albef_hf.data.images import load_image
from albef_hf.data.pairs import PairReader

SIZES = [(2048, 1536), (640, 480), (512, 384), (256, 256)]  # a camera's, COCO's, shards of short side 384, the model's


def draw(width: int, height: int, path: Path) -> None:
    """Save a synthetic JPEG with about as much detail as a photograph: smooth areas, edges and noise."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    grain = rng.normal(0, 6, (height, width, 1))
    Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)


def milliseconds(work: Callable[[], object], repetitions: int) -> float:
    """Return the median CPU time."""
    times = []
    for _ in range(repetitions):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return 1000 * statistics.median(times)


def main() -> None:
    """Measure all sizes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_size", type=int, default=256, help="height and width of the model's input in pixels")
    parser.add_argument("--repetitions", type=int, default=31, help="repetitions; the median is reported")
    options = parser.parse_args()
    config = AlbefConfig(vision_config={"image_size": options.image_size})
    images = make_processor(config, embedded_tokenizer()).image_processor
    augmentation = Augmentation(options.image_size, images.image_mean, images.image_std)
    reader = PairReader(augmentation)
    rng = np.random.default_rng(0)
    print("| JPEG | kB | decode ms | crop and resize ms | RandAugment ms | all ms | images/s per core |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for width, height in tqdm(SIZES, leave=False):
            path = Path(folder) / f"{width}x{height}.jpg"
            draw(width, height, path)
            image = load_image(path)
            cropped = random_resized_crop(image, options.image_size, rng, (0.2, 1.0))
            row = {"image": str(path), "caption": "a picture"}
            parts = [
                milliseconds(work, options.repetitions)
                for work in (
                    lambda path=path: load_image(path),
                    lambda image=image: random_resized_crop(image, options.image_size, rng, (0.2, 1.0)),
                    lambda cropped=cropped: random_augment(cropped, rng),
                    lambda row=row: reader(row, rng),
                )
            ]
            shown = " | ".join(f"{part:.1f}" for part in parts)
            size = path.stat().st_size / 1000
            tqdm.write(f"| {width}x{height} | {size:.0f} | {shown} | {1000 / parts[-1]:.0f} |")


if __name__ == "__main__":
    main()
