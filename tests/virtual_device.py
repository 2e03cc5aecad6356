"""A GPU for machines without one: CPU tensors that remember the device that they would be on.

The CPU computes everything, so values, gradients and shapes are right. An operation on tensors of two devices raises,
as it does on a GPU. Whatever makes the host wait for the device is recorded with the line of the package that does it:
reading a value, a shape that depends on values, a blocking copy.

What it cannot show: kernels, their precision and memory. Autocast is that of the CPU, which converts fewer operations
than a GPU's. Operations within an operation of torch are invisible, and a copy with `non_blocking` counts as free of
waits, also from memory that is not pinned. `torch.compile` is not supported.

    with VirtualDevice() as device:
        model.to(GPU)
        model(**batch)
    assert not device.waits, device.report()
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

import albef_hf

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
PACKAGE = Path(albef_hf.__file__).parent
LIBRARIES = ("transformers", "accelerate")

aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}  # from one device to another
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
READS = {  # their result, or its shape, is read by the host
    aten._local_scalar_dense.default,
    aten.bincount.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.multinomial.default,  # in releases before torch 2.13, to check the probabilities
    aten.nonzero.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
    aten._unique2.default,
}

NUMBERS = {  # read a tensor of one element
    torch.Tensor.__bool__,
    torch.Tensor.__float__,
    torch.Tensor.__index__,
    torch.Tensor.__int__,
    torch.Tensor.item,
}


def device_of(tensor: torch.Tensor) -> torch.device:
    """Return the device that a tensor would be on."""
    with torch._C.DisableTorchFunction():
        if tensor.device.type == "meta":
            return tensor.device
        return getattr(tensor.untyped_storage(), "virtual_device", CPU)


def place(tensor: torch.Tensor, device: torch.device) -> None:
    """Let the storage of a tensor be on a device."""
    with torch._C.DisableTorchFunction():
        if tensor.device.type != "meta":
            tensor.untyped_storage().virtual_device = device


def tensors_in(values: Any) -> list[torch.Tensor]:
    """Return the tensors of a nested structure."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def calling_line() -> str:
    """Return the innermost line of the package that is running, and the line of a library that it has called."""
    library = ""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            return f"{path.relative_to(PACKAGE)}:{frame.f_lineno} {frame.f_code.co_name}{library}"
        if not library and set(LIBRARIES) & set(path.parts):
            library = f" <- {path.name}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return f"outside the package{library}"


