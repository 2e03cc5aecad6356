"""Time of a retrieval evaluation: encode images and texts, and rerank the best k candidates of each query.

    python benchmarks/retrieval_evaluation.py
    python benchmarks/retrieval_evaluation.py --size base --images 16 --k 8 --repetitions 3

The first row is the plain computation: one query after the other, all texts padded to the longest, keys and values
projected for every pair. The others are `albef_hf.retrieval_albef.score_all`. The images are random tensors.
"""

from collections.abc import Sequence

import measure
import torch
from measure import Measurement
from plain import plain_retrieval
from sizes import SIZES, make_config, make_texts
from transformers import BatchFeature

from albef_hf import AlbefForRetrieval
from albef_hf.retrieval_albef import RetrievalScores, score_all

CAPTIONS = 5  # for each image
LENGTHS = (8, 27)  # shortest and longest text in tokens


class TensorProcessor:
    """Stand in for a processor: return prepared pixels and tokens by index."""

    def __init__(self, pixel_values: torch.Tensor, input_ids: torch.Tensor, mask: torch.Tensor):
        self.pixel_values = pixel_values
        self.input_ids = input_ids
        self.mask = mask

    def __call__(
        self, images: Sequence[int] | None = None, text: Sequence[int] | None = None, **kwargs: object
    ) -> BatchFeature:
        if images is not None:
            return BatchFeature({"pixel_values": self.pixel_values[list(images)]})
        return BatchFeature({"input_ids": self.input_ids[list(text)], "attention_mask": self.mask[list(text)]})


def make_inputs(
    size: str, images: int, dtype: torch.dtype, attention: str
) -> tuple[AlbefForRetrieval, TensorProcessor]:
    """Return a random model and random images and texts, the same for every variant."""
    torch.manual_seed(0)
    config = make_config(size, attention)
    model = AlbefForRetrieval(config).to(measure.device(), dtype).eval()
    side = config.vision_config.image_size
    pixel_values = torch.randn(images, 3, side, side)
    shortest, longest = LENGTHS
    input_ids, mask = make_texts(CAPTIONS * images, shortest, longest)
    return model, TensorProcessor(pixel_values.to(dtype), input_ids, mask)


def time_plain(size: str, images: int, k: int, repetitions: int) -> Measurement:
    """Measure the plain computation."""
    model, processor = make_inputs(size, images, torch.float32, "eager")
    device = measure.device()
    pixel_values = processor.pixel_values.to(device)
    input_ids = processor.input_ids.to(device)
    mask = processor.mask.to(device)

    def work() -> tuple[torch.Tensor, ...]:
        return plain_retrieval(model, pixel_values, input_ids, mask, k)

    measured = measure.repeat(work, repetitions, images)
    measured.flops = measure.count_flops(work)
    measured.result = [scores.cpu() for scores in measured.result]
    return measured


def time_package(size: str, images: int, k: int, repetitions: int, dtype: torch.dtype) -> Measurement:
    """Measure the evaluation of the package."""

    def work_of(attention: str):
        model, processor = make_inputs(size, images, dtype, attention)
        captions = torch.arange(CAPTIONS * images).view(images, CAPTIONS).tolist()
        return lambda: score_all(model, processor, range(images), captions, k)

    measured = measure.repeat(work_of("sdpa"), repetitions, images, dtype)
    measured.flops = measure.count_flops(work_of("eager"))
    measured.result = score_matrices(measured.result)
    return measured


def score_matrices(scores: RetrievalScores) -> list[torch.Tensor]:
    """Return both matrices of reranked scores, with -100 for pairs that were not scored."""
    matrices = []
    for ranking, other in ((scores.image_to_text, scores.text_to_image), (scores.text_to_image, scores.image_to_text)):
        matrix = torch.full((len(ranking.logits), len(other.logits)), -100.0)
        numbers = ranking.indices[:, : ranking.logits.shape[1]].cpu()
        matrices.append(matrix.scatter(1, numbers, ranking.scores().float().cpu()))
    return matrices


def main() -> None:
    """Measure, print a table, and compare the scores."""
    parser = measure.parser(__doc__)
    parser.add_argument("--size", choices=SIZES, default="small", help="base is the paper's")
    parser.add_argument("--images", type=int, default=64, help="images, with five texts each")
    parser.add_argument("--k", type=int, default=16, help="candidates of each query that are reranked")
    options = parser.parse_args()
    setting = (options.size, options.images, options.k, options.repetitions)
    measured = measure.measure(
        options.threads,
        {
            "plain float32": (time_plain, *setting),
            "float32": (time_package, *setting, torch.float32),
            "bf16": (time_package, *setting, torch.bfloat16),
        },
    )
    print(f"\nretrieval evaluation, {options.size}, {options.images} images, k = {options.k}")
    print(measure.table(measured))
    plain, ours = (measured[name].result for name in ("plain float32", "float32"))
    difference = max(float((a - b).abs().max()) for a, b in zip(plain, ours, strict=True))
    same = all(torch.equal(a.argsort(1), b.argsort(1)) for a, b in zip(plain, ours, strict=True))
    print(f"largest difference of a float32 score: {difference:.1e}; ranking {'identical' if same else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
