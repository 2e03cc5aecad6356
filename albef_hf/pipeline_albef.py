"""Pipelines of ALBEF: retrieval, matching, questions, entailment, reasoning about two pictures, grounding.

Pictures are PIL images, paths, addresses (http or https) or base64; inputs come one at a time, in lists, from
generators and from datasets; `device`, `dtype` and `batch_size` are those of every pipeline of transformers.
"""

import itertools
import math
import operator
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

from .configuration_albef import PIPELINES
from .heatmaps_albef import contrastive_heatmaps, matching_heatmaps, overlay, resize_heatmap, score_boxes
from .images_albef import fetch_image
from .processing_albef import AlbefProcessor
from .retrieval_albef import ImageEncoder, best_matches, encode_texts, match, match_pictures, read_texts

Picture = Image.Image | str | os.PathLike  # itself, or a path, an address, or its bytes in base64
Result = dict[str, Any]
MATCHED_TOGETHER = 16  # pictures and a text


class AlbefPipeline(Pipeline):
    """What the pipelines have in common: a model that fits the task, and inputs that are read and checked.

    Args:
        model: The model; it is put into evaluation mode.
        processor: Its `AlbefProcessor`.
        kwargs: `device`, `batch_size` and what else transformers' `Pipeline` takes; what the call takes, to become its
            default.

    Raises:
        ValueError: If there is no processor, its tokenizer has another vocabulary than the model, or the model is made
            for another task, or was loaded from a folder that is.
    """

    _load_processor = True
    _load_tokenizer = _load_image_processor = _load_video_processor = _load_feature_extractor = False

    home: str  # its task in `PIPELINES`, which also says for which heads it is

    def __init__(self, model: PreTrainedModel, processor: AlbefProcessor | None = None, **kwargs):
        self._check(model, processor)
        super().__init__(model=model.eval(), processor=processor, **kwargs)

    def _check(self, model: PreTrainedModel, processor: AlbefProcessor | None) -> None:
        """Refuse what would fail later, or give answers that mean nothing."""
        self._check_head(model)
        if getattr(processor, "tokenizer", None) is None:
            raise ValueError("The pipeline needs a processor: processor=AlbefProcessor.from_pretrained(...).")
        _check_vocabulary(model, processor.tokenizer)

    def _check_head(self, model: PreTrainedModel) -> None:
        """The head has to fit, and so has the folder that it comes from: what that lacks is random in the model."""
        heads = PIPELINES[self.home][2]
        families = [{kind.__name__ for kind in type(part).__mro__} for part in model.modules()]  # of a wrapped one too
        fitting = set().union(*(family for family in families if family & set(heads)))
        saved = model.config.architectures or heads
        if not (fitting | set(heads)) & set(saved):
            tasks = [task for task, (_, _, others) in PIPELINES.items() if set(others) & set(saved)]
            raise ValueError(
                f"The model comes from a folder of {saved[0]}, "
                f"{'whose pipeline is ' + ' or '.join(tasks) if tasks else 'for which there is no pipeline'}: for "
                f"{self.home} load a folder of {' or '.join(heads)}. (If you have trained it for that since, save it.)"
            )
        if not fitting:
            raise ValueError(f"A {type(model).__name__} cannot do this: load the model as {heads[-1]}.")

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Save the model, the processor, and the code of the pipeline for those who have no `albef_hf`."""
        super().save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def _read_picture(self, image: Picture, timeout: float | None = None) -> Image.Image:
        try:
            return fetch_image(image, exif_transpose=True, timeout=timeout)
        except Exception as error:  # of the file system, of the network, of Pillow
            reason = str(error)
            raise ValueError(
                f"{_shown(image)} cannot be read as a picture; give a PIL image, a path, an address or base64: "
                f"{_cut(reason, 400)}"
            ) from (error if len(reason) <= 400 else None)  # which would be shown with all of it

    def _read_texts(self, texts: Sequence[str], name: str) -> dict[str, torch.Tensor]:
        """Tokens of texts, each of which has to be one, as far as the model has positions for them."""
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"The {name} {_shown(text)} is a {type(text).__name__}; it has to be a string.")
        tokens = self.processor(text=list(texts), return_tensors="pt")
        for text, length in zip(texts, tokens["attention_mask"].sum(1), strict=True):
            if length < 2:  # [CLS] alone
                raise ValueError(f"The {name} {_shown(text)} has no word in it.")
        return {key: values[:, : _positions(self.model)] for key, values in tokens.items()}


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that is not the model's, as far as that can be told."""
    tokens, embedded = len(tokenizer), model.get_input_embeddings().num_embeddings
    if tokens > embedded:
        raise ValueError(
            f"The tokenizer has {tokens} tokens and the model {embedded}: they do not belong together. "
            "Load the processor from where the model comes from."
        )
    text = model.config.text_config
    expected = (text.bos_token_id, text.eos_token_id, text.pad_token_id)
    special = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id)
    if special != expected:
        raise ValueError(
            f"[CLS], [SEP] and [PAD] are the tokens {expected} to the model and {special} to the tokenizer: load the "
            "processor from where the model comes from. If this is the one that it was trained with, set bos_token_id,"
            " eos_token_id and pad_token_id of the model's text_config to what they are here."
        )