class VirtualDevice(contextlib.ExitStack):
    """While this context is entered, `cuda:0` can be used, and what happens there is recorded.

    Attributes:
        waits: How often a line made the host wait, by kind (read, shape, upload, download, event) and line.
        operations: How often each operation ran on the device.
        doubles: Lines with a float64 result on the device, which MPS does not have and other GPUs are slow at.
    """

    current: "VirtualDevice | None" = None  # the one that is entered

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.operations: Counter[str] = Counter()
        self.doubles: Counter[str] = Counter()
        self.default = CPU  # of tensors that are made of nothing

    def __enter__(self) -> "VirtualDevice":
        autocast = torch.autocast.__init__
        is_enabled, autocast_dtype = torch.is_autocast_enabled, torch.get_autocast_dtype

        def cpu_autocast(mode: torch.autocast, device_type: str, *args: Any, **kwargs: Any) -> None:
            autocast(mode, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

        self.enter_context(mock.patch.object(VirtualDevice, "current", self))
        self.enter_context(mock.patch.dict("os.environ", ACCELERATE_TORCH_DEVICE=str(GPU)))
        for target, replacement in (
            ("torch.autocast.__init__", cpu_autocast),
            ("torch.is_autocast_enabled", lambda kind="cpu": is_enabled("cpu" if kind == "cuda" else kind)),
            ("torch.get_autocast_dtype", lambda kind: autocast_dtype("cpu" if kind == "cuda" else kind)),
            ("torch.cuda.device", lambda device: contextlib.nullcontext()),
            ("torch.cuda.get_device_name", lambda device=None: "NVIDIA A100-SXM4-80GB"),
            ("torch.cuda.get_device_capability", lambda device=None: (8, 0)),
            ("torch.cuda.get_rng_state", lambda device=None: torch.get_rng_state()),
            ("torch.cuda.set_rng_state", lambda state, device=None: None),
            ("torch.nn.utils.clip_grad._group_tensors_by_device_and_dtype", group_by_device),
            ("torch.optim.optimizer._group_tensors_by_device_and_dtype", group_by_device),
            ("torch.Event", lambda device: _Event(self)),
        ):
            self.enter_context(mock.patch(target, replacement))
        self.enter_context(_Operations(self))
        self.enter_context(_Functions(self))
        return self

    @contextlib.contextmanager
    def creating_on(self, device: torch.device) -> Iterator[None]:
        """Place tensors that are made of nothing on a device."""
        before = self.default
        self.default = device
        try:
            yield
        finally:
            self.default = before

    def wait(self, kind: str) -> None:
        """Record that the host waits."""
        self.waits[kind, calling_line()] += 1

    def report(self) -> str:
        """Return the waits as lines, the most frequent ones first."""
        return "\n".join(f"{count:4d} {kind:8s} {line}" for (kind, line), count in self.waits.most_common())


def group_by_device(tensors: list[list[torch.Tensor]], with_indices: bool = False) -> dict:
    """Return what torch's function of that name does for tensors of one device and type; it knows no virtual one."""
    first = tensors[0][0]
    return {(device_of(first), first.dtype): (tensors, list(range(len(tensors[0]))))}


class _Operations(TorchDispatchMode):
    """Checks and records each operation, also those of a backward pass."""

    def __init__(self, device: VirtualDevice):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        inputs = tensors_in((args, kwargs))
        on_device = [device_of(tensor) == GPU for tensor in inputs]
        if any(on_device):
            self._check(func, args, kwargs, inputs, on_device)
        result = func(*args, **kwargs)
        home = GPU if any(on_device) else self.device.default
        for tensor in tensors_in(result):
            if tensor.device.type != "meta" and not hasattr(tensor.untyped_storage(), "virtual_device"):
                place(tensor, home)
            if tensor.dtype == torch.float64 and device_of(tensor) == GPU:
                self.device.doubles[calling_line()] += 1
        return result

    def _check(self, func: Any, args: tuple, kwargs: dict, inputs: list[torch.Tensor], on_device: list[bool]) -> None:
        """Refuse what a GPU refuses, and record what it waits for."""
        device = self.device
        device.operations[str(func)] += 1
        strangers = [tensor for tensor, here in zip(inputs, on_device, strict=True) if not here and tensor.dim() > 0]
        if func in INDEXED and on_device[0]:
            indices = [index for index in args[1] if index is not None]
            if any(index is stranger for index in indices for stranger in strangers):
                device.wait("upload")  # of indices, which CUDA accepts from the host
            if any(index.dtype in (torch.bool, torch.uint8) and device_of(index) == GPU for index in indices):
                device.wait("shape")
            strangers = [tensor for tensor in strangers if not any(tensor is index for index in indices)]
        if strangers and func not in COPIES:
            shapes = [(tuple(tensor.shape), str(device_of(tensor))) for tensor in inputs]
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {func} got {shapes} at {calling_line()}"
            )
        unknown_size = func is aten.repeat_interleave.Tensor and len(args) == 1 and not kwargs.get("output_size")
        if (func in READS or unknown_size) and on_device[0]:
            device.wait("read")
        if func is aten.copy_.default and on_device[0] != on_device[1]:
            blocking = not (kwargs.get("non_blocking") or len(args) > 2 and args[2])
            if blocking:
                device.wait("upload" if on_device[0] else "download")


