"""The model behaves as a transformers model, and what it does once it does right."""

import json
import math

import pytest
import torch
from original import FIXTURES, TASKS, assert_close
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, BertModel, DeiTConfig, DeiTModel, ViTConfig, ViTModel

from albef_hf import AlbefConfig, AlbefForPreTraining, AlbefForRetrieval, AlbefModel, MomentumTeacher, matching_albef
from albef_hf.compatibility_albef import enable_activation_checkpointing
from albef_hf.conversion.checkpoints import MODELS
from albef_hf.encoders_albef import AlbefTokenDropout, interpolate_position_embeddings
from albef_hf.losses_albef import (
    cross_entropy,
    distilled_cross_entropy,
    matching_loss,
    multinomial,
    sample_hard_negatives,
)
from albef_hf.modeling_albef import AlbefTwoImageModel
from albef_hf.training.guards import MATCHING_PRIOR
from albef_hf.training.optimization import parameter_groups


def pairs_of(batch: dict) -> dict:
    return {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}


# What the original's text assignment gives to its optimizer though no loss reaches it: a temperature, two projections.
UNREACHED = {"pretrain_nlvr": {"no_decay_numel": 2 * 256, "decay_numel": 1 + 2 * 256 * 768}}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_default_is_the_papers_base_size_and_its_optimizer_groups_are_the_originals(name):
    with torch.device("meta"):
        model = MODELS[TASKS[name]](AlbefConfig(vision_config={} if "pretrain" in name else {"image_size": 384}))
    groups = dict(zip(("no_decay", "decay"), parameter_groups(model, 0.02), strict=True))
    expected = json.loads((FIXTURES / "misc.json").read_text())["param_groups"][name]
    for group in groups:
        weights = expected[f"{group}_numel"] - UNREACHED.get(name, {}).get(f"{group}_numel", 0)
        assert sum(weight.numel() for weight in groups[group]["params"]) == weights
    assert (groups["no_decay"]["weight_decay"], groups["decay"]["weight_decay"]) == (0.0, 0.02)
    if name == "pretrain":
        # 12 image layers have three biases where the original has one fused.
        assert len(groups["no_decay"]["params"]) == expected["n_no_decay"] + 24
        assert len(groups["decay"]["params"]) == expected["n_decay"] + 24
        assert model.config.projection_dim == 256 and model.config.initial_temperature == 0.07


def test_a_config_that_cannot_work_names_the_remedy():
    with pytest.raises(Exception, match="nearest smaller one is 96"):
        AlbefConfig(vision_config={"image_size": 100})
    with pytest.raises(Exception, match="multiple of num_attention_heads"):
        AlbefConfig(text_config={"hidden_size": 100})
    with pytest.raises(Exception, match=r"vocab_size \(60\) must be larger than pad_token_id \(60\)"):
        AlbefConfig(text_config={"vocab_size": 60, "pad_token_id": 60})


@pytest.mark.parametrize(
    "settings",
    [
        {"projection_dim": 0},
        {"initial_temperature": 0.0},
        {"initial_temperature": float("nan")},
        {"vision_config": {"patch_size": 0}},
        {"vision_config": {"num_hidden_layers": -1}},
        {"vision_config": {"attention_probs_dropout_prob": 1.5}},
        {"text_config": {"hidden_dropout_prob": -0.1}},
        {"text_config": {"num_attention_heads": 0}},
        {"text_config": {"num_multimodal_layers": 0}},
        {"text_config": {"vocab_size": 0}},
    ],
)
def test_sizes_and_shares_that_no_model_has_are_refused(settings):
    (name, value), *_ = settings.items()
    (name, value), *_ = value.items() if isinstance(value, dict) else [(name, value)]
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be at"):
        AlbefConfig(**settings)


def test_save_and_load_give_the_same_numbers(model, batch, tmp_path):
    with torch.no_grad():
        model.contrastive_head.temperature.fill_(0.03)
    model.save_pretrained(tmp_path)
    loaded, report = AlbefForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    expected, actual = model(**pairs_of(batch)), loaded(**pairs_of(batch))
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name
    assert loaded.mlm_head.out_proj.weight is loaded.albef.text_model.embeddings.word_embeddings.weight
    assert loaded.contrastive_head.temperature.item() == pytest.approx(0.03)
    base = AlbefModel.from_pretrained(tmp_path).eval()
    assert torch.equal(base(**pairs_of(batch)).last_hidden_state, model.albef(**pairs_of(batch)).last_hidden_state)


