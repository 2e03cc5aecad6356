"""The converter: what goes in comes out again, nothing is left out without a word, and bad files are refused."""

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
from original import TASKS, convert, load, original_shapes, random_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file

from albef_hf import (
    AlbefConfig,
    AlbefForPreTraining,
    AlbefForQuestionAnswering,
    AlbefForRetrieval,
    AlbefProcessor,
    MomentumTeacher,
)
from albef_hf.conversion.convert import (
    MODELS,
    _queue_names,
    _teacher_names,
    convert_checkpoint,
    main,
    name_table,
    read_config,
    revert_checkpoint,
)

HEADS = {"vision_config": {"num_attention_heads": 4}, "text_config": {"num_attention_heads": 4}}


@pytest.fixture
def heads(tmp_path) -> Path:
    """What the shapes of the tiny models do not tell, as a file."""
    (tmp_path / "heads.json").write_text(json.dumps(HEADS))
    return tmp_path / "heads.json"


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return random_state_dict("retrieval_tiny")


def save(content: object, folder: Path, **kwargs) -> Path:
    torch.save(content, folder / "checkpoint.pth", **kwargs)
    return folder / "checkpoint.pth"


# There and back


@pytest.mark.parametrize("size", ["tiny", "tiny12"])
@pytest.mark.parametrize("name", TASKS)
def test_there_and_back_is_the_identity(name, size, heads, tmp_path):
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
    assert not teacher, "the teacher belongs into momentum.safetensors"


@pytest.mark.parametrize("name", TASKS)
def test_the_table_covers_base_size(name):
    """Every key of the original's base models has its place, of the right shape, and every parameter its key."""
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
    for key, names in (table | _teacher_names(task, table)).items():
        parts = [ours[name.removeprefix("model.")] for name in names]
        assert list((torch.cat(parts) if len(parts) > 1 else parts[0]).shape) == shapes[key][0], key
    assert {name for names in table.values() for name in names} | {"mlm_head.out_proj.weight"} >= ours.keys()
    dropped = {"temp", "text_proj.weight", "text_proj.bias"} if name == "pretrain_nlvr" else set()
    unknown = shapes.keys() - table.keys() - _teacher_names(task, table).keys() - _queue_names(task).keys() - dropped
    assert all(key.endswith("position_ids") for key in unknown)


def test_a_trained_model_of_ours_becomes_an_original_checkpoint(heads, tmp_path):
    """The way back also takes what training has written, and the converter takes it again."""
    config = AlbefConfig(
        projection_dim=16,
        vision_config={**HEADS["vision_config"], "hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 96},
        text_config={**HEADS["text_config"], "hidden_size": 48, "num_hidden_layers": 1, "intermediate_size": 96},
    )
    student = AlbefForPreTraining(config)
    student.save_pretrained(tmp_path / "trained")
    MomentumTeacher(student, queue_size=6).save_pretrained(tmp_path / "trained")
    revert_checkpoint(tmp_path / "trained", tmp_path / "original.pth")
    convert_checkpoint(tmp_path / "original.pth", tmp_path / "again", task="pretraining", config=heads)
    again = AlbefForPreTraining.from_pretrained(tmp_path / "again")
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in student.state_dict().items())
    teacher = MomentumTeacher.from_pretrained(tmp_path / "again", again)
    saved = MomentumTeacher.from_pretrained(tmp_path / "trained", student)
    assert all(torch.equal(weight, teacher.state_dict()[name]) for name, weight in saved.state_dict().items())


# What a file may hold


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
    training = {key for key, reason in summary["dropped"].items() if "training" in reason}
    assert training == ({"optimizer", "config", "args", "epoch"} if wrapped == "training" else set())
    student = AlbefForRetrieval.from_pretrained(tmp_path / "converted")
    assert torch.equal(student.itm_head.weight, state["itm_head.weight"])


@pytest.mark.parametrize("queues", [True, False])
def test_a_checkpoint_may_have_lost_its_teacher(queues, state, heads, tmp_path):
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


