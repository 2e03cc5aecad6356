"""Heat maps are those of the original, and show what is there."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from original import assert_close, convert, load
from PIL import Image

from albef_hf import AlbefForQuestionAnswering, AlbefForRetrieval, heatmaps_albef
from albef_hf.heatmaps_albef import (
    answer_heatmaps,
    contrastive_heatmaps,
    heatmap_grid,
    matching_heatmaps,
    overlay,
    score_boxes,
    word_heatmaps,
)


@pytest.fixture
def retrieval(config) -> AlbefForRetrieval:
    torch.manual_seed(0)
    return AlbefForRetrieval(config)


class LockedHook:
    """A hook that cannot be copied."""

    def __init__(self):
        self.lock, self.calls = threading.Lock(), 0

    def __call__(self, *_):
        self.calls += 1


@pytest.fixture
def inputs(batch) -> dict[str, torch.Tensor]:
    return {name: batch[name] for name in ("input_ids", "pixel_values", "attention_mask")}


def test_heat_maps_are_those_of_the_original(tmp_path):
    """The notebook's per token, and those that `Grounding.py` makes of the matching and of the contrastive score."""
    golden = load("eval_gradcam")
    model = AlbefForRetrieval.from_pretrained(convert(golden, "retrieval", tmp_path)).double()
    inputs, expected = golden["inputs"], golden["expected"]
    arguments = (inputs["input_ids"], inputs["images"].double(), inputs["attention_mask"])
    maps = matching_heatmaps(model, *arguments)
    assert_close(maps.mean(1), expected["grounding_itm"], 1e-9, "matching")
    first = matching_heatmaps(model, *(part[:1] for part in arguments), layer=golden["block_num_itm"] - 6)
    assert_close(first[0], expected["notebook"]["gradcam"], 1e-9, "notebook")
    contrast = contrastive_heatmaps(model, *arguments, layer=golden["block_num_itc"])
    assert_close(contrast, expected["grounding_itc"], 1e-9, "contrast")


def test_a_map_does_not_depend_on_the_batch_and_padding_has_none(retrieval, inputs):
    maps = matching_heatmaps(retrieval, **inputs)
    assert maps.shape == (4, 9, 2, 2) and (maps >= 0).all() and maps[0].sum() > 0
    assert (maps[2:, 6:] == 0).all()
    alone = matching_heatmaps(retrieval, **{name: value[2:3] for name, value in inputs.items()})
    assert torch.allclose(alone, maps[2:3], atol=1e-7)
    contrast = contrastive_heatmaps(retrieval, **inputs)
    assert contrast.shape == (4, 2, 2) and contrast.sum() > 0


def test_every_part_keeps_the_attention_that_it_has(config, inputs):
    torch.manual_seed(0)
    whole = AlbefForQuestionAnswering(config)
    whole.set_attn_implementation({"": "sdpa", "text_config": "eager", "vision_config": "sdpa"})
    whole.decoder.set_attn_implementation("flex_attention")
    answer_heatmaps(whole, **inputs, answer_ids=torch.tensor(4 * [[101, 2000, 102]]))
    parts = (whole, whole.albef, whole.albef.vision_model, whole.albef.text_model, whole.albef.multimodal_model)
    assert [part.config._attn_implementation for part in parts] == ["sdpa", "sdpa", "sdpa", "eager", "eager"]
    assert whole.decoder.config._attn_implementation == "flex_attention"


def state_of(model: torch.nn.Module) -> list:
    """All that a heat map could change."""
    parts = [(part.training, len(part._forward_hooks)) for part in model.modules()]
    configs = [part.config._attn_implementation for part in model.modules() if hasattr(part, "config")]
    return [parts, configs, [(weight.requires_grad, weight.grad) for weight in model.parameters()]]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_model_is_left_as_it_was(retrieval, inputs, mode):
    expected = matching_heatmaps(retrieval, **inputs)
    retrieval.train().requires_grad_(False)
    retrieval.albef.vision_model.eval()
    before = state_of(retrieval)
    with mode():
        inputs = {name: values.clone() for name, values in inputs.items()}
        assert torch.equal(matching_heatmaps(retrieval, **inputs), expected)
        with pytest.raises(ValueError, match="layer is 9"):
            contrastive_heatmaps(retrieval, **inputs, layer=9)
    assert state_of(retrieval) == before


def test_hooks_that_cannot_be_copied_are_shared(retrieval, inputs):
    expected, hook = matching_heatmaps(retrieval, **inputs), LockedHook()
    retrieval.itm_head.register_forward_hook(hook)
    assert torch.equal(matching_heatmaps(retrieval, **inputs), expected) and hook.calls == 1


