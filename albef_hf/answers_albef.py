"""Answers of visual question answering: checks of their encoding, and the scores of a list of answers."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel

from .configuration_albef import AlbefConfig, AlbefTextConfig
from .losses_albef import IGNORED, at_least_float32, positions_of_targets


@dataclass
class Answers:
    """The answers of a batch of questions; `complete_answers` fills in what is None.

    Args:
        labels: Token ids, (answers, tokens), -100 for padding; the answers of a question one after the other.
        counts: Number of answers of each question, (questions,); None for one each.
        weights: Weight of each answer, (answers,); None for equal weights that sum to 1 for each question.
        positions: Indices of the tokens to predict in `labels.flatten()`, (answer tokens,); None for all but `[CLS]`.
    """

    labels: torch.Tensor
    counts: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    positions: torch.Tensor | None = None


def answer_positions(labels: torch.Tensor) -> torch.Tensor:
    """Return the indices of all tokens but `[CLS]` in the flattened (answers, tokens) labels, (answer tokens,)."""
    return positions_of_targets(F.pad(labels[:, 1:], (1, 0), value=IGNORED))


@dataclass
class CompleteAnswers:
    """What the loss needs to know of the answers of a batch.

    Args:
        labels: As in `Answers`.
        positions: As in `Answers`.
        targets: The labels at these positions, (answer tokens,).
        question_index: Index of the question of each answer, (answers,).
        token_weights: Weight of the answer that each token to predict belongs to, (answer tokens,).
    """

    labels: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    question_index: torch.Tensor
    token_weights: torch.Tensor


def complete_answers(answers: Answers, questions: torch.Tensor, config: AlbefConfig) -> CompleteAnswers:
    """Check the answers of a batch and complete them.

    Answers with `positions` come from a collator and are not checked: on a GPU, the host would have to wait.

    Args:
        answers: The answers.
        questions: States of the questions, (questions, tokens, width).
        config: Has the ids of special tokens.

    Raises:
        ValueError: If they are not encoded by `AlbefProcessor.encode_answers`, or counts or weights do not fit.
    """
    labels = answers.labels
    positions = answers.positions
    weights = answers.weights
    counts = (
        torch.ones(len(questions), dtype=torch.long) if answers.counts is None else torch.as_tensor(answers.counts)
    )
    counts = counts.to(labels.device)
    if positions is None:
        _check_answers(answers, counts, len(questions), config)
        positions = answer_positions(labels)
    dtype = torch.promote_types(questions.dtype, torch.float32)
    question_index = torch.repeat_interleave(counts, output_size=len(labels))
    weights = 1 / counts[question_index].to(dtype) if weights is None else weights.to(dtype)
    return CompleteAnswers(
        labels=labels,
        positions=positions,
        targets=labels.take(positions),
        question_index=question_index,
        token_weights=weights[positions // labels.shape[1]],
    )


def _check_answers(answers: Answers, counts: torch.Tensor, questions: int, config: AlbefConfig) -> None:
    labels = answers.labels
    # Both are copied from the device at once, so that there is one wait.
    total, encoded = torch.stack([counts.sum(), _are_encoded(labels, config.text_config)]).tolist()
    _require_encoded(encoded, config.text_config)
    if len(counts) != questions or total != len(labels):
        raise ValueError(
            f"{len(labels)} answers for {questions} questions do not fit answer_counts {counts.tolist()}: pass the "
            "number of answers of each question."
        )
    if answers.weights is not None and len(answers.weights) != len(labels):
        raise ValueError(f"There are {len(answers.weights)} answer_weights for {len(labels)} answers: pass one each.")


def check_answer_list(labels: torch.Tensor, top_k: int, config: AlbefTextConfig) -> None:
    """Check a list of answers to choose from, (answers, tokens), -100 for padding.

    Raises:
        ValueError: If it is empty or not encoded by `AlbefProcessor.encode_answers`, or top_k is below 1.
    """
    if len(labels) == 0:
        raise ValueError("The list of answers is empty: pass at least one, or call generate() for free-form answers.")
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}: at least one answer has to be scored.")
    _require_encoded(int(_are_encoded(labels, config)), config)


def _are_encoded(labels: torch.Tensor, config: AlbefTextConfig) -> torch.Tensor:
    """Return 1 if (answers, tokens) labels start, end and are padded as the decoder needs it, else 0; a scalar."""
    if labels.ndim != 2:
        return labels.new_zeros((), dtype=torch.long)
    is_token = labels != IGNORED
    last = (is_token * torch.arange(labels.shape[1], device=labels.device)).argmax(1, keepdim=True)
    is_valid = torch.ones_like(is_token)
    if config.bos_token_id is not None:
        is_valid &= labels[:, :1] == config.bos_token_id
    if config.eos_token_id is not None:
        is_valid &= labels.gather(1, last) == config.eos_token_id
    if config.pad_token_id not in (None, config.eos_token_id):
        is_valid &= labels != config.pad_token_id
    return (is_valid | ~is_token).all().long()


def _require_encoded(encoded: int, config: AlbefTextConfig) -> None:
    if not encoded:
        raise ValueError(
            "Answers must be (answers, tokens) ids that start with [CLS] and end with [SEP] (bos_token_id "
            f"{config.bos_token_id} and eos_token_id {config.eos_token_id} of the configuration), with -100 as the "
            'label of padding: create them by processor.encode_answers(answers)["labels"].'
        )


def score_continuations(
    model: PreTrainedModel,
    labels: torch.Tensor,
    rows: torch.Tensor,
    start: EncoderDecoderCache,
    question_mask: torch.Tensor | None,
    batch_size: int,
) -> torch.Tensor:
    """Compute the log-likelihood of all but the first token of the answers of each question.

    Args:
        model: An `AlbefForQuestionAnswering`.
        labels: The list of answers, (answers, tokens), -100 for padding.
        rows: The answers to score, (questions, top_k), each row from the shortest to the longest.
        start: Keys and values of the questions and of `[CLS]`.
        question_mask: (questions, question tokens), 1 for tokens and 0 for padding.
        batch_size: Answers scored at a time, of all questions together; at least one per question.

    Returns:
        (questions, top_k).
    """
    lengths = (labels != IGNORED).sum(1)[rows]
    step = max(batch_size // len(rows), 1)
    scores = []
    for batch, batch_lengths in zip(rows.split(step, 1), lengths.split(step, 1), strict=True):
        candidates = labels[batch.T.flatten(), : int(batch_lengths.max())]
        batch_scores = _continuation_log_likelihood(model, candidates, start, question_mask)
        scores.append(batch_scores.unflatten(0, (-1, len(rows))).T)
    return torch.cat(scores, dim=1)


def _continuation_log_likelihood(
    model: PreTrainedModel, labels: torch.Tensor, start: EncoderDecoderCache, question_mask: torch.Tensor | None
) -> torch.Tensor:
    """Compute the log-likelihood of all but the first token of (groups * questions, tokens) answers.

    `[CLS]` is in the cache already, and the last token is not an input.
    """
    inputs, targets = labels[:, 1:-1], labels[:, 2:]
    is_token = targets != IGNORED
    answer_index, token = is_token.nonzero(as_tuple=True)
    if len(token) == 0:
        return labels.new_zeros(len(labels), dtype=torch.float32)
    past = DynamicCache()
    for index, layer in enumerate(start.self_attention_cache.layers):
        groups = len(labels) // len(layer.keys)
        past.update(layer.keys.repeat(groups, 1, 1, 1), layer.values.repeat(groups, 1, 1, 1), index)
    question_key_values = [(layer.keys, layer.values) for layer in start.cross_attention_cache.layers]
    mask = torch.cat([is_token.new_ones(len(is_token), 1), is_token], dim=1).long()
    ids = inputs.masked_fill(~is_token, model.config.text_config.pad_token_id or 0)
    states = model.decoder(ids, mask, question_key_values, question_mask, past).last_hidden_state
    logits = at_least_float32(model.mlm_head(states[answer_index, token]))
    token_scores = logits.gather(1, targets[answer_index, token, None])[:, 0] - logits.logsumexp(-1)
    return token_scores.new_zeros(len(labels)).index_add(0, answer_index, token_scores)


__all__ = [
    "Answers",
    "CompleteAnswers",
    "answer_positions",
    "check_answer_list",
    "complete_answers",
    "score_continuations",
]
