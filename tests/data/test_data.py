"""Reading, augmenting and masking pairs from every source; invalid pairs do not affect others."""

import base64
import io
import itertools
import json
import tarfile
import traceback
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from encoded_images import encoded
from PIL import Image

from albef_hf.data import (
    Augmentation,
    ImageTextPairs,
    ImageTextStream,
    InvalidSampleError,
    PairReader,
    PretrainingCollator,
    Scenes,
    SkipReason,
    load_image,
    mask_tokens,
    valid_captions,
)
from albef_hf.data.augmentation import OPERATIONS, random_augment, random_resized_crop
from albef_hf.data.row_values import decode_base64_image, flatten_texts
from albef_hf.data.scenes import SceneObject, compose, describe
from albef_hf.data.shard_writer import JpegEncoder
from albef_hf.data.sources import load_hub_rows, read_annotations

PAIR = '{"image": "a", "caption": "b"}'


@pytest.fixture
def reader() -> PairReader:
    return PairReader(Augmentation(32, (0.5,) * 3, (0.25,) * 3))


def solid_image(color: str = "red", size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, color)


# ---------------------------------------------------------------------------------------------------------------------
# Images
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def bad_files(tmp_path) -> dict[str, SkipReason]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    (tmp_path / "truncated.jpg").write_bytes(encoded(noise, "JPEG")[:-2000])
    (tmp_path / "html.jpg").write_text("<html>404</html>")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "huge.png").write_bytes(encoded(Image.new("1", (12000, 12000))))
    (tmp_path / "folder.jpg").mkdir()
    return {
        "truncated.jpg": SkipReason.IMAGE_BROKEN,
        "html.jpg": SkipReason.IMAGE_BROKEN,
        "empty.png": SkipReason.IMAGE_BROKEN,
        "huge.png": SkipReason.IMAGE_TOO_LARGE,
        "folder.jpg": SkipReason.IMAGE_MISSING,
        "absent.jpg": SkipReason.IMAGE_MISSING,
        "../outside.jpg": SkipReason.IMAGE_OUTSIDE_ROOT,
        "/etc/passwd": SkipReason.IMAGE_OUTSIDE_ROOT,
    }


def test_invalid_images_have_a_reason(bad_files, tmp_path):
    for name, reason in bad_files.items():
        with pytest.raises(InvalidSampleError) as caught:
            load_image(name, str(tmp_path))
        assert caught.value.reason is reason, name
    with pytest.raises(InvalidSampleError, match="image_missing"):
        load_image(None)


@pytest.mark.parametrize("path", ["nul\x00.png", "lone \ud800.png", "circle.png"])
def test_invalid_paths_are_missing_images(path, tmp_path):
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    for root in (str(tmp_path), None):
        with pytest.raises(InvalidSampleError):
            load_image(path, root)


def test_a_link_out_of_the_root_is_refused(tmp_path):
    (tmp_path / "root").mkdir()
    solid_image().save(tmp_path / "secret.png")
    (tmp_path / "root" / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(InvalidSampleError, match="image_outside_root"):
        load_image("link.png", str(tmp_path / "root"))
    assert load_image(str(tmp_path / "secret.png")).size == (40, 30)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.fromarray(np.full((8, 8), 257 * 100, dtype=np.uint16)), (100, 100, 100)),
        (Image.new("L", (8, 8), 77), (77, 77, 77)),
    ],
    ids=["transparent", "cmyk", "16-bit gray", "gray"],
)
def test_other_modes_become_rgb(image, expected):
    assert load_image(image).getpixel((3, 3)) == expected


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_images_in_base64_are_read(kind):
    content = encoded(solid_image("blue"), kind)
    text = base64.b64encode(content).decode()
    forms = [text, f"data:image/x;base64,{text}", base64.encodebytes(content).decode(), text.encode()]
    forms += [base64.urlsafe_b64encode(content).decode().rstrip("=")]
    for value in [*forms, {"bytes": text, "path": None}, {"path": text}]:
        assert load_image(value, "/root").getpixel((0, 0))[2] > 250
    assert decode_base64_image("photographs/of/many/years/" * 9) is None
    assert decode_base64_image("iVBORw0KGgo.png") is None
    assert Image.open(io.BytesIO(JpegEncoder()(text)[0])).size == (40, 30)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            "https://user:secret@host/a.jpg?token=secret",
            r"image_missing: an address \(https://\*\*\*@host/a.jpg\?token=",
        ),
        ({"path": "s3://bucket/a.jpg", "bytes": None}, r"an address \(s3://bucket/a.jpg\)"),
        ({"url": "a.jpg"}, "image_missing: an object with url, but without path or bytes"),
        ("data:image/png;base64,@@", "image_broken: the data URI cannot be decoded"),
        ("data:image/png;base64," + "aaaa" * 1000, r"image_broken: data:image/png;base64,a{200,300}\.\.\."),
    ],
)
def test_unreadable_forms_of_images_are_explained(image, message):
    with pytest.raises(InvalidSampleError, match=message) as caught:
        load_image(image, "/root")
    assert "secret" not in str(caught.value)


