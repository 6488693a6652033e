"""The device between two rows: whether it is still there, and giving back what a row took."""

import gc

import torch


def loss_of(device: torch.device, culprit: str) -> str | None:
    """Return why nothing more can be measured, None where the device still computes.

    Some errors of CUDA stay with the process for good: whatever runs after them fails as well.
    """
    if device.type != "cuda":
        return None
    try:
        torch.cuda.synchronize(device)
        torch.ones(1, device=device).item()
    except RuntimeError as exc:
        return f"the device was lost to {culprit}: {exc}"
    return None


def release(device: torch.device) -> None:
    """Give memory back that nothing holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def driver_name(device: torch.device) -> str:
    """Return how the driver's tool knows the card, which may number its cards in another way."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
