"""Retrieval in two steps: contrastive similarities (ITC) of all pairs, then matching scores (ITM) of the best ones.

`evaluation` and `itm_eval` in the original's `Retrieval.py`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from tqdm.auto import tqdm

from .modeling_albef import AlbefAlignedModel
from .processing_albef import AlbefProcessor

NOT_RERANKED = -100.0
MAX_TOKENS = 30  # of a text, as in the original's evaluation


@dataclass
class RetrievalFeatures:
    """What the two unimodal encoders make of a set of pictures and a set of texts.

    Args:
        image_hidden_states: (images, patches + 1, image width).
        image_embeds: Unit features, (images, projection).
        text_hidden_states: (texts, tokens, text width).
        text_mask: 1 for tokens, 0 for padding, (texts, tokens).
        text_embeds: Unit features, (texts, projection).
    """

    image_hidden_states: torch.Tensor
    image_embeds: torch.Tensor
    text_hidden_states: torch.Tensor
    text_mask: torch.Tensor
    text_embeds: torch.Tensor

    @property
    def similarities(self) -> torch.Tensor:
        """Cosine of every image with every text, (images, texts), never below float32, where ties would abound."""
        with torch.autocast(self.image_embeds.device.type, enabled=False):
            return self.image_embeds @ self.text_embeds.T


@torch.no_grad()
def encode(
    model: AlbefAlignedModel,
    processor: AlbefProcessor,
    images: Sequence[Image.Image],
    texts: Sequence[str],
    batch_size: int = 64,
) -> RetrievalFeatures:
    """Run the unimodal encoders over pictures and texts, in evaluation mode."""
    model.eval()
    image_outputs = []
    for start in range(0, len(images), batch_size):
        inputs = processor(images=list(images[start : start + batch_size]), return_tensors="pt").to(model.device)
        image_outputs.append(model.get_image_features(**inputs))
    longest = min(MAX_TOKENS, model.config.text_config.max_position_embeddings)
    tokens = processor(text=list(texts), max_length=longest, return_tensors="pt").to(model.device)
    text_outputs = [
        model.get_text_features(ids, mask)
        for ids, mask in zip(
            tokens["input_ids"].split(batch_size), tokens["attention_mask"].split(batch_size), strict=True
        )
    ]
    return RetrievalFeatures(
        image_hidden_states=torch.cat([output.last_hidden_state for output in image_outputs]),
        image_embeds=torch.cat([output.pooler_output for output in image_outputs]),
        text_hidden_states=torch.cat([output.last_hidden_state for output in text_outputs]),
        text_mask=tokens["attention_mask"],
        text_embeds=torch.cat([output.pooler_output for output in text_outputs]),
    )


def rerank_candidates(similarities: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which pairs are among the best k of their image, and of their text; each a mask, (images, texts)."""
    images, texts = similarities.shape
    of_image = torch.zeros_like(similarities, dtype=torch.bool)
    of_image.scatter_(1, similarities.topk(min(k, texts), dim=1).indices, True)
    of_text = torch.zeros_like(of_image)
    of_text.scatter_(0, similarities.topk(min(k, images), dim=0).indices, True)
    return of_image, of_text


@torch.no_grad()
def match(
    model: AlbefAlignedModel,
    features: RetrievalFeatures,
    pairs: torch.Tensor,
    images: Iterable[int],
    batch_size: int = 256,
) -> torch.Tensor:
    """Matching logits of the wanted pairs.

    Pairs are grouped by image, whose keys and values are projected once, and a pair that both directions of retrieval
    ask for is scored once.

    Args:
        model: Has the multimodal encoder and the matching head.
        features: From `encode`.
        pairs: Mask of the pairs wanted, (images, texts).
        images: Numbers of the images to score.
        batch_size: Texts scored at a time.

    Returns:
        Logits of "match", (images, texts), zero where nothing was asked for.
    """
    model.eval()
    scores = torch.zeros(pairs.shape, device=pairs.device)
    for image in images:
        wanted = pairs[image].nonzero().squeeze(1)
        if len(wanted) == 0:
            continue
        key_values = model.albef.multimodal_model.project_images(features.image_hidden_states[image : image + 1])
        for texts in wanted.split(batch_size):
            longest = int(features.text_mask[texts].sum(1).max())
            fused = model.albef.multimodal_model(
                features.text_hidden_states[texts, :longest], features.text_mask[texts, :longest], key_values
            )
            cls = fused.last_hidden_state[:, 0]
            with torch.autocast(cls.device.type, enabled=False):
                scores[image, texts] = model.itm_head(cls.to(model.itm_head.weight.dtype))[:, 1].to(scores.dtype)
    return scores


