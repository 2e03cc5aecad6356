"""Any image model of transformers as the image encoder: all of them at tiny size, through what a user does."""

import json

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from albef_hf import (
    AlbefConfig,
    AlbefForPreTraining,
    AlbefForQuestionAnswering,
    AlbefForRetrieval,
    AlbefForVisualReasoning,
)
from albef_hf.compatibility_albef import enable_activation_checkpointing
from albef_hf.data import embedded_tokenizer, make_processor
from albef_hf.heatmaps_albef import contrastive_heatmaps, matching_heatmaps
from albef_hf.images_albef import read_preprocessing
from albef_hf.momentum import MomentumTeacher
from albef_hf.training.model_setup import read_model_config

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VIT = {**TINY, "image_size": 32, "patch_size": 8}
CNN = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "image_size": 64}
SIZES = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 32], "depths": [1, 1, 1, 1]}
EFFICIENT = {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1, 1], "num_heads": [1, 1, 2]}
# Name of the configuration class, its settings, number of patches, and what the first state is.
KINDS = {
    "vit": ("ViTConfig", VIT, 16, "cls"),
    "deit": ("DeiTConfig", VIT, 16, "cls"),
    "dinov2": ("Dinov2Config", VIT, 16, "cls"),
    "dinov2_with_registers": ("Dinov2WithRegistersConfig", VIT, 16, "cls"),
    "dinov3_vit": ("DINOv3ViTConfig", {**VIT, "num_register_tokens": 4}, 16, "cls"),
    "clip": ("CLIPVisionConfig", VIT, 16, "pooler"),
    "siglip": ("SiglipVisionConfig", VIT, 16, "pooler"),
    "beit": ("BeitConfig", VIT, 16, "pooler"),
    "swin": ("SwinConfig", {**SWIN, "window_size": 2}, 4, "pooler"),
    "convnext": ("ConvNextConfig", CNN, 4, "pooler"),
    "convnextv2": ("ConvNextV2Config", CNN, 4, "pooler"),
    "dinov3_convnext": ("DINOv3ConvNextConfig", CNN, 4, "cls"),
    "resnet": ("ResNetConfig", {**SIZES, "layer_type": "basic"}, 49, "pooler"),
    "efficientnet": ("EfficientNetConfig", EFFICIENT, 4, "pooler"),
}


def vision_config(kind: str) -> PreTrainedConfig:
    name, settings, _, _ = KINDS[kind]
    return getattr(transformers, name)(**settings)


def config_of(kind: str, **settings) -> AlbefConfig:
    return AlbefConfig(vision_config=vision_config(kind), text_config=TINY, projection_dim=16, **settings)


def batch_of(config: AlbefConfig, size: tuple[int, int] | None = None) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[101, 5, 6], [101, 7, 8], [101, 9, 3]])
    return {"input_ids": ids, "pixel_values": torch.randn(3, 3, *(size or config.input_size))}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_states_are_those_of_transformers_own_class(kind):
    """After class token, registers and feature maps are brought into one order."""
    _, _, patches, pooling = KINDS[kind]
    config = config_of(kind)
    own = AutoModel.from_config(vision_config(kind)).eval()
    encoder = AlbefForRetrieval(config).eval().albef.vision_model
    missing, unexpected = encoder.encoder.load_state_dict(own.state_dict(), strict=False)
    assert not missing and all(name.startswith("pooler.") for name in unexpected)
    pixels = batch_of(config)["pixel_values"]
    states, expected = encoder(pixels).last_hidden_state, own(pixels)
    assert states.shape == (3, 1 + patches, config.image_hidden_size)
    last = expected.last_hidden_state
    last = last.flatten(2).transpose(1, 2) if last.ndim == 4 else last
    assert torch.equal(states[:, 1:], last[:, -patches:])
    first = last[:, 0] if pooling == "cls" else expected.pooler_output.flatten(1)
    assert torch.equal(states[:, 0], first)
    assert torch.equal(encoder(states).last_hidden_state, states)  # computed before


