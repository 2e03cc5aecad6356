"""Whatever lies in a folder or a list goes through the loader of the training: nothing crashes, counts are right."""

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
from accelerate import Accelerator
from encoded_images import encoded
from PIL import Image
from task_rows import load_script

from albef_hf.data import BadSampleError, Issue, load_image, load_upright
from albef_hf.data.shard_writer import PictureEncoder
from albef_hf.data.sources import read_annotations

GOOD = 30  # pairs with which nothing is wrong
RED, HALF_GREY, WHITE = (255, 0, 0), (128, 128, 128), (255, 255, 255)


def noise(size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def huge() -> bytes:
    """A PNG of 144 megapixels and 17 kB."""
    content = encoded(Image.new("1", (12000, 12000)))
    assert len(content) < 18_000
    return content


def bad_pictures(folder: Path, huge: bytes) -> dict[str, Issue]:
    """Files that are no pictures, pictures that are not to be read, and names of nothing; each with its reason."""
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
        **dict.fromkeys(broken, Issue.IMAGE_BROKEN),
        "huge.png": Issue.IMAGE_TOO_LARGE,
        **dict.fromkeys(missing, Issue.IMAGE_MISSING),
        **dict.fromkeys(outside, Issue.IMAGE_OUTSIDE_ROOT),
    }


def odd_pictures(root: Path) -> dict[str, tuple[int, int, int]]:
    """Pictures of kinds that are often read wrongly, and the colour that they have."""
    Image.new("CMYK", (40, 30), (0, 255, 255, 0)).save(root / "cmyk.jpg", quality=95)
    Image.fromarray(np.full((30, 40), 128 * 257, dtype=np.uint16)).save(root / "grey16.png")
    Image.fromarray(np.full((30, 40), 128 * 257, dtype=np.uint16)).save(root / "grey16.tiff")
    Image.new("L", (40, 30), 128).save(root / "grey.png")
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
        **dict.fromkeys(("grey16.png", "grey16.tiff", "grey.png"), HALF_GREY),
        **dict.fromkeys(("transparent.png", "palette_transparent.png"), WHITE),
    }


