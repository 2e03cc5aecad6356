"""Pipelines of ALBEF: retrieval, matching, questions, captions, entailment, reasoning about two images, grounding.

Images are PIL images, paths, URLs (http or https) or base64. Inputs are single, in lists, from generators or from
datasets. `device`, `dtype` and `batch_size` are those of every pipeline of transformers.
"""

import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from types import GeneratorType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from transformers import BatchEncoding, Pipeline, PreTrainedModel, PreTrainedTokenizerBase

from .calibration_albef import MatchCalibration, matching_log_odds
from .compatibility_albef import renamed_arguments
from .configuration_albef import PIPELINES
from .heatmaps_albef import (
    contrastive_heatmaps,
    match_probabilities,
    matching_heatmaps,
    overlay,
    resize_heatmap,
    score_boxes,
)
from .images_albef import fetch_image
from .processing_albef import AlbefProcessor
from .retrieval_albef import (
    ImageEncoder,
    as_int,
    best_matches,
    encode_texts,
    encode_tokenized_texts,
    match,
    match_images,
)
from .zero_shot_albef import DEFAULT_TEMPLATES, ClassPrompts, ClassRanking, encode_classes, rank_classes

ImageLike = Image.Image | str | os.PathLike  # an image, or its path, URL or base64
Result = dict[str, Any]
MAX_CAPTION_TOKENS = 20  # by default
MATCHING_BATCH_SIZE = 16  # images that are matched with one text at a time


class AlbefPipeline(Pipeline):
    """Base class of the pipelines: checks that the model fits the task, and reads and checks inputs.

    Args:
        model: The model; it is put into evaluation mode.
        processor: The model's `AlbefProcessor`.
        kwargs: `device`, `batch_size` and other arguments of transformers' `Pipeline`, and defaults for arguments of
            the call.

    Raises:
        ValueError: If there is no processor, its tokenizer has another vocabulary than the model, or the model, or the
            folder it was loaded from, is for another task.
    """

    _load_processor = True
    _load_tokenizer = _load_image_processor = _load_video_processor = _load_feature_extractor = False

    task_name: str  # key of `PIPELINES`, which also has the heads for the task
    needs_words = True  # in each text

    def __init__(self, model: PreTrainedModel, processor: AlbefProcessor | None = None, **kwargs):
        self._check(model, processor)
        super().__init__(model=model.eval(), processor=processor, **kwargs)

    def _check(self, model: PreTrainedModel, processor: AlbefProcessor | None) -> None:
        """Refuse a model or processor that would fail later or give meaningless answers."""
        self._check_head(model)
        if getattr(processor, "tokenizer", None) is None:
            raise ValueError("The pipeline needs a processor: processor=AlbefProcessor.from_pretrained(...).")
        _check_vocabulary(model, processor.tokenizer)

    def _check_head(self, model: PreTrainedModel) -> None:
        """Refuse a model without a head for the task, and one whose head was not saved and is therefore random."""
        heads = PIPELINES[self.task_name][2]
        families = [{kind.__name__ for kind in type(part).__mro__} for part in model.modules()]  # finds wrapped models
        fitting = set().union(*(family for family in families if family & set(heads)))
        saved = model.config.architectures or heads
        if not (fitting | set(heads)) & set(saved):
            tasks = [task for task, (_, _, others) in PIPELINES.items() if set(others) & set(saved)]
            pipelines = f"whose pipeline is {' or '.join(tasks)}" if tasks else "for which there is no pipeline"
            raise ValueError(
                f"The model was loaded from a folder of {saved[0]}, {pipelines}: for {self.task_name} load a folder "
                f"of {' or '.join(heads)}. If you have trained the model for this task since, save it and load it "
                "again."
            )
        if not fitting:
            raise ValueError(f"A {type(model).__name__} cannot do this: load the model as {heads[-1]}.")

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Save the model, the processor, and the code of the pipeline for users without `albef_hf`."""
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def _load_image(self, image: ImageLike, timeout: float | None = None) -> Image.Image:
        try:
            return fetch_image(image, exif_transpose=True, timeout=timeout)
        except Exception as error:  # of the file system, of the network, of Pillow
            reason = str(error)
            cause = error if len(reason) <= 400 else None  # a traceback would show all of a long reason
            raise ValueError(
                f"{_short_repr(image)} cannot be read as an image: {_shorten(reason, 400)}. Pass a PIL image, a path, "
                "a URL or base64."
            ) from cause

    def _pixels(self, image: ImageLike, timeout: float | None) -> torch.Tensor:
        """Convert an image to pixels, (1, channels, height, width)."""
        return self.processor(images=[self._load_image(image, timeout)], return_tensors="pt")["pixel_values"]

    def _check_new_tokens(self, max_new_tokens: int | None, used: int = 1) -> None:
        """Refuse to write more tokens than the model has positions for, after those that are used."""
        free = _free_positions(self.model, used)
        if max_new_tokens is not None and as_int("max_new_tokens", max_new_tokens) > free:
            raise ValueError(
                f"max_new_tokens is {max_new_tokens}: it must be at most {free}, for which the model has positions."
            )

    def _tokenize(self, texts: Sequence[str], name: str) -> dict[str, torch.Tensor]:
        """Tokenize texts, truncated to the positions of the model."""
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"The {name} {_short_repr(text)} is a {type(text).__name__}: it must be a string.")
        tokens = self.processor(text=list(texts), return_tensors="pt")
        for text, length in zip(texts, tokens["attention_mask"].sum(1), strict=True):
            if self.needs_words and length < 2 + self.processor.add_separator:  # [CLS], and maybe [SEP], alone
                raise ValueError(f"The {name} {_short_repr(text)} has no word: pass a text with at least one word.")
        return {key: values[:, : _positions(self.model)] for key, values in tokens.items()}


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with more tokens or other special tokens than the model."""
    tokens = len(tokenizer)
    embedded = model.get_input_embeddings().num_embeddings
    if tokens > embedded:
        raise ValueError(
            f"The tokenizer has {tokens} tokens and the model {embedded}: they do not belong together. "
            "Load the processor from the folder or repository of the model."
        )
    text = model.config.text_config
    expected = (text.bos_token_id, text.eos_token_id, text.pad_token_id)
    special = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id)
    if special != expected:
        raise ValueError(
            f"The ids of [CLS], [SEP] and [PAD] are {expected} in the model and {special} in the tokenizer: load the "
            "processor from the folder or repository of the model. If the model was trained with this tokenizer, set "
            "bos_token_id, eos_token_id and pad_token_id of the model's text_config to the tokenizer's ids."
        )