def test_an_image_without_a_batch_dimension_is_not_taken_for_states(kind):
    """Also where it is as wide as the states; three states of the right number are accepted above."""
    encoder = AlbefForRetrieval(config_of(kind)).train().albef.vision_model
    statistics = [buffer.clone() for buffer in encoder.buffers()]
    with pytest.raises(ValueError, match=r"needs a batch dimension: pixel_values\[None\]"):
        encoder(torch.randn(3, 48, encoder.width))
    assert all(map(torch.equal, statistics, encoder.buffers())) and encoder.encoder.training
    assert encoder(torch.randn(2, 48, encoder.width)).last_hidden_state.shape[1] == 48  # of a larger image


def test_losses_and_gradients(kind):
    model = AlbefForRetrieval(config_of(kind)).train()
    batch = batch_of(model.config) | {"labels": torch.arange(3)}
    teacher = MomentumTeacher(model, momentum=0.5, queue_size=4)
    loss = model(**batch, teacher_outputs=teacher(**batch), alpha=0.4).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert not [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    weight = next(iter(model.albef.vision_model.encoder.parameters()))
    with torch.no_grad():
        weight += 1
    before = next(iter(teacher.model.albef.vision_model.encoder.parameters())).clone()
    teacher.update(model)
    after = next(iter(teacher.model.albef.vision_model.encoder.parameters()))
    assert torch.allclose(after - before, torch.full_like(before, 0.5), atol=1e-5)


def test_activation_checkpointing_changes_no_gradient(kind):
    model = AlbefForRetrieval(config_of(kind)).train()
    batch = batch_of(model.config) | {"labels": torch.arange(3)}
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            enable_activation_checkpointing(model)
        model.zero_grad()
        torch.manual_seed(1)
        model(**batch).loss.backward()
        gradients.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_the_same_after_saving(kind, tmp_path):
    model = AlbefForRetrieval(config_of(kind)).eval()
    model.save_pretrained(tmp_path)
    loaded, report = AlbefForRetrieval.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert loaded.config.vision_config.model_type == model.config.vision_config.model_type
    batch = batch_of(model.config)
    assert torch.equal(loaded.eval()(**batch).itm_logits, model(**batch).itm_logits)
    answers = AlbefForQuestionAnswering.from_pretrained(tmp_path).eval()
    assert len(answers.generate(**batch, max_new_tokens=2)) == 3
    pairs = batch["pixel_values"][:, None].expand(-1, 2, -1, -1, -1)
    reasoning = AlbefForVisualReasoning.from_pretrained(tmp_path)
    assert reasoning(batch["input_ids"], pairs).logits.shape == (3, 2)


def test_rectangular_images_and_their_heat_maps(kind):
    height, width = config_of(kind).input_size
    config = config_of(kind, image_size=[height + 32, width + 96])
    model = AlbefForRetrieval(config).eval()
    batch = batch_of(config)
    states = model.albef.vision_model(batch["pixel_values"]).last_hidden_state
    rows, columns = matching_heatmaps(model, **batch).shape[2:]
    assert rows * columns == states.shape[1] - 1
    assert columns > rows
    with pytest.raises(ValueError, match=f"{height}x{width} pixels, the model expects {height + 32}x{width + 96}"):
        model.albef.vision_model(batch_of(config, (height, width))["pixel_values"])


def test_contrastive_heat_maps(kind):
    model = AlbefForRetrieval(config_of(kind)).eval()
    batch = batch_of(model.config)
    if kind == "dinov3_convnext":
        with pytest.raises(ValueError, match="use matching_heatmaps, or set image_pooling to mean"):
            contrastive_heatmaps(model, **batch)
        return
    maps = contrastive_heatmaps(model, **batch)
    rows, columns = maps.shape[1:]
    assert rows * columns == KINDS[kind][2] and rows == columns
    assert (maps >= 0).all()


def test_the_attention_is_chosen_for_what_has_one(kind, tmp_path):
    model = AlbefForRetrieval(config_of(kind)).eval()
    batch = batch_of(model.config)
    model.set_attn_implementation("eager")
    eager = model(**batch).itm_logits
    model.set_attn_implementation("sdpa")
    assert model.albef.text_model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(model(**batch).itm_logits, eager)
    model.save_pretrained(tmp_path)
    AlbefForRetrieval.from_pretrained(tmp_path, attn_implementation="eager")


def test_initialization_from_a_folder(kind, tmp_path):
    own = AutoModel.from_config(vision_config(kind)).eval()
    own.save_pretrained(tmp_path)
    model = AlbefForPreTraining.from_vision_text_pretrained(str(tmp_path), text_config=TINY).eval()
    pixels = batch_of(model.config)["pixel_values"]
    states = model.albef.vision_model(pixels).last_hidden_state
    if kind != "deit":  # ALBEF does not have its distillation token
        expected = own(pixels).last_hidden_state
        expected = expected.flatten(2).transpose(1, 2) if expected.ndim == 4 else expected
        torch.testing.assert_close(states[:, 1:], expected[:, -(states.shape[1] - 1) :])


@pytest.mark.parametrize("kind", ["dinov2", "clip", "convnext"], indirect=True)
def test_an_exported_encoder_takes_any_number_of_images(kind):
    model = AlbefForRetrieval(config_of(kind)).eval()
    encoder = model.albef.vision_model
    pixels = torch.randn(5, *batch_of(model.config)["pixel_values"].shape[1:])
    shapes = {"pixel_values": {0: torch.export.Dim("images")}}
    exported = torch.export.export(encoder, (), {"pixel_values": pixels[:2]}, dynamic_shapes=shapes, strict=False)
    with torch.no_grad():
        actual, expected = exported.module()(pixel_values=pixels), encoder(pixels)
    torch.testing.assert_close(actual.last_hidden_state, expected.last_hidden_state)


@pytest.mark.parametrize("pooling", ["pooler", "mean"])
def test_the_first_state_is_what_the_configuration_says(pooling):
    model = AlbefForRetrieval(config_of("dinov2", image_pooling=pooling)).eval()
    pixels = batch_of(model.config)["pixel_values"]
    states = model.albef.vision_model(pixels).last_hidden_state
    own = model.albef.vision_model.encoder(pixels)
    expected = own.pooler_output if pooling == "pooler" else own.last_hidden_state[:, 1:].mean(1)
    assert torch.equal(states[:, 0], expected) and states.shape[1] == 17
    assert model.config.to_dict()["image_pooling"] == pooling
    with pytest.raises(ValueError, match="ResNetModel has no class token"):
        AlbefForRetrieval(config_of("resnet", image_pooling="cls"))
    with pytest.raises(ValueError, match="choose from cls, pooler, mean"):
        config_of("resnet", image_pooling="max")


def test_registers_are_kept_on_request():
    config = config_of("dinov3_vit", image_registers=True)
    model = AlbefForRetrieval(config).eval()
    batch = batch_of(config)
    states = model.albef.vision_model(batch["pixel_values"]).last_hidden_state
    own = model.albef.vision_model.encoder(batch["pixel_values"]).last_hidden_state
    assert torch.equal(states, own) and states.shape[1] == 1 + 4 + 16
    assert matching_heatmaps(model, **batch).shape == (3, 3, 4, 4)
    assert contrastive_heatmaps(model, **batch).shape == (3, 4, 4)


PREPROCESSING = {
    "dinov2": {"crop_size": {"height": 40, "width": 40}, "size": {"shortest_edge": 48}, "resample": 3},
    "clip": {"crop_size": 32, "size": 40, "resample": 2},
    "siglip": {"size": {"height": 32, "width": 32}, "resample": 2},
    "convnext": {"size": {"shortest_edge": 96}, "resample": 3},
}


@pytest.mark.parametrize("kind", PREPROCESSING, indirect=True)
def test_the_processor_has_the_image_models_own_settings(kind, tmp_path):
    AutoModel.from_config(vision_config(kind)).save_pretrained(tmp_path)
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], **PREPROCESSING[kind]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    model = AlbefForPreTraining.from_vision_text_pretrained(str(tmp_path), text_config=TINY)
    processor = make_processor(model.config, embedded_tokenizer(), vision_model=str(tmp_path))
    side = {"dinov2": 40, "convnext": 96}.get(kind, 32)
    images = processor.image_processor
    assert model.config.input_size == (side, side)
    assert images.size == {"height": side, "width": side}
    assert (images.image_mean, images.image_std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert images.resample == PREPROCESSING[kind]["resample"]
    larger = AlbefForPreTraining.from_vision_text_pretrained(str(tmp_path), text_config=TINY, image_size=64)
    assert larger.config.input_size == (64, 64)


def test_a_model_of_timm_has_its_settings_in_its_configuration(tmp_path):
    own = {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.1], "input_size": [3, 64, 48], "interpolation": "bilinear"}
    labels = {"label_names": ["a"], "num_classes": 1}  # without them, transformers asks timm
    config = {"model_type": "timm_wrapper", "architecture": "vit_tiny", **labels, "pretrained_cfg": own}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_preprocessing(str(tmp_path)) == {
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.3, 0.2, 0.1],
        "resample": 2,
        "size": [64, 48],
    }


