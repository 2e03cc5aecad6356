"""The layout of the page."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from .assistant import RERANK_K
from .examples import Example
from .handlers import Handlers

MAX_UPLOAD_SIZE = "20mb"
UPLOAD_SECONDS = 3600  # after which an upload is removed
CLEANUP_SECONDS = 600  # between two checks of that
FONT = ("system-ui", "sans-serif")  # installed everywhere, so that none is downloaded
CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
.full-gallery .grid-wrap { max-height: none !important; min-height: 0 !important; overflow: visible !important; }
.full-gallery .grid-container { grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)) !important; }
.full-gallery .caption-label { max-width: 100% !important; }
.scores { display: grid; grid-template-columns: 1fr 9rem 5rem; gap: 0.7rem 1rem; align-items: center; }
.scores b { font-weight: 600; color: var(--body-text-color-subdued); }
.scores .bar { background: var(--neutral-200); border-radius: 4px; height: 0.5rem; }
.scores .bar span { display: block; background: var(--primary-500); border-radius: 4px; height: 100%; }
footer .divider:last-child { display: none !important; }
@media (max-width: 640px) {
    .tab-container button { padding: 0 0.6rem !important; }
    .scores { grid-template-columns: 1fr 4.5rem 3.5rem; }
}
"""
INTRODUCTION = """# ALBEF
Find out which captions fit an image, where the model sees each word, and what it says itself."""
WORDS_NOTE = (
    "Color shows where the model looks to decide whether text and image match. Full red is the hottest place of any "
    "word; the whole text has a scale of its own. All colors fade with the probability of a match: a text that is not "
    "in the image has next to none."
)
SINGLE_LAYER_NOTE = "This model has a single multimodal layer, so each word is compared with the image on its own."
NO_QUESTIONS = (
    "This page has no model that answers questions. To add one, start it with `--question_model` (on a Space: "
    "`ALBEF_QUESTION_MODEL`) and a folder that `albef finetune vqa` has written, or the name of a model on the Hub."
)
NO_CAPTIONS = (
    "This page has no model that writes captions. To add one, start it with `--caption_model` (on a Space: "
    "`ALBEF_CAPTION_MODEL`) and a folder that `albef finetune captioning` has written, or the name of a model on the "
    "Hub."
)
DESCRIBE_NOTE = (
    "Beside each caption is the mean probability of its words. Color shows where the model looks to write each word "
    "of the first caption; full red is the hottest place of any word."
)
NO_INDEX = (
    "This page has no images to search. To add some, start it with `--index` (on a Space: `ALBEF_INDEX`) and a folder "
    "that `albef index build` has written with this model."
)
SEARCH_NOTE = (
    "Below each image are the probability of a match, which decides the order, and the cosine similarity (ITC). "
    "Click an image to make it the current image and to see the words in it."
)
# Below captions and search results, by whether the model is calibrated.
CALIBRATED_NOTE = "The probability is {}."
UNCALIBRATED_NOTE = (
    "The probability is not calibrated: it is that of the matching head, which was trained to tell a text from those "
    "of other images, so that a wrong text may also get a high one."
)
RERANK_NOTE = (
    f"To keep the wait short, only the {RERANK_K} images with the highest cosine are matched. `albef search` matches "
    "128, as in the paper, so its order may differ."
)


