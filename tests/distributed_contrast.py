"""One optimizer step on every process, of its part of 16 pairs; launched by training/test_distributed.py."""

import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState
from torch.utils.data import DataLoader

from albef_hf import AlbefConfig, AlbefForPreTraining, AlbefForRetrieval, MomentumTeacher, losses_albef
from albef_hf.data.row_errors import SkipReason
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.distributed import make_accelerator
from albef_hf.training.logging import RunLog
from albef_hf.training.trainer import Trainer

PAIRS, TOKENS = 16, 9
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def pairs() -> dict[str, torch.Tensor]:
    """Sixteen pairs in float64, two tokens of each masked; the texts of the last eight are shorter."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(1000, 30000, (PAIRS, TOKENS), generator=generator)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[8:, 6:] = 0
    labels = torch.full_like(input_ids, -100)
    labels[:, 2:4] = input_ids[:, 2:4]
    return {
        "input_ids": input_ids * attention_mask,
        "attention_mask": attention_mask,
        "mlm_input_ids": torch.where(labels == -100, input_ids * attention_mask, 103),
        "labels": labels,
        "pixel_values": torch.randn(PAIRS, 3, 32, 32, generator=generator, dtype=torch.float64),
    }


def cut(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Remove columns that are only padding, as a collator would."""
    longest = int(batch["attention_mask"].sum(1).max())
    short = {name: values[:, :longest] for name, values in batch.items() if name != "pixel_values"}
    return short | {"pixel_values": batch["pixel_values"], "issues": torch.zeros(len(SkipReason), dtype=torch.long)}


def hardest(weights: torch.Tensor, count: int) -> torch.Tensor:
    """Return the most probable instead of a draw."""
    return weights.topk(count).indices


class ContrastAlone(AlbefForPreTraining):
    """Train with ITC only."""

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        outputs.loss = outputs.loss_itc + 0 * outputs.loss  # so that every weight has a gradient
        return outputs


HEADS = {"all": AlbefForPreTraining, "itc": ContrastAlone, "retrieval": AlbefForRetrieval}
CASES = {  # head, batches accumulated, options that are on
    "keys": ("itc", 1, "gather_keys"),
    "keys, accumulated": ("itc", 2, "gather_keys"),
    "negatives": ("all", 1, "gather_keys", "gather_negatives"),
    "negatives of retrieval": ("retrieval", 1, "gather_keys", "gather_negatives"),
}


def one_step(folder: Path, head: str, batches: int, *names: str) -> dict:
    """Return losses, gradients and queue of the first step, whose pairs are divided among processes and batches.

    Args:
        folder: For the log.
        head: Computes the losses.
        batches: Accumulated by each process.
        names: Options that are on.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=batches,
        queue_size=24,
        max_steps=1,
        alpha=0.4,
        alpha_ramp_steps=0,
        teacher_dropout=False,
        **dict.fromkeys(names, True),
    )
    accelerator = make_accelerator(args)
    torch.manual_seed(0)
    config = AlbefConfig(
        projection_dim=16,
        vision_config={**TINY, **NO_DROPOUT, "image_size": 32},
        text_config={**TINY, **NO_DROPOUT, "num_multimodal_layers": 2, "max_position_embeddings": 40},
    )
    student = HEADS[head](config).double()
    teacher = MomentumTeacher(student, 0.9, 24).double()
    with torch.no_grad():  # a teacher that differs
        for weight in teacher.model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.02)
    own = PAIRS // accelerator.num_processes
    rows = torch.arange(PAIRS)[accelerator.process_index * own :][:own]
    parts = [cut({name: values[some] for name, values in pairs().items()}) for some in rows.chunk(batches)]
    if head == "retrieval":  # images 1 and 9, of two processes, are the same
        images = torch.arange(PAIRS) % 8 + 8 * (torch.arange(PAIRS) // 8) * (torch.arange(PAIRS) != 9)
        for part, some in zip(parts, rows.chunk(batches), strict=True):
            del part["mlm_input_ids"]
            part["labels"] = images[some]
    log = RunLog(accelerator, folder, total_steps=1, logging_steps=1)
    trainer = Trainer(accelerator, args, student, teacher, DataLoader(parts, batch_size=None), log, None)
    result = {"processes": accelerator.num_processes}
    optimizer_step = trainer._optimizer_step

    def record_and_step() -> bool:
        result["losses"] = accelerator.reduce(torch.stack(trainer.recorder.losses).mean(0), "mean")
        result["gradients"] = {name: weight.grad.clone() for name, weight in student.named_parameters()}
        return optimizer_step()

    trainer._optimizer_step = record_and_step
    step = trainer.gathered_keys_step if args.gather_keys else trainer.training_step
    done = []
    for part in parts:
        trainer.recorder.add_batch(part, issues=part.pop("issues"))
        done.append(step(part))
    assert done == [False] * (batches - 1) + [True]
    log.close()
    return result | {"queue": teacher.queue.state_dict()}


if __name__ == "__main__":
    losses_albef.multinomial = hardest
    target = Path(sys.argv[1])
    found = {name: one_step(target, *case) for name, case in CASES.items()}
    torch.save(found, target / f"process{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
