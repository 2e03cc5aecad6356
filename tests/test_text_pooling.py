"""The state of a text that is contrasted with images: that of the first token, or the mean over its tokens."""

import pytest
import torch
from torch.nn import functional as F

from albef_hf import AlbefForPreTraining, AlbefForRetrieval, MomentumTeacher
from albef_hf.retrieval_albef import encode_texts
from benchmarks.plain import PlainForPreTraining


@pytest.fixture
def mean_config(config):
    config.text_pooling = "mean"
    config.text.hidden_dropout_prob = config.text.attention_probs_dropout_prob = 0.0
    config.text.initializer_range = 0.2  # weights at which tokens matter
    torch.manual_seed(0)
    return config


def test_the_mean_is_over_tokens_and_not_over_padding(mean_config, batch):
    model = AlbefForRetrieval(mean_config).eval()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    features = model.get_text_features(ids, mask)
    states = features.last_hidden_state
    for row in range(4):
        mean = states[row, : mask[row].sum()].mean(0)
        expected = F.normalize(model.contrastive_head.text_projection(mean), dim=0)
        torch.testing.assert_close(features.pooler_output[row], expected)
    short = model.get_text_features(ids[2:, :6])
    torch.testing.assert_close(features.pooler_output[2:], short.pooler_output)
    model.contrastive_head.text_pooling = "cls"
    assert (model.get_text_features(ids, mask).pooler_output - features.pooler_output).abs().max() > 0.05


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_all_heads_and_the_teacher_contrast_the_same_features(mean_config, batch, pooling):
    mean_config.text_pooling = pooling
    model = AlbefForPreTraining(mean_config).eval()
    expected = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
    teacher = MomentumTeacher(model, queue_size=8).eval()
    targets = teacher(**batch)
    outputs = model(**batch, teacher_outputs=targets, alpha=0.4)
    pairs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    retrieval = AlbefForRetrieval(mean_config).eval()
    retrieval.load_state_dict(model.state_dict(), strict=False)
    labels = torch.arange(4)
    for features in (
        targets.text_embeds,
        outputs.text_embeds,
        model(**pairs).text_embeds,
        retrieval(**pairs).text_embeds,
        retrieval(**pairs, labels=labels).text_embeds,
        retrieval.get_teacher_outputs(**pairs, labels=labels).text_embeds,
    ):
        torch.testing.assert_close(features, expected)


def test_gradients_are_those_of_the_plain_computation(mean_config, batch):
    ours = AlbefForPreTraining(mean_config)
    plain = PlainForPreTraining(mean_config)
    plain.load_state_dict(ours.state_dict())
    gradients = []
    for model in (ours, plain):
        targets = MomentumTeacher(model, queue_size=0)(**batch)
        model(**batch, teacher_outputs=targets, alpha=0.4).loss_itc.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


def test_texts_are_encoded_in_batches_of_similar_length(mean_config, processor):
    model = AlbefForRetrieval(mean_config).eval()
    texts = ["a dog", "two red balls beside a blue box", "snow"]
    embeds = encode_texts(model, processor, texts, batch_size=1).embeds
    torch.testing.assert_close(embeds, model.get_text_features(**processor(text=texts, return_tensors="pt"))[1])


def test_the_setting_is_saved_and_checked(mean_config, tmp_path):
    AlbefForRetrieval(mean_config).save_pretrained(tmp_path)
    assert AlbefForPreTraining.from_pretrained(tmp_path).contrastive_head.text_pooling == "mean"
    with pytest.raises(ValueError, match="text_pooling is 'max'; choose from cls, mean"):
        type(mean_config)(text_pooling="max")
