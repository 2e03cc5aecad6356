"""Models that start from BERT and from the RoBERTa family compute what transformers' own classes compute."""

import json
import logging
import re

import pytest
import torch
from text_models import KINDS, LANGUAGES, SMALL, make_tokenizer, save_text_model
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    GPT2Config,
    GPT2Model,
)

from albef_hf import AlbefConfig, AlbefForPreTraining, AlbefForQuestionAnswering, AlbefForRetrieval, AlbefTextModel
from albef_hf.compatibility_albef import without_load_report

VISION = {**SMALL, "num_hidden_layers": 1, "image_size": 32}


def start_from(folder, **text_config) -> AlbefForPreTraining:
    return AlbefForPreTraining.from_vision_text_pretrained(
        None, str(folder), vision_config=VISION, text_config=text_config
    ).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_text_states_are_those_of_transformers_in_several_scripts(tmp_path, warnings_of_albef, kind):
    theirs = save_text_model(tmp_path, kind, layers=5)
    model = start_from(tmp_path, num_hidden_layers=3, num_multimodal_layers=2)
    model.set_attn_implementation("eager")
    batch = AutoTokenizer.from_pretrained(tmp_path)(list(LANGUAGES.values()), padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    assert mask.sum(1).unique().numel() > 1  # some are padded
    with torch.no_grad():
        expected = theirs.base_model(ids, mask, output_hidden_states=True).hidden_states
        states = model.albef.text_model(ids, mask).last_hidden_state
        logits = theirs(ids, mask).logits
        assert torch.isfinite(states).all()
        torch.testing.assert_close(states[mask == 1], expected[3][mask == 1], atol=1e-6, rtol=0)
        torch.testing.assert_close(model.mlm_head(expected[-1]), logits, atol=1e-5, rtol=0)
    for index, layer in enumerate(model.albef.multimodal_model.layers):
        source = theirs.base_model.encoder.layer[3 + index]
        assert torch.equal(layer.mlp.fc1.weight, source.intermediate.dense.weight)
        assert torch.equal(layer.mlp_norm.bias, source.output.LayerNorm.bias)
    fresh = warnings_of_albef[0]
    assert "cross_attn" in fresh
    assert not any(part in fresh for part in ("text_model", "multimodal_model.layers.*.self_attn", "mlm_head"))
    assert not any("pretrained text model" in line for line in warnings_of_albef)
    text = model.config.text
    assert (text.position_offset, text.max_tokens) == ((0, 512) if kind == "bert" else (2, 512))
    with pytest.raises(ValueError, match="The text has 513 tokens, the model takes at most 512"):
        model.albef.text_model(torch.full((1, 513), 9))


@pytest.mark.parametrize("kind", ["roberta", "camembert"])
def test_special_tokens_and_positions_are_saved(tmp_path, kind):
    save_text_model(tmp_path / "text", kind, layers=2)
    model = start_from(tmp_path / "text", num_hidden_layers=1, num_multimodal_layers=1)
    model.save_pretrained(tmp_path / "albef")
    tokenizer = make_tokenizer(kind)
    ids = tokenizer(LANGUAGES["German"], return_tensors="pt")["input_ids"]
    for name, saved in ((AlbefForRetrieval, tmp_path / "albef"), (AlbefTextModel, tmp_path / "albef")):
        loaded = name.from_pretrained(saved)
        text = loaded.config.get_text_config()
        special = (text.bos_token_id, text.eos_token_id, text.pad_token_id, text.position_offset)
        assert special == (tokenizer.cls_token_id, tokenizer.sep_token_id, 1, 2)
        encoder = loaded if name is AlbefTextModel else loaded.albef.text_model
        expected = model.albef.text_model(ids).last_hidden_state
        assert torch.equal(encoder(ids).last_hidden_state, expected)
    encoder.save_pretrained(tmp_path / "encoder")
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "encoder")(ids).last_hidden_state, expected)


def test_a_text_model_without_head_fills_the_encoders(tmp_path, warnings_of_albef):
    theirs = save_text_model(tmp_path, "roberta", layers=2).base_model
    theirs.save_pretrained(tmp_path)
    model = start_from(tmp_path, num_hidden_layers=1, num_multimodal_layers=1)
    weight = theirs.encoder.layer[1].output.dense.weight
    assert torch.equal(model.albef.multimodal_model.layers[0].mlp.fc2.weight, weight)
    assert "mlm_head.dense" in warnings_of_albef[0]