def _short_repr(value: Any) -> str:
    """Return the repr of a value, short enough for an error message."""
    return _shorten(repr(value).replace("\n", ""), 100)


def _shorten(text: str, length: int) -> str:
    """Replace the middle of a longer text by an ellipsis."""
    half = length // 2
    return text if len(text) <= length else f"{text[:half]} ... {text[-half:]}"


def _positions(model: PreTrainedModel) -> int:
    """Return the number of tokens that a text or an answer may have."""
    return model.config.text_config.max_tokens


def _free_positions(model: PreTrainedModel, used: int) -> int:
    """Return how many tokens the model can write after those that are used; the last one needs no position."""
    return _positions(model) - used + 1


INTEGER_SETTINGS = ("top_k", "rerank_k", "num_beams", "max_new_tokens")


def _without_none(**settings: Any) -> dict[str, Any]:
    """Return the settings that were passed, with counts checked and converted to int."""
    given = {name: value for name, value in settings.items() if value is not None}
    return given | {name: as_int(name, given[name]) for name in given.keys() & set(INTEGER_SETTINGS)}


def _is_array(value: Any) -> bool:
    """Return True for an array or tensor of numbers, which is meant as one image and not as a list of inputs."""
    return isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind not in "OSTU")


def _as_list(values: Any, name: str) -> list[Any]:
    """Return candidates, or a single one, as a list that is not empty."""
    if isinstance(values, (str, os.PathLike, Image.Image)) or _is_array(values):
        return [values]
    if not isinstance(values, Iterable):
        raise ValueError(f"{name} is {_short_repr(values)}: pass a list.")
    candidates = list(values)
    if not candidates:
        raise ValueError(f"{name} is empty: there is nothing to choose from.")
    return candidates


LAZY = (GeneratorType, Dataset)  # inputs that are read one by one


def _as_inputs(values: Any, name: str) -> Any:
    """Convert inputs to what transformers' `Pipeline` accepts: one, a list, a generator, or a dataset of torch."""
    is_single = isinstance(values, (str, bytes, Mapping)) or _is_array(values) or not isinstance(values, Iterable)
    if is_single or isinstance(values, LAZY):
        return values
    if not isinstance(values, (list, tuple)):
        return (value for value in values)
    if not values:
        raise ValueError(f"{name} is an empty list: pass at least one.")
    return list(values)


# ---------------------------------------------------------------------------------------------------------------------
# Retrieval
# ---------------------------------------------------------------------------------------------------------------------


class ImageTextRetrievalPipeline(AlbefPipeline):
    """Rank texts for an image, or images for a text: task `image-text-retrieval`.

    As in the paper, the cosine of image and text features (ITC) selects candidates, and the probability that image and
    text match (ITM), for which the model attends to both together, ranks them. Candidates that are passed when the
    pipeline is created are encoded once for all calls.

    Example:
        ```python
        >>> import albef_hf
        >>> from transformers import pipeline
        >>> retrieve = pipeline("image-text-retrieval", model="you/albef")
        >>> results = retrieve("image.png", candidate_texts=["a red ball", "a blue star", "nothing at all"])
        >>> sorted(results[0])
        ['index', 'score', 'similarity', 'text']
        >>> find = pipeline("image-text-retrieval", model="you/albef", candidate_images=["image.png", "other.png"])
        >>> [len(results) for results in find(["a red ball", "a blue star"], top_k=1)]
        [1, 1]

        ```
    """

    task_name = "image-text-retrieval"

    def __call__(self, inputs: Any, **kwargs) -> list[Result] | list[list[Result]]:
        """Rank the candidates.

        Args:
            inputs: Images to find texts for, or texts to find images for: one, a list, a generator or a dataset.
            candidate_texts: Texts to rank for images: a list, or a single text to match.
            candidate_images: Images to rank for texts: a list, or a single image to match.
            top_k: Number of results; by default all candidates that are ranked.
            rerank_k: Number of candidates of the highest similarity to rank by matching; 128 by default, as in the
                paper.
            timeout: Timeout of a URL in seconds.

        Returns:
            For each input a list of dictionaries, best first: `score`, the probability that image and text match,
            calibrated if the model is (see `MatchCalibration`); `similarity`, the cosine; `text` or `image`, the
            candidate as it was passed; its `index`.

        Raises:
            ValueError: If candidates are missing, or an argument is invalid.
        """
        return super().__call__(_as_inputs(inputs, "inputs"), **kwargs)

    @renamed_arguments(rerank="rerank_k")
    def _sanitize_parameters(
        self,
        candidate_texts: str | Sequence[str] | None = None,
        candidate_images: ImageLike | Sequence[ImageLike] | None = None,
        top_k: int | None = None,
        rerank_k: int | None = None,
        timeout: float | None = None,
    ) -> tuple[dict, dict, dict]:
        if candidate_texts is not None and candidate_images is not None:
            raise ValueError("Pass candidate_texts for images or candidate_images for texts, not both.")
        candidates: Candidates | None = None
        if candidate_texts is not None:
            candidates = _TextCandidates(self, candidate_texts)
        elif candidate_images is not None:
            candidates = _ImageCandidates(self, candidate_images, timeout)
        return (
            _without_none(candidates=candidates, timeout=timeout),
            _without_none(candidates=candidates, rerank_k=rerank_k),
            _without_none(candidates=candidates, top_k=top_k),
        )

    def preprocess(
        self, query: Any, candidates: "Candidates | None" = None, timeout: float | None = None
    ) -> dict[str, torch.Tensor]:
        """Convert an image to pixels, or a text to tokens."""
        if candidates is None:
            raise ValueError("There is nothing to choose from: pass candidate_texts or candidate_images.")
        return dict(candidates.preprocess(query, timeout))

    def _forward(self, inputs: dict[str, torch.Tensor], candidates: "Candidates", rerank_k: int = 128) -> Result:
        return candidates.rank(inputs, rerank_k)

    def postprocess(self, outputs: Result, candidates: "Candidates", top_k: int | None = None) -> list[Result]:
        """Sort the candidates by the probability of a match."""
        calibration = MatchCalibration.from_config(self.model.config)
        cosines = outputs["similarities"][0]
        logits = calibration.logit(matching_log_odds(outputs["logits"][0]), cosines)  # in the order of probabilities
        order = logits.argsort(descending=True, stable=True)[:top_k]
        scores = logits.sigmoid()[order].tolist()
        similarities = cosines[order].tolist()
        indices = outputs["indices"][0][order].tolist()
        return [
            {"score": score, "similarity": similarity, candidates.kind: candidates.items[index], "index": index}
            for score, similarity, index in zip(scores, similarities, indices, strict=True)
        ]


