"""Pictures per second that one core makes ready for training, and which part of the work takes how long.

    python benchmarks/image_loading.py

JPEGs of several sizes are drawn, then read as a training reads them: decoded, cropped and resized, augmented,
normalised. A GPU that trains on some number of pairs per second needs that many divided by a row's rate in cores.
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
from albef_hf.data import embedded_tokenizer
from albef_hf.data.augmentation import Augmentation, random_augment, random_resized_crop
from albef_hf.data.pairs import PairReader, load_image
from albef_hf.training.model_setup import make_processor

SIZES = [(2048, 1536), (640, 480), (512, 384), (256, 256)]  # a camera's, COCO's, shards of short side 384, the model's


def draw(width: int, height: int, path: Path) -> None:
    """A JPEG about as detailed as a photograph: smooth areas, edges and grain."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    grain = rng.normal(0, 6, (height, width, 1))
    Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)


def milliseconds(work: Callable[[], object], repetitions: int) -> float:
    """Of the processor, the median."""
    times = []
    for _ in range(repetitions):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return 1000 * statistics.median(times)


def main() -> None:
    """Measure each size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_size", type=int, default=256, help="pixels that the model takes, in each direction")
    parser.add_argument("--repetitions", type=int, default=31, help="of which the median counts")
    options = parser.parse_args()
    config = AlbefConfig(vision_config={"image_size": options.image_size})
    images = make_processor(config, embedded_tokenizer()).image_processor
    augmentation = Augmentation(options.image_size, images.image_mean, images.image_std)
    reader, rng = PairReader(augmentation), np.random.default_rng(0)
    print("| JPEG | kB | decode ms | crop and resize ms | RandAugment ms | all ms | pictures/s of a core |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for width, height in tqdm(SIZES, leave=False):
            path = Path(folder) / f"{width}x{height}.jpg"
            draw(width, height, path)
            picture = load_image(path)
            cropped = random_resized_crop(picture, options.image_size, rng, (0.2, 1.0))
            row = {"image": str(path), "caption": "a picture"}
            parts = [
                milliseconds(work, options.repetitions)
                for work in (
                    lambda path=path: load_image(path),
                    lambda picture=picture: random_resized_crop(picture, options.image_size, rng, (0.2, 1.0)),
                    lambda cropped=cropped: random_augment(cropped, rng),
                    lambda row=row: reader(row, rng),
                )
            ]
            shown = " | ".join(f"{part:.1f}" for part in parts)
            size = path.stat().st_size / 1000
            tqdm.write(f"| {width}x{height} | {size:.0f} | {shown} | {1000 / parts[-1]:.0f} |")


if __name__ == "__main__":
    main()