class Page:
    """Lay out and serve the page.

    Args:
        handlers: What the buttons do.
        examples: Images to pick from.
    """

    def __init__(self, handlers: Handlers, examples: Sequence[Example] = ()):
        self.handlers = handlers
        self.examples = examples

    def launch(self, host: str | None, port: int | None) -> None:
        """Serve the page until the program is interrupted.

        Args:
            host: Address; by default `GRADIO_SERVER_NAME`, or this computer only.
            port: Port; by default `GRADIO_SERVER_PORT`, or the first free one from 7860.
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
                    # The handlers read the uploaded file themselves, so that they explain a broken one.
                    image = gr.Image(type="filepath", image_mode=None, label="Image", height=320, elem_id="image")
                    below_image = gr.Column()
                with gr.Column(scale=3, min_width=340), gr.Tabs() as tabs:
                    with gr.Tab("Captions", id="captions"):
                        captions = self._build_captions(image)
                    with gr.Tab("Words", id="words"):
                        text, all_words, heatmaps = self._build_words(image)
                    with gr.Tab("Question", id="question"):
                        self._build_question(image)
                    with gr.Tab("Describe", id="describe"):
                        self._build_describe(image)
                    with gr.Tab("Search", id="search"):
                        self._build_search(image, all_words, selected=[image, text, heatmaps, tabs])
            with below_image:
                rows = [[example.path, example.captions, example.text] for example in self.examples]
                gr.Examples(rows, [image, captions, text], visible_columns=[0], label="Examples")
        return blocks

    def _build_captions(self, image: gr.Image) -> gr.Textbox:
        captions = gr.Textbox(label="Captions, one per line", lines=4, max_lines=12, elem_id="captions")
        button = gr.Button("Which one fits?", variant="primary", elem_id="score")
        scores = gr.HTML(elem_id="scores")
        gr.Markdown(self._match_note())
        _connect([button.click], self.handlers.score, [image, captions], scores)
        return captions

    def _match_note(self) -> str:
        calibration = self.handlers.assistant.calibration
        return CALIBRATED_NOTE.format(calibration.describe()) if calibration.is_fitted else UNCALIBRATED_NOTE

    def _build_words(self, image: gr.Image) -> tuple[gr.Textbox, gr.Checkbox, gr.Gallery]:
        text = gr.Textbox(label="Text", elem_id="text")
        all_words = gr.Checkbox(label="Also words such as “a” and “of”", elem_id="all_words")
        button = gr.Button("Where is it?", variant="primary", elem_id="locate")
        heatmaps = _full_gallery("heatmaps")
        has_word_matching = self.handlers.assistant.has_word_matching
        gr.Markdown(WORDS_NOTE if has_word_matching else f"{WORDS_NOTE} {SINGLE_LAYER_NOTE}")
        _connect([button.click, text.submit], self.handlers.heatmaps, [image, text, all_words], heatmaps)
        return text, all_words, heatmaps

    def _build_question(self, image: gr.Image) -> None:
        if self.handlers.assistant.question_answering is None:
            gr.Markdown(NO_QUESTIONS)
            return
        question = gr.Textbox(label="Question", elem_id="question")
        choices = gr.Textbox(
            label="Answers to choose from, one per line (without any, the model writes its own)",
            lines=2,
            elem_id="choices",
        )
        button = gr.Button("Ask", variant="primary", elem_id="ask")
        with gr.Row():
            answers = gr.Label(label="Answer", elem_id="answers")
            heatmap = gr.Image(label="Where the model looked", interactive=False, buttons=[], elem_id="answer_heatmap")
        events = [button.click, question.submit]
        _connect(events, self.handlers.answer, [image, question, choices], [answers, heatmap])

    def _build_describe(self, image: gr.Image) -> None:
        if self.handlers.assistant.captioning is None:
            gr.Markdown(NO_CAPTIONS)
            return
        button = gr.Button("Describe it", variant="primary", elem_id="write")
        captions = gr.Label(label="Captions", elem_id="written_captions")
        heatmaps = _full_gallery("caption_heatmaps")
        gr.Markdown(DESCRIBE_NOTE)
        _connect([button.click], self.handlers.describe, [image], [captions, heatmaps])

    def _build_search(self, image: gr.Image, all_words: gr.Checkbox, selected: list[Any]) -> None:
        index = self.handlers.assistant.index
        if index is None:
            gr.Markdown(NO_INDEX)
            return
        query = gr.Textbox(label=f"Search {len(index):,} images", elem_id="query")
        with gr.Row():
            by_text = gr.Button("Search", variant="primary", elem_id="search")
            by_image = gr.Button("Search by image", elem_id="similar")
        gallery = _full_gallery("found", allow_preview=False)
        gr.Markdown(f"{SEARCH_NOTE} {self._match_note()}")
        gr.Markdown(RERANK_NOTE)
        results = gr.State(("", []))
        _connect([by_text.click, query.submit], self.handlers.search, query, [gallery, results])
        _connect([by_image.click], self.handlers.search_similar, image, [gallery, results])
        _connect([gallery.select], self.handlers.select, [results, all_words], selected)


def _connect(events: Sequence[Callable[..., Any]], handler: Callable[..., Any], inputs: Any, outputs: Any) -> None:
    """Run a handler on events, one visitor at a time, so that each has all processors or the GPU."""
    gr.on(events, handler, inputs, outputs, preprocess=False, concurrency_id="model", concurrency_limit=1)


def _full_gallery(name: str, **settings: Any) -> gr.Gallery:
    """Return a gallery with as many rows as it needs, so that it has no scroll bar."""
    return gr.Gallery(
        show_label=False, height="auto", buttons=[], elem_id=name, elem_classes="full-gallery", **settings
    )
