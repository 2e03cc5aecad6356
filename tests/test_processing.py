"""Cleaning and tokenization are the original's to the letter, pixels are those of its transform."""

import json

import numpy as np
import pytest
import torch
from original import FIXTURES
from PIL import Image
from transformers import AutoTokenizer, BlipImageProcessorPil

from albef_hf import AlbefProcessor, clean_caption
from albef_hf.data import embedded_tokenizer
from albef_hf.processing_albef import without_separator

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


def test_pixels_are_resized_bicubically_to_a_square_and_normalised(processor):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    resized = np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC)) / 255
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    expected = torch.tensor(((resized - mean) / std).transpose(2, 0, 1), dtype=torch.float32)
    assert torch.allclose(processor(images=picture, return_tensors="pt")["pixel_values"][0], expected, atol=1e-5)


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
    picture = Image.new("RGB", (40, 20), "red")
    expected = processor(images=picture, text="a red thing", return_tensors="pt")
    actual = loaded(images=picture, text="a red thing", return_tensors="pt")
    assert set(actual) == {"pixel_values", "input_ids", "attention_mask"}
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor)


def test_bad_input_gets_a_clear_error(processor):
    with pytest.raises(ValueError, match="give images, text, or both"):
        processor()
    with pytest.raises(ValueError, match="list of strings"):
        processor(text=["fine", None])


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
        with pytest.raises(ValueError, match="answers must be strings|no word that can be written"):
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
