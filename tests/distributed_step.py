"""One pretraining step on every process, as the loop does it; launched by test_parity.py."""

import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from original import FIXTURES, ImposedNegatives, load, student_and_teacher
from test_parity import batch_of, mask_as


def main(folder: Path) -> None:
    """Write losses, gradients and queues of this rank."""
    golden = load("pretrain")
    expected = torch.load(FIXTURES / "dist2_pretrain_tiny.pt", weights_only=True)
    student, teacher = student_and_teacher(golden)  # each rank converts for itself, which it does while it is alone
    accelerator = Accelerator()
    rank = accelerator.process_index
    model = accelerator.prepare(student)
    teacher = accelerator.prepare_model(teacher, evaluation_mode=True)
    tape, inputs = expected["ranks"][rank]["tape"], expected["inputs"][rank]
    batch = batch_of(inputs, *mask_as(tape, inputs["input_ids"]))
    with pytest.MonkeyPatch.context() as monkeypatch:
        ImposedNegatives(tape, monkeypatch)
        targets = teacher(**batch)
        outputs = model(**batch, teacher_outputs=targets, alpha=expected["alpha"])
    accelerator.backward(outputs.loss)
    teacher.enqueue(*accelerator.gather((targets.image_embeds, targets.text_embeds)))
    result = {
        "processes": accelerator.num_processes,
        "losses": torch.stack([outputs[name].detach() for name in ("loss_mlm", "loss_itc", "loss_itm")]),
        "gradients": {name: weight.grad for name, weight in student.named_parameters()},
        "image_queue": teacher.queue.image_features,
        "text_queue": teacher.queue.text_features,
        "pointer": teacher.queue.pointer,
    }
    torch.save(result, folder / f"rank{rank}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
