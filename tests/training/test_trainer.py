"""The training loop, from the command line to the files that it writes."""

import functools
import inspect
import itertools
import json
import os
import re

import pytest
import torch
from accelerate.utils import TorchDynamoPlugin
from conftest import assert_colleagues_can_read
from paths import TESTS
from PIL import Image
from small_pretraining import TINY_MODEL, records_of, small_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch._dynamo.utils import counters
from two_processes import run_on_two_processes

from albef_hf import AlbefForPreTraining, AlbefProcessor, MomentumTeacher, matching_albef
from albef_hf.data import PretrainingCollator, Scenes
from albef_hf.training import compilation, logging
from albef_hf.training.curves import plot_curves
from albef_hf.training.running_statistics import RunningStatistics
from albef_hf.training.trainer import Trainer

LONG = bool(os.environ.get("ALBEF_LONG"))


def test_output_directory_of_a_run(pretrain, monkeypatch):
    monkeypatch.setattr(logging, "plot_curves", plot_curves)  # which others do without
    folder = pretrain("--eval_steps", "2")
    assert_colleagues_can_read(folder)
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "momentum.safetensors",
        "processor_config.json",
        "tokenizer.json",
    } < names
    assert {"log.jsonl", "curves.png", "metrics.json", "options.yaml"} < names
    records = records_of(folder)
    (events,) = (folder / "tensorboard").glob("*/events.out*")
    logged = EventAccumulator(str(events)).Reload().Scalars("loss_itc")
    assert [(event.step, pytest.approx(event.value)) for event in logged] == [
        (record["step"], record["loss_itc"]) for record in records if "loss_itc" in record
    ]
    assert [record["step"] for record in records] == [2, 2, 4, 4]
    for name in (
        "loss_itc", "loss_itm", "loss_mlm", "temperature", "gradient_norm", "mutual_information_bound",
        "learning_rate", "alpha", "pairs_per_second", "data_wait_share", "nonfinite_steps", "image_broken",
        "tflops_per_second",
    ):  # fmt: skip
        assert name in records[0]
    assert [record.get("queue_age") for record in records] == [2, None, 3, None]  # 24 keys, 8 of them new in a step
    assert 0 < records[0]["teacher_distance"] < records[2]["teacher_distance"] < 0.1
    assert records[0]["mutual_information_bound"] == pytest.approx(
        torch.tensor(32.0).log().item() - records[0]["info_nce"]
    )
    assert (
        "itm_image_r10" in records[1] and json.loads((folder / "metrics.json").read_text()).keys() < records[3].keys()
    )
    assert Image.open(folder / "curves.png").size[0] > 800

    student = AlbefForPreTraining.from_pretrained(folder)
    processor = AlbefProcessor.from_pretrained(folder)
    teacher = MomentumTeacher.from_pretrained(folder, student)
    assert teacher.queue.pointer == 4 * 8 % 24
    assert not torch.equal(teacher.model.itm_head.weight, student.itm_head.weight)
    inputs = processor(images=Scenes(1)[0]["image"], text="a red star", return_tensors="pt")
    assert torch.isfinite(student(**inputs).itm_logits).all()


def test_two_runs_with_one_seed_are_the_same_and_another_seed_is_not(pretrain, tmp_path):
    losses = []
    for seed in ("1", "1", "2"):
        losses.append([record["loss"] for record in records_of(pretrain("--seed", seed)) if "loss" in record])
    assert losses[0] == losses[1] != losses[2]


def test_training_continues_from_a_saved_model_with_its_teacher(pretrain, tmp_path, monkeypatch):
    folder = pretrain()
    before = MomentumTeacher.from_pretrained(folder, AlbefForPreTraining.from_pretrained(folder))
    folder.rename(tmp_path / "first")
    seen = []
    student_step = Trainer._student_step

    def watched(self, *arguments):
        seen.append((self.student.training, self.teacher.model.training))
        return student_step(self, *arguments)

    monkeypatch.setattr(Trainer, "_student_step", watched)
    rates = ["--learning_rate", "1e-12", "--min_learning_rate", "1e-13"]
    after = pretrain("--model", tmp_path / "first", *rates, steps=1)
    student = AlbefForPreTraining.from_pretrained(after)
    teacher = MomentumTeacher.from_pretrained(after, student)
    assert teacher.queue.pointer == (before.queue.pointer + 8) % 24
    assert seen == [(True, True)]
    expected = 0.995 * before.model.itm_head.weight + 0.005 * student.itm_head.weight
    assert torch.allclose(teacher.model.itm_head.weight, expected, atol=1e-7)
    MomentumTeacher(student, queue_size=0).save_pretrained(tmp_path / "first")
    after = pretrain("--model", str(tmp_path / "first"), "--queue_size", "0", steps=1)
    assert not any("queue_age" in record for record in records_of(after))


