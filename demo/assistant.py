"""What the page of the demo can do, without the page: checked inputs, the package's pipelines, pictures to look at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image
from transformers import pipeline

from albef_hf import AlbefProcessor, ImageTextRetrievalPipeline, VisualQuestionAnsweringPipeline
from albef_hf.data import says_something
from albef_hf.heatmaps_albef import answer_heatmaps, matching_heatmaps, overlay
from albef_hf.images_albef import ImageTooLargeError, read_image
from albef_hf.processing_albef import encodable
from albef_hf.search.html_report import contain, word_maps

if TYPE_CHECKING:
    from albef_hf.search.index import Hit, PictureIndex

MOST_CHARACTERS = 1_000  # of a text
MOST_PIXELS = 25_000_000  # of a picture: some 300 MB while it is read
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # of files, by Pillow's names
MOST_TEXTS = 100  # captions at once, or answers to choose from
SHOWN_SIZE = 480  # longest side of a picture in a gallery, in pixels
RERANKED = 32  # found pictures that are matched with the text; the paper's 128 would keep a visitor waiting
ANSWERS = 3  # that are shown
WHOLE = "the whole text"
UNREADABLE = "not readable any more"

Panel = tuple[Image.Image, str]  # a picture and what is written below it


def read_picture(path: str | None) -> Image.Image:
    """The picture in a file, upright and in colours.

    Raises:
        ValueError: If there is none, or it cannot be read.
    """
    if path is None:
        raise ValueError("There is no picture yet: drop one into the field, or pick an example.")
    try:
        return read_image(path, exif_transpose=True, max_pixels=MOST_PIXELS, formats=FORMATS)
    except ImageTooLargeError as error:
        raise ValueError(f"This picture is too large: {error}. Make it smaller.") from error
    except Exception as error:  # Pillow raises many kinds of errors on broken files
        raise ValueError("This file cannot be read as a picture: it is damaged, too large, or no picture.") from error


def read_text(text: str, name: str) -> str:
    """A text without the space around it.

    Raises:
        ValueError: If there is no word in it, or it is longer than anybody reads.
    """
    if not isinstance(text, str):
        raise ValueError(f"A {name} has to be a text, not a {type(text).__name__}.")
    text = encodable(text).strip()
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
    if not isinstance(text, str):
        raise ValueError(f"The lines have to be a text, one {name} each, not a {type(text).__name__}.")
    lines = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if len(lines) > MOST_TEXTS:
        raise ValueError(f"There may be {MOST_TEXTS} lines, one {name} each; these are {len(lines):,}.")
    return [read_text(line, name) for line in lines or [""]]


def unread(processor: AlbefProcessor, text: str) -> str:
    """The end of a text that is longer than a model reads, as its tokenizer spells it."""
    tokens = processor.encode_whole(text)
    return processor.tokenizer.decode(tokens[len(processor(text=[text])["input_ids"][0]) :])


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
    index: "PictureIndex | None" = None

    @classmethod
    def from_pretrained(
        cls, model: str, question_model: str | None = None, index: str | None = None, pictures: str | None = None
    ) -> "Assistant":
        """Load models from folders or from the Hub, and an index, whose pictures may have moved, from its folder."""
        retrieve = pipeline("image-text-retrieval", model=model)
        answer = pipeline("visual-question-answering", model=question_model) if question_model else None
        if index:
            from albef_hf.search.index import PictureIndex  # which needs faiss

            index = PictureIndex.load(index, retrieve.model, retrieve.processor, pictures)
        return cls(retrieve, answer, index or None)

    def score(self, picture: Image.Image, captions: list[str]) -> list[tuple[str, float, float]]:
        """Captions with their probabilities of a match (ITM) and their similarities (ITC), the best first."""
        found = self.retrieve(picture, candidate_texts=captions, rerank=len(captions))
        return [(result["text"], result["score"], result["similarity"]) for result in found]

    @property
    def shows_matching(self) -> bool:
        """Whether `show` has maps of the matching: in the last multimodal layer no word has a part in it."""
        return self.retrieve.model.config.text_config.num_multimodal_layers > 1

    def show(self, picture: Image.Image, text: str) -> list[Panel]:
        """Where the model looks to see whether a text fits, and for each word of it (see `word_maps`)."""
        model, processor = self.retrieve.model, self.retrieve.processor
        inputs = processor(images=[picture], text=[text], return_tensors="pt").to(model.device)
        whole = matching_heatmaps(model, **inputs)[0].mean(0)
        words, heatmaps = word_maps(model, processor, text, picture)
        return _panels(picture, [WHOLE, *words], [whole, *heatmaps])

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

    def search(self, query: str | Image.Image, k: int) -> tuple[list[Panel], list[str | int]]:
        """The best pictures for a text, or those most like a picture, with their scores; and their keys.

        Raises:
            ValueError: If none of them is where it was.
        """
        hits = self.index.search(query, k=k, rerank=RERANKED)
        if not hits:
            raise ValueError(
                "The pictures of the index are not where they were: say with --pictures (of a Space: ALBEF_PICTURES) "
                "where they are."
            )
        return [self._panel(hit) for hit in hits], [hit.key for hit in hits]

    def _panel(self, hit: "Hit") -> Panel:
        """A picture that was found, grey where it cannot be read any more, and its scores."""
        cosine = f"ITC {hit.similarity:+.2f}"
        try:
            picture = _sized(self.index.picture(hit.key))
        except ValueError:
            return Image.new("RGB", (SHOWN_SIZE, SHOWN_SIZE), "lightgray"), f"{UNREADABLE}, {cosine}"
        return picture, cosine if hit.match is None else f"ITM {hit.match:.0%}, {cosine}"


def _sized(picture: Image.Image) -> Image.Image:
    """In the size that it is looked at, which a photograph exceeds and a built-in scene falls short of."""
    return contain(picture, SHOWN_SIZE)


def _panels(picture: Image.Image, titles: Sequence[str], heatmaps: Sequence[torch.Tensor]) -> list[Panel]:
    shown = _sized(picture)
    return [(overlay(shown, heat), title) for heat, title in zip(heatmaps, titles, strict=True)]
