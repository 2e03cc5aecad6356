"""Fit the probability of a match on the candidates of a retrieval, and judge it on queries that it has not seen."""

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch.nn import functional as F

from ..calibration_albef import MatchCalibration, reference_file_content, texts_sha256
from ..model_card import updated_card
from ..retrieval_albef import Ranking, RetrievalScores
from ..training.arguments import FineTuningArguments
from ..utils.files import atomic_write

MIN_SCALE = 1e-3  # a matching head that adds nothing still orders pairs of equal cosines
LOWEST = -1e300  # log of the sum for a query without wrong candidates
TINY = torch.finfo(torch.float64).tiny  # instead of its empty sum, which has no logarithm
RIDGE = 1e-4  # of all weights: they stay finite if right and wrong candidates are separable
BINS = 10  # of the reliability
RIGHT_AND_WRONG = ("wrong", "right")
REFERENCE_TEXTS = "reference_texts.json"


@dataclass
class Pairs:
    """Candidates of both directions.

    Args:
        log_odds: Of the matching head, (pairs,), in float64.
        cosines: (pairs,), in float64.
        is_right: 1 for right candidates and 0 for wrong ones, (pairs,), in float64.
        weights: Sum to one: right and wrong candidates count equally in each direction, and so do the directions.
        queries: Index of the query of each pair, (pairs,).
    """

    log_odds: torch.Tensor
    cosines: torch.Tensor
    is_right: torch.Tensor
    weights: torch.Tensor
    queries: torch.Tensor

    def order_loss(self, logits: torch.Tensor) -> torch.Tensor:
        """Compute the cross-entropy of each right candidate among the wrong ones of its query, in nats.

        Args:
            logits: (pairs,); what all candidates of a query have in common does not matter.
        """
        is_wrong = self.is_right == 0
        wrong, queries = logits[is_wrong], self.queries[is_wrong]
        # Sums of exponentials relative to the largest one, which alone may be too large for a number.
        lowest = logits.new_full((int(self.queries.max()) + 1,), LOWEST)
        peaks = lowest.scatter_reduce(0, queries, wrong.detach(), "amax")
        sums = torch.zeros_like(peaks).index_add(0, queries, (wrong - peaks[queries]).exp())
        totals = torch.logaddexp((sums.clamp(min=TINY).log() + peaks)[self.queries], logits)
        return 2 * (self.weights * self.is_right * (totals - logits)).sum()

    def log_loss(self, logits: torch.Tensor) -> torch.Tensor:
        """Compute the mean negative log-likelihood of logits, (pairs,), in nats."""
        losses = F.binary_cross_entropy_with_logits(logits, self.is_right, reduction="none")
        return (self.weights * losses).sum()

    def calibration_error(self, logits: torch.Tensor) -> float:
        """Compute the expected calibration error of logits, (pairs,), in percent, with bins of equal width."""
        probabilities = logits.sigmoid()
        bins = (probabilities * BINS).long().clamp(max=BINS - 1)
        gaps = torch.zeros(BINS, dtype=logits.dtype)
        gaps.index_add_(0, bins, self.weights * (probabilities - self.is_right))
        return 100 * gaps.abs().sum().item()


@dataclass
class FittedCalibration:
    """A calibration and what it changes.

    Args:
        calibration: The calibration, fitted on all queries.
        metrics: Recalls, log loss and calibration error of queries that each half of the data has not seen.
        summary: Description for people to read.
        reference_texts: The texts that scores were normalized by, for an index.
    """

    calibration: MatchCalibration
    metrics: dict[str, float]
    summary: str
    reference_texts: list[str] = field(default_factory=list)