def test_the_loop_clamps_the_temperature(pretrain, tmp_path, monkeypatch):
    model = AlbefForPreTraining.from_pretrained(pretrain())
    with torch.no_grad():
        model.contrastive_head.temperature.fill_(0.9)
    model.save_pretrained(tmp_path / "hot")
    AlbefProcessor.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "hot")
    folder = pretrain("--model", str(tmp_path / "hot"), steps=1)
    assert AlbefForPreTraining.from_pretrained(folder).contrastive_head.temperature.item() == 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        ["--gradient_accumulation_steps", "2"],
        ["--mixed_precision", "bf16", "--attn_implementation", "eager"],
        ["--gradient_checkpointing", "--no_teacher_dropout", "--max_grad_norm", "1"],
        ["--dataloader_num_workers", "2", "--alpha", "0", "--queue_size", "0", "--hardness_strength", "0"],
        ["--queue_size", "5", "--scenes_wrong_share", "0.2", "--scenes_vague_share", "0.2", "--validation_size", "0"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_way_to_train(pretrain, arguments):
    folder = pretrain(*arguments)
    records = [record for record in records_of(folder) if "loss" in record]
    assert all(record["loss"] is not None and record["nonfinite_steps"] == 0 for record in records)
    AlbefForPreTraining.from_pretrained(folder)


def test_logits_that_are_not_computed_with_alpha_0_change_nothing(pretrain, monkeypatch):
    options = ["--alpha", "0", "--no_teacher_dropout", "--gather_keys", "--gradient_accumulation_steps", "2"]
    forward = MomentumTeacher.forward
    outputs = []

    def with_logits(teacher, alpha, **batch):
        outputs.append(forward(teacher, **batch))
        return outputs[-1]

    def without(teacher, **batch):
        outputs.append(forward(teacher, **batch))
        return outputs[-1]

    logs = []
    for patched in (with_logits, without):
        monkeypatch.setattr(MomentumTeacher, "forward", patched)
        records = records_of(pretrain(*options))
        logs.append([[record.get(name) for name in ("loss", "loss_mlm", "gradient_norm")] for record in records])
    assert logs[0] == logs[1] and logs[0][0][0]
    assert {output.logits is None for output in outputs[: len(outputs) // 2]} == {False}
    assert {output.logits is None for output in outputs[len(outputs) // 2 :]} == {True}


def eager_graphs(plugin: type, backend: str, **options) -> TorchDynamoPlugin:
    assert backend == "inductor"
    return plugin(backend="eager", **options)


def test_compiled_models_are_three_graphs_and_compute_and_save_the_same(pretrain, monkeypatch):
    """The teacher, and the student without and with soft targets; without dropout, whose draws differ when compiled.

    Models are traced and guarded as ever, but their graphs are run by PyTorch instead of by generated C++, which takes
    minutes to compile.
    """
    if not LONG:
        monkeypatch.setattr(compilation, "TorchDynamoPlugin", functools.partial(eager_graphs, TorchDynamoPlugin))
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    counters.clear()
    text_config = {**TINY_MODEL["text_config"], "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model_config = json.dumps({**TINY_MODEL, "text_config": text_config})
    results = []
    for arguments in (["--torch_compile"], []):
        folder = pretrain("--model_config", model_config, "--logging_steps", "1", *arguments, steps=3)
        assert counters["stats"].pop("unique_graphs", 0) == (3 if arguments else 0)
        assert not counters["graph_break"]
        student, report = AlbefForPreTraining.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        teacher = MomentumTeacher.from_pretrained(folder, student)
        losses = [record["loss"] for record in records_of(folder) if "loss" in record]
        results.append((losses, student.state_dict(), teacher.state_dict()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-4)
    for compiled, plain in zip(results[0][1:], results[1][1:], strict=True):
        for name, weight in plain.items():
            assert torch.allclose(compiled[name], weight, atol=2e-4), name


def test_non_finite_steps_are_skipped_and_a_run_of_them_ends_the_training(pretrain, tmp_path, monkeypatch):
    reader, batches = PretrainingCollator.__call__, itertools.count(1)

    def spoiled(self, samples):
        batch = reader(self, samples)
        if next(batches) >= 3:
            batch["pixel_values"] = batch["pixel_values"].float()
            batch["pixel_values"][0, 0, 0, 0] = float("nan")
        return batch

    kept, end_step = [], RunningStatistics.end_step

    def recorded(self, is_finite):
        kept.append(bool(is_finite))
        end_step(self, is_finite)

    monkeypatch.setattr(PretrainingCollator, "__call__", spoiled)
    monkeypatch.setattr(RunningStatistics, "end_step", recorded)
    folder = pretrain("--logging_steps", "1")
    assert kept == [True, True, False, False]
    records = [record for record in records_of(folder) if "loss" in record]
    assert [record["nonfinite_steps"] for record in records] == [0, 0, 1, 2]
    assert records[1]["loss"] is not None and records[2]["loss"] is None
    student = AlbefForPreTraining.from_pretrained(folder)
    teacher = MomentumTeacher.from_pretrained(folder, student)
    assert teacher.queue.pointer == 2 * 8 % 24  # two of four steps did not reach the queue
    assert all(torch.isfinite(weight).all() for weight in (*student.parameters(), *teacher.parameters()))
    with pytest.raises(RuntimeError, match="3 steps in a row had a non-finite loss"):
        pretrain("--max_nonfinite_steps", "3", "--output_dir", str(tmp_path / "stopped"), steps=9)
    stopped = AlbefForPreTraining.from_pretrained(tmp_path / "stopped")
    assert all(torch.isfinite(weight).all() for weight in stopped.parameters())
    assert (tmp_path / "stopped" / "curves.png").exists()


def test_a_matching_loss_at_its_prior_is_reported(pretrain, capsys, monkeypatch):
    folder = pretrain()
    final = [record for record in records_of(folder) if "loss" in record][-1]["loss_itm"]
    assert final > 0.63
    said = capsys.readouterr().out
    assert f"matching (ITM) ends no better than it began: its loss is {final:.3f}" in said and "gives 0.637" in said
    assert "or draw easier negatives with hardness_strength 0." in said
    pretrain("--hardness_strength", "0")
    assert "start from a pretrained model." in capsys.readouterr().out
    monkeypatch.setattr("albef_hf.training.guards.MATCHING_PRIOR", 1.02 * final)
    pretrain()
    assert "no better than it began" not in capsys.readouterr().out


def test_options_of_negatives_reach_the_sampler(pretrain, monkeypatch):
    asked, draw = [], matching_albef.sample_hard_negatives
    monkeypatch.setattr(
        matching_albef, "sample_hard_negatives", lambda *given: asked.append(given[3:]) or draw(*given)
    )
    for arguments, expected in ((["--hardness_strength", "0.5", "--itm_negatives", "3"], (0.5, 3)), ([], (1.0, 1))):
        pretrain(*arguments, steps=1)
        assert set(asked) == {expected}  # also where operations are counted
        asked.clear()


@pytest.mark.parametrize(
    "negatives", [[], ["--gather_negatives", "--itm_negatives", "3", "--itm_contrast_weight", "1"]]
)
def test_two_processes_train_one_model(negatives, tmp_path):
    """`distributed_training.py` asserts that both end with the same weights and queues."""
    options = [*small_run(tmp_path / "out", 4), *negatives]
    printed = run_on_two_processes(TESTS / "distributed_training.py", *options, folder=tmp_path)
    assert printed.count("equal on both of 2 processes") == 1
    assert "8 on each of 2 process(es)" in printed
    records = [record for record in records_of(tmp_path / "out") if "loss" in record]
    assert [record["pairs"] for record in records] == [32, 64]
    student = AlbefForPreTraining.from_pretrained(tmp_path / "out")
    teacher = MomentumTeacher.from_pretrained(tmp_path / "out", student)
    assert teacher.queue.pointer == 4 * 16 % 24


def test_a_training_step_fits_on_one_screen():
    """`training_step` and what it calls of its class, one after the other."""
    called = ("_student_step", "_teacher_forward", "_distillation", "_alpha", "_optimizer_step", "_update_teacher")
    source, begin = inspect.getsourcelines(Trainer.training_step)
    assert len(source) <= 10
    for name in called:
        lines, start = inspect.getsourcelines(getattr(Trainer, name))
        assert start > begin and start + len(lines) <= begin + 80
        source += lines
    steps = set(re.findall(r"self\.(_?\w+)\(", "".join(source))) & set(vars(Trainer))
    assert steps - set(called) == {"_read_flags"}