def test_the_processor_comes_with_it_and_says_the_resolution(tmp_path):
    """With BERT's vocabulary, the folder is all that inference needs."""
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
    rows, probabilities = model.rank_answers(**inputs, answer_ids=answers["input_ids"], k=2)
    assert rows.shape == (1, 2) and probabilities.sum().item() == pytest.approx(1)
    assert model.generate(**inputs, max_new_tokens=4).shape[0] == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_type_of_the_weights_stays(dtype, state, heads, tmp_path):
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    convert_checkpoint(save(state, tmp_path), tmp_path / "converted", task="retrieval", config=heads)
    weights = load_file(tmp_path / "converted" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {dtype}


def test_the_configuration_may_be_an_object_or_a_file_of_one(state, tmp_path):
    golden = load("retrieval")
    converted = convert(golden, "retrieval", tmp_path)  # gives an AlbefConfig
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
        ({"task": "vqa"}, "is of the task retrieval, not of vqa: convert it with --task retrieval"),
        ({"task": "captioning"}, "no task captioning; there are pretraining, retrieval"),
        ({"config": None}, "width of 48 is no multiple of the usual 64 a head: give num_attention_heads"),
        ({"config": {"vision_config": {"num_attention_heads": 5}}}, r"\(48\) must be a multiple of .* \(5\)"),
        (
            {"config": {"vision_config": {"num_hidden_layers": 12}}},
            "num_hidden_layers is 12 there, and 3 in the checkp",
        ),
        ({"config": {"projection_dim": 256}}, "projection_dim is 256 there, and 32 in the checkpoint"),
        ({"config": {"tie_word_embeddings": False}}, "tie_word_embeddings is false there"),
        (
            {"config": {"num_attention_heads": 4}},
            "no setting num_attention_heads: it belongs into vision_config or text",
        ),
        ({"config": {"vision_config": {"num_heads": 4}}}, "no setting vision_config.num_heads"),
        (
            {"config": {"vision_config": {"num_attention_heads": 0}}},
            "num_attention_heads is 0: it has to be at",
        ),
        ({"image_size": 100}, r"\(100\) must be a multiple of patch_size \(16\)"),
        ({"image_size": 0}, "image size is 0; it is a positive number"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, state, heads, tmp_path):
    config = arguments.pop("config", heads)
    if isinstance(config, dict):
        merged = {part: {**HEADS.get(part, {}), **settings} for part, settings in config.items() if part in HEADS}
        (tmp_path / "wrong.json").write_text(json.dumps(HEADS | config | merged))
        config = tmp_path / "wrong.json"
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(
            save(state, tmp_path), tmp_path / "converted", **{"task": "retrieval", "config": config} | arguments
        )
    assert not (tmp_path / "converted").exists()


def test_a_pretraining_checkpoint_for_another_task_is_told_the_way(heads, tmp_path):
    source = save(random_state_dict("pretrain_tiny"), tmp_path)
    with pytest.raises(ValueError, match="--task pretraining, then AlbefForQuestionAnswering.from_pretrained"):
        convert_checkpoint(source, tmp_path / "converted", task="vqa", config=heads)


def test_other_heads_than_those_of_base_size_are_refused(tmp_path):
    shapes = original_shapes("retrieval_base")
    state = {key: torch.empty(shape, dtype=dtype, device="meta") for key, (shape, dtype) in shapes.items()}
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"num_attention_heads": 8}}))
    with pytest.raises(ValueError, match="text_config 8 attention heads; at a width of 768, .* the original has 12"):
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
            r"no visual_encoder.blocks.1.norm1.weight and has an unknown visual_encoder.blocks.1.norm.weight: it is",
        ),
        (
            rename("text_encoder.embeddings.word_embeddings.weight", "text_encoder.embeddings.words"),
            "has no text_encoder.embeddings.word_embeddings.weight and has an unknown text_encoder.embeddings.words:",
        ),
        (
            lambda state: change(state, **{"text_proj.weight": torch.zeros(32, 7)}),
            r"do not go together: text_proj.weight: contrastive_head.text_projection.weight \(\(32, 7\) instead of",
        ),
        (
            lambda state: change(state, **{"vision_proj.weight": torch.tensor(1.0)}),
            r"vision_proj.weight has the .*\(\)",
        ),
        (
            lambda state: change(state, queue_ptr=torch.tensor(3)),
            r"queue_ptr has the shape \(\), which is none of a q",
        ),
        (
            lambda state: change(state, **{"visual_encoder_m.pos_embed": torch.zeros(1, 16, 48)}),
            r"visual_encoder_m.pos_embed has the shape \(1, 16, 48\); a square image has one position for each patch",
        ),
        (
            lambda state: change(state, **{"text_proj_m.weight": torch.zeros(32, 7)}),
            "of the momentum model, model.contr.* It comes from text_proj_m.weight",
        ),
        (lambda state: change(state, image_queue=torch.zeros(32, 7)), "queue.text_features is .* where .* fits"),
        (
            lambda state: change(state, **{"visual_encoder.patch_embed.proj.weight": torch.zeros(4)}),
            r"patch_embed.proj.weight has the shape \(4,\), and should have 4 dimensions",
        ),
        (
            lambda state: change(state, temp=torch.zeros((), dtype=torch.float16)),
            "float16 and torch.float32; a model has",
        ),
        (lambda state: {7: torch.zeros(1)}, "holds a dictionary with 7, not a state dict"),
        (
            lambda state: {key: value for key, value in state.items() if "token_type" not in key},
            "LAVIS and BLIP leave them out",
        ),
        (lambda state: {"backbone.weight": torch.zeros(1)}, "None of the original's names .* such as backbone.weight"),
        (lambda state: {}, "holds an empty dict, not a state dict"),
        (lambda state: {"epoch": 3}, "holds a dictionary with epoch, not a state dict"),
        (lambda state: [1, 2], "holds a list, not a state dict"),
        (
            lambda state: change(
                state, **{"text_encoder.embeddings.position_ids": torch.ones(1, 64, dtype=torch.long)}
            ),
            "does not count the positions",
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
        with pytest.raises(ValueError, match=f"{key} differs from the parameter that it is tied to"):
            convert_checkpoint(save(state, tmp_path), tmp_path / "converted", task=TASKS[name], config=heads)


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_file_is_refused_and_nothing_of_it_runs(legacy, state, heads, tmp_path):
    content = {"model": state, "extra": Malicious(tmp_path / "was_run")}
    source = save(content, tmp_path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="asks for .*system .* Nothing of it was run"):
        convert_checkpoint(source, tmp_path / "converted", task="retrieval", config=heads)
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Malicious(tmp_path / "was_run")))
    with pytest.raises(ValueError):
        convert_checkpoint(tmp_path / "plain.pth", tmp_path / "converted", task="retrieval", config=heads)
    assert not (tmp_path / "was_run").exists()
    torch.load(source, weights_only=False)
    assert (tmp_path / "was_run").exists(), "the file was harmless, so the test says nothing"


