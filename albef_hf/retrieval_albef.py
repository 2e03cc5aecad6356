"""Retrieval in two steps: contrastive similarities (ITC) of all pairs, then matching scores (ITM) of the best ones.

`evaluation` and `itm_eval` in the original's `Retrieval.py`. Memory grows with the number of pictures and texts, not
with their product, and the hidden states of pictures are held only as far as `KEPT_VALUES` allows.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.logging import tqdm

from .modeling_albef import AlbefAlignedModel
from .processing_albef import AlbefProcessor

RANKS = (1, 5, 10)
MAX_TOKENS = 30  # of a text, as in the original's evaluation
KEPT_VALUES = 2**28  # of pictures' hidden states, a gigabyte in float32; other pictures are encoded once more


# Models in evaluation mode for a while: how many evaluations there are, and which parts were in training mode before.
_EVALUATED: dict[nn.Module, tuple[int, list[nn.Module]]] = {}
_EVALUATION_LOCK = threading.Lock()


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and each of its parts back into training mode at the end or after an error.

    Of several threads that evaluate one model, the last one to end puts it back.
    """
    with _EVALUATION_LOCK:
        users, training = _EVALUATED.get(model, (0, [part for part in model.modules() if part.training]))
        _EVALUATED[model] = users + 1, training
        model.eval()
    try:
        yield
    finally:
        with _EVALUATION_LOCK:
            users, training = _EVALUATED.pop(model)
            if users > 1:
                _EVALUATED[model] = users - 1, training
            else:
                for part in training:
                    part.training = True


def _require_positive(name: str, number: int) -> None:
    if number < 1:
        raise ValueError(f"{name} is {number}: give a number of at least 1.")


@dataclass
class TextFeatures:
    """What a model makes of a set of texts as long as there is no picture.

    Args:
        prepared: What goes to the pictures, from `AlbefMultimodalModel.prepare_texts`, (texts, tokens, text width), in
            the host's memory.
        mask: 1 for tokens, 0 for padding, (texts, tokens), there too.
        embeds: Unit features, (texts, projection).
    """

    prepared: torch.Tensor
    mask: torch.Tensor
    embeds: torch.Tensor

    def one(self, number: int) -> "TextFeatures":
        """Those of one text alone."""
        return TextFeatures(*(values[number : number + 1] for values in (self.prepared, self.mask, self.embeds)))


