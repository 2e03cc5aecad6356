"""Account of a pretraining step on a GPU that nobody has to have: operations, bytes, memory, and a ceiling of speed.

    python benchmarks/account.py
    python benchmarks/account.py --pairs 64 --precisions bf16 --operations 20

The package's own training step (teacher, student, losses, backward, AdamW, queue, average) runs on fake tensors, which
have a shape and no content, and every operation is recorded. A simple model of a GPU then turns the record into time.
Its assumptions are printed. It knows no caches, and every kernel of a kind is as efficient as the next: the result is
a ceiling to compare code with, not a measurement.
"""

import argparse
import contextlib
import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from pretraining_step import ALPHA, package_training
from sizes import QUEUES, SIZES, make_config
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from albef_hf import AlbefConfig
from albef_hf.data import PretrainingCollator, embedded_tokenizer
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.trainer import Trainer

WORDS = (6, 23)  # of a caption, from the shortest to the longest; [CLS] and [SEP] are added
VIEWS = {"_unsafe_view", "lift_fresh", "detach"}  # whose schema does not say so
NO_KERNEL = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "_local_scalar_dense"}
ROWS = {"embedding", "index", "index_select", "gather"}  # read as much as they write, not the whole input
ROW_UPDATES = {"index_copy_", "index_put_", "_index_put_impl_", "scatter_", "select_scatter"}


@dataclass
class Gpu:
    """What a GPU can do, from its maker's data sheet.

    Args:
        half: Operations per second in bfloat16, dense.
        single: Operations per second in float32, without TF32.
        bandwidth: Bytes per second.
    """

    half: float
    single: float
    bandwidth: float


GPUS = {"A100": Gpu(312e12, 19.5e12, 2.04e12), "H200": Gpu(989e12, 67e12, 4.8e12)}  # SXM, 80 and 141 GB
MATMUL_SHARE = 0.70  # of the peak that a large matrix product reaches
BANDWIDTH_SHARE = 0.85
KERNEL_SECONDS = 2.5e-6  # at least, on the device
DISPATCH_SECONDS = 7e-6  # of the host, for an operation in Python
BACKWARD_SECONDS = 5e-6  # the same in a backward pass, which is driven by C++
VIEW_SECONDS = 2e-6
WAIT_SECONDS = 10e-6  # until the host continues after the device is done


@dataclass
class Operation:
    """An operation of the step.

    Args:
        name: Its name in torch.
        kind: "kernel", "view" or "wait".
        flops: Floating-point operations of matrix products.
        moved: Bytes read and written.
        kernels: Launches; several for a list of tensors.
        half: Whether a matrix product is in half precision.
        backward: Whether autograd has called it.
    """

    name: str
    kind: str = "kernel"
    flops: float = 0.0
    moved: float = 0.0
    kernels: int = 1
    half: bool = False
    backward: bool = False

    def device_seconds(self, gpu: Gpu) -> float:
        """Return the time on the device: that of the slowest of launches, memory and arithmetic."""
        if self.kind != "kernel":
            return 0.0
        peak = MATMUL_SHARE * (gpu.half if self.half else gpu.single)
        return max(KERNEL_SECONDS * self.kernels, self.moved / (BANDWIDTH_SHARE * gpu.bandwidth), self.flops / peak)

    def host_seconds(self) -> float:
        """Return the time in which the host dispatches the operation."""
        if self.kind == "view":
            return VIEW_SECONDS
        return BACKWARD_SECONDS if self.backward else DISPATCH_SECONDS


def tensors_in(values: Any) -> list[torch.Tensor]:
    """Return the tensors of a nested structure."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def num_bytes(tensor: torch.Tensor) -> int:
    """Return the bytes that reading a tensor takes; what is only expanded is read once."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride else 1
    return elements * tensor.element_size()