def test_models_without_the_score_or_its_gradient_are_refused(retrieval, config, inputs):
    for heatmaps, arguments, kind in (
        (matching_heatmaps, {}, AlbefForQuestionAnswering),
        (contrastive_heatmaps, {}, AlbefForQuestionAnswering),
        (answer_heatmaps, {"answer_ids": inputs["input_ids"]}, AlbefForRetrieval),
    ):
        with pytest.raises(ValueError, match=f"{kind.__name__} has no .*: pass AlbefFor"):
            heatmaps(kind(config), **inputs, **arguments)
    small = torch.ao.quantization.quantize_dynamic(retrieval, {torch.nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ValueError, match="dynamically quantized, .*: pass the model that was quantized"):
        matching_heatmaps(small, **inputs)


def test_threads_share_a_model(config, inputs):
    """One that is trained, with dropout and other attention, while others draw its maps."""
    torch.manual_seed(0)
    model, answers = AlbefForQuestionAnswering(config), torch.tensor([[101, 2003, 102, 0], [101, 2004, 2005, 102]] * 2)
    expected, before = answer_heatmaps(model, **inputs, answer_ids=answers), state_of(model.train())
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            maps = pool.map(lambda _: answer_heatmaps(model, **inputs, answer_ids=answers), range(16))
            assert all(torch.equal(one, expected) for one in maps)
    finally:
        sys.setswitchinterval(interval)
    assert state_of(model) == before


@pytest.mark.parametrize("layer", [2, -3, "x", 1.0])
def test_a_layer_that_is_not_there_is_named(retrieval, inputs, layer):
    for heatmaps in (matching_heatmaps, contrastive_heatmaps):
        with pytest.raises(ValueError, match=f"layer is {layer!r}: it must be a whole number from 0 to 1"):
            heatmaps(retrieval, **inputs, layer=layer)
        assert retrieval.config._attn_implementation == "sdpa"


def test_layers_heads_and_resolutions_can_be_chosen(retrieval, inputs):
    first, second = (matching_heatmaps(retrieval, **inputs, layer=layer) for layer in (0, 1))
    assert not torch.allclose(first, second)
    strongest = matching_heatmaps(retrieval, **inputs, reduce_heads=lambda maps: maps.amax(1))
    assert (strongest >= matching_heatmaps(retrieval, **inputs)).all()
    inputs["pixel_values"] = torch.randn(4, 3, 48, 64)
    assert matching_heatmaps(retrieval, **inputs).shape == (4, 9, 3, 4)
    assert contrastive_heatmaps(retrieval, **inputs).shape == (4, 3, 4)


def test_maps_of_an_answer_are_the_gradient_of_its_likelihood(config, inputs):
    torch.manual_seed(0)
    model = AlbefForQuestionAnswering(config)
    answers = torch.tensor([[101, 2003, 102, 0], [101, 2004, 2005, 102]] * 2)
    maps = answer_heatmaps(model, **inputs, answer_ids=answers)
    assert maps.shape == (4, 9, 2, 2) and maps.sum() > 0
    other = answer_heatmaps(model, **inputs, answer_ids=answers.flip(0))
    assert not torch.allclose(maps, other)


def test_pieces_of_a_word_are_put_together(processor):
    tokens = processor(text=["a surfboarding dog"], return_tensors="pt")["input_ids"][0]
    pieces = processor.tokenizer.convert_ids_to_tokens(tokens.tolist())
    assert pieces == ["[CLS]", "a", "surf", "##boarding", "dog"]
    maps = torch.arange(5.0)[:, None, None].expand(5, 2, 2)
    words, merged = word_heatmaps(processor.tokenizer, tokens, maps)
    assert words == ["a", "surfboarding", "dog"]
    assert merged[:, 0, 0].tolist() == [1.0, 2.5, 4.0]
    assert word_heatmaps(processor.tokenizer, tokens[:1], maps[:1])[0] == []


def test_boxes_are_scored_by_heat_over_area():
    """A map of one hot quarter: bicubic keeps its middle; sums over areas are worked out from the map itself."""
    heat = torch.zeros(4, 4)
    heat[:2, :2] = 1
    whole, hot, cold = (0, 0, 40, 40), (0, 0, 20, 20), (20, 20, 20, 20)
    for alpha, best in ((0.0, 0), (0.5, 1), (1.0, 1)):
        scores = score_boxes(heat, [whole, hot, cold], (40, 40), alpha)
        assert scores.argmax() == best and scores[2] < 0.1 * scores[1]
    total = score_boxes(heat, [whole], (40, 40), 0.0).item()
    assert score_boxes(heat, [whole], (40, 40), 0.5).item() == pytest.approx(total / 40)
    beyond, same = score_boxes(heat, [(-10, -10, 30, 30), (0, 0, 20, 20)], (40, 40), 0.0).tolist()
    assert beyond == same  # what lies outside of the image holds nothing
    assert len(score_boxes(heat, [], (40, 40))) == 0


def test_pictures_are_red_where_it_is_hot():
    heat = torch.zeros(4, 4)
    heat[0, 0] = 1
    shown = overlay(Image.new("RGB", (80, 60), "white"), heat)
    assert shown.size == (80, 60)
    red, blue = shown.getpixel((8, 6)), shown.getpixel((70, 50))
    assert red[0] > red[2] + 50 and blue[2] >= blue[0]
    sheet = heatmap_grid(Image.new("RGB", (80, 60), "white"), ["a", "dog"], heat.expand(2, 4, 4), columns=2, size=100)
    assert sheet.size == (2 * 108 + 8, 2 * (75 + 24 + 8) + 8)


def test_words_without_a_part_in_the_score_are_told_of(retrieval, inputs, processor, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(heatmaps_albef.logger, "warning_once", lines.append)
    maps = matching_heatmaps(retrieval, **inputs, layer=-1)[0]
    assert maps[0].any()
    words, of_words = word_heatmaps(processor.tokenizer, inputs["input_ids"][0], maps)
    assert len(of_words) == len(words) > 0 and not of_words.any() and "choose a lower one" in lines[0]


@pytest.mark.parametrize(("size", "sheet"), [((3000, 2), (224, 74)), ((2, 3000), (224, 872)), ((1, 1), (224, 272))])
def test_pictures_of_any_shape_have_panels_also_without_heat(size, sheet):
    """Two rows of panels, 24 pixels for a word, edges of 8; a panel is 1, at most 400, and 100 pixels high."""
    cold = torch.zeros(4, 4)
    assert overlay(Image.new("RGB", size), cold).size == size
    assert (
        heatmap_grid(Image.new("RGB", size), ["a", "b", "c"], cold.expand(3, 4, 4), columns=2, size=100).size == sheet
    )
    assert score_boxes(cold, [(0, 0, 1, 1)], size).tolist() == [0]
