"""The momentum teacher: an exponential moving average of the student, and queues of the features it has computed.

Section 3.4 of the paper; `_momentum_update` and `_dequeue_and_enqueue` in the original's `models/model_pretrain.py`.
"""

import contextlib
import copy
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_model
from torch import nn
from torch.nn import functional as F
from torch.optim.sgd import sgd
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from .compatibility_albef import follow_umask
from .losses_albef import IGNORED
from .modeling_albef import AlbefForPreTraining, AlbefImageTextModel
from .outputs_albef import AlbefTeacherOutput
from .utils.files import listed, load_weights

MOMENTUM_FILE = "momentum.safetensors"
SHARED = "shared"  # metadata of the file: names of the weights that it leaves to the student's
RUNNING_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of batch norms


def _choose(is_finite: torch.Tensor | None, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Return the new values, or the old ones where a scalar on the device says that the step was not finite."""
    return new if is_finite is None else torch.where(is_finite, new, old)


class FeatureQueue(nn.Module):
    """A queue of the latest image and text features, more keys for the contrastive loss (MoCo, arXiv 1911.05722).

    It starts with random unit vectors, as in the original.

    Args:
        size: Number of pairs; 0 for no queue.
        dim: Width of a feature.

    Raises:
        ValueError: If the size is negative.
    """

    image_features: torch.Tensor
    text_features: torch.Tensor
    ids: torch.Tensor
    pointer: torch.Tensor

    def __init__(self, size: int, dim: int):
        super().__init__()
        if size < 0:
            raise ValueError(f"queue_size is {size}: pass the number of pairs to keep, or 0 for no queue.")
        self.register_buffer("image_features", F.normalize(torch.randn(size, dim), dim=-1))
        self.register_buffer("text_features", F.normalize(torch.randn(size, dim), dim=-1))
        self.register_buffer("ids", torch.full((size,), IGNORED))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def enqueue(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        ids: torch.Tensor | None = None,
        is_finite: torch.Tensor | None = None,
    ) -> None:
        """Replace the oldest pairs by any number of new ones; the queue is a ring buffer.

        Args:
            image_features: (batch, dim).
            text_features: (batch, dim).
            ids: Id of the image of each pair, (batch,); without ids, a pair is a positive of itself only.
            is_finite: If this scalar is false, nothing changes. The host does not read it, and so does not wait.
        """
        size = len(self.image_features)
        if size == 0:
            return
        if ids is None:
            ids = self.ids.new_full((len(image_features),), IGNORED)
        rows = (self.pointer + torch.arange(min(len(ids), size), device=self.pointer.device)) % size
        queues = (self.image_features, self.text_features, self.ids)
        for queue, keys in zip(queues, (image_features, text_features, ids), strict=True):
            queue.index_copy_(0, rows, _choose(is_finite, keys[-size:].to(queue.dtype), queue[rows]))
        self.pointer.copy_(_choose(is_finite, (self.pointer + len(rows)) % size, self.pointer))


def _unwrap(student: nn.Module) -> PreTrainedModel:
    """Return the head inside wrappers such as `torch.compile`, `DistributedDataParallel` and PEFT."""
    for module in student.modules():  # from the outermost to the innermost
        if isinstance(module, PreTrainedModel):
            if hasattr(module, "get_teacher_outputs"):
                return module
            break
    raise ValueError(
        f"{type(student).__name__} has no get_teacher_outputs: pass a model with a head, such as AlbefForPreTraining."
    )


class MomentumTeacher(nn.Module):
    """An exponential moving average of a student: soft targets, and queues for the contrastive loss.

    As in the original, the teacher is in training mode with dropout, like the student; `teacher.eval()` changes that.
    Call it with the student's batch, and call `enqueue` and `update` after every optimizer step.

    Weights of the student without `requires_grad` are shared instead of copied, and are not saved: freeze them before
    the teacher is made. Under autocast, call `keep_low_precision` to cast weights once per update instead of per call.

    Args:
        student: A model with `get_teacher_outputs`, also inside `torch.compile`, `DistributedDataParallel` or PEFT. It
            is copied to float32: in bfloat16 an average with momentum 0.995 would never change. Shared weights have
            to be in float32 already; others are copied, too.
        momentum: Weight of the teacher in an update; 0.995 in the paper.
        queue_size: Pairs in the queue; 65,536 in the paper. A head without a contrastive loss has no queue.

    Example:
        ```python
        teacher = MomentumTeacher(student)
        targets = teacher(**batch)
        loss = student(**batch, teacher_outputs=targets, alpha=0.4).loss
        loss.backward()
        optimizer.step()
        student.clamp_temperature()
        teacher.enqueue(targets.image_embeds, targets.text_embeds, targets.ids)
        teacher.update(student)
        ```
    """

    model: PreTrainedModel
    queue: FeatureQueue
    low_precision_model: PreTrainedModel | None  # computes under autocast; is not saved

    def __init__(self, student: PreTrainedModel, momentum: float = 0.995, queue_size: int = 65536):
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum is {momentum}: it must be between 0 and 1; the paper's is 0.995.")
        self.momentum = momentum
        student = _unwrap(student)
        dtype = torch.promote_types(student.dtype, torch.float32)
        self.shared = [weight for weight in student.parameters() if not weight.requires_grad and weight.dtype == dtype]
        self.model = copy.deepcopy(student, {id(weight): weight for weight in self.shared}).to(dtype)
        self.model.requires_grad_(False).train()
        self._statistics = [name for name, _ in self.model.named_buffers() if name.endswith(RUNNING_STATISTICS)]
        if not isinstance(student, AlbefImageTextModel):
            queue_size = min(queue_size, 0)  # a negative one is still refused
        self.queue = FeatureQueue(queue_size, student.config.projection_dim).to(self.model.dtype)
        self.low_precision_model = None
        self._low_precision_weights: list[tuple[torch.Tensor, torch.Tensor]] = []  # each with the one it is cast from

    def keep_low_precision(self, dtype: torch.dtype) -> None:
        """Keep the weights of linear layers in the data type of autocast, too, for `forward` under autocast.

        Autocast would cast all of them in every call, to the same numbers. This takes 2 bytes for each weight. Call it
        when no more weights are added or replaced; only `update` and `load_state_dict` renew the copy.

        Args:
            dtype: What autocast computes in, such as `torch.bfloat16`.
        """
        own = [*self.model.parameters(), *self.model.buffers()]
        self.low_precision_model = copy.deepcopy(self.model, {id(tensor): tensor for tensor in own})
        self._low_precision_weights = []
        for layer in self.low_precision_model.modules():
            if type(layer) is nn.Linear and layer.weight.dtype == torch.float32:
                for name, weight in list(layer.named_parameters()):
                    low = nn.Parameter(weight.to(dtype), requires_grad=False)
                    setattr(layer, name, low)
                    self._low_precision_weights.append((low, weight))

    def drop_low_precision(self) -> None:
        """Forget the weights in the data type of autocast."""
        self.low_precision_model = None
        self._low_precision_weights = []

    def _model_for_autocast(self) -> PreTrainedModel:
        """Return the model whose linear layers have the data type of autocast, where there is one."""
        device = self.queue.pointer.device.type
        if self._low_precision_weights and torch.is_autocast_enabled(device):
            weight, _ = self._low_precision_weights[0]
            if weight.dtype == torch.get_autocast_dtype(device):
                return cast(PreTrainedModel, self.low_precision_model)
        return self.model

    @torch.no_grad()
    def _cast_weights(self) -> None:
        """Write the low-precision weights anew, after the weights have changed."""
        if self._low_precision_weights:
            casts, weights = zip(*self._low_precision_weights, strict=True)
            torch._foreach_copy_(casts, weights)

    @torch.no_grad()
    def forward(self, *, alpha: float | None = None, **batch: torch.Tensor) -> AlbefTeacherOutput:
        """Compute the teacher's targets for a batch, with the current queues.

        Args:
            alpha: Weight of the targets in the student's losses. With 0, the logits of masked tokens have no effect
                and are not computed, unless the teacher's dropout is active: without its random numbers, the student
                would get others.
            batch: What the student's `forward` takes.
        """
        if not self.training and alpha == 0 and isinstance(self.model, AlbefForPreTraining):
            batch.pop("labels", None)
        # Compiled code has no use for inference mode, and AOTAutograd does not trace weights from outside of it.
        with contextlib.nullcontext() if torch.compiler.is_compiling() else torch.inference_mode():
            outputs = self._model_for_autocast().get_teacher_outputs(**batch)
        for name in {"image_embeds", "text_embeds"} & outputs.keys():
            outputs[name] = outputs[name].clone()  # not an inference tensor, which autograd cannot use
        outputs.image_queue = self.queue.image_features
        outputs.text_queue = self.queue.text_features
        outputs.queue_ids = self.queue.ids
        return outputs

    @torch.no_grad()
    def enqueue(
        self,
        image_features: torch.Tensor,
        text_features: torch.Tensor,
        ids: torch.Tensor | None = None,
        is_finite: torch.Tensor | None = None,
    ) -> None:
        """Add (batch, projection) features of all processes to the queues; see `FeatureQueue.enqueue`."""
        self.queue.enqueue(image_features, text_features, ids, is_finite)

    @torch.no_grad()
    def update(self, student: nn.Module, is_finite: torch.Tensor | None = None) -> None:
        """Update the average: teacher = momentum * teacher + (1 - momentum) * student (section 3.4).

        Shared weights are the student's already. Running statistics of batch norms are copied, as they are averages.

        Args:
            student: The student.
            is_finite: If this scalar is false, nothing changes. The host does not read that of a CUDA GPU, and so does
                not wait.
        """
        student = _unwrap(student)
        pairs = zip(self.model.parameters(), student.parameters(), strict=True)
        pairs = [(average, weight.to(average.dtype)) for average, weight in pairs if average is not weight]
        averages = [average for average, _ in pairs]
        weights = [weight for _, weight in pairs]
        if is_finite is not None and averages and device_decides(averages, weights):
            lerp_if(is_finite, averages, weights, 1 - self.momentum)
        elif is_finite is None or is_finite:
            torch._foreach_lerp_(averages, weights, 1 - self.momentum)
        self._cast_weights()
        for name in self._statistics:
            buffer = self.model.get_buffer(name)
            buffer.copy_(_choose(is_finite, student.get_buffer(name), buffer))

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return weights and queues, without what is shared with the student and without low-precision weights."""
        left_out = self._shared_names() | self._low_precision_names()
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name not in left_out}

    def load_state_dict(self, state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load what `state_dict` returned; shared weights stay the student's."""
        weights = super().state_dict()
        present = {name: weights[name] for name in self._shared_names() | self._low_precision_names()}
        result = super().load_state_dict({**state_dict, **present}, *args, **kwargs)
        self._cast_weights()
        return result

    def _shared_names(self) -> set[str]:
        shared = {id(weight) for weight in self.shared}
        names = {name for name, weight in self.named_parameters(remove_duplicate=False) if id(weight) in shared}
        return names - self._low_precision_names()

    def _low_precision_names(self) -> set[str]:
        return {name for name in super().state_dict() if name.startswith("low_precision_model.")}

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write weights, queues and pointer to `momentum.safetensors`, beside the student's `model.safetensors`.

        Weights that are shared with the student are not written; the file lists their names.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        names = self._shared_names()
        shared = {SHARED: "\n".join(sorted(names))} if names else {}
        save_model(self, str(Path(folder) / MOMENTUM_FILE), metadata={"format": "pt", **shared})
        follow_umask([Path(folder) / MOMENTUM_FILE])

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike, student: PreTrainedModel, momentum: float = 0.995, queue_size: int = 65536
    ) -> "MomentumTeacher":
        """Load `momentum.safetensors` of a folder or Hub repository.

        The student may have another head than the saved one. As in the original's fine-tuning, the teacher's encoders
        then come from the file, converted as `from_pretrained` converts the student's, and so do the queues if the
        student has a contrastive loss. Heads that are not in the file are copied from the student, and so are weights
        that the student does not train or that the file was saved without.

        Args:
            name: Folder or Hub repository with the file, which `save_pretrained` or the converter wrote.
            student: The student from the same folder or repository.
            momentum: As in the constructor.
            queue_size: As in the constructor, for a file without queues; saved queues keep their size.

        Raises:
            ValueError: If the file is for another architecture, or is damaged.
        """
        path = cached_file(str(name), MOMENTUM_FILE)
        weights = load_weights(path)
        if not weights:
            raise ValueError(f"{path} has no weights: create a new teacher with MomentumTeacher(student).")
        queue = {key.removeprefix("queue."): weights.pop(key) for key in list(weights) if key.startswith("queue.")}
        weights = {key.removeprefix("model."): weight for key, weight in weights.items()}
        shared = {key.removeprefix("model.") for key in shared_names(path)}
        rows = len(queue.get("image_features", ()))
        student = _unwrap(student)
        if getattr(student.config, "lora_config", None):
            raise ValueError(
                f"The student has LoRA adapters, but {path} was saved without: pass the student with its adapters "
                "merged, albef_hf.training.lora.merge_lora(student)."
            )
        teacher = cls(student, momentum, rows or queue_size)
        try:
            if weights:  # a converted checkpoint may have queues without a momentum model
                teacher._load(student, weights, shared)
            if rows and isinstance(student, AlbefImageTextModel):
                teacher.queue.load_state_dict(queue)
        except RuntimeError as error:
            raise ValueError(
                f"{path} does not fit the student: {error}. Pass the student that was saved with it, or create a new "
                "teacher with MomentumTeacher(student)."
            ) from error
        return teacher

    def _load(self, student: PreTrainedModel, weights: dict[str, torch.Tensor], shared: set[str]) -> None:
        """Load the weights of a teacher; heads that are not among them stay copies of the student's.

        Args:
            student: The student.
            weights: Weights of the file.
            shared: Names of the weights that the file was saved without.
        """
        shared = shared | {name.removeprefix("model.") for name in self._shared_names()}
        own = {key: weight for key, weight in student.state_dict().items() if key in shared}
        own = {key: weight for key, weight in own.items() if key.startswith("albef.")}  # heads may be tied to them
        weights = {key: weight for key, weight in weights.items() if key not in shared} | own
        copies = [f"{name}." for part in student.modules() for name in getattr(part, "_copied_modules", ())]
        elsewhere = ("albef.", *copies, *student.all_tied_weights_keys)
        head = {key: weight for key, weight in student.state_dict().items() if not key.startswith(elsewhere)}
        adapted, report = type(student).from_pretrained(
            None,
            config=student.config,
            state_dict={**head, **weights},
            dtype=self.model.dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # to list them in the report instead
        )
        # A head for one image has no layers for a second one.
        unexpected = {name for name in report["unexpected_keys"] if ".second_layers." not in name}
        missing, unknown = _incomplete_heads(head, weights.keys(), student.state_dict().keys())
        wrong = {
            "of another shape": sorted(mismatches(report)),
            "missing": sorted(report["missing_keys"] | missing),
            "unexpected": sorted(unexpected | unknown),
        }
        if any(wrong.values()):
            raise RuntimeError("; ".join(f"{what}: {listed(names)}" for what, names in wrong.items() if names))
        self.model.load_state_dict(adapted.state_dict())


