"""Augment images as in the paper, with Pillow only: random resized crop, flip, RandAugment, normalization.

The counterparts in the original are `pretrain_transform` in `dataset/__init__.py` and `dataset/randaugment.py`.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from ..configuration_albef import size_pair

GRAY = (128, 128, 128)  # fill color of geometric operations, as in the original
MAX_LEVEL = 10


def _enhance(enhancer: type) -> Callable:
    return lambda image, level, sign: enhancer(image).enhance(level / MAX_LEVEL * 1.8 + 0.1)


def _affine(coefficients: Callable) -> Callable:
    def apply(image: Image.Image, level: float, sign: int) -> Image.Image:
        matrix = coefficients(sign * level / MAX_LEVEL, *image.size)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GRAY)

    return apply


def _rotate(image: Image.Image, level: float, sign: int) -> Image.Image:
    return image.rotate(sign * level / MAX_LEVEL * 30, Image.Resampling.BILINEAR, fillcolor=GRAY)


# Each takes an image, a level between 0 and 10, and a sign. The maxima are 0.3 for shears, 30 degrees for rotations,
# and 10 of 256 pixels for translations, which are 10 pixels at any size in the original.
OPERATIONS: dict[str, Callable[[Image.Image, float, int], Image.Image]] = {
    "Identity": lambda image, level, sign: image,
    "AutoContrast": lambda image, level, sign: ImageOps.autocontrast(image),
    "Equalize": lambda image, level, sign: ImageOps.equalize(image),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "ShearX": _affine(lambda share, width, height: (1, share * 0.3, 0, 0, 1, 0)),
    "ShearY": _affine(lambda share, width, height: (1, 0, 0, share * 0.3, 1, 0)),
    "TranslateX": _affine(lambda share, width, height: (1, 0, share * width * 10 / 256, 0, 1, 0)),
    "TranslateY": _affine(lambda share, width, height: (1, 0, 0, 0, 1, share * height * 10 / 256)),
    "Rotate": _rotate,
}


def random_augment(image: Image.Image, rng: np.random.Generator, count: int = 2, level: float = 7) -> Image.Image:
    """Draw `count` of the ten operations with replacement, and apply each with probability 1/2."""
    for name in rng.choice(list(OPERATIONS), size=count):
        is_applied = rng.random() < 0.5
        sign = 1 if rng.random() < 0.5 else -1
        if is_applied:
            image = OPERATIONS[name](image, level, sign)
    return image


def random_resized_crop(
    image: Image.Image,
    size: int | Sequence[int],
    rng: np.random.Generator,
    scale: tuple[float, float],
    resample: Image.Resampling = Image.Resampling.BICUBIC,
    attempts: int = 10,
) -> Image.Image:
    """Crop a random share of the area, with an aspect ratio of 3:4 to 4:3 relative to the result's, and resize it.

    If no draw fits into the image, the largest centered crop of an allowed aspect ratio is used, as in torchvision. A
    scale of 1 keeps the whole image, whatever its aspect ratio, so that captions about its edges stay true.

    Args:
        image: Image to crop.
        size: Height and width of the result in pixels, or one number for a square.
        rng: Random generator.
        scale: Minimum and maximum share of the area.
        resample: How pixels are interpolated.
        attempts: Number of draws.
    """
    new_height, new_width = size_pair(size)
    if scale[0] >= 1:
        return image.resize((new_width, new_height), resample)
    shape = new_width / new_height
    width, height = image.size
    for _ in range(attempts):
        area = width * height * rng.uniform(*scale)
        ratio = shape * np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        crop_width = round((area * ratio) ** 0.5)
        crop_height = round((area / ratio) ** 0.5)
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(width - crop_width + 1))
            top = int(rng.integers(height - crop_height + 1))
            break
    else:
        crop_width = min(width, round(height * shape * 4 / 3))
        crop_height = min(height, round(width / shape * 4 / 3))
        left = (width - crop_width) // 2
        top = (height - crop_height) // 2
    box = (left, top, left + crop_width, top + crop_height)
    return image.resize((new_width, new_height), resample, box=box)


class Augmentation:
    """Convert an image to augmented, normalized pixels.

    Args:
        image_size: Height and width of the result in pixels, or one number for a square.
        image_mean: Mean of each channel, between 0 and 1.
        image_std: Standard deviation of each channel.
        min_scale: Minimum share of the image's area that a crop keeps; 0.2 in the paper (0.5 in fine-tuning, and 1, no
            crop at all, in grounding).
        operations: RandAugment operations drawn per image; 2 in the paper.
        flip_probability: Probability that an image is mirrored.
        resample: How pixels are interpolated.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        image_mean: Sequence[float],
        image_std: Sequence[float],
        min_scale: float = 0.2,
        operations: int = 2,
        flip_probability: float = 0.5,
        resample: int = Image.Resampling.BICUBIC,
    ):
        self.image_size = image_size
        self.resample = Image.Resampling(resample)
        self.min_scale = min_scale
        self.operations = operations
        self.flip_probability = flip_probability
        # One multiplication and one addition normalize uint8 pixels.
        self.factor = torch.tensor([1 / (255 * deviation) for deviation in image_std]).view(3, 1, 1)
        self.offset = torch.tensor([-m / s for m, s in zip(image_mean, image_std, strict=True)]).view(3, 1, 1)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> tuple[torch.Tensor, bool]:
        """Augment an RGB image.

        Returns:
            Pixels, (3, height, width), and whether left and right were swapped.
        """
        image = random_resized_crop(image, self.image_size, rng, (self.min_scale, 1.0), self.resample)
        flipped = bool(rng.random() < self.flip_probability)
        image = ImageOps.mirror(image) if flipped else image
        pixels = torch.from_numpy(np.array(random_augment(image, rng, self.operations))).permute(2, 0, 1)
        return pixels * self.factor + self.offset, flipped
