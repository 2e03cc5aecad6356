"""Time to rank a list of 3,128 answers: the 128 answers with the most likely first token are scored completely.

    python benchmarks/vqa_ranking.py
    python benchmarks/vqa_ranking.py --size base --questions 2 --repetitions 3

The first row repeats the hidden states of the question for every candidate and projects them again. The others are
`AlbefForQuestionAnswering.rank_answers`.
"""

import measure
import torch
from measure import Measurement
from plain import plain_ranking
from sizes import SIZES, make_config, make_texts

from albef_hf import AlbefForQuestionAnswering

ANSWERS = 3128  # in the original's answer_list.json
# Number of answers by number of tokens, including [CLS] and [SEP]; most are one word.
LENGTHS = {3: 2200, 4: 620, 5: 220, 6: 70, 8: 18}


def make_answers() -> torch.Tensor:
    """Return random answers, (3,128, 8), padded with zeros."""
    lengths = torch.tensor([length for length, count in LENGTHS.items() for _ in range(count)])
    lengths = lengths[torch.randperm(ANSWERS)]
    answers = torch.randint(1000, 30000, (ANSWERS, int(lengths.max())))
    answers[:, 0] = 101
    answers[torch.arange(ANSWERS), lengths - 1] = 102
    return answers * (torch.arange(answers.shape[1]) < lengths[:, None])


def time_ranking(size: str, questions: int, k: int, repetitions: int, plain: bool, dtype: torch.dtype) -> Measurement:
    """Measure the ranking with shared hidden states, or the plain one."""

    def work_of(attention: str):
        torch.manual_seed(0)
        config = make_config(size, attention)
        model = AlbefForQuestionAnswering(config).to(measure.device(), dtype).eval()
        side = config.vision_config.image_size
        input_ids, mask = (part.to(measure.device()) for part in make_texts(questions, 8, 14))
        pixel_values = torch.randn(questions, 3, side, side).to(measure.device(), dtype)
        answers = make_answers().to(measure.device())
        if plain:
            return lambda: plain_ranking(model, input_ids, mask, pixel_values, answers, k)
        return lambda: model.rank_answers(input_ids, pixel_values, answers, mask, top_k=k)

    measured = measure.repeat(work_of("eager" if plain else "sdpa"), repetitions, questions, dtype)
    measured.flops = measure.count_flops(work_of("eager"))
    measured.result = [part.cpu() for part in measured.result]
    return measured


def compare(plain: list[torch.Tensor], ours: list[torch.Tensor]) -> str:
    """Compare two rankings; random weights make near ties, whose order depends on rounding."""
    plain_rows, plain_probabilities = plain
    rows, _ = ours
    if torch.equal(plain_rows, rows):
        return "float32 ranking identical"
    places = plain_rows.argsort(1).gather(1, rows.sort(1).indices.argsort(1))
    aligned = plain_probabilities.gather(1, places)  # plain probabilities in our order
    gap = (aligned[:, 1:] / aligned[:, :-1] - 1).max()
    return (
        f"{int((plain_rows != rows).sum())} of {rows.numel()} ranks differ, between near ties at most {gap:.0e} apart"
    )


def main() -> None:
    """Measure, print a table, and compare the rankings."""
    parser = measure.parser(__doc__)
    parser.add_argument("--size", choices=SIZES, default="small", help="base is the paper's")
    parser.add_argument("--questions", type=int, default=8, help="questions in a batch")
    parser.add_argument("--k", type=int, default=128, help="answers that are scored completely")
    options = parser.parse_args()
    setting = (options.size, options.questions, options.k, options.repetitions)
    measured = measure.measure(
        options.threads,
        {
            "plain float32": (time_ranking, *setting, True, torch.float32),
            "float32": (time_ranking, *setting, False, torch.float32),
            "bf16": (time_ranking, *setting, False, torch.bfloat16),
        },
    )
    print(f"\n{options.k} of {ANSWERS} answers, {options.size}, {options.questions} questions")
    print(measure.table(measured))
    print(compare(measured["plain float32"].result, measured["float32"].result))


if __name__ == "__main__":
    main()
