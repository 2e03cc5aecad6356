"""Batches for pretraining: captions to tokens, some of them masked."""

from pathlib import Path
from typing import Any

import torch
from transformers import BertTokenizer, PreTrainedTokenizerBase

from ..processing_albef import tokenize
from .pairs import Issue


def embedded_tokenizer() -> BertTokenizer:
    """The tokenizer of BERT-base uncased, from the vocabulary that comes with this package."""
    return BertTokenizer.from_pretrained(Path(__file__).parent / "bert-base-uncased-vocab")


def mask_tokens(
    input_ids: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    probability: float = 0.15,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mask tokens as BERT does (`ALBEF.mask` in the original's `models/model_pretrain.py`).

    Of the chosen tokens 80 % become `[MASK]`, 10 % a random token, 10 % stay. `[CLS]` and `[PAD]` are never chosen,
    `[SEP]` may be; at least one token of the batch is, where there is one to choose.

    Args:
        input_ids: (batch, tokens).
        tokenizer: Knows the special tokens and the vocabulary.
        probability: Chance of a token to be chosen.
        generator: Source of randomness.

    Returns:
        The masked `input_ids` and `labels`, which are -100 where nothing was chosen; each (batch, tokens).
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


class PretrainingCollator:
    """Makes a batch of samples: tokens padded to the longest, a masked copy, pixels, counted issues.

    Masking happens here, not in the model, so that student and teacher see one and the same mask.

    Args:
        tokenizer: The processor's.
        max_length: Tokens of a caption that are kept; the original's 25.
        mlm_probability: Chance of a token to be masked; the paper's 15 %.

    Raises:
        ValueError: If no token is to be kept, or the chance is not between 0 and 1.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int = 25, mlm_probability: float = 0.15):
        if max_length < 1:
            raise ValueError(f"max_length is {max_length}: give at least 1 token, [CLS].")
        if not 0 <= mlm_probability <= 1:
            raise ValueError(f"mlm_probability is {mlm_probability}: give a chance between 0 and 1.")
        self.tokenizer, self.max_length, self.mlm_probability = tokenizer, max_length, mlm_probability

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate samples of a `PairReader`.

        Returns:
            `input_ids`, `attention_mask`, `mlm_input_ids`, `labels`, each (batch, tokens), `pixel_values`
            (batch, 3, height, width), and `issues`, how often each `Issue` occurred, (number of issues,).

        Raises:
            ValueError: If there is no sample.
        """
        if not samples:
            raise ValueError("There is no sample to make a batch of.")
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
        for sample, encoding in zip(samples, tokens.encodings, strict=True):
            if encoding.overflowing and Issue.CAPTION_CUT not in sample["issues"]:  # its words are counted already
                issues.append(Issue.CAPTION_CUT)
        return {
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
            "mlm_input_ids": mlm_input_ids,
            "labels": labels,
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            "issues": torch.bincount(torch.tensor(issues, dtype=torch.long), minlength=len(Issue)),
        }