class Account(TorchDispatchMode):
    """Record operations and memory.

    Args:
        masked: Number of tokens that boolean masks select, since fake tensors do not know it.
    """

    def __init__(self, masked: int):
        super().__init__()
        self.masked = masked
        self.operations: list[Operation] = []
        self.sizes: dict[int, int] = {}  # of live storages
        self.live = 0
        self.peak = 0
        self.in_backward = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # a question about a tensor
            return func(*args, **kwargs)
        with self:  # in inference mode, composite operations arrive in one piece
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        name = func._schema.name.removeprefix("aten::")
        if name in ("_local_scalar_dense", "nonzero"):
            return self._read(name, args[0])
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            args = (args[0], self._as_indices(args[1]), *args[2:])
        result = func(*args, **kwargs)
        self.keep(result)
        self._record(func, name, args, kwargs, result)
        return result

    def _read(self, name: str, tensor: torch.Tensor) -> Any:
        """Return a plausible value, or indices, which the host has to wait for."""
        self.operations.append(Operation(name, "wait"))
        if name == "nonzero":
            return self.keep(tensor.new_empty((self.masked, tensor.dim()), dtype=torch.long))
        if tensor.dtype == torch.bool:  # whether nothing is padded
            return False
        return 1.0 if tensor.dtype.is_floating_point else 1

    def _as_indices(self, indices: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """Replace boolean masks by as many indices as there are masked tokens."""
        result: list[torch.Tensor | None] = []
        for index in indices:
            if index is None or index.dtype != torch.bool:
                result.append(index)
                continue
            self.operations.append(Operation("mask", "wait"))
            result += [index.new_empty(self.masked, dtype=torch.long) for _ in range(index.dim())]
        return result

    def _record(self, func: Any, name: str, args: tuple, kwargs: dict, result: Any) -> None:
        if name in NO_KERNEL:
            return
        if name == "lift_fresh":  # a tensor of numbers from Python, which is uploaded
            self.operations.append(Operation(name, "wait"))
        returns = [value.alias_info for value in func._schema.returns]
        if name in VIEWS or any(alias is not None and not alias.is_write for alias in returns):
            self.operations.append(Operation(name, "view", backward=self.in_backward))
            return
        inputs = tensors_in((args, kwargs))
        flops = 0
        if func._overloadpacket in flop_registry:
            flops = flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
        self.add(
            name,
            flops=flops,
            moved=self._moved(func, name, args, kwargs, result),
            kernels=launches(name, args),
            half=bool(inputs) and inputs[0].element_size() == 2,
        )

    @staticmethod
    def _moved(func: Any, name: str, args: tuple, kwargs: dict, result: Any) -> int:
        outputs = tensors_in(result)
        if name in ROWS:
            return sum(2 * num_bytes(tensor) for tensor in outputs)
        if name in ROW_UPDATES:
            return 3 * num_bytes(tensors_in(args)[-1])
        given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        written = [argument.name for argument in func._schema.arguments if argument.is_write]
        changed = sum(num_bytes(tensor) for name in written for tensor in tensors_in(given.get(name)))
        moved = sum(num_bytes(tensor) for tensor in tensors_in((args, kwargs)))
        if written:  # read and written, unless all of it is replaced
            return moved if name in ("copy_", "fill_", "zero_") else moved + changed
        return moved + sum(num_bytes(tensor) for tensor in outputs)

    def add(self, name: str, **values: Any) -> None:
        """Record a kernel."""
        self.operations.append(Operation(name, backward=self.in_backward, **values))

    def keep(self, values: Any) -> Any:
        """Count the memory of tensors for as long as they live."""
        for tensor in tensors_in(values):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.sizes:
                self.sizes[key] = storage.nbytes()
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._forget, key)
        return values

    def _forget(self, key: int) -> None:
        self.live -= self.sizes.pop(key)


