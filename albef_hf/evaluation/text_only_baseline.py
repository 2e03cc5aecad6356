"""What can be answered without looking at a picture: a linear classifier of the words of texts."""

import itertools
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

MOST_CLASSES = 1000  # the most frequent answers; of thousands, each would have a column of weights


def text_only_answers(
    train_texts: Sequence[str],
    train_labels: Sequence[Any],
    texts: Sequence[str],
    epochs: int = 20,
    buckets: int = 2**15,
) -> list[Any]:
    """What a linear classifier of words and pairs of words, trained on the texts alone, makes of other texts.

    Args:
        train_texts: What it learns from; those whose label is a rare one among thousands are left out.
        train_labels: Their labels.
        texts: What it is asked.
        epochs: Passes over what it learns from.
        buckets: Features that words and pairs of words are hashed to.
    """
    classes = [label for label, _ in Counter(train_labels).most_common(MOST_CLASSES)]
    index = {label: number for number, label in enumerate(sorted(classes, key=str))}
    known = [(text, index[label]) for text, label in zip(train_texts, train_labels, strict=True) if label in index]
    targets = torch.tensor([number for _, number in known])
    features = [_hashed_words(text, buckets) for text, _ in known]
    asked = [_hashed_words(text, buckets) for text in texts]
    # Only words that occur in training have weights, however many buckets there are.
    place = {bucket: number for number, bucket in enumerate(sorted({*itertools.chain(*features)}))}
    features, asked = ([[place[word] for word in words if word in place] for words in t] for t in (features, asked))
    generator = torch.Generator().manual_seed(0)
    weights = nn.EmbeddingBag(len(place), len(classes), mode="sum", sparse=False)
    nn.init.zeros_(weights.weight)
    optimizer = torch.optim.Adam(weights.parameters(), lr=0.02)
    for _ in range(epochs):
        for rows in torch.randperm(len(features), generator=generator).split(512):
            loss = F.cross_entropy(weights(*_bags([features[row] for row in rows.tolist()])), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        scores = weights(*_bags(asked))
    answers = sorted(classes, key=str)
    return [answers[number] for number in scores.argmax(1).tolist()]


def _hashed_words(text: str, buckets: int) -> list[int]:
    words = ["^", *re.findall(r"\w+", text.lower()), "$"]
    pairs = [" ".join(pair) for pair in itertools.pairwise(words)]
    return [zlib.crc32(word.encode()) % buckets for word in words + pairs]


def _bags(features: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = [0, *itertools.accumulate(len(words) for words in features)]
    return torch.tensor([word for words in features for word in words], dtype=torch.long), torch.tensor(lengths[:-1])
