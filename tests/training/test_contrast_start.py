"""Matching that starts from contrast: its log-odds follow the cosine, before any step."""

import json

import pytest
import torch
from accelerate import Accelerator
from small_pretraining import weights_of
from task_rows import make_task, small, small_evaluation
from transformers import ConvNextConfig

from albef_hf import AlbefConfig, AlbefForPreTraining, AlbefForRetrieval, AlbefProcessor, MomentumTeacher
from albef_hf.calibration_albef import matching_log_odds
from albef_hf.data import embedded_tokenizer, make_processor
from albef_hf.matching_albef import EncodedPairs
from albef_hf.tasks.arguments import RetrievalArguments
from albef_hf.tasks.retrieval import RowsWithImageIndex
from albef_hf.training.contrast_start import SAMPLE, main_directions, read_pairs, start_matching_from_contrast

CNN = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "image_size": 64}
TEXT = {"hidden_size": 66, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
POOLED = {"text_pooling": "mean", "image_pooling": "mean"}


def make_config(layers: int = 1, **settings) -> AlbefConfig:
    text = {**TEXT, "num_multimodal_layers": layers, "max_position_embeddings": 40}
    text |= settings.pop("text_config", {})
    return AlbefConfig(
        vision_config=ConvNextConfig(**CNN), text_config=text, projection_dim=16, **{**POOLED, **settings}
    )


def make_model(config: AlbefConfig, seed: int = 0) -> AlbefForRetrieval:
    torch.manual_seed(seed)
    model = AlbefForRetrieval(config).eval()
    for projection in (model.contrastive_head.image_projection, model.contrastive_head.text_projection):
        torch.nn.init.normal_(projection.weight)
        torch.nn.init.normal_(projection.bias)
    return model


def make_pairs(count: int, seed: int) -> EncodedPairs:
    """Random states; the first one of an image is the mean of its patches, and texts are padded."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(count, 4, 32, generator=generator) + torch.randn(count, 1, 32, generator=generator)
    texts = torch.randn(count, 7, 66, generator=generator) + torch.randn(count, 1, 66, generator=generator)
    mask = (torch.arange(7) < torch.randint(3, 8, (count, 1), generator=generator)).long()
    return EncodedPairs(torch.cat([patches.mean(1, keepdim=True), patches], 1), texts, mask)


@torch.no_grad()
def scores(model: AlbefForRetrieval, pairs: EncodedPairs) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-odds and cosines of all images with all texts."""
    multimodal, head = model.albef.multimodal_model, model.contrastive_head
    cls = multimodal.encode_cls_of_all_pairs(
        pairs.texts, pairs.attention_mask, multimodal.project_images(pairs.images)
    )
    cosines = head.project_image(pairs.images) @ head.project_text(pairs.texts, pairs.attention_mask).T
    return matching_log_odds(model.itm_head(cls)), cosines


def test_log_odds_follow_the_cosine_over_the_temperature():
    """On other pairs than those that it was measured on; the paddings of texts are without effect."""
    model = make_model(make_config(initial_temperature=0.1))
    assert torch.corrcoef(torch.stack([part.flatten() for part in scores(model, make_pairs(60, 2))]))[0, 1] < 0.3
    correlation = start_matching_from_contrast(model, make_pairs(SAMPLE, 1))
    log_odds, cosines = (part.flatten() for part in scores(model, make_pairs(60, 2)))
    assert torch.corrcoef(torch.stack([log_odds, cosines]))[0, 1] > 0.9 < correlation
    slope = ((log_odds - log_odds.mean()) * (cosines - cosines.mean())).sum() / (
        cosines - cosines.mean()
    ).square().sum()
    assert 7 < slope < 13, "the temperature is 0.1"


def test_odds_are_even_between_right_and_wrong():
    model, pairs = make_model(make_config()), make_pairs(SAMPLE, 1)
    start_matching_from_contrast(model, pairs)
    log_odds, _ = scores(model, pairs)
    assert (log_odds.mean() + log_odds.diagonal().mean()).abs() < 1e-3


def test_nothing_but_the_layer_and_the_matching_head_changes():
    model = make_model(make_config())
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    start_matching_from_contrast(model, make_pairs(30, 1))
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    replaced = ("albef.multimodal_model.layers.0.", "itm_head.")
    assert all(name.startswith(replaced) for name in changed)
    matrices = {name for name, weight in before.items() if name.startswith(replaced) and weight.ndim == 2}
    assert matrices <= changed


def test_every_weight_learns():
    """Nothing starts at a point without a gradient."""
    model = make_model(make_config())
    start_matching_from_contrast(model, make_pairs(30, 1))
    model.train()
    ids = torch.randint(1000, 30000, (6, 8))
    pixels = torch.randn(6, 3, 64, 64)
    model(ids, pixels, labels=torch.arange(6), itm_contrast_weight=1).loss.backward()
    for name, weight in model.named_parameters():
        if name.startswith(("albef.multimodal_model", "itm_head")) and "k_proj.bias" not in name:
            assert weight.grad is not None and weight.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": 2}, "one layer with gelu, this one has 2 with gelu"),
        ({"text_config": {"hidden_act": "relu"}}, "this one has 1 with relu"),
        ({"text_pooling": "cls"}, "a text_pooling of mean, this one has cls"),
    ],
)
def test_another_form_of_the_multimodal_encoder_is_refused(settings, message):
    model = make_model(make_config(**settings))
    with pytest.raises(ValueError, match=message):
        start_matching_from_contrast(model, make_pairs(30, 1))


