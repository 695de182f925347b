"""Where everything computes that a study asks for."""

import torch


def device() -> torch.device:
    """The current CUDA device, or the CPU where there is none: one answer for trainings and explanations alike."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