# Captions, and the tokens that become of them.
ODD_CAPTIONS = {
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
    """Rows that note which of them are asked for."""

    def __init__(self, rows):
        self.rows, self.asked = rows, []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.asked.append(index)
        return self.rows[index]


@pytest.fixture
def everything(tmp_path, huge) -> tuple[list[dict], dict[int, Issue], Path]:
    """Rows with all of that, which of them are bad and why, and the image root."""
    root = tmp_path / "root"
    root.mkdir()
    for number in range(GOOD):
        Image.new("RGB", (40, 30), "red").save(root / f"{number}.png")
    bad = bad_pictures(tmp_path, huge)
    rows = [{"image": f"{number}.png", "caption": f"a dog {number}"} for number in range(GOOD)]
    rows += [{"image": name, "caption": "a dog"} for name in odd_pictures(root)]
    rows += [{"image": "0.png", "caption": caption} for caption in ODD_CAPTIONS]
    rows += [{"image": "0.png", "caption": "word " * 10_000}]
    usable = len(rows)
    rows += [{"image": name, "caption": "a dog"} for name in bad]
    rows += [{"image": "0.png", "caption": caption} for caption in EMPTY_CAPTIONS]
    rows += [{"image": None, "caption": "a dog"}, {"image": 7, "caption": "a dog"}]
    reasons = [*bad.values(), *[Issue.CAPTION_EMPTY] * len(EMPTY_CAPTIONS), Issue.IMAGE_MISSING, Issue.IMAGE_MISSING]
    return rows, dict(enumerate(reasons, usable)), root


def loader_of(script, rows, root: Path, processor, **more):  # noqa: F811
    options = {"batch_size": 4, "image_root": str(root), "num_workers": 0, "randaugment_operations": 0}
    return script.make_loader(script.PretrainingOptions(**options | more), rows, processor, Accelerator(cpu=True))[0]


def test_all_of_it_goes_through_the_loader_and_every_bad_row_is_counted(script, everything, processor, tmp_path):  # noqa: F811
    rows, bad, root = everything
    (tmp_path / "rows.json").write_text(json.dumps(rows))  # where lone surrogates are allowed
    watched = Watched(read_annotations([str(tmp_path / "rows.json")]))
    loader = loader_of(script, watched, root, processor)
    watched.asked.clear()
    batches = list(loader)
    assert len(batches) == len(rows) // 4
    assert all(torch.isfinite(batch["pixel_values"]).all() for batch in batches)
    assert all(batch["input_ids"].max() < len(processor.tokenizer) for batch in batches)
    expected = Counter(bad[row] for row in watched.asked if row in bad)
    expected[Issue.CAPTION_CUT] = watched.asked.count(next(iter(bad)) - 1)  # the last of the usable rows
    counted = sum(batch["issues"] for batch in batches)
    assert {issue: int(counted[issue]) for issue in Issue if counted[issue]} == {
        k: v for k, v in expected.items() if v
    }
    read = [row for row in watched.asked if row not in bad]
    assert len(read) == 4 * len(batches), "a pair was delivered that had not been read, or the other way round"
    assert len(set(watched.asked)) >= len(rows) - 3, "rows have been passed over, beside those of the last batch"


def test_odd_pictures_have_their_colours(everything, script, processor):  # noqa: F811
    rows, _, root = everything
    dataset = loader_of(script, rows, root, processor, min_crop_scale=1.0).dataset
    mean, deviation = (
        torch.tensor(getattr(processor.image_processor, name)).view(3, 1, 1) for name in ("image_mean", "image_std")
    )
    for number, (name, color) in enumerate(odd_pictures(root).items(), GOOD):
        assert rows[number]["image"] == name
        sample = dataset[number]
        pixels = (sample["pixel_values"] * deviation + mean) * 255
        assert not sample["issues"]
        assert torch.allclose(pixels, torch.tensor(color).view(3, 1, 1).expand_as(pixels).float(), atol=3), name


def test_odd_captions_become_these_tokens(everything, script, processor):  # noqa: F811
    rows, _, root = everything
    loader = loader_of(script, rows, root, processor)
    first = GOOD + len(odd_pictures(root))
    for number, (caption, tokens) in enumerate(ODD_CAPTIONS.items(), first):
        assert rows[number]["caption"] == caption
        ids = loader.collate_fn([loader.dataset[number]])["input_ids"][0]
        assert processor.tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", *tokens, "[SEP]"][: len(ids)], caption
        assert processor.tokenizer.sep_token_id not in ids[:-1]
    ids = loader.collate_fn([loader.dataset[first + len(ODD_CAPTIONS)]])["input_ids"][0]
    assert len(ids) == 25  # of ten thousand words


def test_exif_orientation_is_not_followed_like_in_the_original():
    image = Image.new("RGB", (40, 30), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert load_image(buffer.getvalue()).size == (40, 30)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "P with a transparent colour", "I;16", "1"])
def test_exif_orientation_is_followed_where_it_is_asked_for(mode):
    pixels = np.random.default_rng(0).integers(0, 2, (30, 40), dtype=np.uint8) * 255
    picture = Image.fromarray(pixels)
    picture = Image.fromarray(pixels.astype(np.uint16) * 257) if mode == "I;16" else picture.convert(mode.split()[0])
    settings = {"transparency": 7} if "transparent" in mode else {}
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, straight = io.BytesIO(), io.BytesIO()
    picture.save(turned, "PNG", exif=exif, **settings)
    picture.save(straight, "PNG", **settings)
    expected = load_image(straight.getvalue()).transpose(Image.Transpose.ROTATE_270)
    for value in (turned.getvalue(), Image.open(turned)):
        found = load_upright(value)
        assert found.mode == "RGB" and np.array_equal(found, expected)
    assert np.array_equal(load_upright(straight.getvalue()), load_image(straight.getvalue()))
    content, size, _ = PictureEncoder(exif_transpose=True, quality=100)(turned.getvalue())
    assert size == (30, 40)
    assert np.abs(np.asarray(Image.open(io.BytesIO(content)), dtype=int) - np.asarray(expected)).mean() < 12


