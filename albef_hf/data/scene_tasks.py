"""The built-in scenes pose the downstream tasks: questions, image pairs, entailment, expressions with boxes.

Each class makes the rows of one task, in the format of the original's annotations, with pictures instead of paths.
A row depends on seed and index alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .scenes import COLORS, OPENINGS, PLACES, SHAPE_NAMES, Scene, SceneObject, compose, describe

NUMBERS = {2: "two", 3: "three", 4: "four"}
ANNOTATORS = 10  # answers to a question, as in VQA v2
NEUTRAL = (
    "{} made of paper",
    "{} that somebody drew yesterday",
    "{} that costs a lot of money",
    "{} which children like",
    "{} with a coin behind it",
)


def phrase(thing: SceneObject) -> str:
    """What an object is called, such as "red circle"; no two of a scene share it."""
    return f"{thing.color} {thing.shape}"


def absent(scene: Scene, rng: np.random.Generator) -> str:
    """An object that the scene does not have, though one of its colour or shape."""
    thing = scene.objects[rng.integers(len(scene.objects))]
    while True:
        color, shape = (str(rng.choice(list(names))) for names in (COLORS, SHAPE_NAMES))
        name = f"{color} {thing.shape}" if rng.random() < 0.5 else f"{thing.color} {shape}"
        if name not in {phrase(other) for other in scene.objects}:
            return name


def present(scene: Scene, rng: np.random.Generator) -> str:
    """An object that the scene has."""
    return phrase(scene.objects[rng.integers(len(scene.objects))])


class SceneRows(Sequence, ABC):
    """Rows about scenes.

    Args:
        count: Number of rows.
        seed: Another seed gives other rows.
        image_size: Height and width of the pictures in pixels.
    """

    def __init__(self, count: int, seed: int = 0, image_size: int = 96):
        self.count, self.seed, self.image_size = count, seed, image_size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.count:
            raise IndexError(f"There are {self.count} rows, numbered from 0; {index} is none of them.")
        return self.row(index, np.random.default_rng((self.seed, index)))

    @abstractmethod
    def row(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The row of an index."""