def test_undecoded_images_of_datasets_are_read():
    assert load_image({"bytes": encoded(solid_image("blue")), "path": None}).getpixel((0, 0)) == (0, 0, 255)
    assert load_image(encoded(solid_image("blue"))).getpixel((0, 0)) == (0, 0, 255)


def test_crops_keep_the_right_share():
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, 200, dtype=np.uint8)
    image = Image.fromarray(
        np.stack([np.tile(ramp, (200, 1)), np.tile(ramp, (200, 1)).T, np.zeros((200, 200))], 2).astype(np.uint8)
    )
    shares = []
    for _ in range(300):
        crop = np.asarray(random_resized_crop(image, 32, rng, (0.2, 1.0))).astype(float)
        width = np.ptp(crop[16, :, 0]) / 255
        height = np.ptp(crop[:, 16, 1]) / 255
        shares.append(width * height)
        assert 0.7 < width / height < 1.42
    assert 0.15 < min(shares) < 0.25 and max(shares) > 0.9
    assert random_resized_crop(solid_image(size=(1, 500)), 32, rng, (0.2, 1.0)).size == (32, 32)


def test_the_ten_operations_of_the_paper():
    assert set(OPERATIONS) == {
        "Identity", "AutoContrast", "Equalize", "Brightness", "Sharpness",
        "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate",
    }  # fmt: skip
    image = solid_image("gray", (256, 256))
    image.paste("white", (100, 100, 156, 156))
    for name, operation in OPERATIONS.items():
        assert operation(image, 7, 1).size == image.size
        changed = (np.asarray(operation(image, 7, 1)) != np.asarray(image)).any()
        assert changed == (name != "Identity"), name
    moved = np.asarray(OPERATIONS["TranslateX"](image, 10, 1))
    assert (moved[:, :-10] == np.asarray(image)[:, 10:]).all() and (moved[:, -10:] == 128).all()
    brighter = np.asarray(OPERATIONS["Brightness"](solid_image("gray"), 7, 1))[0, 0, 0]
    assert brighter == pytest.approx(128 * 1.36, abs=1)


def test_operations_are_drawn_with_their_probabilities():
    rng = np.random.default_rng(0)
    image = solid_image("gray", (16, 16))
    image.putpixel((3, 3), (10, 200, 30))
    same = sum(random_augment(image, rng, 1, 7) is image for _ in range(2000)) / 2000
    assert same == pytest.approx(0.5 + 0.5 / 10, abs=0.04)  # not applied, or the identity


def test_augmented_pixels_are_normalized():
    pixels, _ = Augmentation(16, (0.5,) * 3, (0.25,) * 3, operations=0)(solid_image("white"), np.random.default_rng(0))
    assert pixels.shape == (3, 16, 16) and torch.allclose(pixels, torch.tensor(2.0))


@pytest.mark.parametrize("captions", [None, 7, float("nan"), {"en": "a"}, [], ["", None], "\t", "\u200b\u3000", "?!"])
def test_blank_captions_are_refused(captions):
    with pytest.raises(InvalidSampleError, match="caption_empty"):
        valid_captions(captions)