def test_a_base_checkpoint_gets_fresh_heads_that_are_initialized(model, tmp_path):
    model.albef.save_pretrained(tmp_path)
    loaded = AlbefForPreTraining.from_pretrained(tmp_path)
    assert loaded.contrastive_head.temperature.item() == pytest.approx(0.07)
    assert 0.01 < loaded.itm_head.weight.std() < 0.04
    assert torch.isfinite(torch.cat([weight.flatten() for weight in loaded.parameters()])).all()


def test_eager_and_sdpa_agree_and_outputs_can_be_recorded(model, batch):
    sdpa = model.albef(**pairs_of(batch))
    model.set_attn_implementation("eager")
    eager = model.albef(**pairs_of(batch), output_attentions=True, output_hidden_states=True)
    assert torch.allclose(eager.last_hidden_state, sdpa.last_hidden_state, atol=1e-5)
    assert [a.shape for a in eager.vision_model_output.attentions] == 2 * [(4, 2, 5, 5)]
    assert [a.shape for a in eager.text_model_output.attentions] == 2 * [(4, 2, 9, 9)]
    assert [a.shape for a in eager.multimodal_model_output.attentions] == 2 * [(4, 2, 9, 9)]
    assert [a.shape for a in eager.multimodal_model_output.cross_attentions] == 2 * [(4, 2, 9, 5)]
    assert len(eager.text_model_output.hidden_states) == len(eager.multimodal_model_output.hidden_states) == 3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_texts_that_share_an_image_compute_what_they_compute_alone(model, batch, attention):
    model = model.double()
    model.set_attn_implementation(attention)
    fuse = model.albef.multimodal_model
    images = model.albef.vision_model(batch["pixel_values"].double()).last_hidden_state
    texts = model.albef.text_model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    order = torch.tensor([2, 0, 3, 1])
    together = fuse(
        torch.cat([texts, texts[order]]),
        torch.cat([batch["attention_mask"], batch["attention_mask"][order]]),
        fuse.project_images(images),
        output_attentions=True,
    )
    for half, index in ((slice(4), torch.arange(4)), (slice(4, 8), order)):
        alone = fuse(texts[index], batch["attention_mask"][index], fuse.project_images(images), output_attentions=True)
        assert_close(together.last_hidden_state[half], alone.last_hidden_state, 1e-12, "states")
        for shared, single in zip(together.cross_attentions or (), alone.cross_attentions or (), strict=True):
            assert_close(shared[half], single, 1e-12, "attention")


def test_loss_is_the_sum_of_the_three_written_out_plainly(model, batch, monkeypatch):
    """Without a teacher, against a computation that shares nothing and runs the MLM head everywhere."""
    model = model.double()
    batch["pixel_values"] = batch["pixel_values"].double()
    partner = torch.tensor([1, 0, 3, 2])
    monkeypatch.setattr("albef_hf.losses_albef.multinomial", lambda weights, n: partner[:, None])
    outputs = model(**batch)

    def fused(texts_of, images_of, input_ids=batch["input_ids"]):
        rows = {
            "input_ids": input_ids[texts_of],
            "attention_mask": batch["attention_mask"][texts_of],
            "pixel_values": batch["pixel_values"][images_of],
        }
        return model.albef(**rows).last_hidden_state

    own = torch.arange(4)
    predictions = model(**pairs_of(batch))
    logits = predictions.image_embeds @ predictions.text_embeds.T / 0.07
    itc = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    matching = torch.cat([fused(own, own)[:, 0], fused(own, partner)[:, 0], fused(partner, own)[:, 0]])
    itm = F.cross_entropy(model.itm_head(matching), torch.tensor([1] * 4 + [0] * 8))
    vocabulary = model.mlm_head(fused(own, own, batch["mlm_input_ids"]))
    mlm = F.cross_entropy(vocabulary.flatten(0, 1), batch["labels"].flatten())
    for name, value in (("loss_itc", itc), ("loss_itm", itm), ("loss_mlm", mlm), ("loss", itc + itm + mlm)):
        assert_close(outputs[name], value, 1e-6, name)  # the temperature, 0.07, was stored in float32