def _shown(value: Any) -> str:
    """A value as an error message can bear it."""
    return _cut(repr(value).replace("\n", ""), 100)


def _cut(text: str, length: int) -> str:
    """The beginning and the end of a text that is longer than this."""
    half = length // 2
    return text if len(text) <= length else f"{text[:half]} ... {text[-half:]}"


def _positions(model: PreTrainedModel) -> int:
    """How many tokens a text may have, or an answer."""
    return model.config.text_config.max_position_embeddings


COUNTS = ("top_k", "rerank", "num_beams", "max_new_tokens")


def _given(**settings: Any) -> dict[str, Any]:
    """The settings of a call that somebody has set."""
    given = {name: value for name, value in settings.items() if value is not None}
    return given | {name: _count(name, given[name]) for name in given.keys() & set(COUNTS)}


def _count(name: str, value: Any) -> int:
    """A number of things, also one of numpy or of torch."""
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"{name} is {_shown(value)}; it has to be a whole number from 1.")
    return count


def _is_array(value: Any) -> bool:
    """Whether it is an array or a tensor of numbers: somebody's idea of one picture, not a list of inputs."""
    return isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind not in "OSTU")


def _candidates(values: Any, name: str) -> list[Any]:
    """What there is to choose from as a list, also a single one."""
    if isinstance(values, (str, os.PathLike, Image.Image)) or _is_array(values):
        return [values]
    if not isinstance(values, Iterable):
        raise ValueError(f"{name} is {_shown(values)}; give a list.")
    if not (values := list(values)):
        raise ValueError(f"{name} is empty: there is nothing to choose from.")
    return values


LAZY = (GeneratorType, Dataset)  # read one by one


def _inputs(values: Any, name: str) -> Any:
    """Inputs as transformers' `Pipeline` takes them: one, a list, a generator, or a dataset of torch."""
    single = isinstance(values, (str, bytes, Mapping)) or _is_array(values) or not isinstance(values, Iterable)
    if single or isinstance(values, LAZY):
        return values
    if not isinstance(values, (list, tuple)):
        return (value for value in values)
    if not values:
        raise ValueError(f"{name} is an empty list: give at least one.")
    return list(values)


# ---------------------------------------------------------------------------------------------------------------------
# Retrieval
# ---------------------------------------------------------------------------------------------------------------------


