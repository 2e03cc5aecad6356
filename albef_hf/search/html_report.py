"""A search on a page: the pictures that were found, their scores, and where the model looks for each word.

The page is one file with everything in it, so that it can be kept and sent.
"""

import base64
import html
import io
from collections.abc import Iterable
from string import Template

import torch
from PIL import Image

from ..heatmaps_albef import contrastive_heatmaps, matching_heatmaps, overlay, word_heatmaps
from ..modeling_albef import AlbefAlignedModel
from ..processing_albef import AlbefProcessor, encodable

THUMBNAIL, HEATMAP = 320, 132  # pixels of the longer side
UNREADABLE = '<p class="unreadable">This picture cannot be read any more.</p>'

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
  ol.pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); }
  ol.pictures li { display: block; }
  li > figure img { max-width: 100%; border-radius: 4px; }
  figure { margin: 0; }
  .unreadable { border: 1px dashed; border-radius: 4px; padding: 3rem 1rem; margin: 0; text-align: center; }
  figcaption { overflow-wrap: anywhere; }
  dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 .7rem; margin: 0 0 .7rem; }
  dd { margin: 0; font-variant-numeric: tabular-nums; }
  .words { display: flex; flex-wrap: wrap; gap: .6rem; }
  .words figcaption { font-size: .85rem; text-align: center; }
  @media (max-width: 40rem) { li { grid-template-columns: 1fr; } }
</style>
<h1>$title</h1>
<p>$about</p>
$asked
<ol$kind>
$results
</ol>
</html>
""")


def word_maps(
    model: AlbefAlignedModel, processor: AlbefProcessor, text: str, picture: Image.Image
) -> tuple[list[str], torch.Tensor]:
    """Where a model looks in a picture for each word of a text.

    Maps of the matching, in which the words are read together; of a model with a single multimodal layer, where no
    word has such a map, those of the contrast of each word by itself.

    Returns:
        The words, and a map of each, (words, rows, columns).
    """
    inputs = processor(images=[picture], text=[text], return_tensors="pt").to(model.device)
    ids = inputs["input_ids"][0]
    if model.config.text_config.num_multimodal_layers > 1:
        special = torch.isin(ids, torch.tensor(processor.tokenizer.all_special_ids, device=ids.device))
        maps = matching_heatmaps(model, **inputs)[0]
        # Without special tokens, all maps may be zero: of an image in which nothing speaks for a match.
        return word_heatmaps(processor.tokenizer, ids, maps.masked_fill(special[:, None, None], 0))
    words, _ = word_heatmaps(processor.tokenizer, ids, torch.zeros(len(ids), 1, 1))
    pixels = inputs["pixel_values"].expand(len(words), -1, -1, -1)
    alone = processor(text=words, return_tensors="pt").to(model.device)
    return words, contrastive_heatmaps(model, alone["input_ids"], pixels, alone["attention_mask"])


def contain(image: Image.Image, side: int) -> Image.Image:
    """Resize an image so that its longer side has so many pixels, and its shorter one at least one."""
    scale = side / max(image.size)
    width, height = (max(round(length * scale), 1) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def results_page(
    query: str | Image.Image,
    results: Iterable[tuple[str, dict[str, str], Image.Image | None]],
    about: str,
    model: AlbefAlignedModel,
    processor: AlbefProcessor,
) -> str:
    """The page as HTML.

    Args:
        query: What was searched for.
        results: Name, scores and picture of each, the best first; None where the picture cannot be read any more.
        about: A line on what was searched, and how.
        model: Draws the heat maps, where the query is a text.
        processor: Its processor.
    """
    is_text = isinstance(query, str)
    shown = []
    for name, scores, picture in results:
        lines = "".join(f"<dt>{_text(label)}</dt><dd>{_text(value)}</dd>" for label, value in scores.items())
        figure, heats = f"<figure>{UNREADABLE}<figcaption>{_text(name)}</figcaption></figure>", []
        if picture is not None:
            figure = _figure(contain(picture, THUMBNAIL), name)
            words, maps = word_maps(model, processor, query, picture) if is_text else ([], [])
            tiny = contain(picture, HEATMAP)
            heats = [_figure(overlay(tiny, heat), word) for word, heat in zip(words, maps, strict=True)]
        shown.append(f'<li>{figure}<div><dl>{lines}</dl><div class="words">{"".join(heats)}</div></div>')
    kind = "" if is_text else ' class="pictures"'
    asked = "" if is_text else _figure(contain(query, THUMBNAIL), "searched for")
    title = _text(query if len(query) <= 200 else query[:200] + " ...") if is_text else "Pictures like this one"
    results = "\n".join(shown) or "<li>Nothing.</li>"
    return PAGE.substitute(title=title, about=_text(about), asked=asked, kind=kind, results=results)


def _text(text: str) -> str:
    return html.escape(encodable(text))


def _figure(picture: Image.Image, caption: str) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    source = "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
    caption = _text(caption)
    return f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
