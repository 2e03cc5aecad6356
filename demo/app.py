"""A page to try a model on: score captions, see where it looks for each word, ask questions, search pictures.

    python demo/app.py --model runs/scenes

A Space starts it without arguments: environment variables, such as ALBEF_MODEL for --model, stand in for them.
"""

import argparse
import contextvars
import functools
import html
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # Gradio reads it when it is imported

try:
    import gradio as gr
except ImportError:
    sys.exit('error: the demo needs Gradio: pip install -e ".[demo]"')

from assistant import RERANKED, Assistant, Panel, read_lines, read_picture, read_text, unread
from gradio.utils import get_upload_folder
from PIL import Image

from albef_hf.data import Scenes
from albef_hf.pipeline_albef import AlbefPipeline
from albef_hf.search.image_sources import picture_suffixes

FIRST_MODEL = "runs/scenes"  # of the first command of the README
EXAMPLES = 6  # pictures to pick from
FOUND = 12  # pictures that a search shows
MOST_UPLOADED = "20mb"
JOB_SECONDS = 120  # that a visitor's job may take
LATE_JOBS = 4  # that go on after that, before the page takes no others
NOT_UPLOADED = "This file was not uploaded here: drop a picture into the field, or pick an example."
FONT = ("system-ui", "sans-serif")  # that the visitor has
STYLE = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
.gallery-of-all .grid-wrap { max-height: none !important; min-height: 0 !important; overflow: visible !important; }
.gallery-of-all .grid-container { grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)) !important; }
.gallery-of-all .caption-label { max-width: 100% !important; }
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

Upload = dict[str, Any] | None


def told(function: Callable) -> Callable:
    """Tell the visitor what a function of the page refuses, but not where in the code that was; limit its time."""

    @functools.wraps(function)
    def telling(page: "Page", *arguments: Any) -> Any:
        try:
            return page.run_job(function, *arguments)
        except (ValueError, OSError) as error:
            raise gr.Error(html.escape(str(error)), print_exception=False) from None

    return telling


