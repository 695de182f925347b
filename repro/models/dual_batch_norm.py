"""Two batch norms in one layer: clean images through the main one, adversarial ones through the auxiliary (EGA §3.2).

On several devices batch statistics are taken over the *global* batch, so that a training does not depend on the
number of devices; `torch.nn.SyncBatchNorm` is not used because converting to it would silently drop the auxiliary half.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Norm = TypeVar("Norm", bound=nn.BatchNorm2d)

Route = Literal["clean", "adversarial", "mixed"]
"""`clean`: the main half; `adversarial`: the auxiliary half; `mixed`: first half of the batch main, second half
auxiliary."""


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """`BatchNorm2d` whose training statistics are those of the batch of all processes.

    With one process, and in eval mode, it is `BatchNorm2d` itself.
    """

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Normalised features."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(features)
        mean, variance, count = _global_moments(features)
        with torch.no_grad():
            self._update_running(mean, variance * count / (count - 1))
        scale = torch.rsqrt(variance + self.eps)
        weight, bias = (self.weight, self.bias) if self.affine else (torch.ones_like(mean), torch.zeros_like(mean))
        return cast(Tensor, _Normalise.apply(features, weight, bias, mean, scale, count))

    def _update_running(self, mean: Float[Tensor, " c"], variance: Float[Tensor, " c"]) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        rate = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean), rate)
        self.running_var.lerp_(variance.to(self.running_var), rate)


class DualBatchNorm2d(GlobalBatchNorm2d):
    """The main batch norm, with an `auxiliary` one of the same shape for adversarial images.

    Which half works is set by `route_batch_norm`; the default route is `clean`.
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True) -> None:
        super().__init__(num_features, eps, momentum, affine)
        self.auxiliary = GlobalBatchNorm2d(num_features, eps, momentum, affine)
        self.route: Route = "clean"

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Normalised features.

        Raises:
            ValueError: the route is `mixed` and the batch cannot be halved.
        """
        if self.route == "clean":
            return super().forward(features)
        if self.route == "adversarial":
            return self.auxiliary(features)
        if len(features) % 2:
            raise ValueError(f"a mixed batch holds clean and adversarial halves, but has {len(features)} images")
        clean, adversarial = features.chunk(2)
        return torch.cat([super().forward(clean), self.auxiliary(adversarial)])


def to_dual_batch_norm(model: nn.Module) -> nn.Module:
    """Replace, in place, every batch norm of `model` by a dual one whose auxiliary half starts as a copy.

    Returns the model (another object only if `model` itself is a batch norm). Build the optimiser afterwards.

    Raises:
        ValueError: there is no batch norm, one is dual already, or one is of a kind that cannot be converted
            (one- or three-dimensional, synchronised).
    """
    norms = {name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}
    if not norms:
        raise ValueError(
            f"{type(model).__name__} has no batch norm, so there is nothing to make dual; "
            "use a network with batch norms or the shared-statistics reading (batch_norm='shared')"
        )
    for name, layer in norms.items():
        if not _is_convertible(layer):
            raise ValueError(
                f"layer {name!r} is a {type(layer).__name__}; only BatchNorm2d with running statistics becomes dual"
            )
    return _replace(model, _is_convertible, _dual)


def _is_convertible(layer: nn.Module) -> bool:
    return type(layer) in (nn.BatchNorm2d, GlobalBatchNorm2d) and bool(layer.track_running_stats)


def to_global_batch_norm(model: nn.Module) -> nn.Module:
    """Replace, in place, every plain `BatchNorm2d` by one with statistics over all processes; outputs do not change."""
    return _replace(
        model, lambda layer: type(layer) is nn.BatchNorm2d, lambda layer: _copy_norm(layer, GlobalBatchNorm2d)
    )


def has_dual_batch_norm(model: nn.Module) -> bool:
    """Whether any layer of `model` is a `DualBatchNorm2d`."""
    return any(isinstance(layer, DualBatchNorm2d) for layer in model.modules())


@contextmanager
def route_batch_norm(model: nn.Module, route: Route) -> Iterator[None]:
    """Send every batch through the halves named by `route` inside the `with` block; restores the earlier routes.

    Raises:
        ValueError: the model has no dual batch norm or the route is unknown.
    """
    if route not in ("clean", "adversarial", "mixed"):
        raise ValueError(f"route is {route!r}; choose 'clean', 'adversarial' or 'mixed'")
    layers = [layer for layer in model.modules() if isinstance(layer, DualBatchNorm2d)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no DualBatchNorm2d; call to_dual_batch_norm(model) first")
    before = [layer.route for layer in layers]
    try:
        for layer in layers:
            layer.route = route
        yield
    finally:
        for layer, earlier in zip(layers, before, strict=True):
            layer.route = earlier


@torch.no_grad()
def _global_moments(features: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"], Tensor]:
    """Mean, biased variance and number of values per channel over all processes; uneven shards are weighted right.

    Means and variances of the shards are merged (Chan, Golub and LeVeque, COMPSTAT 1982): E[x²] − mean² would lose all
    digits where the mean is large beside the deviation.
    """
    variance, mean = torch.var_mean(features.float(), (0, 2, 3), unbiased=False)
    count = mean.new_full((1,), features.numel() / features.shape[1])
    gathered = [torch.empty(2 * len(mean) + 1, device=mean.device) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, torch.cat([mean, variance, count]))
    means, variances, counts = torch.stack(gathered).split([len(mean), len(mean), 1], 1)
    total = counts.sum()
    # The mean of shard means is taken around the first one, so that its error is that of their differences.
    merged = means[0] + ((means - means[0]) * counts).sum(0) / total
    return merged, ((variances + (means - merged).square()) * counts).sum(0) / total, total


class _Normalise(torch.autograd.Function):
    """weight · (x − mean) · scale + bias, where mean and scale are those of the batch of all processes.

    For the backward pass it keeps the input alone, as the plain layer; sums over the batch are exchanged there.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, count: Tensor
    ) -> Tensor:
        ctx.save_for_backward(features, weight, mean, scale, count)
        centred = (features.float() - mean[:, None, None]) * (scale * weight)[:, None, None]
        return (centred + bias[:, None, None]).to(features.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        features, weight, mean, scale, count = ctx.saved_tensors
        gradient = gradients[0].float()
        normed = (features.float() - mean[:, None, None]) * scale[:, None, None]
        shift, stretch = gradient.sum((0, 2, 3)), (gradient * normed).sum((0, 2, 3))
        sums = torch.stack([shift, stretch])
        dist.all_reduce(sums)
        first, second = (sums / count)[:, :, None, None]
        back = (gradient - first - normed * second) * (scale * weight)[:, None, None]
        return back.to(features.dtype), stretch.to(weight.dtype), shift.to(weight.dtype), None, None, None


def _dual(layer: nn.BatchNorm2d) -> DualBatchNorm2d:
    dual = _copy_norm(layer, DualBatchNorm2d)
    dual.auxiliary = _copy_norm(layer, GlobalBatchNorm2d)
    return dual


def _copy_norm(layer: nn.BatchNorm2d, kind: type[Norm]) -> Norm:
    """A norm of another kind with the parameters, statistics, mode, device and dtype of `layer`'s main half."""
    new = kind(layer.num_features, layer.eps, layer.momentum, layer.affine)
    new.to(layer.running_mean).train(layer.training)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        source, target = getattr(layer, name), getattr(new, name)
        if source is not None:
            target.data.copy_(source.data)
            target.requires_grad_(source.requires_grad)
    return new


def _replace(
    model: nn.Module, chosen: Callable[[nn.Module], bool], build: Callable[[nn.BatchNorm2d], nn.Module]
) -> nn.Module:
    """Replace chosen layers wherever they hang; a layer used in two places stays one layer."""
    if chosen(model):
        return build(cast(nn.BatchNorm2d, model))
    built: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if chosen(child):
                if child not in built:
                    built[child] = build(cast(nn.BatchNorm2d, child))
                setattr(parent, name, built[child])
    return model