@pytest.mark.parametrize(
    "content, message",
    [
        (lambda whole: whole[: len(whole) // 2], "breaks off after .* bytes: download it again"),
        (lambda whole: whole[:600_000] + bytes(20_000) + whole[620_000:], "is damaged in .*: download it again"),
        (lambda whole: b"", "checkpoint.pth is empty: download it again"),
        (lambda whole: bytes(5000), r"cannot be read .*; its 5,000 bytes start with b'\\x00"),
        (lambda whole: b"<!DOCTYPE html><html>Not found</html>", "not a torch checkpoint; it starts with b'<!DOCTYPE"),
        (lambda whole: bytes(range(256)) * 40, "torch checkpoint"),
    ],
)
def test_a_file_that_is_no_whole_checkpoint_is_refused(content, message, state, heads, tmp_path):
    source = save(state, tmp_path)
    source.write_bytes(content(source.read_bytes()))
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(source, tmp_path / "converted", task="retrieval", config=heads)


def test_a_folder_that_holds_something_is_left_alone(state, heads, tmp_path):
    (tmp_path / "converted").mkdir()
    (tmp_path / "converted" / "momentum.safetensors").write_text("precious")
    with pytest.raises(ValueError, match="not empty"):
        convert_checkpoint(save(state, tmp_path), tmp_path / "converted", task="retrieval", config=heads)
    assert (tmp_path / "converted" / "momentum.safetensors").read_text() == "precious"


def test_what_would_be_lost_on_the_way_back_is_refused(state, heads, tmp_path):
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


def test_the_command_line_there_and_back(state, heads, tmp_path):
    source = save({"model": state, "epoch": 1}, tmp_path)
    command = [sys.executable, "-m", "albef_hf.conversion.convert"]
    there = [str(source), str(tmp_path / "converted"), "--task", "retrieval", "--config", str(heads)]
    result = subprocess.run([*command, *there], capture_output=True, text=True, check=True)
    assert "dropped epoch: state of a training" in result.stdout
    assert f"{len(state)} keys" in result.stdout and "64 pixels, 4 attention heads for images" in result.stdout
    assert "convert: 100%" in result.stderr
    assert_colleagues_can_read(tmp_path / "converted")
    back = [str(tmp_path / "converted"), str(tmp_path / "again.pth"), "--reverse"]
    subprocess.run([*command, *back], capture_output=True, check=True)
    again = torch.load(tmp_path / "again.pth", weights_only=True)["model"]
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items())


def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match="error: There is no file"):
        main([str(tmp_path / "none.pth"), str(tmp_path / "converted"), "--task", "vqa"])
    with pytest.raises(SystemExit, match="is a folder; .* goes --reverse"):
        main([str(tmp_path), str(tmp_path / "converted"), "--task", "vqa"])
    for arguments in (["none.pth", "converted"], ["model", "again.pth", "--reverse", "--task", "vqa"]):
        with pytest.raises(SystemExit):
            main(arguments)
    with pytest.raises(SystemExit, match="error: "):
        main([str(tmp_path / "nowhere"), str(tmp_path / "again.pth"), "--reverse"])
    AlbefConfig(architectures=["AlbefModel"]).save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit, match="holds AlbefModel; the original has AlbefForPreTraining"):
        main([str(tmp_path / "model"), str(tmp_path / "original.pth"), "--reverse"])
