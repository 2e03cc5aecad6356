"""Checkpoints of the original: the round trip is exact, dropped keys are reported, bad files are refused."""

import argparse
import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import assert_colleagues_can_read
from original import TASKS, load, original_shapes, random_state_dict
from original import convert as convert_golden
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config

from albef_hf import (
    AlbefConfig,
    AlbefForPreTraining,
    AlbefForQuestionAnswering,
    AlbefForRetrieval,
    AlbefProcessor,
    MomentumTeacher,
)
from albef_hf.conversion import convert
from albef_hf.conversion.architecture import read_config
from albef_hf.conversion.checkpoints import MODELS
from albef_hf.conversion.from_original import convert_checkpoint
from albef_hf.conversion.parameter_names import name_table, queue_names, teacher_names
from albef_hf.conversion.to_original import revert_checkpoint

ATTENTION_HEADS = {"vision_config": {"num_attention_heads": 4}, "text_config": {"num_attention_heads": 4}}


@pytest.fixture
def heads(tmp_path) -> Path:
    """A configuration file with the attention heads, which the shapes of the tiny models do not determine."""
    (tmp_path / "heads.json").write_text(json.dumps(ATTENTION_HEADS))
    return tmp_path / "heads.json"


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return random_state_dict("retrieval_tiny")


def save(content: object, folder: Path, **kwargs) -> Path:
    torch.save(content, folder / "checkpoint.pth", **kwargs)
    return folder / "checkpoint.pth"


# The round trip


@pytest.mark.parametrize("size", ["tiny", "tiny12"])
@pytest.mark.parametrize("name", TASKS)
def test_the_round_trip_is_exact(name, size, heads, tmp_path):
    state = random_state_dict(f"{name}_{size}")
    source = save({"model": state}, tmp_path)
    summary = convert_checkpoint(source, tmp_path / "converted", task=TASKS[name], config=heads)
    assert summary["keys"] == len(state)
    assert summary["largest_difference"] == 0
    assert summary["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    revert_checkpoint(tmp_path / "converted", tmp_path / "again.pth")
    again = torch.load(tmp_path / "again.pth", weights_only=True)["model"]
    assert again.keys() == state.keys()
    for key, tensor in state.items():
        assert again[key].dtype == tensor.dtype and torch.equal(again[key], tensor), key
    teacher = any("_m." in key for key in load_file(tmp_path / "converted" / "model.safetensors"))
    assert not teacher, "the teacher belongs in momentum.safetensors"


@pytest.mark.parametrize("name", TASKS)
def test_the_table_covers_base_size(name):
    """Every key of the original's base models has a parameter of its shape, and every parameter has a key."""
    shapes, task = original_shapes(f"{name}_base"), TASKS[name]
    state = {key: torch.empty(shape, dtype=dtype, device="meta") for key, (shape, dtype) in shapes.items()}
    config = read_config(state, task)
    defaults = AlbefConfig()
    for part in ("vision_config", "text_config"):
        for setting in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            assert getattr(getattr(config, part), setting) == getattr(getattr(defaults, part), setting)
    with torch.device("meta"):
        ours = MODELS[task](config).state_dict()
    table = name_table(task, config)
    for key, names in (table | teacher_names(task, table)).items():
        parts = [ours[name.removeprefix("model.")] for name in names]
        assert list((torch.cat(parts) if len(parts) > 1 else parts[0]).shape) == shapes[key][0], key
    assert {name for names in table.values() for name in names} | {"mlm_head.out_proj.weight"} >= ours.keys()
    dropped = {"temp", "text_proj.weight", "text_proj.bias"} if name == "pretrain_nlvr" else set()
    unknown = shapes.keys() - table.keys() - teacher_names(task, table).keys() - queue_names(task).keys() - dropped
    assert all(key.endswith("position_ids") for key in unknown)


@pytest.mark.parametrize("frozen", [(), ("albef.vision_model", "albef.text_model")], ids=["trained", "frozen"])
def test_a_trained_model_of_ours_becomes_an_original_checkpoint(heads, frozen, tmp_path):
    """A model trained here converts to the original and back without a difference."""
    config = AlbefConfig(
        projection_dim=16,
        vision_config={
            **ATTENTION_HEADS["vision_config"],
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "intermediate_size": 96,
        },
        text_config={
            **ATTENTION_HEADS["text_config"],
            "hidden_size": 48,
            "num_hidden_layers": 1,
            "intermediate_size": 96,
        },
    )
    student = AlbefForPreTraining(config)
    student.freeze(*frozen)
    student.save_pretrained(tmp_path / "trained")
    MomentumTeacher(student, queue_size=6).save_pretrained(tmp_path / "trained")
    revert_checkpoint(tmp_path / "trained", tmp_path / "original.pth")
    convert_checkpoint(tmp_path / "original.pth", tmp_path / "again", task="pretraining", config=heads)
    again = AlbefForPreTraining.from_pretrained(tmp_path / "again")
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in student.state_dict().items())
    teacher = MomentumTeacher.from_pretrained(tmp_path / "again", again)
    saved = MomentumTeacher.from_pretrained(tmp_path / "trained", student)
    assert all(torch.equal(weight, teacher.state_dict()[name]) for name, weight in saved.state_dict().items())
    shared = saved.model.state_dict()  # with the weights that the file was saved without
    assert all(torch.equal(weight, teacher.model.state_dict()[name]) for name, weight in shared.items())


