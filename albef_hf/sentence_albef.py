"""ALBEF in sentence-transformers: `CrossEncoder` scores pairs of an image and a text by matching (ITM).

`modules.json` of a saved model names `AlbefMatcher`. `SentenceTransformer` needs no module of its own: it embeds with
`get_image_features` and `get_text_features` of the model that `AutoModel` loads from the same folder.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedConfig, PreTrainedModel, ProcessorMixin

from .calibration_albef import MatchCalibration, matching_log_odds
from .configuration_albef import MATCHING_HEADS

try:  # transformers requires what a shipped file imports, unless it is in a `try`
    from sentence_transformers.base.modality import infer_modality
    from sentence_transformers.base.modules import InputModule
except ImportError as error:
    raise ImportError("CrossEncoder needs a newer release: pip install 'sentence-transformers>=6'") from error

PARTS = ("image", "text")


class AlbefMatcher(InputModule):
    """Score pairs of an image and a text, in either order, by the log-odds of a match.

    The log-odds are calibrated if the model is (see `MatchCalibration`); their sigmoid, which `CrossEncoder` returns
    by default, is the probability of a match.

    Args:
        model: An `AlbefForRetrieval` or `AlbefForPreTraining`.
        processor: The `AlbefProcessor` that is saved beside it.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        super().__init__()
        self.model = model
        self.processor = processor

    @property
    def tokenizer(self) -> Any:
        """Return the tokenizer of the processor."""
        return self.processor.tokenizer

    @property
    def max_seq_length(self) -> int:
        """Return the number of tokens that texts are truncated to; the processor that is saved decides it."""
        return self.tokenizer.init_kwargs.get("max_length", self.processor.text_kwargs["max_length"])

    @property
    def modalities(self) -> list[str | tuple[str, ...]]:
        """Return the kinds of inputs: a pair of a text and the path of an image counts as "text"."""
        return [*PARTS, PARTS]

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Prepare pairs; an image that several pairs share is prepared and encoded once.

        Args:
            inputs: Pairs of an image and a text, in either order. An image is a PIL image, an array, a path or a URL.
                A string is an image if it is a URL or the path of a file and ends as images do, else a text;
                `{"image": ...}` and `{"text": ...}` say what it is. A training also counts the tokens of texts alone.
            prompt: Text in front of each text.
            kwargs: The `task` and other settings of sentence-transformers that are the same for all pairs.

        Returns:
            What the processor returns for the texts and the distinct images, and `image_indices`, (pairs,).

        Raises:
            ValueError: If an input is not a pair of an image and a text, or a setting of the processor is passed.
        """
        for name in ("max_length", "processing_kwargs"):
            if kwargs.get(name) is not None:
                raise ValueError(f"The processor that was saved with the model has its own settings: remove {name}.")
        pairs = [_split_pair(pair) for pair in inputs]
        images = [pair["image"] for pair in pairs if "image" in pair]
        texts = [(prompt or "") + pair["text"] for pair in pairs if "text" in pair]
        if not {len(images), len(texts)} <= {0, len(pairs)}:
            raise ValueError("Some inputs have no image or no text: pass pairs of both, such as (image, text).")
        distinct = {id(image): image for image in images}
        features = self.processor(images=[*distinct.values()] or None, text=texts or None, return_tensors="pt")
        positions = {key: position for position, key in enumerate(distinct)}
        return dict(features) | {"image_indices": torch.tensor([positions[id(image)] for image in images])}

    def forward(self, features: dict[str, torch.Tensor], **kwargs: Any) -> dict[str, torch.Tensor]:
        """Add `scores`, (pairs, 1), in float32 or better.

        Raises:
            ValueError: If there are no images or no texts.
        """
        if "pixel_values" not in features or "input_ids" not in features:
            raise ValueError("A score needs an image and a text: pass pairs of them, such as (image, text).")
        albef = self.model.albef
        mask = features["attention_mask"]
        states = albef.vision_model(features["pixel_values"], return_dict=True).last_hidden_state
        images = states[features["image_indices"]]
        fused = albef(features["input_ids"], images, mask, return_dict=True)
        scores = matching_log_odds(self.model.itm_head(fused.last_hidden_state[:, 0]))
        calibration = MatchCalibration.from_config(self.model.config)
        if calibration.is_fitted:
            head = self.model.contrastive_head
            cosines = head.project_image(images) * head.project_text(fused.text_hidden_states, mask)
            scores = calibration.logit(scores, cosines.sum(-1))
        return features | {"scores": scores[:, None]}

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Save the model with all its heads, and the processor."""
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        backend: str = "torch",
        **kwargs: Any,
    ) -> "AlbefMatcher":
        """Load the model and the processor of a folder or Hub repository, as `CrossEncoder` asks for it.

        Raises:
            ValueError: If the model has no matching head, or a setting has no effect on it.
        """
        source = {
            "subfolder": subfolder,
            "token": token,
            "cache_dir": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
            "trust_remote_code": trust_remote_code,
        }
        config_kwargs = dict(config_kwargs or {})
        _check_settings(config_kwargs.pop("num_labels", 1), processor_kwargs or {}, backend)
        config = AutoConfig.from_pretrained(model_name_or_path, **source, **config_kwargs)
        _require_matching_head(config, model_name_or_path)
        model = AutoModel.from_pretrained(model_name_or_path, config=config, **source, **(model_kwargs or {}))
        processor = AutoProcessor.from_pretrained(model_name_or_path, **source, **(processor_kwargs or {}))
        return cls(model, processor)


def _split_pair(pair: Any) -> dict[str, Any]:
    """Return the image and the text of a pair, or only one of them if there is no other."""
    parts = [part for member in (pair if isinstance(pair, (list, tuple)) else [pair]) for part in _parts(member)]
    values = dict(parts)
    if len(values) < len(parts) or not values.keys() <= set(PARTS) or not isinstance(values.get("text", ""), str):
        raise ValueError(
            f"{pair!r:.200} is not a pair of an image and a text. An image is a PIL image, an array, a URL or the "
            'path of a file that exists; ({"image": ...}, {"text": ...}) says which is which.'
        )
    return values


def _parts(member: Any) -> list[tuple[Any, Any]]:
    """Return the kind and the value of a member of a pair, or several if it is a dictionary of them."""
    if isinstance(member, Mapping):
        return list(member.items())
    if isinstance(member, os.PathLike):
        return [("image", member)]
    return [(infer_modality(member, supported_modalities=list(PARTS)), member)]


def _check_settings(num_labels: int, processor_kwargs: Mapping[str, Any], backend: str) -> None:
    """Raise a `ValueError` for settings that `CrossEncoder` accepts and that do not apply to matching."""
    if num_labels != 1:
        raise ValueError(f"A pair has one score, the log-odds of a match: remove num_labels={num_labels}.")
    if "model_max_length" in processor_kwargs:
        raise ValueError(
            "Texts are truncated by the processor that was saved with the model: remove max_length, or save a "
            "processor that was made with max_words and max_length."
        )
    if backend != "torch":
        raise ValueError(f'The backend {backend!r} is not supported: use "torch".')


def _require_matching_head(config: PreTrainedConfig, name: str) -> None:
    head = (config.architectures or [None])[0]
    if head not in MATCHING_HEADS:
        raise ValueError(
            f"{name} has {head}, which does not score pairs: choose a model with {' or '.join(MATCHING_HEADS)}."
        )
