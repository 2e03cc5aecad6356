"""Images exchanged among the rows of an evaluation."""

import pytest
from accelerate import Accelerator
from PIL import Image
from task_rows import FILES, make_task

from albef_hf.evaluation.exchanged_images import exchange
from albef_hf.tasks import find_task


@pytest.mark.parametrize(
    ("images", "once"),
    [("abcd", True), ("aabb", True), ("aaabcd", True), ("aaab", False), (["ab", "bc", "cd", "de", "ea", "fg"], True)],
)
def test_no_row_gets_an_image_that_it_has(images, once):
    """And all images are shown as often as before, unless one is that of more than half of the rows."""
    images = {row: frozenset(names) for row, names in enumerate(images)}
    exchanges = [exchange(images, seed) for seed in range(40)]
    for givers in exchanges:
        assert [*givers] == [*images] and all(images[row].isdisjoint(images[giver]) for row, giver in givers.items())
        assert not once or sorted(givers.values()) == [*images]
    assert exchanges[0] == exchange(images, 0) and any(givers != exchanges[0] for givers in exchanges) or not once


def test_an_image_without_another_is_not_exchanged():
    same = frozenset("a")
    assert exchange({3: same, 5: same}, 0) == exchange({3: same}, 0) == exchange({}, 0) == {}
    assert exchange({0: frozenset("ab"), 1: frozenset("a"), 2: frozenset("b")}, 0) == {1: 2, 2: 1}, "0 shares with all"


def sees_red(task, model, rows, numbers) -> list[dict]:
    """A model that says what it sees: whether the first image is red."""
    seen = [row for batch in task.valid_batches(rows, numbers) for row in batch]
    images = [row["images"][0] if "images" in row else row["image"] for row in seen]
    red = [image.getpixel((0, 0)) == (255, 0, 0) for image in images]
    answers = {"entailment": ("contradiction", "entailment"), "nlvr2": ("False", "True"), "vqa": ("blue", "red")}
    return [{"row": row["row"], "answer": answers[task.name][is_red]} for row, is_red in zip(seen, red, strict=True)]


@pytest.mark.parametrize("name", ["entailment", "nlvr2", "vqa"])
def test_with_exchanged_images_a_model_that_uses_them_is_wrong(name, processor, config, photographs, monkeypatch):
    """Four rows, two of a red image under two names, two of blue ones: exchanged, each sees the other color."""
    (photographs / "vg").mkdir()
    (photographs / "a.png").rename(photographs / "vg" / "red.png")
    Image.new("RGB", (40, 50), "red").save(photographs / "red.png")
    kind = find_task(name)
    monkeypatch.setattr(kind, "predict", sees_red)
    options = {"image_root": str(photographs), "train_files": ["none.json"]}
    task = make_task(name, processor, **options, **({"vg_root": str(photographs / "vg")} if name == "vqa" else {}))
    rows = [{**FILES[name][place], "dataset": "vqa"} for place in (0, 1, 0, 1)]
    for row, image in zip(rows, ("red", "b", "red", "b"), strict=True):
        row |= {"image": f"{image}.png", "images": [f"{image}.png", "c.png" if image == "b" else "d.png"]}
    if name == "vqa":
        rows[0] |= {"dataset": "vg", "answer": "red"}
    model, accelerator = task.head(config), Accelerator(cpu=True)
    bad = {**rows[0], "image": "broken.png", "images": ["broken.png"] * 2}
    assert task.evaluate(model, [*rows, bad], accelerator)[0]["accuracy"] == pytest.approx(100)
    assert task.evaluate_exchanged(model, [*rows, bad], accelerator) == {"exchanged_images_accuracy": 0}
    assert [*task.row_errors.bad] == [4] and [*task.fingerprints] == [0, 1, 2, 3], "those of the evaluation itself"
    task.args.exchanged_images = False
    task.evaluate(model, rows, accelerator)
    assert task.evaluate_exchanged(model, rows, accelerator) == {}


def test_columns_of_an_image_move_with_it(processor, config, photographs):
    """Of grounding the boxes: each row has one to choose from, which is the right one of its image."""
    rows = [
        {**FILES["grounding"][0], "image": f"{name}.png", "boxes": [[0, 0, 9, 9 + place]]}
        for place, name in enumerate("ab")
    ]
    rows = [{**row, "bbox": row["boxes"][0]} for row in rows]
    task = make_task("grounding", processor, image_root=str(photographs))
    model = task.head(config)
    task.evaluate(model, rows, Accelerator(cpu=True))
    assert task.evaluate_exchanged(model, rows, Accelerator(cpu=True)) == {"exchanged_images_accuracy": 100}