# What a file may contain


@pytest.mark.parametrize("wrapped", ["bare", "wrapped", "legacy", "training"])
def test_every_wrapping_is_unwrapped(wrapped, state, heads, tmp_path):
    contents = {
        "bare": state,
        "wrapped": {"model": state},
        "legacy": {"model": state},
        "training": {
            "model": state,
            "optimizer": {"state": {0: {"exp_avg": torch.randn(3)}}, "param_groups": [{"lr": 1e-4}]},
            "config": {"alpha": 0.4, "train_file": ["a.json"]},
            "args": argparse.Namespace(seed=42, output_dir="out"),
            "epoch": 3,
        },
    }
    source = save(contents[wrapped], tmp_path, _use_new_zipfile_serialization=wrapped != "legacy")
    summary = convert_checkpoint(source, tmp_path / "converted", task="retrieval", config=heads)
    training = {key for key, reason in summary["dropped"].items() if "training state" in reason}
    assert training == ({"optimizer", "config", "args", "epoch"} if wrapped == "training" else set())
    student = AlbefForRetrieval.from_pretrained(tmp_path / "converted")
    assert torch.equal(student.itm_head.weight, state["itm_head.weight"])


@pytest.mark.parametrize("queues", [True, False])
def test_a_checkpoint_without_teacher_is_converted(queues, state, heads, tmp_path):
    state = {key: value for key, value in state.items() if "_m." not in key and (queues or "queue" not in key)}
    convert_checkpoint(save(state, tmp_path), tmp_path / "converted", task="retrieval", config=heads)
    assert (tmp_path / "converted" / "momentum.safetensors").exists() == queues
    if queues:
        student = AlbefForRetrieval.from_pretrained(tmp_path / "converted")
        teacher = MomentumTeacher.from_pretrained(tmp_path / "converted", student)
        assert torch.equal(teacher.queue.image_features, state["image_queue"].T)
        assert torch.equal(teacher.queue.ids, state["idx_queue"][0])
        assert torch.equal(teacher.model.itm_head.weight, student.itm_head.weight)


def test_another_resolution_is_interpolated_for_student_and_teacher(state, heads, tmp_path):
    source = save(state, tmp_path)
    summary = convert_checkpoint(source, tmp_path / "larger", task="retrieval", config=heads, image_size=96)
    assert summary["image_size"] == 96
    student = AlbefForRetrieval.from_pretrained(tmp_path / "larger")
    teacher = MomentumTeacher.from_pretrained(tmp_path / "larger", student)
    convert_checkpoint(source, tmp_path / "same", task="retrieval", config=heads)
    config = AlbefConfig.from_pretrained(tmp_path / "same")
    config.vision_config.image_size = 96
    loaded = AlbefForRetrieval.from_pretrained(tmp_path / "same", config=config)
    raw = load_file(tmp_path / "larger" / "momentum.safetensors")
    assert raw["model.albef.vision_model.embeddings.position_embeddings"].shape == (1, 37, 48)
    for ours, theirs in (
        (student, loaded),
        (teacher.model, MomentumTeacher.from_pretrained(tmp_path / "same", loaded).model),
    ):
        positions = ours.albef.vision_model.embeddings.position_embeddings
        assert positions.shape == (1, 37, 48)
        assert torch.equal(positions, theirs.albef.vision_model.embeddings.position_embeddings)