def test_the_image_model_of_a_model_of_images_and_texts(tmp_path):
    clip = transformers.CLIPModel(transformers.CLIPConfig(vision_config=VIT, text_config=TINY)).eval()
    clip.save_pretrained(tmp_path)
    model = AlbefForPreTraining.from_vision_text_pretrained(str(tmp_path), text_config=TINY).eval()
    assert model.config.vision_config.model_type == "clip_vision_model"
    pixels = torch.randn(2, 3, 32, 32)
    expected = clip.vision_model(pixels)
    states = model.albef.vision_model(pixels).last_hidden_state
    torch.testing.assert_close(states[:, 0], expected.pooler_output)
    torch.testing.assert_close(states[:, 1:], expected.last_hidden_state[:, 1:])


class TinyConvConfig(PreTrainedConfig):
    model_type = "albef_test_conv"
    width: int = 8


class TinyConv(PreTrainedModel):
    config_class = TinyConvConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.conv = torch.nn.Conv2d(3, config.width, kernel_size=8, stride=8)
        self.post_init()

    def forward(self, pixel_values):
        return transformers.modeling_outputs.BaseModelOutput(last_hidden_state=self.conv(pixel_values))


def test_ones_own_class(tmp_path):
    with pytest.raises(ValueError, match="import the code that registers it"):
        AlbefConfig(vision_config={"model_type": "albef_test_conv"})
    AutoConfig.register("albef_test_conv", TinyConvConfig)
    with pytest.raises(ValueError, match=r"call AutoModel.register\(TinyConvConfig"):
        AlbefForRetrieval(AlbefConfig(vision_config=TinyConvConfig(hidden_size=8), text_config=TINY))
    AutoModel.register(TinyConvConfig, TinyConv)
    with pytest.raises(ValueError, match="set its hidden_size"):
        AlbefConfig(vision_config=TinyConvConfig())
    config = AlbefConfig(vision_config=TinyConvConfig(hidden_size=8), text_config=TINY, image_size=[32, 16])
    model = AlbefForRetrieval(config).eval()
    batch = batch_of(config)
    states = model.albef.vision_model(batch["pixel_values"]).last_hidden_state
    assert states.shape == (3, 9, 8)
    torch.testing.assert_close(states[:, 0], states[:, 1:].mean(1))
    model.save_pretrained(tmp_path)
    assert torch.equal(
        AlbefForRetrieval.from_pretrained(tmp_path).eval()(**batch).itm_logits, model(**batch).itm_logits
    )
    config.vision_config.hidden_size = 16
    with pytest.raises(ValueError, match="states of width 8, the configuration says 16"):
        AlbefForRetrieval(config)(**batch)


