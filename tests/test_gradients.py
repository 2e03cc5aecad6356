"""Gradients to images and to word embeddings, and pixels in [0, 1]: what attacks and explanations need."""

import copy
import re

import attack
import pytest
import torch
from paths import REPOSITORY
from sharp_models import make
from test_transformers import KINDS, questions_of
from torch import nn

from albef_hf import (
    AlbefForImageCaptioning,
    AlbefForPreTraining,
    AlbefForQuestionAnswering,
    AlbefForRetrieval,
    AlbefForVisualEntailment,
    WithNormalization,
)


def with_embeddings(model: nn.Module, inputs: dict) -> dict[str, torch.Tensor]:
    """The same inputs, with the word embeddings of the texts instead of their ids."""
    embeddings = model.get_input_embeddings()(inputs["input_ids"]).detach()
    return {name: value for name, value in inputs.items() if name != "input_ids"} | {"inputs_embeds": embeddings}


def assert_equal_outputs(actual: dict, expected: dict) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.isfinite(value).all() and torch.equal(actual[name], value), name


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not AlbefForImageCaptioning])
def test_word_embeddings_give_exactly_the_outputs_of_their_ids(kind, config, batch):
    model, inputs = make(kind, config), questions_of(batch, kind)
    embedded = with_embeddings(model, inputs)
    expected = model(**inputs)
    assert_equal_outputs(model(**embedded), expected)
    changed = model(**embedded | {"inputs_embeds": embedded["inputs_embeds"].flip(0)})
    name = next(name for name in ("itm_logits", "logits", "last_hidden_state") if expected.get(name) is not None)
    assert not torch.allclose(changed[name], expected[name])
    with pytest.raises(ValueError, match="the same texts twice: pass one"):
        model(**inputs, inputs_embeds=embedded["inputs_embeds"])


@pytest.mark.parametrize("kind", [AlbefForPreTraining, AlbefForRetrieval])
def test_losses_of_word_embeddings_are_those_of_their_ids(kind, config, batch):
    model, inputs = make(kind, config), batch
    if kind is AlbefForRetrieval:
        inputs = questions_of(batch, kind) | {"labels": torch.arange(4)}
    outputs = []
    for arguments in (inputs, with_embeddings(model, inputs)):
        torch.manual_seed(0)  # negatives are drawn
        outputs.append(model(**{name: arguments[name] for name in arguments if name != "attention_mask"}))
    assert outputs[0].loss > 0
    assert_equal_outputs(outputs[1], outputs[0])


def test_answers_are_generated_from_word_embeddings(config, batch):
    model = make(AlbefForQuestionAnswering, config)
    inputs = questions_of(batch, AlbefForQuestionAnswering)
    answers = [model.generate(**one, max_new_tokens=4) for one in (inputs, with_embeddings(model, inputs))]
    assert torch.equal(*answers) and len({*map(tuple, answers[0].tolist())}) > 1


def contrast(model: nn.Module, **inputs) -> torch.Tensor:
    outputs = model(**inputs)
    return (outputs.text_embeds * outputs.image_embeds).sum(-1)


def match(model: nn.Module, **inputs) -> torch.Tensor:
    return model(**inputs).itm_logits.diff(dim=-1).sum(-1)


def answer(model: nn.Module, **inputs) -> torch.Tensor:
    labels = torch.tensor([[101, 2000 + row, 2100, 102] for row in range(4)])
    return model(**inputs, labels=labels).logits.log_softmax(-1)[:, 2000:2104].sum(-1)


def entail(model: nn.Module, **inputs) -> torch.Tensor:
    return model(**inputs).logits.log_softmax(-1)[:, 2]


SCORES = [
    (contrast, AlbefForRetrieval),
    (match, AlbefForRetrieval),
    (match, AlbefForPreTraining),
    (answer, AlbefForQuestionAnswering),
    (entail, AlbefForVisualEntailment),
]


