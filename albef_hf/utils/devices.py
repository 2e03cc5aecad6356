"""Precisions that a type of device has, and is used in unless an option says otherwise."""

import torch


def accelerator_type() -> str:
    """Return the type of this machine's accelerator, or "cpu"."""
    device = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if device is None else device.type


def has_bf16(kind: str) -> bool:
    """Return whether an accelerator computes in bfloat16; False where torch cannot tell (MPS), and on a CPU."""
    module = {"cuda": torch.cuda, "xpu": torch.xpu}.get(kind)
    return module is not None and module.is_bf16_supported(including_emulation=False)


def default_dtype(device: str | None) -> str:
    """Return the dtype of weights for a device, such as cuda:0, or for the accelerator of this machine."""
    return "bfloat16" if has_bf16(torch.device(device).type if device else accelerator_type()) else "float32"