def test_the_processor_is_saved_with_the_resolution(tmp_path):
    """With BERT's vocabulary, inference needs nothing but the folder."""
    config = AlbefConfig(
        projection_dim=16,
        vision_config={"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64},
        text_config={"hidden_size": 64, "num_hidden_layers": 1, "num_multimodal_layers": 1, "num_attention_heads": 1},
    )
    AlbefForQuestionAnswering(config).save_pretrained(tmp_path / "ours")
    revert_checkpoint(tmp_path / "ours", tmp_path / "original.pth")
    convert_checkpoint(tmp_path / "original.pth", tmp_path / "converted", task="vqa", image_size=64)
    processor = AlbefProcessor.from_pretrained(tmp_path / "converted")
    model = AlbefForQuestionAnswering.from_pretrained(tmp_path / "converted").eval()
    inputs = processor(images=Image.new("RGB", (90, 50)), text="what is this?", return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 64, 64)
    answers = processor.encode_answers(["a dog", "a cat", "nothing"])
    rows, probabilities = model.rank_answers(**inputs, answer_ids=answers["input_ids"], top_k=2)
    assert rows.shape == (1, 2) and probabilities.sum().item() == pytest.approx(1)
    assert model.generate(**inputs, max_new_tokens=4).shape[0] == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_dtype_of_the_weights_is_kept(dtype, state, heads, tmp_path):
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    convert_checkpoint(save(state, tmp_path), tmp_path / "converted", task="retrieval", config=heads)
    weights = load_file(tmp_path / "converted" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {dtype}


def test_the_configuration_may_be_an_object_or_a_file_of_one(state, tmp_path):
    golden = load("retrieval")
    converted = convert_golden(golden, "retrieval", tmp_path)  # gives an AlbefConfig
    config = AlbefConfig.from_pretrained(converted)
    assert config.text_config.hidden_dropout_prob == 0 and config.text_config.num_attention_heads == 4
    convert_checkpoint(
        tmp_path / "original.pth", tmp_path / "again", task="retrieval", config=converted / "config.json"
    )
    assert AlbefConfig.from_pretrained(tmp_path / "again").to_dict() == config.to_dict()


# What is refused


def change(state: dict, **changes) -> dict:
    return {key: value for key, value in {**state, **changes}.items() if value is not None}


def rename(before: str, after: str):
    return lambda state: {after if key == before else key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"task": "vqa"}, "is for the task retrieval, not for vqa. Convert it with --task retrieval"),
        ({"task": "translation"}, "no task translation. Choose one of pretraining, retrieval"),
        ({"config": None}, "width of 48 is not a multiple of 64. Set num_attention_heads"),
        ({"config": {"vision_config": {"num_attention_heads": 5}}}, r"\(48\) must be a multiple of .* \(5\)"),
        (
            {"config": {"vision_config": {"num_hidden_layers": 12}}},
            "num_hidden_layers is 12 in the configuration and 3 in the checkpoint",
        ),
        ({"config": {"projection_dim": 256}}, "projection_dim is 256 in the configuration and 32 in the"),
        ({"config": {"tie_word_embeddings": False}}, "tie_word_embeddings is false in the configuration"),
        (
            {"config": {"num_attention_heads": 4}},
            "no setting num_attention_heads; move it to vision_config or text_config",
        ),
        ({"config": {"vision_config": {"num_heads": 4}}}, "no setting vision_config.num_heads"),
        (
            {"config": {"vision_config": {"num_attention_heads": 0}}},
            "num_attention_heads is 0; it must be at",
        ),
        ({"image_size": 100}, r"\(100\) must be a multiple of patch_size \(16\)"),
        ({"image_size": 0}, "image size is 0. It must be a positive number"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, state, heads, tmp_path):
    config = arguments.pop("config", heads)
    if isinstance(config, dict):
        merged = {
            part: {**ATTENTION_HEADS.get(part, {}), **settings}
            for part, settings in config.items()
            if part in ATTENTION_HEADS
        }
        (tmp_path / "wrong.json").write_text(json.dumps(ATTENTION_HEADS | config | merged))
        config = tmp_path / "wrong.json"
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(
            save(state, tmp_path), tmp_path / "converted", **{"task": "retrieval", "config": config} | arguments
        )
    assert not (tmp_path / "converted").exists()


def test_the_error_for_a_pretraining_checkpoint_says_how_to_load_it(heads, tmp_path):
    source = save(random_state_dict("pretrain_tiny"), tmp_path)
    with pytest.raises(ValueError, match="--task pretraining, then load the folder with AlbefForQuestionAnswering"):
        convert_checkpoint(source, tmp_path / "converted", task="vqa", config=heads)


def test_other_heads_than_those_of_base_size_are_refused(tmp_path):
    shapes = original_shapes("retrieval_base")
    state = {key: torch.empty(shape, dtype=dtype, device="meta") for key, (shape, dtype) in shapes.items()}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"num_attention_heads": 8}}))
    with pytest.raises(ValueError, match="8 attention heads in the text_config, but the original has 12"):
        read_config(state, "retrieval", tmp_path / "config.json")


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda state: change(state, **{"visual_encoder.norm.bias": None}), "has no visual_encoder.norm.bias"),
        (lambda state: change(state, **{"visual_encoder_m.norm.bias": None}), "has no visual_encoder_m.norm.bias"),
        (lambda state: change(state, idx_queue=None), "has no idx_queue"),
        (lambda state: change(state, surprise=torch.zeros(1)), "has an unknown surprise"),
        (rename("itm_head.weight", "itm_heads.weight"), "has no itm_head.weight and has an unknown itm_heads.weight"),
        (
            rename("visual_encoder.blocks.1.norm1.weight", "visual_encoder.blocks.1.norm.weight"),
            r"no visual_encoder.blocks.1.norm1.weight and has an unknown visual_encoder.blocks.1.norm.weight. It is",
        ),
        (
            rename("text_encoder.embeddings.word_embeddings.weight", "text_encoder.embeddings.words"),
            r"no text_encoder.embeddings.word_embeddings.weight and has an unknown text_encoder.embeddings.words\.",
        ),
        (
            lambda state: change(state, **{"text_proj.weight": torch.zeros(32, 7)}),
            r"do not fit together: text_proj.weight: contrastive_head.text_projection.weight \(\(32, 7\) instead of",
        ),
        (
            lambda state: change(state, **{"vision_proj.weight": torch.tensor(1.0)}),
            r"vision_proj.weight has the .*\(\)",
        ),
        (
            lambda state: change(state, queue_ptr=torch.tensor(3)),
            r"queue_ptr has the shape \(\), which no queue of",
        ),
        (
            lambda state: change(state, **{"visual_encoder_m.pos_embed": torch.zeros(1, 16, 48)}),
            r"visual_encoder_m.pos_embed has the shape \(1, 16, 48\). A square image has one position for each patch",
        ),
        (
            lambda state: change(state, **{"text_proj_m.weight": torch.zeros(32, 7)}),
            r"text_proj_m.weight of the momentum model \(model.contrastive_head.text_projection.weight here\)",
        ),
        (
            lambda state: change(state, image_queue=torch.zeros(32, 7)),
            r"text_queue .*queue.text_features here\) is .* instead of",
        ),
        (
            lambda state: change(state, **{"visual_encoder.patch_embed.proj.weight": torch.zeros(4)}),
            r"patch_embed.proj.weight has the shape \(4,\). It must have 4 dimensions",
        ),
        (
            lambda state: change(state, temp=torch.zeros((), dtype=torch.float16)),
            "float16 and torch.float32. Convert all of them",
        ),
        (lambda state: {7: torch.zeros(1)}, "contains a dictionary with 7, not a state dict"),
        (
            lambda state: {
                key.replace("layer.2.", "layer.0."): value for key, value in state.items() if "token_type" not in key
            },
            "it is one of BLIP, which is another model",
        ),
        (
            lambda state: {"backbone.weight": torch.zeros(1)},
            "None of the 1 names in the checkpoint, such as backbone",
        ),
        (lambda state: {}, "contains an empty dict, not a state dict"),
        (lambda state: {"epoch": 3}, "contains a dictionary with epoch, not a state dict"),
        (lambda state: [1, 2], "contains a list, not a state dict"),
        (
            lambda state: change(
                state, **{"text_encoder.embeddings.position_ids": torch.ones(1, 64, dtype=torch.long)}
            ),
            "is not 0, 1, 2, ... as in the original",
        ),
    ],
)
def test_wrong_content_is_named(damage, message, state, heads, tmp_path):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(save(damage(state), tmp_path), tmp_path / "converted", task="retrieval", config=heads)
    assert not (tmp_path / "converted").exists()


