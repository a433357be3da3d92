"""Where this hospital computes features and gradients: on the CPU, or on a GPU.

**The guarantee is the same.** A GPU computes each record's gradient and nothing else that privacy rests on. Every
gradient is copied to the CPU as an explicit row of float32. There the same code as without a GPU measures the row's
norm, clips, adds up, adds noise and encodes (``client/training.py``). What is bounded is the row that arrived, whatever
was computed; so neither TF32, nor another order of summation, nor an unreliable GPU can weaken the bound.

Sampling, noise and masks never leave the CPU.
"""

import torch

from common.errors import ConfigError

CPU = torch.device("cpu")

AUTO = "auto"

_SHARE_FOR_ROWS = 4
"""A piece's rows may take a quarter of what is free, for they are there twice and activations need the rest."""

_FLOAT_BYTES = 4


def choose(setting: str) -> torch.device:
    """Return the device that ``hospital.device`` names.

    Args:
        setting: ``auto`` (the first GPU, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: a GPU is asked for and PyTorch finds none, or has none of that number.
    """
    if setting == "cpu" or (setting == AUTO and not torch.cuda.is_available()):
        return CPU
    if not torch.cuda.is_available():
        raise ConfigError(
            f"hospital.device is {setting}, and PyTorch finds no GPU on this machine; install its driver and PyTorch's "
            "CUDA build, or set it to auto or cpu"
        )
    number = int(setting.partition(":")[2] or 0) if setting != AUTO else 0
    there = torch.cuda.device_count()
    if number >= there:
        raise ConfigError(f"hospital.device is {setting}, and this machine has the GPUs 0 to {there - 1}; choose one")
    # The features and results of a run should not change with what a GPU finds fastest at the moment.
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device("cuda", number)


def is_cpu(device: torch.device) -> bool:
    """Say whether gradients are computed where they are clipped."""
    return device.type == CPU.type


def rows_that_fit(device: torch.device, parameters: int, most: int) -> int:
    """Return how many records' gradients to hold on a device as rows, at least one and at most ``most``."""
    if device.type != "cuda":
        return most
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(most, free // (_SHARE_FOR_ROWS * _FLOAT_BYTES * parameters)))