@torch.no_grad()
def read_texts(model: AlbefAlignedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> TextFeatures:
    """Read one batch of (texts, tokens)."""
    mask = attention_mask.to(model.device)
    outputs = model.get_text_features(input_ids.to(model.device), mask, return_dict=True)
    prepared = model.albef.multimodal_model.prepare_texts(outputs.last_hidden_state, mask)
    return TextFeatures(prepared.cpu(), attention_mask.cpu(), outputs.pooler_output)


def encode_texts(
    model: AlbefAlignedModel, processor: AlbefProcessor, texts: Sequence[str], batch_size: int = 64
) -> TextFeatures:
    """Read texts, in evaluation mode; those of about the same length go together.

    Raises:
        ValueError: If there is no text, or the batch size is below 1.
    """
    _require_positive("The number of texts", len(texts))
    _require_positive("batch_size", batch_size)
    with evaluation_mode(model):
        longest = min(MAX_TOKENS, model.config.text_config.max_position_embeddings)
        tokens = processor(text=list(texts), max_length=longest, return_tensors="pt")
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        order = mask.sum(1).argsort()
        prepared, embeds = [], []
        for numbers in order.split(batch_size):
            used = int(mask[numbers].sum(1).max())
            some = read_texts(model, ids[numbers, :used], mask[numbers, :used])
            prepared.append(F.pad(some.prepared, (0, 0, 0, mask.shape[1] - used)))
            embeds.append(some.embeds)
        back = order.argsort()
        return TextFeatures(torch.cat(prepared)[back], mask, torch.cat(embeds)[back.to(model.device)])


class ImageEncoder:
    """Encodes pictures for the contrast, and again for the matching, as far as they could not be kept in between.

    The model is in evaluation mode while it encodes.

    Args:
        model: Has the image encoder and the joint space.
        processor: Makes pixels.
        images: Pictures; only a batch of them is read at a time.
        numbers: Of the pictures that this process is in charge of.
        batch_size: Pictures encoded at a time.
    """

    def __init__(
        self,
        model: AlbefAlignedModel,
        processor: AlbefProcessor,
        images: Sequence[Image.Image],
        numbers: Sequence[int],
        batch_size: int = 64,
    ):
        _require_positive("batch_size", batch_size)
        self.model, self.processor, self.images, self.numbers = model, processor, images, numbers
        self.batch_size = batch_size
        self.kept: dict[int, torch.Tensor] = {}

    @torch.no_grad()
    def embeds(self) -> torch.Tensor:
        """Unit features of all pictures, (images, projection), zero for those of other processes."""
        features = torch.zeros(len(self.images), self.model.config.projection_dim, device=self.model.device)
        room = KEPT_VALUES
        batches, silent = self._batches(self.numbers), 0 not in self.numbers or len(self.numbers) <= self.batch_size
        for batch in tqdm(batches, "encode pictures", leave=False, disable=silent):
            outputs = self._encode(batch)
            features = features.to(torch.promote_types(features.dtype, outputs.pooler_output.dtype))
            features[list(batch)] = outputs.pooler_output.to(features.dtype)
            room -= outputs.last_hidden_state.numel()
            if room >= 0:
                self.kept |= zip(batch, outputs.last_hidden_state.cpu().split(1), strict=True)
        return features

    @torch.no_grad()
    def hidden_states(self, numbers: Sequence[int] | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """Number and hidden states, (1, patches + 1, width), of one picture after the other: of some, or of all."""
        for batch in self._batches(self.numbers if numbers is None else numbers):
            wanted = [number for number in batch if number not in self.kept]
            fresh = dict(zip(wanted, self._encode(wanted).last_hidden_state.split(1), strict=True)) if wanted else {}
            for number in batch:
                yield number, fresh[number] if number in fresh else self.kept[number].to(self.model.device)

    def _batches(self, numbers: Sequence[int]) -> list[Sequence[int]]:
        return [numbers[start : start + self.batch_size] for start in range(0, len(numbers), self.batch_size)]

    def _encode(self, batch: Sequence[int]) -> BaseModelOutputWithPooling:
        inputs = self.processor(images=[self.images[number] for number in batch], return_tensors="pt")
        with evaluation_mode(self.model):
            return self.model.get_image_features(**inputs.to(self.model.device))


def best_matches(queries: torch.Tensor, keys: torch.Tensor, k: int, block: int = 1024) -> tuple[torch.Tensor, ...]:
    """Cosines and numbers of the best k keys of each query, each (queries, k), best first.

    Never below float32, where ties would abound.

    Raises:
        ValueError: If k is below 1.
    """
    _require_positive("k", k)
    with torch.autocast(queries.device.type, enabled=False):
        found = [(rows @ keys.T).topk(min(k, len(keys)), dim=1) for rows in queries.split(block)]
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


@torch.no_grad()
def match(
    model: AlbefAlignedModel,
    image_hidden_states: torch.Tensor,
    texts: TextFeatures,
    numbers: torch.Tensor,
    batch_size: int = 64,
) -> torch.Tensor:
    """Matching logits of a picture with some texts; its keys and values are projected once.

    Texts of about the same length go together, so that little is computed for padding.

    Args:
        model: Has the multimodal encoder and the matching head.
        image_hidden_states: (1, patches + 1, width).
        texts: From `encode_texts`.
        numbers: Of the texts to score, (wanted,).
        batch_size: Texts scored at a time.

    Returns:
        Logits of (no match, match), (wanted, 2).

    Raises:
        ValueError: If no text is to be scored.
    """
    _require_positive("The number of texts", len(numbers))
    multimodal, device = model.albef.multimodal_model, model.device
    key_values = multimodal.project_images(image_hidden_states)
    lengths = texts.mask.sum(1)[numbers.to(texts.mask.device)]
    order = lengths.argsort()
    logits = []
    for places in order.split(batch_size):
        wanted, longest = numbers[places.to(numbers.device)].to(texts.mask.device), int(lengths[places].max())
        states, mask = texts.prepared[wanted, :longest].to(device), texts.mask[wanted, :longest].to(device)
        cls = multimodal.summarize_prepared(states, mask, key_values)
        logits.append(_matching_logits(model, cls))
    return torch.cat(logits)[order.argsort().to(device)]


@torch.no_grad()
def match_pictures(model: AlbefAlignedModel, image_hidden_states: torch.Tensor, text: TextFeatures) -> torch.Tensor:
    """Matching logits of some pictures with one text.

    What the text is before it sees a picture is computed once, and no picture's keys and values are projected.

    Args:
        model: Has the multimodal encoder and the matching head; in evaluation mode.
        image_hidden_states: (pictures, patches + 1, width).
        text: From `encode_texts`, of one text.

    Returns:
        Logits of (no match, match), (pictures, 2).
    """
    multimodal = model.albef.multimodal_model
    if not all(layer.cross_attn.can_read for layer in multimodal.layers):
        only = torch.tensor([0])
        return torch.cat([match(model, states, text, only) for states in image_hidden_states.split(1)])
    prepared = text.prepared[:, : int(text.mask.sum())].to(model.device)
    return _matching_logits(model, multimodal.summarize_images(prepared, image_hidden_states))


def _matching_logits(model: AlbefAlignedModel, cls: torch.Tensor) -> torch.Tensor:
    weight = model.itm_head.weight  # of a dynamically quantized layer, a method
    with torch.autocast(cls.device.type, enabled=False):
        return model.itm_head(cls.to(weight.dtype if isinstance(weight, torch.Tensor) else torch.float32))


def rerank(
    model: AlbefAlignedModel,
    pictures: Iterable[tuple[int, torch.Tensor]],
    texts: TextFeatures,
    of_images: torch.Tensor,
    of_texts: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Matching logits of candidates; a pair that both directions ask for is scored once.

    Args:
        model: Has the multimodal encoder and the matching head; in evaluation mode.
        pictures: Number and hidden states of each picture to score.
        texts: From `encode_texts`.
        of_images: Texts to score for each image, (images, k).
        of_texts: Images to score for each text, (texts, k).

    Returns:
        Logits of (no match, match), (images, k, 2) and (texts, k, 2); zero where a picture is not among `pictures`.
    """
    precise = torch.promote_types(texts.embeds.dtype, torch.float32)  # what counts is a difference
    image_logits, text_logits = (
        texts.embeds.new_zeros(*wanted.shape, 2, dtype=precise) for wanted in (of_images, of_texts)
    )
    # Which texts ask for an image: the places of its number in of_texts, which lie side by side once sorted.
    asked, places = of_texts.flatten().sort()
    bounds = torch.searchsorted(asked, torch.arange(len(of_images) + 1, device=asked.device)).tolist()
    for image, hidden_states in pictures:
        asking = places[bounds[image] : bounds[image + 1]]
        wanted = torch.cat([of_images[image], asking // of_texts.shape[1]])
        numbers, positions = wanted.unique(return_inverse=True)
        logits = match(model, hidden_states, texts, numbers)[positions].to(precise)
        image_logits[image] = logits[: of_images.shape[1]]
        text_logits.view(-1, 2)[asking] = logits[of_images.shape[1] :]
    return image_logits, text_logits


def recall(scores: torch.Tensor, positives: torch.Tensor, ranks: Sequence[int] = RANKS) -> dict[int, float]:
    """Share of the queries for which one of the right answers is among the best k.

    Ties count against the right answer, and so does what is not a number; a query whose candidates are all wrong finds
    nothing.

    Args:
        scores: Of each query's candidates, (queries, candidates).
        positives: Which of them are right, (queries, candidates).
        ranks: The k's.

    Returns:
        Recall in percent for each k.

    Raises:
        ValueError: If a rank is below 1, there is no query, or the shapes differ.
    """
    if scores.shape != positives.shape:
        raise ValueError(
            f"scores are {tuple(scores.shape)} and positives {tuple(positives.shape)}: give one for each."
        )
    _require_positive("The smallest of ranks", min(ranks))
    _require_positive("The number of queries", len(scores))
    best_positive = scores.masked_fill(~positives, -torch.inf).max(1, keepdim=True).values
    ahead = (~(scores < best_positive) & ~positives).sum(1)
    found = positives.any(1)
    return {k: round(100 * (found & (ahead < k)).double().mean().item(), 3) for k in ranks}


@dataclass
class Ranking:
    """The candidates of each query, from the highest cosine to the lowest.

    Args:
        numbers: Of the candidates, (queries, candidates).
        similarities: Cosines, (queries, candidates).
        logits: Logits of (no match, match) of the first k, (queries, k, 2).
        positives: Which candidates are right, (queries, candidates).
    """

    numbers: torch.Tensor
    similarities: torch.Tensor
    logits: torch.Tensor
    positives: torch.Tensor

    def scores(self, itc_weight: float = 0.0, mismatch_weight: float = 1.0) -> torch.Tensor:
        """Reranked scores, (queries, k): the log-odds of a match, which order as the paper's probability does.

        Args:
            itc_weight: Of the cosine beside them; 0: the paper.
            mismatch_weight: Of the logit of no match. The original's `Retrieval.py` orders by the logit of a match
                alone (0), although the loss sees nothing but the difference of the two (1): what they share may be
                another for every pair.
        """
        no_match, match = self.logits.unbind(-1)
        return match - mismatch_weight * no_match + itc_weight * self.similarities[:, : match.shape[1]]

    def reranked(self, itc_weight: float = 0.0, mismatch_weight: float = 1.0) -> torch.Tensor:
        """Numbers of the candidates after reranking, best first, (queries, k); weights as for `scores`."""
        order = self.scores(itc_weight, mismatch_weight).argsort(dim=1, descending=True, stable=True)
        return self.numbers.gather(1, order)


@dataclass
class RetrievalScores:
    """Both directions: the texts of each image, and the images of each text."""

    image_to_text: Ranking
    text_to_image: Ranking

    def metrics(self, itc_weight: float = 0.0, mismatch_weight: float = 1.0) -> dict[str, float]:
        """Recall at 1, 5 and 10 in percent: `itc_text_r1` (image to text) to `itm_image_r10` (text to image).

        Weights as for `Ranking.scores`.
        """
        metrics = {}
        for step in ("itc", "itm"):
            for way, ranking in (("text", self.image_to_text), ("image", self.text_to_image)):
                scores = ranking.similarities if step == "itc" else ranking.scores(itc_weight, mismatch_weight)
                recalls = recall(scores, ranking.positives[:, : scores.shape[1]])
                metrics |= {f"{step}_{way}_r{k}": value for k, value in recalls.items()}
        return metrics


def score_all(
    model: AlbefAlignedModel,
    processor: AlbefProcessor,
    images: Sequence[Image.Image],
    captions: Sequence[Sequence[str]],
    k: int = 16,
    batch_size: int = 64,
    share: tuple[int, int] = (0, 1),
    reduce: Callable[[torch.Tensor], torch.Tensor] = lambda values: values,
) -> RetrievalScores:
    """Contrast all pairs, and match the best k of each query.

    Args:
        model: The model; it is put into evaluation mode and back.
        processor: Its processor.
        images: Pictures; each is read when it is encoded, a batch at a time.
        captions: The captions of each picture.
        k: Candidates of each query that are reranked; with fewer than 10 the reranked R@10 has little meaning.
        batch_size: Pictures and texts encoded at a time.
        share: Number of this process and of all processes; each encodes and reranks its share of the images.
        reduce: Sums a tensor over all processes.

    Raises:
        ValueError: If there is no caption, or not a list of them for each image, or k or the batch size is below 1.
    """
    _require_positive("k", k)
    if len(captions) != len(images):
        raise ValueError(f"There are {len(images)} images and captions of {len(captions)}: give a list of each image.")
    with evaluation_mode(model):
        encoder = ImageEncoder(model, processor, images, range(share[0], len(images), share[1]), batch_size)
        texts = encode_texts(model, processor, [text for several in captions for text in several], batch_size)
        embeds = reduce(encoder.embeds())
        owner = torch.tensor([i for i, several in enumerate(captions) for _ in several], device=embeds.device)
        image_best = best_matches(embeds, texts.embeds, max(k, *RANKS))
        text_best = best_matches(texts.embeds, embeds, max(k, *RANKS))
        pictures = tqdm(
            encoder.hidden_states(), "rerank", total=len(encoder.numbers), leave=False, disable=share[0] > 0
        )
        image_logits, text_logits = rerank(model, pictures, texts, image_best[1][:, :k], text_best[1][:, :k])
        of_images = owner[image_best[1]] == torch.arange(len(images), device=owner.device)[:, None]
        return RetrievalScores(
            Ranking(image_best[1], image_best[0], reduce(image_logits), of_images),
            Ranking(text_best[1], text_best[0], reduce(text_logits), text_best[1] == owner[:, None]),
        )