@pytest.mark.parametrize(("score", "kind"), SCORES, ids=lambda value: value.__name__)
def test_gradients_are_finite_differences(score, kind, config, batch):
    """In a random direction of all pixels, and of the embeddings of all tokens."""
    model = make(kind, config).double()
    inputs = with_embeddings(model, questions_of(batch, kind))
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    for name in ("pixel_values", "inputs_embeds"):
        start = inputs[name].clone().requires_grad_()
        score(model, **inputs | {name: start}).sum().backward()
        assert (start.grad.flatten(1).abs().amax(1) > 1e-4).all()  # of every image and text
        direction = torch.randn_like(inputs[name]) * 1e-5
        with torch.no_grad():
            up, down = (score(model, **inputs | {name: start + sign * direction}).sum() for sign in (1, -1))
        torch.testing.assert_close((start.grad * direction).sum(), (up - down) / 2, rtol=1e-5, atol=1e-12)
        if name == "inputs_embeds":
            assert not start.grad[inputs["attention_mask"] == 0].any()  # padding has no part in it


def test_pixels_in_the_unit_range(config, processor):
    images = [torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8).numpy() for _ in range(2)]
    inputs = processor(images=images, text=["a red ball", "two dogs"], return_tensors="pt")
    model = make(AlbefForRetrieval, config)
    wrapped = WithNormalization(model, processor)
    pixels = wrapped.denormalize(inputs["pixel_values"])
    assert pixels.min() >= 0 and pixels.max() <= 1
    unit = processor(images=images, do_normalize=False, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, unit)
    torch.testing.assert_close(wrapped.normalize(pixels), inputs["pixel_values"])

    normalized = inputs["pixel_values"].clone().requires_grad_()
    model(**inputs | {"pixel_values": normalized}).itm_logits[:, 1].sum().backward()
    pixels.requires_grad_()
    wrapped(**inputs | {"pixel_values": pixels}).itm_logits[:, 1].sum().backward()
    deviation = torch.tensor(processor.image_processor.image_std).view(3, 1, 1)
    torch.testing.assert_close(pixels.grad, normalized.grad / deviation, rtol=1e-3, atol=1e-6)
    assert wrapped.state_dict().keys() == {f"model.{name}" for name in model.state_dict()}
    for wrong in (inputs["pixel_values"], unit * 255):
        with pytest.raises(ValueError, match=r"The pixels are between .*: pass pixels in \[0, 1\]"):
            wrapped(**inputs | {"pixel_values": wrong})


def test_the_unit_range_of_an_image_processor_with_another_range(processor):
    """As EfficientNet's, which rescales to [-1, 1]."""
    other = copy.deepcopy(processor)
    other.image_processor.rescale_factor = 1 / 127.5
    pixels = torch.rand(1, 3, 32, 32).mul(255).round().to(torch.uint8)
    expected = other(images=list(pixels.numpy()), return_tensors="pt")["pixel_values"]
    wrapped = WithNormalization(nn.Conv2d(3, 4, 2), other)
    torch.testing.assert_close(wrapped.normalize(pixels / 255), expected, rtol=1e-4, atol=1e-4)


def test_normalization_is_exported_with_the_model(processor):
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.weight * pixel_values.mean((1, 2, 3))

    wrapped = WithNormalization(Mean(), processor)
    pixels = torch.rand(2, 3, 32, 32)
    exported = torch.export.export(wrapped, (), {"pixel_values": pixels}).module()
    torch.testing.assert_close(exported(pixel_values=pixels / 2), wrapped(pixel_values=pixels / 2))


def test_the_snippet_of_the_document_runs(config, processor, tmp_path, monkeypatch):
    make(AlbefForRetrieval, config).save_pretrained(tmp_path / "runs" / "scenes")
    processor.save_pretrained(tmp_path / "runs" / "scenes")
    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/guides/attacks.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(snippet, names)
    with torch.no_grad():
        inputs = {**names["inputs"], "inputs_embeds": names["words"]}
        after, before = (names["model"](pixel_values=names[name], **inputs) for name in ("attacked", "pixels"))
    assert after.itm_logits.diff() < before.itm_logits.diff()
    assert names["importance"].shape == names["words"].shape[:2]


