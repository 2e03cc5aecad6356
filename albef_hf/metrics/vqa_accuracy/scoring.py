"""Accuracy of answers to questions about images, with the formula and the answer normalization of VQA v2.

Both, and the lists of punctuation, number words, articles and contractions, follow
`PythonEvaluationTools/vqaEvaluation/vqaEval.py` of https://github.com/GT-Vision-Lab/VQA at commit a013f00. The copy in
the original's `vqaTools` is older; the README explains the difference.
"""

import re
from collections.abc import Sequence
from statistics import fmean

FULL_MATCHES = 3  # human answers that a fully correct answer must match
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # neither apostrophe nor colon
MAX_PERIODS = 32  # the official code removes no more: it passes a flag as the number of replacements
ARTICLES = ("a", "an", "the")
NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
FORMS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
DIGITS = {word: str(digit) for digit, word in enumerate(NUMBER_WORDS.split())} | {"none": "0"}
# A contraction without one of its apostrophes is corrected. One entry of the official list does the opposite.
CONTRACTIONS = {
    form[:position] + form[position + 1 :]: form
    for form in FORMS.split()
    for position, character in enumerate(form)
    if character == "'"
} | {"somebody'd": "somebodyd"}


def normalize_answer(text: str) -> str:
    """Normalize an answer as the official code does before it compares answers.

    In this order: line breaks and tabs become spaces; a punctuation mark is removed if it is next to a space anywhere
    in the text, or if the text has a comma between digits, and becomes a space otherwise; periods are removed unless a
    digit follows; words are lower-cased, number words up to ten become digits (and "none" becomes 0), articles are
    removed, and contractions get a missing apostrophe.

    >>> normalize_answer("The two-story house.")
    '2 story house'
    >>> normalize_answer("$1,000.50, dont you think?")
    "$1000.50 don't you think"
    """
    text = _tidy(text)
    # Spaces are looked up in the whole input, not in the text after earlier marks were removed.
    has_thousands = re.search(r"\d,\d", text)
    removed = {mark for mark in PUNCTUATION if has_thousands or f"{mark} " in text or f" {mark}" in text}
    text = text.translate({ord(mark): "" if mark in removed else " " for mark in PUNCTUATION})
    text = re.sub(r"\.(?!\d)", "", text, count=MAX_PERIODS)
    words = [DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def answer_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Compute the accuracy of one answer: each human answer is left out in turn, and min(1, matches / 3) is averaged.

    The prediction and the human answers are normalized only if the human answers differ, apart from line breaks, tabs
    and outer spaces. If all are equal, the official code compares them as they are, so "Two" is wrong if ten people
    wrote "two".

    With fewer than four human answers, all others must match instead of three, so that a unanimous answer is correct.
    A single human answer must match exactly.

    Args:
        prediction: The answer.
        answers: Human answers, one or more.

    Returns:
        Accuracy, 0 to 100.

    Raises:
        ValueError: If there is no human answer, or a string instead of the list.
    """
    if isinstance(answers, str) or len(answers) == 0:
        raise ValueError(f"The human answers to a question are {answers!r}: give a list of one or more.")
    prediction = _tidy(prediction)
    answers = [_tidy(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction = normalize_answer(prediction)
        answers = [normalize_answer(answer) for answer in answers]
    people = len(answers)
    matches = answers.count(prediction)
    if people == 1:
        return 100.0 * matches
    full = min(FULL_MATCHES, people - 1)
    # Each of the matches is left out once, and each of the other answers once.
    points = matches * min(full, matches - 1) + (people - matches) * min(full, matches)
    return 100 * points / (people * full)


def vqa_accuracy(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    answer_types: Sequence[str] | None = None,
    question_types: Sequence[str] | None = None,
) -> dict[str, float | dict[str, float]]:
    """Average `answer_accuracy` over all questions, and over the questions of each type.

    Args:
        predictions: One answer per question.
        references: The human answers to each question.
        answer_types: "yes/no", "number" or "other" in VQA; any name is accepted.
        question_types: The first words of the questions in VQA; any name is accepted.

    Returns:
        `accuracy`; with types also `per_answer_type` and `per_question_type`, from type to accuracy; in percent, not
        rounded (the official code rounds to two decimals).

    Raises:
        ValueError: If there is no question, a question has no human answer, or lengths differ.
    """
    types = {"answer_types": answer_types, "question_types": question_types}
    given = {name: values for name, values in types.items() if values is not None}
    _check(predictions, {"references": references, **given})
    scores = [answer_accuracy(answer, human) for answer, human in zip(predictions, references, strict=True)]
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
