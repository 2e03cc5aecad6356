"""Synthetic rows of the downstream tasks, from the built-in scenes.

Each class generates the rows of one task in the format of the original's annotations, with images instead of paths.
A row depends only on the seed and its index.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from .scenes import COLORS, OPENINGS, PLACES, RELATIONS, SHAPE_NAMES, Scene, SceneObject, compose, describe

NUMBERS = {2: "two", 3: "three", 4: "four"}
OPPOSITES = {"left": "right", "right": "left", "above": "below", "below": "above"}
ANNOTATORS = 10  # answers to a question, as in VQA v2
NEUTRAL = (
    "{} made of paper",
    "{} that somebody drew yesterday",
    "{} that costs a lot of money",
    "{} which children like",
    "{} with a coin behind it",
)


def phrase(thing: SceneObject) -> str:
    """Return the name of an object, such as "red circle", which is unique in its scene."""
    return f"{thing.color} {thing.shape}"


def absent(scene: Scene, rng: np.random.Generator) -> str:
    """Return the name of an object that is not in the scene, but has the color or the shape of one that is."""
    thing = scene.objects[rng.integers(len(scene.objects))]
    while True:
        color, shape = (str(rng.choice(list(names))) for names in (COLORS, SHAPE_NAMES))
        name = f"{color} {thing.shape}" if rng.random() < 0.5 else f"{thing.color} {shape}"
        if name not in {phrase(other) for other in scene.objects}:
            return name


def present(scene: Scene, rng: np.random.Generator) -> str:
    """Return the name of an object of the scene."""
    return phrase(scene.objects[rng.integers(len(scene.objects))])


class SceneRows(Sequence, ABC):
    """Rows about scenes.

    Args:
        count: Number of rows.
        seed: Another seed gives other rows.
        image_size: Height and width of the images in pixels.
    """

    def __init__(self, count: int, seed: int = 0, image_size: int = 96):
        self.length = count
        self.seed = seed
        self.image_size = image_size

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]  # slices are not supported
        if not 0 <= index < self.length:
            raise IndexError(f"Index {index} is out of range for {self.length} rows.")
        return self.row(index, np.random.default_rng((self.seed, index)))

    @abstractmethod
    def row(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return the row of an index."""