def test_valid_captions_are_kept():
    assert valid_captions("a dog") == ["a dog"]
    assert valid_captions(np.array(["", "a dog", "a cat"])) == ["a dog", "a cat"]
    assert valid_captions([None, "\U0001f600"]) == ["\U0001f600"]


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ({"raw": "a dog", "sentid": 1}, ["a dog"]),
        ([{"raw": "a dog", "tokens": ["a", "dog"]}, {"raw": "a cat"}], ["a dog", "a cat"]),
        ({"raw": ["a dog", "a cat"], "sentid": [1, 2]}, ["a dog", "a cat"]),
        ({"text": {"caption": "a dog"}}, ["a dog"]),
        ("['a dog', \"a cat's\"]", ["a dog", "a cat's"]),
        ('["a dog", null, "a cat"]', ["a dog", None, "a cat"]),
        ("['a dog' 'a cat'\n \"it's 'a' 'b'\"]", ["a dog", "a cat", "it's 'a' 'b'"]),  # as NumPy prints a list
        ('[{"raw": "a dog"}]', ["a dog"]),
        ("('a dog', 'a cat')", ["a dog", "a cat"]),
        ("['a dog', 'a c]", []),
        ("['n' out]", ["['n' out]"]),
        ("['a' 'b' ... 'c']", []),
        ("[a dog]", ["[a dog]"]),
        ("[UNK] (a dog)", ["[UNK] (a dog)"]),
        ("(1, 2)", ["(1, 2)"]),
        ({"en": "a dog"}, [{"en": "a dog"}]),
        ("[" * 100_000 + "]" * 100_000, ["[" * 100_000 + "]" * 100_000]),
        (7, [7]),
    ],
)
def test_nested_texts_are_flattened(value, texts):
    assert flatten_texts(value) == texts


def test_texts_that_are_nested_too_deeply_are_refused():
    value = "a dog"
    for _ in range(5000):
        value = [value]
    with pytest.raises(InvalidSampleError, match="caption_empty"):
        valid_captions(value)


# ---------------------------------------------------------------------------------------------------------------------
# Captions and masks
# ---------------------------------------------------------------------------------------------------------------------


def test_masking_has_the_papers_shares(processor):
    tokenizer = processor.tokenizer
    input_ids = torch.full((400, 25), 2000)
    input_ids[:, 0] = 101
    input_ids[:, -5:] = 0
    input_ids[:, 10] = 102
    masked, labels = mask_tokens(input_ids, tokenizer, 0.15, torch.Generator().manual_seed(0))
    chosen = labels != -100
    assert not chosen[:, 0].any() and not chosen[:, -5:].any() and chosen[:, 10].any()
    assert chosen[:, 1:-5].float().mean() == pytest.approx(0.15, abs=0.01)
    assert (masked[chosen] == 103).float().mean() == pytest.approx(0.8, abs=0.03)
    assert (masked[chosen] == input_ids[chosen]).float().mean() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(masked[~chosen], input_ids[~chosen])
    assert torch.equal(labels[chosen], input_ids[chosen])


def test_at_least_one_token_is_masked(processor):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        _, labels = mask_tokens(torch.tensor([[101, 2000, 0], [101, 0, 0]]), processor.tokenizer, 0.0, generator)
        assert labels.tolist() == [[-100, 2000, -100], [-100, -100, -100]]
    _, labels = mask_tokens(torch.tensor([[101, 0]]), processor.tokenizer, 0.15)
    assert (labels == -100).all()


def test_a_sample_depends_only_on_seed_epoch_and_index(reader, processor):
    pairs = ImageTextPairs(Scenes(10), reader, seed=1)
    first, again = pairs[3], pairs[3]
    assert torch.equal(first["pixel_values"], again["pixel_values"]) and first["caption"] == again["caption"]
    collator = PretrainingCollator(processor.tokenizer)
    assert torch.equal(collator([first])["mlm_input_ids"], collator([again])["mlm_input_ids"])
    pairs.set_epoch(1)
    assert not torch.equal(first["pixel_values"], pairs[3]["pixel_values"])


