"""What the page of the demo can do, without the page: checked inputs, the package's pipelines, pictures to look at."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageOps
from transformers import pipeline
from transformers.image_utils import load_image

from albef_hf import ImageTextRetrievalPipeline, VisualQuestionAnsweringPipeline, clean_caption
from albef_hf.data import says_something
from albef_hf.explain import answer_heatmaps, contrastive_heatmaps, matching_heatmaps, overlay, word_heatmaps

MOST_CHARACTERS = 1_000  # of a text
MOST_TEXTS = 100  # captions at once, or answers to choose from
SHOWN_SIZE = 480  # longest side of a picture in a gallery, in pixels
RERANKED = 32  # found pictures that are matched with the text; the paper's 128 would keep a visitor waiting
ANSWERS = 3  # that are shown
MATCHING, CONTRAST = "of the words (matching)", "of the image encoder (contrast)"
WHOLE = "the whole text"

Panel = tuple[Image.Image, str]  # a picture and what is written below it


def read_picture(path: str | None) -> Image.Image:
    """The picture in a file, upright and in colours, as the pipelines read it.

    Raises:
        ValueError: If there is none, or it cannot be read.
    """
    if path is None:
        raise ValueError("There is no picture yet: drop one into the field, or pick an example.")
    try:
        return load_image(path)
    except Exception as error:  # a decoder fed with garbage raises whatever it likes
        raise ValueError("This file cannot be read as a picture: it is damaged, or of no known kind.") from error


def read_text(text: str, name: str) -> str:
    """A text without the space around it.

    Raises:
        ValueError: If there is no word in it, or it is longer than anybody reads.
    """
    text = text.strip()
    if not says_something(text):
        raise ValueError(f"There is no {name} yet: write one.")
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"A {name} may have {MOST_CHARACTERS:,} characters; this one has {len(text):,}.")
    return text


def read_lines(text: str, name: str) -> list[str]:
    """The lines of a text that say something, each once.

    Raises:
        ValueError: If there is none, there are too many, or one is too long.
    """
    lines = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if len(lines) > MOST_TEXTS:
        raise ValueError(f"There may be {MOST_TEXTS} lines, a {name} each; these are {len(lines):,}.")
    return [read_text(line, name) for line in lines or [""]]


@dataclass
class Assistant:
    """A model, and with luck two and an index.

    Args:
        retrieve: Matches pictures and texts.
        answer: Answers questions, where there is such a model.
        index: Pictures to search, where there are some.
    """

    retrieve: ImageTextRetrievalPipeline
    answer: VisualQuestionAnsweringPipeline | None = None
    index: Any = None

    @classmethod
    def from_pretrained(
        cls, model: str, question_model: str | None = None, index: str | None = None, pictures: str | None = None
    ) -> "Assistant":
        """Load models from folders or from the Hub, and an index, whose pictures may have moved, from its folder."""
        retrieve = pipeline("image-text-retrieval", model=model)
        answer = pipeline("visual-question-answering", model=question_model) if question_model else None
        if index:
            from albef_hf.retrieval import PictureIndex  # which needs faiss

            index = PictureIndex.load(index, retrieve.model, retrieve.processor, pictures)
        return cls(retrieve, answer, index or None)

    def unread(self, text: str) -> str:
        """The end of a text that is longer than the model reads, as its tokenizer spells it."""
        processor = self.retrieve.processor
        tokens = processor.tokenizer(clean_caption(text, max_words=len(text)), truncation=False)["input_ids"]
        return processor.tokenizer.decode(tokens[len(processor(text=[text])["input_ids"][0]) :])

    def score(self, picture: Image.Image, captions: list[str]) -> list[tuple[str, float, float]]:
        """Captions with their probabilities of a match (ITM) and their similarities (ITC), the best first."""
        found = self.retrieve(picture, candidate_texts=captions, rerank=len(captions))
        return [(result["text"], result["score"], result["similarity"]) for result in found]

    @property
    def ways(self) -> dict[str, Callable[[Image.Image, str], tuple[list[str], torch.Tensor]]]:
        """Whose attention there is to see: each way gives words and their heat maps, first of the whole text.

        In the last multimodal layer no word has a part in the matching score, so a model with a single one has no such
        maps.
        """
        ways = {CONTRAST: self._contrast_maps}
        several = self.retrieve.model.config.text_config.num_multimodal_layers > 1
        return {MATCHING: self._matching_maps} | ways if several else ways

    def show(self, picture: Image.Image, text: str, way: str) -> list[Panel]:
        """Where the model looks for a text, and for each word of it."""
        if way not in self.ways:
            raise ValueError(f"There is no such attention; choose {' or '.join(self.ways)}.")
        words, heatmaps = self.ways[way](picture, text)
        return _panels(picture, [WHOLE, *words], heatmaps)

    def _matching_maps(self, picture: Image.Image, text: str) -> tuple[list[str], torch.Tensor]:
        model, processor = self.retrieve.model, self.retrieve.processor
        inputs = processor(images=[picture], text=[text], return_tensors="pt").to(model.device)
        maps = matching_heatmaps(model, **inputs)[0]
        words, heatmaps = word_heatmaps(processor.tokenizer, inputs["input_ids"][0], maps)
        return words, torch.cat([maps.mean(0, keepdim=True), heatmaps])

    def _contrast_maps(self, picture: Image.Image, text: str) -> tuple[list[str], torch.Tensor]:
        """Of the text, and of each word as a text of its own."""
        model, processor = self.retrieve.model, self.retrieve.processor
        words = list(dict.fromkeys(clean_caption(text, processor.max_words).split()))
        inputs = processor(images=[picture], text=[text, *words], return_tensors="pt").to(model.device)
        pixels = inputs.pop("pixel_values").expand(len(words) + 1, -1, -1, -1)
        return words, contrastive_heatmaps(model, pixel_values=pixels, **inputs)

    def ask(self, picture: Image.Image, question: str, choices: list[str]) -> tuple[dict[str, float], Image.Image]:
        """The likeliest answers, of some choices or free, with probabilities; and where it looked for the best."""
        settings = {"candidate_answers": choices} if choices else {}
        found = self.answer(picture, question, top_k=min(ANSWERS, len(choices) or ANSWERS), **settings)
        answers = {result["answer"]: result["score"] for result in reversed(found)}  # of two alike, the likelier
        model, processor, best = self.answer.model, self.answer.processor, found[0]["answer"]
        if not best:  # the model has written nothing that is a word
            return answers, picture
        inputs = processor(images=[picture], text=[question], return_tensors="pt").to(model.device)
        answer_ids = processor.encode_answers(best)["input_ids"].to(model.device)
        heat = answer_heatmaps(model, answer_ids=answer_ids, **inputs)[0].mean(0)
        return answers, _panels(picture, [best], [heat])[0][0]

    def search(self, query: str | Image.Image, k: int) -> tuple[list[Panel], list[Any]]:
        """The best pictures for a text, or those most like a picture, with their scores; and their keys."""
        hits = self.index.search(query, k=k, rerank=RERANKED)
        return [(_sized(self.index.picture(hit.key)), _scores(hit)) for hit in hits], [hit.key for hit in hits]


def _scores(hit: Any) -> str:
    cosine = f"cosine {hit.similarity:+.2f}"
    return cosine if hit.match is None else f"match {hit.match:.0%}, {cosine}"


def _sized(picture: Image.Image) -> Image.Image:
    """In the size that it is looked at, which a photograph exceeds and a built-in scene falls short of."""
    return ImageOps.contain(picture, (SHOWN_SIZE, SHOWN_SIZE))


def _panels(picture: Image.Image, titles: Sequence[str], heatmaps: Sequence[torch.Tensor]) -> list[Panel]:
    shown = _sized(picture)
    return [(overlay(shown, heat), title) for heat, title in zip(heatmaps, titles, strict=True)]