def test_the_example_stays_within_epsilon_and_lowers_the_score(config, processor):
    model = WithNormalization(make(AlbefForRetrieval, config), processor)
    inputs = dict(processor(text=["a red ball", "two green dogs"], return_tensors="pt"))
    inputs["pixel_values"] = torch.rand(2, 3, 32, 32).mul(255).round() / 255
    scores = []
    for steps in (0, 1, 5):
        pixels = attack.attack_pixels(lambda one: match(model, **one), inputs, 8 / 255, steps)
        assert pixels.min() >= 0 and pixels.max() <= 1
        assert (pixels - inputs["pixel_values"]).abs().max() == pytest.approx(8 / 255, rel=0.01)
        scores.append(match(model, **inputs | {"pixel_values": pixels}))
    assert (scores[1] < scores[0]).all() and (scores[2] < scores[1]).all()


def test_the_example_replaces_one_word_that_lowers_the_score(config, processor):
    model = WithNormalization(make(AlbefForRetrieval, config), processor)
    mlm = WithNormalization(make(AlbefForPreTraining, config), processor)
    likely = ["cat", "house", "red", "three", "square", "under", "wooden", "small", "car", "woman"]
    with torch.no_grad():
        mlm.model.mlm_head.out_proj.bias[processor.tokenizer.convert_tokens_to_ids(likely)] = 20.0
    words = "a turquoise ball left of two dogs"
    inputs = {**processor(text=[words], return_tensors="pt")}
    inputs["pixel_values"] = torch.rand(1, 3, 32, 32)
    text, pair = attack.replace_word(lambda one: match(model, **one), mlm, processor, inputs, min_probability=0.01)
    changed = [word for word in text.split() if word not in words.split()]
    assert len(text.split()) == 7 and len(changed) == 1 and changed[0] in likely
    replaced = {**processor(text=[text], return_tensors="pt"), "pixel_values": inputs["pixel_values"]}
    assert match(model, **replaced) < match(model, **inputs)
    same, none = attack.replace_word(lambda one: match(model, **one), mlm, processor, inputs, min_probability=1.1)
    assert same == words and not none and changed[0] in pair and len(pair) == 2


def test_the_example_leaves_special_tokens_of_a_text(config, processor):
    mlm = WithNormalization(make(AlbefForPreTraining, config), processor)
    tokenizer = processor.tokenizer
    scored = []

    def score(inputs):
        scored.append(inputs["input_ids"])
        return torch.zeros(len(inputs["input_ids"]))

    for words in ([], ["dogs"]):
        ids = torch.tensor([tokenizer.convert_tokens_to_ids(["[CLS]", *words, "[SEP]"])])
        inputs = {"pixel_values": torch.rand(1, 3, 32, 32), "input_ids": ids}
        text, pair = attack.replace_word(score, mlm, processor, inputs, min_probability=1.1)
        assert text == " ".join(words) and not pair
    assert [tokenizer.decode(one) for ids in scored for one in ids] == ["[CLS] [MASK] [SEP]", "[CLS] dogs [SEP]"]


def test_the_example_attacks_every_task(config, processor, tmp_path, monkeypatch, capsys):
    kinds = (AlbefForRetrieval, AlbefForVisualEntailment, AlbefForPreTraining)
    folders = [str(tmp_path / kind.__name__) for kind in kinds]
    for kind, folder in zip(kinds, folders, strict=True):
        make(kind, config).save_pretrained(folder)
        processor.save_pretrained(folder)
    command = ["attack.py", *folders[:2], "--rows", "4", "--epsilon", "16", "--steps", "2"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit):
        attack.main()
    assert "no masked-language head: pass --mlm_model" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [*command, "--mlm_model", folders[2]])
    attack.main()
    lines = capsys.readouterr().out.splitlines()
    attacks = [line for line in lines if line.endswith("%")]
    rates = [float(rate) for line in attacks for rate in re.findall(r"([\d.]+)%", line)]
    assert len(rates) == 15 and all(0 <= rate <= 100 for rate in rates) and any(rates)
    assert len(attacks) == 10 and sum("a word" in line for line in attacks) == 4
    titles = [line.split(":")[0] for line in lines if "right before" in line]
    assert titles == ["image to text, text to image", "entailment"]
