"""Cleaning and tokenization are the original's to the letter, pixels are those of its transform."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from original import FIXTURES
from PIL import Image
from transformers import AutoTokenizer, BlipImageProcessorPil

from albef_hf import AlbefProcessor, clean_caption
from albef_hf.data import Augmentation, PairReader, PretrainingCollator, embedded_tokenizer, load_image
from albef_hf.metrics.vqa_accuracy.scoring import vqa_accuracy
from albef_hf.processing_albef import added_tokens, without_separator
from albef_hf.tasks import find_task
from albef_hf.tasks.base import TextLimit

PIXELS = torch.zeros(3, 4, 4)
GOLDEN = json.loads((FIXTURES / "misc.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["pre_caption"], ids=lambda case: repr(case["in"][:20]))
def test_captions_are_cleaned_as_in_the_original(case):
    assert clean_caption(case["in"], case["max_words"]) == case["out"]


@pytest.mark.parametrize("case", GOLDEN["tokenizer"], ids=lambda case: str(case["kwargs"]))
def test_tokens_are_the_originals(case, processor):
    tokens = processor.tokenizer(case["texts"], **case["kwargs"], split_special_tokens=False)
    assert tokens["input_ids"] == case["input_ids"]
    assert tokens["attention_mask"] == case["attention_mask"]
    assert set(tokens) == {"input_ids", "attention_mask"}


def test_special_tokens_have_the_originals_ids(processor):
    for name, value in GOLDEN["tokenizer_ids"].items():
        assert getattr(processor.tokenizer, name) == value


def test_pixels_are_resized_bicubically_to_a_square_and_normalized(processor):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    resized = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)) / 255
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    expected = torch.tensor(((resized - mean) / std).transpose(2, 0, 1), dtype=torch.float32)
    assert torch.allclose(processor(images=image, return_tensors="pt")["pixel_values"][0], expected, atol=1e-5)


def test_the_processor_cleans_pads_and_truncates(processor):
    tokens = processor(text=["A dog, RUNNING!", "", "word " * 100], return_tensors="pt")
    assert tokens["input_ids"].shape == (3, 30)
    assert tokens["input_ids"][0, :5].tolist() == [101, 1037, 3899, 2770, 0]
    assert tokens["attention_mask"].sum(1).tolist() == [4, 1, 30]
    assert 102 not in tokens["input_ids"]


def test_special_tokens_in_a_caption_stay_text(processor, tmp_path):
    """Also where the tokenizer is called by itself, saved and loaded, since transformers' own pipelines do that."""
    processor.save_pretrained(tmp_path)
    text = "a [SEP] and a [MASK]"
    readers = [AlbefProcessor.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)]
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings.pop("split_special_tokens")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))  # as earlier versions have saved it
    for reader in (processor, processor.tokenizer, *readers, AlbefProcessor.from_pretrained(tmp_path)):
        (ids,) = reader(text=[text])["input_ids"]
        assert ids.count(101) == 1 and 102 not in ids and 103 not in ids
    # As the original writes its VQA answers.
    assert processor.tokenizer("a [SEP]", split_special_tokens=False)["input_ids"][-1] == 102


@pytest.mark.parametrize("text", ["emoji \U0001f600 and 漢字", "nul \x00 byte", "lone \ud800 surrogate", "\n\t "])
def test_strange_characters_are_tokens_too(processor, text):
    assert processor(text=text, return_tensors="pt")["input_ids"][0, 0] == 101


def test_saved_and_loaded_it_does_the_same(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AlbefProcessor.from_pretrained(tmp_path)
    image = Image.new("RGB", (40, 20), "red")
    expected = processor(images=image, text="a red thing", return_tensors="pt")
    actual = loaded(images=image, text="a red thing", return_tensors="pt")
    assert set(actual) == {"pixel_values", "input_ids", "attention_mask"}
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor)


