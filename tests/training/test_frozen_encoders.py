"""Frozen encoders: no gradient, no optimizer state, shared with the teacher, in evaluation mode, in every training."""

import pytest
import torch
from paths import TESTS
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_pretraining import records_of, small_run, weights_of
from task_rows import small
from two_processes import run_on_two_processes

from albef_hf import AlbefForPreTraining, AlbefForRetrieval, MomentumTeacher
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.throughput import FlopCounter, relative_distance

BOTH = ("albef.vision_model", "albef.text_model")


def test_frozen_encoders_stay_in_evaluation_mode_without_gradients(config, batch):
    config.text_config.hidden_dropout_prob = 0.5
    model = AlbefForPreTraining(config).train()
    model.freeze(*BOTH)
    for mode in (True, False, True):
        model.train(mode)
        assert not any(part.training for name in BOTH for part in model.get_submodule(name).modules())
        assert model.training == model.albef.multimodal_model.layers[0].training == mode
    model(**batch).loss.backward()
    without = {name for name, weight in model.named_parameters() if weight.grad is None}
    assert without == {name for name, _ in model.named_parameters() if name.startswith(BOTH)}
    assert model.mlm_head.out_proj.weight.grad is None  # tied to the word embeddings
    assert model.contrastive_head.text_projection.weight.grad is not None


def test_the_teacher_shares_what_is_frozen(model, batch):
    model.freeze("albef.vision_model")
    teacher = MomentumTeacher(model, momentum=0.5, queue_size=4)
    own = dict(model.named_parameters())
    for name, weight in teacher.model.named_parameters():
        assert (weight is own[name]) == name.startswith("albef.vision_model"), name
    teacher.train()
    assert not teacher.model.albef.vision_model.training and teacher.model.albef.text_model.training
    before = {name: weight.clone() for name, weight in own.items()}
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 1
    teacher.update(model)
    for name, weight in teacher.model.named_parameters():
        moved = 0 if name.startswith("albef.vision_model") else 0.5
        assert torch.allclose(weight, before[name] + moved), name
    assert torch.isfinite(model(**batch, teacher_outputs=teacher(**batch), alpha=0.4).loss)


def test_a_bfloat16_student_keeps_its_weights(model):
    model.to(torch.bfloat16).freeze("albef.vision_model")
    teacher = MomentumTeacher(model, queue_size=4)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in teacher.model.parameters()} == {torch.float32}


def test_running_statistics_of_a_trained_encoder_are_copied(model):
    model.albef.vision_model.bn = torch.nn.BatchNorm1d(3)
    teacher = MomentumTeacher(model, queue_size=4)
    model.albef.vision_model.bn.train()(torch.randn(5, 3) + 4)
    teacher.update(model)
    for name, buffer in model.albef.vision_model.bn.named_buffers():
        assert torch.equal(teacher.model.albef.vision_model.bn.get_buffer(name), buffer), name


@pytest.fixture
def saved(model, tmp_path):
    """Save a student and its teacher, which differs wherever it may, and return that teacher."""

    def save(*frozen: str) -> MomentumTeacher:
        model.freeze(*frozen)
        teacher = MomentumTeacher(model, queue_size=4)
        with torch.no_grad():
            for weight, own in zip(teacher.model.parameters(), model.parameters(), strict=True):
                if weight is not own:
                    weight += 0.01
        model.save_pretrained(tmp_path)
        teacher.save_pretrained(tmp_path)
        return teacher

    return save


@pytest.mark.parametrize("then", [(), ("albef.vision_model",), BOTH], ids=["trained", "image", "both"])
@pytest.mark.parametrize("first", [(), ("albef.vision_model",), BOTH], ids=["trained", "image", "both"])
@pytest.mark.parametrize("head", [AlbefForPreTraining, AlbefForRetrieval])
def test_a_teacher_is_loaded_from_old_and_new_files(saved, tmp_path, first, then, head):
    """What either training froze is the student's; everything else is the teacher's."""
    teacher = saved(*first)
    names = load_file(tmp_path / "momentum.safetensors").keys()
    assert not [name for name in names for part in first if part in name]
    if "albef.text_model" in first:
        assert "model.mlm_head.out_proj.weight" not in names  # which is tied to the word embeddings
    with safe_open(tmp_path / "momentum.safetensors", "pt") as file:
        assert ("shared" in file.metadata()) == bool(first)
    student = head.from_pretrained(tmp_path)
    student.freeze(*then)
    loaded = MomentumTeacher.from_pretrained(tmp_path, student)
    frozen = {id(w) for part in (*first, *then) for w in student.get_submodule(part).parameters()}
    own, expected = dict(student.named_parameters()), dict(teacher.model.named_parameters())
    for name, weight in loaded.model.named_parameters():
        is_frozen = id(own[name]) in frozen
        assert torch.equal(weight, own[name] if is_frozen else expected[name]), name
        assert (weight is own[name]) == name.startswith(then)


def test_a_weight_that_is_missing_without_being_frozen_is_still_named(saved, tmp_path):
    saved("albef.vision_model")
    file = tmp_path / "momentum.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    weights = {name: w for name, w in load_file(file).items() if "text_model.layers.0" not in name}
    save_file(weights, file, metadata)
    with pytest.raises(ValueError, match="missing: .*text_model.layers.0"):
        MomentumTeacher.from_pretrained(tmp_path, AlbefForPreTraining.from_pretrained(tmp_path))


