"""The optimisers of Appendix A on stacked parameters."""

import torch

from repro.training.dfg_settings import DFGSettings
from repro.training.replicas import ReplicaNetwork


def adam(network: ReplicaNetwork, lr: float, device: torch.device) -> torch.optim.Optimizer:
    """Adam(β₁ = 0.5, β₂ = 0.9) on all replicas; capturable in a CUDA graph."""
    return torch.optim.Adam(network.trainable, lr=lr, betas=(0.5, 0.9), capturable=device.type == "cuda")


def network_optimiser(settings: DFGSettings, network: ReplicaNetwork, device: torch.device) -> torch.optim.Optimizer:
    """The optimiser of E or C: Adam for LeNet-5 and VGG-16, SGD with momentum 0.9 for ResNet-50."""
    if settings.network_optimiser == "adam":
        return adam(network, settings.network_lr, device)
    return torch.optim.SGD(network.trainable, lr=settings.network_lr, momentum=0.9)


def drop_learning_rate(settings: DFGSettings, step: int, *optimisers: torch.optim.Optimizer) -> bool:
    """Divide the learning rates by 10 at `settings.network_lr_drop`; True if that happened now."""
    if step != settings.network_lr_drop:
        return False
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] /= 10
    return True