def test_bad_input_gets_a_clear_error(processor):
    with pytest.raises(ValueError, match="pass images, text, or both"):
        processor()
    with pytest.raises(ValueError, match="list of strings"):
        processor(text=["fine", None])
    with pytest.raises(ValueError, match="text is an empty list"):
        processor(text=[])
    for nothing in ([], [[]], (), np.zeros((0, 3, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match="images is an empty list"):
            processor(images=nothing)
    for wrong in (7, [None], {"bytes": b""}, "nowhere.png", b"no image"):
        with pytest.raises(ValueError, match="The image .* cannot be read: .* Pass a PIL image"):
            processor(images=wrong)


NOISE = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
RGB, RGBA, GRAY = (Image.fromarray(array) for array in (NOISE[..., :3], NOISE, NOISE[..., 0]))
DEEP = Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257)  # the same gray with 16 bits
FLAT = Image.fromarray(NOISE[:3, :, :3])
EXIF = Image.Exif()
EXIF[0x0112] = 6  # to be turned by a quarter


def pixels_of(processor: AlbefProcessor, images: object, **settings: object) -> torch.Tensor:
    return processor(images=images, return_tensors="pt", **settings)["pixel_values"]


@pytest.mark.parametrize(
    ("name", "image", "settings"),
    [
        ("rgb.png", RGB, {"transparency": (1, 2, 3)}),
        ("rgba.png", RGBA, {}),
        ("rgba.webp", RGBA, {"lossless": True}),
        ("la.png", RGBA.convert("LA"), {}),
        ("palette.png", RGB.convert("P"), {"transparency": bytes(range(256))}),
        ("gray.png", GRAY, {"transparency": 7}),
        ("bits.png", RGB.convert("1"), {}),
        ("deep.png", DEEP, {}),
        ("deep.tiff", DEEP, {}),
        ("deep.pgm", Image.fromarray(NOISE[..., 0].astype(np.int32) * 257), {}),
        ("cmyk.jpg", RGB.convert("CMYK"), {}),
        ("animated.gif", RGB, {"save_all": True, "append_images": [RGB.rotate(90)]}),
        ("turned.jpg", RGB, {"exif": EXIF}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_images_are_those_of_training(processor, tmp_path, name, image, settings):
    image.save(tmp_path / name, **settings)
    expected = pixels_of(processor, load_image(tmp_path / name).convert("RGB"))
    for source in (Image.open(tmp_path / name), str(tmp_path / name), tmp_path / name):
        assert torch.equal(pixels_of(processor, source), expected)
    if name.startswith("deep"):
        assert torch.equal(expected, pixels_of(processor, GRAY))


@pytest.mark.parametrize(
    ("array", "settings", "image"),
    [
        (NOISE[..., :3], {}, RGB),
        (NOISE[..., :3].transpose(2, 0, 1), {}, RGB),
        (NOISE[None, ..., :3], {}, RGB),
        (NOISE, {}, RGBA),
        (NOISE[..., 0], {}, GRAY),
        (NOISE[..., :1], {}, GRAY),
        (np.asarray(DEEP), {}, GRAY),
        (NOISE[..., 0] > 127, {}, GRAY.point(lambda level: 255 * (level > 127))),
        (NOISE[..., :3].astype(np.int64), {}, RGB),
        (NOISE[..., :3].astype(np.float32), {}, RGB),
        (NOISE[..., :3] / 255, {}, RGB),
        (NOISE[..., :3].transpose(2, 0, 1) / 255, {"do_rescale": False}, RGB),
        (NOISE[..., :3] / 255, {"images_kwargs": {"do_rescale": False}}, RGB),
        (NOISE[..., :3] * 0.999, {}, Image.fromarray((NOISE[..., :3] * 0.999).round().astype(np.uint8))),
        (NOISE[:3, :, :3], {"input_data_format": "channels_last"}, Image.fromarray(NOISE[:3, :, :3])),
        (
            NOISE[:, :3, :3].transpose(2, 0, 1),
            {"input_data_format": "channels_first"},
            Image.fromarray(NOISE[:, :3, :3]),
        ),
    ],
)
def test_arrays_are_read_as_the_images_that_they_are(processor, array, settings, image):
    expected = pixels_of(processor, image)
    for same in (array, torch.tensor(array) if array.dtype != np.uint16 else array):
        assert torch.equal(pixels_of(processor, same, **settings), expected)
    assert torch.equal(pixels_of(processor, [array, array], **settings), expected.repeat(2, 1, 1, 1))


@pytest.mark.parametrize("shape", [(3, 3, 3), (1, 1, 3)])
def test_small_squares_are_those_of_pillow(processor, shape):
    pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    assert torch.equal(pixels_of(processor, pixels), pixels_of(processor, Image.fromarray(pixels)))
    with pytest.raises(ValueError, match="may be the channels"):
        processor(images=torch.tensor(pixels))


def test_pixels_that_are_prepared_pass_as_they_are(processor):
    off = {"do_resize": False, "do_rescale": False, "do_normalize": False}
    pixels = pixels_of(processor, RGB)
    for given in (pixels, pixels[0], pixels.numpy(), [pixels[0]]):
        for settings in (off, {"images_kwargs": off}):
            assert torch.equal(pixels_of(processor, given, **settings), pixels)
    unit = torch.rand(2, 3, 8, 8)
    assert torch.equal(pixels_of(processor, unit, **off), unit)
    with pytest.raises(ValueError, match="not a range of pixels: .* set do_resize=False"):
        processor(images=pixels, do_rescale=False, do_normalize=False)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros(7, np.uint8), "is not an image: pass"),
        (np.zeros((5, 0, 3), np.uint8), "is not an image: pass"),
        (np.zeros((2, 3, 4, 5, 6), np.uint8), "is not an image: pass"),
        (np.zeros((20, 30, 2), np.uint8), "has no axis of 1, 3 or 4 channels"),
        (np.zeros((3, 30, 3), np.uint8), "the first or the last axis may be the channels: pass input_data_format"),
        (NOISE[..., 0].astype(np.uint16), "may be 8-bit or 16-bit"),
        (NOISE[..., :3].astype(np.int16) - 9, "which is not a range of pixels"),
        (NOISE[..., :3] / 100, "which is not a range of pixels"),
        (NOISE[..., :3] / 255 - 0.5, "which is not a range of pixels"),
        (np.full((20, 30, 3), np.nan), "which is not a range of pixels"),
        (np.full((20, 30, 3), "a"), "An array of <U1 is not an image"),
    ],
)
def test_arrays_whose_range_or_layout_is_not_known_are_refused(processor, array, reason):
    with pytest.raises(ValueError, match=reason):
        processor(images=array)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_an_image_without_pixels_is_refused(processor, mode):
    with pytest.raises(ValueError, match="cannot be read: it is 0 by 5 pixels"):
        processor(images=Image.new(mode, (0, 5)))


@pytest.mark.parametrize("image", [Image.new("F", (8, 8)), Image.new("I", (8, 8), 70000), Image.new("I", (8, 8), 200)])
def test_pixels_whose_range_is_not_known_are_refused(processor, image):
    with pytest.raises(ValueError, match="cannot be read: its pixels "):
        processor(images=image)


def test_the_tokenizer_that_was_given_keeps_its_separator():
    tokenizer = embedded_tokenizer()
    AlbefProcessor(BlipImageProcessorPil(), tokenizer)
    assert tokenizer("a dog")["input_ids"] == [101, 1037, 3899, 102]


def test_a_tokenizer_without_what_a_bert_has_is_refused():
    tokenizer = embedded_tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="no mask token"):
        AlbefProcessor(BlipImageProcessorPil(), tokenizer)