class SceneQuestions(SceneRows):
    """Questions about colour, shape, number and presence, each with the answers of ten annotators.

    Rows have `question_id`, `image`, `question`, `answer` (a list), as the original's `vqa_train.json`. Annotators
    call a shape by different names, so that several answers are right.
    """

    answers = (*COLORS, *(name for names in SHAPE_NAMES.values() for name in names), *NUMBERS.values(), "yes", "no")

    def row(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A question of one of four kinds."""
        scene = compose(rng)
        question, names = (self._color, self._shape, self._number, self._presence)[rng.integers(4)](scene, rng)
        shares = np.array([0.6, 0.2, 0.2][: len(names)])
        given = rng.choice(names, size=ANNOTATORS, p=shares / shares.sum())
        return {
            "question_id": index,
            "image": scene.draw(self.image_size),
            "question": question,
            "answer": [str(answer) for answer in given],
        }

    def _color(self, scene: Scene, rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
        thing = _one_of_a_kind(scene, "shape", rng)
        return f"what color is the {rng.choice(SHAPE_NAMES[thing.shape])}?", (thing.color,)

    def _shape(self, scene: Scene, rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
        thing = _one_of_a_kind(scene, "color", rng)
        return f"what shape is the {thing.color} thing?", SHAPE_NAMES[thing.shape]

    def _number(self, scene: Scene, rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
        return "how many things are there?", (NUMBERS[len(scene.objects)],)

    def _presence(self, scene: Scene, rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
        there = rng.random() < 0.5
        return f"is there a {(present if there else absent)(scene, rng)}?", ("yes" if there else "no",)


def _one_of_a_kind(scene: Scene, attribute: str, rng: np.random.Generator) -> SceneObject:
    """An object whose colour, or shape, no other has; the first one where there is none."""
    values = [getattr(thing, attribute) for thing in scene.objects]
    single = [thing for thing, value in zip(scene.objects, values, strict=True) if values.count(value) == 1]
    return single[rng.integers(len(single))] if single else scene.objects[0]


class ScenePairs(SceneRows):
    """Statements about two pictures, half of them true; every statement is made of two pairs, true of one.

    Rows have `images` (two), `sentence`, `label` ("True" or "False"), as the original's `nlvr_train.json`.
    """

    def row(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The pair of an index; its neighbour has the same statement, and the other label."""
        rng = np.random.default_rng((self.seed, index // 2))
        kind, label = rng.integers(4), bool(rng.integers(2)) == bool(index % 2)
        first, second = compose(rng), compose(rng)
        name = present(first, rng)
        others = np.random.default_rng((self.seed, index // 2, index % 2))
        first, second = self._scenes(kind, name, label, others)
        sentences = ("the left picture shows a {}", "the right picture shows a {}", "both pictures show a {}")
        sentence = (*sentences, "the left picture has more things than the right one")[kind].format(name)
        images = [scene.draw(self.image_size) for scene in (first, second)]
        return {"images": images, "sentence": sentence, "label": str(label)}

    def _scenes(self, kind: int, name: str, label: bool, rng: np.random.Generator) -> tuple[Scene, Scene]:
        """Two scenes of which a statement of a kind holds, or does not."""
        if kind == 3:
            while True:
                pair = compose(rng), compose(rng)
                difference = len(pair[0].objects) - len(pair[1].objects)
                if difference and (difference > 0) == label:
                    return pair
        # Where the statement is about one side, what the other side shows is chance; where it is about both and does
        # not hold, one of them still shows the object.
        chance = bool(rng.integers(2))
        shown = ((label, chance), (chance, label), (True, True) if label else (chance, not chance))[kind]
        return _with(name, shown[0], rng), _with(name, shown[1], rng)


def _with(name: str, shown: bool, rng: np.random.Generator) -> Scene:
    """A scene that has, or does not have, an object of a name."""
    color, shape = name.split(" ")
    while True:
        scene = compose(rng)
        names = [phrase(thing) for thing in scene.objects]
        if not shown and name not in names:
            return scene
        if shown:
            # Repaint one object; others that happen to look alike would make two of it.
            target = int(rng.integers(len(names)))
            things = list(scene.objects)
            things[target] = replace(things[target], shape=shape, color=color)
            if len({phrase(thing) for thing in things}) == len(things):
                return Scene(tuple(things), scene.background)


class SceneEntailment(SceneRows):
    """Sentences that a picture entails, leaves open or contradicts, a third each.

    Rows have `image`, `sentence`, `label`, as the original's `ve_train.json`. From the sentence alone one can tell
    what is left open, but not what is true.
    """

    def row(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A sentence of one of three labels."""
        scene = compose(rng)
        label = ("entailment", "neutral", "contradiction")[rng.integers(3)]
        opening = rng.choice(OPENINGS)
        name = absent(scene, rng) if label == "contradiction" else present(scene, rng)
        sentence = f"a {name}"
        if label == "neutral":
            sentence = str(rng.choice(NEUTRAL)).format(sentence)
        return {"image": scene.draw(self.image_size), "sentence": f"{opening}{sentence}", "label": label}


class SceneExpressions(SceneRows):
    """Expressions that mean one object of a picture, with its box and those of all objects.

    Rows have `image`, `text`, `ref_id` as the original's `refcoco+_val.json`, `image_id`, and for the evaluation
    `bbox` and `boxes`: left, top, width and height in pixels.
    """

    def row(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """An expression by colour and shape, and sometimes size or place."""
        scene = compose(rng)
        target = int(rng.integers(len(scene.objects)))
        thing = scene.objects[target]
        extra = rng.random()
        text = f"the {phrase(thing)}"
        if extra < 0.25:
            text = f"the {thing.size} {phrase(thing)}"
        elif extra < 0.5:
            text = f"{text} {PLACES[int(thing.x > 0.5), int(thing.y > 0.5)]}"
        boxes = [self._pixels(other) for other in scene.objects]
        return {
            "image": scene.draw(self.image_size),
            "image_id": index,
            "ref_id": index,
            "text": text,
            "bbox": boxes[target],
            "boxes": boxes,
        }

    def _pixels(self, thing: SceneObject) -> list[float]:
        left, top, right, bottom = (self.image_size * edge for edge in thing.box)
        return [left, top, right - left, bottom - top]


class SceneCaptions(SceneRows):
    """Pictures with several captions, for retrieval: `image`, `image_id`, `caption`, as `flickr30k_val.json`."""

    def row(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A picture and three captions."""
        scene = compose(rng)
        captions = [describe(scene, rng) for _ in range(3)]
        return {"image": scene.draw(self.image_size), "image_id": index, "caption": captions}
