"""Pretrain from any image model and any BERT of transformers, in a loop of plain PyTorch.

    python examples/any_encoder.py facebook/dinov2-small google-bert/bert-base-uncased

trains all weights on scenes and saves model, processor and teacher in runs/any_encoder. With a DINOv2 of four layers
of random weights and all-MiniLM-L6-v2, which warns that the upper six layers of ALBEF are new, it printed

    step 1: ITC 2.787, ITM 0.663, MLM 10.523
    step 5: ITC 2.797, ITM 0.652, MLM 8.012
    step 10: ITC 2.798, ITM 0.634, MLM 7.867
    step 15: ITC 2.776, ITM 0.625, MLM 7.579
    step 20: ITC 2.770, ITM 0.630, MLM 7.129

In so few steps only MLM learns; a guess among 16 pairs has an ITC of 2.773, and ITM starts at its prior, 0.637.
`albef pretrain --vision_model ... --text_model ...` does the same with real data, augmentation, checkpoints and
several processes. docs/guides/encoders.md lists what was tried, and how to use a class of your own.
"""

import argparse

import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from albef_hf import AlbefForPreTraining, AlbefProcessor, MomentumTeacher
from albef_hf.data import Scenes, make_processor, mask_tokens


def collate(processor: AlbefProcessor, rows: list[dict]) -> dict[str, torch.Tensor]:
    """Return a batch with masked tokens, which student and teacher share."""
    texts = [row["caption"][0] for row in rows]
    batch = dict(processor(images=[row["image"] for row in rows], text=texts, return_tensors="pt"))
    batch["mlm_input_ids"], batch["labels"] = mask_tokens(batch["input_ids"], processor.tokenizer)
    return batch


def main() -> None:
    """Train a few steps on scenes, print the losses, and save the model."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("vision_model", help="folder or Hub name of an image model")
    parser.add_argument("text_model", help="folder or Hub name of a BERT, RoBERTa, XLM-R or CamemBERT")
    parser.add_argument("--steps", type=int, default=20, help="steps to train")
    parser.add_argument("--batch_size", type=int, default=16, help="pairs of a step")
    parser.add_argument("--output_dir", default="runs/any_encoder", help="folder of the model")
    options = parser.parse_args()

    torch.manual_seed(0)
    student = AlbefForPreTraining.from_vision_text_pretrained(options.vision_model, options.text_model).train()
    tokenizer = AutoTokenizer.from_pretrained(options.text_model)
    processor = make_processor(student.config, tokenizer, vision_model=options.vision_model)
    teacher = MomentumTeacher(student, queue_size=0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.02)
    loader = DataLoader(
        Scenes(options.steps * options.batch_size),
        batch_size=options.batch_size,
        collate_fn=lambda rows: collate(processor, rows),
    )
    for step, batch in enumerate(loader, start=1):
        targets = teacher(**batch)  # averaged weights, no gradient
        outputs = student(**batch, teacher_outputs=targets, alpha=0.4)  # ITC + ITM + MLM
        outputs.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        student.clamp_temperature()
        teacher.enqueue(targets.image_embeds, targets.text_embeds, targets.ids)
        teacher.update(student)
        if step % 5 == 0 or step in (1, options.steps):
            losses = (outputs.loss_itc, outputs.loss_itm, outputs.loss_mlm)
            print(f"step {step}: ITC {losses[0]:.3f}, ITM {losses[1]:.3f}, MLM {losses[2]:.3f}")

    for part in (student, processor, teacher):
        part.save_pretrained(options.output_dir)


if __name__ == "__main__":
    main()