def test_answers_are_tokenized_as_in_the_original(processor):
    """The original writes `[SEP]` behind each answer before it tokenizes; its third case is of such answers."""
    (case,) = [case for case in GOLDEN["tokenizer"] if case["texts"][0].endswith("[SEP]")]
    answers = processor.encode_answers([text.removesuffix("[SEP]") for text in case["texts"]])
    assert answers["input_ids"].tolist() == case["input_ids"]
    assert answers["attention_mask"].tolist() == case["attention_mask"]
    assert processor.decode_answers(answers["input_ids"])[:2] == [
        text.removesuffix("[SEP]") for text in case["texts"][:2]
    ]


def test_what_somebody_writes_in_an_answer_stays_text(processor):
    (row,) = processor.encode_answers("[SEP] no")["input_ids"].tolist()
    assert row[0] == 101 and row[-1] == 102 and 102 not in row[:-1]
    for wrong in ([""], ["yes", 3], [], ["\u200b"]):
        with pytest.raises(ValueError, match="answers must be strings|no word that is in"):
            processor.encode_answers(wrong)


def test_added_special_tokens_stay_whole_and_those_of_bert_stay_text(processor, tmp_path):
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["[obj]", "<Loc-3>"]})
    processor.save_pretrained(tmp_path)
    for one in (processor, AlbefProcessor.from_pretrained(tmp_path)):
        ids = one(text=["A <Loc-3>, [obj] [SEP]!", "a dog"])["input_ids"]
        words = [
            one.tokenizer.convert_ids_to_tokens(row) for row in (*ids, one.encode_answers("[obj] [SEP]")["labels"][0])
        ]
        assert words[0] == ["[CLS]", "a", "<Loc-3>", "[obj]", "[", "sep", "]"]
        assert words[1][:3] == ["[CLS]", "a", "dog"]
        assert words[2] == ["[CLS]", "[obj]", "[", "sep", "]", "[SEP]"]