def test_weights_that_should_be_tied_and_differ_are_refused(heads, tmp_path):
    for name, key in (
        ("pretrain", "text_encoder.cls.predictions.decoder.weight"),
        ("nlvr", "text_encoder.encoder.layer.3.crossattention.self.key.weight"),
    ):
        state = random_state_dict(f"{name}_tiny")
        state[key] = state[key] + 1
        with pytest.raises(ValueError, match=f"{key} differs from the parameter that the original ties it to"):
            convert_checkpoint(save(state, tmp_path), tmp_path / "converted", task=TASKS[name], config=heads)


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_file_is_refused_and_not_executed(legacy, state, heads, tmp_path):
    content = {"model": state, "extra": Malicious(tmp_path / "was_run")}
    source = save(content, tmp_path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"contains pickled code \(.*system\).* was not loaded"):
        convert_checkpoint(source, tmp_path / "converted", task="retrieval", config=heads)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Malicious(tmp_path / "was_run")))
    with pytest.raises(ValueError):
        convert_checkpoint(tmp_path / "plain.pth", tmp_path / "converted", task="retrieval", config=heads)
    assert not (tmp_path / "was_run").exists()
    torch.load(source, weights_only=False)
    assert (tmp_path / "was_run").exists(), "the file was harmless, so the test proves nothing"


