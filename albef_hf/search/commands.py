"""Run the commands of image search."""

import argparse
import sys
import tempfile
import webbrowser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import pipeline
from transformers.utils import logging

from ..data.images import load_image
from ..modeling_albef import AlbefImageTextModel
from ..processing_albef import AlbefProcessor, replace_surrogates
from ..retrieval_albef import as_int
from ..utils.devices import default_dtype
from ..utils.dtypes import AS_SAVED
from ..utils.files import write_errors_named
from ..utils.progress import progress
from .feature_store import FeatureStore
from .html_report import MATCH, html_report
from .index import Hit, ImageIndex, as_weight, require_words
from .manifest import MANIFEST
from .reference_texts import read_reference_texts

logger = logging.get_logger(f"transformers.{__name__}")

TASK: Any = "image-text-retrieval"  # missing in the type annotations of transformers


def build(options: argparse.Namespace) -> None:
    """Build, resume or update an index."""
    as_int("batch_size", options.batch_size, minimum=1)
    if not options.folder.is_dir():
        raise ValueError(f"{options.folder} is not a folder.")
    references = read_reference_texts(options.reference_texts) if options.reference_texts else None
    dtype = options.dtype or _dtype_of_index(options.index) or default_dtype(options.device)
    model, processor = load_model(options.model, options.revision, options.device, dtype)
    index = ImageIndex.build(
        model,
        processor,
        images=options.folder,
        folder=options.index,
        index_factory=options.index_factory,
        batch_size=options.batch_size,
        reference_texts=references,
    )
    _print(_summary(index))


def add(options: argparse.Namespace) -> None:
    """Add files and folders to an index."""
    as_int("batch_size", options.batch_size, minimum=1)
    absent = [path for path in options.images if not path.exists()]
    if absent:
        raise ValueError(f"{absent[0]} does not exist.")
    index = _load(options)
    added = sum(index.add(path, options.batch_size) for path in options.images if path.is_dir())
    files = [path for path in options.images if not path.is_dir()]
    if files:
        added += index.add(files, options.batch_size)
    _print(f"{added} added. {_summary(index)}")


def remove(options: argparse.Namespace) -> None:
    """Remove images from an index."""
    index = _load(options)
    index.remove(options.keys)
    _print(_summary(index))


def info(options: argparse.Namespace) -> None:
    """Describe an index and check its files."""
    index = _load(options)
    manifest = index.store.manifest
    used = "used" if index.is_normalized else "without effect, as the model has no weight for them"
    size = sum(entry["bytes"] for entry in manifest.files.values())
    problems = [problem for name in manifest.files if (problem := index.store.check_sha256(name))]
    _print(_summary(index))
    _print(f"source: {index.store.root or 'a list or dataset'}")
    _print(f"model: {index.store.model_name}, revision {manifest.model['revision'] or 'unknown'}")
    _print(f"dtype: {index.store.dtype or 'unknown'}")
    _print(f"reference texts: {used if manifest.reference_texts else 'none'}")
    _print(f"faiss: {manifest.built}; {size / 1e6:.1f} MB on the disk")
    _print(f"changes: {index.changes()}")
    _print(f"damage: {'; '.join(problems) or 'none'}")


def search(options: argparse.Namespace) -> None:
    """Search an index, print a table, and write a page if requested."""
    query = _checked_query(options)  # before the model is loaded, which takes a while
    index = _load(options)
    _warn_of_changes(index)
    hits = index.search(query, top_k=options.top_k, rerank_k=options.rerank_k, itc_weight=options.itc_weight)
    print("  score   match  cosine  image")
    for hit in hits:
        match = "      -" if hit.match is None else f"{hit.match:7.4f}"
        _print(f"{hit.score:+7.3f} {match} {hit.similarity:+7.4f}  {hit.key}")
    if options.html or options.open:
        path = options.html or Path(tempfile.mkdtemp(), "results.html")
        page = results_page(index, query, hits, options.itc_weight, options.all_words)
        with write_errors_named(path):
            path.write_text(page, encoding="utf-8")
        print(f"The results are in {path}.")
        if options.open:
            webbrowser.open(path.absolute().as_uri())


def load_model(
    name: str, revision: str | None, device: str | None, dtype: str
) -> tuple[AlbefImageTextModel, AlbefProcessor]:
    """Load a model and its processor from a folder or the Hub by transformers' pipeline, which checks that they fit.

    No code from the folder is run, because the name may come from an index of somebody else.
    """
    loaded = pipeline(TASK, model=name, revision=revision, device=device, dtype=dtype, trust_remote_code=False)
    return loaded.model, loaded.processor