class ImageTextRetrievalPipeline(AlbefPipeline):
    """Which of some texts fit a picture, and which of some pictures fit a text: task `image-text-retrieval`.

    As in the paper, the cosines of image and text features (ITC) name the best candidates, and the probability that
    picture and text match (ITM), which looks at both together, ranks them. Candidates that are given when the pipeline
    is made are encoded once for all calls.

    Example:
        ```python
        >>> import albef_hf
        >>> from transformers import pipeline
        >>> retrieve = pipeline("image-text-retrieval", model="you/albef")
        >>> results = retrieve("picture.png", candidate_texts=["a red ball", "a blue star", "nothing at all"])
        >>> sorted(results[0])
        ['index', 'score', 'similarity', 'text']
        >>> find = pipeline("image-text-retrieval", model="you/albef", candidate_images=["picture.png", "other.png"])
        >>> [len(results) for results in find(["a red ball", "a blue star"], top_k=1)]
        [1, 1]

        ```
    """

    home = "image-text-retrieval"

    def __call__(self, inputs: Any, **kwargs) -> list[Result] | list[list[Result]]:
        """Rank the candidates.

        Args:
            inputs: Pictures to find texts for, or texts to find pictures for: one, a list, a generator or a dataset.
            candidate_texts: The texts to choose from for pictures, a list; a single one is matched.
            candidate_images: The pictures to choose from for texts, likewise.
            top_k: How many results there are to be; by default as many as are ranked.
            rerank: How many candidates of the highest similarity are ranked by matching; by default the paper's 128.
            timeout: Seconds that reading an address may take.

        Returns:
            For each input a list, the best first, of dictionaries: `score`, the probability that picture and text
            match; `similarity`, the cosine; `text` or `image`, the candidate as it was given; its `index`.

        Raises:
            ValueError: If candidates are missing, or something is not what it should be.
        """
        return super().__call__(_inputs(inputs, "inputs"), **kwargs)

    def _sanitize_parameters(
        self,
        candidate_texts: str | Sequence[str] | None = None,
        candidate_images: Picture | Sequence[Picture] | None = None,
        top_k: int | None = None,
        rerank: int | None = None,
        timeout: float | None = None,
    ) -> tuple[dict, dict, dict]:
        if candidate_texts is not None and candidate_images is not None:
            raise ValueError("Give candidate_texts for pictures or candidate_images for texts, not both.")
        candidates = None
        if candidate_texts is not None:
            candidates = _TextCandidates(self, candidate_texts)
        elif candidate_images is not None:
            candidates = _ImageCandidates(self, candidate_images, timeout)
        return (
            _given(candidates=candidates, timeout=timeout),
            _given(candidates=candidates, rerank=rerank),
            _given(candidates=candidates, top_k=top_k),
        )

    def preprocess(
        self, query: Any, candidates: "Candidates | None" = None, timeout: float | None = None
    ) -> dict[str, torch.Tensor]:
        """Pixels of a picture, or tokens of a text."""
        if candidates is None:
            raise ValueError("There is nothing to choose from: give candidate_texts or candidate_images.")
        return dict(candidates.read(query, timeout))

    def _forward(self, inputs: dict[str, torch.Tensor], candidates: "Candidates", rerank: int = 128) -> Result:
        return candidates.rank(inputs, rerank)

    def postprocess(self, outputs: Result, candidates: "Candidates", top_k: int | None = None) -> list[Result]:
        """The candidates by the probability of a match."""
        margins = outputs["logits"][0].float().diff(dim=1).squeeze(1)  # their order is that of the probabilities
        order = margins.argsort(descending=True, stable=True)[:top_k]
        columns = (margins.sigmoid(), outputs["similarities"][0], outputs["numbers"][0])
        return [
            {"score": score, "similarity": similarity, candidates.kind: candidates.items[number], "index": number}
            for score, similarity, number in zip(*(column[order].tolist() for column in columns), strict=True)
        ]


class _TextCandidates:
    """Texts to choose from for pictures, encoded once."""

    kind = "text"

    def __init__(self, pipeline: AlbefPipeline, texts: str | Sequence[str]):
        self.items = _candidates(texts, "candidate_texts")
        pipeline._read_texts(self.items, "candidate text")
        self.pipeline, self.features = pipeline, encode_texts(pipeline.model, pipeline.processor, self.items)

    def read(self, query: Picture, timeout: float | None) -> Mapping[str, torch.Tensor]:
        """Pixels of a picture."""
        picture = self.pipeline._read_picture(query, timeout)
        return self.pipeline.processor(images=[picture], return_tensors="pt")

    def rank(self, inputs: dict[str, torch.Tensor], rerank: int) -> dict[str, torch.Tensor]:
        """Numbers, similarities and matching logits of the candidates, (pictures, candidates, ...)."""
        model = self.pipeline.model
        images = model.get_image_features(**inputs)
        similarities, numbers = best_matches(images.pooler_output, self.features.embeds, rerank)
        pictures = zip(images.last_hidden_state.split(1), numbers, strict=True)
        logits = torch.stack([match(model, states, self.features, wanted) for states, wanted in pictures])
        return {"numbers": numbers, "similarities": similarities, "logits": logits}


