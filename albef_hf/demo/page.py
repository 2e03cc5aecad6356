"""The layout of the page."""

import html
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from transformers.utils import logging

from .assistant import RERANK_K
from .examples import Example
from .handlers import Handlers
from .inputs import read_uploaded_image

logger = logging.get_logger(f"transformers.{__name__}")

MAX_UPLOAD_SIZE = "20mb"
UPLOAD_SECONDS = 3600  # after which an upload is removed
CLEANUP_SECONDS = 600  # between two checks of that
FONT = ("system-ui", "sans-serif")  # installed everywhere, so that none is downloaded
CSS = """
html { scrollbar-gutter: stable; }
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
.gradio-container .column { min-width: min(300px, 100%) !important; }
.gradio-container .tabs { min-width: 0 !important; }
.full-gallery .grid-wrap { max-height: none !important; min-height: 0 !important; overflow: visible !important; }
.full-gallery .grid-container { grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)) !important; }
.full-gallery .caption-label { max-width: 100% !important; white-space: normal !important; }
.gradio-container h2.output-class { font-size: 1.25rem; padding: 1.5rem 1rem 0.5rem; }
.scores { display: grid; grid-template-columns: 1fr 9rem 5rem; gap: 0.7rem 1rem; align-items: center; }
.scores b { font-weight: 600; color: var(--body-text-color-subdued); }
.scores .bar { background: var(--neutral-200); border-radius: 4px; height: 0.5rem; }
.scores .bar span { display: block; background: var(--primary-500); border-radius: 4px; height: 100%; }
footer .divider:last-child { display: none !important; }
@media (max-width: 640px) {
    .gradio-container main { padding: 0 1rem !important; }
    .tab-container button { padding: 0 0.5rem !important; }
    .scores { grid-template-columns: 1fr 4.5rem 3.5rem; }
}
"""
INTRODUCTION = """# ALBEF
Pick an example or drop an image of your own into the field, then choose below what to find out about it."""
CAPTIONS_HELP = "Which caption fits? Write some, one per line: the model orders them by how well they match the image."
WORDS_HELP = "Where is each word? Write a text about the image: the model shows where it looks for it."
QUESTION_HELP = "Ask the model about the image. It writes an answer itself, or chooses from those that you give."
DESCRIBE_HELP = "Let the model write captions, and see where it looks for each word."
SEARCH_HELP = "Find images: write what they should show, or search for images that are similar to the current one."
WORDS_NOTE = (
    "Color shows where the model looks to decide whether text and image match. Full red is the hottest place of any "
    "word; the whole text has a scale of its own. All colors fade with the probability of a match: a text that is not "
    "in the image has next to none."
)
SINGLE_LAYER_NOTE = "This model has a single multimodal layer, so each word is compared with the image on its own."
DESCRIBE_NOTE = (
    "Beside each caption is the mean probability of its words. Color shows where the model looks to write each word "
    "of the first caption; full red is the hottest place of any word."
)
SEARCH_NOTE = (
    "Below each image are the probability of a match, which decides the order{}, and the cosine similarity (ITC). "
    "Click an image to make it the current image and to see the words in it."
)
NORMALIZED = " together with how well the image matches other texts"
# Below captions and search results, by whether the model is calibrated.
CALIBRATED_NOTE = "The probability is {}."
UNCALIBRATED_NOTE = (
    "The probability is not calibrated: it is that of the matching head, which was trained to tell a text from those "
    "of other images, so that a wrong text may also get a high one."
)
RERANK_NOTE = f"To keep the wait short, only the {RERANK_K} images with the highest cosine are matched."