class _TextCandidates:
    """Texts to rank for images, encoded once."""

    kind = "text"

    def __init__(self, pipeline: AlbefPipeline, texts: str | Sequence[str]):
        self.items = _as_list(texts, "candidate_texts")
        pipeline._tokenize(self.items, "candidate text")  # checks them
        self.pipeline = pipeline
        self.features = encode_texts(pipeline.model, pipeline.processor, self.items)

    def preprocess(self, query: ImageLike, timeout: float | None) -> Mapping[str, torch.Tensor]:
        """Convert an image to pixels."""
        image = self.pipeline._load_image(query, timeout)
        return self.pipeline.processor(images=[image], return_tensors="pt")

    def rank(self, inputs: dict[str, torch.Tensor], rerank_k: int) -> dict[str, torch.Tensor]:
        """Return indices, similarities and matching logits of the candidates, (images, candidates, ...)."""
        model = self.pipeline.model
        images = model.get_image_features(**inputs)
        similarities, indices = best_matches(images.pooler_output, self.features.embeds, rerank_k)
        logits = [
            match(model, states, self.features, best)
            for states, best in zip(images.last_hidden_state.split(1), indices, strict=True)
        ]
        return {"indices": indices, "similarities": similarities, "logits": torch.stack(logits)}


class _ImageCandidates:
    """Images to rank for texts, encoded once unless memory is short."""

    kind = "image"

    def __init__(self, pipeline: AlbefPipeline, images: ImageLike | Sequence[ImageLike], timeout: float | None):
        self.items = _as_list(images, "candidate_images")
        self.pipeline = pipeline
        lazy_images = _LazyImages(pipeline, self.items, timeout)
        self.encoder = ImageEncoder(pipeline.model, pipeline.processor, lazy_images, range(len(self.items)))
        self.embeds = self.encoder.embeds()

    def preprocess(self, query: str, timeout: float | None) -> Mapping[str, torch.Tensor]:
        """Convert a text to tokens."""
        return self.pipeline._tokenize([query], "text")

    def rank(self, inputs: dict[str, torch.Tensor], rerank_k: int) -> dict[str, torch.Tensor]:
        """Return indices, similarities and matching logits of the candidates, (texts, candidates, ...)."""
        model = self.pipeline.model
        texts = encode_tokenized_texts(model, **inputs)
        similarities, indices = best_matches(texts.embeds, self.embeds, rerank_k)
        logits = []
        for text_index, best in enumerate(indices.tolist()):
            text = texts.select(text_index)
            states = (states for _, states in self.encoder.hidden_states(best))
            text_logits = []
            while batch := list(itertools.islice(states, MATCHING_BATCH_SIZE)):
                text_logits.append(match_images(model, torch.cat(batch), text))
            logits.append(torch.cat(text_logits))
        return {"indices": indices, "similarities": similarities, "logits": torch.stack(logits)}


Candidates = _TextCandidates | _ImageCandidates


class _LazyImages(Sequence):
    """A sequence of images that are read when they are needed."""

    def __init__(self, pipeline: AlbefPipeline, images: Sequence[ImageLike], timeout: float | None):
        self.pipeline = pipeline
        self.images = images
        self.timeout = timeout

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        return self.pipeline._load_image(self.images[index], self.timeout)


