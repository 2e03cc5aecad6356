"""Check what captions say of scenes: objects, colors, shapes, sizes, relations and places, counted exactly."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..processing_albef import clean_caption
from .scenes import COLORS, PLACES, RELATIONS, SHAPE_NAMES, SIZE_NAMES, SceneObject


def _words(names: Iterable[str]) -> str:
    """Return a pattern of names, the longest first, cleaned as captions are."""
    return "|".join(sorted(map(clean_caption, names), key=len, reverse=True))


_SHAPES = {name: shape for shape, names in SHAPE_NAMES.items() for name in names}
_SIZES = {name: size for size, names in SIZE_NAMES.items() for name in names}
_DIRECTIONS = {name: direction for direction, names in RELATIONS.items() for name in names}
_SIDES = {name: sides for sides, name in PLACES.items()}
_MENTION = re.compile(rf"\b(?:an? )?(?:({_words(_SIZES)}) )?({_words(COLORS)}) ({_words(_SHAPES)})\b")


@dataclass
class CheckedCaption:
    """What a caption says of a scene, and whether it is right.

    Args:
        objects: Whether each object that is mentioned, by color and shape, is in the scene.
        colors: Whether each color that is mentioned is that of an object of the scene.
        shapes: Likewise for shapes.
        sizes: Whether each size that is mentioned is that of the object; wrong if there is no such object.
        relations: Whether each relation of two objects is right; wrong if one of them is not in the scene.
        places: Whether each place of an object is right; wrong if the object is not in the scene.
        named: Objects of the scene that are mentioned.
        total: Objects of the scene.
    """

    objects: list[bool] = field(default_factory=list)
    colors: list[bool] = field(default_factory=list)
    shapes: list[bool] = field(default_factory=list)
    sizes: list[bool] = field(default_factory=list)
    relations: list[bool] = field(default_factory=list)
    places: list[bool] = field(default_factory=list)
    named: int = 0
    total: int = 0

    @property
    def is_right(self) -> bool:
        """Return whether the caption names every object once, and nothing that it says is wrong."""
        said = (self.objects, self.sizes, self.relations, self.places)
        return self.named == self.total == len(self.objects) and all(map(all, said))


def check_caption(caption: str, objects: Sequence[SceneObject]) -> CheckedCaption:
    """Compare a caption with the objects of its scene, no two of which have the same color and shape."""
    caption = clean_caption(caption, max_words=len(caption))
    things = {(thing.color, thing.shape): thing for thing in objects}
    mentions = list(_MENTION.finditer(caption))
    found = [things.get((mention[2], _SHAPES[mention[3]])) for mention in mentions]
    checked = CheckedCaption(total=len(objects), named=len({id(thing) for thing in found if thing}))
    for index, (mention, thing) in enumerate(zip(mentions, found, strict=True)):
        checked.objects.append(thing is not None)
        checked.colors.append(mention[2] in {other.color for other in objects})
        checked.shapes.append(_SHAPES[mention[3]] in {other.shape for other in objects})
        if mention[1]:
            checked.sizes.append(thing is not None and thing.size == _SIZES[mention[1]])
        is_last = index + 1 == len(mentions)
        after = caption[mention.end() : None if is_last else mentions[index + 1].start()].strip()
        other = None if is_last else found[index + 1]
        if after in _DIRECTIONS:
            relation = thing.relation_to(other) if thing and other else None
            checked.relations.append(relation == _DIRECTIONS[after])
        place = after.removesuffix(" with")
        if place in _SIDES:
            checked.places.append(thing is not None and (int(thing.x > 0.5), int(thing.y > 0.5)) == _SIDES[place])
    return checked


def scene_scores(captions: Sequence[str], scenes: Sequence[Sequence[SceneObject]]) -> dict[str, float]:
    """Return how much of what captions say of their scenes is right, in percent.

    Args:
        captions: A caption of each scene.
        scenes: The objects of each scene.

    Returns:
        `objects`, `colors`, `shapes`, `sizes`, `relations` and `places`: the share of those mentioned that are
        right; those that no caption mentions are missing. `objects_named`: the share of the scenes' objects that are
        mentioned. `captions_right`: the share of captions that name every object once and say nothing wrong.
    """
    checked = [check_caption(caption, objects) for caption, objects in zip(captions, scenes, strict=True)]
    said: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for caption in checked:
        for name in ("objects", "colors", "shapes", "sizes", "relations", "places"):
            said[name] += len(getattr(caption, name))
            right[name] += sum(getattr(caption, name))
    scores = {name: 100 * right[name] / count for name, count in said.items() if count}
    scores["objects_named"] = 100 * sum(caption.named for caption in checked) / sum(one.total for one in checked)
    return scores | {"captions_right": 100 * sum(caption.is_right for caption in checked) / len(checked)}
