"""Time of one search's second step: the matching of a text with 128 candidates.

    python benchmarks/reranking.py
    python benchmarks/reranking.py --size base --repetitions 3

The first row is the plain computation: each candidate is encoded again and goes through the model with the text, which
is encoded again for each. Where the pictures are kept, their hidden states are in memory, as those of an index's last
queries are. The plain one of these reads the text's states and projects keys and values for every picture; the
package's, `albef_hf.retrieval_albef.match_pictures`, computes what the text is before it sees a picture once, and lets
its few tokens pass the weights of the keys and values instead of the many of each picture.
"""

from collections.abc import Callable

import measure
import torch
from measure import Measurement
from sizes import SIZES, make_config
from torch import Tensor

from albef_hf import AlbefForRetrieval
from albef_hf.retrieval_albef import match_pictures, read_texts

TOGETHER = 16  # candidates of one pass, as in a search


def time_variant(size: str, candidates: int, tokens: int, repetitions: int, name: str) -> Measurement:
    """Measure one way to match a random text with random pictures."""
    torch.manual_seed(0)

    def work_of(attention: str) -> Callable[[], torch.Tensor]:
        torch.manual_seed(0)
        config = make_config(size, attention)
        model = AlbefForRetrieval(config).to(measure.device()).eval()
        side = config.vision_config.image_size
        pixels = torch.randn(candidates, 3, side, side, device=measure.device())
        ids = torch.randint(1000, 30000, (1, tokens), device=measure.device())
        with torch.no_grad():
            states = torch.cat([model.get_image_features(some).last_hidden_state for some in pixels.split(TOGETHER)])
        return lambda: VARIANTS[name](model, pixels, states, ids)

    measured = measure.repeat(work_of("sdpa"), repetitions, candidates, warm_up=1)
    measured.flops = measure.count_flops(work_of("eager"))
    measured.result = measured.result.cpu()
    return measured


@torch.no_grad()
def plain(model: AlbefForRetrieval, pixels: Tensor, states: Tensor, ids: Tensor) -> Tensor:
    """Every pair by itself, as far as its own picture and text go."""
    pairs = [model(ids.expand(len(some), -1), some).itm_logits for some in pixels.split(TOGETHER)]
    return torch.cat(pairs)


@torch.no_grad()
def encoded(model: AlbefForRetrieval, pixels: Tensor, states: Tensor, ids: Tensor) -> Tensor:
    """A search of pictures that have not been candidates lately."""
    text = read_texts(model, ids, torch.ones_like(ids))
    images = (model.get_image_features(some).last_hidden_state for some in pixels.split(TOGETHER))
    return torch.cat([match_pictures(model, some, text) for some in images])


@torch.no_grad()
def plain_kept(
    model: AlbefForRetrieval, pixels: torch.Tensor, states: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """Pictures that are in memory, their keys and values projected for every text."""
    fuse, logits = model.albef.multimodal_model, []
    texts = model.get_text_features(ids).last_hidden_state
    for some in states.split(TOGETHER):
        fused = fuse(texts.expand(len(some), -1, -1), None, fuse.project_images(some)).last_hidden_state
        logits.append(model.itm_head(fused[:, 0]))
    return torch.cat(logits)


@torch.no_grad()
def kept(model: AlbefForRetrieval, pixels: Tensor, states: Tensor, ids: Tensor) -> Tensor:
    """A search of pictures that have been candidates lately."""
    text = read_texts(model, ids, torch.ones_like(ids))
    return torch.cat([match_pictures(model, some, text) for some in states.split(TOGETHER)])


VARIANTS = {"plain": plain, "search": encoded, "plain, pictures kept": plain_kept, "search, pictures kept": kept}


def main() -> None:
    """Measure and print a table."""
    parser = measure.parser(__doc__)
    parser.set_defaults(repetitions=5)
    parser.add_argument("--size", choices=SIZES, default="small", help="base is the paper's")
    parser.add_argument("--candidates", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=10, help="of the text")
    options = parser.parse_args()
    setting = (options.size, options.candidates, options.tokens, options.repetitions)
    variants = {name: (time_variant, *setting, name) for name in VARIANTS}
    measured = measure.measure(options.threads, variants)
    print(
        f"\nmatching of a text of {options.tokens} tokens with {options.candidates} pictures, {options.size}, float32"
    )
    print(measure.table(measured))
    first = measured["plain"].result
    difference = max(float((result.result - first).abs().max()) for result in measured.values())
    print(f"largest difference of a logit: {difference:.1e}")


if __name__ == "__main__":
    main()
