"""The pretraining script, from the command line to the folder it leaves."""

import itertools
import json
import os
import subprocess
import sys

import datasets
import pytest
import torch
import yaml
from accelerate import Accelerator
from conftest import assert_colleagues_can_read
from huggingface_hub.errors import StrictDataclassError
from paths import REPOSITORY, TESTS
from PIL import Image
from small_pretraining import SCRIPT, TINY_MODEL, records_of, small_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import BertTokenizer, pipeline

from albef_hf import AlbefForPreTraining, AlbefProcessor, MomentumTeacher, modeling_albef
from albef_hf.data import Issue, Pictures, PretrainingCollator, Scenes, embedded_tokenizer


def test_what_a_run_leaves_behind(train):
    folder = train("--eval_every", "2")
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
    told = EventAccumulator(str(events)).Reload().Scalars("loss_itc")
    assert [(event.step, pytest.approx(event.value)) for event in told] == [
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


def test_a_model_is_not_overwritten_unless_asked_for(train):
    train()
    with pytest.raises(ValueError, match="holds a model already"):
        train("--overwrite_output_dir", "false")


def test_what_is_refused_costs_no_checkpoint_of_an_earlier_run(train):
    folder = train()
    with pytest.raises(ValueError, match="cannot be read"):
        train("--train_files", "nowhere.json")
    assert list((folder / "checkpoints").glob("step_*"))
    train("--save_every", "-1")
    assert not (folder / "checkpoints").exists()


def test_a_tracker_that_does_not_start_is_told_and_costs_nothing_else(train, monkeypatch):
    def fail(self, *arguments, **settings):
        raise ConnectionError("no key")

    monkeypatch.setattr(Accelerator, "init_trackers", fail)
    with pytest.raises(ValueError, match=r"report_to \(tensorboard\) did not start: no key. Log in"):
        train()


def test_two_runs_with_one_seed_are_the_same_and_another_seed_is_not(train, tmp_path):
    losses = []
    for seed in ("1", "1", "2"):
        losses.append([record["loss"] for record in records_of(train("--seed", seed)) if "loss" in record])
    assert losses[0] == losses[1] != losses[2]


def test_goes_on_from_a_saved_model_with_its_teacher(train, script, tmp_path, monkeypatch):
    folder = train()
    before = MomentumTeacher.from_pretrained(folder, AlbefForPreTraining.from_pretrained(folder))
    folder.rename(tmp_path / "first")
    seen, forward = [], script.MomentumTraining._forward_backward

    def watched(self, *heard):
        seen.append((self.student.training, self.teacher.model.training))
        forward(self, *heard)

    monkeypatch.setattr(script.MomentumTraining, "_forward_backward", watched)
    monkeypatch.setattr(sys.modules[__name__], "TINY_MODEL", None)  # the saved model brings its own
    after = train(
        "--model", str(tmp_path / "first"), "--learning_rate", "1e-12", "--min_learning_rate", "1e-13", steps=1
    )
    student = AlbefForPreTraining.from_pretrained(after)
    teacher = MomentumTeacher.from_pretrained(after, student)
    assert teacher.queue.pointer == (before.queue.pointer + 8) % 24
    assert seen == [(True, True)]
    expected = 0.995 * before.model.itm_head.weight + 0.005 * student.itm_head.weight
    assert torch.allclose(teacher.model.itm_head.weight, expected, atol=1e-7)
    MomentumTeacher(student, queue_size=0).save_pretrained(tmp_path / "first")
    after = train("--model", str(tmp_path / "first"), "--queue_size", "0", steps=1)
    assert not any("queue_age" in record for record in records_of(after))


def test_the_loop_clamps_the_temperature(train, tmp_path, monkeypatch):
    model = AlbefForPreTraining.from_pretrained(train())
    with torch.no_grad():
        model.contrastive_head.temperature.fill_(0.9)
    model.save_pretrained(tmp_path / "hot")
    AlbefProcessor.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "hot")
    monkeypatch.setattr(sys.modules[__name__], "TINY_MODEL", None)
    folder = train("--model", str(tmp_path / "hot"), steps=1)
    assert AlbefForPreTraining.from_pretrained(folder).contrastive_head.temperature.item() == 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        ["--gradient_accumulation_steps", "2"],
        ["--mixed_precision", "bf16", "--attention", "eager"],
        ["--gradient_checkpointing", "--no_teacher_dropout", "--max_grad_norm", "1"],
        ["--num_workers", "2", "--alpha", "0", "--queue_size", "0", "--negative_hardness", "0"],
        ["--queue_size", "5", "--scenes_wrong_share", "0.2", "--scenes_vague_share", "0.2", "--validation_size", "0"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_way_to_train(train, arguments):
    folder = train(*arguments)
    records = [record for record in records_of(folder) if "loss" in record]
    assert all(record["loss"] is not None and record["nonfinite_steps"] == 0 for record in records)
    AlbefForPreTraining.from_pretrained(folder)


def test_a_fresh_model_knows_the_special_tokens_of_its_tokenizer(train, tmp_path):
    """The vocabulary of BERT-base from its end to its beginning; the settings name those of another."""
    (tmp_path / "reversed").mkdir()
    words = sorted((vocabulary := embedded_tokenizer().get_vocab()), key=vocabulary.get, reverse=True)
    (tmp_path / "reversed" / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    BertTokenizer.from_pretrained(tmp_path / "reversed").save_pretrained(tmp_path / "reversed")
    settings = TINY_MODEL | {"text_config": TINY_MODEL["text_config"] | {"eos_token_id": 102}}
    folder = train("--tokenizer", str(tmp_path / "reversed"), "--model_config", json.dumps(settings))
    model = AlbefForPreTraining.from_pretrained(folder)
    text = model.config.text_config
    assert [text.pad_token_id, text.bos_token_id, text.eos_token_id] == [30521, 30420, 30419]
    embedded = model.get_input_embeddings().weight.abs().amax(1)
    assert embedded[30521] < 1e-3 < embedded[0]  # padding starts at zero
    assert pipeline("image-text-matching", model=str(folder))(Image.new("RGB", (9, 9)), "a red ball")["score"]


def test_compiled_layers_compute_and_save_the_same(train, tmp_path):
    """Student and teacher, losses and weights; without dropout, whose draws differ when compiled."""
    text_config = {**TINY_MODEL["text_config"], "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model_config = json.dumps({**TINY_MODEL, "text_config": text_config})
    results = []
    for arguments in (["--torch_compile"], []):
        folder = train("--model_config", model_config, "--log_every", "1", *arguments)
        student, report = AlbefForPreTraining.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        teacher = MomentumTeacher.from_pretrained(folder, student)
        losses = [record["loss"] for record in records_of(folder) if "loss" in record]
        results.append((losses, student.state_dict(), teacher.state_dict()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-4)
    for compiled, plain in zip(results[0][1:], results[1][1:], strict=True):
        for name, weight in plain.items():
            assert torch.allclose(compiled[name], weight, atol=2e-4), name


def test_schedules_are_the_papers(train):
    options = ["--learning_rate", "1e-3", "--min_learning_rate", "1e-4", "--log_every", "1"]
    records = [r for r in records_of(train(*options, "--alpha_ramp_steps", "4", steps=6)) if "loss" in r]
    rates = [record["learning_rate"] for record in records]
    assert rates[0] == pytest.approx(5e-4) and rates[1] == pytest.approx(1e-3) and rates[-1] == pytest.approx(1e-4)
    assert rates[3] == pytest.approx((1e-3 + 1e-4) / 2)  # half-way down the cosine
    assert [record["alpha"] for record in records] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_original_json_with_bad_pairs(train, scene_images):
    rows = json.loads((scene_images / "train.json").read_text())
    rows[3]["image"], rows[5]["caption"], rows[7]["caption"] = "absent.png", [" "], "long " * 2000
    (scene_images / "train.json").write_text(json.dumps(rows))
    arguments = ["--train_files", str(scene_images / "train.json"), "--image_root", str(scene_images)]
    folder = train(*arguments, "--max_skipped_share", "0.5", steps=8)
    last = [record for record in records_of(folder) if "loss" in record][-1]
    assert last["pairs"] == 64
    assert last["image_missing"] > 0 and last["caption_empty"] > 0 and last["caption_cut"] > 0
    with pytest.raises(RuntimeError, match=r"more than max_skipped_share=0.01 allows: .* image_missing \d"):
        train(*arguments, "--max_skipped_share", "0.01", steps=30)


def test_load_dataset_with_column_options(train, scene_images):
    rows = json.loads((scene_images / "train.json").read_text())
    lines = [json.dumps({"file_name": row["image"], "words": row["caption"][0]}) for row in rows]
    (scene_images / "metadata.jsonl").write_text("\n".join(lines))
    held_out = scene_images.parent / "held_out.json"
    (scene_images / "train.json").rename(held_out)  # load_dataset would take it for the data
    columns = ["--dataset", str(scene_images), "--caption_column", "words"]
    stream = [*columns, "--streaming"]
    validation = ["--validation_files", str(held_out), "--image_root", str(scene_images)]
    for arguments in (columns, [*stream, *validation], [*stream, "--validation_split", "train", "--num_workers", "2"]):
        assert records_of(train(*arguments))[-1].keys() >= {"itc_text_r1"}
    assert "itc_text_r1" not in records_of(train(*stream, "--validation_size", "0"))[-1]
    with pytest.raises(ValueError, match="set caption_column to one of"):
        train("--dataset", str(scene_images))
    with pytest.raises(ValueError, match="No pairs can be held out of a stream: set validation_split"):
        train(*stream)
    with pytest.raises(ValueError, match="set max_steps"):
        train(*stream, "--validation_size", "0", "--max_steps", "0")


def test_held_out_pictures_are_in_no_training_row(script):
    rows = datasets.Dataset.from_dict(
        {"image": [f"{i % 40}.png" for i in range(200)], "caption": [[str(i)] for i in range(200)]}
    )
    training, held_out = script.hold_out(rows, 1000, seed=0)
    assert len(training) == 180 and len(held_out) == 20  # a tenth of 40 pictures, five rows each
    assert not set(training["image"]) & set(held_out["image"])


def test_rows_of_one_picture_are_evaluated_as_one(scene_images):
    rows = datasets.Dataset.from_dict({"image": ["0.png", "1.png", "0.png", "x.png"], "caption": ["a", "b", "c", "d"]})
    held_out = Pictures(rows, str(scene_images))
    assert held_out.captions == [["a", "c"], ["b"]] and len(held_out) == 2
    assert [error.issue for error in held_out.bad_rows.values()] == [Issue.IMAGE_MISSING]
    assert Pictures(rows, str(scene_images), most=1).captions == [["a"]]
    stream = Pictures(iter([{"image": Image.new("RGB", (9, 9), "red"), "caption": "a"}]))
    assert stream[0].getpixel((0, 0)) == (255, 0, 0)


def test_batches_of_a_stream_go_to_the_device(script, processor, scene_images):
    from accelerate import Accelerator

    content = (scene_images / "0.png").read_bytes()
    rows = datasets.Dataset.from_dict({"image": [content] * 8, "caption": ["a dog"] * 8}).to_iterable_dataset(4)
    options = script.PretrainingOptions(batch_size=4, num_workers=0)
    accelerator = Accelerator(cpu=True)
    loader, steps = script.make_loader(options, rows, processor, accelerator)
    assert loader.device == accelerator.device and steps is None
    assert next(iter(loader))["input_ids"].shape == (4, 3)


def test_non_finite_steps_are_skipped_and_a_run_of_them_ends_the_training(train, tmp_path, monkeypatch):
    reader, batches = PretrainingCollator.__call__, itertools.count(1)

    def spoiled(self, samples):
        batch = reader(self, samples)
        if next(batches) >= 3:
            batch["pixel_values"][0, 0, 0, 0] = float("nan")
        return batch

    monkeypatch.setattr(PretrainingCollator, "__call__", spoiled)
    folder = train("--log_every", "1")
    records = [record for record in records_of(folder) if "loss" in record]
    assert [record["nonfinite_steps"] for record in records] == [0, 0, 1, 2]
    assert records[1]["loss"] is not None and records[2]["loss"] is None
    student = AlbefForPreTraining.from_pretrained(folder)
    teacher = MomentumTeacher.from_pretrained(folder, student)
    assert teacher.queue.pointer == 2 * 8 % 24  # two of four steps did not reach the queue
    assert all(torch.isfinite(weight).all() for weight in (*student.parameters(), *teacher.parameters()))
    with pytest.raises(RuntimeError, match="3 steps in a row had a non-finite loss"):
        train("--max_nonfinite_steps", "3", "--output_dir", str(tmp_path / "stopped"), steps=9)
    stopped = AlbefForPreTraining.from_pretrained(tmp_path / "stopped")
    assert all(torch.isfinite(weight).all() for weight in stopped.parameters())
    assert (tmp_path / "stopped" / "curves.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scenes", "7"], "7 pairs to train on, fewer than the 8 of one batch"),
        (["--model_config", '{"text_config": {"vocab_size": 300}}'], "set vocab_size of text_config to 30522"),
        (["--model_config", '{"hidden_sise": 3}'], "setting hidden_sise"),  # no such name at the top
        (
            ["--model_config", '{"vision_config": {"hidden_sise": 3}}'],
            "setting hidden_sise; did you mean hidden_size?",
        ),
        (["--model_config", "absent.json"], "neither a JSON file nor a JSON text"),
        (["--model_config", '{"projection_dim": "8"}'], "expected int, got str"),
        (["--max_tokens", "41"], "the model has 40 positions"),
        (["--train_files", "absent.json"], "absent.json cannot be read"),
        (["--text_model", "/absent/bert"], "/absent/bert"),
        (["--shards", "/absent"], "/absent has no index.json: python train/prepare_shards.py --output_dir /absent"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_work_is_refused_before_training_starts(train, arguments, message):
    with pytest.raises((ValueError, OSError, StrictDataclassError), match=message):
        train(*arguments)


def test_no_readable_pair_is_an_error_before_training_starts(train, scene_images):
    with pytest.raises(ValueError, match="could not be used; the last one: image_missing.*Check the image root"):
        train("--train_files", str(scene_images / "train.json"), "--image_root", "/absent")


def test_a_matching_that_has_learned_nothing_is_told_of(train, capsys, monkeypatch):
    folder = train()
    final = [record for record in records_of(folder) if "loss" in record][-1]["loss_itm"]
    assert final > 0.63
    said = capsys.readouterr().out
    assert f"matching (ITM) ends no better than it began: its loss is {final:.3f}, and 0.637" in said
    assert "or let it learn more from easier negatives, with negative_hardness 0." in said
    train("--negative_hardness", "0")
    assert "start from a model that knows more." in capsys.readouterr().out
    monkeypatch.setattr("albef_hf.training.trainer.MATCHING_PRIOR", 1.02 * final)
    train()
    assert "no better than it began" not in capsys.readouterr().out


def test_a_training_draws_negatives_as_hard_as_wanted(train, monkeypatch):
    asked, draw = [], modeling_albef.sample_hard_negatives
    monkeypatch.setattr(modeling_albef, "sample_hard_negatives", lambda *given: asked.append(given[3]) or draw(*given))
    for arguments, hardness in ((["--negative_hardness", "0.5"], 0.5), ([], 1.0)):
        train(*arguments, steps=1)
        assert asked[-1] == hardness  # the first is of counting operations


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lerning_rate", "1"], "did you mean --learning_rate?"),
        (["--batch-sise=4"], "did you mean --batch_size?"),
        (["--batch_size", "1"], "at least 2 pairs a batch"),
        (["--batch_size", "many"], "invalid int value: 'many'"),
        (["--alpha", "1.5"], "share between 0 and 1"),
        (["--negative_hardness", "1.5"], "share between 0 and 1"),
        (["--negative_hardness", "nan"], "share between 0 and 1"),
        (["--mixed_precision", "int4"], "choose no, bf16 or fp16"),
        (["--config", "absent.yaml"], "absent.yaml cannot be read"),
        (["--mlm_probability", "2"], "share between 0 and 1"),
        (["--max_words", "0"], "at least 1"),
        (["--model", "a", "--text_model", "b"], "leave out text_model"),
        (["--train_files", "a", "--dataset", "b"], "give one of them"),
        (["--shards", "a", "--dataset", "b"], "give one of them"),
        (["stray"], "belongs to no option"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_options_end_the_program_with_a_remedy(script, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_yaml_is_checked_like_the_command_line_which_wins(script, tmp_path, capsys):
    from albef_hf.utils.options import parse_options, save_options

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "learning_rate: 1e-3\nbatch_size: 16\nteacher_dropout: false\nmodel_config: {projection_dim: 8}\n"
    )
    options = parse_options(script.PretrainingOptions, "", ["--config", str(recipe), "--batch_size", "4"])
    assert (options.learning_rate, options.batch_size, options.teacher_dropout) == (1e-3, 4, False)
    assert script.read_model_config(options.model_config) == {"projection_dim": 8}
    save_options(options, tmp_path / "saved.yaml")
    assert parse_options(script.PretrainingOptions, "", ["--config", str(tmp_path / "saved.yaml")]) == options

    recipe.write_text("mixed_precision: no\nalpha_ramp_steps: -1\ntrain_files: [a.json, b.json]\n")
    options = parse_options(script.PretrainingOptions, "", ["--config", str(recipe)])
    assert (options.mixed_precision, options.train_files) == ("no", ["a.json", "b.json"])

    recipe.write_text("lerning_rate: 1e-3\n")
    with pytest.raises(SystemExit):
        script.main(["--config", str(recipe)])
    assert "did you mean --learning_rate?" in capsys.readouterr().err


def test_defaults_are_the_papers(script):
    options = script.PretrainingOptions()
    assert (options.batch_size, options.epochs, options.warmup_steps) == (64, 30, 1000)
    assert (options.learning_rate, options.min_learning_rate, options.weight_decay) == (1e-4, 1e-5, 0.02)
    assert (options.alpha, options.momentum, options.queue_size) == (0.4, 0.995, 65536)
    assert (options.mlm_probability, options.max_words, options.max_tokens, options.min_crop_scale) == (
        0.15,
        30,
        25,
        0.2,
    )


def test_help_explains_every_option(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["--help"])
    text = capsys.readouterr().out
    for name in ("--learning_rate", "--queue_size", "--config", "--train_files"):
        assert name in text
    assert "temperature" not in text and "share of the teacher in the targets" in text.replace("\n", " ").replace(
        "  ", ""
    )


def test_recipes_are_valid(script):
    from albef_hf.utils.options import parse_options

    recipes = list((REPOSITORY / "train" / "configs").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        options = parse_options(script.PretrainingOptions, "", ["--config", str(recipe)])
        assert set(yaml.safe_load(recipe.read_text())) <= set(vars(options))


def test_two_processes_train_one_model(tmp_path):
    """`distributed_training.py` asserts that both end with the same weights and queues."""
    script = TESTS / "distributed_training.py"
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    run = subprocess.run(
        command + small_run(tmp_path / "out", 4), env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert (run.stdout + run.stderr).count("equal on both of 2 processes") == 1
    assert "8 on each of 2 process(es)" in run.stdout + run.stderr
    records = [record for record in records_of(tmp_path / "out") if "loss" in record]
    assert [record["pairs"] for record in records] == [32, 64]
    student = AlbefForPreTraining.from_pretrained(tmp_path / "out")
    teacher = MomentumTeacher.from_pretrained(tmp_path / "out", student)
    assert teacher.queue.pointer == 4 * 16 % 24


def test_accelerate_launch_runs_it_and_an_error_is_one_line(tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", str(SCRIPT)]
    command += small_run(tmp_path / "out", 4)
    environment = {name: value for name, value in os.environ.items() if name != "ALBEF_TRACEBACK"}
    command += ["--train_files", "absent.json"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode != 0
    assert "error: absent.json cannot be read" in run.stderr
