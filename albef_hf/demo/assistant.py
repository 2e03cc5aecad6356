"""Compute what the page shows, with the package's pipelines."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image
from transformers import pipeline

from ..calibration_albef import MatchCalibration
from ..heatmaps_albef import (
    answer_heatmaps,
    caption_heatmaps,
    content_words,
    match_probabilities,
    matching_heatmaps,
    overlay,
    overlays,
    word_heatmaps,
)
from ..pipeline_albef import (
    AlbefPipeline,
    ImageCaptioningPipeline,
    ImageTextRetrievalPipeline,
    VisualQuestionAnsweringPipeline,
)
from ..search.html_report import contain, word_maps

if TYPE_CHECKING:
    from ..search.index import Hit, ImageIndex

RETRIEVAL: Any = "image-text-retrieval"  # missing in the type annotations of transformers
QUESTION_ANSWERING: Any = "visual-question-answering"
CAPTIONING: Any = "image-captioning"
IMAGE_SIZE = 480  # longer side of an image in a gallery, in pixels
RERANK_K = 32  # images reranked per search; with the paper's 128, visitors would wait too long
NUM_ANSWERS = 3
NUM_CAPTIONS = 3
WHOLE_TEXT = "whole text"
UNREADABLE = "can no longer be read"

GalleryItem = tuple[Image.Image, str]  # an image and the caption below it


@dataclass
class Assistant:
    """Run the models of the page.

    Args:
        retrieval: Matches images and texts.
        question_answering: Answers questions; None if the page has no such model.
        index: Images to search; None if the page has no index.
        captioning: Writes captions; None if the page has no such model.
    """

    retrieval: ImageTextRetrievalPipeline
    question_answering: VisualQuestionAnsweringPipeline | None = None
    index: "ImageIndex | None" = None
    captioning: ImageCaptioningPipeline | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        question_model: str | None = None,
        index: str | None = None,
        images: str | None = None,
        caption_model: str | None = None,
    ) -> "Assistant":
        """Load models and an index.

        Args:
            model: Folder or Hub name of a pretraining or retrieval model.
            question_model: Folder or Hub name of a model that answers questions.
            index: Folder of an index that was built with `model`.
            images: Current folder of the indexed images, if it has moved.
            caption_model: Folder or Hub name of a model that writes captions.
        """
        assistant = cls(pipeline(RETRIEVAL, model=model))
        if question_model:
            assistant.question_answering = pipeline(QUESTION_ANSWERING, model=question_model)
        if caption_model:
            assistant.captioning = pipeline(CAPTIONING, model=caption_model)
        if index:
            from ..search.index import ImageIndex  # needs faiss

            matcher, processor = _parts(assistant.retrieval)
            assistant.index = ImageIndex.load(index, matcher, processor, images)
        return assistant

    def score(self, image: Image.Image, captions: list[str]) -> list[tuple[str, float, float]]:
        """Return the captions with their probability of a match and their cosine (ITC), the best first."""
        results: Any = self.retrieval(image, candidate_texts=captions, rerank_k=len(captions))
        return [(result["text"], result["score"], result["similarity"]) for result in results]

    @property
    def calibration(self) -> MatchCalibration:
        """The calibration of the retrieval model, which makes probabilities of its scores."""
        return MatchCalibration.from_config(self.retrieval.model.config)

    @property
    def has_word_matching(self) -> bool:
        """Whether `heatmaps` shows words by the matching head.

        In the last multimodal layer, words do not contribute to it. A model with a single layer compares each word
        with the image instead.
        """
        num_layers: int = self.retrieval.model.config.text_config.num_multimodal_layers
        return num_layers > 1

    def heatmaps(self, image: Image.Image, text: str, all_words: bool = False) -> list[GalleryItem]:
        """Return where the model looks to match a text, and where for each of its words (see `word_maps`).

        The words have one scale, and the whole text has its own; all fade with the probability of a match.
        """
        model, processor = _parts(self.retrieval)
        inputs = processor(images=[image], text=[text], return_tensors="pt").to(model.device)
        whole = matching_heatmaps(model, **inputs)[0].mean(0)
        probability = match_probabilities(model, **inputs).item()
        words, word_heatmaps = word_maps(model, processor, text, image, all_words)
        resized = contain(image, IMAGE_SIZE)
        drawings = overlays(resized, word_heatmaps, probability=probability)
        whole_drawing = overlay(resized, whole, probability=probability)
        return [(whole_drawing, f"{WHOLE_TEXT}, {probability:.0%} match"), *zip(drawings, words, strict=True)]

    def answer(self, image: Image.Image, question: str, choices: list[str]) -> tuple[dict[str, float], Image.Image]:
        """Answer a question.

        Args:
            image: The image in question.
            question: The question.
            choices: Answers to choose from; if empty, the model generates answers.

        Returns:
            The most likely answers with their probabilities, and a heat map of the best.
        """
        if self.question_answering is None:
            raise ValueError("This page has no model that answers questions.")
        settings: dict[str, Any] = {"top_k": NUM_ANSWERS}
        if choices:
            settings = {"top_k": min(NUM_ANSWERS, len(choices)), "candidate_answers": choices}
        results: Any = self.question_answering(image, question, **settings)
        answers = {result["answer"]: result["score"] for result in reversed(results)}  # keeps the best of duplicates
        best = results[0]["answer"]
        return answers, _answer_heatmap(self.question_answering, image, question, best) if best else image

    def describe(self, image: Image.Image) -> tuple[dict[str, float], list[GalleryItem]]:
        """Write captions.

        Returns:
            The best captions with their scores, and heat maps of the words of the first, without function words; the
            words have one scale.
        """
        if self.captioning is None:
            raise ValueError("This page has no model that writes captions.")
        results: Any = self.captioning(image, top_k=NUM_CAPTIONS)
        captions = {result["caption"]: result["score"] for result in reversed(results)}
        model, processor = _parts(self.captioning)
        pixels = processor(images=[image], return_tensors="pt")["pixel_values"].to(model.device)
        ids = processor.encode_captions(results[0]["caption"], max_length=model.config.text_config.max_tokens)
        input_ids = ids["input_ids"].to(model.device)
        used = len(processor.encode_prompt())
        maps = caption_heatmaps(model, input_ids, pixels)[0, used:]
        words, heatmaps = word_heatmaps(processor.tokenizer, input_ids[0, used:], maps)
        content = content_words(words)
        drawings = overlays(contain(image, IMAGE_SIZE), heatmaps[content])
        return captions, list(zip(drawings, (words[index] for index in content), strict=True))

    def search(self, query: str | Image.Image, top_k: int) -> tuple[list[GalleryItem], list[str | int]]:
        """Return the images that match a text best, or are most similar to an image; and their keys in the index.

        Raises:
            ValueError: If there is no index, or none of its images is found in its folder.
        """
        if self.index is None:
            raise ValueError("This page has no images to search.")
        hits = self.index.search(query, top_k=top_k, rerank_k=RERANK_K)
        if not hits:
            raise ValueError(
                "The images of the index have moved. Start the page with their folder as --images (on a Space: "
                "ALBEF_IMAGES)."
            )
        return [self._gallery_item(hit) for hit in hits], [hit.key for hit in hits]

    def indexed_image(self, key: str | int) -> Image.Image:
        """Return an image of the index.

        Raises:
            ValueError: If there is no such image, or it can no longer be read.
        """
        if self.index is None:
            raise ValueError("This page has no images to search.")
        return self.index.image(key)

    def _gallery_item(self, hit: "Hit") -> GalleryItem:
        """Return a search result with its scores; a gray image if it can no longer be read."""
        cosine = f"ITC {hit.similarity:+.2f}"
        try:
            image = contain(self.indexed_image(hit.key), IMAGE_SIZE)
        except ValueError:
            return Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "lightgray"), f"{UNREADABLE}, {cosine}"
        return image, cosine if hit.match is None else f"match {hit.match:.0%}, {cosine}"


def _parts(pipe: AlbefPipeline) -> tuple[Any, Any]:
    """Return model and processor of a pipeline, whose annotations in transformers are those of any model."""
    return pipe.model, pipe.processor


def _answer_heatmap(pipe: AlbefPipeline, image: Image.Image, question: str, answer: str) -> Image.Image:
    model, processor = _parts(pipe)
    inputs = processor(images=[image], text=[question], return_tensors="pt").to(model.device)
    answer_ids = processor.encode_answers(answer)["input_ids"].to(model.device)
    heatmap = answer_heatmaps(model, answer_ids=answer_ids, **inputs)[0].mean(0)
    return overlay(contain(image, IMAGE_SIZE), heatmap)
