"""What captions say of scenes is counted as the generator of the scenes means it."""

import pytest

from albef_hf.data.scene_captions import check_caption, scene_scores
from albef_hf.data.scene_tasks import SceneCaptions, SceneDescriptions
from albef_hf.data.scenes import SceneObject

BALL = SceneObject("circle", "red", "big", x=0.2, y=0.3, width=0.3)
STAR = SceneObject("star", "blue", "small", x=0.8, y=0.4, width=0.15)


def test_all_that_the_generator_says_is_right_and_of_another_scene_little():
    rows = [SceneDescriptions(100, seed=3)[index] for index in range(100)]
    objects = [row["objects"] for row in rows]
    for caption in range(3):
        scores = scene_scores([row["caption"][caption] for row in rows], objects)
        assert set(scores.values()) == {100.0} and len(scores) == 8
    scores = scene_scores([row["caption"][0] for row in rows], [*objects[1:], objects[0]])
    assert scores["objects"] < 15 and scores["captions_right"] == 0 and scores["relations"] < 15
    assert rows[7]["caption"] == SceneCaptions(100, seed=3)[7]["caption"], "those of retrieval"


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (
            "We see a huge red ball to the left of a blue pointed star!",
            {"objects": [1, 1], "sizes": [1], "relations": [1]},
        ),
        ("a blue star on the right side of a red disc", {"objects": [1, 1], "relations": [1]}),
        ("a red ball right of a blue star", {"objects": [1, 1], "relations": [0]}),
        ("a tiny red ball at the top left, with a big blue star", {"objects": [1, 1], "sizes": [0, 0], "places": [1]}),
        ("a red ball at the bottom left, with a blue star", {"objects": [1, 1], "places": [0]}),
        ("a red star and a blue ball", {"objects": [0, 0], "colors": [1, 1], "shapes": [1, 1]}),
        ("a green ball above a blue star", {"objects": [0, 1], "colors": [0, 1], "shapes": [1, 1], "relations": [0]}),
        ("a red ball, a red ball and a blue star", {"objects": [1, 1, 1]}),
        ("a red ball", {"objects": [1]}),
        ("a picture of something red", {}),
    ],
)
def test_what_is_said_is_checked_one_by_one(caption, expected):
    checked = check_caption(caption, [BALL, STAR])
    names = ("objects", "sizes", "relations", "places")
    assert {name: getattr(checked, name) for name in names} == {name: expected.get(name, []) for name in names}
    for name in ("colors", "shapes"):
        assert getattr(checked, name) == expected.get(name, [1] * len(checked.objects))
    is_right = len(checked.objects) == 2 and all(all(values) for values in expected.values())
    assert checked.is_right == is_right


def test_shares_are_of_what_is_mentioned():
    scores = scene_scores(["a red ball and a green cross", "a blue star"], [[BALL, STAR]] * 2)
    assert scores == pytest.approx(
        {"objects": 200 / 3, "colors": 200 / 3, "shapes": 200 / 3, "objects_named": 50, "captions_right": 0}
    )
