"""The paper's augmentation on Pillow alone: random resized crop, flip, RandAugment, normalisation.

`pretrain_transform` in the original's `dataset/__init__.py`, and its `dataset/randaugment.py`.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

GREY = (128, 128, 128)  # what geometric operations fill in, as in the original
MAX_LEVEL = 10


def _enhance(enhancer: type) -> Callable:
    return lambda image, level, sign: enhancer(image).enhance(level / MAX_LEVEL * 1.8 + 0.1)


def _affine(coefficients: Callable) -> Callable:
    def apply(image: Image.Image, level: float, sign: int) -> Image.Image:
        matrix = coefficients(sign * level / MAX_LEVEL, *image.size)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GREY)

    return apply


def _rotate(image: Image.Image, level: float, sign: int) -> Image.Image:
    return image.rotate(sign * level / MAX_LEVEL * 30, Image.Resampling.BILINEAR, fillcolor=GREY)


# Each takes a picture, a level between 0 and 10, and a sign. Shears reach 0.3, rotations 30 degrees; translations 10
# pixels of 256, which the original writes as 10 pixels at any size.
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
    """Draw `count` of the ten operations with replacement and apply each with probability 1/2."""
    for name in rng.choice(list(OPERATIONS), size=count):
        apply, sign = rng.random() < 0.5, 1 if rng.random() < 0.5 else -1
        if apply:
            image = OPERATIONS[name](image, level, sign)
    return image


def random_resized_crop(
    image: Image.Image, size: int, rng: np.random.Generator, scale: tuple[float, float], attempts: int = 10
) -> Image.Image:
    """Crop a random share of the area, 3:4 to 4:3 in shape, and resize it (bicubic) to a square of `size` pixels.

    Where no draw fits into the picture, the largest centred crop of an allowed shape is taken, as torchvision does.
    A scale of 1 keeps the whole picture, whatever its shape: what is said of its edges has to stay true.
    """
    if scale[0] >= 1:
        return image.resize((size, size), Image.Resampling.BICUBIC)
    width, height = image.size
    for _ in range(attempts):
        area = width * height * rng.uniform(*scale)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        crop_width, crop_height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = rng.integers(width - crop_width + 1), rng.integers(height - crop_height + 1)
            break
    else:
        crop_width, crop_height = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - crop_width) // 2, (height - crop_height) // 2
    box = (int(left), int(top), int(left) + crop_width, int(top) + crop_height)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


class Augmentation:
    """Turns a picture into training pixels.

    Args:
        image_size: Height and width of the result in pixels.
        image_mean: Mean of each channel, between 0 and 1.
        image_std: Standard deviation of each channel.
        min_scale: Smallest share of the picture's area that a crop keeps; the paper's 0.2 (0.5 in fine-tuning, and 1,
            no crop at all, in grounding).
        operations: Operations of RandAugment drawn for each picture; the paper's 2.
        flip_probability: Chance of a picture to be mirrored.
    """

    def __init__(
        self,
        image_size: int,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        min_scale: float = 0.2,
        operations: int = 2,
        flip_probability: float = 0.5,
    ):
        self.image_size, self.min_scale, self.operations = image_size, min_scale, operations
        self.flip_probability = flip_probability
        # uint8 pixels go to normalised ones in one multiplication and one addition.
        self.factor = torch.tensor([1 / (255 * deviation) for deviation in image_std]).view(3, 1, 1)
        self.offset = torch.tensor([-m / s for m, s in zip(image_mean, image_std, strict=True)]).view(3, 1, 1)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> tuple[torch.Tensor, bool]:
        """Augment an RGB picture.

        Returns:
            Pixels, (3, height, width), and whether left and right were swapped.
        """
        image = random_resized_crop(image, self.image_size, rng, (self.min_scale, 1.0))
        flipped = bool(rng.random() < self.flip_probability)
        image = ImageOps.mirror(image) if flipped else image
        pixels = torch.from_numpy(np.array(random_augment(image, rng, self.operations))).permute(2, 0, 1)
        return pixels * self.factor + self.offset, flipped