def calibrate(
    scores: RetrievalScores, image_of_text: Sequence[int], fitted_on: str, reference_texts: Sequence[str] = ()
) -> FittedCalibration:
    """Fit a calibration on all queries, and judge two that are fitted on half of the images each on the other half.

    Args:
        scores: From `score_all`.
        image_of_text: Index of the image that each text belongs to.
        fitted_on: Description of the data.
        reference_texts: The texts among the references.

    Raises:
        ValueError: If the candidates do not allow a fit; see `fit_calibration`.
    """
    pairs = candidate_pairs(scores)
    fitted = fit_all(scores, fitted_on)
    if reference_texts:
        fitted = replace(fitted, reference_texts_sha256=texts_sha256(reference_texts))
    images = torch.arange(len(scores.image_to_text.logits))
    halves = Halves(images % 2 == 0, torch.as_tensor(image_of_text) % 2 == 0)
    fits = halves.fit(scores)
    unseen = halves.judge(fits, lambda calibration: [calibration.logit(*way.features()) for way in _rankings(scores)])
    metrics = scores.recalls("cross_fitted", unseen)
    logits = {"before": pairs.log_odds, "after": torch.cat([logits.flatten() for logits in unseen])}
    for name, values in logits.items():
        metrics[f"calibration/log_loss_{name}"] = pairs.log_loss(values).item()
        metrics[f"calibration/error_{name}"] = pairs.calibration_error(values)
    if scores.references:
        metrics |= scores.recalls("cross_fitted_normalized", halves.judge(fits, scores.normalized))
        for stage, alone in (("itc", without_matching(scores)), ("itm", without_contrast(scores))):
            with contextlib.suppress(NothingToFitError):  # the summary says so
                unseen = halves.judge(halves.fit(alone), alone.normalized)
                metrics |= alone.recalls(f"cross_fitted_normalized_{stage}", unseen)
    return FittedCalibration(fitted, metrics, _summary(scores, pairs, fitted, metrics), list(reference_texts))


class NothingToFitError(ValueError):
    """Neither matching nor cosine tells right from wrong candidates."""


@dataclass
class Halves:
    """The queries of even images and those of odd ones.

    Args:
        images: Whether an image is even, (images,).
        texts: Whether the image of a text is, (texts,).
    """

    images: torch.Tensor
    texts: torch.Tensor

    def fit(self, scores: RetrievalScores) -> tuple[MatchCalibration, MatchCalibration]:
        """Return a calibration fitted on the even half, and one on the odd half."""
        return fit_all(scores, "", [self.images, self.texts]), fit_all(scores, "", [~self.images, ~self.texts])

    def judge(
        self,
        fits: tuple[MatchCalibration, MatchCalibration],
        logits: Callable[[MatchCalibration], list[torch.Tensor]],
    ) -> list[torch.Tensor]:
        """Return the logits of the candidates of both directions, each by the calibration of the half it is not in."""
        by_even, by_odd = map(logits, fits)
        return [
            torch.where(is_even[:, None], odd, even)
            for is_even, even, odd in zip((self.images, self.texts), by_even, by_odd, strict=True)
        ]


def without_matching(scores: RetrievalScores) -> RetrievalScores:
    """Return the same candidates and references with their cosines only."""
    return _map_rankings(scores, lambda ranking: replace(ranking, logits=torch.zeros_like(ranking.logits)))


def without_contrast(scores: RetrievalScores) -> RetrievalScores:
    """Return the same candidates and references with their matching logits only."""
    return _map_rankings(scores, lambda ranking: replace(ranking, similarities=torch.zeros_like(ranking.similarities)))


def _map_rankings(scores: RetrievalScores, change: Callable[[Ranking], Ranking]) -> RetrievalScores:
    assert scores.references is not None
    *ways, of_images, of_texts = map(change, (*_rankings(scores), *scores.references))
    return RetrievalScores(*ways, references=(of_images, of_texts))


def fit_all(
    scores: RetrievalScores, fitted_on: str, queries: Sequence[torch.Tensor] | None = None
) -> MatchCalibration:
    """Fit a calibration, and then scale and weight of the level of references if there are any.

    Both are those with which each right candidate stands out among the wrong ones of its query, by maximum likelihood.

    Args:
        scores: From `score_all`.
        fitted_on: Description of the data.
        queries: Whether a query is used, for the images and for the texts; by default all of them.
    """
    pairs = candidate_pairs(scores, queries)
    fitted = fit_calibration(pairs, fitted_on)
    if not scores.references:
        return fitted
    used = [slice(None)] * 2 if queries is None else queries
    logits = fitted.logit(pairs.log_odds, pairs.cosines)

    def order_loss(parameters: torch.Tensor) -> torch.Tensor:
        scale, weight = parameters[0].exp(), parameters[1]
        levels = scores.candidate_levels(fitted, scale)
        level = torch.cat([values[chosen].flatten() for values, chosen in zip(levels, used, strict=True)])
        return pairs.order_loss(scale * logits - weight * level)

    log_scale, weight = _minimize(order_loss, 2).tolist()
    return replace(fitted, reference_weight=max(weight, 0.0), reference_scale=math.exp(log_scale))