class _ImageCandidates:
    """Pictures to choose from for texts, encoded once as far as memory allows."""

    kind = "image"

    def __init__(self, pipeline: AlbefPipeline, images: Picture | Sequence[Picture], timeout: float | None):
        self.items = _candidates(images, "candidate_images")
        pictures = _Pictures(pipeline, self.items, timeout)
        self.pipeline = pipeline
        self.encoder = ImageEncoder(pipeline.model, pipeline.processor, pictures, range(len(self.items)))
        self.embeds = self.encoder.embeds()

    def read(self, query: str, timeout: float | None) -> Mapping[str, torch.Tensor]:
        """Tokens of a text."""
        return self.pipeline._read_texts([query], "text")

    def rank(self, inputs: dict[str, torch.Tensor], rerank: int) -> dict[str, torch.Tensor]:
        """Numbers, similarities and matching logits of the candidates, (texts, candidates, ...)."""
        model = self.pipeline.model
        texts = read_texts(model, **inputs)
        similarities, numbers = best_matches(texts.embeds, self.embeds, rerank)
        logits = []
        for text, wanted in enumerate(numbers.tolist()):
            pictures, found = (states for _, states in self.encoder.hidden_states(wanted)), []
            while some := list(itertools.islice(pictures, MATCHED_TOGETHER)):
                found.append(match_pictures(model, torch.cat(some), texts.one(text)))
            logits.append(torch.cat(found))
        return {"numbers": numbers, "similarities": similarities, "logits": torch.stack(logits)}


Candidates = _TextCandidates | _ImageCandidates


class _Pictures(Sequence):
    """Pictures that are read when they are needed."""

    def __init__(self, pipeline: AlbefPipeline, images: Sequence[Picture], timeout: float | None):
        self.pipeline, self.images, self.timeout = pipeline, images, timeout

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        return self.pipeline._read_picture(self.images[index], self.timeout)


# ---------------------------------------------------------------------------------------------------------------------
# A text about a picture
# ---------------------------------------------------------------------------------------------------------------------


class ImageAndTextPipeline(AlbefPipeline):
    """What the pipelines for a picture and a text have in common: the rows that inputs are put into."""

    image_name = "image"
    text_name = "text"

    def _rows(self, images: Any, texts: Any) -> Any:
        """Rows of a picture and a text: those that somebody gives, or pictures and texts side by side."""
        images = _inputs(images, self.image_name)
        if texts is None:
            return images
        texts = _inputs(texts, self.text_name)
        if isinstance(texts, LAZY) or (isinstance(images, LAZY) and isinstance(texts, list)):
            raise ValueError(
                f"{self.image_name} and {self.text_name} go side by side in lists alone: give lists, or yield rows "
                f"{self._example()}."
            )
        if isinstance(images, LAZY):
            return (self._row(image, texts) for image in images)
        several_images, several_texts = self._are_several(images), isinstance(texts, list)
        if not several_images and not several_texts:
            return self._row(images, texts)
        images = images if several_images else [images] * len(texts)
        texts = texts if several_texts else [texts] * len(images)
        if len(images) != len(texts):
            raise ValueError(
                f"There are {len(images)} of {self.image_name} and {len(texts)} of {self.text_name}: give as many of "
                "either, or one for all."
            )
        return [self._row(image, text) for image, text in zip(images, texts, strict=True)]

    def _are_several(self, images: Any) -> bool:
        return isinstance(images, list)

    def _row(self, image: Any, text: Any) -> Result:
        return {self.image_name: image, self.text_name: text}

    def _example(self) -> str:
        return f'{{"{self.image_name}": ..., "{self.text_name}": ...}}'

    def preprocess(self, row: Mapping[str, Any], timeout: float | None = None) -> dict[str, Any]:
        """Pixels and tokens of a row."""
        if not isinstance(row, Mapping) or not {self.image_name, self.text_name} <= set(row):
            raise ValueError(
                f"{_shown(row)} is not enough: give {self.image_name} and {self.text_name}, or rows {self._example()}."
            )
        tokens = self._read_texts([row[self.text_name]], self.text_name)
        return {**tokens, "pixel_values": self._pixels(row[self.image_name], timeout)}

    def _pixels(self, image: Picture, timeout: float | None) -> torch.Tensor:
        """Of a picture, (1, channels, height, width)."""
        return self.processor(images=[self._read_picture(image, timeout)], return_tensors="pt")["pixel_values"]


