"""Time of the second step of a search: matching a text with 128 candidates.

    python benchmarks/reranking.py
    python benchmarks/reranking.py --size base --repetitions 3

The first row is the plain computation: each candidate is encoded, and the text is encoded again for each of them. For
cached images, the hidden states are in memory, as those of the recent candidates of an index are. The plain variant of
these projects keys and values for every image. The variant of the package, `albef_hf.retrieval_albef.match_images`,
computes the first self-attention of the text once. It absorbs the key and value projections into query and output, so
that they run on the few tokens of the text instead of the many patches of each image.
"""

from collections.abc import Callable

import measure
import torch
from measure import Measurement
from sizes import SIZES, make_config
from torch import Tensor

from albef_hf import AlbefForRetrieval
from albef_hf.retrieval_albef import encode_tokenized_texts, match_images

BATCH_SIZE = 16  # candidates, as in a search


def time_variant(size: str, candidates: int, tokens: int, repetitions: int, name: str) -> Measurement:
    """Measure one way to match a random text with random images."""
    torch.manual_seed(0)

    def work_of(attention: str) -> Callable[[], torch.Tensor]:
        torch.manual_seed(0)
        config = make_config(size, attention)
        model = AlbefForRetrieval(config).to(measure.device()).eval()
        side = config.vision_config.image_size
        pixels = torch.randn(candidates, 3, side, side, device=measure.device())
        ids = torch.randint(1000, 30000, (1, tokens), device=measure.device())
        with torch.no_grad():
            states = torch.cat(
                [model.get_image_features(batch).last_hidden_state for batch in pixels.split(BATCH_SIZE)]
            )
        return lambda: VARIANTS[name](model, pixels, states, ids)

    measured = measure.repeat(work_of("sdpa"), repetitions, candidates, warm_up=1)
    measured.flops = measure.count_flops(work_of("eager"))
    measured.result = measured.result.cpu()
    return measured


@torch.no_grad()
def plain(model: AlbefForRetrieval, pixels: Tensor, states: Tensor, ids: Tensor) -> Tensor:
    """Encode image and text again for every pair."""
    pairs = [model(ids.expand(len(batch), -1), batch).itm_logits for batch in pixels.split(BATCH_SIZE)]
    return torch.cat(pairs)


@torch.no_grad()
def encoded(model: AlbefForRetrieval, pixels: Tensor, states: Tensor, ids: Tensor) -> Tensor:
    """Match images that have to be encoded."""
    text = encode_tokenized_texts(model, ids, torch.ones_like(ids))
    images = (model.get_image_features(batch).last_hidden_state for batch in pixels.split(BATCH_SIZE))
    return torch.cat([match_images(model, batch, text) for batch in images])


@torch.no_grad()
def plain_cached(
    model: AlbefForRetrieval, pixels: torch.Tensor, states: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """Match cached images, and project their keys and values for every text."""
    fuse = model.albef.multimodal_model
    logits = []
    texts = model.get_text_features(ids).last_hidden_state
    for batch in states.split(BATCH_SIZE):
        fused = fuse(texts.expand(len(batch), -1, -1), None, fuse.project_images(batch)).last_hidden_state
        logits.append(model.itm_head(fused[:, 0]))
    return torch.cat(logits)


@torch.no_grad()
def cached(model: AlbefForRetrieval, pixels: Tensor, states: Tensor, ids: Tensor) -> Tensor:
    """Match cached images."""
    text = encode_tokenized_texts(model, ids, torch.ones_like(ids))
    return torch.cat([match_images(model, batch, text) for batch in states.split(BATCH_SIZE)])


VARIANTS = {"plain": plain, "search": encoded, "plain, cached images": plain_cached, "search, cached images": cached}


def main() -> None:
    """Measure and print a table."""
    parser = measure.parser(__doc__)
    parser.set_defaults(repetitions=5)
    parser.add_argument("--size", choices=SIZES, default="small", help="base is the paper's")
    parser.add_argument("--candidates", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=10, help="length of the text in tokens")
    options = parser.parse_args()
    setting = (options.size, options.candidates, options.tokens, options.repetitions)
    variants = {name: (time_variant, *setting, name) for name in VARIANTS}
    measured = measure.measure(options.threads, variants)
    print(f"\nmatching of a text of {options.tokens} tokens with {options.candidates} images, {options.size}, float32")
    print(measure.table(measured))
    first = measured["plain"].result
    difference = max(float((result.result - first).abs().max()) for result in measured.values())
    print(f"largest difference of a logit: {difference:.1e}")


if __name__ == "__main__":
    main()