def test_a_frozen_pretraining(pretrain, tmp_path):
    pretrain(steps=1).rename(tmp_path / "start")
    folder = pretrain("--model", tmp_path / "start", "--freeze", "image_encoder", "text_encoder", steps=3)
    for part, moves in (("albef.vision_model", False), ("albef.text_model", False), ("albef.multimodal", True)):
        before, after = weights_of(tmp_path / "start", part), weights_of(folder, part)
        assert before and any(not torch.equal(before[name], after[name]) for name in before) == moves, part
    optimizer = torch.load(folder / "checkpoints" / "step_3" / "optimizer.pt", weights_only=True)["optimizer"]
    trained = [n for n, w in AlbefForPreTraining.from_pretrained(folder).named_parameters() if not n.startswith(BOTH)]
    assert len(optimizer["state"]) == len(trained)
    assert not [n for n in load_file(folder / "checkpoints" / "step_3" / "teacher.safetensors") if "vision_model" in n]
    records = [record for record in records_of(folder) if "loss" in record]
    assert records[-1]["teacher_distance"] > 0


@pytest.mark.parametrize("task", ["entailment", "grounding", "nlvr2", "retrieval", "text_assignment", "vqa"])
def test_every_task_trains_with_frozen_encoders(task, run, pretrained, tmp_path):
    options = small(pretrained, tmp_path / "tuned")
    run("finetune", task, *options, "--freeze", "image_encoder", "text_encoder", "--max_steps", 1)
    for part in BOTH:
        before, after = weights_of(pretrained, part), weights_of(tmp_path / "tuned", part)
        assert before and all(torch.equal(before[name], after[name]) for name in before)


def test_matching_is_trained_on_a_contrast_that_stays(run, pretrained, tmp_path):
    frozen = ["--freeze", "image_encoder", "text_encoder", "contrastive_head", "--max_steps", 2]
    options = [*small(pretrained, tmp_path / "tuned"), *frozen, "--itm_contrast_weight", 2]
    run("finetune", "retrieval", *options, "--weight_decay", 0.5, "--alpha", 0.4)
    for part in ("albef.vision_model", "albef.text_model", "contrastive_head", "albef.multimodal_model"):
        before, after = weights_of(pretrained, part), weights_of(tmp_path / "tuned", part)
        moves = any(not torch.equal(before[name], after[name]) for name in before)
        assert before and moves == (part == "albef.multimodal_model"), part
    losses = [record for record in records_of(tmp_path / "tuned") if "loss" in record][-1]
    parts = losses["loss_itc"] + losses["loss_itm"] + 2 * losses["loss_itm_contrast"]
    assert losses["loss"] == pytest.approx(parts, rel=1e-4)
    with pytest.raises(ValueError, match="contrastive_head, which AlbefForQuestionAnswering does not have"):
        run("finetune", "vqa", *small(pretrained, tmp_path / "vqa"), *frozen)


def test_two_processes_train_with_frozen_encoders(tmp_path):
    options = [*small_run(tmp_path / "out", 4), "--freeze", "image_encoder", "text_encoder"]
    printed = run_on_two_processes(TESTS / "distributed_training.py", *options, folder=tmp_path)
    assert "equal on both of 2 processes" in printed


def test_a_frozen_encoder_counts_once_and_not_in_the_distance(model, batch):
    whole = FlopCounter(model, None).count(batch)
    image_only = FlopCounter(model.albef.vision_model, None).count({"pixel_values": batch["pixel_values"]}) // 3
    model.freeze("albef.vision_model")
    assert whole - FlopCounter(model, None).count(batch) == 2 * image_only > 0
    teacher = MomentumTeacher(model, queue_size=4)
    assert relative_distance(model, teacher.model) == 0


def test_counting_changes_no_running_statistics(config, batch):
    model = AlbefForPreTraining(config).train()
    model.albef.vision_model.norm = torch.nn.BatchNorm1d(5)  # of the tokens of an image
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert FlopCounter(model, None).count(batch) > 0
    assert before and all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    model(**batch)
    assert not all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": ["vision"]}, "freeze contains 'vision'; choose from image_encoder, text_encoder"),
        ({"freeze": ["image_encoder"], "image_encoder_learning_rate": 1e-5}, "has no effect on a frozen encoder"),
        ({"freeze": ["image_encoder", "text_encoder"], "layer_decay": 0.7}, "layer_decay has no effect"),
        ({"text_encoder_learning_rate": 0.0}, "must be positive.*set freeze text_encoder"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0; it must be above 0"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5; it must be above 0 and at most 1"),
    ],
)
def test_options_without_effect_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainingArguments(**options)


def test_the_description_counts_what_is_frozen(pretrain, capsys):
    pretrain("--freeze", "text_encoder", steps=1)
    text = capsys.readouterr()
    assert (
        "1.1 million parameters (0.1 trained, 1.0 frozen), teacher that shares what is frozen, queue of 24 pairs"
        in text.out + text.err
    )