def test_training_and_evaluation_tokenize_as_the_processor_does(processor):
    """Also special tokens, and those in upper case or of punctuation, which cleaning would change."""
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<Loc#3>"]})
    processor.tokenizer.add_tokens(["\u2603"])
    text, kept = "A <Loc#3>, \u2603!", added_tokens(processor.tokenizer)
    right = processor.tokenizer.convert_tokens_to_ids(["[CLS]", "a", "<Loc#3>", "\u2603"])
    assert processor(text=text)["input_ids"] == processor.encode_whole(text) == right

    augmentation = Augmentation(4, (0.5,) * 3, (0.5,) * 3)
    row = {"image": Image.new("RGB", (8, 8)), "caption": text}
    sample = PairReader(augmentation, kept_tokens=kept)(row, np.random.default_rng(0))
    batch = PretrainingCollator(processor.tokenizer)([sample])
    assert batch["input_ids"].tolist() == [right] and batch["issues"].sum() == 0

    task = find_task("vqa")(find_task("vqa").arguments_class(model="m"), processor)
    cleaned = task.clean(text, [], task.training_limit)
    assert task.tokenize([cleaned], task.training_limit)["input_ids"].tolist() == [right]
    assert task.answers({"answer": ["\u2603", "<Loc#3>"]}) == ["\u2603", "<Loc#3>"]


def test_half_a_character_in_an_answer_is_a_question_mark(processor):
    """JSON allows lone surrogates, and nothing else does."""
    ids = [processor.encode_answers(answer)["input_ids"].tolist() for answer in ("\ud800 red", "? red")]
    assert ids[0] == ids[1]


def test_padding_of_answers_is_no_label(processor):
    answers = processor.encode_answers(["yes", "two dogs"])
    assert torch.equal(answers["labels"] == -100, answers["attention_mask"] == 0)
    assert torch.equal(
        answers["labels"][answers["labels"] != -100], answers["input_ids"][answers["attention_mask"] == 1]
    )


def test_what_calls_cut_and_pad_is_not_saved(processor, tmp_path):
    """Neither by the processor nor by a tokenizer that had been called before, and whoever called it."""
    text = " ".join(["word"] * 45)
    used = embedded_tokenizer()
    used([text], truncation=True, max_length=9, padding="max_length")
    assert len(AlbefProcessor(BlipImageProcessorPil(), used)(text=[text])["input_ids"][0]) == 30
    PretrainingCollator(processor.tokenizer, 16)([{"caption": text, "seed": 0, "issues": [], "pixel_values": PIXELS}])
    task = find_task("retrieval")(find_task("retrieval").arguments_class(model="m"), processor)
    task.tokenize([text], TextLimit(30, 12))
    for settings in ({}, {"max_length": 7}, {"padding": "max_length", "max_length": 40}):
        processor(text=[text], **settings)
        processor.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "tokenizer.json").read_text())
        assert saved["truncation"] is None and saved["padding"] is None
        loaded = AlbefProcessor.from_pretrained(tmp_path)
        assert [len(loaded(text=[words])["input_ids"][0]) for words in (text, "a")] == [30, 2]