class Page:
    """Lay out and serve the page, which opens with the first example and what the model finds in it.

    Tabs whose model or index is missing are left out.

    Args:
        handlers: What the buttons do.
        examples: Images to pick from.
    """

    def __init__(self, handlers: Handlers, examples: Sequence[Example] = ()):
        self.handlers = handlers
        self.examples = examples
        self.first = examples[0] if examples else None

    def launch(self, host: str | None, port: int | None) -> None:
        """Serve the page until the program is interrupted.

        Args:
            host: Address; by default `GRADIO_SERVER_NAME`, or this computer only.
            port: Port; by default `GRADIO_SERVER_PORT`, or the first free one from 7860.

        Raises:
            ValueError: If the image of the first example cannot be read.
        """
        self.build().launch(
            server_name=host,
            server_port=port,
            max_file_size=MAX_UPLOAD_SIZE,
            ssr_mode=False,
            run_history=False,
            footer_links=["api", "gradio"],
            css=CSS,
            theme=gr.themes.Default(primary_hue="indigo", font=FONT, font_mono=FONT),
        )

    def build(self) -> gr.Blocks:
        """Lay out the page."""
        with gr.Blocks(title="ALBEF", delete_cache=(CLEANUP_SECONDS, UPLOAD_SECONDS)) as blocks:
            gr.Markdown(INTRODUCTION)
            with gr.Row():
                with gr.Column(scale=2, min_width=300):
                    image = self._build_image()
                    below_image = gr.Column()
                with gr.Column(scale=3, min_width=320), gr.Tabs() as tabs:
                    with gr.Tab("Captions", id="captions"):
                        captions, scores = self._build_captions(image)
                    with gr.Tab("Words", id="words"):
                        text, all_words, heatmaps = self._build_words(image)
                    others = [*self._build_question(image), *self._build_describe(image)]
                    found = self._build_search(image, all_words, selected=[image, text, heatmaps, tabs])
            with below_image:
                rows = [[example.path, example.captions, example.text] for example in self.examples]
                examples = gr.Examples(rows, [image, captions, text], visible_columns=[0], label="Examples")
            if self.examples:
                picked = examples.load_input_event
                _then(picked, self.handlers.score, [image, captions], scores)
                _then(picked, self.handlers.heatmaps, [image, text, all_words], heatmaps)
                _clear([examples.dataset.click], [scores, heatmaps, *others])
            _clear([image.input, image.clear], [scores, heatmaps, *others])
            _clear([gallery.select for gallery in found], [scores, *others])
        return blocks

    def _opening(self, handler: Callable[..., Any], *fields: str) -> Any:
        """Return what a handler shows for fields of the first example.

        Return None without an example, if a field is empty, or, with a warning, if the handler fails.
        """
        inputs = [getattr(self.first, field, "") for field in fields]
        if not all(inputs):
            return None
        values = [{"path": value} if field == "path" else value for field, value in zip(fields, inputs, strict=True)]
        try:
            return handler(*values)
        except Exception as error:  # the rest of the page works, and a visitor may try again
            message = html.unescape(str(getattr(error, "message", error)))  # `Handlers` escape it for the page
            logger.warning(f"The page opens without the result of `{handler.__name__}`: {message}")
            return None

    def _build_image(self) -> gr.Image:
        # The handlers read the uploaded file themselves, so that they explain a broken one.
        path = self.first.path if self.first else None
        try:
            if path:
                read_uploaded_image(path)
        except ValueError as error:
            raise ValueError(f"The first example, {path}, cannot be shown: {error}") from error
        return gr.Image(path, type="filepath", image_mode=None, label="Image", height=320, elem_id="image")

    def _build_captions(self, image: gr.Image) -> tuple[gr.Textbox, gr.HTML]:
        gr.Markdown(CAPTIONS_HELP)
        captions = gr.Textbox(
            self.first.captions if self.first else "",
            label="Captions, one per line",
            placeholder="a red ball\na blue star",
            lines=4,
            max_lines=12,
            elem_id="captions",
        )
        button = gr.Button("Which one fits?", variant="primary", elem_id="score")
        scores = gr.HTML(self._opening(self.handlers.score, "path", "captions"), elem_id="scores")
        gr.Markdown(self._match_note())
        _connect([button.click], self.handlers.score, [image, captions], scores)
        return captions, scores

    def _match_note(self) -> str:
        calibration = self.handlers.assistant.calibration
        return CALIBRATED_NOTE.format(calibration.describe()) if calibration.is_fitted else UNCALIBRATED_NOTE

    def _build_words(self, image: gr.Image) -> tuple[gr.Textbox, gr.Checkbox, gr.Gallery]:
        gr.Markdown(WORDS_HELP)
        value = self.first.text if self.first else ""
        text = gr.Textbox(value, label="Text", placeholder="a red ball", elem_id="text")
        all_words = gr.Checkbox(label="Also words such as “a” and “of”", elem_id="all_words")
        button = gr.Button("Where is it?", variant="primary", elem_id="locate")
        heatmaps = _full_gallery("heatmaps", self._opening(self.handlers.heatmaps, "path", "text"))
        has_word_matching = self.handlers.assistant.has_word_matching
        gr.Markdown(WORDS_NOTE if has_word_matching else f"{WORDS_NOTE} {SINGLE_LAYER_NOTE}")
        _connect([button.click, text.submit], self.handlers.heatmaps, [image, text, all_words], heatmaps)
        return text, all_words, heatmaps

    def _build_question(self, image: gr.Image) -> list[Any]:
        """Build the tab if there is a model, and return what shows its results."""
        if self.handlers.assistant.question_answering is None:
            return []
        with gr.Tab("Question", id="question"):
            gr.Markdown(QUESTION_HELP)
            value = self.first.question if self.first else ""
            question = gr.Textbox(value, label="Question", placeholder="what color is the ball?", elem_id="question")
            choices = gr.Textbox(label="Answers to choose from, one per line (optional)", lines=2, elem_id="choices")
            button = gr.Button("Ask", variant="primary", elem_id="ask")
            best, seen = self._opening(self.handlers.answer, "path", "question") or (None, None)
            with gr.Row():
                answers = gr.Label(best, label="Answer", elem_id="answers")
                heatmap = gr.Image(
                    seen, label="Where the model looked", interactive=False, buttons=[], elem_id="answer_heatmap"
                )
        events = [button.click, question.submit]
        _connect(events, self.handlers.answer, [image, question, choices], [answers, heatmap])
        return [answers, heatmap]

    def _build_describe(self, image: gr.Image) -> list[Any]:
        """Build the tab if there is a model, and return what shows its results."""
        if self.handlers.assistant.captioning is None:
            return []
        with gr.Tab("Describe", id="describe"):
            gr.Markdown(DESCRIBE_HELP)
            button = gr.Button("Describe it", variant="primary", elem_id="write")
            written, seen = self._opening(self.handlers.describe, "path") or (None, None)
            captions = gr.Label(written, label="Captions", elem_id="written_captions")
            heatmaps = _full_gallery("caption_heatmaps", seen)
            gr.Markdown(DESCRIBE_NOTE)
        _connect([button.click], self.handlers.describe, [image], [captions, heatmaps])
        return [captions, heatmaps]

    def _build_search(self, image: gr.Image, all_words: gr.Checkbox, selected: list[Any]) -> list[gr.Gallery]:
        """Build the tab if there is an index, and return what shows its results."""
        index = self.handlers.assistant.index
        if index is None:
            return []
        with gr.Tab("Search", id="search"):
            gr.Markdown(SEARCH_HELP)
            value = self.first.text if self.first else ""
            query = gr.Textbox(value, label=f"Search {len(index):,} images", elem_id="query")
            with gr.Row():
                by_text = gr.Button("Search", variant="primary", elem_id="search")
                by_image = gr.Button("Search by image", elem_id="similar")
            handler, field = (self.handlers.search, "text") if value else (self.handlers.search_similar, "path")
            items, keys = self._opening(handler, field) or (None, ("", []))
            gallery = _full_gallery("found", items, allow_preview=False)
            index = self.handlers.assistant.index
            note = SEARCH_NOTE.format(NORMALIZED if index and index.is_normalized else "")
            gr.Markdown(f"{note} {self._match_note()} {RERANK_NOTE}")
        results = gr.State(keys)
        _connect([by_text.click, query.submit], self.handlers.search, query, [gallery, results])
        _connect([by_image.click], self.handlers.search_similar, image, [gallery, results])
        _connect([gallery.select], self.handlers.select, [results, all_words], selected)
        return [gallery]


