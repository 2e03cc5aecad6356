"""What reference texts add to building an index: each image is matched with the ones nearest to it.

    python benchmarks/reference_texts.py
    python benchmarks/reference_texts.py --size base --images 16 --repetitions 3

The images are encoded by `albef_hf.search.encoder`, as `albef index build` does, without and with reference texts.
Images and texts are random, so that nothing is read or decoded. The texts, which an index encodes once, are encoded
before the time starts.
"""

from collections.abc import Callable

import measure
import torch
from measure import Measurement
from sizes import SIZES, make_config

from albef_hf import AlbefForRetrieval
from albef_hf.retrieval_albef import encode_tokenized_texts
from albef_hf.search.encoder import FeatureEncoder

TEXTS = 64  # more would only make the search for the nearest ones longer, which is one matrix product


def time_variant(size: str, images: int, tokens: int, repetitions: int, matches: bool) -> Measurement:
    """Measure how long random images are encoded, and matched with reference texts if they are."""

    def work_of(attention: str) -> Callable[[], torch.Tensor]:
        torch.manual_seed(0)
        config = make_config(size, attention)
        model = AlbefForRetrieval(config).to(measure.device()).eval()
        side = config.vision_config.image_size
        pixels = torch.randn(images, 3, side, side)
        ids = torch.randint(1000, 30000, (TEXTS, tokens))
        texts = encode_tokenized_texts(model, ids, torch.ones_like(ids))
        encoder = FeatureEncoder(model, processor=None)  # which would only read images

        def work() -> torch.Tensor:
            states, features = encoder.encode(pixels)
            return encoder.match_references(states, features, texts) if matches else features

        return work

    measured = measure.repeat(work_of("sdpa"), repetitions, images, warm_up=1)
    measured.flops = measure.count_flops(work_of("eager"))
    measured.result = None
    return measured


def main() -> None:
    """Measure and print a table."""
    parser = measure.parser(__doc__)
    parser.set_defaults(repetitions=5)
    parser.add_argument("--size", choices=SIZES, default="small", help="base is the paper's")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=14, help="length of the texts in tokens")
    options = parser.parse_args()
    setting = (options.size, options.images, options.tokens, options.repetitions)
    variants = {"images": (time_variant, *setting, False), "images, matched": (time_variant, *setting, True)}
    measured = measure.measure(options.threads, variants)
    print(f"\n{options.images} images, {options.size}, float32; reference texts of {options.tokens} tokens")
    print(measure.table(measured))


if __name__ == "__main__":
    main()
