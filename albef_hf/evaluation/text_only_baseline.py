"""What can be answered without the image: a linear classifier of the words of texts."""

import itertools
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

MAX_CLASSES = 1000  # the most frequent answers; with thousands, each would have a column of weights


def text_only_answers(
    train_texts: Sequence[str],
    train_labels: Sequence[Any],
    texts: Sequence[str],
    epochs: int = 20,
    buckets: int = 2**15,
) -> list[Any]:
    """Train a linear classifier of words and pairs of words on texts alone, and apply it to other texts.

    Args:
        train_texts: Texts to train on; those whose label is rare among thousands are dropped.
        train_labels: Their labels.
        texts: Texts to classify.
        epochs: Passes over the training texts.
        buckets: Features that words and pairs of words are hashed to.
    """
    frequent = [label for label, _ in Counter(train_labels).most_common(MAX_CLASSES)]
    classes = sorted(frequent, key=str)
    class_index = {label: index for index, label in enumerate(classes)}
    samples = [
        (_hashed_words(text, buckets), class_index[label])
        for text, label in zip(train_texts, train_labels, strict=True)
        if label in class_index
    ]
    # Only words that occur in training have weights, however many buckets there are.
    used = sorted({bucket for words, _ in samples for bucket in words})
    feature_index = {bucket: index for index, bucket in enumerate(used)}
    features = [[feature_index[bucket] for bucket in words] for words, _ in samples]
    targets = torch.tensor([target for _, target in samples])
    weights = _train(features, targets, len(used), len(classes), epochs)
    queries = [[feature_index[b] for b in _hashed_words(text, buckets) if b in feature_index] for text in texts]
    with torch.no_grad():
        scores = weights(*_bags(queries))
    return [classes[index] for index in scores.argmax(1).tolist()]


def _train(
    features: list[list[int]], targets: torch.Tensor, num_features: int, num_classes: int, epochs: int
) -> nn.EmbeddingBag:
    generator = torch.Generator().manual_seed(0)
    weights = nn.EmbeddingBag(num_features, num_classes, mode="sum", sparse=False)
    nn.init.zeros_(weights.weight)
    optimizer = torch.optim.Adam(weights.parameters(), lr=0.02)
    for _ in range(epochs):
        for rows in torch.randperm(len(features), generator=generator).split(512):
            loss = F.cross_entropy(weights(*_bags([features[row] for row in rows.tolist()])), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return weights


def _hashed_words(text: str, buckets: int) -> list[int]:
    words = ["^", *re.findall(r"\w+", text.lower()), "$"]
    pairs = [" ".join(pair) for pair in itertools.pairwise(words)]
    return [zlib.crc32(word.encode()) % buckets for word in words + pairs]


def _bags(features: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices of all texts one after the other, and where each text begins."""
    lengths = [0, *itertools.accumulate(len(words) for words in features)]
    return torch.tensor([word for words in features for word in words], dtype=torch.long), torch.tensor(lengths[:-1])
