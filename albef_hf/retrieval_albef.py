"""Retrieval in two steps: contrastive similarities (ITC) of all pairs, then matching scores (ITM) of the best ones.

`evaluation` and `itm_eval` in the original's `Retrieval.py`. Memory grows with the number of images and texts, not
with their product, and at most `MAX_CACHED_VALUES` values of hidden states of images are kept in memory.
"""

import contextlib
import operator
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.logging import tqdm

from .calibration_albef import MatchCalibration, matching_log_odds
from .compatibility_albef import renamed_arguments, renamed_attribute
from .processing_albef import AlbefProcessor

RANKS = (1, 5, 10)
REFERENCE_K = 16  # references nearest to an image or a text that count
MAX_TOKENS = 30  # of a text, as in the original's evaluation
MAX_CACHED_VALUES = 2**28  # of images' hidden states, a gigabyte in float32; other images are encoded again


# Models in evaluation mode: the number of users of each, and the parts that were in training mode before.
_EVALUATED: dict[nn.Module, tuple[int, list[nn.Module]]] = {}
_EVALUATION_LOCK = threading.Lock()


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and its parts back into training mode at the end or after an error.

    If several threads evaluate one model, the last one to finish restores it.
    """
    with _EVALUATION_LOCK:
        users, training = _EVALUATED.get(model, (0, [part for part in model.modules() if part.training]))
        _EVALUATED[model] = (users + 1, training)
        model.eval()
    try:
        yield
    finally:
        with _EVALUATION_LOCK:
            users, training = _EVALUATED.pop(model)
            if users > 1:
                _EVALUATED[model] = (users - 1, training)
            else:
                for part in training:
                    part.training = True


Item = TypeVar("Item")


def as_int(name: str, value: Any, minimum: int = 1) -> int:
    """Return a count, also one of NumPy or torch, as a Python integer.

    Raises:
        ValueError: If it is not an integer, or below the minimum.
    """
    with contextlib.suppress(TypeError):
        if operator.index(value) >= minimum:
            return operator.index(value)
    raise ValueError(f"{name} is {value!r:.100}: it must be an integer of at least {minimum}.")


def batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Split items into batches."""
    return [items[start : start + size] for start in range(0, len(items), size)]


@dataclass
class TextFeatures:
    """Texts, encoded up to the point where an image is needed.

    Args:
        attended: From `AlbefMultimodalModel.first_self_attention`, (texts, tokens, text width), on the CPU.
        mask: 1 for tokens, 0 for padding, (texts, tokens), on the CPU.
        embeds: Unit features, (texts, projection).
    """

    attended: torch.Tensor
    mask: torch.Tensor
    embeds: torch.Tensor

    def select(self, index: int) -> "TextFeatures":
        """Return the features of one text."""
        row = slice(index, index + 1)
        return TextFeatures(self.attended[row], self.mask[row], self.embeds[row])