@pytest.mark.parametrize(
    "content, message",
    [
        (lambda whole: whole[: len(whole) // 2], "is truncated after .* bytes. Download it again"),
        (lambda whole: whole[:600_000] + bytes(20_000) + whole[620_000:], "is damaged in .*. Download it again"),
        (lambda whole: b"", "checkpoint.pth is empty. Download it again"),
        (lambda whole: bytes(5000), r"cannot be read .*; its 5,000 bytes start with b'\\x00"),
        (lambda whole: b"<!DOCTYPE html><html>Not found</html>", "not a torch checkpoint; it starts with b'<!DOCTYPE"),
        (lambda whole: bytes(range(256)) * 40, "torch checkpoint"),
    ],
)
def test_a_damaged_file_is_refused(content, message, state, heads, tmp_path):
    source = save(state, tmp_path)
    source.write_bytes(content(source.read_bytes()))
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(source, tmp_path / "converted", task="retrieval", config=heads)


def test_a_folder_that_is_not_empty_is_not_touched(state, heads, tmp_path):
    (tmp_path / "converted").mkdir()
    (tmp_path / "converted" / "momentum.safetensors").write_text("precious")
    with pytest.raises(ValueError, match="not empty"):
        convert_checkpoint(save(state, tmp_path), tmp_path / "converted", task="retrieval", config=heads)
    assert (tmp_path / "converted" / "momentum.safetensors").read_text() == "precious"


def test_the_conversion_back_refuses_what_is_damaged_or_incomplete(state, heads, tmp_path):
    folder = tmp_path / "converted"
    convert_checkpoint(save(state, tmp_path), folder, task="retrieval", config=heads)
    with pytest.raises(ValueError, match="checkpoint.pth exists"):
        revert_checkpoint(folder, tmp_path / "checkpoint.pth")
    weights = load_file(folder / "model.safetensors")
    momentum = load_file(folder / "momentum.safetensors")
    for file in ("momentum", "model"):
        whole = (folder / f"{file}.safetensors").read_bytes()
        (folder / f"{file}.safetensors").write_bytes(b"")
        with pytest.raises(ValueError, match=f"{folder}.* (is empty|cannot be read)"):
            revert_checkpoint(folder, tmp_path / "again.pth")
        (folder / f"{file}.safetensors").write_bytes(whole)
    save_file({key: value for key, value in momentum.items() if "proj" not in key}, folder / "momentum.safetensors")
    with pytest.raises(ValueError, match="momentum.safetensors may belong to another model"):
        revert_checkpoint(folder, tmp_path / "again.pth")
    del weights["itm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="has no itm_head.weight"):
        revert_checkpoint(folder, tmp_path / "again.pth")
    assert not (tmp_path / "again.pth").exists()


def test_the_processor_cuts_texts_where_the_original_does(tmp_path):
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 64}
    config = AlbefConfig(vision_config=sizes, text_config=sizes | {"num_multimodal_layers": 1})
    for task, words, tokens in (
        ("pretraining", 30, 30),
        ("vqa", 50, 512),
        ("nlvr2", 30, 512),
        ("entailment", 30, 512),
    ):
        MODELS[task](config).save_pretrained(tmp_path / f"{task}_ours")
        revert_checkpoint(tmp_path / f"{task}_ours", tmp_path / f"{task}.pth")
        convert_checkpoint(tmp_path / f"{task}.pth", tmp_path / task, task=task)
        processor = AlbefProcessor.from_pretrained(tmp_path / task)
        assert processor.max_words == words
        assert len(processor(text="x" + 60 * " dog dog dog dog")["input_ids"]) == min(words + 1, tokens)


# The command line


def test_the_command_converts_both_ways(state, heads, tmp_path, run):
    source = save({"model": state, "epoch": 1}, tmp_path)
    command = [sys.executable, "-m", "albef_hf", "convert"]
    there = [str(source), str(tmp_path / "converted"), "--task", "retrieval", "--config", str(heads)]
    result = subprocess.run([*command, *there], capture_output=True, text=True, check=True)
    assert "dropped epoch: training state" in result.stdout
    assert f"{len(state)} keys" in result.stdout and "64 pixels, 4 attention heads for images" in result.stdout
    assert "convert: 100%" in result.stderr
    assert_colleagues_can_read(tmp_path / "converted")
    run("convert", tmp_path / "converted", tmp_path / "again.pth", "--reverse")
    again = torch.load(tmp_path / "again.pth", weights_only=True)["model"]
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items())


def test_the_command_reports_errors_in_one_line(tmp_path, run, monkeypatch):
    monkeypatch.delenv("ALBEF_TRACEBACK")
    with pytest.raises(SystemExit, match="error: The file .* does not exist"):
        run("convert", tmp_path / "none.pth", tmp_path / "converted", "--task", "vqa")
    with pytest.raises(SystemExit, match="is a folder. Use --reverse"):
        run("convert", tmp_path, tmp_path / "converted", "--task", "vqa")
    for arguments in (["none.pth", "converted"], ["model", "again.pth", "--reverse", "--task", "vqa"]):
        with pytest.raises(SystemExit):
            run("convert", *arguments)
    with pytest.raises(SystemExit, match="error: "):
        run("convert", tmp_path / "nowhere", tmp_path / "again.pth", "--reverse")
    AlbefConfig(architectures=["AlbefModel"]).save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit, match="contains AlbefModel. The original has AlbefForPreTraining"):
        run("convert", tmp_path / "model", tmp_path / "original.pth", "--reverse")