def test_a_contrast_of_another_state_than_the_mean_is_refused():
    """Attention is a mean; what it reads has to be what contrast reads."""
    model, pairs = make_model(make_config()), make_pairs(SAMPLE, 1)
    pairs.images[:, 0] = torch.randn(SAMPLE, 32)
    with pytest.raises(ValueError, match=r"does not follow contrast, their correlation is 0\..*image_pooling"):
        start_matching_from_contrast(model, pairs)


def test_directions_keep_the_products_of_what_has_few_dimensions():
    features = torch.randn(50, 6) @ torch.randn(6, 20)
    directions = main_directions(features, 6)
    torch.testing.assert_close(directions @ directions.T, torch.eye(6), atol=1e-5, rtol=0)
    kept = features @ directions.T
    torch.testing.assert_close(kept @ kept.T, features @ features.T, atol=1e-3, rtol=1e-4)


@pytest.fixture
def pretrained(tmp_path):
    """A model whose contrast pools as it has to."""
    config = make_config()
    torch.manual_seed(0)
    AlbefForPreTraining(config).save_pretrained(tmp_path / "pretrained")
    make_processor(config, embedded_tokenizer(), 30).save_pretrained(tmp_path / "pretrained")
    return tmp_path / "pretrained"


def test_a_training_starts_from_it_and_resumes_from_its_own_weights(run, pretrained, tmp_path, capsys):
    options = [*small(pretrained, tmp_path / "out"), "--start_matching_from_contrast"]
    said = "training pairs, the log-odds of a match correlate with the cosine by"
    run("finetune", "retrieval", *options)
    assert said in capsys.readouterr().out
    trained = weights_of(tmp_path / "out", "albef.multimodal_model")
    run("finetune", "retrieval", *options, "--resume_from_checkpoint")
    resumed = weights_of(tmp_path / "out", "albef.multimodal_model")
    assert trained and all(torch.equal(weight, resumed[name]) for name, weight in trained.items())
    assert said not in capsys.readouterr().out


def test_what_cannot_start_from_contrast_is_refused_before_anything_is_read(run, model, processor, tmp_path):
    for part in (model, processor):
        part.save_pretrained(tmp_path / "vit")
    options = small(tmp_path / "vit", tmp_path / "out", freeze="image_encoder", cache_image_states=tmp_path / "states")
    with pytest.raises(ValueError, match="a text_pooling of mean, this one has cls"):
        run("finetune", "retrieval", *options, "--start_matching_from_contrast")
    assert not (tmp_path / "states").exists()


def test_an_evaluation_refuses_the_option(run, pretrained, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("evaluate", "retrieval", *small_evaluation(pretrained, tmp_path), "--start_matching_from_contrast")
    assert "--start_matching_from_contrast has no effect in this command; remove it" in capsys.readouterr().err


def test_the_teacher_starts_alike(pretrained, processor, scene_images):
    model = AlbefForRetrieval.from_pretrained(pretrained)
    teacher = MomentumTeacher(model, queue_size=4)
    task = make_task(
        "retrieval",
        AlbefProcessor.from_pretrained(pretrained),
        image_root=str(scene_images),
        start_matching_from_contrast=True,
    )
    rows = RowsWithImageIndex(json.loads((scene_images / "train.json").read_text()))
    task.prepare_model(model, teacher, rows, Accelerator(cpu=True))
    kept = teacher.model.state_dict()
    assert all(torch.equal(weight, kept[name]) for name, weight in model.state_dict().items())


def test_rows_that_cannot_be_read_are_left_out(pretrained, scene_images):
    task = make_task("retrieval", AlbefProcessor.from_pretrained(pretrained), image_root=str(scene_images))
    model = AlbefForRetrieval.from_pretrained(pretrained).eval()
    good = RowsWithImageIndex(json.loads((scene_images / "train.json").read_text()))[0]
    bad = {"image": "missing.png", "caption": "a dog", "image_index": 9}
    assert len(read_pairs(model, task, [bad, good, bad, good, good, bad], seed=0).images) == 3
    with pytest.raises(ValueError, match=r"two rows that can be used \(image_missing: .*Check image_root"):
        read_pairs(model, task, [bad, good, bad], seed=0)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    task.prepare_model(model, None, [bad], Accelerator(cpu=True))  # without the option, nothing is read
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"model_config": "{}"}, "pass model"), ({"model": "m", "lora_rank": 4}, "pass one of them")],
)
def test_options_that_cannot_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=f"start_matching_from_contrast .*{message}"):
        RetrievalArguments(start_matching_from_contrast=True, **options)