@pytest.mark.parametrize(
    ("config", "inputs"),
    [("Siglip2VisionConfig", "pixel_attention_mask, spatial_shapes"), ("BertConfig", "input_ids")],
)
def test_models_that_need_more_than_pixels_are_refused(config, inputs):
    with pytest.raises(ValueError, match=f"cannot be the image encoder: it takes {inputs}"):
        AlbefForRetrieval(AlbefConfig(vision_config=getattr(transformers, config)(**TINY), text_config=TINY))


def test_the_papers_vit_is_the_default_and_its_file_has_no_new_keys(tmp_path):
    AlbefForRetrieval(AlbefConfig(vision_config={**VIT}, text_config=TINY)).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["vision_config"]["model_type"] == "albef_vision_model"
    assert not {"image_size", "image_pooling", "image_registers"} & saved.keys()
    for setting in ({"image_pooling": "mean"}, {"image_registers": True}):
        with pytest.raises(ValueError, match="the paper's ViT has a class token and no registers"):
            AlbefConfig(vision_config={**VIT}, **setting)
    with pytest.raises(ValueError, match="the paper's ViT has a class token and no registers"):
        AlbefForRetrieval.from_pretrained(tmp_path, image_pooling="mean")
    with pytest.raises(ValueError, match="text_pooling is 'max'; choose from cls, mean"):
        AlbefForRetrieval.from_pretrained(tmp_path, text_pooling="max")
    larger = AlbefForRetrieval.from_pretrained(tmp_path, image_size=64)
    assert larger.config.vision.image_size == 64 and larger.config.input_size == (64, 64)
    larger.save_pretrained(tmp_path)
    again = AlbefForRetrieval.from_pretrained(tmp_path)
    positions = [model.albef.vision_model.embeddings.position_embeddings for model in (larger, again)]
    assert torch.equal(*positions)


