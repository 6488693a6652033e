"""Device state between two rows: detection of a lost device, release of memory."""

import gc

import torch


def loss_of(device: torch.device, culprit: str) -> str | None:
    """Return why the device is unusable, or None if it still computes.

    Some CUDA errors are sticky: every later call in the process fails as well.
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
    """Release unused memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def driver_name(device: torch.device) -> str:
    """Return the device's name for nvidia-smi, which may number devices differently than CUDA."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
