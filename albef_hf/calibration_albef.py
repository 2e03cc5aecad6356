"""The probability that an image and a text match, calibrated on validation data.

The matching head is trained against negatives of its batches, so its own probability answers another question than
whether a text describes an image. A calibrated model combines its log-odds with the cosine of the features.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any

import torch
from transformers import PreTrainedConfig


@dataclass(frozen=True)
class MatchCalibration:
    """A model of the probability: P(match) = sigmoid(scale * log-odds + cosine_weight * cosine + bias).

    The log-odds are those of the matching head (ITM), the cosine is that of the contrastive features (ITC). Saved as
    `match_calibration` of `AlbefConfig`, and fitted by `albef evaluate retrieval --calibrate`. The probability is that
    of a text belonging to an image if half of such pairs do, and wrong ones are as similar as the candidates it was
    fitted on. The defaults are those of a model that is not calibrated: the matching head's own probability.

    Args:
        scale: Weight of the log-odds, positive.
        cosine_weight: Weight of the cosine.
        bias: Logit where log-odds and cosine are zero.
        fitted_on: Description of the data; None if the model is not calibrated.
        reference_weight: Weight of the level of references, which is subtracted from the logit to order the answers of
            a retrieval with references (see `normalized_logit`); None if there were none. It does not affect the
            probability.
        reference_scale: What logits are multiplied by before, positive: the higher it is, the more the best reference
            decides the level.
        reference_texts_sha256: Of the texts among the references, from `texts_sha256`; None if they are not known.

    Raises:
        ValueError: If a number is not finite, or the scale is not positive.
    """

    scale: float = 1.0
    cosine_weight: float = 0.0
    bias: float = 0.0
    fitted_on: str | None = None
    reference_weight: float | None = None
    reference_scale: float = 1.0
    reference_texts_sha256: str | None = None

    def __post_init__(self) -> None:
        numbers = {"scale", "cosine_weight", "bias", "reference_scale"}
        numbers |= set() if self.reference_weight is None else {"reference_weight"}
        for name in sorted(numbers):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
                raise ValueError(f"{name} of match_calibration is {value!r}: it must be a finite number.")
        for name in ("scale", "reference_scale"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} of match_calibration is {getattr(self, name)}: it must be above 0.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "MatchCalibration":
        """Return the calibration that a configuration contains.

        Raises:
            ValueError: If an entry is missing, unknown or invalid.
        """
        names = [field.name for field in fields(cls)]
        optional = {"reference_weight", "reference_scale", "reference_texts_sha256"}  # added later than the others
        if not isinstance(values, Mapping) or not set(names) - optional <= set(values) <= set(names):
            raise ValueError(f"match_calibration is {values!r:.200}: it must have {', '.join(names)}, or be None.")
        if not isinstance(values["fitted_on"], str):
            raise ValueError(
                f"fitted_on of match_calibration is {values['fitted_on']!r:.100}: it must name the data in words."
            )
        return cls(**values)

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> "MatchCalibration":
        """Return the calibration of a model, or the matching head's own probability if it has none."""
        values = getattr(config, "match_calibration", None)
        return cls() if values is None else cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of a configuration; older saved code does not know the numbers for references."""
        values = asdict(self)
        if self.reference_weight is None:
            del values["reference_weight"], values["reference_scale"], values["reference_texts_sha256"]
        return values

    @property
    def is_fitted(self) -> bool:
        """Return whether the model is calibrated."""
        return self.fitted_on is not None

    @property
    def itc_weight(self) -> float:
        """Return the weight of the cosine beside the log-odds which orders pairs by their probability."""
        return self.cosine_weight / self.scale

    def logit(self, log_odds: torch.Tensor, cosines: torch.Tensor) -> torch.Tensor:
        """Compute the logit of the probability, in the shape of the log-odds and the cosines."""
        return self.scale * log_odds + self.cosine_weight * cosines + self.bias

    def probability(self, log_odds: torch.Tensor, cosines: torch.Tensor) -> torch.Tensor:
        """Compute the probability of a match, in the shape of the log-odds and the cosines."""
        return self.logit(log_odds, cosines).sigmoid()

    def level(
        self, log_odds: torch.Tensor, cosines: torch.Tensor, scale: float | torch.Tensor | None = None
    ) -> torch.Tensor:
        """Compute how well something matches references: the log of the sum of exponentials of its scaled logits.

        Args:
            log_odds: With its references, (..., references).
            cosines: With them, (..., references).
            scale: Instead of `reference_scale`, while that is fitted.

        Returns:
            (...).
        """
        return ((self.reference_scale if scale is None else scale) * self.logit(log_odds, cosines)).logsumexp(-1)

    def normalized_logit(self, log_odds: torch.Tensor, cosines: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        """Compute scaled logits less the weighted levels of the answers, in the shape of all three."""
        return self.reference_scale * self.logit(log_odds, cosines) - (self.reference_weight or 0.0) * levels

    def describe(self) -> str:
        """Return whether the probability is calibrated, and on what."""
        return f"calibrated on {self.fitted_on}" if self.is_fitted else "not calibrated"


def reference_file_content(texts: Sequence[str]) -> bytes:
    """Return the content of a file of reference texts, which is compared by its hash."""
    return json.dumps(list(texts), indent=1).encode()


def texts_sha256(texts: Sequence[str]) -> str:
    """Return the SHA-256 of a file of reference texts."""
    return hashlib.sha256(reference_file_content(texts)).hexdigest()


def matching_log_odds(itm_logits: torch.Tensor) -> torch.Tensor:
    """Compute the log-odds of a match, (...,), of logits of (no match, match), (..., 2), in float32 or better."""
    precise = itm_logits.to(torch.promote_types(itm_logits.dtype, torch.float32))
    return precise.diff(dim=-1).squeeze(-1)
