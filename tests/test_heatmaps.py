"""Heat maps are those of the original, and show what is there."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from original import assert_close, convert, load
from PIL import Image

from albef_hf import AlbefForImageCaptioning, AlbefForQuestionAnswering, AlbefForRetrieval, heatmaps_albef
from albef_hf.heatmaps_albef import (
    answer_heatmaps,
    caption_heatmaps,
    content_words,
    contrastive_heatmaps,
    heatmap_grid,
    match_probabilities,
    matching_heatmaps,
    overlay,
    overlays,
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
        (caption_heatmaps, {}, AlbefForQuestionAnswering),
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


def test_maps_of_a_caption_are_the_gradient_of_each_word_where_it_is_predicted(config, inputs):
    torch.manual_seed(0)
    model = AlbefForImageCaptioning(config).eval()
    maps = caption_heatmaps(model, **inputs)
    assert maps.shape == (4, 9, 2, 2) and (maps >= 0).all()
    assert not maps[:, 0].any() and not maps[2:, 6:].any(), "the first token is given, padding is not written"
    assert (maps.flatten(2).sum(2)[:2, 1:] > 0).all()
    model.set_attn_implementation("eager")
    outputs = model.albef(**inputs, output_attentions=True)
    attention = outputs.multimodal_model_output.cross_attentions[0]
    logits = model.mlm_head(outputs.last_hidden_state[:, 4]).log_softmax(-1)
    score = logits.gather(1, inputs["input_ids"][:, 5:6]).sum()
    gradient = torch.autograd.grad(score, attention)[0][:, :, 4, 1:].clamp(min=0)
    expected = (gradient * attention[:, :, 4, 1:]).mean(1).unflatten(1, (2, 2))
    assert torch.allclose(maps[:, 5], expected, rtol=1e-3, atol=1e-12)
    changed = inputs["input_ids"].clone()
    changed[:, 6] = 2000  # of what is written later, a word does not depend
    later = caption_heatmaps(model, **inputs | {"input_ids": changed})
    assert torch.equal(later[:, :6], maps[:, :6]) and not torch.equal(later[:2, 6:], maps[:2, 6:])


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
    red, gray = shown.getpixel((8, 6)), shown.getpixel((70, 50))
    assert red[0] > red[2] + 50 and gray == (255, 255, 255)
    sheet = heatmap_grid(Image.new("RGB", (80, 60), "white"), ["a", "dog"], heat.expand(2, 4, 4), columns=2, size=100)
    assert sheet.size == (2 * 108 + 8, 2 * (75 + 24 + 8) + 8 + 24)


def color(image: Image.Image) -> np.ndarray:
    """Return how far each pixel is from gray, (height, width)."""
    pixels = np.asarray(image, dtype=int)
    return pixels.max(-1) - pixels.min(-1)


@pytest.fixture
def spots() -> torch.Tensor:
    """Maps of three words: a hot one, one with a tenth of its heat at another place, and one without heat."""
    maps = torch.zeros(3, 4, 4)
    maps[0, 0, 0], maps[1, 3, 3] = 0.02, 0.002
    return maps


def test_words_have_one_scale(spots):
    image = Image.new("RGB", (80, 80), (200, 180, 160))
    hot, weak, none = (color(drawing) for drawing in overlays(image, spots))
    assert hot.max() > 80 and 0 < weak.max() < 0.15 * hot.max() and not none.any()
    own = [color(overlay(image, heatmap)) for heatmap in spots]
    assert np.array_equal(own[0], hot) and own[1].max() == hot.max() and not own[2].any()
    assert np.array_equal(
        np.array(heatmap_grid(image, ["x"] * 3, spots)),
        np.array(heatmap_grid(image, ["x"] * 3, spots, scale=spots.max().item())),
    )
    fixed = color(overlays(image, spots[1:2], scale=0.02)[0])
    assert np.array_equal(fixed, weak)


def test_colors_fade_with_the_probability_of_a_match(spots):
    image = Image.new("RGB", (80, 80), (200, 180, 160))
    gray = np.asarray(image.convert("L").convert("RGB"))
    strengths = [color(overlay(image, spots[0], probability=probability)).max() for probability in (1.0, 0.5, 0.1)]
    assert strengths[1] == pytest.approx(strengths[0] / 2, abs=2)
    assert strengths[2] == pytest.approx(strengths[0] / 10, abs=2)
    assert np.array_equal(overlay(image, spots[0], probability=1.0), overlay(image, spots[0]))
    for drawing in (
        overlay(image, spots[0], probability=0.0),
        *overlays(image, 0 * spots),
        *overlays(image, spots[:0]),
    ):
        assert np.array_equal(drawing, gray)
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="it must be from 0 to 1"):
            overlay(image, spots[0], probability=wrong)
    with pytest.raises(ValueError, match="which is not negative"):
        overlay(image, spots[0], scale=float("nan"))


def test_a_grid_has_one_scale_and_says_it(spots):
    image = Image.new("RGB", (80, 80), "white")

    def cells(**settings) -> list[np.ndarray]:
        sheet = np.asarray(heatmap_grid(image, ["ball", "car"], spots[:2], columns=3, size=80, **settings))
        return [sheet[32:112, 8 + 88 * place : 88 + 88 * place] for place in range(3)] + [sheet[116:]]

    plain, hot, weak, bar = (color(cell).max() for cell in cells())
    assert plain == 0 and 0 < weak < 0.15 * hot and bar == pytest.approx(hot, abs=10)
    _, hotter, stronger, _ = (color(cell).max() for cell in cells(scale=0.004))
    assert hotter == hot and stronger > 4 * weak
    _, faded, fainter, faded_bar = (color(cell).max() for cell in cells(probability=0.1))
    assert faded < 0.15 * hot and fainter < 0.15 * weak + 2 and faded_bar < 0.15 * bar


def test_drawing_leaves_the_maps_as_they_are(retrieval, inputs):
    maps = matching_heatmaps(retrieval, **inputs)[0]
    before = maps.clone()
    heatmap_grid(Image.new("RGB", (80, 60)), ["x"] * len(maps), maps, probability=0.5)
    assert torch.equal(maps, before) and torch.equal(matching_heatmaps(retrieval, **inputs)[0], before)


def test_the_probability_of_a_match_is_that_of_the_model(retrieval, inputs):
    retrieval.eval()
    expected = retrieval(**inputs).itm_logits.softmax(-1)[:, 1]
    torch.testing.assert_close(match_probabilities(retrieval, **inputs), expected.detach())
    large = match_probabilities(retrieval, inputs["input_ids"], torch.randn(4, 3, 48, 64))
    assert large.shape == (4,) and ((large > 0) & (large < 1)).all()
    with pytest.raises(ValueError, match="has no itm_head: pass AlbefForRetrieval"):
        match_probabilities(AlbefForQuestionAnswering(retrieval.config), **inputs)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("The dog is chasing a ball , and it has no collar .", "dog chasing ball no collar"),
        ("ein Hund und zwei Bälle", "ein Hund und zwei Bälle"),
        ("two 🐕 on the left of 3 cats", "two 🐕 left 3 cats"),
        ("it is there", "it is there"),  # nothing else is left to draw
        ("...", "..."),
        ("", ""),
    ],
)
def test_function_words_are_found(text, content):
    words = text.split()
    assert [words[index] for index in content_words(words)] == content.split()


def test_words_without_a_part_in_the_score_are_told_of(retrieval, inputs, processor, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(heatmaps_albef.logger, "warning_once", lines.append)
    maps = matching_heatmaps(retrieval, **inputs, layer=-1)[0]
    assert maps[0].any()
    words, of_words = word_heatmaps(processor.tokenizer, inputs["input_ids"][0], maps)
    assert len(of_words) == len(words) > 0 and not of_words.any() and "choose a lower one" in lines[0]


@pytest.mark.parametrize(("size", "sheet"), [((3000, 2), (224, 98)), ((2, 3000), (224, 896)), ((1, 1), (224, 296))])
def test_pictures_of_any_shape_have_panels_also_without_heat(size, sheet):
    """Two rows of panels, 24 pixels for a word and the bar, edges of 8; a panel is 1, at most 400, and 100 high."""
    cold = torch.zeros(4, 4)
    assert overlay(Image.new("RGB", size), cold).size == size
    assert (
        heatmap_grid(Image.new("RGB", size), ["a", "b", "c"], cold.expand(3, 4, 4), columns=2, size=100).size == sheet
    )
    assert score_boxes(cold, [(0, 0, 1, 1)], size).tolist() == [0]