class PromptedImageClassificationPipeline(AlbefPipeline):
    """Classify images by classes that are named in words, without training: task `prompted-image-classification`.

    Beyond transformers' own `zero-shot-image-classification`, a class may have several prompts, whose features are
    averaged as in CLIP, and the best classes may be matched (ITM).

    Example:
        ```python
        >>> import albef_hf
        >>> from transformers import pipeline
        >>> templates = ["a {}", "a photo of a {}", "somebody drew a {}"]
        >>> classify = pipeline("prompted-image-classification", model="you/albef", hypothesis_template=templates)
        >>> results = classify("image.png", candidate_labels=["red ball", "blue star", "dog"], rerank_k=2)
        >>> [sorted(result) for result in results]
        [['label', 'score'], ['label', 'score']]

        ```
    """

    task_name = "prompted-image-classification"
    _encoded: tuple[Any, ClassPrompts] | None = None  # the last classes, and what they were made from

    def __call__(self, images: Any, **kwargs) -> list[Result] | list[list[Result]]:
        """Classify images.

        Args:
            images: Images: one, a list, a generator or a dataset.
            candidate_labels: What the classes are called, a list of texts.
            hypothesis_template: A text with `{}` in the place of the class, or a list of them; "a photo of a {}" by
                default.
            rerank_k: Number of classes of the highest similarity to match; 0 by default, which ranks all classes by
                similarity alone.
            top_k: Number of results; by default all classes that are ranked.
            timeout: Timeout of a URL in seconds.

        Returns:
            For each image a list of dictionaries, best first: `label`, and its probability among the classes that
            are ranked as `score`: a softmax over similarities divided by the learned temperature, or with `rerank_k`
            over the log-odds of a match.

        Raises:
            ValueError: If there is no class, a template has no place for it, or an image is invalid.
        """
        return super().__call__(_as_inputs(images, "images"), **kwargs)

    def _sanitize_parameters(
        self,
        candidate_labels: str | Sequence[str] | None = None,
        hypothesis_template: str | Sequence[str] | None = None,
        rerank_k: int | None = None,
        top_k: int | None = None,
        timeout: float | None = None,
    ) -> tuple[dict, dict, dict]:
        labels = templates = None
        if candidate_labels is not None:
            labels = _as_list(candidate_labels, "candidate_labels")
            self._tokenize(labels, "candidate label")  # checks them
        if hypothesis_template is not None:
            templates = _as_list(hypothesis_template, "hypothesis_template")
        forward = _without_none(labels=labels, templates=templates)
        if rerank_k is not None:
            forward["rerank_k"] = as_int("rerank_k", rerank_k, 0)
        return _without_none(timeout=timeout), forward, _without_none(labels=labels, top_k=top_k)

    def preprocess(self, image: ImageLike, timeout: float | None = None) -> dict[str, torch.Tensor]:
        """Convert an image to pixels."""
        return {"pixel_values": self._pixels(image, timeout)}

    def _forward(
        self,
        inputs: dict[str, torch.Tensor],
        labels: Sequence[str] = (),
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        rerank_k: int = 0,
    ) -> dict[str, torch.Tensor]:
        """Return indices and probabilities of the ranked classes, each (images, classes)."""
        if not labels:
            raise ValueError("There is nothing to choose from: pass candidate_labels.")
        source = (tuple(labels), tuple(templates))
        if self._encoded is None or self._encoded[0] != source:
            self._encoded = (source, encode_classes(self.model, self.processor, labels, templates))
        ranking = rank_classes(self.model, self.model.get_image_features(**inputs), self._encoded[1], rerank_k)
        return self._probabilities(ranking)

    def _probabilities(self, ranking: ClassRanking) -> dict[str, torch.Tensor]:
        matched = ranking.logits.shape[1]
        if matched:
            logits, order = ranking.logits.sort(dim=1, descending=True, stable=True)
            return {"indices": ranking.indices[:, :matched].gather(1, order), "scores": logits.softmax(-1)}
        logits = ranking.similarities / self.model.contrastive_head.temperature
        return {"indices": ranking.indices, "scores": logits.softmax(-1)}

    def postprocess(
        self, outputs: dict[str, torch.Tensor], labels: Sequence[str] = (), top_k: int | None = None
    ) -> list[Result]:
        """Name the classes, best first."""
        scores = outputs["scores"][0].tolist()[:top_k]
        indices = outputs["indices"][0].tolist()[:top_k]
        return [{"score": score, "label": labels[index]} for score, index in zip(scores, indices, strict=True)]


# ---------------------------------------------------------------------------------------------------------------------
# An image and a text
# ---------------------------------------------------------------------------------------------------------------------


class ImageAndTextPipeline(AlbefPipeline):
    """Base class of the pipelines for an image and a text: converts inputs to rows of both."""

    image_name = "image"
    text_name = "text"

    def _rows(self, images: Any, texts: Any) -> Any:
        """Return rows of an image and a text: rows as they were passed, or images and texts side by side."""
        images = _as_inputs(images, self.image_name)
        if texts is None:
            return images
        texts = _as_inputs(texts, self.text_name)
        if isinstance(texts, LAZY) or (isinstance(images, LAZY) and isinstance(texts, list)):
            raise ValueError(
                f"{self.image_name} and {self.text_name} can be passed separately only as lists: pass lists, or yield "
                f"rows {self._example()}."
            )
        if isinstance(images, LAZY):
            return (self._row(image, texts) for image in images)
        has_several_images = self._is_batch(images)
        has_several_texts = isinstance(texts, list)
        if not has_several_images and not has_several_texts:
            return self._row(images, texts)
        images = images if has_several_images else [images] * len(texts)
        texts = texts if has_several_texts else [texts] * len(images)
        if len(images) != len(texts):
            raise ValueError(
                f"There are {len(images)} of {self.image_name} and {len(texts)} of {self.text_name}: pass the same "
                "number of both, or one for all."
            )
        return [self._row(image, text) for image, text in zip(images, texts, strict=True)]

    def _is_batch(self, images: Any) -> bool:
        return isinstance(images, list)

    def _row(self, image: Any, text: Any) -> Result:
        return {self.image_name: image, self.text_name: text}

    def _example(self) -> str:
        return f'{{"{self.image_name}": ..., "{self.text_name}": ...}}'

    def preprocess(self, row: Mapping[str, Any], timeout: float | None = None) -> dict[str, Any]:
        """Convert a row to pixels and tokens."""
        if not isinstance(row, Mapping) or not {self.image_name, self.text_name} <= set(row):
            raise ValueError(
                f"{_short_repr(row)} is incomplete: pass {self.image_name} and {self.text_name}, or rows "
                f"{self._example()}."
            )
        tokens = self._tokenize([row[self.text_name]], self.text_name)
        return {**tokens, "pixel_values": self._pixels(row[self.image_name], timeout)}


