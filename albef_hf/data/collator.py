"""Collate pretraining batches: tokenize captions and mask some of the tokens."""

import math
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from ..processing_albef import tokenize
from .row_errors import SkipReason


def mask_tokens(
    input_ids: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    probability: float = 0.15,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask tokens like BERT (`ALBEF.mask` in the original's `models/model_pretrain.py`).

    80 % of the chosen tokens become `[MASK]`, 10 % become a random token, and 10 % stay. `[CLS]` and `[PAD]` are never
    chosen; `[SEP]` can be. At least one token of the batch is chosen, if there is any candidate.

    Args:
        input_ids: (batch, tokens).
        tokenizer: Tokenizer with the special tokens and the vocabulary.
        probability: Probability that a token is chosen.
        generator: Random generator.

    Returns:
        The masked `input_ids`, and `labels`, which are -100 where no token was chosen; each (batch, tokens).
    """
    if not input_ids.numel():
        return input_ids.clone(), input_ids.clone()
    draw = torch.rand(4, *input_ids.shape, generator=generator)
    candidates = (input_ids != tokenizer.pad_token_id) & (input_ids != tokenizer.cls_token_id)
    ranks = draw[0].masked_fill(~candidates, 2)
    chosen = (ranks < probability) | (ranks == ranks.min())
    chosen &= candidates
    masked = chosen & (draw[1] < 0.8)
    random = chosen & ~masked & (draw[2] < 0.5)
    random_ids = (draw[3] * len(tokenizer)).long()
    mlm_input_ids = torch.where(random, random_ids, input_ids.masked_fill(masked, tokenizer.mask_token_id))
    return mlm_input_ids, input_ids.masked_fill(~chosen, -100)


def target_positions(labels: torch.Tensor) -> torch.Tensor:
    """Return the indices of the labels that are not -100 in `labels.flatten()`, so that the model need not look."""
    return (labels.flatten() != -100).nonzero()[:, 0]


def pad_tokens(tokens: torch.Tensor, multiple: int, max_length: int, value: int) -> torch.Tensor:
    """Pad (batch, tokens) on the right to a multiple of some number of tokens, but not beyond `max_length`."""
    length = min(math.ceil(tokens.shape[1] / multiple) * multiple, max_length)
    return F.pad(tokens, (0, max(length - tokens.shape[1], 0)), value=value)


class PretrainingCollator:
    """Collate samples: tokens padded to the longest caption, a masked copy, pixels, and counts of skipped rows.

    Tokens are masked here, not in the model, so that student and teacher see the same mask.

    Args:
        tokenizer: Tokenizer of the processor.
        max_length: Maximum number of tokens of a caption; 25 in the original.
        mlm_probability: Probability that a token is masked; 15 % in the paper.
        pad_to_multiple_of: Pad captions to a multiple of this number of tokens, but not beyond `max_length`, and
            masked tokens to the number that is expected of captions without padding, or a multiple of it, so that
            compiled models meet few shapes. The loss is that without padding.

    Raises:
        ValueError: If `max_length` is below 1, or the probability is not between 0 and 1.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int = 25,
        mlm_probability: float = 0.15,
        pad_to_multiple_of: int | None = None,
    ):
        if max_length < 1:
            raise ValueError(f"max_length is {max_length}: give at least 1 token, [CLS].")
        if not 0 <= mlm_probability <= 1:
            raise ValueError(f"mlm_probability is {mlm_probability}: give a probability between 0 and 1.")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.mlm_probability = mlm_probability
        self.pad_to_multiple_of = pad_to_multiple_of

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate samples of a `PairReader`.

        Returns:
            `input_ids`, `attention_mask`, `mlm_input_ids`, `labels`, each (batch, tokens), `target_positions`, where
            tokens are masked in the flattened `labels`, (masked tokens,), `pixel_values` (batch, 3, height, width) in
            the samples' dtype, and `issues`, how often each `SkipReason` occurred, (number of issues,).

        Raises:
            ValueError: If there is no sample.
        """
        if not samples:
            raise ValueError("There are no samples to collate.")
        tokens = tokenize(
            self.tokenizer,
            [sample["caption"] for sample in samples],
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
        )
        generator = torch.Generator().manual_seed(samples[0]["seed"])
        mlm_input_ids, labels = mask_tokens(tokens["input_ids"], self.tokenizer, self.mlm_probability, generator)
        issues = [issue for sample in samples for issue in sample["issues"]]
        for sample, encoding in zip(samples, tokens.encodings or [], strict=True):
            is_counted = SkipReason.CAPTION_CUT in sample["issues"]  # because words were cut
            if encoding.overflowing and not is_counted:
                issues.append(SkipReason.CAPTION_CUT)
        texts = {
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "mlm_input_ids": mlm_input_ids,
            "labels": labels,
        }
        return {
            **self._pad(texts),
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            "issues": torch.bincount(torch.tensor(issues, dtype=torch.long), minlength=len(SkipReason)),
        }

    def _pad(self, texts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Add the positions of masked tokens, and pad both if `pad_to_multiple_of` is set."""
        if not self.pad_to_multiple_of:
            return {**texts, "target_positions": target_positions(texts["labels"])}
        fill = {"attention_mask": 0, "labels": -100}
        padded = {
            name: pad_tokens(
                tokens, self.pad_to_multiple_of, self.max_length, value=fill.get(name, self.tokenizer.pad_token_id)
            )
            for name, tokens in texts.items()
        }
        labels = padded["labels"]
        positions = target_positions(labels)
        expected = max(math.ceil(labels.numel() * self.mlm_probability), 1)
        unmasked = int(labels.argmin())  # a position whose label is -100, which gives a row no weight
        padded["target_positions"] = F.pad(positions, (0, -len(positions) % expected), value=unmasked)
        return padded