class Page:
    """The page: what its buttons do, and how it looks.

    Args:
        assistant: Does the work.
        examples: Rows of a picture's path, captions and a text, to pick from.
    """

    def __init__(self, assistant: Assistant, examples: Sequence[tuple[str, str, str]]):
        self.assistant, self.examples = assistant, examples
        self.example_files = {os.path.realpath(path) for path, *_ in examples}
        self.late_jobs: list[threading.Thread] = []

    def run_job(self, function: Callable, *arguments: Any) -> Any:
        """Run a function of the page in a thread of its own, so that the next visitor need not wait if it hangs.

        Raises:
            TimeoutError: If it takes too long, or too many others that did are still running.
        """
        self.late_jobs = [thread for thread in self.late_jobs if thread.is_alive()]
        if len(self.late_jobs) >= LATE_JOBS:
            raise TimeoutError("The page is busy: try again in some minutes.")
        future, context = Future(), contextvars.copy_context()  # by which Gradio knows whom a warning is for

        def work() -> None:
            try:
                future.set_result(context.run(function, self, *arguments))
            except BaseException as error:
                future.set_exception(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(JOB_SECONDS)
        if thread.is_alive():
            self.late_jobs.append(thread)
            raise TimeoutError(f"This took more than {JOB_SECONDS} seconds, and was given up.")
        return future.result()

    def _picture(self, upload: Upload) -> Image.Image:
        """The picture that a visitor has uploaded, or an example; no other file of this machine.

        Gradio hands over what a client sends, and checks paths of some kinds of requests only.
        """
        if upload is None:
            return read_picture(None)
        path = upload.get("path") if isinstance(upload, Mapping) else None
        if not isinstance(path, str) or not self._is_uploaded(path):
            raise ValueError(NOT_UPLOADED)
        return read_picture(path)

    def _is_uploaded(self, path: str) -> bool:
        """Whether a path leads to an uploaded file or an example; no other place is looked at."""
        folder = Path(get_upload_folder())
        try:
            named = Path(os.path.abspath(path))
            if not any(named.is_relative_to(os.path.abspath(root)) for root in (folder, os.path.realpath(folder))):
                return str(named) in self.example_files
            return Path(os.path.realpath(named)).is_relative_to(os.path.realpath(folder))
        except (OSError, ValueError):  # a null byte, for one
            return False

    @told
    def score(self, upload: Upload, lines: str) -> str:
        """A table of captions, their probabilities and their similarities."""
        picture, captions = self._picture(upload), read_lines(lines, "caption")
        _warn_of_cut(self.assistant.retrieve, captions)
        rows = [
            f"<div>{html.escape(text)}</div>"
            f'<div>{score:.1%}<div class="bar"><span style="width: {score:.1%}"></span></div></div>'
            f"<div>{similarity:+.2f}</div>"
            for text, score, similarity in self.assistant.score(picture, captions)
        ]
        return f'<div class="scores"><b>Caption</b><b>Match</b><b>Cosine</b>{"".join(rows)}</div>'

    @told
    def look(self, upload: Upload, text: str) -> list[Panel]:
        """Heat maps of a text and its words."""
        picture, text = self._picture(upload), read_text(text, "text")
        _warn_of_cut(self.assistant.retrieve, [text])
        return self.assistant.show(picture, text)

    @told
    def ask(self, upload: Upload, question: str, lines: str) -> tuple[dict[str, float], Image.Image]:
        """Answers, and where the model has looked for the best."""
        picture, question = self._picture(upload), read_text(question, "question")
        _warn_of_cut(self.assistant.answer, [question])
        has_choices = bool(lines.strip()) if isinstance(lines, str) else lines is not None
        return self.assistant.ask(picture, question, read_lines(lines, "answer") if has_choices else [])

    @told
    def search(self, query: str) -> tuple[list[Panel], tuple[str, list[Any]]]:
        """Pictures that fit a text; and the text and what they are, for the one that is taken."""
        query = read_text(query, "text")
        _warn_of_cut(self.assistant.retrieve, [query])
        panels, keys = self.assistant.search(query, FOUND)
        return panels, (query, keys)

    @told
    def search_similar(self, upload: Upload) -> tuple[list[Panel], tuple[str, list[Any]]]:
        """Pictures that resemble the one in the hand."""
        panels, keys = self.assistant.search(self._picture(upload), FOUND)
        return panels, ("", keys)

    @told
    def take(self, found: tuple[str, list[Any]], event: gr.SelectData) -> tuple[Any, ...]:
        """Put a picture that was found into the hand; if a text has found it, show its words in it."""
        try:
            query, keys = found
            picture = self.assistant.index.picture(keys[event.index])
        except (AttributeError, LookupError, TypeError) as error:  # of what a client sends by itself
            raise ValueError("There is no such picture: search again, and click one.") from error
        if not query:
            return picture, gr.skip(), gr.skip(), gr.skip()
        return picture, query, self.assistant.show(picture, read_text(query, "text")), gr.Tabs(selected="words")

    def build(self) -> gr.Blocks:
        """Lay the page out."""
        with gr.Blocks(title="ALBEF", delete_cache=(600, 3600)) as blocks:  # uploads older than an hour
            gr.Markdown("# ALBEF\nPictures and words: which captions fit, where each word is, what the answer is.")
            with gr.Row():
                with gr.Column(scale=2, min_width=300):
                    # A picture comes as the file that was sent, so that a broken one is told of in our words.
                    picture = gr.Image(
                        type="filepath", image_mode=None, label="Picture", height=320, elem_id="picture"
                    )
                    beside = gr.Column()
                with gr.Column(scale=3, min_width=340), gr.Tabs() as tabs:
                    with gr.Tab("Captions", id="captions"):
                        captions = self._captions(picture)
                    with gr.Tab("Words", id="words"):
                        text, maps = self._words(picture)
                    with gr.Tab("Question", id="question"):
                        self._question(picture)
                    with gr.Tab("Search", id="search"):
                        self._search(picture, [picture, text, maps, tabs])
            with beside:
                rows = [list(row) for row in self.examples]
                gr.Examples(rows, [picture, captions, text], visible_columns=[0], label="Examples")
        return blocks

    def _captions(self, picture: gr.Image) -> gr.Textbox:
        captions = gr.Textbox(label="Captions, one a line", lines=4, max_lines=12, elem_id="captions")
        button = gr.Button("Which one fits?", variant="primary", elem_id="score")
        scores = gr.HTML(elem_id="scores")
        _run([button.click], self.score, [picture, captions], scores)
        return captions

    def _words(self, picture: gr.Image) -> tuple[gr.Textbox, gr.Gallery]:
        text = gr.Textbox(label="Text", elem_id="text")
        button = gr.Button("Where is it?", variant="primary", elem_id="look")
        maps = _gallery("maps")
        note = "Red is where it looks most to tell whether text and picture match."
        if not self.assistant.shows_matching:
            note += " (Each word by itself: in a single multimodal layer none has a part of its own in that.)"
        gr.Markdown(note)
        _run([button.click, text.submit], self.look, [picture, text], maps)
        return text, maps

    def _question(self, picture: gr.Image) -> None:
        if self.assistant.answer is None:
            gr.Markdown(
                "No model answers questions here. Give one: `--question_model` (of a Space: `ALBEF_QUESTION_MODEL`) "
                "is a folder that `train/finetune.py --task vqa` has written, or a model on the Hub."
            )
            return
        question = gr.Textbox(label="Question", elem_id="question")
        choices = gr.Textbox(
            label="Answers to choose from, one a line; without any, the model writes", lines=2, elem_id="choices"
        )
        button = gr.Button("Ask", variant="primary", elem_id="ask")
        with gr.Row():
            answers = gr.Label(label="Answer", elem_id="answers")
            where = gr.Image(label="Where it looked for it", interactive=False, buttons=[], elem_id="where")
        _run([button.click, question.submit], self.ask, [picture, question, choices], [answers, where])

    def _search(self, picture: gr.Image, taken: list[Any]) -> None:
        if self.assistant.index is None:
            gr.Markdown(
                "There is nothing to search here. Give an index: `--index` (of a Space: `ALBEF_INDEX`) is a folder "
                "that `python -m albef_hf.search.index build` has written with this model."
            )
            return
        query = gr.Textbox(label=f"Find among {len(self.assistant.index):,} pictures", elem_id="query")
        with gr.Row():
            by_text = gr.Button("Search", variant="primary", elem_id="search")
            by_picture = gr.Button("Search by the picture", elem_id="similar")
        gallery = _gallery("found", allow_preview=False)
        gr.Markdown(
            "Below each: the probability of a match (ITM), by which they are ordered, and the cosine (ITC). "
            "Click one to make it the picture and see the words in it."
        )
        gr.Markdown(
            f"The {RERANKED} pictures of the highest cosine are matched, so that nobody waits for long; "
            "`python -m albef_hf.search.index search` matches 128, as the paper does, and may order otherwise."
        )
        found = gr.State(("", []))
        _run([by_text.click, query.submit], self.search, query, [gallery, found])
        _run([by_picture.click], self.search_similar, picture, [gallery, found])
        _run([gallery.select], self.take, found, taken)


def _run(events: Sequence[Callable], function: Callable, inputs: Any, outputs: Any) -> None:
    """Run one at a time, so that each has the processors or the GPU for itself."""
    gr.on(events, function, inputs, outputs, preprocess=False, concurrency_id="model", concurrency_limit=1)


def _warn_of_cut(pipeline: AlbefPipeline, texts: Sequence[str]) -> None:
    for text in texts:
        if end := unread(pipeline.processor, text):
            gr.Warning(html.escape(f"Too long for the model, which has not read the end: “{end[:60]}”"))
            return


def _gallery(name: str, **settings: Any) -> gr.Gallery:
    """Of as many rows as it needs."""
    return gr.Gallery(
        show_label=False, height="auto", buttons=[], elem_id=name, elem_classes="gallery-of-all", **settings
    )


def scene_examples(folder: str) -> list[tuple[str, str, str]]:
    """Built-in scenes, drawn into a folder, each with a caption of its own and those of two others."""
    scenes = list(Scenes(EXAMPLES, seed=7, image_size=240))
    names = [[_name(thing) for thing in scene["objects"]] for scene in scenes]
    captions = [f"{', '.join(some)} and {last}" for *some, last in names]
    rows = []
    for number, scene in enumerate(scenes):
        path = f"{folder}/scene_{number}.png"
        scene["image"].save(path)
        rows.append((path, "\n".join(captions[number - step] for step in range(3)), captions[number]))
    return rows


def _name(thing: dict[str, Any]) -> str:
    return f"{'an' if thing['color'][0] in 'aeiou' else 'a'} {thing['color']} {thing['shape']}"


def folder_examples(folder: str) -> list[tuple[str, str, str]]:
    """The pictures of a folder, by name."""
    known = picture_suffixes()
    paths = sorted(str(path) for path in Path(folder).iterdir() if path.suffix.lower() in known)
    if not paths:
        raise ValueError(f"--examples {folder} holds no picture.")
    return [(path, "", "") for path in paths[:EXAMPLES]]


def read_options(arguments: list[str]) -> argparse.Namespace:
    """The command line; what it leaves out, the environment says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def add(name: str, default: str | None, description: str) -> None:
        value = os.environ.get(f"ALBEF_{name.upper()}") or default
        parser.add_argument(f"--{name}", default=value, help=f"{description}; else ALBEF_{name.upper()}")

    add("model", FIRST_MODEL, "folder or Hub name of a model from pretraining or retrieval")
    add("question_model", None, "the same of a model that answers questions")
    add("index", None, "folder that `python -m albef_hf.search.index build` has written with this --model")
    add("pictures", None, "folder of the pictures of --index, if they have moved since")
    add("examples", None, "folder of pictures to pick from; else built-in scenes")
    parser.add_argument("--host", help="address to serve; by default this machine alone (or GRADIO_SERVER_NAME)")
    parser.add_argument("--port", type=int, help="by default the first free one from 7860 (or GRADIO_SERVER_PORT)")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Read the options, load, serve."""
    options = read_options(arguments)
    if options.model == FIRST_MODEL and not Path(FIRST_MODEL).exists():
        sys.exit(f"error: there is no {FIRST_MODEL}, which `make pretrain` writes; or give --model FOLDER_OR_HUB_NAME")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # which removes the uploads
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as uploads:
        os.environ.setdefault("GRADIO_TEMP_DIR", uploads)  # not where other pages keep what was uploaded there
        try:
            assistant = Assistant.from_pretrained(
                options.model, options.question_model, options.index, options.pictures
            )
            examples = folder_examples(options.examples) if options.examples else scene_examples(folder)
        except (ValueError, OSError, ImportError) as error:
            sys.exit(f"error: {error}")
        page = Page(assistant, examples).build()
        page.launch(
            server_name=options.host,
            server_port=options.port,
            max_file_size=MOST_UPLOADED,
            ssr_mode=False,
            run_history=False,
            footer_links=["api", "gradio"],
            css=STYLE,
            theme=gr.themes.Default(primary_hue="indigo", font=FONT, font_mono=FONT),
        )


if __name__ == "__main__":
    main(sys.argv[1:])
