"""Tasks posed by the synthetic scenes."""

import numpy as np

from albef_hf.data.scene_tasks import SceneEntailment, SceneExpressions, ScenePairs, SceneQuestions


def test_each_statement_has_a_true_and_a_false_pair():
    rows = ScenePairs(60, seed=5)
    for first, second in zip(list(rows)[::2], list(rows)[1::2], strict=True):
        assert first["sentence"] == second["sentence"]
        assert {first["label"], second["label"]} == {"True", "False"}


def test_rows_depend_on_seed_and_index_alone():
    for kind in (SceneQuestions, ScenePairs, SceneEntailment, SceneExpressions):
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
