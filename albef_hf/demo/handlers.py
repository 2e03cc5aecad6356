"""What the buttons of the page do.

Gradio names the endpoints of the page after these methods, and clients may call them with any data.
"""

import functools
import html
import os
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import gradio as gr
from PIL import Image

from ..pipeline_albef import AlbefPipeline
from .assistant import Assistant, GalleryItem
from .examples import Example
from .inputs import read_lines, read_text, read_uploaded_image, truncated_end
from .jobs import JobRunner
from .uploads import uploaded_path

TOP_K = 12  # images that a search shows
UNKNOWN_IMAGE = "There is no such image. Please search again, and click one of the results."

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
SearchResults = tuple[str, list[Any]]  # the text that was searched for, empty if an image was; and the keys


def visitor_job(
    handler: Callable[Concatenate["Handlers", Parameters], Result],
) -> Callable[Concatenate["Handlers", Parameters], Result]:
    """Run a handler with a time limit, and show its errors to the visitor without where in the code they occurred."""

    @functools.wraps(handler)
    def run_job(self: "Handlers", *arguments: Parameters.args, **settings: Parameters.kwargs) -> Result:
        try:
            result: Result = self.jobs.run(functools.partial(handler, self, *arguments, **settings))
            return result
        except (ValueError, OSError) as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from None

    return run_job


class Handlers:
    """Check what a visitor sends, run the models, and format the results.

    Args:
        assistant: Runs the models.
        examples: Images that may be read although they were not uploaded.
    """

    def __init__(self, assistant: Assistant, examples: Sequence[Example] = ()):
        self.assistant = assistant
        self.jobs = JobRunner()
        self.example_files = {os.path.realpath(example.path) for example in examples}

    @visitor_job
    def score(self, upload: Any, lines: Any) -> str:
        """Return an HTML table of captions with their probabilities and cosines."""
        image = self._read_image(upload)
        captions = read_lines(lines, "caption")
        _warn_if_truncated(self.assistant.retrieval, captions)
        rows = [
            f"<div>{html.escape(caption)}</div>"
            f'<div>{score:.1%}<div class="bar"><span style="width: {score:.1%}"></span></div></div>'
            f"<div>{cosine:+.2f}</div>"
            for caption, score, cosine in self.assistant.score(image, captions)
        ]
        return f'<div class="scores"><b>Caption</b><b>Match</b><b>Cosine</b>{"".join(rows)}</div>'

    @visitor_job
    def heatmaps(self, upload: Any, text: Any, all_words: Any = False) -> list[GalleryItem]:
        """Return heat maps of a text and of its words; without `all_words`, those of function words are omitted."""
        image = self._read_image(upload)
        text = read_text(text, "text")
        _warn_if_truncated(self.assistant.retrieval, [text])
        return self.assistant.heatmaps(image, text, bool(all_words))

    @visitor_job
    def answer(self, upload: Any, question: Any, lines: Any = None) -> tuple[dict[str, float], Image.Image]:
        """Return answers with probabilities, and where the model looked for the best one."""
        image = self._read_image(upload)
        question = read_text(question, "question")
        _warn_if_truncated(self.assistant.question_answering, [question])
        has_no_choices = lines is None or (isinstance(lines, str) and not lines.strip())
        choices = [] if has_no_choices else read_lines(lines, "answer")
        return self.assistant.answer(image, question, choices)

    @visitor_job
    def describe(self, upload: Any) -> tuple[dict[str, float], list[GalleryItem]]:
        """Return captions with their scores, and where the model looked for each word of the best one."""
        return self.assistant.describe(self._read_image(upload))

    @visitor_job
    def search(self, query: Any) -> tuple[list[GalleryItem], SearchResults]:
        """Return images that match a text."""
        query = read_text(query, "text")
        _warn_if_truncated(self.assistant.retrieval, [query])
        items, keys = self.assistant.search(query, TOP_K)
        return items, (query, keys)

    @visitor_job
    def search_similar(self, upload: Any) -> tuple[list[GalleryItem], SearchResults]:
        """Return images that are similar to the current one."""
        items, keys = self.assistant.search(self._read_image(upload), TOP_K)
        return items, ("", keys)

    @visitor_job
    def select(self, results: Any, all_words: Any, event: gr.SelectData) -> tuple[Any, ...]:
        """Make a search result the current image; if a text was searched for, show its words in the image.

        Returns:
            Values of the image field, the text field, the gallery of heat maps and the tabs.
        """
        try:
            query, keys = results
            image = self.assistant.indexed_image(keys[event.index])
        except (AttributeError, LookupError, TypeError) as error:  # a client has sent other data
            raise ValueError(UNKNOWN_IMAGE) from error
        if not query:
            return image, gr.skip(), gr.skip(), gr.skip()
        heatmaps = self.assistant.heatmaps(image, read_text(query, "text"), bool(all_words))
        return image, query, heatmaps, gr.Tabs(selected="words")

    def _read_image(self, upload: Any) -> Image.Image:
        return read_uploaded_image(uploaded_path(upload, self.example_files))


def _warn_if_truncated(pipeline: AlbefPipeline | None, texts: Sequence[str]) -> None:
    """Warn the visitor of the first text that the model does not read completely."""
    if pipeline is None:
        return
    processor: Any = pipeline.processor
    for text in texts:
        if end := truncated_end(processor, text):
            gr.Warning(html.escape(f"This text is too long for the model, which did not read its end: “{end[:60]}”"))
            return
