"""Accuracy of answers to questions about images, by the formula of VQA v2 and with its normalisation of answers.

Both follow `PythonEvaluationTools/vqaEvaluation/vqaEval.py` of https://github.com/GT-Vision-Lab/VQA at commit a013f00,
where the lists of punctuation, number words, articles and contractions come from. The copy in the original's
`vqaTools` is older; the README tells the difference.
"""

import re
from collections.abc import Sequence
from statistics import fmean

import datasets
import evaluate

DESCRIPTION = """\
Accuracy of answers to questions about images, as in VQA v2: the ten human answers are taken nine at a time, an answer
is fully right if three of the nine are the same, and the mean is reported, in percent.
"""

INPUTS_DESCRIPTION = """
Args:
    predictions: One answer for each question, a string.
    references: For each question the answers of people, strings; ten in VQA, at least one.
    answer_types: Optional, one string for each question: "yes/no", "number" or "other" in VQA.
    question_types: Optional, one string for each question: the words it starts with in VQA.
Returns:
    `accuracy`; with answer types also `per_answer_type`, and with question types `per_question_type`, the accuracy of
    each; in percent.
"""

CITATION = """\
@inproceedings{goyal2017making,
  title = {Making the {V} in {VQA} Matter: Elevating the Role of Image Understanding in Visual Question Answering},
  author = {Goyal, Yash and Khot, Tejas and Summers-Stay, Douglas and Batra, Dhruv and Parikh, Devi},
  booktitle = {Conference on Computer Vision and Pattern Recognition},
  year = {2017},
}
@inproceedings{antol2015vqa,
  title = {{VQA}: Visual Question Answering},
  author = {Antol, Stanislaw and Agrawal, Aishwarya and Lu, Jiasen and Mitchell, Margaret and Batra, Dhruv
            and Zitnick, C. Lawrence and Parikh, Devi},
  booktitle = {International Conference on Computer Vision},
  year = {2015},
}
"""

ENOUGH = 3  # people who gave the same answer make it fully right
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # neither apostrophe nor colon
MOST_PERIODS = 32  # that the official code removes: it passes a flag where the number of replacements belongs
ARTICLES = ("a", "an", "the")
DIGITS_IN_WORDS = "zero one two three four five six seven eight nine ten"
FORMS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
NUMBERS = {word: str(n) for n, word in enumerate(DIGITS_IN_WORDS.split())} | {"none": "0"}
# Each form is restored where one of its apostrophes is missing; one entry of the official list goes the other way.
CONTRACTIONS = {
    form[:place] + form[place + 1 :]: form
    for form in FORMS.split()
    for place, character in enumerate(form)
    if character == "'"
} | {"somebody'd": "somebodyd"}


def normalize_answer(text: str) -> str:
    """Bring an answer into the form in which the official code compares answers.

    In this order: line breaks and tabs become spaces; a mark of punctuation is removed if it stands beside a space
    anywhere in the text, or if the text has a comma between digits, and becomes a space otherwise; periods go unless a
    digit follows; words are set in lower case, number words up to ten become digits (and "none" 0), articles are
    dropped, and contractions get the apostrophe that they lack.

    >>> normalize_answer("The two-story house.")
    '2 story house'
    >>> normalize_answer("$1,000.50, dont you think?")
    "$1000.50 don't you think"
    """
    text = _tidy(text)
    # Whether a mark stands beside a space is asked of the whole text as it came, not of what earlier marks left.
    thousands = re.search(r"\d,\d", text)
    removed = {mark for mark in PUNCTUATION if thousands or f"{mark} " in text or f" {mark}" in text}
    text = text.translate({ord(mark): "" if mark in removed else " " for mark in PUNCTUATION})
    text = re.sub(r"\.(?!\d)", "", text, count=MOST_PERIODS)
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def answer_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy of one answer: the mean, over human answers left out in turn, of min(1, matches among the rest / 3).

    Prediction and human answers are normalised only where people disagree, for which differences of line breaks, tabs
    and outer spaces do not count. Where all gave the same answer, the official code compares as they are written, so
    that "Two" is wrong if ten people wrote "two".

    With fewer than four human answers, all the rest have to match instead of three of them, so that what everybody
    says is right; one answer alone has to be matched exactly.

    Args:
        prediction: The answer.
        answers: Of people, one or more.

    Returns:
        0 to 100.

    Raises:
        ValueError: There is no human answer, or a string in place of the list.
    """
    if isinstance(answers, str) or len(answers) == 0:
        raise ValueError(f"The human answers to a question are {answers!r}: give a list of one or more.")
    prediction, answers = _tidy(prediction), [_tidy(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = normalize_answer(prediction), [normalize_answer(answer) for answer in answers]
    people, matches = len(answers), answers.count(prediction)
    if people == 1:
        return 100.0 * matches
    enough = min(ENOUGH, people - 1)
    # One of the matches is left out as often as there are matches, and none of them the other times.
    points = matches * min(enough, matches - 1) + (people - matches) * min(enough, matches)
    return 100 * points / (people * enough)


def vqa_accuracy(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    answer_types: Sequence[str] | None = None,
    question_types: Sequence[str] | None = None,
) -> dict[str, float | dict[str, float]]:
    """Mean of `answer_accuracy` over questions, and over the questions of each type.

    Args:
        predictions: One answer a question.
        references: The human answers to each question.
        answer_types: "yes/no", "number" or "other" in VQA; any name will do.
        question_types: The first words of the questions in VQA; any name will do.

    Returns:
        `accuracy`; `per_answer_type` and `per_question_type` if given, from type to accuracy; in percent, not rounded
        (the official code rounds to two decimals).

    Raises:
        ValueError: There is no question, a question has no human answer, or lengths differ.
    """
    types = {"answer_types": answer_types, "question_types": question_types}
    given = {name: values for name, values in types.items() if values is not None}
    _check(predictions, {"references": references, **given})
    scores = [answer_accuracy(*question) for question in zip(predictions, references, strict=True)]
    results: dict[str, float | dict[str, float]] = {"accuracy": fmean(scores)}
    for name, values in given.items():
        groups: dict[str, list[float]] = {}
        for value, score in zip(values, scores, strict=True):
            groups.setdefault(value, []).append(score)
        results[f"per_{name.removesuffix('s')}"] = {value: fmean(group) for value, group in groups.items()}
    return results


def _tidy(text: str) -> str:
    return re.sub(r"[\n\t]", " ", text).strip()


def _check(predictions: Sequence[str], others: dict[str, Sequence]) -> None:
    if len(predictions) == 0:
        raise ValueError("There is nothing to score: give the answer to at least one question.")
    for name, values in others.items():
        if len(values) != len(predictions):
            raise ValueError(
                f"{len(predictions)} predictions but {len(values)} {name}: give one of each for every "
                "question, in the same order."
            )


class VqaAccuracy(evaluate.Metric):
    """`vqa_accuracy` for `evaluate.load`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
            reference_urls=["https://visualqa.org/evaluation.html", "https://github.com/GT-Vision-Lab/VQA"],
        )

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        answer_types: Sequence[str] | None = None,
        question_types: Sequence[str] | None = None,
    ) -> dict[str, float | dict[str, float]]:
        return vqa_accuracy(predictions, references, answer_types, question_types)