def test_a_processor_may_keep_longer_texts(processor, tmp_path):
    text = " ".join(["word"] * 45)
    assert len(processor(text=[text])["input_ids"][0]) == 30
    tokenizer = without_separator(processor.tokenizer, max_length=512)
    longer = AlbefProcessor(processor.image_processor, tokenizer, max_words=50)
    longer.save_pretrained(tmp_path)
    for tokens in (longer(text=[text]), AlbefProcessor.from_pretrained(tmp_path)(text=[text])):
        assert len(tokens["input_ids"][0]) == 46
    assert len(longer(text=[text], max_length=7)["input_ids"][0]) == 7
    assert len(longer(text=[text], text_kwargs={"max_length": 7})["input_ids"][0]) == 7


def test_threads_share_a_processor(processor, tmp_path):
    """Questions are cut and padded, answers and tokens that are counted are not; nothing of this is saved."""
    long, interval = "word " * 50, sys.getswitchinterval()

    def lengths(number: int) -> list[int]:
        if number % 4 == 2:
            return [len(processor.encode_whole(long))]
        if number == 8:
            processor.save_pretrained(tmp_path)
        ids = processor(text=[long, "a"])["input_ids"] if number % 2 else processor.encode_answers([long])["input_ids"]
        return [len(one) for one in ids]

    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = [*pool.map(lengths, range(400))]
    finally:
        sys.setswitchinterval(interval)
    assert found == [[52], [30, 30], [51], [30, 30]] * 100
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert saved["truncation"] is None and saved["padding"] is None
    processor.tokenizer.save_pretrained(tmp_path / "alone")
    assert json.loads((tmp_path / "alone" / "tokenizer.json").read_text())["truncation"] is None


WRITTEN = """t-shirt|10:30|10:30 p.m.|2.5|.5|$1,000.50|50%|5$|£5|1,000 people|october 12, 2010|u.s.|washington d.c.
ph.d.|st. louis|no. 5|amazon.com|m&m's|at&t|black & white|don't|wouldn't've|o'clock|levi's|kids' room|'twas|the '90s|8'
5'10|1 1/2|n/a|7-eleven|jack-o'-lantern|-5|#1|c#|2+2|why?|well, yes|sign says "stop" twice|(no)|don’t|日本|한국
i do not know"""


def test_answers_come_back_as_people_write_them(processor):
    answers = WRITTEN.replace("\n", "|").split("|")
    written = processor.decode_answers(processor.encode_answers(answers)["input_ids"])
    assert written == answers
    assert processor.decode_answers(processor.encode_answers("t-shirt")["input_ids"][0]) == ["t-shirt"]
    labels = processor.encode_answers(["t-shirt", "no"])["labels"]
    assert labels.min() == -100 and processor.decode_answers(labels) == ["t-shirt", "no"]
    with pytest.raises(ValueError, match="token id 30522, but the tokenizer has 30522 tokens"):
        processor.decode_answers([[101, 30522, 102]])
    people = [[answer] * 9 + ["something else"] for answer in answers]
    assert vqa_accuracy(written, people)["accuracy"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("answer", "written"), [("Café", "cafe"), ("5 ☕", "5 [UNK]"), ("[UNK] [SEP]", "[unk] [sep]")]
)
def test_what_the_vocabulary_lacks_is_told(processor, answer, written):
    assert processor.decode_answers(processor.encode_answers([answer, "a"])["input_ids"]) == [written, "a"]


def test_an_answer_of_unknown_words_alone_is_refused(processor):
    with pytest.raises(ValueError, match="'☕ ☂' has no word that is in the vocabulary: remove it"):
        processor.encode_answers(["yes", "☕ ☂"])