def test_weights_that_are_missing_or_unused_are_named_once(tmp_path, warnings_of_albef, caplog, monkeypatch):
    """In our words: a BERT without a masked-language head is neither a table nor a corrupt checkpoint."""
    AutoModelForSequenceClassification.from_config(BertConfig(**SMALL)).save_pretrained(tmp_path)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    start_from(tmp_path, num_hidden_layers=1, num_multimodal_layers=1)
    assert warnings_of_albef[0] == f"ALBEF does not use these weights of {tmp_path}: classifier."
    assert "mlm_head.dense" in warnings_of_albef[1]
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (6, "has 6 layers .* the upper 6 layers of ALBEF start from random weights"),
        (14, "has 14 layers .* the upper 2 layers are dropped"),
    ],
)
def test_another_depth_fills_what_it_can_with_a_warning(tmp_path, warnings_of_albef, layers, message):
    theirs = save_text_model(tmp_path, "xlm-roberta", layers).base_model
    model = start_from(tmp_path)
    assert len(model.albef.text_model.layers) == len(model.albef.multimodal_model.layers) == 6
    weight = theirs.encoder.layer[5].output.dense.weight
    assert torch.equal(model.albef.text_model.layers[5].mlp.fc2.weight, weight)
    assert any(re.search(message, line) for line in warnings_of_albef)
    assert ("multimodal_model.layers.*.self_attn.q_proj (6x)" in warnings_of_albef[0]) == (layers == 6)


def test_other_text_models_are_refused_with_those_that_are_supported(tmp_path):
    GPT2Model(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="gpt2 model: start the text encoder from one of bert, camembert, "):
        start_from(tmp_path)


def test_an_offset_counts_as_positions_that_no_text_has():
    text = {**SMALL, "num_hidden_layers": 1, "max_position_embeddings": 10}
    config = AlbefConfig(vision_config=VISION, text_config={**text, "position_offset": 2})
    assert config.text.max_tokens == 8
    for offset, message in ((10, "must be smaller than max_position_embeddings"), (-1, "must be at least 0")):
        with pytest.raises(ValueError, match=message):
            AlbefConfig(text_config={**text, "position_offset": offset})


def test_new_settings_are_saved_only_if_they_differ(tmp_path):
    config = AlbefConfig()
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "text_pooling" not in saved and "position_offset" not in saved["text_config"]
    config.text_pooling, config.text.position_offset = "mean", 2
    config.save_pretrained(tmp_path)
    loaded = AlbefConfig.from_pretrained(tmp_path)
    assert (loaded.text_pooling, loaded.text.position_offset) == ("mean", 2)
    config.text.save_pretrained(tmp_path / "text")
    assert json.loads((tmp_path / "text" / "config.json").read_text())["position_offset"] == 2
    AlbefConfig().text.save_pretrained(tmp_path / "text")
    assert "position_offset" not in json.loads((tmp_path / "text" / "config.json").read_text())


def test_answers_are_decoded_from_the_offset_on(tmp_path):
    """With and without a cache, one token after the other and all at once."""
    save_text_model(tmp_path, "roberta", layers=2)
    pretrained = start_from(tmp_path, num_hidden_layers=1, num_multimodal_layers=1)
    pretrained.save_pretrained(tmp_path / "albef")
    model = AlbefForQuestionAnswering.from_pretrained(tmp_path / "albef").eval()
    table = model.decoder.embeddings.position_embeddings.weight
    assert torch.equal(table, pretrained.albef.text_model.embeddings.position_embeddings.weight)
    inputs = {"input_ids": torch.tensor([[0, 30, 31]]), "pixel_values": torch.randn(1, 3, 32, 32)}
    settings = {"max_new_tokens": 5, "output_logits": True, "return_dict_in_generate": True}
    cached, whole = (model.generate(**inputs, **settings, use_cache=use_cache) for use_cache in (True, False))
    assert cached.sequences[0, 0] == 0 and torch.equal(cached.sequences, whole.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(whole.logits), atol=1e-4, rtol=0)
    with torch.no_grad():
        table[:2] = torch.nan  # no token is there
        assert model(**inputs, labels=torch.tensor([[0, 40, 2]])).loss.isfinite()


def test_an_error_shows_the_report_that_was_held_back():
    library, shown = logging.getLogger("transformers.modeling_utils"), []
    handler = logging.Handler()
    handler.emit = lambda record: shown.append(record.getMessage())
    library.addHandler(handler)
    try:
        with without_load_report():
            library.warning("LOAD REPORT of a model that loads")
        assert shown == []
        with pytest.raises(RuntimeError), without_load_report():
            library.warning("LOAD REPORT of a model that does not")
            raise RuntimeError("look at the above report")
    finally:
        library.removeHandler(handler)
    assert shown == ["LOAD REPORT of a model that does not"]