def test_long_captions_are_cut_and_counted_and_empty_ones_skipped(reader, processor):
    rows = [
        {"image": solid_image(), "caption": "word " * 2500},
        {"image": solid_image(), "caption": "  ?! "},
        {"image": solid_image(), "caption": None},
        {"image": solid_image(), "caption": ["", "fine"]},
    ]
    pairs = ImageTextPairs(rows, reader)
    assert len(pairs[0]["caption"].split()) == 30 and pairs[0]["issues"] == [SkipReason.CAPTION_CUT]
    assert pairs[3]["caption"] == "fine" and pairs[3]["issues"] == []
    assert SkipReason.CAPTION_EMPTY in pairs[1]["issues"] and SkipReason.CAPTION_EMPTY in pairs[2]["issues"]
    batch = PretrainingCollator(processor.tokenizer)([pairs[i] for i in range(4)])
    assert batch["input_ids"].shape == (4, 25)
    assert batch["issues"][SkipReason.CAPTION_EMPTY] >= 2 and len(batch["issues"]) == len(SkipReason)


def test_captions_of_too_many_tokens_are_counted_once(processor):
    texts = ["a dog", "word " * 15, "word " * 16, "unbelievablyinseparable " * 9]
    sample = {"seed": 1, "pixel_values": torch.zeros(3, 4, 4)}
    samples = [{**sample, "caption": text, "issues": []} for text in texts]
    samples[-1]["issues"] = [SkipReason.CAPTION_CUT]  # because words were cut before
    batch = PretrainingCollator(processor.tokenizer, max_length=16)(samples)
    assert batch["attention_mask"].sum(1).tolist() == [3, 16, 16, 16]
    assert batch["issues"].tolist() == [0, 0, 0, 0, 0, 0, 0, 2]
    assert processor.tokenizer.backend_tokenizer.truncation is None, "the tokenizer of the processor has changed"


def test_empty_inputs_and_invalid_options_are_refused(processor):
    with pytest.raises(ValueError, match="no samples to collate"):
        PretrainingCollator(processor.tokenizer)([])
    for wrong, message in (
        ({"max_length": 0}, "max_length is 0"),
        ({"mlm_probability": 2.0}, "mlm_probability is 2.0"),
    ):
        with pytest.raises(ValueError, match=message):
            PretrainingCollator(processor.tokenizer, **wrong)
    for shape in ((0, 5), (2, 0)):
        assert mask_tokens(torch.zeros(shape, dtype=torch.long), processor.tokenizer)[1].shape == shape
    with pytest.raises(ValueError, match="no annotation file to read"):
        read_annotations([])


def test_invalid_rows_are_replaced_and_counted(reader, bad_files, tmp_path):
    reader.image_root = str(tmp_path)
    solid_image().save(tmp_path / "good.png")
    rows = [{"image": name, "caption": "a"} for name in [*bad_files, "good.png"]]
    pairs = ImageTextPairs(rows, reader)
    samples = [pairs[i] for i in range(len(rows))]
    assert [sample["issues"][0] for sample in samples[:-1]] == list(bad_files.values())
    assert samples[-1]["issues"] == []
    with pytest.raises(ValueError, match="1000 pairs in a row.*image root"):
        ImageTextPairs(rows[:-1], reader)[0]


def test_flipped_scenes_have_mirrored_captions():
    reader = PairReader(Augmentation(96, (0,) * 3, (1,) * 3, min_scale=1.0, operations=0))
    scenes = Scenes(60, seed=3)
    pairs = ImageTextPairs(scenes, reader)
    flips = 0
    for index in range(60):
        row, sample = scenes[index], pairs[index]
        captions = [caption.replace(",", "") for caption in row["caption"]]
        mirrored = [caption.replace(",", "") for caption in row["mirrored_caption"]]
        plain = torch.from_numpy(np.array(row["image"])).permute(2, 0, 1) / 255
        flipped = not torch.allclose(reader.augmentation.normalize(sample["pixel_values"]), plain, atol=0.15)
        flips += flipped
        assert sample["caption"] in (mirrored if flipped else captions)
    assert 15 < flips < 45