def candidate_pairs(scores: RetrievalScores, queries: Sequence[torch.Tensor] | None = None) -> Pairs:
    """Return the reranked candidates of both directions.

    Args:
        scores: From `score_all`.
        queries: Whether a query is used, for the images and for the texts; by default all of them.

    Raises:
        ValueError: If a direction has no right or no wrong candidate, or a score is not finite.
    """
    parts = []
    first_query = 0
    for index, ranking in enumerate(_rankings(scores)):
        used = slice(None) if queries is None else queries[index]
        log_odds, cosines = (values[used] for values in ranking.features())
        query_of_pair = first_query + torch.arange(len(cosines)).repeat_interleave(cosines.shape[1])
        first_query += len(cosines)
        log_odds, cosines = log_odds.flatten(), cosines.flatten()
        is_right = ranking.positives[:, : ranking.logits.shape[1]].cpu()[used].flatten()
        invalid = int((~(log_odds.isfinite() & cosines.isfinite())).sum())
        if invalid:
            raise ValueError(
                f"The scores of {invalid} of {len(log_odds)} candidates are not finite: evaluate without "
                "mixed_precision, or train the model again."
            )
        counts = is_right.long().bincount(minlength=2)
        for count, kind in zip(counts.tolist(), RIGHT_AND_WRONG, strict=True):
            if not count:
                raise ValueError(
                    f"No candidate of {len(log_odds)} is {kind}: calibrate on more images, or with a larger rerank_k."
                )
        weights = 0.25 / counts[is_right.long()].double()
        parts.append((log_odds, cosines, is_right.double(), weights, query_of_pair))
    return Pairs(*map(torch.cat, zip(*parts, strict=True)))


def fit_calibration(pairs: Pairs, fitted_on: str) -> MatchCalibration:
    """Fit the order of a query's candidates first, then the probability, both by maximum likelihood.

    The weights of log-odds and cosine to each other are those with which each right candidate stands out among the
    wrong ones of its query (a conditional logistic regression), so what its candidates have in common does not count.
    The probability is a logistic regression on their sum. A weight that would be negative is zero, or `MIN_SCALE` if
    it is that of the log-odds.

    Raises:
        ValueError: If neither log-odds nor cosines are higher for right candidates than for wrong ones.
    """
    features = torch.stack([pairs.log_odds, pairs.cosines], dim=1)
    weights = _fit_order(pairs, features)
    order = features @ weights
    center, spread = order.mean(), _spread(order)
    slope, intercept = _minimize(lambda line: pairs.log_loss(line[0] * (order - center) / spread + line[1]), 2)
    if not weights.any() or not slope > 0:
        raise NothingToFitError(
            "Neither the matching nor the cosine of the model tells right from wrong candidates on these data: "
            "train it further before it is calibrated."
        )
    slope = slope / spread
    scale, cosine_weight = (slope * weights).tolist()
    return MatchCalibration(scale or MIN_SCALE, cosine_weight, (intercept - slope * center).item(), fitted_on)


def _fit_order(pairs: Pairs, features: torch.Tensor) -> torch.Tensor:
    """Return the weight of each of two features that orders the candidates of a query best, none below zero.

    Where the best weights of both have a negative one, the better of the two features decides alone.
    """
    sums = features.new_zeros(int(pairs.queries.max()) + 1, 2).index_add(0, pairs.queries, features)
    means = sums / pairs.queries.bincount()[:, None]
    centered = features - means[pairs.queries]
    spread = _spread(centered)
    centered /= spread

    def fit(columns: list[int]) -> torch.Tensor:
        weights = features.new_zeros(2)
        weights[columns] = _minimize(lambda chosen: pairs.order_loss(centered[:, columns] @ chosen), len(columns))
        return weights

    weights = fit([0, 1])
    if weights.min() < 0:
        alone = [fit([0]).clamp(min=0), fit([1]).clamp(min=0)]
        weights = min(alone, key=lambda weights: pairs.order_loss(centered @ weights).item())
    return weights / spread