def test_exif_that_makes_no_sense_costs_no_picture():
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(buffer, "JPEG", exif=b"Exif\0\0garbage")
    assert load_upright(buffer.getvalue()).size == (40, 30)
    for encode in (PictureEncoder(), PictureEncoder(exif_transpose=True)):
        assert encode(buffer.getvalue())[0] == buffer.getvalue()


def test_a_picture_that_somebody_has_opened_may_be_broken_too():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(buffer, "PNG")
    for load in (load_image, load_upright):
        with pytest.raises(BadSampleError, match="image_broken"):
            load(Image.open(io.BytesIO(buffer.getvalue()[:2000])))


def with_scans(size: int, scans: int) -> bytes:
    """A progressive JPEG that repeats its last scan: few bytes, much work."""
    content = encoded(Image.new("L", (size, size)), "JPEG", progressive=True)
    start = content.rindex(b"\xff\xc4", 0, content.rindex(b"\xff\xda"))
    return content[:-2] + content[start:-2] * scans + content[-2:]


def test_limits_are_checked_before_an_image_is_decoded(tmp_path, monkeypatch):
    (tmp_path / "scans.jpg").write_bytes(with_scans(1000, 2000))  # 2 billion pixels in all scans
    for source in (tmp_path / "scans.jpg", with_scans(1000, 2000), Image.open(tmp_path / "scans.jpg")):
        with pytest.raises(BadSampleError, match=r"image_too_large: .* a JPEG of 2,006 scans"):
            load_image(source)
    assert load_image(with_scans(100, 20)).size == (100, 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4999)
    with pytest.raises(BadSampleError, match="image_too_large: .* it has 9,216 pixels; at most 4,999 are read"):
        load_image(encoded(noise((96, 96))))
    assert load_image(noise((96, 96))).size == (96, 96)  # which is decoded already
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert load_image(with_scans(100, 20)).size == (100, 100)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_threads_leave_the_filters_of_warnings_alone(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)  # which 96 x 96 exceed, but not twice
    before, large, small = list(warnings.filters), encoded(noise((96, 96))), encoded(noise((30, 30)))

    def read(number: int) -> str:
        try:
            return str(load_upright(large if number % 2 else small).size)
        except BadSampleError as error:
            return error.issue.name

    with ThreadPoolExecutor(8) as pool:
        found = Counter(pool.map(read, range(200)))
    assert found == {"(30, 30)": 100, "IMAGE_TOO_LARGE": 100} and list(warnings.filters) == before


def test_what_is_no_regular_file_is_missing_and_postscript_is_not_run(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/zero"):  # reading them would never end
        with pytest.raises(BadSampleError, match="image_missing"):
            load_image(path)
    with pytest.raises(BadSampleError, match="image_broken: .* PostScript"):
        load_image(encoded(noise(), "EPS"))


def test_16_bit_gray_may_have_a_transparent_level():
    levels = np.full((8, 8), 257 * 9, np.uint16)
    levels[3, 4] = 257 * 7
    content = encoded(Image.fromarray(levels), "PNG", transparency=257 * 7)
    assert np.asarray(load_image(content))[3, 3:5].tolist() == [[9, 9, 9], [255, 255, 255]]


def test_shards_of_all_of_it_hold_what_can_be_used(run, everything, script, processor, tmp_path):  # noqa: F811
    rows, bad, root = everything
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    arguments = ["--output_dir", tmp_path / "shards", "--train_files", tmp_path / "rows.json", "--image_root", root]
    run("prepare_shards", *arguments, "--num_workers", 0)
    dropped = [json.loads(line) for line in (tmp_path / "shards" / "dropped.jsonl").read_text().splitlines()]
    assert {line["row"]: line["reason"] for line in dropped} == {row: issue.name.lower() for row, issue in bad.items()}
    shards = load_script("pretrain").Shards([tmp_path / "shards"])
    assert len(shards) == len(rows) - len(bad)
    with (tmp_path / "shards" / "00000.tar").open("r+b") as file:  # and then a hole in the middle
        file.seek(20 * 2560)
        file.write(bytes(3000))
    loader = loader_of(script, shards, root, processor)
    counted = sum(batch["issues"] for batch in loader)
    assert 1 <= counted[Issue.SHARD_DAMAGED] <= 6 and counted.sum() == counted[[6, 7]].sum()
