"""Measure how many images per second one core prepares for training, and how long each step takes.

    python benchmarks/image_loading.py

Synthetic JPEGs of several sizes are read as in training: decoded, cropped and resized, augmented, with the same random
choices for all sizes. The last column is that of `--fast_resize`. The number of cores that a GPU needs is its pairs
per second divided by the images per second of a core.
"""

import argparse
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from albef_hf import AlbefConfig
from albef_hf.data import embedded_tokenizer, make_processor
from albef_hf.data.augmentation import Augmentation, random_augment, random_resized_crop, torch_resize
from albef_hf.data.images import load_image
from albef_hf.data.pairs import PairReader

# a camera's, the web's, COCO's, Flickr's, the model's
SIZES = [(2048, 1536), (1024, 768), (640, 480), (500, 375), (256, 256)]
WARM_UP = 3


def draw(width: int, height: int, path: Path) -> None:
    """Save a synthetic JPEG with about as much detail as a photograph: smooth areas, edges and noise."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    grain = rng.normal(0, 6, (height, width, 1))
    Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)


def milliseconds(work: Callable[[np.random.Generator], object], repetitions: int) -> float:
    """Return the mean CPU time over the same random choices."""
    for seed in range(WARM_UP):
        work(np.random.default_rng(seed))
    start = time.process_time()
    for seed in range(repetitions):
        work(np.random.default_rng(seed))
    return 1000 * (time.process_time() - start) / repetitions


def measure(path: Path, image_size: int, repetitions: int) -> list[float]:
    """Return the milliseconds of decoding, resizing by Pillow and torch, RandAugment, and all of it both ways."""
    config = AlbefConfig(vision_config={"image_size": image_size})
    images = make_processor(config, embedded_tokenizer()).image_processor
    row = {"image": str(path), "caption": "a picture"}
    image = load_image(path)
    crop = functools.partial(random_resized_crop, image, image_size, scale=(0.2, 1.0))
    cropped = crop(rng=np.random.default_rng(0))
    readers = [
        PairReader(Augmentation(image_size, images.image_mean, images.image_std, resize=resize))
        for resize in (Image.Image.resize, torch_resize)
    ]
    works: list[Callable[[np.random.Generator], object]] = [
        lambda rng: load_image(path),
        lambda rng: crop(rng=rng),
        lambda rng: crop(rng=rng, resize=torch_resize),
        lambda rng: random_augment(cropped, rng),
        *[functools.partial(reader, row) for reader in readers],
    ]
    return [milliseconds(work, repetitions) for work in works]


def main() -> None:
    """Measure all sizes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_size", type=int, default=256, help="height and width of the model's input in pixels")
    parser.add_argument("--repetitions", type=int, default=100, help="repetitions; the mean is reported")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in the processes that load data
    print(
        "| JPEG | kB | decode ms | crop and resize ms | by torch ms | RandAugment ms | all ms | images/s per core "
        "| with --fast_resize |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for width, height in tqdm(SIZES, leave=False):
            path = Path(folder) / f"{width}x{height}.jpg"
            draw(width, height, path)
            *parts, fast = measure(path, options.image_size, options.repetitions)
            shown = " | ".join(f"{part:.1f}" for part in parts)
            size = path.stat().st_size / 1000
            tqdm.write(f"| {width}x{height} | {size:.0f} | {shown} | {1000 / parts[-1]:.0f} | {1000 / fast:.0f} |")


if __name__ == "__main__":
    main()
