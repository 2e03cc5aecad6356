"""Metrics of classes, by scikit-learn: F1, AUROC, and the thresholds at which several labels are predicted."""

from collections.abc import Sequence

import numpy as np


def choose_thresholds(probabilities: np.ndarray, targets: np.ndarray) -> list[float]:
    """Choose for each class the threshold of the highest F1, 0.5 for a class that no row has.

    A threshold is halfway between the lowest probability that it accepts and the highest that it does not.

    Args:
        probabilities: (rows, classes).
        targets: Whether a row has a class, (rows, classes).
    """
    from sklearn.metrics import precision_recall_curve

    chosen = []
    for scores, is_right in zip(probabilities.T, targets.T, strict=True):
        if not is_right.any():
            chosen.append(0.5)
            continue
        precision, recall, thresholds = precision_recall_curve(is_right, scores)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        best = int(f1[:-1].argmax())
        below = thresholds[best - 1] if best else 0.0
        chosen.append(float((thresholds[best] + below) / 2))
    return chosen


def class_metrics(
    answers: np.ndarray, targets: np.ndarray, names: Sequence[str], probabilities: np.ndarray | None = None
) -> dict[str, float]:
    """Compute metrics of one or several labels in percent.

    The macro averages are over the classes that some row has, and AUROC over those that some row has and some has not.

    Args:
        answers: Whether a class is predicted, (rows, classes).
        targets: Whether a row has a class, (rows, classes).
        names: Names of the classes.
        probabilities: (rows, classes); without them there is no AUROC.

    Returns:
        `macro_f1`, `micro_f1`, `accuracy` (all labels of a row are right), `auroc`, `f1/CLASS`, and
        `rows/classes_without` if there are such.
    """
    from sklearn.metrics import roc_auc_score

    counts = targets.sum(0)
    known = counts > 0
    right = (answers * targets).sum(0)
    marked = counts + answers.sum(0)  # the right ones twice, the wrong and the missed ones once
    per_class = 2 * right / np.maximum(marked, 1)
    metrics = {
        "macro_f1": per_class[known].mean() if known.any() else 0.0,
        "micro_f1": 2 * right.sum() / max(marked.sum(), 1),
        "accuracy": (answers == targets).all(1).mean(),
    }
    judged = known & (counts < len(targets))
    if probabilities is not None and judged.any():
        metrics["auroc"] = roc_auc_score(targets[:, judged], probabilities[:, judged], average="macro")
    metrics |= {f"f1/{name}": value for name, value, has_rows in zip(names, per_class, known, strict=True) if has_rows}
    percent = {name: 100 * float(value) for name, value in metrics.items()}
    return percent | ({} if known.all() else {"rows/classes_without": float((~known).sum())})


def number_metrics(answers: Sequence[float], targets: Sequence[float]) -> dict[str, float]:
    """Compute metrics of numbers in percent: `r2`, the share of the variance that is explained, and `spearman`."""
    from scipy.stats import spearmanr
    from sklearn.metrics import r2_score

    if len(targets) < 2:
        return {"r2": 0.0}
    metrics = {"r2": 100 * float(r2_score(targets, answers))}
    if len(set(targets)) > 1 and len(set(answers)) > 1:
        metrics["spearman"] = 100 * float(spearmanr(answers, targets).statistic)
    return metrics


def text_only_probabilities(train_texts: Sequence[str], train_targets: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Train a linear classifier of words and pairs of words for each class, and apply it to other texts.

    Args:
        train_texts: Texts to train on.
        train_targets: Whether a text has a class, (training texts, classes).
        texts: Texts to classify.

    Returns:
        The probability of each class, (texts, classes).
    """
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    words = HashingVectorizer(token_pattern=r"\w+", ngram_range=(1, 2), n_features=2**16)
    train_features = words.transform(train_texts)
    features = words.transform(texts)
    probabilities = np.empty((len(texts), train_targets.shape[1]))
    for index, is_right in enumerate(train_targets.T):
        if is_right.all() or not is_right.any():
            probabilities[:, index] = is_right[0]
        else:
            probabilities[:, index] = LogisticRegression().fit(train_features, is_right).predict_proba(features)[:, 1]
    return probabilities