class ImageTextMatchingPipeline(ImageAndTextPipeline):
    """Score how well image and text match, pair by pair, for example to filter data: task `image-text-matching`.

    Example:
        ```python
        >>> import albef_hf
        >>> from transformers import pipeline
        >>> match = pipeline("image-text-matching", model="you/albef")
        >>> rows = [{"image": "image.png", "text": "a red ball"}, {"image": "other.png", "text": "a blue star"}]
        >>> [sorted(result) for result in match(rows, batch_size=2)]
        [['score', 'similarity'], ['score', 'similarity']]

        ```
    """

    task_name = "image-text-matching"

    def __call__(self, image: Any, text: Any = None, **kwargs) -> Result | list[Result]:
        """Score pairs.

        Args:
            image: An image for all texts, or a list with one image per text. Without `text`, rows such as
                `{"image": ..., "text": ...}`: one, a list, a generator or a dataset.
            text: A text for all images, or a list with one text per image.
            timeout: Timeout of a URL in seconds.

        Returns:
            For each pair a dictionary: `score`, the probability that image and text match (ITM), calibrated if the
            model is (see `MatchCalibration`), and `similarity`, the cosine of their features (ITC).

        Raises:
            ValueError: If an image or a text is invalid.
        """
        return super().__call__(self._rows(image, text), **kwargs)

    def _sanitize_parameters(self, timeout: float | None = None) -> tuple[dict, dict, dict]:
        return _without_none(timeout=timeout), {}, {}

    def _forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs = self.model(**inputs)
        similarities = (outputs.image_embeds * outputs.text_embeds).sum(-1)
        calibration = MatchCalibration.from_config(self.model.config)
        scores = calibration.probability(matching_log_odds(outputs.itm_logits), similarities)
        return {"scores": scores, "similarities": similarities}

    def postprocess(self, outputs: dict[str, torch.Tensor]) -> Result:
        """Convert the scores to floats."""
        return {"score": outputs["scores"].item(), "similarity": outputs["similarities"].item()}


class VisualQuestionAnsweringPipeline(ImageAndTextPipeline):
    """Answer questions about images, freely or from a list: task `visual-question-answering`.

    Example:
        ```python
        >>> import albef_hf
        >>> from transformers import pipeline
        >>> answer = pipeline("visual-question-answering", model="you/albef-vqa")
        >>> results = answer(image="image.png", question="What color is the ball?")
        >>> [sorted(result) for result in results]
        [['answer', 'score']]
        >>> results = answer("image.png", "Is there a ball?", candidate_answers=["yes", "no"], top_k=2)
        >>> sorted(result["answer"] for result in results)
        ['no', 'yes']

        ```
    """

    task_name = "visual-question-answering"
    text_name = "question"

    def __call__(self, image: Any, question: Any = None, **kwargs) -> list[Result] | list[list[Result]]:
        """Answer questions.

        Args:
            image: An image for all questions, or a list with one image per question. Without `question`, rows such as
                `{"image": ..., "question": ...}`: one, a list, a generator or a dataset.
            question: A question about all images, or a list with one question per image.
            candidate_answers: A list of answers to choose from; without it the model generates answers.
            top_k: Number of answers; 1 by default.
            num_beams: Beam width for free-form answers; 3 by default, at least 2 and `top_k`.
            max_new_tokens: Maximum length of a free-form answer in tokens; 10 by default.
            timeout: Timeout of a URL in seconds.

        Returns:
            For each question a list of dictionaries, best first: `answer` and `score`. The score of a free-form answer
            is its probability; from a list, the probability among the 128 best by `rank_answers`.

        Raises:
            ValueError: If an image, a question or an answer is invalid.
        """
        return super().__call__(self._rows(image, question), **kwargs)

    def _sanitize_parameters(
        self,
        candidate_answers: str | Sequence[str] | None = None,
        top_k: int | None = None,
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
        timeout: float | None = None,
    ) -> tuple[dict, dict, dict]:
        answers = tokens = None
        if candidate_answers is not None:
            answers = _as_list(candidate_answers, "candidate_answers")
            tokens = self._tokenize_answers(answers).to(self.device)
        self._check_new_tokens(max_new_tokens)
        forward = _without_none(candidates=tokens, top_k=top_k, num_beams=num_beams, max_new_tokens=max_new_tokens)
        return _without_none(timeout=timeout), forward, _without_none(answers=answers)

    def _tokenize_answers(self, answers: Sequence[str]) -> BatchEncoding:
        """Tokenize the answers to choose from."""
        tokens = self.processor.encode_answers(answers)
        positions = _positions(self.model)
        for answer, length in zip(answers, tokens["attention_mask"].sum(1).tolist(), strict=True):
            if length > positions:
                raise ValueError(
                    f"The candidate answer {_short_repr(answer)} has {length} tokens including [CLS] and [SEP], the "
                    f"model has {positions} positions: shorten it."
                )
        return tokens

    def _forward(
        self,
        inputs: dict[str, torch.Tensor],
        candidates: BatchEncoding | None = None,
        top_k: int = 1,
        num_beams: int = 3,
        max_new_tokens: int = 10,
    ) -> dict[str, torch.Tensor]:
        """Return answers and their scores.

        Answers are rows of the list, (questions, top_k), or generated tokens, (questions, top_k, tokens).
        """
        if candidates is not None:
            rows, probabilities = self.model.rank_answers(
                **inputs,
                answer_ids=candidates["input_ids"],
                answer_attention_mask=candidates["attention_mask"],
                top_k=max(top_k, 128),
            )
            return {"answers": rows[:, :top_k], "scores": probabilities[:, :top_k]}
        generated = self.model.generate(
            **inputs,
            num_beams=max(num_beams, top_k, 2),
            num_return_sequences=top_k,
            min_new_tokens=1,
            max_new_tokens=max_new_tokens,
            length_penalty=0.0,  # the score of a beam is then the logarithm of its probability
            return_dict_in_generate=True,
            output_scores=True,
        )
        scores = generated.sequences_scores.float().exp()
        return {"answers": generated.sequences.unflatten(0, (-1, top_k)), "scores": scores.unflatten(0, (-1, top_k))}

    def postprocess(self, outputs: dict[str, torch.Tensor], answers: list[str] | None = None) -> list[Result]:
        """Convert the answers to text."""
        rows = outputs["answers"][0].tolist()
        texts = self.processor.decode_answers(rows) if answers is None else [answers[row] for row in rows]
        scores = outputs["scores"][0].tolist()
        return [{"score": score, "answer": text} for score, text in zip(scores, texts, strict=True)]