# ---------------------------------------------------------------------------------------------------------------------
# Scenes
# ---------------------------------------------------------------------------------------------------------------------


def test_scenes_depend_on_the_seed():
    first = Scenes(5, seed=1)[2]
    again = Scenes(500, seed=1)[2]
    other = Scenes(5, seed=2)[2]
    assert first["image"].tobytes() == again["image"].tobytes() and first["caption"] == again["caption"]
    assert first["image"].tobytes() != other["image"].tobytes()
    with pytest.raises(IndexError, match="5 scenes"):
        Scenes(5)[5]


def test_boxes_enclose_the_drawn_shapes():
    for index in range(40):
        scene = Scenes(40).scene(index)
        for thing in scene.objects:
            alone = np.asarray(type(scene)((thing,), (255, 255, 255)).draw(200)).astype(int)
            rows, columns = np.nonzero((alone != 255).any(2))
            drawn = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 200
            assert np.abs(drawn - thing.box).max() < 0.011, thing
        for one, other in itertools.combinations(scene.objects, 2):
            (left, top, right, bottom), (west, north, east, south) = one.box, other.box
            assert right < west or east < left or bottom < north or south < top, "two objects overlap"


def test_captions_are_true_and_varied():
    left = SceneObject("circle", "red", "big", 0.2, 0.5, 0.3)
    right = SceneObject("star", "blue", "small", 0.8, 0.5, 0.15)
    scene = compose(np.random.default_rng(0))
    scene = type(scene)((left, right), scene.background)
    captions = {describe(scene, np.random.default_rng(seed)) for seed in range(300)}
    assert len(captions) > 150
    for caption in captions:
        assert " red " in caption and " blue " in caption
        if "left of" in caption or "on the left side of" in caption:
            assert caption.index("red") < caption.index("blue")
        if "right of" in caption or "on the right side of" in caption:
            assert caption.index("blue") < caption.index("red")
        assert not any(word in caption for word in ("above", "over", "below", "under"))


@pytest.mark.parametrize(("wrong", "vague"), [(0.4, 0.0), (0.0, 0.3)])
def test_share_of_wrong_and_vague_captions(wrong, vague):
    clean = Scenes(400, seed=5)
    noisy = Scenes(400, seed=5, wrong_share=wrong, vague_share=vague)
    differ = [a != b for i in range(400) for a, b in zip(clean[i]["caption"], noisy[i]["caption"], strict=True)]
    assert np.mean(differ) == pytest.approx(wrong + vague, abs=0.05)
    with pytest.raises(ValueError, match="add up"):
        Scenes(5, wrong_share=0.8, vague_share=0.4)


def test_number_of_objects_of_a_scene():
    assert {len(Scenes(60, image_size=8)[i]["objects"]) for i in range(60)} == {2, 3, 4}
    assert {len(Scenes(60, image_size=8, max_objects=2)[i]["objects"]) for i in range(60)} == {2}
    with pytest.raises(ValueError, match="max_objects is 1"):
        Scenes(5, max_objects=1)


# ---------------------------------------------------------------------------------------------------------------------
# Sources
# ---------------------------------------------------------------------------------------------------------------------


def test_json_lists_of_the_original_are_read(tmp_path, reader):
    solid_image("green").save(tmp_path / "a.png")
    (tmp_path / "one.json").write_text(json.dumps([{"image": "a.png", "caption": "one", "image_id": 7}]))
    (tmp_path / "two.json").write_text(json.dumps([{"image": "a.png", "caption": ["two", "three"]}]))
    rows = read_annotations([str(tmp_path / "one.json"), str(tmp_path / "two.json")])
    assert rows[:] == {"image": ["a.png", "a.png"], "caption": [["one"], ["two", "three"]]}
    reader.image_root = str(tmp_path)
    pairs = ImageTextPairs(rows, reader)
    assert pairs[0]["caption"] == "one" and pairs[1]["caption"] in ("two", "three")