def test_given_positions_change_nothing_and_rows_without_a_label_have_no_weight(model, batch):
    positions = (batch["labels"].flatten() != -100).nonzero()[:, 0]
    padded = torch.cat([positions, positions.new_zeros(3)])  # of the first token, whose label is -100
    teacher = MomentumTeacher(model.eval(), queue_size=8).eval()
    losses = []
    for given in ({}, {"target_positions": positions}, {"target_positions": padded}):
        torch.manual_seed(0)
        targets = teacher(**batch, **given)
        outputs = model(**batch, **given, teacher_outputs=targets, alpha=0.4)
        losses.append([outputs.loss.item(), outputs.loss_mlm.item()])
        rows = len(given.get("target_positions", positions))
        assert len(targets.logits) == len(outputs.logits) == rows
    assert losses[0] == losses[1] and losses[2] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize("count", [1, 3])
def test_draws_are_those_of_torch(count):
    weights = torch.rand(5, 9, generator=torch.Generator().manual_seed(0))
    weights[0, :6] = 0
    torch.manual_seed(1)
    expected = torch.multinomial(weights, count)
    torch.manual_seed(1)
    assert torch.equal(multinomial(weights, count), expected)


def test_every_parameter_gets_a_gradient_with_and_without_a_teacher(model, batch):
    model.train()
    teacher = MomentumTeacher(model, queue_size=8)
    for extra in ({}, {"teacher_outputs": teacher(**batch), "alpha": 0.4}):
        model.zero_grad()
        model(**batch, **extra).loss.backward()
        unused = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
        assert not [name for name in unused if not name.endswith("k_proj.bias")]


