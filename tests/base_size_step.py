"""One pretraining step at base size: prints parameters, whether all is finite, and the peak memory in gigabytes."""

import resource

import torch

from albef_hf import AlbefConfig, AlbefForPreTraining, MomentumTeacher
from albef_hf.training.optimization import parameter_groups

torch.manual_seed(0)
student = AlbefForPreTraining(AlbefConfig()).train()
teacher = MomentumTeacher(student)
optimizer = torch.optim.AdamW(parameter_groups(student, 0.02), lr=1e-4, fused=True)
input_ids = torch.randint(1000, 30000, (4, 25))
input_ids[:, 0] = 101
labels = torch.where(torch.rand(4, 25) < 0.15, input_ids, -100)
labels[:, 1] = input_ids[:, 1]
batch = {
    "input_ids": input_ids,
    "attention_mask": torch.ones_like(input_ids),
    "mlm_input_ids": input_ids.masked_fill(labels != -100, 103),
    "labels": labels,
    "pixel_values": torch.randn(4, 3, 256, 256),
}
targets = teacher(**batch)
loss = student(**batch, teacher_outputs=targets, alpha=0.4).loss
loss.backward()
optimizer.step()
student.clamp_temperature()
teacher.enqueue(targets.image_embeds, targets.text_embeds)
teacher.update(student)

weights = [*student.parameters(), *teacher.parameters(), loss]
finite = all(bool(torch.isfinite(weight).all()) for weight in weights)
kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(sum(weight.numel() for weight in student.parameters()), finite, round(kilobytes / 2**20, 2))