def results_page(
    index: ImageIndex,
    query: str | Image.Image,
    hits: Sequence[Hit],
    itc_weight: float | None = None,
    all_words: bool = False,
) -> str:
    """Return the HTML page of a search, with heat maps of content words or of all words.

    Args:
        index: The index that was searched.
        query: What was searched for.
        hits: The result.
        itc_weight: As for the search.
        all_words: Draw maps of function words, too.
    """

    def results() -> Iterator[tuple[str, dict[str, str], Image.Image | None]]:
        for hit in progress(hits, "draw heat maps", leave=False):
            image = None
            try:
                image = index.image(hit.key)
            except ValueError as error:
                logger.warning(error)
            scores = {} if hit.match is None else {"score": f"{hit.score:+.3f}", MATCH: f"{hit.match:.1%}"}
            yield str(hit.key), scores | {"cosine (ITC)": f"{hit.similarity:+.3f}"}, image

    name = index.store.model_name
    name = Path(name).name if name and Path(name).is_absolute() else name  # the page may be sent to others
    score = _describe_score(index, itc_weight) if any(hit.match is not None for hit in hits) else "cosine (ITC)"
    about = f"The best {len(hits)} of {len(index):,} images, found with {name}. Score: {score}"
    return html_report(
        query, results(), about=about, model=index.model, processor=index.processor, all_words=all_words
    )


def _describe_score(index: ImageIndex, itc_weight: float | None) -> str:
    calibration = index.calibration
    if itc_weight is None and index.is_normalized:
        score = "calibrated logit of a match, normalized by reference texts"
    else:
        weight = calibration.itc_weight if itc_weight is None else itc_weight
        score = "log-odds of a match (ITM)" + (f" + {weight:g} × cosine (ITC)" if weight else "")
    return f"{score}. Match: the probability, {calibration.describe()}"


def _load(options: argparse.Namespace) -> ImageIndex:
    """Load the index of a command, with the model that it was built with."""
    store = FeatureStore.open(options.index)
    name = options.model or store.model_name
    if not name:
        raise ValueError("The index does not say which model it was built with: give the model with --model.")
    revision = options.revision or (None if options.model else store.manifest.model["revision"])
    model, processor = load_model(name, revision, options.device, store.dtype or AS_SAVED)
    # Only a search may differ from the features. Earlier versions indexed in the precision of the saved weights.
    dtype = getattr(options, "dtype", None)
    return ImageIndex.load(options.index, model, processor, images=options.folder, dtype=dtype)


def _dtype_of_index(folder: Path) -> str | None:
    """Return the dtype of an existing index, to resume or update it; None if there is none."""
    return (FeatureStore.open(folder).dtype or AS_SAVED) if (folder / MANIFEST).exists() else None


def _checked_query(options: argparse.Namespace) -> str | Image.Image:
    """Check the options of a search, and return the text or the image to search for."""
    if (options.query is None) == (options.image is None):
        raise ValueError("Give a text to search for, or an image with --image.")
    as_int("top_k", options.top_k, minimum=1)
    as_int("rerank_k", options.rerank_k, minimum=0)
    if options.itc_weight is not None:
        as_weight("itc_weight", options.itc_weight)
    if options.image is None:
        require_words(options.query)
    if options.all_words and not (options.query and (options.html or options.open)):
        raise ValueError("--all_words is for the page of a text: give a text, and --html or --open.")
    if options.html:
        _require_writable(options.html)
    return options.query if options.image is None else load_image(options.image, exif_transpose=True)


def _require_writable(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"{path} is a folder. Give --html a file in an existing folder.")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"There is no folder {path.parent}. Give --html a file in an existing folder.")


def _warn_of_changes(index: ImageIndex) -> None:
    changes = index.changes()
    if not changes:
        return
    remedy = "build it again to update it"
    root = index.source.root
    if root is not None and not root.exists():
        remedy = "the folder has moved: give its new place with --folder, or build the index again"
    print(replace_surrogates(f"The index is not up to date: {changes}; {remedy}."), file=sys.stderr)


def _print(text: str) -> None:
    """Print a line, also if it has line breaks or invalid characters, as file names may have."""
    print(replace_surrogates(text).replace("\n", "\\n"))


def _summary(index: ImageIndex) -> str:
    broken = f"; unreadable: {index.broken_summary()}" if index.broken else ""
    return f"{len(index):,} images in {index.store.folder}{broken}"