def test_gradient_checkpointing_changes_no_gradient(model, batch, monkeypatch):
    monkeypatch.setattr("albef_hf.losses_albef.multinomial", lambda weights, n: torch.tensor([[1], [0], [3], [2]]))
    gradients = []
    for checkpointing in (False, True):
        model.train()
        if checkpointing:
            enable_activation_checkpointing(model)
        model.zero_grad()
        torch.manual_seed(0)
        model(**batch).loss.backward()
        gradients.append([weight.grad.clone() for weight in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.allclose(plain, recomputed, atol=1e-6)


def test_contrast_stays_float32_under_bfloat16(model, batch):
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**batch)
        logits = model.contrastive_head(outputs.image_embeds, outputs.text_embeds)
    assert logits.dtype == outputs.image_embeds.dtype == outputs.loss_itc.dtype == torch.float32
    exact = outputs.image_embeds.double() @ outputs.text_embeds.double().T / 0.07
    assert (logits - exact).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_saves_and_loads_in_half_precision(model, batch, dtype, tmp_path):
    model.to(dtype).save_pretrained(tmp_path)
    loaded = AlbefForPreTraining.from_pretrained(tmp_path)
    assert loaded.dtype == dtype
    assert torch.isfinite(loaded(**pairs_of(batch)).itm_logits).all()


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_cross_entropy_of_log_probabilities_is_that_of_torch(reduction):
    logits = torch.randn(7, 50)
    for targets in (torch.randint(50, (7,)), torch.rand(7, 50).softmax(-1)):
        expected = F.cross_entropy(logits, targets, reduction=reduction)
        assert torch.equal(cross_entropy(logits.log_softmax(-1), targets, reduction), expected)


def test_distilled_cross_entropy_by_hand():
    logits = torch.tensor([[math.log(3.0), 0.0]])  # probabilities 3/4, 1/4
    teacher = torch.tensor([[0.0, 0.0]])  # probabilities 1/2, 1/2
    hard, soft = -math.log(0.75), -(math.log(0.75) + math.log(0.25)) / 2
    target = torch.tensor([0])
    assert distilled_cross_entropy(logits, target, None, 0.4).item() == pytest.approx(hard)
    assert distilled_cross_entropy(logits, target, teacher, 0.0).item() == pytest.approx(hard)
    assert distilled_cross_entropy(logits, target, teacher, 0.4).item() == pytest.approx(0.6 * hard + 0.4 * soft)
    assert distilled_cross_entropy(logits, torch.tensor([[0.5, 0.5]]), None, 0).item() == pytest.approx(soft)
    nothing = distilled_cross_entropy(logits[:0], target[:0], teacher[:0], 0.4)
    assert nothing.shape == (0,)


def test_hard_negatives_follow_the_similarity_and_are_never_the_own_pair():
    torch.manual_seed(0)
    logits = torch.tensor([[9.0, 2.0, 0.0], [0.0, 9.0, 2.0], [2.0, 0.0, 9.0]])
    candidates = ~torch.eye(3, dtype=torch.bool)
    draws = torch.stack([sample_hard_negatives(logits, logits.T, candidates)[1] for _ in range(2000)])
    assert not (draws == torch.arange(3)).any()
    share = (draws == torch.tensor([1, 2, 0])).float().mean()
    assert share == pytest.approx(math.exp(2) / (math.exp(2) + 1), abs=0.02)


@pytest.mark.parametrize("hardness", [0.0, 0.5])
def test_less_hard_negatives_follow_the_similarity_less(hardness):
    torch.manual_seed(0)
    logits = torch.tensor([[9.0, 2.0, 0.0]]).expand(4000, 3)
    candidates = torch.tensor([[False, True, True]]).expand(4000, 3)
    images, texts = sample_hard_negatives(logits, logits, candidates, hardness)
    for drawn in (images, texts):
        share = (drawn == 1).float().mean()
        assert share == pytest.approx(math.exp(2 * hardness) / (math.exp(2 * hardness) + 1), abs=0.03)


def test_several_negatives_of_a_row_are_different_ones():
    torch.manual_seed(0)
    candidates = ~torch.eye(6, dtype=torch.bool)
    for drawn in sample_hard_negatives(torch.randn(6, 6), torch.randn(6, 6), candidates, num_negatives=5):
        rows = torch.cat([drawn.view(5, 6).T, torch.arange(6)[:, None]], 1)
        assert (rows.sort(1).values == torch.arange(6)).all()


def test_negatives_weigh_twice_the_pairs_and_what_is_none_is_ignored():
    logits = torch.randn(15, 2)  # 3 pairs, 2 negative images and 2 negative texts for each
    is_negative = torch.tensor([True] * 10 + [False] * 2)
    pairs, negatives = F.log_softmax(logits, 1)[:3, 1], F.log_softmax(logits, 1)[3:13, 0]
    expected = -(pairs.sum() + 0.5 * negatives.sum()) / (3 + 0.5 * 10)
    assert matching_loss(logits, is_negative).item() == pytest.approx(expected.item())
    one_each = torch.tensor([1] * 3 + [0] * 6)
    assert matching_loss(logits[:9], torch.ones(6, dtype=torch.bool)).equal(F.cross_entropy(logits[:9], one_each))


@pytest.mark.parametrize("kind", [AlbefForPreTraining, AlbefForRetrieval])
def test_several_negatives_are_matched_as_single_pairs_are(kind, config, batch, monkeypatch):
    drawn, draw = [], matching_albef.sample_hard_negatives
    monkeypatch.setattr(
        matching_albef, "sample_hard_negatives", lambda *given: drawn.append(draw(*given)) or drawn[-1]
    )
    torch.manual_seed(0)
    model = kind(config).eval()
    inputs = batch if kind is AlbefForPreTraining else pairs_of(batch) | {"labels": torch.tensor([5, 5, 3, 4])}
    outputs = model(**inputs, itm_negatives=2)
    images, texts = drawn[0]
    own = torch.arange(4)
    of_text = torch.cat([own, own, own, texts])
    of_image = torch.cat([own, images, own, own])
    pairs = {name: value[of_text] for name, value in pairs_of(batch).items()}
    pairs["pixel_values"] = batch["pixel_values"][of_image]
    torch.testing.assert_close(outputs.itm_logits, model(**pairs).itm_logits, rtol=0, atol=1e-5)
    ids = inputs["labels"] if kind is AlbefForRetrieval else own
    assert outputs.loss_itm.equal(matching_loss(outputs.itm_logits, ids[of_text[4:]] != ids[of_image[4:]]))
    with pytest.raises(ValueError, match="itm_negatives is 4: a batch of 4 pairs has 1 to 3 negatives"):
        model(**inputs, itm_negatives=4)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", [AlbefForPreTraining, AlbefForRetrieval])
def test_matching_scores_of_all_pairs_are_contrasted(kind, layers, config, batch):
    config.text_config.num_multimodal_layers = layers
    torch.manual_seed(0)
    model = kind(config).eval()
    inputs, targets = batch, torch.eye(4)
    if kind is AlbefForRetrieval:
        inputs = pairs_of(batch) | {"labels": torch.tensor([5, 5, 3, 4])}
        targets[:2, :2] = 0.5
    outputs = model(**inputs, itm_contrast_weight=3)
    pixels = batch["pixel_values"]
    scores = [model(**pairs_of(batch) | {"pixel_values": pixels.roll(shift, 0)}).itm_logits for shift in range(4)]
    per_image = torch.zeros(4, 4)
    for shift, logits in enumerate(scores):
        for text, (no_match, match) in enumerate(logits):
            per_image[(text - shift) % 4, text] = match - no_match
    expected = (F.cross_entropy(per_image, targets) + F.cross_entropy(per_image.T, targets)) / 2
    assert outputs.loss_itm_contrast.item() == pytest.approx(expected.item(), abs=1e-5)
    parts = [outputs.loss_itc, outputs.loss_itm, outputs.get("loss_mlm") or 0, 3 * outputs.loss_itm_contrast]
    assert outputs.loss.item() == pytest.approx(sum(parts).item())
    assert model(**inputs).loss_itm_contrast is None


def test_the_contrast_of_matching_scores_is_distilled_from_the_teachers_contrast(model, batch):
    teacher = MomentumTeacher(model, queue_size=4)(**batch)
    hard = model(**batch, itm_contrast_weight=1, teacher_outputs=teacher).loss_itm_contrast
    mixed = model(**batch, itm_contrast_weight=1, teacher_outputs=teacher, alpha=0.4).loss_itm_contrast
    soft = model(**batch, itm_contrast_weight=1, teacher_outputs=teacher, alpha=1).loss_itm_contrast
    assert mixed.item() == pytest.approx(0.6 * hard.item() + 0.4 * soft.item(), abs=1e-6)
    assert soft.item() != pytest.approx(hard.item(), abs=1e-6)


def test_what_contrast_knows_does_not_tell_hard_negatives_from_the_right_ones():
    """Unless it is sure. So matching stays at its prior, while from easier ones it can learn what contrast knows."""
    torch.manual_seed(0)

    def told(sureness: float, hardness: float) -> float:
        logits = sureness * torch.randn(4000, 64)
        right = torch.multinomial(logits.softmax(-1), 1)  # a contrast that is right about how sure it is
        candidates = torch.ones_like(logits, dtype=torch.bool).scatter(1, right, False)
        wrong = sample_hard_negatives(logits, logits, candidates, hardness)[1][:, None]
        return (logits.gather(1, right) > logits.gather(1, wrong)).float().mean().item()

    assert told(1, hardness=1) < 0.55 and told(1, hardness=0) > 0.7
    assert told(10, hardness=1) > 0.8


@pytest.mark.parametrize(("hardness", "leaves_its_prior"), [(1.0, False), (0.0, True)])
def test_matching_learns_from_easier_negatives_what_contrast_knows(config, hardness, leaves_its_prior):
    """Images of four kinds: contrast knows the kind; within one, no model can tell which image has which text."""
    torch.manual_seed(0)
    for part in (config, config.text_config, config.vision_config):
        part.initializer_range = 0.1
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = 0.0
    model = AlbefForPreTraining(config)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    looks = torch.randn(4, 3, config.vision_config.image_size, config.vision_config.image_size)
    losses = []
    for _ in range(150):
        kinds = torch.randint(4, (32,))
        ids = torch.stack([torch.full((32,), 101), 1000 + kinds], 1)
        labels = torch.where(ids == 101, -100, ids)
        pixels = looks[kinds] + 0.3 * torch.randn(32, *looks.shape[1:])
        masked = torch.where(ids == 101, ids, 103)
        outputs = model(ids, pixels, None, masked, labels, hardness_strength=hardness)
        outputs.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.clamp_temperature()
        losses.append(outputs.loss_itm.item())
    end = sum(losses[-30:]) / 30
    assert end < 0.5 if leaves_its_prior else end == pytest.approx(MATCHING_PRIOR, abs=0.01)


def test_hard_negatives_survive_underflow_at_the_smallest_temperature():
    logits = torch.eye(4) / 0.001
    for _ in range(20):
        images, texts = sample_hard_negatives(logits, logits, ~torch.eye(4, dtype=torch.bool))
        assert not (images == torch.arange(4)).any() and not (texts == torch.arange(4)).any()


def test_a_pixel_that_is_not_a_number_shows_in_the_loss_and_nowhere_else(model, batch):
    batch["pixel_values"][1, 0, 3, 3] = torch.nan
    assert model(**batch).loss.isnan()


def test_bad_input_gets_an_error_that_names_the_remedy(model, batch):
    with pytest.raises(ValueError, match="batch size of at least 2"):
        model(**{name: tensor[:1] for name, tensor in batch.items()})
    with pytest.raises(ValueError, match="PretrainingCollator"):
        model(**pairs_of(batch), labels=batch["labels"])
    with pytest.raises(ValueError, match="leave label_smoothing_factor at 0"):
        model(**{name: value for name, value in batch.items() if name != "labels"})
    with pytest.raises(ValueError, match=r"model.resize_token_embeddings\(len\(tokenizer\)\)"):
        model.get_text_features(torch.full((1, 4), 30522))
    with pytest.raises(ValueError, match="between 0 and 30521, or -100"):
        model(**batch | {"labels": batch["labels"].clamp(max=0) + 30522})
    with pytest.raises(ValueError, match="interpolate_pos_encoding=True"):
        model.get_image_features(torch.zeros(1, 3, 48, 48))
    with pytest.raises(ValueError, match="truncation=True"):
        model.get_text_features(torch.full((1, 41), 101))
    assert model.get_image_features(torch.zeros(1, 3, 48, 64), True).last_hidden_state.shape == (1, 13, 32)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_an_alpha_that_is_no_share_is_refused(alpha, model, batch):
    for targets in (None, MomentumTeacher(model, queue_size=4)(**batch)):
        with pytest.raises(ValueError, match=f"alpha is {alpha}"):
            model(**batch, teacher_outputs=targets, alpha=alpha)


@pytest.mark.parametrize("hardness", [-1.0, math.inf, math.nan])
def test_a_hardness_that_is_no_power_is_refused(hardness, model, batch):
    with pytest.raises(ValueError, match=f"hardness_strength is {hardness}"):
        model(**batch, hardness_strength=hardness)


def test_features_have_unit_length_and_are_those_of_the_forward(model, batch):
    outputs = model(**pairs_of(batch))
    images = model.get_image_features(batch["pixel_values"])
    texts = model.get_text_features(batch["input_ids"], batch["attention_mask"])
    assert torch.allclose(images.pooler_output, outputs.image_embeds, atol=1e-6)
    assert torch.allclose(texts.pooler_output, outputs.text_embeds, atol=1e-6)
    assert torch.allclose(images.pooler_output.norm(dim=-1), torch.ones(4))


def test_position_interpolation_keeps_what_is_linear_and_the_cls_row():
    rows = torch.arange(8.0).repeat_interleave(8).view(1, 64, 1)
    positions = torch.cat([torch.full((1, 1, 1), 99.0), rows], dim=1)
    larger = interpolate_position_embeddings(positions, (16, 16))
    assert larger.shape == (1, 257, 1) and larger[0, 0] == 99
    inner = larger[0, 1:].view(16, 16)[4:12, 8]
    assert torch.allclose(inner, (torch.arange(4.0, 12) + 0.5) / 2 - 0.5, atol=0.06)  # the cubic is not exact
    assert interpolate_position_embeddings(positions, (8, 8)) is positions


# ---------------------------------------------------------------------------------------------------------------------
# Pretrained starting points
# ---------------------------------------------------------------------------------------------------------------------

SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}