class SceneQuestions(SceneRows):
    """Questions about color, shape, count and presence, each with the answers of ten annotators.

    Rows have `question_id`, `image`, `question` and `answer` (a list), as in the original's `vqa_train.json`.
    Annotators use synonyms for a shape, so that several answers are right.
    """

    answers = (*COLORS, *(name for names in SHAPE_NAMES.values() for name in names), *NUMBERS.values(), "yes", "no")

    def row(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return a question of one of four kinds."""
        scene = compose(rng)
        ask = (self._color, self._shape, self._count, self._presence)[rng.integers(4)]
        question, names = ask(scene, rng)
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

    def _count(self, scene: Scene, rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
        return "how many things are there?", (NUMBERS[len(scene.objects)],)

    def _presence(self, scene: Scene, rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
        is_present = rng.random() < 0.5
        name = present(scene, rng) if is_present else absent(scene, rng)
        return f"is there a {name}?", ("yes" if is_present else "no",)


def _one_of_a_kind(scene: Scene, attribute: str, rng: np.random.Generator) -> SceneObject:
    """Return a random object whose color, or shape, is unique; the first object if there is none."""
    values = [getattr(thing, attribute) for thing in scene.objects]
    single = [thing for thing, value in zip(scene.objects, values, strict=True) if values.count(value) == 1]
    return single[rng.integers(len(single))] if single else scene.objects[0]


class ScenePairs(SceneRows):
    """Statements about two images; each statement appears with two pairs of images, and is true for one of them.

    Rows have `images` (two), `sentence` and `label` ("True" or "False"), as in the original's `nlvr_train.json`.
    """

    def row(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return a pair; its neighbor has the same statement and the other label."""
        rng = np.random.default_rng((self.seed, index // 2))
        kind = int(rng.integers(4))
        label = bool(rng.integers(2)) == bool(index % 2)
        named = compose(rng)
        compose(rng)  # keeps the random state, and so the rows, of earlier versions
        name = present(named, rng)
        pair_rng = np.random.default_rng((self.seed, index // 2, index % 2))
        first, second = self._scenes(kind, name, label, pair_rng)
        sentences = ("the left picture shows a {}", "the right picture shows a {}", "both pictures show a {}")
        sentence = (*sentences, "the left picture has more things than the right one")[kind].format(name)
        images = [scene.draw(self.image_size) for scene in (first, second)]
        return {"images": images, "sentence": sentence, "label": str(label)}

    def _scenes(self, kind: int, name: str, label: bool, rng: np.random.Generator) -> tuple[Scene, Scene]:
        """Return two scenes for which a statement of this kind is true or false."""
        if kind == 3:
            while True:
                pair = compose(rng), compose(rng)
                difference = len(pair[0].objects) - len(pair[1].objects)
                if difference and (difference > 0) == label:
                    return pair
        # If the statement is about one side, the other side shows the object by chance. If it is about both and false,
        # one of them still shows the object.
        chance = bool(rng.integers(2))
        shown = ((label, chance), (chance, label), (True, True) if label else (chance, not chance))[kind]
        return _with(name, shown[0], rng), _with(name, shown[1], rng)


def _with(name: str, shown: bool, rng: np.random.Generator) -> Scene:
    """Return a random scene that has, or does not have, an object of this name."""
    color, shape = name.split(" ")
    while True:
        scene = compose(rng)
        names = [phrase(thing) for thing in scene.objects]
        if not shown and name not in names:
            return scene
        if shown:
            # Repaint one object, unless another one looks the same.
            target = int(rng.integers(len(names)))
            things = list(scene.objects)
            things[target] = replace(things[target], shape=shape, color=color)
            if len({phrase(thing) for thing in things}) == len(things):
                return Scene(tuple(things), scene.background)


class SceneEntailment(SceneRows):
    """Sentences that an image entails, leaves open or contradicts, a third each.

    Rows have `image`, `sentence` and `label`, as in the original's `ve_train.json`. The sentence alone reveals whether
    it is neutral, but not whether it is true.
    """

    def row(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return a sentence with one of the three labels."""
        scene = compose(rng)
        label = ("entailment", "neutral", "contradiction")[rng.integers(3)]
        opening = rng.choice(OPENINGS)
        name = absent(scene, rng) if label == "contradiction" else present(scene, rng)
        sentence = f"a {name}"
        if label == "neutral":
            sentence = str(rng.choice(NEUTRAL)).format(sentence)
        return {"image": scene.draw(self.image_size), "sentence": f"{opening}{sentence}", "label": label}


class SceneExpressions(SceneRows):
    """Expressions that refer to one object of an image, with its box and the boxes of all objects.

    Rows have `image`, `text` and `ref_id`, as in the original's `refcoco+_val.json`, `image_id`, and for evaluation
    `bbox` and `boxes`: left, top, width and height in pixels.
    """

    def row(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return an expression with color and shape, and sometimes size or place."""
        scene = compose(rng)
        target = int(rng.integers(len(scene.objects)))
        thing = scene.objects[target]
        extra = rng.random()
        text = f"the {phrase(thing)}"
        if extra < 0.25:
            text = f"the {thing.size} {phrase(thing)}"
        elif extra < 0.5:
            text = f"{text} {PLACES[int(thing.x > 0.5), int(thing.y > 0.5)]}"
        boxes = [self._pixel_box(other) for other in scene.objects]
        return {
            "image": scene.draw(self.image_size),
            "image_id": index,
            "ref_id": index,
            "text": text,
            "bbox": boxes[target],
            "boxes": boxes,
        }

    def _pixel_box(self, thing: SceneObject) -> list[float]:
        left, top, right, bottom = (self.image_size * edge for edge in thing.box)
        return [left, top, right - left, bottom - top]


class SceneColors(SceneRows):
    """Which colors are there? Rows have `image`, `text` (the question) and `label`, a list of names.

    The text is the same for all rows, so it reveals nothing.
    """

    def row(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return a scene with its colors."""
        scene = compose(rng)
        colors = sorted({thing.color for thing in scene.objects})
        return {"image": scene.draw(self.image_size), "text": "which colors are there?", "label": colors}


class SceneCounts(SceneRows):
    """How many things are there? Rows have `image`, `text` (the question) and `label`, a number."""

    def row(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return a scene with the number of its objects."""
        scene = compose(rng)
        return {
            "image": scene.draw(self.image_size),
            "text": "how many things are there?",
            "label": len(scene.objects),
        }


class SceneOfOne(SceneRows):
    """Scenes of a single object, whose class is one of its attributes. Rows have `image` and `label`."""

    attribute: ClassVar[str]
    names: ClassVar[tuple[str, ...]]
    templates: ClassVar[tuple[str, ...]]  # of prompts, which name the other attribute in all ways

    def row(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return an object with its class."""
        scene = compose(rng)
        thing = scene.objects[0]
        return {
            "image": Scene((thing,), scene.background).draw(self.image_size),
            "label": getattr(thing, self.attribute),
        }


class SceneOfOneColor(SceneOfOne):
    """Scenes of a single object, whose class is its color."""

    attribute = "color"
    names = (*COLORS,)
    templates = tuple(f"a {{}} {shape}" for shape in SHAPE_NAMES)


class SceneOfOneShape(SceneOfOne):
    """Scenes of a single object, whose class is its shape."""

    attribute = "shape"
    names = (*SHAPE_NAMES,)
    templates = tuple(f"a {color} {{}}" for color in COLORS)


class SceneRatings(SceneRows):
    """Captions of different quality. Rows have `image`, `text` and `rating`.

    A right caption has 4, one with a wrong color of one object 3, with all colors wrong 2, that of another scene 1.
    """

    def row(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return a scene with a caption and its rating."""
        scene = compose(rng)
        rating = int(rng.integers(1, 5))
        wrong = {4: 0, 3: 1, 2: len(scene.objects)}.get(rating)
        described = compose(rng) if wrong is None else _repainted(scene, wrong, rng)
        return {"image": scene.draw(self.image_size), "text": describe(described, rng), "rating": rating}


def _repainted(scene: Scene, count: int, rng: np.random.Generator) -> Scene:
    """Return a scene in which the first objects have other colors."""
    things = list(scene.objects)
    for index in range(count):
        colors = [color for color in COLORS if color != things[index].color]
        things[index] = replace(things[index], color=str(rng.choice(colors)))
    return Scene(tuple(things), scene.background)


class SceneCaptions(SceneRows):
    """Images with several captions, for retrieval: `image`, `image_id` and `caption`, as in `flickr30k_val.json`."""

    def row(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return an image with three captions."""
        scene = compose(rng)
        captions = [describe(scene, rng) for _ in range(3)]
        return {"image": scene.draw(self.image_size), "image_id": index, "caption": captions}


class SceneChoices(SceneRows):
    """Images with a right and a wrong caption: `image`, `caption`, `wrong_caption` and `category`.

    A caption names two objects and how one lies from the other. The wrong one has an object of another color or shape,
    which is not in the scene, the opposite relation, or the objects in the other order, a quarter each. No caption
    alone reveals whether it is right.
    """

    categories = ("color", "shape", "relation", "order")

    def row(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return a choice; the categories take turns."""
        scene = compose(rng)
        first, second = (scene.objects[place] for place in rng.permutation(len(scene.objects))[:2])
        relation = first.relation_to(second)
        opening, wording = rng.choice(OPENINGS), rng.integers(3)

        def caption(first: SceneObject, relation: str, second: SceneObject) -> str:
            names = [f"{'an' if thing.color[0] in 'aeiou' else 'a'} {phrase(thing)}" for thing in (first, second)]
            return f"{opening}{names[0]} {RELATIONS[relation][wording]} {names[1]}"

        category = self.categories[index % len(self.categories)]
        if category == "relation":
            wrong = caption(first, OPPOSITES[relation], second)
        elif category == "order":
            wrong = caption(second, relation, first)
        else:
            wrong = caption(self._changed(scene, first, category, rng), relation, second)
        right = caption(first, relation, second)
        return {
            "image": scene.draw(self.image_size),
            "caption": right,
            "wrong_caption": wrong,
            "category": category,
        }

    def _changed(self, scene: Scene, thing: SceneObject, attribute: str, rng: np.random.Generator) -> SceneObject:
        """Return an object with another color or shape, which is not in the scene."""
        names = {phrase(other) for other in scene.objects}
        recolored = (replace(thing, color=color) for color in COLORS)
        reshaped = (replace(thing, shape=shape) for shape in SHAPE_NAMES)
        others = {"color": recolored, "shape": reshaped}[attribute]
        absent = [other for other in others if phrase(other) not in names]
        return absent[rng.integers(len(absent))]


class SceneDescriptions(SceneCaptions):
    """Images with captions, as `SceneCaptions`, and the `objects` of the scenes, which captions can be checked by."""

    def row(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return an image with three captions, and its objects."""
        scene = compose(np.random.default_rng((self.seed, index)))  # the random state of the row
        return {**super().row(index, rng), "objects": scene.objects}