def test_the_papers_vit_on_rectangular_images(tmp_path):
    square = AlbefForRetrieval(AlbefConfig(vision_config=VIT, text_config=TINY)).eval()
    square.save_pretrained(tmp_path / "square")
    config = AlbefConfig.from_pretrained(tmp_path / "square")
    config.set_input_size([96, 32])
    model = AlbefForRetrieval.from_pretrained(tmp_path / "square", config=config).eval()
    batch = batch_of(config)
    expected = square.albef.vision_model(batch["pixel_values"], interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(model.albef.vision_model(batch["pixel_values"]).last_hidden_state, expected)
    assert matching_heatmaps(model, **batch).shape == (3, 3, 12, 4)
    model.save_pretrained(tmp_path / "tall")
    loaded = AlbefForRetrieval.from_pretrained(tmp_path / "tall").eval()
    assert torch.equal(loaded(**batch).itm_logits, model(**batch).itm_logits)
    with pytest.raises(ValueError, match=r"image_size \(36\) must be a multiple of patch_size \(8\)"):
        config.set_input_size([32, 36])


@pytest.mark.parametrize("size", [[48, 16], [32, 32], [192, 64], [64, 64]])
def test_positions_of_a_rectangle_are_resampled_to_another(size, tmp_path):
    """Also to as many patches (8x2 and 4x4), and where a number of patches is that of a square."""
    tall = AlbefForRetrieval(AlbefConfig(vision_config={**VIT, "image_size": [64, 16]}, text_config=TINY))
    positions = tall.albef.vision_model.embeddings.position_embeddings
    rows = torch.arange(8.0)[:, None].expand(8, 2).reshape(1, 16, 1)
    with torch.no_grad():
        positions[:, 1:] = rows
    tall.save_pretrained(tmp_path)
    config = AlbefConfig.from_pretrained(tmp_path)
    config.set_input_size(size)
    loaded = AlbefForRetrieval.from_pretrained(tmp_path, config=config)
    grid = loaded.albef.vision_model.embeddings.position_embeddings[0, 1:, 0].unflatten(0, loaded.config.vision.grid)
    assert torch.equal(grid, grid[:, :1].expand_as(grid))  # the same along each row
    assert (grid[1:, 0] > grid[:-1, 0]).all()


@pytest.mark.parametrize("pooling", ["cls", "pooler", "mean"])
def test_every_pooling_has_all_gradients_or_says_why_not(kind, pooling):
    try:
        model = AlbefForRetrieval(config_of(kind, image_pooling=pooling)).train()
        model(**batch_of(model.config), labels=torch.arange(3)).loss.backward()
    except ValueError as error:
        assert f"no {'class token' if pooling == 'cls' else 'pooled output'}" in str(error)
        return
    assert not [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]


def test_the_heat_map_of_a_class_token_is_its_attention():
    """The pooled output of CLIP depends on its class token alone."""
    model = AlbefForRetrieval(config_of("clip")).eval()
    batch = batch_of(model.config)
    maps = contrastive_heatmaps(model, **batch)
    assert maps.any() and torch.equal(contrastive_heatmaps(model, **batch, layer=1), maps)
    assert not torch.equal(contrastive_heatmaps(model, **batch, layer=0), maps)
    with pytest.raises(ValueError, match="leave layer at -1"):
        contrastive_heatmaps(AlbefForRetrieval(config_of("siglip")).eval(), **batch, layer=0)


def test_the_token_of_a_pooling_head_is_no_state():
    config = transformers.Aimv2VisionConfig(**VIT)
    encoder = AlbefForRetrieval(AlbefConfig(vision_config=config, text_config=TINY)).eval().albef.vision_model
    own = encoder.encoder(torch.ones(2, 3, 32, 32))
    states = encoder(torch.ones(2, 3, 32, 32)).last_hidden_state
    assert torch.equal(states[:, 0], own.pooler_output) and torch.equal(states[:, 1:], own.last_hidden_state)


@pytest.mark.parametrize("config", ["ViTMAEConfig", "YolosConfig"])
def test_models_without_a_state_for_each_patch_are_refused(config):
    with pytest.raises(ValueError, match="does not return a state for each patch"):
        AlbefForRetrieval(AlbefConfig(vision_config=getattr(transformers, config)(), text_config=TINY))


def test_weights_that_are_not_found_are_no_start(tmp_path):
    vision = transformers.CLIPVisionConfig(**VIT)
    text = transformers.LlamaConfig(**TINY, vocab_size=50, num_key_value_heads=2)
    llava = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(vision_config=vision, text_config=text)
    )
    llava.save_pretrained(tmp_path / "llava")
    with pytest.raises(ValueError, match=r"Save the image model alone, as in model.vision_model.save_pretrained"):
        AlbefForPreTraining.from_vision_text_pretrained(str(tmp_path / "llava"), text_config=TINY)