def test_starts_from_vit_and_bert(tmp_path, warnings_of_albef):
    vit = ViTModel(ViTConfig(**SMALL, num_hidden_layers=2, image_size=32)).eval()
    bert = BertForMaskedLM(BertConfig(**SMALL, num_hidden_layers=12, vocab_size=300)).eval()
    vit.save_pretrained(tmp_path / "vit")
    bert.save_pretrained(tmp_path / "bert")
    model = AlbefForPreTraining.from_vision_text_pretrained(str(tmp_path / "vit"), str(tmp_path / "bert")).eval()

    pixels = torch.randn(2, 3, 32, 32)
    assert torch.allclose(model.albef.vision_model(pixels).last_hidden_state, vit(pixels).last_hidden_state, atol=1e-5)
    ids = torch.randint(0, 300, (2, 7))
    states = bert.bert(ids, output_hidden_states=True).hidden_states
    assert torch.allclose(model.albef.text_model(ids).last_hidden_state, states[6], atol=1e-5)
    for index, layer in enumerate(model.albef.multimodal_model.layers):
        theirs = bert.bert.encoder.layer[6 + index]
        assert torch.equal(layer.mlp.fc1.weight, theirs.intermediate.dense.weight)
        assert torch.equal(layer.self_attn.q_proj.weight, theirs.attention.self.query.weight)
        assert torch.equal(layer.mlp_norm.weight, theirs.output.LayerNorm.weight)
    assert torch.allclose(model.mlm_head(states[-1]), bert(ids).logits, atol=1e-5)
    fresh = warnings_of_albef[0]
    assert "cross_attn" in fresh and "itm_head" in fresh and "contrastive_head" in fresh
    assert "text_model" not in fresh and "self_attn" not in fresh and "mlm_head" not in fresh