def test_lone_surrogates_in_json_are_replaced(tmp_path):
    (tmp_path / "a.json").write_text(
        '[{"image": "a.png", "caption": "a \\ud800 b"}, {"image": "b.png", "caption": "c"}]'
    )
    assert read_annotations([str(tmp_path / "a.json")])["caption"] == [["a ? b"], ["c"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "JSON list"),
        ('{"image": "a"}', "not a list.*one object with 'image': put the rows into a list, or .*--dataset json"),
        ('[{"image": "a", "text": "b"}]', "has .'image', 'text'., but not caption. Datasets that are read"),
        ("", "bad.json is empty; it must contain a JSON list"),
        ("\ufeff \n", "is empty"),
        (f"{PAIR}\n{PAIR}\n", "contains JSON lines, not a JSON list: --dataset json --data_files .*bad.json reads it"),
        (f"\ufeff{PAIR}\n{PAIR}", "contains JSON lines"),
        (f'{{"images": [{PAIR}]}}', "one object with 'images': save its list 'images'.*--dataset json --data_files"),
        (f"[{PAIR}, 7]", "item 1 is 7"),
        ("[" * 100_000, "cannot be read as a JSON list"),
        (
            '[{"image": "a", "caption": {"en": "b"}}]',
            "'caption' of row 0 is an object with en, but without caption or",
        ),
        (f'[{PAIR}, {{"image": "http://a", "caption": "b"}}]', r"'image' of row 1 is an address \(http://a\)"),
        ('[{"image": {"url": "a"}, "caption": "b"}]', "'image' of row 0 is an object with url"),
    ],
)
def test_other_json_raises_a_clear_error(tmp_path, content, message):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_annotations([str(tmp_path / "bad.json")])


def test_a_few_unreadable_rows_are_left_to_the_reader(tmp_path):
    odd = [{"image": "https://a.b/c.jpg", "caption": "b"}, {"image": "a", "caption": {"en": "b"}}]
    (tmp_path / "a.json").write_text(f"[{', '.join(3 * [PAIR])}, {json.dumps(odd)[1:-1]}]")
    rows = read_annotations([str(tmp_path / "a.json")])
    assert rows["image"] == 3 * ["a"] + ["https://a.b/c.jpg", "a"] and rows["caption"][-2:] == [["b"], []]


def test_json_with_a_byte_order_mark_or_nested_captions_is_read(tmp_path):
    rows = [{"image": {"path": "b.png"}, "caption": [{"raw": "two"}, {"raw": "three"}]}]
    rows.append({"image": "c.png", "caption": "['four', 'five']"})
    (tmp_path / "a.json").write_text(f"\ufeff[{PAIR}, {json.dumps(rows)[1:-1]}]")
    expected = {"image": ["a", "b.png", "c.png"], "caption": [["b"], ["two", "three"], ["four", "five"]]}
    assert read_annotations([str(tmp_path / "a.json")])[:] == expected


@pytest.mark.parametrize("content", [f"{PAIR}\n{PAIR}\n", f'{{"info": 1, "images": [{PAIR}, {PAIR}]}}'])
@pytest.mark.parametrize("streaming", [False, True])
def test_json_that_the_errors_refer_to_datasets_is_read(tmp_path, content, streaming):
    (tmp_path / "a.json").write_text(content)
    rows = hub_rows("json", streaming=streaming, files=[str(tmp_path / "a.json")])
    assert list(rows) == 2 * [{"image": "a", "caption": "b"}]


