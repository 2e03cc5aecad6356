"""Time of ranking a list of answers: the 128 of 3,128 with the likeliest first token are scored whole.

    python benchmarks/vqa_ranking.py
    python benchmarks/vqa_ranking.py --size base --questions 2 --repetitions 3

The first row repeats the question's states for every candidate and projects them again. The others are
`AlbefForQuestionAnswering.rank_answers`.
"""

import measure
import torch
from measure import Measurement
from plain import plain_ranking
from sizes import SIZES, make_config, make_texts

from albef_hf import AlbefForQuestionAnswering

ANSWERS = 3128  # in the original's answer_list.json
# How many answers have so many tokens, [CLS] and [SEP] included: most are one word.
LENGTHS = {3: 2200, 4: 620, 5: 220, 6: 70, 8: 18}


def make_answers() -> torch.Tensor:
    """Random answers, (3,128, 8), padded with zeros."""
    lengths = torch.tensor([length for length, count in LENGTHS.items() for _ in range(count)])
    lengths = lengths[torch.randperm(ANSWERS)]
    answers = torch.randint(1000, 30000, (ANSWERS, int(lengths.max())))
    answers[:, 0] = 101
    answers[torch.arange(ANSWERS), lengths - 1] = 102
    return answers * (torch.arange(answers.shape[1]) < lengths[:, None])


def time_ranking(size: str, questions: int, k: int, repetitions: int, plain: bool, dtype: torch.dtype) -> Measurement:
    """Measure the ranking, with or without sharing."""

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
        return lambda: model.rank_answers(input_ids, pixel_values, answers, mask, k=k)

    measured = measure.repeat(work_of("eager" if plain else "sdpa"), repetitions, questions)
    measured.flops = measure.count_flops(work_of("eager"))
    measured.result = [part.cpu() for part in measured.result]
    return measured


def compare(plain: list[torch.Tensor], ours: list[torch.Tensor]) -> str:
    """Whether the rankings are alike; random weights make near ties, which rounding may break either way."""
    (plain_rows, plain_probabilities), (rows, _) = plain, ours
    if torch.equal(plain_rows, rows):
        return "float32 ranking identical"
    places = plain_rows.argsort(1).gather(1, rows.sort(1).indices.argsort(1))
    aligned = plain_probabilities.gather(1, places)  # what the plain computation says, in our order
    gap = (aligned[:, 1:] / aligned[:, :-1] - 1).max()
    return f"{int((plain_rows != rows).sum())} of {rows.numel()} places differ, by near ties: {gap:.0e} apart at most"


def main() -> None:
    """Measure, print a table, and compare the rankings."""
    parser = measure.parser(__doc__)
    parser.add_argument("--size", choices=SIZES, default="small", help="base is the paper's")
    parser.add_argument("--questions", type=int, default=8, help="questions in a batch")
    parser.add_argument("--k", type=int, default=128, help="answers that are scored whole")
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