def test_a_distilled_deit_loses_its_second_token_and_positions_are_interpolated(tmp_path):
    deit = DeiTModel(DeiTConfig(**SMALL, num_hidden_layers=1, image_size=32))
    deit.save_pretrained(tmp_path)
    model = AlbefForPreTraining.from_vision_text_pretrained(
        str(tmp_path), None, vision_config={"image_size": 64}, text_config={"vocab_size": 50}
    )
    ours, theirs = model.albef.vision_model.embeddings.position_embeddings, deit.embeddings.position_embeddings
    assert ours.shape == (1, 17, 32)
    assert torch.equal(ours[:, 0], theirs[:, 0])
    expected = F.interpolate(theirs[:, 2:].view(1, 2, 2, 32).permute(0, 3, 1, 2), size=(4, 4), mode="bicubic")
    assert torch.allclose(ours[:, 1:], expected.flatten(2).transpose(1, 2))


def test_a_shorter_bert_fills_what_it_can_and_says_what_stays_fresh(tmp_path, warnings_of_albef):
    bert = BertModel(BertConfig(**SMALL, num_hidden_layers=4, vocab_size=50))
    bert.save_pretrained(tmp_path)
    text_config = {"num_hidden_layers": 3, "num_multimodal_layers": 2}
    model = AlbefForPreTraining.from_vision_text_pretrained(
        None, str(tmp_path), vision_config={**SMALL, "num_hidden_layers": 1, "image_size": 32}, text_config=text_config
    )
    layers = model.albef.multimodal_model.layers
    assert torch.equal(layers[0].mlp.fc2.weight, bert.encoder.layer[3].output.dense.weight)
    fresh = warnings_of_albef[0]
    assert "multimodal_model.layers.*.self_attn.q_proj (1x)" in fresh
    assert "multimodal_model.layers.*.cross_attn.q_proj (2x)" in fresh
    assert "mlm_head.dense" in fresh and "albef.vision_model.norm" in fresh
    assert "text_model" not in fresh


