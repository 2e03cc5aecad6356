"""Tasks posed by the synthetic scenes."""

import numpy as np

from albef_hf.data.scene_tasks import (
    SceneChoices,
    SceneEntailment,
    SceneExpressions,
    ScenePairs,
    SceneQuestions,
    phrase,
)
from albef_hf.data.scenes import RELATIONS, compose


def test_each_statement_has_a_true_and_a_false_pair():
    rows = ScenePairs(60, seed=5)
    for first, second in zip(list(rows)[::2], list(rows)[1::2], strict=True):
        assert first["sentence"] == second["sentence"]
        assert {first["label"], second["label"]} == {"True", "False"}


def test_rows_depend_on_seed_and_index_alone():
    for kind in (SceneQuestions, ScenePairs, SceneEntailment, SceneExpressions, SceneChoices):
        first, again, other = kind(5, seed=1)[3], kind(9, seed=1)[3], kind(5, seed=2)[3]
        plain = [{name: value for name, value in row.items() if "image" not in name} for row in (first, again, other)]
        assert plain[0] == plain[1] != plain[2]


def test_annotators_answer_from_the_list():
    for row in SceneQuestions(60, seed=3):
        assert len(row["answer"]) == 10 and set(row["answer"]) <= set(SceneQuestions.answers)


def test_the_box_of_an_expression_has_its_color():
    from albef_hf.data.scenes import COLORS

    for row in SceneExpressions(30, seed=1):
        left, top, width, height = row["bbox"]
        pixels = np.asarray(row["image"])
        color = next(np.array(COLORS[word]) for word in row["text"].split() if word in COLORS)
        inside = pixels[int(top) : int(top + height) + 1, int(left) : int(left + width) + 1].reshape(-1, 3)
        assert (np.abs(inside - color).sum(1) < 30).mean() > 0.15
        assert row["bbox"] in row["boxes"]


def statement(caption: str) -> tuple[str, str, str]:
    """Return the two objects that a caption names, and the relation that it claims."""
    words = max((word for words in RELATIONS.values() for word in words if f" {word} " in caption), key=len)
    first, second = caption.split(f" {words} ")
    relation = next(name for name, synonyms in RELATIONS.items() if words in synonyms)
    return " ".join(first.split()[-2:]), relation, " ".join(second.split()[-2:])


def test_right_captions_are_true_and_wrong_ones_false():
    rows = SceneChoices(80, seed=4)
    for index, row in enumerate(rows):
        things = {phrase(thing): thing for thing in compose(np.random.default_rng((4, index))).objects}
        first, relation, second = statement(row["caption"])
        assert things[first].relation_to(things[second]) == relation
        wrong_first, wrong_relation, wrong_second = statement(row["wrong_caption"])
        same = (wrong_first == first, wrong_relation == relation, wrong_second == second)
        assert row["category"] == SceneChoices.categories[index % 4]
        if row["category"] == "order":
            assert (wrong_first, wrong_second) == (second, first)
            assert sorted(row["caption"].replace("an ", "a ").split()) == sorted(
                row["wrong_caption"].replace("an ", "a ").split()
            )
        elif row["category"] == "relation":
            assert same == (True, False, True)
            assert {relation, wrong_relation} in ({"left", "right"}, {"above", "below"})
        else:
            kept = {"color": 1, "shape": 0}[row["category"]]  # word of the object that stays
            assert same == (False, True, True) and wrong_first not in things
            assert wrong_first.split()[kept] == first.split()[kept]
