"""Recalls of retrieval as a table for people to read."""


def retrieval_table(metrics: dict[str, float], num_images: int) -> str:
    """Return the recalls of both directions, by similarity (ITC) and reranked by matching (ITM).

    Args:
        metrics: Recalls in percent, named such as `itc_text_r1`: ITC, from images to texts, at 1.
        num_images: Candidates of a text, which give the chance level.
    """
    lines = [
        f"retrieval among {num_images} images, recall in % (chance at 1: {100 / max(num_images, 1):.2g})",
        " " * 14 + "image to text      text to image",
        " " * 14 + "@1    @5   @10     @1    @5   @10",
    ]
    for stage, title in (("itc", "ITC"), ("itm", "ITM reranked")):
        recalls = [
            "".join(f"{metrics[f'{stage}_{target}_r{k}']:6.1f}" for k in (1, 5, 10)) for target in ("text", "image")
        ]
        lines.append(f"{title:12s}{recalls[0]} {recalls[1]}")
    return "\n".join(lines)
