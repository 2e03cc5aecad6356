"""Checkpoints of LAVIS, TorchMultimodal and TCL: converted, they compute what the libraries compute (float64)."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from library_weights import state_dict, uniform
from original import assert_close
from paths import FIXTURES
from PIL import Image
from safetensors.torch import load_file
from transformers import PreTrainedModel

from albef_hf import AlbefConfig, AlbefProcessor, MomentumTeacher
from albef_hf.conversion.checkpoints import MODELS
from albef_hf.conversion.from_original import convert_checkpoint
from albef_hf.conversion.other_libraries import LAVIS, with_original_names
from albef_hf.conversion.processors import make_task_processor
from albef_hf.data import Augmentation, PairReader

FIXTURE = json.loads(gzip.decompress((FIXTURES / "other_libraries.json.gz").read_bytes()))
SIZE = FIXTURE.pop("size")
LAVIS_TEXTS = FIXTURE.pop("lavis_texts")
INPUTS = {name: torch.tensor(value) for name, value in FIXTURE.pop("inputs").items()}
TASKS = {
    "lavis_retrieval": "retrieval",
    "lavis_vqa": "vqa",
    "lavis_entailment": "entailment",
    "lavis_nlvr2": "nlvr2",
    "torchmultimodal_retrieval": "retrieval",
    "torchmultimodal_vqa": "vqa",
    "tcl_pretraining": "pretraining",
}
LIBRARIES = {"lavis": "LAVIS", "torchmultimodal": "TorchMultimodal", "tcl": "the original code"}
HEADS = {"vision_config": {"num_attention_heads": 4}, "text_config": {"num_attention_heads": 4}}
TOLERANCE = 1e-12


def checkpoint(name: str) -> dict[str, torch.Tensor]:
    record = FIXTURE[name]
    return state_dict(record["shapes"], record["tied"], record["constants"])


def convert(state: dict[str, torch.Tensor], folder: Path, **settings) -> dict:
    (folder / "heads.json").write_text(json.dumps(HEADS))
    torch.save({"model": state, "epoch": 3}, folder / "checkpoint.pt")
    return convert_checkpoint(folder / "checkpoint.pt", folder / "out", config=folder / "heads.json", **settings)


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> dict[str, tuple[Path, dict]]:
    """The folder of each converted model, and what the conversion reports."""
    results = {}
    for name in FIXTURE:
        folder = tmp_path_factory.mktemp(name)
        results[name] = (folder / "out", convert(checkpoint(name), folder))
    return results


def student_and_teacher(name: str, folder: Path) -> tuple[PreTrainedModel, MomentumTeacher]:
    """The teacher is updated first, as the libraries do in a step."""
    student = MODELS[TASKS[name]].from_pretrained(folder).double().eval()
    teacher = MomentumTeacher.from_pretrained(folder, student, 0.995).double()
    teacher.update(student)
    return student, teacher.eval()


def pixels(name: str = "image") -> torch.Tensor:
    return uniform(name, [2, 3, SIZE["image"], SIZE["image"]])


def texts() -> dict[str, torch.Tensor]:
    return {name: INPUTS[name] for name in ("input_ids", "attention_mask")}


def answers() -> dict[str, torch.Tensor]:
    labels = INPUTS["answers"].masked_fill(INPUTS["answer_mask"] == 0, -100)
    return {"labels": labels, **{name: INPUTS[name] for name in ("answer_counts", "answer_weights")}}


def expected(name: str, output: str) -> torch.Tensor:
    value = FIXTURE[name]["outputs"][output]
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("name", FIXTURE)
def test_every_key_is_used_or_dropped_with_a_reason(name, converted):
    folder, summary = converted[name]
    state = checkpoint(name)
    assert summary["task"] == TASKS[name] and summary["library"] == LIBRARIES[name.split("_")[0]]
    assert summary["keys"] == len(state)
    assert summary["dropped"].keys() == {"epoch"} | {key for key in state if key.endswith("position_ids")}
    assert summary["largest_difference"] == 0
    assert json.loads((folder / "conversion.json").read_text()) == summary
    card = (folder / "README.md").read_text()
    assert f"[{summary['library']}]({summary['library_url']})" in card
    assert all(note in card for note in summary["notes"])


@pytest.mark.parametrize("name", ["lavis_retrieval", "torchmultimodal_retrieval"])
def test_losses_of_retrieval(name, converted):
    student, teacher = student_and_teacher(name, converted[name][0])
    batch = {**texts(), "pixel_values": pixels(), "labels": INPUTS["image_ids"]}
    with torch.no_grad():
        outputs = student(**batch, teacher_outputs=teacher(**batch), alpha=SIZE["alpha"])
        scores = student(**texts(), pixel_values=pixels())
    if name.startswith("lavis"):
        for loss in ("loss_itc", "loss_itm", "itm_logits"):
            assert_close(outputs[loss], expected(name, loss), TOLERANCE, loss)
    else:
        assert_close(outputs.loss, expected(name, "loss"), TOLERANCE, "loss")
        assert_close(scores.itm_logits[:, 1], expected(name, "scores"), TOLERANCE, "scores")
        assert_close(scores.image_embeds, expected(name, "image_features"), TOLERANCE, "images")
        assert_close(scores.text_embeds, expected(name, "text_features"), TOLERANCE, "texts")


def test_answers_of_lavis(converted):
    """LAVIS smooths labels by 0.1, which belongs to its loss and not to the model."""
    student, _ = student_and_teacher("lavis_vqa", converted["lavis_vqa"][0])
    with torch.no_grad():
        outputs = student(**texts(), pixel_values=pixels(), **answers())
    is_answer = INPUTS["answer_mask"][:, 1:] == 1
    assert_close(outputs.logits, expected("lavis_vqa", "logits")[:, :-1][is_answer], TOLERANCE, "logits")
    tokens = INPUTS["answers"][:, 1:][is_answer]
    weights = (INPUTS["answer_weights"][:, None] * is_answer)[is_answer]
    cross_entropy = torch.nn.functional.cross_entropy
    smoothed = cross_entropy(outputs.logits, tokens, reduction="none", label_smoothing=0.1)
    assert_close((smoothed * weights).sum() / 2, expected("lavis_vqa", "loss"), TOLERANCE, "loss with smoothing")
    exact = cross_entropy(outputs.logits, tokens, reduction="none")
    assert_close(outputs.loss, (exact * weights).sum() / 2, TOLERANCE, "loss")
    assert abs(outputs.loss - expected("lavis_vqa", "loss")) > 1e-3


def test_answers_of_torchmultimodal(converted):
    """Its output layer is not the word embeddings, and neither is that of the converted model."""
    folder, _ = converted["torchmultimodal_vqa"]
    student, teacher = student_and_teacher("torchmultimodal_vqa", folder)
    assert not student.config.tie_word_embeddings
    batch = {**texts(), "pixel_values": pixels(), **answers()}
    with torch.no_grad():
        outputs = student(**batch, teacher_outputs=teacher(**batch), alpha=SIZE["alpha"])
    assert_close(outputs.loss, expected("torchmultimodal_vqa", "loss"), TOLERANCE, "loss")


@pytest.mark.parametrize("linear", ["linear_1", "linear_2"])
def test_former_names_of_torchvision_and_tied_words_are_understood(linear, tmp_path):
    state = checkpoint("torchmultimodal_vqa")
    first = {"linear_1": ".mlp.0.", "linear_2": ".mlp.3."}[linear]
    state = {name.replace(first, f".mlp.{linear}."): weight for name, weight in state.items()}
    for teacher in ("", "_m"):
        words = state[f"answer_decoder{teacher}.text_embeddings.word_embeddings.weight"]
        state[f"answer_decoder{teacher}.prediction_head.decoder.weight"] = words
    convert(state, tmp_path)
    assert AlbefConfig.from_pretrained(tmp_path / "out").tie_word_embeddings


@pytest.mark.parametrize("name", ["lavis_entailment", "lavis_nlvr2"])
def test_classifiers_of_lavis(name, converted):
    student, teacher = student_and_teacher(name, converted[name][0])
    images = pixels()
    if name == "lavis_nlvr2":
        images = torch.stack([images, pixels("second image")], dim=1)
    batch = {**texts(), "pixel_values": images, "labels": INPUTS["labels"]}
    with torch.no_grad():
        outputs = student(**batch, teacher_outputs=teacher(**batch), alpha=SIZE["alpha"])
    assert_close(outputs.logits, expected(name, "logits"), TOLERANCE, "logits")
    if name == "lavis_entailment":  # for NLVR2, LAVIS's teacher has the student's text encoder
        assert_close(outputs.loss, expected(name, "loss"), TOLERANCE, "loss")


def test_losses_of_tcl(converted):
    """Matching and masked language are the original's; TCL's contrast has terms of its own."""
    student, teacher = student_and_teacher("tcl_pretraining", converted["tcl_pretraining"][0])
    record = FIXTURE["tcl_pretraining"]["outputs"]
    masked = {"mlm_input_ids": torch.tensor(record["input_ids"]), "labels": torch.tensor(record["labels"])}
    batch = {**texts(), "pixel_values": pixels(), **masked}
    with torch.no_grad():
        outputs = student(**batch, teacher_outputs=teacher(**batch), alpha=SIZE["alpha"])
    for loss in ("loss_mlm", "loss_itm"):
        assert_close(outputs[loss], expected("tcl_pretraining", loss), TOLERANCE, loss)


def test_token_types_of_lavis_are_zero(converted):
    weights = load_file(converted["lavis_vqa"][0] / "model.safetensors")
    types = [weight for name, weight in weights.items() if "token_type" in name]
    assert len(types) == 2 and not any(weight.any() for weight in types)


def test_blip_and_unknown_or_doubled_names_are_refused(tmp_path):
    state = checkpoint("lavis_retrieval")
    blip = state | {"text_encoder.encoder.layer.0.crossattention.self.key.weight": torch.zeros(16, 16).double()}
    with pytest.raises(ValueError, match="it is one of BLIP"):
        convert(blip, tmp_path)
    with pytest.raises(ValueError, match="has an unknown surprise.weight"):
        convert(state | {"surprise.weight": torch.zeros(1).double()}, tmp_path)
    state = checkpoint("torchmultimodal_vqa")
    layer = "model.vision_encoder.encoder.encoder.layers.encoder_layer_0.mlp."
    with pytest.raises(ValueError, match="linear_1.bias and another name"):
        convert(state | {f"{layer}linear_1.bias": state[f"{layer}0.bias"]}, tmp_path)
    del state[f"{layer}0.bias"]
    with pytest.raises(ValueError, match="has no visual_encoder.blocks.0.mlp.fc1.bias"):
        convert(state, tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_original_is_not_renamed():
    state = {"visual_encoder.cls_token": torch.zeros(1), "text_encoder.embeddings.x": torch.zeros(1)}
    assert with_original_names(state)[0] is state


# The processor


@pytest.mark.parametrize("task", LAVIS_TEXTS["ids"])
def test_texts_are_those_of_lavis(task, config, tmp_path):
    make_task_processor(task, config, LAVIS).save_pretrained(tmp_path)
    processor = AlbefProcessor.from_pretrained(tmp_path)
    for text, ids in zip(LAVIS_TEXTS["texts"], LAVIS_TEXTS["ids"][task], strict=True):
        assert processor(text=text)["input_ids"] == ids, text


def test_answers_of_lavis_are_not_cleaned_and_end_once(config):
    processor = make_task_processor("vqa", config, LAVIS)
    encoded = processor.encode_answers(LAVIS_TEXTS["answers"])
    ids = [row[mask == 1].tolist() for row, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True)]
    assert ids == LAVIS_TEXTS["answer_ids"]
    assert processor.decode_answers(encoded["input_ids"]) == ["p.m.", "yes", "don't (know)"]
    with pytest.raises(ValueError, match="has no word"):
        processor.encode_answers([""])


def test_pretraining_cleans_captions_as_the_processor(config):
    processor = make_task_processor("retrieval", config, LAVIS)
    reader = PairReader(Augmentation(4, (0.5,) * 3, (0.5,) * 3), max_words=50, replacements=processor.replacements)
    row = {"image": Image.new("RGB", (4, 4)), "caption": LAVIS_TEXTS["texts"][0]}
    assert reader(row, np.random.default_rng(0))["caption"] == "a man's t-shirt red , u s flag"


def test_settings_that_do_not_fit_are_refused(processor):
    parts = (processor.image_processor, processor.tokenizer)
    with pytest.raises(ValueError, match="does not end texts with its sep_token"):
        AlbefProcessor(*parts, add_separator=True)
    with pytest.raises(ValueError, match="leave out either them or keep_case"):
        AlbefProcessor(*parts, keep_case=True, replacements={".": " "})