def device_decides(averages: list[torch.Tensor], weights: list[torch.Tensor]) -> bool:
    """Return whether `lerp_if` can be used: other devices ignore its condition, and it needs equal memory layouts."""
    layouts = zip(averages, weights, strict=True)
    return averages[0].is_cuda and all(average.stride() == weight.stride() for average, weight in layouts)


def lerp_if(condition: torch.Tensor, averages: list[torch.Tensor], weights: list[torch.Tensor], share: float) -> None:
    """Move averages towards weights by a share of the distance if a scalar on the device is true.

    No interpolation of torch takes a condition, but SGD with a fused kernel does: with the weights as gradient to
    maximize, and a weight decay of 1, it subtracts share * (average - weight).
    """
    sgd(
        averages,
        weights,
        [None] * len(averages),
        fused=True,
        found_inf=(~condition).float(),
        weight_decay=1.0,
        momentum=0.0,
        lr=share,
        dampening=0.0,
        nesterov=False,
        maximize=True,
    )


def shared_names(path: str | os.PathLike) -> set[str]:
    """Return the names of the weights that a `momentum.safetensors` was saved without: they are the student's."""
    with safe_open(path, "pt") as file:
        names = (file.metadata() or {}).get(SHARED)
    return set(names.split("\n")) if names else set()


def mismatches(report: dict[str, Any]) -> list[str]:
    """Return the mismatched weights of a loading report, each with its shape and the expected one."""
    return [f"{name} ({tuple(there)} instead of {tuple(here)})" for name, there, here in report["mismatched_keys"]]


def _incomplete_heads(head: Iterable[str], given: Iterable[str], known: Iterable[str]) -> tuple[set[str], set[str]]:
    """Return the missing and the unknown weights in the modules of a head that a file has.

    Args:
        head: Names of the head's weights.
        given: Names in the file. The original's momentum model has no temperature.
        known: Names of all weights of the student.
    """
    modules = {key.split(".")[0] for key in head}
    there = {key for key in given if key.split(".")[0] in modules}
    begun = {key.split(".")[0] for key in there}
    wanted = {key for key in head if key.split(".")[0] in begun and key != "contrastive_head.temperature"}
    return wanted - there, there - set(known)


__all__ = ["FeatureQueue", "MomentumTeacher"]