class ImageTextMatchingPipeline(ImageAndTextPipeline):
    """How well pictures and texts go together, pair by pair, as one filters data: task `image-text-matching`.

    Example:
        ```python
        >>> import albef_hf
        >>> from transformers import pipeline
        >>> match = pipeline("image-text-matching", model="you/albef")
        >>> rows = [{"image": "picture.png", "text": "a red ball"}, {"image": "other.png", "text": "a blue star"}]
        >>> [sorted(result) for result in match(rows, batch_size=2)]
        [['score', 'similarity'], ['score', 'similarity']]

        ```
    """

    home = "image-text-matching"

    def __call__(self, image: Any, text: Any = None, **kwargs) -> Result | list[Result]:
        """Score pairs.

        Args:
            image: A picture or a list of them, for one text or for one each; without a text, rows such as
                `{"image": ..., "text": ...}`: one, a list, a generator or a dataset.
            text: A text or a list of them, for one picture or one each.
            timeout: Seconds that reading an address may take.

        Returns:
            For each pair a dictionary: `score`, the probability that picture and text match (ITM), and `similarity`,
            the cosine of their features (ITC).

        Raises:
            ValueError: If a picture or a text is not what it should be.
        """
        return super().__call__(self._rows(image, text), **kwargs)

    def _sanitize_parameters(self, timeout: float | None = None) -> tuple[dict, dict, dict]:
        return _given(timeout=timeout), {}, {}

    def _forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs = self.model(**inputs)
        similarities = (outputs.image_embeds * outputs.text_embeds).sum(-1)
        return {"scores": outputs.itm_logits.float().softmax(-1)[:, 1], "similarities": similarities}

    def postprocess(self, outputs: dict[str, torch.Tensor]) -> Result:
        """The scores as numbers."""
        return {"score": outputs["scores"].item(), "similarity": outputs["similarities"].item()}


