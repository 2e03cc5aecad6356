"""States of a frozen image encoder: computed once, checked, resumed, and the same training as from pixels."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import TESTS
from PIL import Image
from small_pretraining import records_of, small_run
from task_rows import small
from two_processes import run_on_two_processes

from albef_hf import AlbefForVisualReasoning, MomentumTeacher
from albef_hf.data import InvalidSampleError, Scenes
from albef_hf.data.image_states import ImageStates, image_key
from albef_hf.training import image_states
from albef_hf.training.arguments import FineTuningArguments, PretrainingArguments

FROZEN = ("--freeze", "image_encoder", "--cache_image_states")
TASKS = ["entailment", "grounding", "nlvr2", "retrieval", "text_assignment", "vqa"]


def losses_of(folder: Path) -> list[float]:
    return [record["loss"] for record in records_of(folder) if "loss" in record]


def test_states_in_place_of_pixels_give_the_same_losses(model, batch):
    model.freeze("albef.vision_model")
    teacher = MomentumTeacher(model, queue_size=4).eval()
    states = model.albef.vision_model(batch["pixel_values"]).last_hidden_state
    assert torch.equal(model.albef.vision_model(states).last_hidden_state, states)
    cached = batch | {"pixel_values": states.half()}
    losses = []
    for inputs in (batch, cached):
        torch.manual_seed(0)
        targets = teacher(**inputs)
        losses.append(model(**inputs, teacher_outputs=targets, alpha=0.4).loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=2e-3) and losses[0] != losses[1]
    with pytest.raises(ValueError, match=r"shape \(4, 5, 31\).*or states .*, \(batch, 5, 32\)"):
        model.albef.vision_model(torch.zeros(4, 5, 31))


def test_states_of_pairs_of_images(config, batch):
    model = AlbefForVisualReasoning(config).eval()
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    pixels = torch.randn(4, 2, 3, 32, 32)
    states = model.albef.vision_model(pixels.flatten(0, 1)).last_hidden_state.unflatten(0, (4, 2))
    logits = [model(**texts, pixel_values=given).logits for given in (pixels, states)]
    assert torch.allclose(*logits, atol=1e-6)
    with pytest.raises(ValueError, match="pass two images per text"):
        model(**texts, pixel_values=states[:, 0])


def test_training_from_states_is_training_from_pixels(run, pretrained, tmp_path):
    """The same losses, to float16 rounding, as without augmentation."""
    options = small(pretrained, tmp_path / "pixels", hardness_strength=0)
    options += ["--freeze", "image_encoder", "--no_teacher_dropout", "--max_steps", 4]
    none = ["--min_crop_scale", 1, "--randaugment_operations", 0, "--flip_probability", 0]
    run("finetune", "retrieval", *options, *none)
    for _ in range(2):  # computed, and reused
        folder = tmp_path / "states"
        run("finetune", "retrieval", *options, "--output_dir", folder, "--overwrite_output_dir",
            "--cache_image_states", tmp_path / "cache")  # fmt: skip
        assert losses_of(folder) == pytest.approx(losses_of(tmp_path / "pixels"), abs=2e-3)
        assert losses_of(folder) != losses_of(tmp_path / "pixels")
    written = (tmp_path / "states" / "options.yaml").read_text()
    assert "min_crop_scale: 1.0\n" in written and "flip_probability: 0.0\n" in written  # what was done


@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains_from_states(task, run, pretrained, tmp_path):
    options = small(pretrained, tmp_path / "tuned")
    run("finetune", task, *options, *FROZEN, tmp_path / "cache", "--max_steps", 1)
    status = np.fromfile(tmp_path / "cache" / "status.bin", np.uint8)
    assert len(status) > 10 and (status == 1).all()
    assert losses_of(tmp_path / "tuned")


def test_a_pretraining_from_states_of_scenes(pretrain, run, tmp_path, capsys):
    folder = pretrain(*FROZEN, tmp_path / "cache", steps=2)
    assert "40 images have 5 x 32 states each, 1.28e-05 GB in" in capsys.readouterr().out
    assert len(losses_of(folder)) == 1
    keys = np.load(tmp_path / "cache" / "keys.npy")
    assert len({key.tobytes() for key in keys}) == 40
    # The saved model, whose processor names its code, has the same states.
    run("finetune", "retrieval", *small(folder, tmp_path / "tuned"), *FROZEN, tmp_path / "cache", "--max_steps", 1)
    assert "training from the states of" in capsys.readouterr().out


def test_states_of_more_images_are_added(pretrain, tmp_path, capsys, monkeypatch):
    cache = tmp_path / "cache"
    pretrain(*FROZEN, cache, steps=1)
    before = np.load(cache / "states.npy")
    with monkeypatch.context() as killed:
        killed.setattr(image_states, "atomic_write", lambda path: sys.exit("killed"))  # before the keys
        with pytest.raises(SystemExit, match="killed"):
            pretrain(*FROZEN, cache, "--scenes", 1200, steps=1)
    assert np.load(cache / "states.npy", mmap_mode="r").shape == (1200, 5, 32)
    assert len(ImageStates(cache).indices) == 40
    pretrain(*FROZEN, cache, steps=1)  # needs no more
    capsys.readouterr()
    folder = pretrain(*FROZEN, cache, "--scenes", 60, steps=2)
    output = capsys.readouterr().out
    assert "has states of 40 images and is extended\n20 images have 5 x 32 states each" in output
    assert len(losses_of(folder)) == 1 and len(ImageStates(cache).indices) == 60
    pretrain(*FROZEN, tmp_path / "whole", "--scenes", 60, steps=1)
    states = np.load(cache / "states.npy")
    assert np.array_equal(states[:40], before) and not states[60:].any()
    images = [row["image"] for row in Scenes(60, seed=42, image_size=96)]
    whole, extended = ImageStates(tmp_path / "whole"), ImageStates(cache)
    assert all(torch.allclose(whole.read(image), extended.read(image), atol=1e-3) for image in images)


@pytest.fixture
def photographs_run(pretrain, scene_images, tmp_path):
    """Pretrain on files, three of which are broken, missing and a copy, from states; return the folder of the run."""
    (scene_images / "3.png").write_bytes(b"no image")
    (scene_images / "4.png").unlink()
    (scene_images / "5.png").write_bytes((scene_images / "6.png").read_bytes())

    def start(*arguments: object, cache: str = "cache", steps: int = 2) -> Path:
        files = ["--train_files", scene_images / "train.json", "--validation_files", scene_images / "train.json"]
        source = [*files, "--image_root", scene_images, "--max_skipped_share", 1, "--per_device_train_batch_size", 4]
        return pretrain(*source, *FROZEN, tmp_path / cache, *arguments, steps=steps)

    return start


def test_copies_are_encoded_once_and_broken_images_are_counted(photographs_run, tmp_path):
    folder = photographs_run(steps=5)
    status = np.fromfile(tmp_path / "cache" / "status.bin", np.uint8)
    assert sorted(status.tolist()) == [1] * 17 + [2]
    record = [record for record in records_of(folder) if "loss" in record][-1]
    assert record["image_broken"] and record["image_missing"]


def test_a_killed_computation_continues_where_it_was(photographs_run, monkeypatch, tmp_path):
    photographs_run(cache="whole")
    monkeypatch.setattr(image_states, "ENCODING_BATCH", 4)
    written, write_status = [], image_states.write_status

    def interrupted(folder, status):
        write_status(folder, status)
        written.extend(status)
        if len(written) == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(image_states, "write_status", interrupted)
    with pytest.raises(KeyboardInterrupt):
        photographs_run()
    photographs_run()
    assert sorted(written) == list(range(18))  # none twice
    states = [np.load(tmp_path / name / "states.npy") for name in ("cache", "whole")]
    assert np.allclose(*states, atol=1e-3) and np.abs(states[0]).max(axis=(1, 2)).astype(bool).sum() == 17


def test_states_that_do_not_belong_are_refused(photographs_run, pretrain, monkeypatch, tmp_path):
    photographs_run()
    with pytest.raises(ValueError, match="other weights than that of this run: set another cache_image_states"):
        photographs_run("--seed", 1)  # other random weights
    manifest = tmp_path / "cache" / "states.json"
    content = json.loads(manifest.read_text())
    content["preprocessing"]["image_mean"] = [0.5, 0.5, 0.5]
    manifest.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="other preprocessing than"):
        photographs_run()


def test_a_disk_that_is_too_small_is_noticed_before(photographs_run, monkeypatch, tmp_path):
    monkeypatch.setattr(image_states.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(ValueError, match="has room for 1e-06 GB: free disk space, set another"):
        photographs_run()
    assert not (tmp_path / "cache" / "states.npy").exists()


def test_states_that_another_run_computes_are_waited_for(photographs_run, tmp_path):
    (tmp_path / "cache").mkdir()
    code = "from albef_hf.utils.files import locked; import sys, pathlib\n"
    code += "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "cache" / "states.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match="is in use by process .*: wait until"):
            photographs_run()
        other.stdin.close()


def test_two_processes_share_the_work(tmp_path):
    options = [*small_run(tmp_path / "out", 4), *FROZEN, tmp_path / "cache"]
    printed = run_on_two_processes(TESTS / "distributed_training.py", *options, folder=tmp_path)
    assert "equal on both of 2 processes" in printed
    assert (np.fromfile(tmp_path / "cache" / "status.bin", np.uint8) == 1).all()
    assert (np.abs(np.load(tmp_path / "cache" / "states.npy")).max(axis=(1, 2)) > 0).all()


def test_a_worker_opens_the_states_itself(pretrain, tmp_path):
    pretrain(*FROZEN, tmp_path / "cache", steps=1)
    states = ImageStates(tmp_path / "cache")
    image = Scenes(40, seed=42, image_size=96)[0]["image"]
    read = states.read(image)
    assert read.shape == (5, 32) and read.dtype == torch.float16
    content = pickle.dumps(states)
    assert len(content) < 10_000 and torch.equal(pickle.loads(content).read(image), read)
    with pytest.raises(ValueError, match="is not among the 40 whose states"):
        states.read(Image.new("RGB", (96, 96)))
    with pytest.raises(InvalidSampleError):
        states.read("missing.png")


def test_an_image_is_known_by_its_content(photographs, tmp_path):
    content = (photographs / "a.png").read_bytes()
    key = image_key("a.png", str(photographs))
    assert image_key(photographs / "a.png") == image_key(content) == image_key({"bytes": content, "path": "b"}) == key
    assert image_key("b.png", str(photographs)) != key
    with pytest.raises(InvalidSampleError):
        image_key("../a.png", str(photographs))
    opaque, clear = (Image.new("RGBA", (4, 4), (255, 0, 0, alpha)) for alpha in (255, 0))
    assert image_key(opaque) != image_key(clear) == image_key(Image.new("RGB", (4, 4), "white"))
    dark, bright = (Image.fromarray(np.full((4, 4), level, np.uint16)) for level in (20000, 40000))
    assert image_key(dark) != image_key(bright)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": []}, "set freeze image_encoder too"),
        ({"min_crop_scale": 0.3}, "min_crop_scale is 0.3, but images are not augmented .*; remove it, or set 1.0"),
        ({"randaugment_operations": 1}, "randaugment_operations is 1, but images are not augmented"),
        ({"fast_resize": True}, "fast_resize is True, but images are not augmented .*; remove it, or set False"),
        ({"flip_probability": 0.1, "model": "m"}, "flip_probability is 0.1, but images are not augmented"),
        ({"streaming": True, "dataset": "x/y"}, "remove streaming"),
    ],
)
def test_options_that_have_no_effect_are_refused(options, message):
    kind = FineTuningArguments if "model" in options else PretrainingArguments
    with pytest.raises(ValueError, match=message):
        kind(**{"freeze": ["image_encoder"], "cache_image_states": "states", **options})
