"""Built-in synthetic data: images of colored shapes with captions, drawn from a seed, without files or downloads."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

COLORS = {
    "red": (214, 39, 40),
    "green": (44, 140, 44),
    "blue": (31, 80, 200),
    "yellow": (240, 210, 30),
    "orange": (255, 127, 14),
    "purple": (130, 60, 170),
    "pink": (240, 130, 190),
    "brown": (120, 75, 50),
    "black": (25, 25, 25),
    "turquoise": (40, 190, 190),
}
BACKGROUNDS = [(250, 250, 250), (225, 225, 225), (245, 235, 215), (215, 230, 245), (222, 240, 218)]
SIZES = {"small": (0.13, 0.18), "big": (0.26, 0.34)}  # width of a shape as a share of the image's width

# Synonyms; the first name of a shape is its key.
SHAPE_NAMES = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "pyramid", "wedge"),
    "star": ("star", "star shape", "pointed star"),
    "diamond": ("diamond", "rhombus", "lozenge"),
    "cross": ("cross", "plus", "plus sign"),
    "ring": ("ring", "hoop", "loop"),
    "hexagon": ("hexagon", "six sided shape", "honeycomb cell"),
}
SIZE_NAMES = {"small": ("small", "little", "tiny"), "big": ("big", "large", "huge")}
RELATIONS = {
    "left": ("to the left of", "on the left side of", "left of"),
    "right": ("to the right of", "on the right side of", "right of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "lower than"),
}
PLACES = {
    (0, 0): "at the top left",
    (1, 0): "at the top right",
    (0, 1): "at the bottom left",
    (1, 1): "at the bottom right",
}
OPENINGS = ("", "", "", "a picture of ", "there is ", "we see ")
VAGUE = (
    "some shapes",
    "a picture with colors",
    "a colorful drawing",
    "several things on a plain background",
    "an image of geometry",
    "shapes of different kinds",
)


@dataclass(frozen=True)
class SceneObject:
    """A shape: its look, and the center and width of its circumscribed circle as shares of the image."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    width: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the drawn shape as shares of the image."""
        xs, ys = zip(*_outline(self.shape, self.x, self.y, self.width / 2), strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def relation_to(self, other: "SceneObject") -> str:
        """Return the direction of this object from the other one: left, right, above or below."""
        horizontal = self.x - other.x
        vertical = self.y - other.y
        if abs(horizontal) > abs(vertical):
            return "left" if horizontal < 0 else "right"
        return "above" if vertical < 0 else "below"


@dataclass(frozen=True)
class Scene:
    """Objects on a plain background; no two have the same color and shape, and none overlap."""

    objects: tuple[SceneObject, ...]
    background: tuple[int, int, int]

    def mirrored(self) -> "Scene":
        """Return the scene with left and right swapped."""
        return replace(self, objects=tuple(replace(thing, x=1 - thing.x) for thing in self.objects))

    def draw(self, image_size: int) -> Image.Image:
        """Draw the scene at twice the size and downscale it, which smooths the edges."""
        image = Image.new("RGB", (2 * image_size, 2 * image_size), self.background)
        canvas = ImageDraw.Draw(image)
        for thing in self.objects:
            radius = thing.width * image_size
            points = _outline(thing.shape, 2 * image_size * thing.x, 2 * image_size * thing.y, radius)
            canvas.polygon(points, fill=COLORS[thing.color])
            if thing.shape == "ring":
                hole = _outline("circle", 2 * image_size * thing.x, 2 * image_size * thing.y, 0.5 * radius)
                canvas.polygon(hole, fill=self.background)
        return image.resize((image_size, image_size), Image.Resampling.BOX)


def _outline(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Return the corners of a shape inside the circle around (x, y)."""

    def polygon(corners: int, radii: Callable[[int], float], start: float) -> list[tuple[float, float]]:
        angles = [start + 2 * math.pi * corner / corners for corner in range(corners)]
        return [(x + radii(i) * math.cos(a), y + radii(i) * math.sin(a)) for i, a in enumerate(angles)]

    up = -math.pi / 2
    if shape in ("circle", "ring"):
        return polygon(40, lambda corner: radius, up)
    if shape == "star":
        return polygon(10, lambda corner: radius if corner % 2 == 0 else 0.42 * radius, up)
    if shape == "cross":
        third = 0.35 * radius
        corner = [(-third, -radius), (third, -radius), (third, -third)]
        turns = [(1, 0, 0, 1), (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0)]
        return [(x + a * u + b * v, y + c * u + d * v) for a, b, c, d in turns for u, v in corner]
    corners = {"triangle": 3, "square": 4, "diamond": 4, "hexagon": 6}[shape]
    return polygon(corners, lambda corner: radius, up + (math.pi / 4 if shape == "square" else 0))


def compose(rng: np.random.Generator, max_objects: int = 4) -> Scene:
    """Draw a scene of 2 to `max_objects` objects at random."""
    objects: list[SceneObject] = []
    wanted = rng.integers(2, max_objects + 1)
    while len(objects) < wanted:
        size = str(rng.choice(list(SIZES)))
        width = rng.uniform(*SIZES[size])
        x, y = rng.uniform(width / 2, 1 - width / 2, size=2)
        thing = SceneObject(
            str(rng.choice(list(SHAPE_NAMES))), str(rng.choice(list(COLORS))), size, float(x), float(y), float(width)
        )
        apart = all(max(abs(o.x - x), abs(o.y - y)) > (o.width + width) / 2 for o in objects)
        if apart and all((o.shape, o.color) != (thing.shape, thing.color) for o in objects):
            objects.append(thing)
    return Scene(tuple(objects), BACKGROUNDS[rng.integers(len(BACKGROUNDS))])


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """Describe a scene in words: a list of its objects, a relation of two of them, or a place.

    The same random state gives the same words for a scene and its mirror image, except for left and right.
    """

    def name(thing: SceneObject) -> str:
        noun = rng.integers(3)
        size = rng.integers(3)
        has_size = rng.random() < 0.5
        adjective = f"{SIZE_NAMES[thing.size][size]} " if has_size else ""
        phrase = f"{adjective}{thing.color} {SHAPE_NAMES[thing.shape][noun]}"
        return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"

    things = [scene.objects[i] for i in rng.permutation(len(scene.objects))]
    opening = rng.choice(OPENINGS)
    wording = rng.integers(3)
    kind = rng.random()
    names = [name(thing) for thing in things]
    if kind < 0.4:
        return f"{opening}{', '.join(names[:-1])} and {names[-1]}"
    if kind < 0.8:
        relation = RELATIONS[things[0].relation_to(things[1])][wording]
        rest = f", and also {' and '.join(names[2:])}" if len(names) > 2 else ""
        return f"{opening}{names[0]} {relation} {names[1]}{rest}"
    place = PLACES[int(things[0].x > 0.5), int(things[0].y > 0.5)]
    return f"{opening}{names[0]} {place}, with {' and '.join(names[1:])}"


class Scenes(Sequence):
    """Rows of scenes: `image`, `caption` (several), `mirrored_caption`, and `objects` with boxes.

    A row depends only on the seed and its index, so that all processes and workers see the same data.

    Args:
        count: Number of scenes.
        seed: Another seed gives other scenes.
        image_size: Height and width in pixels.
        captions: Number of captions per scene.
        wrong_share: Share of captions that belong to another scene.
        vague_share: Share of captions that fit any scene.
        max_objects: Maximum number of objects of a scene, 2 to 4; the minimum is 2.

    Example:
        ```python
        >>> row = Scenes(10, seed=1)[3]
        >>> row["image"].size, len(row["caption"])
        ((96, 96), 3)

        ```
    """

    def __init__(
        self,
        count: int,
        seed: int = 0,
        image_size: int = 96,
        captions: int = 3,
        wrong_share: float = 0.0,
        vague_share: float = 0.0,
        max_objects: int = 4,
    ):
        if not (wrong_share >= 0 and vague_share >= 0 and wrong_share + vague_share <= 1):
            raise ValueError(f"wrong_share ({wrong_share}) and vague_share ({vague_share}) must add up to 0 to 1.")
        if not 2 <= max_objects <= 4:
            raise ValueError(f"max_objects is {max_objects}: captions need at least 2, and there is room for 4.")
        self.length = count
        self.seed = seed
        self.image_size = image_size
        self.captions = captions
        self.wrong_share = wrong_share
        self.vague_share = vague_share
        self.max_objects = max_objects

    def __len__(self) -> int:
        return self.length

    def scene(self, index: int) -> Scene:
        """Return the scene of a row."""
        return compose(np.random.default_rng((self.seed, index)), self.max_objects)

    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]  # slices are not supported
        if not 0 <= index < self.length:
            raise IndexError(f"Index {index} is out of range for {self.length} scenes.")
        scene = self.scene(index)
        pairs = [self._caption(scene, index, caption) for caption in range(self.captions)]
        return {
            "image": scene.draw(self.image_size),
            "caption": [caption for caption, _ in pairs],
            "mirrored_caption": [mirrored for _, mirrored in pairs],
            "objects": [{**vars(thing), "box": thing.box} for thing in scene.objects],
        }

    def _caption(self, scene: Scene, index: int, caption: int) -> tuple[str, str]:
        """Return a caption and that of the mirrored scene; both may be wrong or vague."""
        rng = np.random.default_rng((self.seed, index, 1 + caption))
        draw = rng.random()
        if draw < self.vague_share:
            vague = str(rng.choice(VAGUE))
            return vague, vague
        if draw < self.vague_share + self.wrong_share and self.length > 1:
            scene = self.scene(int((index + rng.integers(1, self.length)) % self.length))
        wording = int(rng.integers(2**62))
        plain = describe(scene, np.random.default_rng(wording))
        mirrored = describe(scene.mirrored(), np.random.default_rng(wording))
        return plain, mirrored