def _spread(values: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation over the pairs, and 1 for what is constant."""
    std = values.std(0)
    return torch.where(std > 0, std, 1.0)


def _minimize(loss: Callable[[torch.Tensor], torch.Tensor], count: int) -> torch.Tensor:
    """Return the weights, (count,), that minimize a loss; a small penalty keeps them finite."""
    weights = torch.zeros(count, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        total = loss(weights) + RIDGE / 2 * weights.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(closure)
    return weights.detach()


def _rankings(scores: RetrievalScores) -> tuple[Ranking, Ranking]:
    return scores.image_to_text, scores.text_to_image


def _summary(scores: RetrievalScores, pairs: Pairs, fitted: MatchCalibration, metrics: dict[str, float]) -> str:
    is_found = [ranking.positives[:, : ranking.logits.shape[1]].any(1) for ranking in _rankings(scores)]
    images, texts = (int((~found).sum()) for found in is_found)
    right = int(pairs.is_right.sum())
    lines = [
        f"P(match) = sigmoid({fitted.scale:.4g} x log-odds + {fitted.cosine_weight:.4g} x cosine {fitted.bias:+.4g}), "
        f"fitted on {len(pairs.is_right):,} candidates, {right:,} of them right: {fitted.fitted_on}",
        "from one half of the images to the other: log loss {calibration/log_loss_before:.4f} before, "
        "{calibration/log_loss_after:.4f} after; expected calibration error {calibration/error_before:.1f} % before, "
        "{calibration/error_after:.1f} % after".format_map(metrics),
    ]
    if scores.references:
        lines.append(
            f"order with references: {fitted.reference_scale:.3g} x the logit, less {fitted.reference_weight:.3g} x "
            "the level of references"
        )
        for stage, name in (("itc", "the cosine"), ("itm", "matching")):
            if f"cross_fitted_normalized_{stage}_text_r1" not in metrics:
                lines.append(f"{name} alone does not tell right from wrong, so it is not normalized by itself")
        if fitted.reference_weight == 0:
            lines.append("references add nothing on these data")
    if images or texts:
        lines.append(f"the right answer is not among the candidates of {images} images and {texts} texts")
    if fitted.scale == MIN_SCALE:
        lines.append("matching adds nothing to the cosine on these data, which decides the order")
    if fitted.cosine_weight == 0:
        lines.append("the cosine adds nothing to matching on these data, which decides the order")
    return "\n".join(lines)


def require_saved_model(args: FineTuningArguments) -> None:
    """Refuse to calibrate what is not the model in a folder, as it was saved.

    Raises:
        ValueError: If the model is not in a folder, or is evaluated at another resolution.
    """
    if not args.model or not (Path(args.model) / "config.json").is_file():
        raise ValueError(
            f"calibrate writes to the folder of the model, and {args.model!r} is none: download the model with "
            f"`hf download {args.model} --local-dir FOLDER`, and set model FOLDER."
        )
    if args.image_size:
        raise ValueError("calibrate is for the model at the resolution that it is saved with: remove image_size.")


def save_reference_texts(folder: Path, texts: list[str]) -> Path:
    """Write reference texts for `albef index build --reference_texts`, and return the path."""
    path = folder / REFERENCE_TEXTS
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(reference_file_content(texts))
    return path


def save_calibration(folder: Path, calibration: MatchCalibration) -> None:
    """Write a calibration to configuration and card of the model in a folder; what was edited in the card stays."""
    path = folder / "config.json"
    with updated_card(folder):
        config = json.loads(path.read_text(encoding="utf-8"))
        config["match_calibration"] = calibration.to_dict()
        with atomic_write(path) as unfinished:  # in the form of transformers
            unfinished.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