class VisualQuestionAnsweringPipeline(ImageAndTextPipeline):
    """Answers to questions about pictures, in free words or from a list: task `visual-question-answering`.

    Example:
        ```python
        >>> import albef_hf
        >>> from transformers import pipeline
        >>> answer = pipeline("visual-question-answering", model="you/albef-vqa")
        >>> results = answer(image="picture.png", question="What colour is the ball?")
        >>> [sorted(result) for result in results]
        [['answer', 'score']]
        >>> results = answer("picture.png", "Is there a ball?", candidate_answers=["yes", "no"], top_k=2)
        >>> sorted(result["answer"] for result in results)
        ['no', 'yes']

        ```
    """

    home = "visual-question-answering"
    text_name = "question"

    def __call__(self, image: Any, question: Any = None, **kwargs) -> list[Result] | list[list[Result]]:
        """Answer questions.

        Args:
            image: A picture or a list of them, for one question or for one each; without a question, rows such as
                `{"image": ..., "question": ...}`: one, a list, a generator or a dataset.
            question: A question or a list of them, about one picture or one each.
            candidate_answers: Answers to choose from, a list; without them the model writes.
            top_k: How many answers there are to be; by default 1.
            num_beams: How many beginnings are followed in writing; by default 3, at least 2 and `top_k`.
            max_new_tokens: How long a written answer may be, in tokens; by default 10.
            timeout: Seconds that reading an address may take.

        Returns:
            For each question a list, the best first, of dictionaries: `answer` and `score`. For a written answer that
            is its probability; from a list, `rank_answers`' probability among the 128 likeliest.

        Raises:
            ValueError: If a picture, a question or an answer is not what it should be.
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
            answers = _candidates(candidate_answers, "candidate_answers")
            tokens = self._read_answers(answers).to(self.device)
        if max_new_tokens is not None and _count("max_new_tokens", max_new_tokens) > _positions(self.model):
            raise ValueError(f"max_new_tokens is {max_new_tokens}; the model has {_positions(self.model)} positions.")
        forward = _given(candidates=tokens, top_k=top_k, num_beams=num_beams, max_new_tokens=max_new_tokens)
        return _given(timeout=timeout), forward, _given(answers=answers)

    def _read_answers(self, answers: Sequence[str]) -> BatchEncoding:
        """Tokens of the answers to choose from."""
        tokens, positions = self.processor.encode_answers(answers), _positions(self.model)
        for answer, length in zip(answers, tokens["attention_mask"].sum(1).tolist(), strict=True):
            if length > positions:
                raise ValueError(
                    f"The candidate answer {_shown(answer)} has {length} tokens with its ends, the model has "
                    f"{positions} positions: shorten it."
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
        """Row of each answer in the list, (questions, top_k), or its tokens, (questions, top_k, tokens); scores."""
        if candidates is not None:
            rows, probabilities = self.model.rank_answers(
                **inputs,
                answer_ids=candidates["input_ids"],
                answer_attention_mask=candidates["attention_mask"],
                k=max(top_k, 128),
            )
            return {"answers": rows[:, :top_k], "scores": probabilities[:, :top_k]}
        written = self.model.generate(
            **inputs,
            num_beams=max(num_beams, top_k, 2),
            num_return_sequences=top_k,
            min_new_tokens=1,
            max_new_tokens=max_new_tokens,
            length_penalty=0.0,  # the score of a beam is then the logarithm of its probability
            return_dict_in_generate=True,
            output_scores=True,
        )
        scores = written.sequences_scores.float().exp()
        return {"answers": written.sequences.unflatten(0, (-1, top_k)), "scores": scores.unflatten(0, (-1, top_k))}

    def postprocess(self, outputs: dict[str, torch.Tensor], answers: list[str] | None = None) -> list[Result]:
        """The words of the answers."""
        found = outputs["answers"][0].tolist()
        texts = self.processor.decode_answers(found) if answers is None else [answers[row] for row in found]
        scores = outputs["scores"][0].tolist()
        return [{"score": score, "answer": text} for score, text in zip(scores, texts, strict=True)]


class VisualEntailmentPipeline(ImageAndTextPipeline):
    """Whether a picture entails a sentence, contradicts it, or neither: task `visual-entailment`.

    Example:
        ```python
        >>> import albef_hf
        >>> from transformers import pipeline
        >>> judge = pipeline("visual-entailment", model="you/albef-entailment")
        >>> results = judge("picture.png", "There is a red ball.")
        >>> sorted(result["label"] for result in results)
        ['contradiction', 'entailment', 'neutral']

        ```
    """

    home = "visual-entailment"

    def __call__(self, image: Any, text: Any = None, **kwargs) -> list[Result] | list[list[Result]]:
        """Classify sentences by their pictures.

        Args:
            image: A picture or a list of them, for one sentence or for one each; without a text, rows such as
                `{"image": ..., "text": ...}`: one, a list, a generator or a dataset.
            text: A sentence or a list of them, about one picture or one each.
            top_k: How many classes there are to be; by default all.
            timeout: Seconds that reading an address may take.

        Returns:
            For each sentence a list, the likeliest first, of dictionaries: `label`, and its probability as `score`.

        Raises:
            ValueError: If a picture or a sentence is not what it should be.
        """
        return super().__call__(self._rows(image, text), **kwargs)

    def _sanitize_parameters(self, top_k: int | None = None, timeout: float | None = None) -> tuple[dict, dict, dict]:
        return _given(timeout=timeout), {}, _given(top_k=top_k)

    def _forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"logits": self.model(**inputs).logits}

    def postprocess(self, outputs: dict[str, torch.Tensor], top_k: int | None = None) -> list[Result]:
        """The classes by probability; by value for regression, as transformers' text classification does."""
        config, scores = self.model.config, outputs["logits"][0].float()
        if config.problem_type == "multi_label_classification":
            scores = scores.sigmoid()
        elif config.problem_type != "regression" and config.num_labels > 1:
            scores = scores.softmax(-1)
        scores, classes = scores.sort(descending=True, stable=True)
        names = [config.id2label[number] for number in classes.tolist()]
        return [{"score": score, "label": name} for score, name in zip(scores.tolist(), names, strict=True)][:top_k]