def test_columns_of_unknown_form_are_refused(tmp_path):
    columns = {"image": ["a", "b"], "texts": 2 * [[{"en": "a", "de": "b"}]], "link": ["a", "ftp://b/c.jpg"]}
    datasets.Dataset.from_dict(columns).to_parquet(str(tmp_path / "rows.parquet"))
    files = [str(tmp_path / "rows.parquet")]
    with pytest.raises(ValueError, match="'caption' of row 0 is an object with en, de"):
        hub_rows("parquet", "texts", files=files)
    with pytest.raises(ValueError, match="'image' of row 1 is an address"):
        hub_rows("parquet", "image", image_column="link", files=files)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("https://user:s3cret@localhost:1/rows", None),
        ("https://localhost:1/rows?access_token=s3cret", None),
        ("parquet", ["https://user:s3cret@localhost:1/a.parquet"]),
        ("json", ["https://localhost:1/a.json?X-Amz-Signature=s3cret&b=1"]),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_errors_do_not_contain_secrets_of_an_address(name, files, streaming):
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        hub_rows(name, files=files, streaming=streaming)
    assert "s3cret" not in "".join(traceback.format_exception(caught.value)).replace(Path(__file__).read_text(), "")


def hub_rows(name: str, column: str = "caption", streaming: bool = False, image_column: str = "image", files=None):
    return load_hub_rows(name, None, files, "train", streaming, image_column, column)


@pytest.mark.parametrize("streaming", [False, True])
def test_an_imagefolder_is_read(tmp_path, reader, streaming):
    for index, color in enumerate(("red", "green")):
        solid_image(color).save(tmp_path / f"{index}.png")
    lines = [json.dumps({"file_name": f"{i}.png", "caption": f"number {i}"}) for i in range(2)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    rows = hub_rows(str(tmp_path), streaming=streaming)
    sample = next(iter(ImageTextStream(rows, reader))) if streaming else ImageTextPairs(rows, reader)[0]
    assert sample["caption"] == "number 0"
    with pytest.raises(ValueError, match="no column 'text'; set caption_column to one of .*caption"):
        hub_rows(str(tmp_path), "text", streaming)


def test_parquet_with_a_broken_image_is_read(tmp_path, reader):
    rows = datasets.Dataset.from_dict(
        {
            "picture": [{"bytes": encoded(solid_image()), "path": None}, {"bytes": b"no", "path": None}],
            "thumbnail": 2 * [{"bytes": b"no", "path": None}],  # not requested
            "text": ["a", "b"],
        },
        features=datasets.Features(
            {
                "picture": datasets.Image(decode=False),
                "thumbnail": datasets.Image(decode=False),
                "text": datasets.Value("string"),
            }
        ),
    )
    rows = rows.cast_column("picture", datasets.Image()).cast_column("thumbnail", datasets.Image())
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    loaded = hub_rows("parquet", "text", image_column="picture", files=[str(tmp_path / "rows.parquet")])
    pairs = ImageTextPairs(loaded, reader)
    assert pairs[0]["caption"] == "a" and pairs[0]["issues"] == []
    assert pairs[1]["caption"] == "a" and SkipReason.IMAGE_BROKEN in pairs[1]["issues"]


def test_webdataset_streams_are_endless(tmp_path, reader):
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for i in range(3):
                members = {f"{shard}{i}.png": encoded(solid_image()), f"{shard}{i}.txt": b"caption %d" % i}
                for name, content in members.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    files = sorted(str(path) for path in Path(tmp_path).glob("*.tar"))
    rows = hub_rows("webdataset", "txt", True, "png", files)
    stream = iter(ImageTextStream(rows, reader))
    assert [next(stream)["caption"] for _ in range(14)].count("caption 1") >= 4


def test_processes_draw_differently_from_streams(reader):
    columns = {"image": [encoded(solid_image())] * 3, "caption": ["a"] * 3}
    rows = datasets.Dataset.from_dict(columns).to_iterable_dataset()
    first, again, other = (next(iter(ImageTextStream(rows, reader, 1, rank))) for rank in (0, 0, 1))
    assert first["seed"] == again["seed"] != other["seed"]


def test_a_stream_stops_when_all_rows_are_invalid(reader):
    rows = datasets.Dataset.from_dict({"image": ["absent.png"] * 3, "caption": ["a"] * 3}).to_iterable_dataset()
    with pytest.raises(ValueError, match="1000 pairs in a row"):
        next(iter(ImageTextStream(rows, reader)))