def recall(scores: torch.Tensor, positives: torch.Tensor, ranks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Share of the queries for which one of the right answers is among the best k.

    Ties count against the right answer, and so does what is not a number.

    Args:
        scores: (queries, answers).
        positives: Which answers are right, (queries, answers).
        ranks: The k's.

    Returns:
        Recall in percent for each k.
    """
    best_positive = scores.masked_fill(~positives, -torch.inf).max(1, keepdim=True).values
    ahead = (~(scores < best_positive) & ~positives).sum(1)
    return {k: round(100 * (ahead < k).double().mean().item(), 3) for k in ranks}


@dataclass
class RetrievalScores:
    """Scores of every image with every text, and what was reranked.

    Args:
        similarities: Cosines, (images, texts).
        matched: Matching logits of the pairs that were reranked, (images, texts).
        of_image: Which pairs are among the best k of their image, (images, texts).
        of_text: Which pairs are among the best k of their text, (images, texts).
        positives: Which texts belong to which images, (images, texts).
    """

    similarities: torch.Tensor
    matched: torch.Tensor
    of_image: torch.Tensor
    of_text: torch.Tensor
    positives: torch.Tensor

    @property
    def image_to_text(self) -> torch.Tensor:
        """Reranked scores of the texts of each image, (images, texts)."""
        return self.matched.masked_fill(~self.of_image, NOT_RERANKED)

    @property
    def text_to_image(self) -> torch.Tensor:
        """Reranked scores of the images of each text, (texts, images)."""
        return self.matched.masked_fill(~self.of_text, NOT_RERANKED).T

    def metrics(self) -> dict[str, float]:
        """Recall at 1, 5 and 10 in percent: `itc_text_r1` (image to text) to `itm_image_r10` (text to image)."""
        rankings = {
            "itc_text": recall(self.similarities, self.positives),
            "itc_image": recall(self.similarities.T, self.positives.T),
            "itm_text": recall(self.image_to_text, self.positives),
            "itm_image": recall(self.text_to_image, self.positives.T),
        }
        return {f"{name}_r{k}": value for name, recalls in rankings.items() for k, value in recalls.items()}


def score_all(
    model: AlbefAlignedModel,
    processor: AlbefProcessor,
    images: Sequence[Image.Image],
    captions: Sequence[Sequence[str]],
    k: int = 16,
    batch_size: int = 64,
    share: tuple[int, int] = (0, 1),
    reduce: Callable[[torch.Tensor], torch.Tensor] = lambda scores: scores,
) -> RetrievalScores:
    """Contrast all pairs, and match the best k of each query.

    Args:
        model: The model; it is put into evaluation mode and back.
        processor: Its processor.
        images: Pictures.
        captions: The captions of each picture.
        k: Candidates of each query that are reranked; with fewer than 10 the reranked R@10 has little meaning.
        batch_size: Pictures and texts encoded at a time.
        share: Number of this process and of all processes; each reranks its share of the images.
        reduce: Sums a tensor over all processes.
    """
    was_training = model.training
    features = encode(model, processor, images, [text for texts in captions for text in texts], batch_size)
    owner = torch.tensor([i for i, texts in enumerate(captions) for _ in texts], device=features.text_embeds.device)
    similarities = features.similarities
    of_image, of_text = rerank_candidates(similarities, k)
    mine = tqdm(range(share[0], len(images), share[1]), "rerank", leave=False, disable=share[0] > 0)
    matched = reduce(match(model, features, of_image | of_text, mine))
    model.train(was_training)
    positives = torch.arange(len(images), device=owner.device)[:, None] == owner
    return RetrievalScores(similarities, matched, of_image, of_text, positives)