class VisualReasoningPipeline(VisualEntailmentPipeline):
    """Whether a statement is true of a pair of pictures, as in NLVR2: task `visual-reasoning`.

    Example:
        ```python
        >>> import albef_hf
        >>> from transformers import pipeline
        >>> judge = pipeline("visual-reasoning", model="you/albef-nlvr2")
        >>> results = judge(["picture.png", "other.png"], "Both pictures show a ball.")
        >>> sorted(result["label"] for result in results)
        ['False', 'True']

        ```
    """

    home = "visual-reasoning"
    image_name = "images"

    def __call__(self, images: Any, text: Any = None, **kwargs) -> list[Result] | list[list[Result]]:
        """Classify statements by their two pictures.

        Args:
            images: A pair of pictures or a list of pairs, for one statement or for one each; without a text, rows such
                as `{"images": [..., ...], "text": ...}`: one, a list, a generator or a dataset.
            text: A statement or a list of them, about one pair or one each.
            top_k: How many classes there are to be; by default all.
            timeout: Seconds that reading an address may take.

        Returns:
            For each statement a list, the likeliest first, of dictionaries: `label`, and its probability as `score`.

        Raises:
            ValueError: If a pair or a statement is not what it should be.
        """
        return super().__call__(images, text, **kwargs)

    def _are_several(self, images: Any) -> bool:
        return isinstance(images, list) and isinstance(images[0], (list, tuple))

    def _pixels(self, image: Sequence[Picture], timeout: float | None) -> torch.Tensor:
        """Of a pair of pictures, (1, 2, channels, height, width)."""
        if not isinstance(image, (list, tuple)) or len(image) != 2:
            raise ValueError(f"{_shown(image)} is not a pair of pictures; give a list of two.")
        pixels = super()._pixels
        return torch.stack([pixels(one, timeout) for one in image], dim=1)


def _sentence_heatmaps(
    model: PreTrainedModel, input_ids: torch.Tensor, pixel_values: torch.Tensor, attention_mask: torch.Tensor, **kwargs
) -> torch.Tensor:
    """Mean of the heat maps of a sentence's tokens, (batch, rows, columns), whatever it is padded to."""
    maps = matching_heatmaps(model, input_ids, pixel_values, attention_mask, **kwargs)
    return maps.sum(1) / attention_mask.sum(1)[:, None, None]


HEATMAPS: dict[str, Callable[..., torch.Tensor]] = {"matching": _sentence_heatmaps, "contrast": contrastive_heatmaps}