@torch.no_grad()
def encode_tokenized_texts(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> TextFeatures:
    """Encode one batch of (texts, tokens)."""
    mask = attention_mask.to(model.device)
    outputs = model.get_text_features(input_ids.to(model.device), mask, return_dict=True)
    attended = model.albef.multimodal_model.first_self_attention(outputs.last_hidden_state, mask)
    return TextFeatures(attended.cpu(), attention_mask.cpu(), outputs.pooler_output)


def encode_texts(
    model: PreTrainedModel,
    processor: AlbefProcessor,
    texts: Sequence[str],
    batch_size: int = 64,
    track: Callable[[Sequence[torch.Tensor]], Iterable[torch.Tensor]] = iter,
) -> TextFeatures:
    """Encode texts in evaluation mode, in batches of similar length.

    Args:
        model: A model with the text encoder and the joint space.
        processor: The model's processor.
        texts: The texts.
        batch_size: Texts encoded at a time.
        track: Yields the batches that it gets, such as a progress bar.

    Raises:
        ValueError: If there is no text, or the batch size is below 1.
    """
    as_int("The number of texts", len(texts))
    as_int("batch_size", batch_size)
    with evaluation_mode(model):
        max_length = min(MAX_TOKENS, model.config.text_config.max_tokens)
        tokens = processor(text=list(texts), max_length=max_length, return_tensors="pt")
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        order = mask.sum(1).argsort()
        attended, embeds = [], []
        for indices in track(order.split(batch_size)):
            longest = int(mask[indices].sum(1).max())
            batch = encode_tokenized_texts(model, ids[indices, :longest], mask[indices, :longest])
            attended.append(F.pad(batch.attended, (0, 0, 0, mask.shape[1] - longest)))
            embeds.append(batch.embeds)
        inverse = order.argsort()
        return TextFeatures(torch.cat(attended)[inverse], mask, torch.cat(embeds)[inverse.to(model.device)])


class ImageEncoder:
    """Encode images for the contrast, and again for the matching unless their hidden states are cached.

    The model is in evaluation mode while it encodes.

    Args:
        model: A model with the image encoder and the joint space.
        processor: The model's processor.
        images: The images; only one batch is read at a time.
        indices: Indices of the images that this process encodes.
        batch_size: Images encoded at a time.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: AlbefProcessor,
        images: Sequence[Image.Image],
        indices: Sequence[int],
        batch_size: int = 64,
    ):
        as_int("batch_size", batch_size)
        self.model = model
        self.processor = processor
        self.images = images
        self.indices = indices
        self.batch_size = batch_size
        self.cached: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def embeds(self) -> torch.Tensor:
        """Return unit features of all images, (images, projection), zero for those of other processes."""
        features = torch.zeros(len(self.images), self.model.config.projection_dim, device=self.model.device)
        free_values = MAX_CACHED_VALUES
        hide_progress = 0 not in self.indices or len(self.indices) <= self.batch_size
        for batch in tqdm(batches(self.indices, self.batch_size), "encode images", leave=False, disable=hide_progress):
            outputs = self._encode(batch)
            features = features.to(torch.promote_types(features.dtype, outputs.pooler_output.dtype))
            features[list(batch)] = outputs.pooler_output.to(features.dtype)
            free_values -= outputs.last_hidden_state.numel()
            if free_values >= 0:
                self.cached |= zip(batch, outputs.last_hidden_state.cpu().split(1), strict=True)
        return features

    @torch.no_grad()
    def hidden_states(self, indices: Sequence[int] | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield index and hidden states, (1, patches + 1, width), of the given images, by default all of them."""
        for batch in batches(self.indices if indices is None else indices, self.batch_size):
            missing = [index for index in batch if index not in self.cached]
            encoded = {}
            if missing:
                encoded = dict(zip(missing, self._encode(missing).last_hidden_state.split(1), strict=True))
            for index in batch:
                yield index, encoded[index] if index in encoded else self.cached[index].to(self.model.device)

    def _encode(self, batch: Sequence[int]) -> BaseModelOutputWithPooling:
        inputs = self.processor(images=[self.images[index] for index in batch], return_tensors="pt")
        with evaluation_mode(self.model):
            return self.model.get_image_features(**inputs.to(self.model.device))


@renamed_arguments(k="top_k")
def best_matches(
    queries: torch.Tensor, keys: torch.Tensor, top_k: int, block: int = 1024
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the best keys of each query, in float32 or better, since there would be many ties in half precision.

    Returns:
        Cosines and indices of the `top_k` best keys, each (queries, top_k), best first.

    Raises:
        ValueError: If top_k is below 1.
    """
    as_int("top_k", top_k)
    with torch.autocast(queries.device.type, enabled=False):
        results = [(rows @ keys.T).topk(min(top_k, len(keys)), dim=1) for rows in queries.split(block)]
    cosines, indices = zip(*results, strict=True)
    return torch.cat(cosines), torch.cat(indices)


@torch.no_grad()
def match(
    model: PreTrainedModel,
    image_hidden_states: torch.Tensor,
    texts: TextFeatures,
    indices: torch.Tensor,
    batch_size: int = 64,
) -> torch.Tensor:
    """Compute matching logits of one image with texts; the image's keys and values are projected once.

    Texts of similar length are in one batch, so that little is computed for padding.

    Args:
        model: A model with the multimodal encoder and the matching head.
        image_hidden_states: (1, patches + 1, width).
        texts: From `encode_texts`.
        indices: Indices of the texts to score, (scored,).
        batch_size: Texts scored at a time.

    Returns:
        Logits of (no match, match), (scored, 2).

    Raises:
        ValueError: If no text is to be scored.
    """
    as_int("The number of texts", len(indices))
    encoder = model.albef.multimodal_model
    key_values = encoder.project_images(image_hidden_states)
    indices = indices.to(texts.mask.device)
    lengths = texts.mask.sum(1)[indices]
    order = lengths.argsort()
    logits = []
    for positions in order.split(batch_size):
        batch = indices[positions]
        longest = int(lengths[positions].max())
        attended = texts.attended[batch, :longest].to(model.device)
        mask = texts.mask[batch, :longest].to(model.device)
        logits.append(_matching_logits(model, encoder.encode_cls_padding_free(attended, mask, key_values)))
    return torch.cat(logits)[order.argsort().to(model.device)]


@torch.no_grad()
def match_images(model: PreTrainedModel, image_hidden_states: torch.Tensor, text: TextFeatures) -> torch.Tensor:
    """Compute matching logits of images with one text, without projecting the images to keys and values.

    Args:
        model: A model with the multimodal encoder and the matching head, in evaluation mode.
        image_hidden_states: (images, patches + 1, width).
        text: From `encode_texts`, of one text.

    Returns:
        Logits of (no match, match), (images, 2).
    """
    encoder = model.albef.multimodal_model
    if not all(layer.cross_attn.can_absorb for layer in encoder.layers):
        only = torch.tensor([0])
        return torch.cat([match(model, states, text, only) for states in image_hidden_states.split(1)])
    attended = text.attended[:, : int(text.mask.sum())].to(model.device)
    return _matching_logits(model, encoder.encode_cls_over_images(attended, image_hidden_states))


def _matching_logits(model: PreTrainedModel, cls: torch.Tensor) -> torch.Tensor:
    weight = model.itm_head.weight  # a method, if the layer is dynamically quantized
    with torch.autocast(cls.device.type, enabled=False):
        return model.itm_head(cls.to(weight.dtype if isinstance(weight, torch.Tensor) else torch.float32))


def rerank(
    model: PreTrainedModel,
    images: Iterable[tuple[int, torch.Tensor]],
    texts: TextFeatures,
    texts_per_image: torch.Tensor,
    images_per_text: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute matching logits of candidates; a pair that is a candidate in both directions is scored once.

    Args:
        model: A model with the multimodal encoder and the matching head, in evaluation mode.
        images: Index and hidden states of each image to score.
        texts: From `encode_texts`.
        texts_per_image: Indices of the texts to score for each image, (images, k).
        images_per_text: Indices of the images to score for each text, (texts, k).

    Returns:
        Logits of (no match, match), (images, k, 2) and (texts, k, 2); zero for images that are not in `images`.
    """
    dtype = torch.promote_types(torch.float32, texts.embeds.dtype)
    image_logits = texts.embeds.new_zeros(*texts_per_image.shape, 2, dtype=dtype)
    text_logits = texts.embeds.new_zeros(*images_per_text.shape, 2, dtype=dtype)
    # The positions of an image in images_per_text tell which texts have it as a candidate: adjacent after sorting.
    candidates, positions = images_per_text.flatten().sort()
    bounds = torch.searchsorted(candidates, torch.arange(len(texts_per_image) + 1, device=candidates.device)).tolist()
    for image, hidden_states in images:
        image_positions = positions[bounds[image] : bounds[image + 1]]
        image_texts = texts_per_image[image]
        indices = torch.cat([image_texts, image_positions // max(images_per_text.shape[1], 1)])
        if not len(indices):
            continue
        unique, inverse = indices.unique(return_inverse=True)
        logits = match(model, hidden_states, texts, unique)[inverse].to(dtype)
        image_logits[image] = logits[: len(image_texts)]
        text_logits.view(-1, 2)[image_positions] = logits[len(image_texts) :]
    return image_logits, text_logits


def recall(scores: torch.Tensor, positives: torch.Tensor, ranks: Sequence[int] = RANKS) -> dict[int, float]:
    """Compute the share of queries with a right answer among the best k candidates.

    Ties and NaN count against the right answer. A query without a right candidate counts as a miss.

    Args:
        scores: Scores of each query's candidates, (queries, candidates).
        positives: Whether a candidate is right, (queries, candidates).
        ranks: The values of k.

    Returns:
        Recall in percent for each k.

    Raises:
        ValueError: If a rank is below 1, there is no query, or the shapes differ.
    """
    if scores.shape != positives.shape:
        raise ValueError(
            f"scores are {tuple(scores.shape)} and positives {tuple(positives.shape)}: pass one for each candidate."
        )
    as_int("The smallest of ranks", min(ranks))
    as_int("The number of queries", len(scores))
    best_positive = scores.masked_fill(~positives, -torch.inf).max(1, keepdim=True).values
    rank = (~(scores < best_positive) & ~positives).sum(1)
    has_positive = positives.any(1)
    hits = {k: (has_positive & (rank < k)).sum().item() for k in ranks}
    return {k: round(100 * (count / len(scores)), 3) for k, count in hits.items()}


@dataclass
class Ranking:
    """The candidates of each query, from the highest cosine to the lowest.

    Args:
        indices: Indices of the candidates, (queries, candidates).
        similarities: Cosines, (queries, candidates).
        logits: Logits of (no match, match) of the first k candidates, (queries, k, 2).
        positives: Whether a candidate is right, (queries, candidates).
    """

    indices: torch.Tensor
    similarities: torch.Tensor
    logits: torch.Tensor
    positives: torch.Tensor

    def features(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-odds and cosines of the reranked candidates, each (queries, k), in float64 on the CPU."""
        log_odds = matching_log_odds(self.logits).cpu().double()
        return log_odds, self.similarities[:, : log_odds.shape[1]].cpu().double()

    def scores(self, itc_weight: float = 0.0, mismatch_weight: float = 1.0) -> torch.Tensor:
        """Return reranked scores, (queries, k): the log-odds of a match, in the order of the paper's probability.

        Args:
            itc_weight: Weight of the cosine that is added; 0 as in the paper.
            mismatch_weight: Weight of the logit of no match that is subtracted. The original's `Retrieval.py` orders
                by the logit of a match alone (0). The loss depends only on the difference of the two logits (1), so
                what they have in common may differ from pair to pair.
        """
        no_match, match = self.logits.unbind(-1)
        return match - mismatch_weight * no_match + itc_weight * self.similarities[:, : match.shape[1]]

    def reranked(self, itc_weight: float = 0.0, mismatch_weight: float = 1.0) -> torch.Tensor:
        """Return indices of the candidates after reranking, best first, (queries, k); weights as for `scores`."""
        return self.ordered(self.scores(itc_weight, mismatch_weight))

    def ordered(self, scores: torch.Tensor) -> torch.Tensor:
        """Return indices of the candidates by scores, (queries, k), best first, in their shape."""
        order = scores.argsort(dim=1, descending=True, stable=True)
        return self.indices.gather(1, order.to(self.indices.device))


@dataclass
class RetrievalScores:
    """Both directions.

    Args:
        image_to_text: The texts of each image.
        text_to_image: The images of each text.
        calibration: That of the model, if it is calibrated.
        references: The reference texts nearest to each image, and the reference images nearest to each text, if there
            are references; none of them is right.
    """

    image_to_text: Ranking
    text_to_image: Ranking
    calibration: MatchCalibration = field(default_factory=MatchCalibration)
    references: tuple[Ranking, Ranking] | None = None

    def metrics(self, itc_weight: float = 0.0, mismatch_weight: float = 1.0) -> dict[str, float]:
        """Compute recall at 1, 5 and 10 in percent.

        The names go from `itc_text_r1` (image to text) to `itm_image_r10` (text to image), and of a calibrated model
        to `calibrated_image_r10`: in the order of the calibrated probability. With references, and a calibration that
        was fitted with some, there are `normalized_text_r1` to `normalized_image_r10`, too. Weights are those of
        `Ranking.scores` for `itm`.
        """
        rankings = (self.image_to_text, self.text_to_image)
        metrics = self.recalls("itc", [ranking.similarities for ranking in rankings])
        metrics |= self.recalls("itm", [ranking.scores(itc_weight, mismatch_weight) for ranking in rankings])
        if self.calibration.is_fitted:
            scores = [ranking.scores(self.calibration.itc_weight) for ranking in rankings]
            metrics |= self.recalls("calibrated", scores)
        if self.references and self.calibration.reference_weight is not None:
            metrics |= self.recalls("normalized", self.normalized(self.calibration))
        return metrics

    def normalized(self, calibration: MatchCalibration) -> list[torch.Tensor]:
        """Compute scaled logits of the candidates of both directions, less the weighted level of each candidate.

        Returns:
            (images, k) and (texts, k).

        Raises:
            ValueError: If there are no references, or some of their scores are not finite.
        """
        levels = self.candidate_levels(calibration)
        rankings = (self.image_to_text, self.text_to_image)
        return [
            calibration.normalized_logit(*ranking.features(), level)
            for ranking, level in zip(rankings, levels, strict=True)
        ]

    def candidate_levels(
        self, calibration: MatchCalibration, scale: float | torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """Compute how well the candidates match references; see `MatchCalibration.level`.

        Returns:
            Of the texts of each image, (images, k), and of the images of each text, (texts, k).

        Raises:
            ValueError: If there are no references, or some of their scores are not finite.
        """
        if self.references is None:
            raise ValueError("These scores have no references: pass references to score_all.")
        invalid = sum(int((~values.isfinite()).sum()) for nearest in self.references for values in nearest.features())
        if invalid:
            raise ValueError(
                f"{invalid} scores of references are not finite: evaluate without mixed_precision, or train the model "
                "again."
            )
        of_images, of_texts = (calibration.level(*nearest.features(), scale) for nearest in self.references)
        rankings = ((self.image_to_text, of_texts), (self.text_to_image, of_images))
        return [levels[ranking.indices[:, : ranking.logits.shape[1]].cpu()] for ranking, levels in rankings]

    def recalls(self, stage: str, scores: Sequence[torch.Tensor]) -> dict[str, float]:
        """Compute recall at 1, 5 and 10 in percent by scores of the best candidates of both directions.

        Args:
            stage: First part of the names, such as `itm`.
            scores: Of texts for each image, (images, k), and of images for each text, (texts, k).
        """
        metrics: dict[str, float] = {}
        rankings = (self.image_to_text, self.text_to_image)
        for target, ranking, values in zip(("text", "image"), rankings, scores, strict=True):
            recalls = recall(values, ranking.positives[:, : values.shape[1]].to(values.device))
            metrics |= {f"{stage}_{target}_r{k}": value for k, value in recalls.items()}
        return metrics


@dataclass
class EncodedCollection:
    """Images and texts, encoded.

    Args:
        images: Holds the hidden states of the images of this process.
        image_embeds: Unit features of all images, (images, projection).
        texts: All texts.
        image_of_text: Index of the image of each text, (texts,).
    """

    images: ImageEncoder
    image_embeds: torch.Tensor
    texts: TextFeatures
    image_of_text: torch.Tensor


@renamed_arguments(k="rerank_k", reduce="all_reduce")
def score_all(
    model: PreTrainedModel,
    processor: AlbefProcessor,
    images: Sequence[Image.Image],
    captions: Sequence[Sequence[str]],
    rerank_k: int = 16,
    batch_size: int = 64,
    rank: int = 0,
    world_size: int = 1,
    all_reduce: Callable[[torch.Tensor], torch.Tensor] = lambda values: values,
    references: tuple[Sequence[Image.Image], Sequence[Sequence[str]]] | None = None,
) -> RetrievalScores:
    """Contrast all pairs, and match the best candidates of each query.

    Args:
        model: The model; it is in evaluation mode during the call.
        processor: The model's processor.
        images: The images; each is read when it is encoded, a batch at a time.
        captions: The captions of each image.
        rerank_k: Candidates of each query to rerank; with fewer than 10, the reranked R@10 means little.
        batch_size: Images and texts encoded at a time.
        rank: Index of this process.
        world_size: Number of processes; each encodes and reranks its share of the images.
        all_reduce: Sums a tensor over all processes.
        references: Other images and the captions of each, such as training data, to normalize scores by (see
            `score_references`).

    Raises:
        ValueError: If there is no caption, or not a list of them for each image, or rerank_k or the batch size is
            below 1.
    """
    as_int("rerank_k", rerank_k)

    def encode(images: Sequence[Image.Image], captions: Sequence[Sequence[str]]) -> EncodedCollection:
        encoder = ImageEncoder(model, processor, images, range(rank, len(images), world_size), batch_size)
        return encode_collection(model, processor, encoder, captions, all_reduce)

    with evaluation_mode(model):
        pairs = encode(images, captions)
        scores = score_candidates(model, pairs, rerank_k, all_reduce)
        if references is not None:
            scores.references = score_references(model, pairs, encode(*references), all_reduce)
        return scores


def encode_collection(
    model: PreTrainedModel,
    processor: AlbefProcessor,
    images: ImageEncoder,
    captions: Sequence[Sequence[str]],
    all_reduce: Callable[[torch.Tensor], torch.Tensor],
) -> EncodedCollection:
    """Encode images, each process its share of them, and their captions.

    Raises:
        ValueError: If there is no caption, or not a list of them for each image.
    """
    if len(captions) != len(images.images):
        raise ValueError(
            f"There are {len(images.images)} images and {len(captions)} lists of captions: pass one list for each "
            "image."
        )
    texts = [text for image_captions in captions for text in image_captions]
    hide_progress = 0 not in images.indices or len(texts) <= images.batch_size

    def track(batches: Sequence[torch.Tensor]) -> Iterable[torch.Tensor]:
        return tqdm(batches, "encode texts", leave=False, disable=hide_progress)

    features = encode_texts(model, processor, texts, images.batch_size, track)
    embeds = all_reduce(images.embeds())
    counts = torch.tensor([len(image_captions) for image_captions in captions], device=embeds.device)
    return EncodedCollection(
        images, embeds, features, torch.arange(len(captions), device=embeds.device).repeat_interleave(counts)
    )


def score_candidates(
    model: PreTrainedModel, pairs: EncodedCollection, rerank_k: int, all_reduce: Callable[[torch.Tensor], torch.Tensor]
) -> RetrievalScores:
    """Match the best candidates of each image and of each text among all others; the model is in evaluation mode."""
    texts, embeds = pairs.texts, pairs.image_embeds
    similarities_of_images, texts_per_image = best_matches(embeds, texts.embeds, max(rerank_k, *RANKS))
    similarities_of_texts, images_per_text = best_matches(texts.embeds, embeds, max(rerank_k, *RANKS))
    states = show_progress(pairs.images, "rerank")
    logits = rerank(model, states, texts, texts_per_image[:, :rerank_k], images_per_text[:, :rerank_k])
    image_logits, text_logits = map(all_reduce, logits)
    image_indices = torch.arange(len(embeds), device=embeds.device)
    is_text_right = pairs.image_of_text[texts_per_image] == image_indices[:, None]
    is_image_right = images_per_text == pairs.image_of_text[:, None]
    return RetrievalScores(
        Ranking(texts_per_image, similarities_of_images, image_logits, is_text_right),
        Ranking(images_per_text, similarities_of_texts, text_logits, is_image_right),
        MatchCalibration.from_config(model.config),
    )


def score_references(
    model: PreTrainedModel,
    pairs: EncodedCollection,
    references: EncodedCollection,
    all_reduce: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[Ranking, Ranking]:
    """Match images with the reference texts nearest to them, and texts with the nearest reference images.

    An image that matches many texts is a bad answer to each of them. How well it matches the captions of other images
    says so without looking at other queries: querybank normalization (Bogolin et al. 2022, arXiv 2112.12777), here of
    the scores of both steps. The model is in evaluation mode.

    Returns:
        The texts nearest to each image, and the images nearest to each text, up to `REFERENCE_K` of them.
    """
    states = show_progress(pairs.images, "match reference texts")
    of_images = match_reference_texts(model, states, pairs.image_embeds, references.texts)
    cosines, images_per_text = best_matches(pairs.texts.embeds, references.image_embeds, REFERENCE_K)
    states = show_progress(references.images, "match reference images")
    none = images_per_text.new_zeros(len(references.image_embeds), 0)
    _, logits = rerank(model, states, pairs.texts, none, images_per_text)
    of_texts = Ranking(images_per_text, cosines, logits, torch.zeros_like(images_per_text, dtype=torch.bool))
    of_images.logits, of_texts.logits = all_reduce(of_images.logits), all_reduce(of_texts.logits)
    return of_images, of_texts


def match_reference_texts(
    model: PreTrainedModel, images: Iterable[tuple[int, torch.Tensor]], image_embeds: torch.Tensor, texts: TextFeatures
) -> Ranking:
    """Match images with the reference texts nearest to them, up to `REFERENCE_K` of them; none of them is right.

    Args:
        model: A model with the multimodal encoder and the matching head, in evaluation mode.
        images: Index and hidden states of each image to score; the logits of others are zero.
        image_embeds: Unit features of all images, (images, projection).
        texts: The reference texts, from `encode_texts`.
    """
    cosines, texts_per_image = best_matches(image_embeds, texts.embeds, REFERENCE_K)
    logits, _ = rerank(model, images, texts, texts_per_image, texts_per_image.new_zeros(len(texts.embeds), 0))
    return Ranking(texts_per_image, cosines, logits, torch.zeros_like(texts_per_image, dtype=torch.bool))


def show_progress(images: ImageEncoder, title: str) -> Iterable[tuple[int, torch.Tensor]]:
    """Yield the hidden states of the images of this process; the first process shows a bar."""
    return tqdm(images.hidden_states(), title, total=len(images.indices), leave=False, disable=0 not in images.indices)


_RENAMED = {"match_pictures": "match_images", "read_texts": "encode_tokenized_texts"}


def __getattr__(name: str) -> Any:
    return renamed_attribute(globals(), _RENAMED, name)
