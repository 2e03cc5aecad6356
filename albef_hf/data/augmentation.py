"""Augment images as in the paper, with Pillow only: random resized crop, flip, RandAugment, normalization.

The counterparts in the original are `pretrain_transform` in `dataset/__init__.py` and `dataset/randaugment.py`.
"""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch.nn import functional as F

from ..configuration_albef import size_pair

TORCH_MODES = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
GRAY = (128, 128, 128)  # fill color of geometric operations, as in the original
MAX_LEVEL = 10


def _enhance(enhancer: type) -> Callable:
    return lambda image, level, sign: enhancer(image).enhance(level / MAX_LEVEL * 1.8 + 0.1)


def _affine(coefficients: Callable) -> Callable:
    def apply(image: Image.Image, level: float, sign: int) -> Image.Image:
        matrix = coefficients(sign * level / MAX_LEVEL, *image.size)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GRAY)

    return apply


def _translate(image: Image.Image, left: float, up: float) -> Image.Image:
    """Move an image by pixels. Whole ones are copied, with the same result as interpolation, which takes longer."""
    if left % 1 or up % 1:
        matrix = (1, 0, left, 0, 1, up)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GRAY)
    moved = Image.new(image.mode, image.size, GRAY)
    moved.paste(image, (-int(left), -int(up)))
    return moved


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
    "TranslateX": lambda image, level, sign: _translate(image, sign * level / MAX_LEVEL * image.width * 10 / 256, 0),
    "TranslateY": lambda image, level, sign: _translate(image, 0, sign * level / MAX_LEVEL * image.height * 10 / 256),
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


def random_crop_box(
    image_size: tuple[int, int],
    size: int | Sequence[int],
    rng: np.random.Generator,
    scale: tuple[float, float],
    attempts: int = 10,
) -> tuple[int, int, int, int]:
    """Draw the crop of `random_resized_crop` for an image of this width and height: left, top, right, bottom."""
    width, height = image_size
    if scale[0] >= 1:
        return 0, 0, width, height
    new_height, new_width = size_pair(size)
    shape = new_width / new_height
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
    return left, top, left + crop_width, top + crop_height


def random_resized_crop(
    image: Image.Image,
    size: int | Sequence[int],
    rng: np.random.Generator,
    scale: tuple[float, float],
    resample: Image.Resampling = Image.Resampling.BICUBIC,
    resize: Callable = Image.Image.resize,
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
        resize: Resizes a box of an image, such as `torch_resize`.
    """
    new_height, new_width = size_pair(size)
    box = random_crop_box(image.size, size, rng, scale)
    return resize(image, (new_width, new_height), resample, box=box)


def torch_resize(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling, box: tuple[int, int, int, int]
) -> Image.Image:
    """Resize a box of an RGB image as `Image.resize` does, in a third of the time.

    torch computes with weights of 16 bits where Pillow has 22: about 1 % of the values differ, few by more than 1 of
    255. The edges differ more: like the original, torch does not see the pixels beyond the box, and Pillow does.
    """
    width, height = size
    pixels = torch.from_numpy(np.array(image.crop(box))[None]).permute(0, 3, 1, 2)
    resized = F.interpolate(pixels, size=(height, width), mode=TORCH_MODES[resample], antialias=True)
    return Image.merge("RGB", [Image.fromarray(channel) for channel in resized[0].numpy()])


class Normalization:
    """Normalize pixels of 0 to 255; on a GPU, so that only bytes travel there.

    Args:
        image_mean: Mean of each channel, between 0 and 1.
        image_std: Standard deviation of each channel.
    """

    def __init__(self, image_mean: Sequence[float], image_std: Sequence[float]):
        # One multiplication and one addition normalize uint8 pixels.
        self.factor = torch.tensor([1 / (255 * deviation) for deviation in image_std]).view(3, 1, 1)
        self.offset = torch.tensor([-m / s for m, s in zip(image_mean, image_std, strict=True)]).view(3, 1, 1)

    def to(self, device: torch.device) -> "Normalization":
        """Return the same normalization for pixels on a device."""
        moved = copy.copy(self)
        moved.factor = self.factor.to(device)
        moved.offset = self.offset.to(device)
        return moved

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalize uint8 pixels, (..., 3, height, width); floats, a frozen encoder's states, stay as they are."""
        if pixels.dtype != torch.uint8:
            return pixels
        return (pixels * self.factor).add_(self.offset)


class Augmentation:
    """Convert an image to augmented pixels.

    Args:
        image_size: Height and width of the result in pixels, or one number for a square.
        image_mean: Mean of each channel, between 0 and 1.
        image_std: Standard deviation of each channel.
        min_scale: Minimum share of the image's area that a crop keeps; 0.2 in the paper (0.5 in fine-tuning, and 1, no
            crop at all, in grounding).
        operations: RandAugment operations drawn per image; 2 in the paper.
        flip_probability: Probability that an image is mirrored.
        resample: How pixels are interpolated.
        resize: Resizes a box of an image: `Image.resize`, or the faster `torch_resize`.

    Raises:
        ValueError: If torch has no such interpolation.
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
        resize: Callable = Image.Image.resize,
    ):
        self.image_size = image_size
        self.resample = Image.Resampling(resample)
        self.min_scale = min_scale
        self.operations = operations
        self.flip_probability = flip_probability
        self.normalize = Normalization(image_mean, image_std)
        self.resize = resize
        if resize is torch_resize and self.resample not in TORCH_MODES:
            raise ValueError(
                f"The images are resized by {self.resample.name.lower()} interpolation, which torch does not have; "
                "remove fast_resize."
            )

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> tuple[torch.Tensor, bool]:
        """Augment and normalize an RGB image.

        Returns:
            Pixels, (3, height, width), and whether left and right were swapped.
        """
        pixels, flipped = self.augment(image, rng)
        return self.normalize(pixels), flipped

    def augment(self, image: Image.Image, rng: np.random.Generator) -> tuple[torch.Tensor, bool]:
        """Augment an RGB image; a training normalizes whole batches, on its device.

        Returns:
            Pixels of 0 to 255, uint8, (3, height, width), and whether left and right were swapped.
        """
        image = random_resized_crop(
            image, self.image_size, rng, (self.min_scale, 1.0), self.resample, resize=self.resize
        )
        flipped = bool(rng.random() < self.flip_probability)
        image = ImageOps.mirror(image) if flipped else image
        pixels = torch.from_numpy(np.array(random_augment(image, rng, self.operations)))
        return pixels.permute(2, 0, 1), flipped