def launches(name: str, args: tuple) -> int:
    """Return how many kernels an operation starts; a kernel for a list of tensors takes so many blocks and tensors."""
    if not name.startswith(("_foreach", "_fused")):
        return 1
    elements = sum(tensor.numel() for tensor in args[0])
    return max(1, -(-elements // (65536 * 320)), -(-len(args[0]) // 40))


class _Attention(torch.autograd.Function):
    """Fused attention as on a GPU: it stores its output and a number for each row, and computes scores again."""

    @staticmethod
    def forward(
        ctx: Any,
        account: Account,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        batch, heads, length, width = query.shape
        output = account.keep(query.new_empty(batch, length, heads, width)).transpose(1, 2)
        rows = account.keep(query.new_empty(batch, heads, length, dtype=torch.float32))
        ctx.account = account
        ctx.save_for_backward(query, key, value, output, rows)
        ctx.flops = 4 * batch * heads * length * key.shape[2] * width
        moved = sum(num_bytes(part) for part in (query, key, value, output, *([] if mask is None else [mask])))
        account.add("attention", flops=ctx.flops, moved=moved, half=query.element_size() == 2)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple:
        query, key, value, output, _ = ctx.saved_tensors
        gradients = [ctx.account.keep(torch.empty_like(part)) for part in (query, key, value)]
        moved = sum(num_bytes(part) for part in (query, key, value, output, gradient, *gradients))
        half = query.element_size() == 2
        ctx.account.add("attention_backward", flops=2.5 * ctx.flops, moved=moved, kernels=2, half=half)
        return None, *gradients, None


def fused_dropout(states: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """Compute dropout by one kernel, as on a GPU."""
    return torch.native_dropout(states, p, training)[0] if training and p else states


@contextlib.contextmanager
def as_on_a_gpu(account: Account) -> Iterator[None]:
    """Let attention and dropout be one kernel each, layer norms run in float32 under autocast, and masks stay unread.

    Backward passes are recognized.
    """
    layer_norm = torch.nn.functional.layer_norm
    backward = torch.Tensor.backward

    def float32_layer_norm(states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return layer_norm(states.float() if torch.is_autocast_enabled("cpu") else states, *args, **kwargs)

    def attention(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: Any = None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        return _Attention.apply(account, query, key, value, attn_mask)

    def recognized_backward(*args: Any, **kwargs: Any) -> None:
        account.in_backward = True
        backward(*args, **kwargs)
        account.in_backward = False

    def copied(tensor: torch.Tensor, memo: dict[int, torch.Tensor]) -> torch.Tensor:
        if id(tensor) not in memo:
            new = torch.empty_like(tensor, requires_grad=False)
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            memo[id(tensor)] = torch.nn.Parameter(new, tensor.requires_grad) if is_parameter else new
        return memo[id(tensor)]

    def can_join(layer: torch.nn.Module, states: torch.Tensor) -> bool:
        return layer.weight.dtype != states.dtype

    functional = "torch.nn.functional."
    with (
        mock.patch(functional + "layer_norm", float32_layer_norm),
        mock.patch(functional + "dropout", fused_dropout),
        mock.patch(functional + "scaled_dot_product_attention", attention),
        mock.patch("torch.Tensor.backward", recognized_backward),
        mock.patch("torch.nn.utils.clip_grad._has_foreach_support", lambda *_: True),
        mock.patch("albef_hf.masks_albef._can_read", lambda mask: mask is None),
        # The package casts and joins only weights of the type Parameter, which those of fake tensors are not.
        mock.patch("albef_hf.shared_inputs_albef._can_join", can_join),
        mock.patch("albef_hf.training.weight_casts._is_cast", lambda part: type(part) is torch.nn.Linear),
        # Fake weights can be neither copied nor moved; they are where they have to be.
        mock.patch("torch.Tensor.__deepcopy__", copied),
        mock.patch("torch.nn.Module.to", lambda module, *args, **kwargs: module),
    ):
        yield


def make_batch(config: AlbefConfig, pairs: int) -> dict[str, torch.Tensor]:
    """Return what the collator makes of random captions, and images without content."""
    torch.manual_seed(0)
    counts = torch.randint(WORDS[0], WORDS[1] + 1, (pairs,))
    counts[0] = WORDS[1]
    samples = [
        {"caption": " ".join(["dog"] * int(count)), "pixel_values": torch.zeros(1), "issues": [], "seed": 0}
        for count in counts
    ]
    batch = PretrainingCollator(embedded_tokenizer())(samples)
    side = config.vision_config.image_size
    batch["pixel_values"] = torch.empty(pairs, 3, side, side, device="meta")
    return batch


def record(
    size: str, pairs: int, precision: str = "bf16", checkpointing: bool = False, queue_size: int | None = None
) -> Account:
    """Return the account of the second step of a training, when the optimizer has its states."""
    config = make_config(size)
    args = TrainingArguments(
        alpha=ALPHA,
        alpha_ramp_steps=0,
        per_device_train_batch_size=pairs,
        mixed_precision=precision,
        gradient_checkpointing=checkpointing,
    )
    batch = make_batch(config, pairs)
    batch.pop("issues")
    account = Account(int((batch["labels"] != -100).sum()))
    with FakeTensorMode(allow_non_fake_inputs=True), account, as_on_a_gpu(account):
        fake = {
            name: torch.empty(value.shape, dtype=value.dtype) if torch.is_tensor(value) else value
            for name, value in batch.items()
        }
        trainer, _ = package_training(config, queue_size or QUEUES[size], pairs, args, lambda *_: dict(fake))
        account.keep([*trainer.student.parameters(), *trainer.unwrapped_teacher.state_dict().values()])
        trainer.training_step(dict(fake))
        account.operations.clear()
        account.peak = account.live
        account.operations += uploads(trainer, fake)
        trainer.training_step(dict(fake))
    return account


def uploads(trainer: Trainer, batch: dict[str, torch.Tensor]) -> list[Operation]:
    """Return the waits for a batch to be copied to the device, one for each tensor unless copies do not block."""
    return [] if trainer.accelerator.non_blocking else [Operation("upload", "wait") for _ in batch]


def step_seconds(operations: list[Operation], gpu: Gpu) -> float:
    """Return the time of a step: the device follows the host, and in a wait the host follows the device."""
    host = device = 0.0
    for operation in operations:
        host += operation.host_seconds()
        device = max(host, device) + operation.device_seconds(gpu) if operation.kind == "kernel" else device
        if operation.kind == "wait":
            host = max(host, device) + WAIT_SECONDS
    return max(host, device)


def row(account: Account, pairs: int, precision: str, checkpointing: bool) -> str:
    """Return a line of the table."""
    operations = account.operations
    kinds = Counter()
    for operation in operations:
        kinds[operation.kind] += operation.kernels if operation.kind == "kernel" else 1
    flops = sum(operation.flops for operation in operations)
    moved = sum(operation.moved for operation in operations)
    host = sum(operation.host_seconds() for operation in operations)
    cells = [
        str(pairs),
        precision if precision == "bf16" else "float32",
        "yes" if checkpointing else "no",
        f"{flops / 1e12:.1f}",
        f"{kinds['kernel']:,}",
        f"{kinds['view']:,}",
        str(kinds["wait"]),
        f"{moved / 1e9:.0f}",
        f"{account.peak / 1e9:.1f}",
        f"{1000 * host:.0f}",
    ]
    for gpu in GPUS.values():
        seconds = step_seconds(operations, gpu)
        cells += [f"{1000 * seconds:.0f}", f"{pairs / seconds:,.0f}", f"{flops / seconds / gpu.half:.0%}"]
    return f"| {' | '.join(cells)} |"


def header() -> str:
    """Return the first two lines of the table."""
    names = [
        "pairs",
        "precision",
        "checkpointed",
        "TFLOP",
        "kernels",
        "views",
        "waits",
        "GB moved",
        "peak GB",
        "host ms",
    ]
    names += [f"{gpu} {unit}" for gpu in GPUS for unit in ("ms", "pairs/s", "of the peak")]
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


def assumptions(size: str) -> str:
    """Return what the times rest on."""
    gpus = "; ".join(
        f"{name}: {gpu.half / 1e12:.0f} TFLOP/s in bf16, {gpu.single / 1e12:.1f} in float32, "
        f"{gpu.bandwidth / 1e12:.2f} TB/s"
        for name, gpu in GPUS.items()
    )
    return (
        f"Assumptions: size {size}; captions of {WORDS[0]} to {WORDS[1]} words, padded; attention and dropout are "
        f"one kernel each; {gpus}; a matrix product reaches {MATMUL_SHARE:.0%} of the peak, "
        f"everything else {BANDWIDTH_SHARE:.0%} of the bandwidth, without caches; "
        f"a kernel takes at least {1e6 * KERNEL_SECONDS:.1f} us; the host takes "
        f"{1e6 * DISPATCH_SECONDS:.0f} us for an operation ({1e6 * BACKWARD_SECONDS:.0f} in a backward pass), "
        f"{1e6 * VIEW_SECONDS:.0f} for a view, and continues {1e6 * WAIT_SECONDS:.0f} us after what it waits for; "
        "float32 without TF32, and its share is of the bf16 peak. Memory is that of tensors, without the allocator's "
        "fragments and CUDA's context."
    )


def largest(account: Account, gpu: Gpu, count: int) -> str:
    """Return the operations that take longest on the device, as a table."""
    seconds: Counter[str] = Counter()
    kernels: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    for operation in account.operations:
        if operation.kind == "kernel":
            seconds[operation.name] += operation.device_seconds(gpu)
            kernels[operation.name] += operation.kernels
            moved[operation.name] += operation.moved
    lines = ["| operation | ms | kernels | GB moved |", "|---|---|---|---|"]
    for name, total in seconds.most_common(count):
        lines.append(f"| {name} | {1000 * total:.2f} | {kernels[name]:,} | {moved[name] / 1e9:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Print a row for each number of pairs, precision and use of checkpointing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base", help="base is the paper's")
    parser.add_argument("--pairs", type=int, nargs="+", default=[64, 128, 256, 512], help="pairs in a step")
    parser.add_argument("--precisions", nargs="+", choices=("bf16", "no"), default=["bf16", "no"], help="no: float32")
    parser.add_argument("--queue_size", type=int, help="pairs in the queue; by default 65,536 at the paper's size")
    parser.add_argument("--operations", type=int, default=0, metavar="N", help="list the N longest on the A100")
    options = parser.parse_args()
    print(assumptions(options.size), header(), sep="\n\n", flush=True)
    for precision in options.precisions:
        for checkpointing in (False, True):
            for pairs in options.pairs:
                account = record(options.size, pairs, precision, checkpointing, options.queue_size)
                print(row(account, pairs, precision, checkpointing), flush=True)
                if options.operations:
                    print("", largest(account, GPUS["A100"], options.operations), "", sep="\n")


if __name__ == "__main__":
    main()
