"""Invalid and unusual rows pass through a data loader: nothing crashes, and skipped rows are counted correctly."""

import io
import json
import os
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from encoded_images import encoded
from PIL import Image
from torch.utils.data import DataLoader

from albef_hf.data import (
    Augmentation,
    ImageTextPairs,
    InvalidSampleError,
    PairReader,
    PretrainingCollator,
    ShardOrder,
    Shards,
    SkipReason,
    load_image,
)
from albef_hf.data.shard_writer import JpegEncoder
from albef_hf.data.sources import read_annotations
from albef_hf.processing_albef import added_tokens

GOOD = 30  # ordinary pairs
RED = (255, 0, 0)
HALF_GRAY = (128, 128, 128)
WHITE = (255, 255, 255)


def noise(size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def huge() -> bytes:
    """Return a PNG of 144 megapixels and 17 kB."""
    content = encoded(Image.new("1", (12000, 12000)))
    assert len(content) < 18_000
    return content


def invalid_images(folder: Path, huge: bytes) -> dict[str, SkipReason]:
    """Write files that are not images, images that must not be read, and links; returns the reason of each name."""
    root = folder / "root"
    (root / "truncated.jpg").write_bytes(encoded(noise(), "JPEG")[:-2000])
    (root / "header.jpg").write_bytes(encoded(noise(), "JPEG")[:20])
    (root / "html.jpg").write_text("<!DOCTYPE html><html>404 Not Found</html>")
    (root / "empty.jpg").write_bytes(b"")
    (root / "float.tiff").write_bytes(encoded(Image.new("F", (8, 8), 0.5), "TIFF"))
    (root / "huge.png").write_bytes(huge)
    (root / "folder.jpg").mkdir()
    Image.new("RGB", (9, 9), "red").save(folder / "secret.png")
    (root / "link.png").symlink_to(folder / "secret.png")
    (root / "linked").symlink_to(folder)
    (root / "circle.png").symlink_to(root / "circle.png")
    broken = ("truncated.jpg", "header.jpg", "html.jpg", "empty.jpg", "float.tiff", "long" * 2000)
    missing = ("folder.jpg", "absent.jpg", "circle.png", "nul\x00.png", "0.png/x")
    outside = ("../secret.png", str(folder / "secret.png"), "link.png", "linked/secret.png", "a/../../secret.png")
    return {
        **dict.fromkeys(broken, SkipReason.IMAGE_BROKEN),
        "huge.png": SkipReason.IMAGE_TOO_LARGE,
        **dict.fromkeys(missing, SkipReason.IMAGE_MISSING),
        **dict.fromkeys(outside, SkipReason.IMAGE_OUTSIDE_ROOT),
    }


def unusual_images(root: Path) -> dict[str, tuple[int, int, int]]:
    """Write images that are often read wrongly; returns their colors."""
    Image.new("CMYK", (40, 30), (0, 255, 255, 0)).save(root / "cmyk.jpg", quality=95)
    Image.fromarray(np.full((30, 40), 128 * 257, dtype=np.uint16)).save(root / "gray16.png")
    Image.fromarray(np.full((30, 40), 128 * 257, dtype=np.uint16)).save(root / "gray16.tiff")
    Image.new("L", (40, 30), 128).save(root / "gray.png")
    Image.new("RGBA", (40, 30), (255, 0, 0, 0)).save(root / "transparent.png")
    Image.new("RGBA", (40, 30), (255, 0, 0, 255)).save(root / "opaque.png")
    palette = Image.new("P", (40, 30), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.save(root / "palette.png")
    palette.save(root / "palette_transparent.png", transparency=1)
    frames = [Image.new("RGB", (40, 30), color) for color in ("red", "green", "blue")]
    frames[0].save(root / "animated.gif", save_all=True, append_images=frames[1:])
    frames[0].save(root / "animated.webp", save_all=True, append_images=frames[1:], lossless=True)
    Image.new("RGB", (1, 1), "red").save(root / "one_pixel.png")
    Image.new("RGB", (3000, 2), "red").save(root / "flat.png")
    red = ("cmyk.jpg", "opaque.png", "palette.png", "animated.gif", "animated.webp", "one_pixel.png", "flat.png")
    return {
        **dict.fromkeys(red, RED),
        **dict.fromkeys(("gray16.png", "gray16.tiff", "gray.png"), HALF_GRAY),
        **dict.fromkeys(("transparent.png", "palette_transparent.png"), WHITE),
    }


# From captions to their tokens.
UNUSUAL_CAPTIONS = {
    "A dog \U0001f415\u200d\U0001f9ba!": ["a", "dog", "[UNK]"],
    "犬と犬 a dog": ["犬", "と", "犬", "a", "dog"],
    "a\x00 dog\x07": ["a", "dog"],
    "a \ud800 dog": ["a", "dog"],
    "a [SEP] dog [MASK]": ["a", "[", "sep", "]", "dog", "[", "mask", "]"],
    "[CLS][PAD]": ["[", "cl", "##s", "]", "[", "pad", "]"],
    "a\u00a0dog\u2028\r\n\t": ["a", "dog"],
}
EMPTY_CAPTIONS = ["", "  \n", "?!.", "\u200b\u3000", [], ["", None], None, 7]


class Watched:
    """Rows that record which indices are read."""

    def __init__(self, rows):
        self.rows = rows
        self.asked = []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.asked.append(index)
        return self.rows[index]


@pytest.fixture
def everything(tmp_path, huge) -> tuple[list[dict], dict[int, SkipReason], Path]:
    """Return rows with all of these, the reasons of the invalid ones by index, and the image root."""
    root = tmp_path / "root"
    root.mkdir()
    for index in range(GOOD):
        Image.new("RGB", (40, 30), "red").save(root / f"{index}.png")
    bad = invalid_images(tmp_path, huge)
    rows = [{"image": f"{index}.png", "caption": f"a dog {index}"} for index in range(GOOD)]
    rows += [{"image": name, "caption": "a dog"} for name in unusual_images(root)]
    rows += [{"image": "0.png", "caption": caption} for caption in UNUSUAL_CAPTIONS]
    rows += [{"image": "0.png", "caption": "word " * 10_000}]
    usable = len(rows)
    rows += [{"image": name, "caption": "a dog"} for name in bad]
    rows += [{"image": "0.png", "caption": caption} for caption in EMPTY_CAPTIONS]
    rows += [{"image": None, "caption": "a dog"}, {"image": 7, "caption": "a dog"}]
    reasons = [
        *bad.values(),
        *[SkipReason.CAPTION_EMPTY] * len(EMPTY_CAPTIONS),
        SkipReason.IMAGE_MISSING,
        SkipReason.IMAGE_MISSING,
    ]
    return rows, dict(enumerate(reasons, usable)), root


def make_loader(rows, root: Path, processor, min_scale: float = 0.2) -> DataLoader:
    """Return batches of four pairs, as in pretraining."""
    images = processor.image_processor
    augmentation = Augmentation(
        images.size["height"], images.image_mean, images.image_std, min_scale=min_scale, operations=0
    )
    reader = PairReader(augmentation, str(root), kept_tokens=added_tokens(processor.tokenizer))
    order = ShardOrder(rows.bounds) if isinstance(rows, Shards) else None
    return DataLoader(
        ImageTextPairs(rows, reader),
        batch_size=4,
        shuffle=order is None,
        sampler=order,
        drop_last=True,
        collate_fn=PretrainingCollator(processor.tokenizer),
    )


def test_every_invalid_row_is_counted(everything, processor, tmp_path):
    rows, bad, root = everything
    (tmp_path / "rows.json").write_text(json.dumps(rows))  # where lone surrogates are allowed
    watched = Watched(read_annotations([str(tmp_path / "rows.json")]))
    loader = make_loader(watched, root, processor)
    watched.asked.clear()
    batches = list(loader)
    assert len(batches) == len(rows) // 4
    assert all(torch.isfinite(batch["pixel_values"]).all() for batch in batches)
    assert all(batch["input_ids"].max() < len(processor.tokenizer) for batch in batches)
    expected = Counter(bad[row] for row in watched.asked if row in bad)
    expected[SkipReason.CAPTION_CUT] = watched.asked.count(next(iter(bad)) - 1)  # the last of the usable rows
    counted = sum(batch["issues"] for batch in batches)
    assert {issue: int(counted[issue]) for issue in SkipReason if counted[issue]} == {
        k: v for k, v in expected.items() if v
    }
    read = [row for row in watched.asked if row not in bad]
    assert len(read) == 4 * len(batches), "a pair was delivered without being read, or read without being delivered"
    assert len(set(watched.asked)) >= len(rows) - 3, "more rows than those of the last batch were skipped"


def test_unusual_images_have_their_colors(everything, processor):
    rows, _, root = everything
    dataset = make_loader(rows, root, processor, min_scale=1.0).dataset
    for index, (name, color) in enumerate(unusual_images(root).items(), GOOD):
        assert rows[index]["image"] == name
        sample = dataset[index]
        pixels = sample["pixel_values"].float()
        assert not sample["issues"]
        assert torch.allclose(pixels, torch.tensor(color).view(3, 1, 1).expand_as(pixels).float(), atol=3), name


def test_tokens_of_unusual_captions(everything, processor):
    rows, _, root = everything
    loader = make_loader(rows, root, processor)
    first = GOOD + len(unusual_images(root))
    for index, (caption, tokens) in enumerate(UNUSUAL_CAPTIONS.items(), first):
        assert rows[index]["caption"] == caption
        ids = loader.collate_fn([loader.dataset[index]])["input_ids"][0]
        assert processor.tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", *tokens, "[SEP]"][: len(ids)], caption
        assert processor.tokenizer.sep_token_id not in ids[:-1]
    ids = loader.collate_fn([loader.dataset[first + len(UNUSUAL_CAPTIONS)]])["input_ids"][0]
    assert len(ids) == 25  # from 10,000 words


def test_exif_orientation_is_ignored_as_in_the_original():
    image = Image.new("RGB", (40, 30), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert load_image(buffer.getvalue()).size == (40, 30)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "P with a transparent color", "I;16", "1"])
def test_exif_orientation_is_followed_on_request(mode):
    pixels = np.random.default_rng(0).integers(0, 2, (30, 40), dtype=np.uint8) * 255
    if mode == "I;16":
        image = Image.fromarray(pixels.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(pixels).convert(mode.split()[0])
    settings = {"transparency": 7} if "transparent" in mode else {}
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    straight = io.BytesIO()
    image.save(turned, "PNG", exif=exif, **settings)
    image.save(straight, "PNG", **settings)
    expected = load_image(straight.getvalue()).transpose(Image.Transpose.ROTATE_270)
    for value in (turned.getvalue(), Image.open(turned)):
        found = load_image(value, exif_transpose=True)
        assert found.mode == "RGB" and np.array_equal(found, expected)
    assert np.array_equal(load_image(straight.getvalue(), exif_transpose=True), load_image(straight.getvalue()))
    content, size, _ = JpegEncoder(exif_transpose=True, quality=100)(turned.getvalue())
    assert size == (30, 40)
    assert np.abs(np.asarray(Image.open(io.BytesIO(content)), dtype=int) - np.asarray(expected)).mean() < 12


def test_invalid_exif_is_ignored():
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, "JPEG", exif=b"Exif\0\0garbage")
    assert load_image(buffer.getvalue(), exif_transpose=True).size == (40, 30)
    for encode in (JpegEncoder(), JpegEncoder(exif_transpose=True)):
        assert encode(buffer.getvalue())[0] == buffer.getvalue()


def test_an_opened_image_may_be_broken():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(buffer, "PNG")
    for exif_transpose in (False, True):
        with pytest.raises(InvalidSampleError, match="image_broken"):
            load_image(Image.open(io.BytesIO(buffer.getvalue()[:2000])), exif_transpose=exif_transpose)


def with_scans(size: int, scans: int) -> bytes:
    """Return a progressive JPEG that repeats its last scan: few bytes, much work."""
    content = encoded(Image.new("L", (size, size)), "JPEG", progressive=True)
    start = content.rindex(b"\xff\xc4", 0, content.rindex(b"\xff\xda"))
    return content[:-2] + content[start:-2] * scans + content[-2:]


def test_limits_are_checked_before_an_image_is_decoded(tmp_path, monkeypatch):
    (tmp_path / "scans.jpg").write_bytes(with_scans(1000, 2000))  # 2 billion pixels in all scans
    for source in (tmp_path / "scans.jpg", with_scans(1000, 2000), Image.open(tmp_path / "scans.jpg")):
        with pytest.raises(InvalidSampleError, match=r"image_too_large: .* a JPEG of 2,006 scans"):
            load_image(source)
    assert load_image(with_scans(100, 20)).size == (100, 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4999)
    with pytest.raises(InvalidSampleError, match="image_too_large: .* it has 9,216 pixels; at most 4,999 are read"):
        load_image(encoded(noise((96, 96))))
    assert load_image(noise((96, 96))).size == (96, 96)  # already decoded
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert load_image(with_scans(100, 20)).size == (100, 100)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_threads_do_not_change_the_warning_filters(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)  # 96 x 96 exceed this, but not by a factor of two
    before = list(warnings.filters)
    large = encoded(noise((96, 96)))
    small = encoded(noise((30, 30)))

    def read(index: int) -> str:
        try:
            return str(load_image(large if index % 2 else small, exif_transpose=True).size)
        except InvalidSampleError as error:
            return error.reason.name

    with ThreadPoolExecutor(8) as pool:
        found = Counter(pool.map(read, range(200)))
    assert found == {"(30, 30)": 100, "IMAGE_TOO_LARGE": 100} and list(warnings.filters) == before


def test_special_files_are_missing_and_postscript_is_not_run(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):  # reading them would never end
        with pytest.raises(InvalidSampleError, match="image_missing"):
            load_image(path)
    with pytest.raises(InvalidSampleError, match="image_broken: .* PostScript"):
        load_image(encoded(noise(), "EPS"))


def test_16_bit_gray_may_have_a_transparent_level():
    levels = np.full((8, 8), 257 * 9, np.uint16)
    levels[3, 4] = 257 * 7
    content = encoded(Image.fromarray(levels), "PNG", transparency=257 * 7)
    assert np.asarray(load_image(content))[3, 3:5].tolist() == [[9, 9, 9], [255, 255, 255]]


def test_shards_contain_the_usable_rows(everything, processor, tmp_path, run):
    rows, bad, root = everything
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    arguments = ["--output_dir", tmp_path / "shards", "--train_files", tmp_path / "rows.json", "--image_root", root]
    run("shards", *arguments, "--num_workers", 0)
    dropped = [json.loads(line) for line in (tmp_path / "shards" / "dropped.jsonl").read_text().splitlines()]
    assert {line["row"]: line["reason"] for line in dropped} == {row: issue.name.lower() for row, issue in bad.items()}
    shards = Shards([tmp_path / "shards"])
    assert len(shards) == len(rows) - len(bad)
    with (tmp_path / "shards" / "00000.tar").open("r+b") as file:  # a hole in the middle
        file.seek(20 * 2560)
        file.write(bytes(3000))
    loader = make_loader(shards, root, processor)
    counted = sum(batch["issues"] for batch in loader)
    assert 1 <= counted[SkipReason.SHARD_DAMAGED] <= 6 and counted.sum() == counted[[6, 7]].sum()
