"""Recalls of retrieval as a table for people to read."""

# What candidates are ordered by: the first part of the names of metrics, and what the table calls it.
STAGES = {
    "itc": "ITC",
    "itm": "ITM reranked",
    "calibrated": "calibrated",
    "normalized": "normalized",
    "cross_fitted": "cross-fitted",
    "cross_fitted_normalized": "cross-fitted, normalized",
    "cross_fitted_normalized_itc": "ITC normalized",
    "cross_fitted_normalized_itm": "ITM normalized",
}


def retrieval_table(metrics: dict[str, float], num_images: int) -> str:
    """Return the recalls of both directions, by similarity (ITC) and reranked by matching (ITM).

    Those of a calibrated model also by its probability; and if it has been calibrated on the same data, by that of the
    half that does not contain the query. With references, also by scores that are normalized by them.

    Args:
        metrics: Recalls in percent, named such as `itc_text_r1`: ITC, from images to texts, at 1.
        num_images: Candidates of a text, which give the chance level.
    """
    stages = {stage: title for stage, title in STAGES.items() if f"{stage}_text_r1" in metrics}
    width = max(map(len, [STAGES["itm"], *stages.values()]))
    lines = [
        f"retrieval among {num_images} images, recall in % (chance at 1: {100 / max(num_images, 1):.2g})",
        " " * (width + 2) + "image to text      text to image",
        " " * (width + 2) + "@1    @5   @10     @1    @5   @10",
    ]
    for stage, title in stages.items():
        recalls = [
            "".join(f"{metrics[f'{stage}_{target}_r{k}']:6.1f}" for k in (1, 5, 10)) for target in ("text", "image")
        ]
        lines.append(f"{title:{width}s}{recalls[0]} {recalls[1]}")
    return "\n".join(lines)