class VisualGroundingPipeline(ImageAndTextPipeline):
    """Where in a picture something is that a text speaks of, and in which of some boxes: task `visual-grounding`.

    It was never told in training: the heat map is the gradient of the score for picture and text, Grad-CAM, and a box
    is as good as the heat that it holds (section 6.4 of the paper).

    Example:
        ```python
        >>> import albef_hf
        >>> from transformers import pipeline
        >>> ground = pipeline("visual-grounding", model="you/albef")
        >>> result = ground("picture.png", "the red ball", boxes=[[0, 0, 20, 20], [20, 10, 20, 20]])
        >>> result["heatmap"].shape, result["overlay"].size
        ((30, 40), (40, 30))
        >>> result["overlay"].save("overlay.png")
        >>> [sorted(box) for box in result["boxes"]]
        [['box', 'score'], ['box', 'score']]

        ```
    """

    home = "visual-grounding"

    def __call__(self, image: Any, text: Any = None, **kwargs) -> Result | list[Result]:
        """Look for things.

        Args:
            image: A picture or a list of them, for one text or for one each; without a text, rows such as
                `{"image": ..., "text": ...}`, and maybe `boxes`: one, a list, a generator or a dataset.
            text: What to look for, or a list of such, in one picture or one each.
            boxes: Boxes to choose from, where the row has none of its own: left, top, width and height in pixels.
            heatmap: `matching`, the paper's, through the attention of the text; or `contrast`, through that of the
                image encoder.
            layer: Whose attention it is, counted from 0; by default `matching_heatmaps`' or `contrastive_heatmaps`'.
            box_alpha: Power of a box's area that its heat is divided by; by default the paper's 0.5.
            timeout: Seconds that reading an address may take.

        Returns:
            For each text a dictionary: `heatmap`, an array of (height, width) of the picture, which is hot where it is
            high; `overlay`, the picture under its heat; and where there are boxes, `boxes`, a list, the best first, of
            dictionaries with the `box` as it was given and its `score`.

        Raises:
            ValueError: If a picture, a text or a box is not what it should be.
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
            raise ValueError(f"heatmap is {_shown(heatmap)}; choose {' or '.join(HEATMAPS)}.")
        if box_alpha is not None and not (isinstance(box_alpha, Real) and math.isfinite(box_alpha)):
            raise ValueError(f"box_alpha is {_shown(box_alpha)}; it has to be a number, such as 0.5.")
        return _given(boxes=boxes, timeout=timeout), _given(heatmap=heatmap, layer=layer), _given(box_alpha=box_alpha)

    def preprocess(
        self,
        row: Mapping[str, Any],
        boxes: Sequence[Sequence[float]] | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Pixels and tokens of a row; its picture and its boxes."""
        if isinstance(row, Mapping) and self.image_name in row:
            row = {**row, self.image_name: self._read_picture(row[self.image_name], timeout)}
        inputs = super().preprocess(row)
        boxes = boxes if row.get("boxes") is None else row["boxes"]
        return {**inputs, "picture": row[self.image_name], "boxes": None if boxes is None else _checked_boxes(boxes)}

    def _forward(self, inputs: dict[str, Any], heatmap: str = "matching", layer: int | None = None) -> dict[str, Any]:
        picture, boxes = inputs.pop("picture"), inputs.pop("boxes")
        heatmaps = HEATMAPS[heatmap](self.model, **inputs, **_given(layer=layer))
        return {"heatmaps": heatmaps, "picture": picture, "boxes": boxes}

    def postprocess(self, outputs: dict[str, Any], box_alpha: float = 0.5) -> Result:
        """The heat map at the picture's resolution, the picture under it, and the boxes in it."""
        picture, heat = outputs["picture"], outputs["heatmaps"][0].float()
        resized = resize_heatmap(heat, picture.height, picture.width)
        result = {"heatmap": resized.numpy(), "overlay": overlay(picture, heat)}
        if outputs["boxes"] is not None:
            scores = score_boxes(heat, outputs["boxes"], picture.size, box_alpha)
            order = scores.argsort(descending=True, stable=True).tolist()
            result["boxes"] = [{"score": scores[i].item(), "box": outputs["boxes"][i]} for i in order]
        return result


def _checked_boxes(boxes: Any) -> list[list[float]]:
    """Boxes that can be scored."""
    boxes = boxes.tolist() if hasattr(boxes, "tolist") else boxes
    for box in boxes if isinstance(boxes, (list, tuple)) else [boxes]:
        numbers = list(box) if isinstance(box, Iterable) else []
        if len(numbers) != 4 or not all(isinstance(number, Real) and math.isfinite(number) for number in numbers):
            raise ValueError(f"{_shown(box)} is not a box; give a list of [left, top, width, height] in pixels.")
        if min(numbers[2:]) <= 0:
            raise ValueError(f"The box {_shown(box)} has no area; it is [left, top, width, height] in pixels.")
    return [list(box) for box in boxes]


__all__ = [
    "AlbefPipeline",
    "ImageTextMatchingPipeline",
    "ImageTextRetrievalPipeline",
    "VisualEntailmentPipeline",
    "VisualGroundingPipeline",
    "VisualQuestionAnsweringPipeline",
    "VisualReasoningPipeline",
]