def test_a_folder_with_the_name_of_a_published_checkpoint_is_not_converted(tmp_path, run, monkeypatch):
    (tmp_path / "flickr30k").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("albef_hf.conversion.download.cached_checkpoint", lambda file: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("convert", "flickr30k", tmp_path / "converted")


def test_an_image_encoder_that_the_original_does_not_have_is_refused(config, tmp_path):
    tiny = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}
    vision = Dinov2Config(**tiny, patch_size=8)
    AlbefForRetrieval(AlbefConfig(vision_config=vision, text_config=config.text_config)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has a dinov2 as its image encoder, but the original has its own ViT"):
        revert_checkpoint(tmp_path, tmp_path / "original.pth")


@pytest.mark.parametrize("text", ["text_pooling", "position_offset"])
def test_text_models_that_the_original_does_not_have_are_refused(config, tmp_path, text):
    if text == "text_pooling":
        config.text_pooling = "mean"
    else:
        config.text.position_offset = 2
    MODELS["pretraining"](config).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=f"{text}=(mean|2).*the original reads"):
        revert_checkpoint(tmp_path / "model", tmp_path / "original.pth")


def test_options_are_accepted_with_underscores_and_hyphens(monkeypatch):
    calls = []
    monkeypatch.setattr(convert, "_from_original", lambda options: calls.append((options.image_size, options.repo_id)))
    for separator in "_-":
        size, name = f"--image{separator}size", f"--repo{separator}id"
        convert.main(["a.pth", "out", "--task", "vqa", size, "64", name, "you/albef"])
    assert calls == [(64, "you/albef")] * 2