def _connect(events: Sequence[Callable[..., Any]], handler: Callable[..., Any], inputs: Any, outputs: Any) -> None:
    """Run a handler on events, one visitor at a time, so that each has all processors or the GPU."""
    gr.on(events, handler, inputs, outputs, preprocess=False, concurrency_id="model", concurrency_limit=1)


def _then(event: Any, handler: Callable[..., Any], inputs: Any, outputs: Any) -> None:
    """Run a handler as in `_connect` after an event that fills in an image and a text, unless the text is empty."""
    event.then(
        lambda image, text, *options: handler(image, text, *options) if text else None,
        inputs,
        outputs,
        preprocess=False,
        concurrency_id="model",
        concurrency_limit=1,
        api_visibility="private",
    )


def _clear(events: Sequence[Callable[..., Any]], outputs: list[Any]) -> None:
    """Remove results of the previous image on events."""
    if events and outputs:
        blank = [None] * len(outputs)
        gr.on(
            events,
            lambda: blank if len(blank) > 1 else None,
            None,
            outputs,
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )


def _full_gallery(name: str, items: Any = None, **settings: Any) -> gr.Gallery:
    """Return a gallery with as many rows as it needs, so that it has no scroll bar."""
    return gr.Gallery(
        items, show_label=False, height="auto", buttons=[], elem_id=name, elem_classes="full-gallery", **settings
    )