class ImageCaptioningPipeline(AlbefPipeline):
    """Write captions: task `image-captioning`. The task `image-text-to-text` of transformers does so, too.

    Example:
        ```python
        >>> import albef_hf
        >>> from transformers import pipeline
        >>> write = pipeline("image-captioning", model="you/albef-captioning")
        >>> [sorted(result) for result in write("image.png")]
        [['caption', 'score']]
        >>> [len(results) for results in write(["image.png", "other.png"], top_k=3, max_new_tokens=8)]
        [3, 3]

        ```
    """

    task_name = "image-captioning"

    def __call__(self, image: Any, **kwargs) -> list[Result] | list[list[Result]]:
        """Write captions.

        Args:
            image: An image, a list of them, a generator or a dataset.
            prompt: Words that the captions continue; by default those that the model was trained with.
            top_k: Number of captions; 1 by default.
            num_beams: Beam width; 3 by default, at least 2 and `top_k`.
            max_new_tokens: Maximum length of a caption in tokens; 20 by default.
            timeout: Timeout of a URL in seconds.

        Returns:
            For each image a list of dictionaries, best first: `caption`, without the prompt, and its `score`, the
            geometric mean of the probabilities of its tokens.

        Raises:
            ValueError: If an image or an argument is invalid.
        """
        return super().__call__(_as_inputs(image, "image"), **kwargs)

    def _sanitize_parameters(
        self,
        prompt: str | None = None,
        top_k: int | None = None,
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
        timeout: float | None = None,
    ) -> tuple[dict, dict, dict]:
        forward = _without_none(top_k=top_k, num_beams=num_beams, max_new_tokens=max_new_tokens)
        return _without_none(prompt=prompt, timeout=timeout), forward, {}

    def preprocess(
        self, image: ImageLike, prompt: str | None = None, timeout: float | None = None
    ) -> dict[str, torch.Tensor]:
        """Convert an image to pixels, and the prompt to tokens."""
        tokens = torch.tensor([self.processor.encode_prompt(prompt)])
        return {"pixel_values": self._pixels(image, timeout), "input_ids": tokens}

    def _forward(
        self,
        inputs: dict[str, torch.Tensor],
        top_k: int = 1,
        num_beams: int = 3,
        max_new_tokens: int | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return token ids without the prompt, (images, top_k, tokens), and scores, (images, top_k)."""
        used = inputs["input_ids"].shape[1]
        self._check_new_tokens(max_new_tokens, used)
        generated = self.model.generate(
            **inputs,
            num_beams=max(num_beams, top_k, 2),
            num_return_sequences=top_k,
            min_new_tokens=1,
            max_new_tokens=max_new_tokens or min(MAX_CAPTION_TOKENS, _free_positions(self.model, used)),
            return_dict_in_generate=True,
            output_scores=True,
        )
        scores = generated.sequences_scores.float().exp()
        captions = generated.sequences[:, used:]
        return {"captions": captions.unflatten(0, (-1, top_k)), "scores": scores.unflatten(0, (-1, top_k))}

    def postprocess(self, outputs: dict[str, torch.Tensor]) -> list[Result]:
        """Convert the captions to text."""
        texts = self.processor.decode_answers(outputs["captions"][0].tolist())
        scores = outputs["scores"][0].tolist()
        return [{"score": score, "caption": text} for score, text in zip(scores, texts, strict=True)]


class VisualEntailmentPipeline(ImageAndTextPipeline):
    """Classify whether an image entails a sentence, contradicts it, or neither: task `visual-entailment`.

    Example:
        ```python
        >>> import albef_hf
        >>> from transformers import pipeline
        >>> judge = pipeline("visual-entailment", model="you/albef-entailment")
        >>> results = judge("image.png", "There is a red ball.")
        >>> sorted(result["label"] for result in results)
        ['contradiction', 'entailment', 'neutral']

        ```
    """

    task_name = "visual-entailment"

    def __call__(self, image: Any, text: Any = None, **kwargs) -> list[Result] | list[list[Result]]:
        """Classify sentences by their images.

        Args:
            image: An image for all sentences, or a list with one image per sentence. Without `text`, rows such as
                `{"image": ..., "text": ...}`: one, a list, a generator or a dataset.
            text: A sentence for all images, or a list with one sentence per image.
            top_k: Number of classes; by default all.
            timeout: Timeout of a URL in seconds.

        Returns:
            For each sentence a list of dictionaries, best first: `label`, and its probability as `score`.

        Raises:
            ValueError: If an image or a sentence is invalid.
        """
        return super().__call__(self._rows(image, text), **kwargs)

    def _sanitize_parameters(self, top_k: int | None = None, timeout: float | None = None) -> tuple[dict, dict, dict]:
        return _without_none(timeout=timeout), {}, _without_none(top_k=top_k)

    def _forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"logits": self.model(**inputs).logits}

    def postprocess(self, outputs: dict[str, torch.Tensor], top_k: int | None = None) -> list[Result]:
        """Sort the classes by probability, or by value for regression, as transformers' text classification does."""
        config = self.model.config
        scores = outputs["logits"][0].float()
        if config.problem_type == "multi_label_classification":
            scores = scores.sigmoid()
        elif config.problem_type != "regression" and config.num_labels > 1:
            scores = scores.softmax(-1)
        scores, classes = scores.sort(descending=True, stable=True)
        names = [config.id2label[index] for index in classes.tolist()]
        return [{"score": score, "label": name} for score, name in zip(scores.tolist(), names, strict=True)][:top_k]


class VisualReasoningPipeline(VisualEntailmentPipeline):
    """Classify whether a statement about two images is true, as in NLVR2: task `visual-reasoning`.

    Example:
        ```python
        >>> import albef_hf
        >>> from transformers import pipeline
        >>> judge = pipeline("visual-reasoning", model="you/albef-nlvr2")
        >>> results = judge(["image.png", "other.png"], "Both images show a ball.")
        >>> sorted(result["label"] for result in results)
        ['False', 'True']

        ```
    """

    task_name = "visual-reasoning"
    image_name = "images"

    def __call__(self, images: Any, text: Any = None, **kwargs) -> list[Result] | list[list[Result]]:
        """Classify statements by their two images.

        Args:
            images: Two images for all statements, or a list of two images per statement. Without `text`, rows such as
                `{"images": [..., ...], "text": ...}`: one, a list, a generator or a dataset.
            text: A statement for all pairs of images, or a list with one statement per pair.
            top_k: Number of classes; by default all.
            timeout: Timeout of a URL in seconds.

        Returns:
            For each statement a list of dictionaries, best first: `label`, and its probability as `score`.

        Raises:
            ValueError: If an image or a statement is invalid, or there are not two images.
        """
        return super().__call__(images, text, **kwargs)

    def _is_batch(self, images: Any) -> bool:
        return isinstance(images, list) and isinstance(images[0], (list, tuple))

    def _pixels(self, image: Sequence[ImageLike], timeout: float | None) -> torch.Tensor:
        """Convert two images to pixels, (1, 2, channels, height, width)."""
        if not isinstance(image, (list, tuple)) or len(image) != 2:
            raise ValueError(f"{_short_repr(image)} is not a pair of images: pass a list of two.")
        first, second = image
        return torch.stack([super()._pixels(first, timeout), super()._pixels(second, timeout)], dim=1)


class ImageTextClassificationPipeline(VisualEntailmentPipeline):
    """Classify images with texts, or images alone, by the classes of the model: task `image-text-classification`.

    Example:
        ```python
        >>> import albef_hf
        >>> from transformers import pipeline
        >>> classify = pipeline("image-text-classification", model="you/albef-colors")
        >>> results = classify("image.png")
        >>> [sorted(result) for result in results]
        [['label', 'score'], ['label', 'score']]

        ```
    """

    task_name = "image-text-classification"
    needs_words = False

    def __call__(self, images: Any, text: Any = None, **kwargs) -> list[Result] | list[list[Result]]:
        """Classify images and their texts.

        Args:
            images: An image for all texts, or a list with one image per text. Without `text`, images alone, or rows
                such as `{"image": ..., "text": ...}`: one, a list, a generator or a dataset.
            text: A text for all images, or a list with one text per image; blank or None for an image alone.
            top_k: Number of classes; by default all.
            timeout: Timeout of a URL in seconds.

        Returns:
            For each image a list of dictionaries, best first: `label`, and its probability as `score`, or for a
            regression its number. If several labels may be right, `predicted` says whether the probability reaches
            the threshold of the class, `config.thresholds`.

        Raises:
            ValueError: If an image or a text is invalid.
        """
        return super().__call__(images, text, **kwargs)

    def preprocess(self, row: Any, timeout: float | None = None) -> dict[str, Any]:
        """Convert a row, or an image alone, to pixels and tokens."""
        row = row if isinstance(row, Mapping) else {self.image_name: row}
        return super().preprocess({self.text_name: None, **row}, timeout)

    def _tokenize(self, texts: Sequence[str], name: str) -> dict[str, torch.Tensor]:
        """Tokenize texts; one that is missing, also as pandas' NaN, is empty."""
        missing = [text is None or (isinstance(text, float) and math.isnan(text)) for text in texts]
        present = ["" if is_missing else text for text, is_missing in zip(texts, missing, strict=True)]
        return super()._tokenize(present, name)

    def postprocess(self, outputs: dict[str, torch.Tensor], top_k: int | None = None) -> list[Result]:
        """Sort the classes, and compare their probabilities with the thresholds if there may be several labels."""
        results = super().postprocess(outputs, top_k)
        config = self.model.config
        if config.problem_type != "multi_label_classification":
            return results
        thresholds = dict(zip(config.id2label.values(), config.thresholds, strict=True))
        return [{**result, "predicted": result["score"] >= thresholds[result["label"]]} for result in results]


# ---------------------------------------------------------------------------------------------------------------------
# Grounding
# ---------------------------------------------------------------------------------------------------------------------


def _sentence_heatmaps(
    model: PreTrainedModel, input_ids: torch.Tensor, pixel_values: torch.Tensor, attention_mask: torch.Tensor, **kwargs
) -> torch.Tensor:
    """Compute the mean of the heat maps of a sentence's tokens, (batch, rows, columns), without padding."""
    maps = matching_heatmaps(model, input_ids, pixel_values, attention_mask, **kwargs)
    return maps.sum(1) / attention_mask.sum(1)[:, None, None]


HEATMAPS: dict[str, Callable[..., torch.Tensor]] = {"matching": _sentence_heatmaps, "contrast": contrastive_heatmaps}


class VisualGroundingPipeline(ImageAndTextPipeline):
    """Find what a text describes in an image, and in which of several boxes: task `visual-grounding`.

    The model is not trained with boxes: the heat map is the gradient of the score for image and text (Grad-CAM), and a
    box is scored by the heat in it (section 6.4 of the paper).

    Example:
        ```python
        >>> import albef_hf
        >>> from transformers import pipeline
        >>> ground = pipeline("visual-grounding", model="you/albef")
        >>> result = ground("image.png", "the red ball", boxes=[[0, 0, 20, 20], [20, 10, 20, 20]])
        >>> result["heatmap"].shape, result["overlay"].size
        ((30, 40), (40, 30))
        >>> result["overlay"].save("overlay.png")
        >>> [sorted(box) for box in result["boxes"]]
        [['box', 'score'], ['box', 'score']]

        ```
    """

    task_name = "visual-grounding"

    def __call__(self, image: Any, text: Any = None, **kwargs) -> Result | list[Result]:
        """Ground texts in images.

        Args:
            image: An image for all texts, or a list with one image per text. Without `text`, rows such as
                `{"image": ..., "text": ...}`, optionally with `boxes`: one, a list, a generator or a dataset.
            text: The text to ground in all images, or a list with one text per image.
            boxes: Boxes to score in rows without `boxes`: left, top, width and height in pixels.
            heatmap: `matching`, the paper's, for the attention of the text, or `contrast` for that of the image
                encoder.
            layer: Index of the layer whose attention is used; by default that of `matching_heatmaps` or
                `contrastive_heatmaps`.
            box_alpha: Power of a box's area by which its heat is divided; 0.5 by default, as in the paper.
            timeout: Timeout of a URL in seconds.

        Returns:
            For each text a dictionary: `score`, the probability that image and text match; `heatmap`, an array
            of the image's (height, width), higher where it is hotter; `overlay`, the heat map drawn over the image,
            with red at its own maximum and all colors faded by `score`; and if there are boxes, `boxes`, a list of
            dictionaries, best first, with the `box` as it was passed and its `score`.

        Raises:
            ValueError: If an image, a text or a box is invalid.
        """
        return super().__call__(self._rows(image, text), **kwargs)

    def _sanitize_parameters(
        self,
        boxes: Sequence[Sequence[float]] | None = None,
        heatmap: str | None = None,
        layer: int | None = None,
        box_alpha: float | None = None,
        timeout: float | None = None,
    ) -> tuple[dict, dict, dict]:
        if heatmap is not None and heatmap not in tuple(HEATMAPS):
            raise ValueError(f"heatmap is {_short_repr(heatmap)}: choose {' or '.join(HEATMAPS)}.")
        if box_alpha is not None and not (isinstance(box_alpha, Real) and math.isfinite(box_alpha)):
            raise ValueError(f"box_alpha is {_short_repr(box_alpha)}: it must be a number, such as 0.5.")
        return (
            _without_none(boxes=boxes, timeout=timeout),
            _without_none(heatmap=heatmap, layer=layer),
            _without_none(box_alpha=box_alpha),
        )

    def preprocess(
        self,
        row: Mapping[str, Any],
        boxes: Sequence[Sequence[float]] | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Convert a row to pixels and tokens, with its image and its boxes."""
        if isinstance(row, Mapping) and self.image_name in row:
            row = {**row, self.image_name: self._load_image(row[self.image_name], timeout)}
        inputs = super().preprocess(row)
        boxes = boxes if row.get("boxes") is None else row["boxes"]
        return {**inputs, "image": row[self.image_name], "boxes": None if boxes is None else _validate_boxes(boxes)}

    def _forward(self, inputs: dict[str, Any], heatmap: str = "matching", layer: int | None = None) -> dict[str, Any]:
        image = inputs.pop("image")
        boxes = inputs.pop("boxes")
        heatmaps = HEATMAPS[heatmap](self.model, **inputs, **_without_none(layer=layer))
        scores = match_probabilities(self.model, **inputs)
        return {"heatmaps": heatmaps, "scores": scores, "image": image, "boxes": boxes}

    def postprocess(self, outputs: dict[str, Any], box_alpha: float = 0.5) -> Result:
        """Resize the heat map to the image, draw it over the image, and score the boxes."""
        image = outputs["image"]
        heat = outputs["heatmaps"][0].float()
        resized = resize_heatmap(heat, image.height, image.width)
        score = outputs["scores"].item()
        result = {"score": score, "heatmap": resized.numpy(), "overlay": overlay(image, heat, probability=score)}
        if outputs["boxes"] is not None:
            scores = score_boxes(heat, outputs["boxes"], image.size, box_alpha)
            order = scores.argsort(descending=True, stable=True).tolist()
            result["boxes"] = [{"score": scores[i].item(), "box": outputs["boxes"][i]} for i in order]
        return result


def _validate_boxes(boxes: Any) -> list[list[float]]:
    """Return boxes as lists of finite numbers with a positive area."""
    boxes = boxes.tolist() if hasattr(boxes, "tolist") else boxes
    for box in boxes if isinstance(boxes, (list, tuple)) else [boxes]:
        values = list(box) if isinstance(box, Iterable) else []
        if len(values) != 4 or not all(isinstance(value, Real) and math.isfinite(value) for value in values):
            raise ValueError(f"{_short_repr(box)} is not a box: pass a list of [left, top, width, height] in pixels.")
        if min(values[2:]) <= 0:
            raise ValueError(f"The box {_short_repr(box)} has no area: pass [left, top, width, height] in pixels.")
    return [list(box) for box in boxes]


PIPELINE_CLASSES: dict[str, type[AlbefPipeline]] = {
    pipeline_class.__name__: pipeline_class
    for pipeline_class in (
        ImageTextRetrievalPipeline,
        ImageTextMatchingPipeline,
        PromptedImageClassificationPipeline,
        VisualGroundingPipeline,
        VisualQuestionAnsweringPipeline,
        ImageCaptioningPipeline,
        VisualEntailmentPipeline,
        VisualReasoningPipeline,
        ImageTextClassificationPipeline,
    )
}

__all__ = [
    "PIPELINE_CLASSES",
    "AlbefPipeline",
    "ImageCaptioningPipeline",
    "ImageTextClassificationPipeline",
    "ImageTextMatchingPipeline",
    "ImageTextRetrievalPipeline",
    "PromptedImageClassificationPipeline",
    "VisualEntailmentPipeline",
    "VisualGroundingPipeline",
    "VisualQuestionAnsweringPipeline",
    "VisualReasoningPipeline",
]