def test_misspelled_settings_are_refused(tmp_path):
    AutoModel.from_config(vision_config("dinov2")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="The image model has no setting drop_paht_rate"):
        AlbefForPreTraining.from_vision_text_pretrained(str(tmp_path), vision_config={"drop_paht_rate": 0.1})
    with pytest.raises(ValueError, match="vision_config has to be a dictionary"):
        AlbefForPreTraining.from_vision_text_pretrained(vision_config=vision_config("dinov2"))
    assert read_model_config('{"vision_config": {"drop_path_rate": 0.1}}', str(tmp_path))
    assert read_model_config('{"vision_config": {"model_type": "convnext", "hidden_sizes": [8, 16]}}')
    with pytest.raises(ValueError, match="no setting vision_config.hiden_sizes; did you mean hidden_sizes"):
        read_model_config('{"vision_config": {"model_type": "convnext", "hiden_sizes": [8, 16]}}')


def test_pixels_of_another_range_are_normalized_alike(tmp_path):
    """Pixels from -1 to 1 are normalized by a processor of pixels from 0 to 1."""
    AutoModel.from_config(vision_config("vit")).save_pretrained(tmp_path)
    own = {"rescale_factor": 1 / 127.5, "rescale_offset": True, "image_mean": [0.2] * 3, "image_std": [0.4] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(own))
    found = read_preprocessing(str(tmp_path))
    pixel = 40
    assert ((pixel / 127.5 - 1) - 0.2) / 0.4 == pytest.approx(
        (pixel / 255 - found["image_mean"][0]) / found["image_std"][0]
    )
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_flip_channel_order": True}))
    with pytest.raises(ValueError, match="reorders the channels to BGR"):
        read_preprocessing(str(tmp_path))