class _Event:
    """An event of a stream, which the host waits for."""

    def __init__(self, device: VirtualDevice):
        self.device = device

    def record(self) -> None:
        """Begin."""

    def synchronize(self) -> None:
        """Wait."""
        self.device.wait("event")


class _Functions(TorchFunctionMode):
    """Replaces what asks for a tensor's device, moves a tensor, or creates one on a device."""

    def __init__(self, device: VirtualDevice):
        super().__init__()
        self.device = device
        self.replacements = {
            torch.Tensor.device.__get__: device_of,
            torch.Tensor.is_cuda.__get__: lambda tensor: device_of(tensor) == GPU,
            torch.Tensor.is_cpu.__get__: lambda tensor: device_of(tensor) == CPU,
            torch.Tensor.pin_memory: lambda tensor, *_: tensor,
            torch.Tensor.to: self._to,
            torch.Tensor.cpu: lambda tensor, **_: self._move(tensor, CPU, blocking=True),
            torch.Tensor.cuda: lambda tensor, device=None, non_blocking=False: self._move(
                tensor, GPU, blocking=not non_blocking
            ),
        }

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in self.replacements:
            return self.replacements[func](*args, **kwargs)
        first = args[0] if args else None
        if isinstance(first, torch.Tensor) and device_of(first) == GPU:
            if func in (torch.Tensor.numpy, torch.Tensor.__array__):
                raise TypeError(f"can't convert cuda:0 device type tensor to numpy, at {calling_line()}")
            if func is torch.Tensor.tolist:  # reads memory without any operation
                self.device.wait("read")
                with torch._C.DisableTorchFunction(), _disable_current_modes():
                    return func(*args, **kwargs)
            if func is torch.Tensor.new_tensor:
                self.device.wait("upload")
            if func in NUMBERS and torch.is_inference_mode_enabled():  # where no operation is seen
                self.device.wait("read")
            if not isinstance(func, FunctionType):  # what C++ makes of nothing, such as a causal mask, is there, too
                with self.device.creating_on(GPU):
                    return self._call(func, args, kwargs)
        return self._call(func, args, kwargs)

    def _call(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """Call a function, which may take a device."""
        if kwargs.get("device") is None:
            return func(*args, **kwargs)
        device = torch.device(kwargs.pop("device"))
        if device.type == "meta":
            return func(*args, device=device, **kwargs)
        device = GPU if device.type == "cuda" else device
        with self.device.creating_on(device):
            result = func(*args, device=CPU, **kwargs)
        copies = func in (torch.tensor, torch.as_tensor, torch.asarray)
        if copies and device == GPU and not any(device_of(tensor) == GPU for tensor in tensors_in(args[:1])):
            self.device.wait("upload")
        for tensor in tensors_in(result):
            place(tensor, device)
        return result

    def _to(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        others = tensors_in((args, kwargs))
        if others:  # `tensor.to(other)`
            device, dtype, non_blocking, memory_format = device_of(others[0]), others[0].dtype, False, None
            copy = False
        else:
            copy = kwargs.pop("copy", False)
            device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        device = device_of(tensor) if device is None else device
        if device.type == "meta":
            return tensor.to(device)
        settings: dict[str, Any] = {"copy": copy}
        if dtype is not None:
            settings["dtype"] = dtype
        if memory_format is not None:
            settings["memory_format"] = memory_format
        if len(settings) > 1 or copy:
            with torch._C.DisableTorchFunction():
                converted = tensor.to(**settings)
        else:
            converted = tensor
        return self._move(converted, GPU if device.type == "cuda" else device, blocking=not non_blocking)

    def _move(self, tensor: torch.Tensor, device: torch.device, blocking: bool) -> torch.Tensor:
        if device_of(tensor) == device:
            return tensor
        if blocking:
            self.device.wait("upload" if device == GPU else "download")
        moved = tensor.clone()
        place(moved, device)
        return moved