def test_models_that_are_no_starting_point_are_refused(tmp_path):
    bert = BertModel(BertConfig(**SMALL, num_hidden_layers=1, vocab_size=50))
    bert.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="BertModel cannot be the image encoder: it takes input_ids"):
        AlbefForPreTraining.from_vision_text_pretrained(str(tmp_path), None)
    with pytest.raises(ValueError, match="do not change sizes of the pretrained model"):
        AlbefForPreTraining.from_vision_text_pretrained(None, str(tmp_path), text_config={"intermediate_size": 128})


def test_states_that_are_dropped_do_not_reach_the_multimodal_encoder(config, batch):
    config.text_config.hidden_dropout_prob = config.text_config.attention_probs_dropout_prob = 0.0
    config.text_config.input_dropout_prob = 1.0
    torch.manual_seed(0)
    model, other = AlbefModel(config), torch.randn(4, 3, 32, 32)
    two_images = AlbefTwoImageModel(config)
    ids, mask, pixels = (batch[name] for name in ("input_ids", "attention_mask", "pixel_values"))

    def fused(images: torch.Tensor, texts: torch.Tensor) -> list[torch.Tensor]:
        states, encoder = model.text_model(texts, mask).last_hidden_state, model.multimodal_model
        key_values = encoder.project_images(model.vision_model(images).last_hidden_state)
        both = two_images(texts, torch.stack([images, images], 1), mask)
        outputs = [encoder.encode_cls(states, mask, key_values), model(texts, images, mask).last_hidden_state]
        return [*outputs, encoder.encode_cls_of_all_pairs(states, mask, key_values), both.last_hidden_state]

    for one, another in zip(fused(pixels, ids), fused(other, ids.clamp(max=102)), strict=True):
        assert torch.equal(one, another)
    for part in (model, two_images):
        part.eval()
    for one, another in zip(fused(pixels, ids), fused(other, ids.clamp(max=102)), strict=True):
        assert not torch.allclose(one, another, atol=1e-4)


