"""Parameter groups and schedule shared by the WSOL methods (DANet, ACoL, EGA's release)."""

import torch
from torch import nn

from repro.training.settings import TrainingSettings


def sgd(network: nn.Module, head: list[nn.Module], settings: TrainingSettings) -> torch.optim.SGD:
    """SGD with four groups: backbone and head, weights and biases; each remembers its `base_lr`.

    A parameter is a bias if its name ends so, batch-norm shifts included, as in ACoL's and DANet's code.
    """
    new = {id(parameter) for module in head for parameter in module.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in new, name.endswith("bias")), []).append(parameter)
    described = []
    for (is_new, is_bias), parameters in sorted(groups.items(), key=lambda item: item[0]):
        factor = (settings.head_multiplier if is_new else 1.0) * (settings.bias_multiplier if is_bias else 1.0)
        rate = settings.learning_rate * factor
        described.append({"params": parameters, "lr": rate, "base_lr": rate})
    return torch.optim.SGD(
        described, momentum=settings.momentum, nesterov=settings.nesterov, weight_decay=settings.weight_decay
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, epoch: int, settings: TrainingSettings) -> None:
    """Give every group the rate of `epoch` (0-based); a function of the epoch alone, so there is no state to resume."""
    decays = sum(epoch >= boundary for boundary in settings.decay_epochs)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * settings.decay_factor**decays
