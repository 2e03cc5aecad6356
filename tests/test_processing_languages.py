"""Texts of several scripts with the tokenizers of cased BERT, RoBERTa, XLM-R and CamemBERT."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from text_models import KINDS, LANGUAGES, SPECIAL, make_tokenizer
from transformers import BertJapaneseTokenizer, BertTokenizer, BlipImageProcessorPil

from albef_hf import AlbefProcessor, clean_caption
from albef_hf.data import Augmentation, PairReader, PretrainingCollator, embedded_tokenizer, mask_tokens
from albef_hf.heatmaps_albef import word_heatmaps
from albef_hf.processing_albef import added_tokens, is_lowercasing
from albef_hf.tasks import find_task


def make_processor(kind: str) -> AlbefProcessor:
    return AlbefProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), make_tokenizer(kind))


@pytest.fixture(params=KINDS)
def cased(request) -> AlbefProcessor:
    return make_processor(request.param)


@pytest.mark.parametrize("text", LANGUAGES.values(), ids=LANGUAGES)
def test_cased_text_keeps_all_but_its_white_space(text):
    assert clean_caption(f" {text}\n", keep_case=True) == text
    assert clean_caption(text.replace(" ", "\u3000\t"), keep_case=True) == text
    assert clean_caption("\ud800 x", keep_case=True) == "? x"


def test_words_are_counted_between_spaces():
    """A text without spaces is cut by the limit of tokens alone."""
    assert clean_caption(LANGUAGES["German"], 2, keep_case=True) == "Zwei Hunde"
    assert clean_caption(LANGUAGES["Korean"], 2, keep_case=True) == "개 두"
    assert clean_caption(LANGUAGES["Arabic"], 2, keep_case=True) == "كلبان يلعبان"
    for language in ("Chinese", "Japanese"):
        assert clean_caption(LANGUAGES[language] * 9, 2, keep_case=True) == LANGUAGES[language] * 9
        assert clean_caption(LANGUAGES[language], 2) == clean_caption(LANGUAGES[language], 10**9)


def test_the_tokenizer_decides_how_texts_are_cleaned(processor, cased):
    assert is_lowercasing(embedded_tokenizer()) and not is_lowercasing(cased.tokenizer)
    assert not processor.keep_case and cased.keep_case
    vocabulary = embedded_tokenizer().get_vocab()
    assert not is_lowercasing(BertTokenizer(vocab=vocabulary, do_lower_case=False))
    text = "Zwei Hunde, im SCHNEE!"
    assert processor.clean(text, 30) == "zwei hunde im schnee" and cased.clean(text, 30) == text
    assert processor.clean(text, 2) == "zwei hunde" and cased.clean(text, 2) == "Zwei Hunde,"


def test_saved_and_loaded_it_does_the_same(cased, tmp_path):
    cased.save_pretrained(tmp_path)
    loaded = AlbefProcessor.from_pretrained(tmp_path)
    texts = [*LANGUAGES.values(), "", "<s> [SEP]"]
    for name, tensor in cased(text=texts, return_tensors="pt").items():
        assert torch.equal(loaded(text=texts, return_tensors="pt")[name], tensor)
    assert json.loads((tmp_path / "processor_config.json").read_text())["keep_case"] and loaded.keep_case
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    del settings["keep_case"]  # earlier versions cleaned all captions as the original does
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    earlier = AlbefProcessor.from_pretrained(tmp_path)
    assert earlier.clean("Ein Ball!", 30) == "ein ball"
    earlier.save_pretrained(tmp_path / "again")
    assert "keep_case" not in json.loads((tmp_path / "again" / "processor_config.json").read_text())


def test_a_text_begins_with_the_first_token_and_has_no_separator(cased):
    tokenizer = cased.tokenizer
    tokens = cased(text=["", *LANGUAGES.values()], return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    assert (ids[:, 0] == tokenizer.cls_token_id).all() and ids.shape[1] <= 30
    assert mask.sum(1)[0] == 1 and (ids[mask == 0] == tokenizer.pad_token_id).all()
    assert tokenizer.sep_token_id not in ids and tokenizer.mask_token_id not in ids
    for text in LANGUAGES.values():
        assert cased.decode_answers(cased.encode_whole(text)) == [text]


@pytest.mark.parametrize("added", [[], ["<Loc-3>"]], ids=["none", "added"])
def test_special_tokens_in_a_text_stay_text(cased, added):
    tokenizer = cased.tokenizer
    tokenizer.add_tokens(added, special_tokens=True)
    special = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id}
    text = " ".join(["a", *added, *SPECIAL, "[CLS] [SEP] [PAD] [MASK] b"])
    task = find_task("vqa")(find_task("vqa").arguments_class(model="m"), cased)
    for ids in (
        cased(text=text)["input_ids"],
        cased.encode_whole(text),
        task.tokenize([task.clean(text, [], task.training_limit)], task.training_limit)["input_ids"][0].tolist(),
        cased.encode_answers(text)["input_ids"][0].tolist()[:-1],
    ):
        assert ids[0] == tokenizer.cls_token_id and not special & set(ids[1:])
        assert all(tokenizer.convert_tokens_to_ids(token) in ids for token in added)


def test_training_and_evaluation_tokenize_as_the_processor_does(cased):
    augmentation = Augmentation(4, (0.5,) * 3, (0.5,) * 3)
    reader = PairReader(augmentation, kept_tokens=added_tokens(cased.tokenizer), keep_case=cased.keep_case)
    task = find_task("vqa")(find_task("vqa").arguments_class(model="m"), cased)
    for text in LANGUAGES.values():
        right = cased(text=text)["input_ids"]
        sample = reader({"image": Image.new("RGB", (8, 8)), "caption": text}, np.random.default_rng(0))
        batch = PretrainingCollator(cased.tokenizer, max_length=30)([sample])
        assert batch["input_ids"].tolist() == [right]
        assert task.clean(text, [], task.training_limit) == sample["caption"] == text


def test_masking_spares_the_first_token_and_padding(cased):
    tokenizer = cased.tokenizer
    ids = cased(text=list(LANGUAGES.values()) * 20, return_tensors="pt")["input_ids"]
    masked, labels = mask_tokens(ids, tokenizer, 0.5, torch.Generator().manual_seed(0))
    spared = (ids == tokenizer.cls_token_id) | (ids == tokenizer.pad_token_id)
    assert torch.equal(masked[spared], ids[spared]) and (labels[spared] == -100).all()
    chosen = labels != -100
    assert torch.equal(labels[chosen], ids[chosen]) and 0.45 < chosen.sum() / (~spared).sum() < 0.55
    assert 0.75 < (masked[chosen] == tokenizer.mask_token_id).float().mean() < 0.85
    assert masked.max() < len(tokenizer)


def test_answers_come_back_with_case_and_marks(cased):
    answers = ["Hunde", "New York", "Köln", "東京", "北京", "한 사람", "حمراء", "isn't it?", "3"]
    encoded = cased.encode_answers(answers)
    assert (encoded["input_ids"] == cased.tokenizer.sep_token_id).sum(1).tolist() == [1] * len(answers)
    assert cased.decode_answers(encoded["labels"]) == answers
    assert torch.equal(encoded["labels"] == -100, encoded["attention_mask"] == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_without_a_known_word_is_refused(kind):
    processor = make_processor(kind)
    for answer in ("", " ", *([] if kind == "roberta" else ["☕"])):  # bytes are never unknown
        with pytest.raises(ValueError, match="has no word that is in the vocabulary"):
            processor.encode_answers(["Hunde", answer])


@pytest.mark.parametrize("kind", KINDS)
def test_heat_maps_of_words(kind):
    processor = make_processor(kind)
    ids = torch.tensor(processor(text="Zwei Hunde spielen")["input_ids"])
    maps = torch.ones(len(ids), 2, 2)
    words, of_words = word_heatmaps(processor.tokenizer, ids, maps)
    assert words == ["Zwei", "Hunde", "spielen"] and torch.equal(of_words, torch.ones(3, 2, 2))


def test_a_slow_tokenizer_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "犬"]))
    settings = {"word_tokenizer_type": "basic", "subword_tokenizer_type": "character"}
    slow = BertJapaneseTokenizer(str(tmp_path / "vocab.txt"), **settings)
    with pytest.raises(ValueError, match="BertJapaneseTokenizer is not a fast tokenizer: choose a text model with a"):
        AlbefProcessor(BlipImageProcessorPil(), slow)