def test_tokens_that_are_dropped_do_not_reach_the_multimodal_encoder(config, batch):
    settings = config.text_config
    settings.hidden_dropout_prob = settings.attention_probs_dropout_prob = 0.0
    settings.image_token_dropout_prob = settings.text_token_dropout_prob = 1.0
    encoder = AlbefModel(config).multimodal_model
    mask = batch["attention_mask"]
    torch.manual_seed(0)
    texts, images = torch.randn(*mask.shape, settings.hidden_size), torch.randn(4, 17, settings.encoder_hidden_size)
    first_texts, first_images = (torch.cat([states[:, :1], -states[:, 1:]], 1) for states in (texts, images))

    def outputs(texts: torch.Tensor, images: torch.Tensor) -> list[torch.Tensor]:
        key_values = encoder.project_images(images)
        every_pair = encoder.encode_cls_of_all_pairs(texts, mask, key_values)
        return [encoder.encode_cls(texts, mask, key_values), encoder.encode_cls(texts, None, key_values), every_pair]

    def are_equal(texts_and_images: tuple[torch.Tensor, torch.Tensor]) -> list[bool]:
        pairs = zip(outputs(texts, images), outputs(*texts_and_images), strict=True)
        return [torch.allclose(one, another) for one, another in pairs]

    assert all(are_equal((first_texts, first_images)))
    assert not any(are_equal((-texts, images)) + are_equal((texts, -images)))
    encoder.eval()
    assert not any(are_equal((first_texts, images)) + are_equal((texts, first_images)))


def test_a_part_of_the_tokens_is_left_with_its_mask():
    dropout = AlbefTokenDropout(0.75)
    states = torch.arange(2 * 41).view(2, 41, 1).float()
    mask = torch.arange(41).repeat(2, 1)
    torch.manual_seed(0)
    left, left_mask = dropout(states, mask)
    assert left.shape == (2, 11, 1) and torch.equal(left[:, 0], states[:, 0])
    assert torch.equal(left[0, :, 0].long(), left_mask[0]) and torch.equal(left[1, :, 0].long() - 41, left_mask[1])
    assert len(set(left_mask[0].tolist())) == 11 and not torch.equal(*left_mask)
    again, none = dropout(states)
    assert none is None and not torch.equal(again, left)


def test_bytes_are_refused_as_pixels(config, batch):
    pixels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match="uint8: normalize them"):
        AlbefModel(config)(batch["input_ids"], pixels)
