"""Faster ways to read, augment and normalize images: the pixels of the plain way."""

import io

import numpy as np
import pytest
import torch
from encoded_images import encoded
from PIL import Image, ImageOps

from albef_hf.data import Augmentation, Normalization, load_image
from albef_hf.data.augmentation import GRAY, OPERATIONS, random_augment, random_crop_box, torch_resize

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def photograph(width: int, height: int) -> Image.Image:
    """Return smooth areas and grain."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) + rng.normal(
        0, 6, (height, width, 1)
    )
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def rotated_by_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photograph(61, 40), "JPEG", exif=exif)


FILES = {
    "jpeg": encoded(photograph(61, 40), "JPEG"),
    "png": encoded(photograph(1, 3)),
    "gray": encoded(photograph(33, 17).convert("L"), "JPEG"),
    "cmyk": encoded(photograph(33, 17).convert("CMYK"), "JPEG"),
    "palette": encoded(photograph(33, 17).quantize(16)),
    "transparent": encoded(photograph(33, 17).convert("RGBA")),
    "tiff": encoded(photograph(33, 17), "TIFF"),
    "gif": encoded(photograph(33, 17), "GIF"),
    "exif": rotated_by_exif(),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_have_the_pixels_of_a_conversion(kind):
    image = load_image(FILES[kind])
    assert image.mode == "RGB" and np.array_equal(image, Image.open(io.BytesIO(FILES[kind])).convert("RGB"))


def test_an_upright_image_is_rotated_and_16_bits_are_scaled():
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(FILES["exif"])))
    assert np.array_equal(load_image(FILES["exif"], exif_transpose=True), upright)
    levels = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    gray = np.asarray(load_image(encoded(Image.fromarray(levels))))
    assert np.array_equal(gray, np.repeat((levels // 257).astype(np.uint8)[..., None], 3, axis=2))


def test_an_image_of_the_caller_stays_his():
    image = photograph(8, 8)
    load_image(image).putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) != (1, 2, 3)


def by_interpolation(image: Image.Image, left: float, up: float) -> Image.Image:
    matrix = (1, 0, left, 0, 1, up)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GRAY)


@pytest.mark.parametrize("size", [(256, 256), (384, 128), (31, 17), (2, 3)])  # also fractions of a pixel
@pytest.mark.parametrize(("level", "sign"), [(7, 1), (7, -1), (10, 1), (0, 1)])
def test_translations_have_the_pixels_of_interpolation(size, level, sign):
    image = photograph(*size)
    left, up = (sign * level / 10 * side * 10 / 256 for side in size)
    assert np.array_equal(OPERATIONS["TranslateX"](image, level, sign), by_interpolation(image, left, 0))
    assert np.array_equal(OPERATIONS["TranslateY"](image, level, sign), by_interpolation(image, 0, up))


@pytest.mark.parametrize("size", [(61, 40), (500, 375)])
def test_augmented_pixels_are_those_of_the_plain_computation(size):
    image = photograph(*size)
    augmentation = Augmentation(64, MEAN, STD)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        box = random_crop_box(size, 64, rng, (0.2, 1.0))
        plain = image.resize((64, 64), Image.Resampling.BICUBIC, box=box)
        mirrored = rng.random() < 0.5
        plain = ImageOps.mirror(plain) if mirrored else plain
        plain = torch.tensor(np.asarray(random_augment(plain, rng))).permute(2, 0, 1).float()
        factor = torch.tensor([1 / (255 * deviation) for deviation in STD]).view(3, 1, 1)
        offset = torch.tensor([-mean / deviation for mean, deviation in zip(MEAN, STD, strict=True)]).view(3, 1, 1)
        pixels, flipped = augmentation(image, np.random.default_rng(seed))
        assert torch.equal(pixels, plain * factor + offset) and flipped == mirrored
        raw, _ = augmentation.augment(image, np.random.default_rng(seed))
        assert raw.dtype == torch.uint8 and torch.equal(raw, plain.byte())


def test_batches_are_normalized_as_their_images_are():
    normalize = Normalization(MEAN, STD)
    pixels = torch.randint(0, 256, (2, 2, 3, 8, 9), dtype=torch.uint8)  # two images of each row
    one_by_one = torch.stack([torch.stack([normalize(image) for image in images]) for images in pixels])
    assert torch.equal(normalize(pixels), one_by_one)
    exact = (pixels.double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert torch.allclose(one_by_one.double(), exact, atol=1e-6)
    states = torch.randn(2, 5, 8).half()
    assert normalize(states) is states


@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_torch_resizes_a_crop_almost_as_pillow_does(resample):
    image = photograph(500, 375)
    for box in [(0, 0, 500, 375), (13, 21, 313, 301), (100, 100, 150, 170)]:
        resized = torch_resize(image, (256, 192), resample, box)
        right = image.crop(box).resize((256, 192), resample)
        differences = np.abs(np.asarray(resized, dtype=int) - np.asarray(right, dtype=int))
        assert differences.max() <= 3 and (differences > 0).mean() < 0.03 and (differences > 1).mean() < 0.001


def test_torch_does_not_resize_as_lanczos():
    with pytest.raises(ValueError, match="lanczos interpolation, which torch does not have; remove fast_resize"):
        Augmentation(64, MEAN, STD, resample=Image.Resampling.LANCZOS, resize=torch_resize)
