"""An HTML page of search results: images, scores, and a heat map for each word of the query.

The page is a single file that can be stored and sent.
"""

import base64
import html
import io
from collections.abc import Iterable
from string import Template

import torch
from PIL import Image

from ..heatmaps_albef import (
    content_words,
    contrastive_heatmaps,
    match_probabilities,
    matching_heatmaps,
    overlays,
    word_heatmaps,
)
from ..modeling_albef import AlbefImageTextModel
from ..processing_albef import AlbefProcessor, replace_surrogates

THUMBNAIL = 320  # pixels of the longer side
HEATMAP = 132
UNREADABLE = '<p class="unreadable">This image cannot be read any more.</p>'

MATCH = "match"  # label of the probability
LEGEND = """<p class="legend">Heat of a word: from none <span></span> to that of the hottest place of all words in the
image. The colors of an image fade with its probability of a match.</p>"""

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
  :root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 15%, transparent); }
  body { font: 15px/1.4 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.4rem; margin: 0; overflow-wrap: anywhere; }
  p, dt { opacity: .7; }
  ol { list-style: none; padding: 0; }
  li { border-top: 1px solid var(--line); padding: 1rem 0; display: grid; gap: 1rem;
       grid-template-columns: minmax(0, 21rem) minmax(0, 1fr); }
  ol.images { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); }
  ol.images li { display: block; }
  li > figure img { max-width: 100%; border-radius: 4px; }
  figure { margin: 0; }
  .unreadable { border: 1px dashed; border-radius: 4px; padding: 3rem 1rem; margin: 0; text-align: center; }
  figcaption { overflow-wrap: anywhere; }
  dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 .7rem; margin: 0 0 .7rem; }
  dd { margin: 0; font-variant-numeric: tabular-nums; }
  .legend span { display: inline-block; width: 6rem; height: .7rem; vertical-align: -.05rem; border-radius: 4px;
                 background: linear-gradient(to right, #e6e6e6, #f0e19b 50%, #d15a62); }
  .words { display: flex; flex-wrap: wrap; gap: .6rem; }
  .words figcaption { font-size: .85rem; text-align: center; }
  @media (max-width: 40rem) { li { grid-template-columns: 1fr; } }
</style>
<h1>$title</h1>
<p>$about</p>
$below
<ol$kind>
$results
</ol>
</html>
""")


def word_maps(
    model: AlbefImageTextModel, processor: AlbefProcessor, text: str, image: Image.Image, all_words: bool = False
) -> tuple[list[str], torch.Tensor]:
    """Compute a heat map of an image for each word of a text.

    The maps are those of the matching head, for which the words are read together. A model with a single multimodal
    layer has no such map of a word; the maps are those of the contrastive similarity of each word by itself.

    Args:
        model: Computes the maps.
        processor: Its processor.
        text: The text.
        image: The image.
        all_words: Include English function words and punctuation, which `content_words` omits.

    Returns:
        The words, and their maps, (words, rows, columns).
    """
    inputs = processor(images=[image], text=[text], return_tensors="pt").to(model.device)
    ids = inputs["input_ids"][0]
    words, _ = word_heatmaps(processor.tokenizer, ids, torch.zeros(len(ids), 1, 1))
    chosen = list(range(len(words))) if all_words else content_words(words)
    words = [words[index] for index in chosen]
    if model.config.text.num_multimodal_layers > 1:
        special = torch.isin(ids, torch.tensor(processor.tokenizer.all_special_ids, device=ids.device))
        maps = matching_heatmaps(model, **inputs)[0]
        # Without special tokens, all maps may be zero: nothing in the image speaks for a match.
        return words, word_heatmaps(processor.tokenizer, ids, maps.masked_fill(special[:, None, None], 0))[1][chosen]
    pixels = inputs["pixel_values"].expand(len(words), -1, -1, -1)
    alone = processor(text=words, return_tensors="pt").to(model.device)
    return words, contrastive_heatmaps(model, alone["input_ids"], pixels, alone["attention_mask"])


def contain(image: Image.Image, side: int) -> Image.Image:
    """Resize an image to a length of its longer side in pixels; the shorter side has at least one pixel."""
    scale = side / max(image.size)
    width = max(round(image.width * scale), 1)
    height = max(round(image.height * scale), 1)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def html_report(
    query: str | Image.Image,
    results: Iterable[tuple[str, dict[str, str], Image.Image | None]],
    about: str,
    model: AlbefImageTextModel,
    processor: AlbefProcessor,
    all_words: bool = False,
) -> str:
    """Return the page as HTML.

    Args:
        query: Text or image that was searched for.
        results: Name, scores and image of each result, the best first; None for an image that cannot be read any more.
        about: A line about what was searched and how.
        model: Computes the heat maps for a text.
        processor: Its processor.
        all_words: Draw heat maps of function words, too (see `word_maps`).
    """
    items = []
    for name, scores, image in results:
        figure = f"<figure>{UNREADABLE}<figcaption>{_text(name)}</figcaption></figure>"
        heatmaps: list[str] = []
        if image is not None:
            figure = _figure(contain(image, THUMBNAIL), name)
        if image is not None and isinstance(query, str):
            probability, heatmaps = _heatmaps(model, processor, query, image, all_words)
            scores = scores | {MATCH: scores.get(MATCH, f"{probability:.1%}")}
        lines = "".join(f"<dt>{_text(label)}</dt><dd>{_text(value)}</dd>" for label, value in scores.items())
        items.append(f'<li>{figure}<div><dl>{lines}</dl><div class="words">{"".join(heatmaps)}</div></div>')
    title = "Images like this one"
    below_title = LEGEND
    kind = ' class="images"'
    if isinstance(query, str):
        title = _text(query if len(query) <= 200 else query[:200] + " ...")
        kind = ""
    else:
        below_title = _figure(contain(query, THUMBNAIL), "query")
    results_html = "\n".join(items) or "<li>No results.</li>"
    return PAGE.substitute(title=title, about=_text(about), below=below_title, kind=kind, results=results_html)


def _heatmaps(
    model: AlbefImageTextModel, processor: AlbefProcessor, text: str, image: Image.Image, all_words: bool
) -> tuple[float, list[str]]:
    """Return the probability that text and image match, and the heat maps of the words as HTML."""
    inputs = processor(images=[image], text=[text], return_tensors="pt").to(model.device)
    probability = match_probabilities(model, **inputs).item()
    words, maps = word_maps(model, processor, text, image, all_words)
    drawings = overlays(contain(image, HEATMAP), maps, probability=probability)
    return probability, [_figure(drawing, word) for drawing, word in zip(drawings, words, strict=True)]


def _text(text: str) -> str:
    return html.escape(replace_surrogates(text))


def _figure(image: Image.Image, caption: str) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    source = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    caption = _text(caption)
    return f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
