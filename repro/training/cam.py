"""The training loop of every CAM method: the baseline with no ingredients, EGA and the comparators with theirs."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import cast

import torch
from jaxtyping import Float
from lightning_fabric import Fabric
from safetensors.torch import save_file
from torch import Tensor

from repro.data.image_set import ImageSet
from repro.losses.ega import Reduction, ega_loss
from repro.models.cam_network import CAMNetwork, CAMOutput
from repro.models.dual_batch_norm import to_global_batch_norm
from repro.training.batches import Batch, Batches
from repro.training.ingredients import Ingredient, StepContext
from repro.training.optimisation import set_learning_rate, sgd
from repro.training.run import Diverged, Run
from repro.training.settings import TrainingSettings


class OutOfDeviceMemory(RuntimeError):
    """A step did not fit into the memory of the GPU; the message names the setting to change."""


def prepare_network(network: CAMNetwork, ingredients: Sequence[Ingredient]) -> CAMNetwork:
    """The network as it is trained and stored: with the layers of its ingredients, in their order."""
    for ingredient in ingredients:
        network = ingredient.wrap_network(network)
    return network


def train_cam(
    network: CAMNetwork,
    data: ImageSet,
    settings: TrainingSettings,
    ingredients: Sequence[Ingredient],
    run: Run,
    seed: int,
    reduction: Reduction = "sum",
    fabric: Fabric | None = None,
) -> dict[str, Tensor]:
    """Train a CAM network in place and return its state dict, auxiliary halves and added layers included.

    The result is a function of the arguments alone: data order, crops and noise follow from `seed`, also after an
    interruption. On several devices (`fabric` launched by the caller) the batch is shared and batch statistics are
    global. To use the result, load it into `prepare_network(network, ingredients)`.

    Raises:
        ValueError: data, settings and network do not fit together.
        Diverged: a loss is not finite; the batch is kept in the run's folder.
        OutOfDeviceMemory: the GPU is too small for `batch_size`.
    """
    fabric = fabric or Fabric(accelerator="auto", devices=1, precision=settings.precision)
    torch.manual_seed(seed)
    network = _on_device(prepare_network(network, ingredients), fabric)
    optimizer = sgd(network, network.head_modules(), settings)
    parallel, parallel_optimizer = fabric.setup(network, optimizer)
    parallel.mark_forward_method("cam")
    batches = Batches(data, settings, seed, fabric.device, fabric.global_rank, fabric.world_size)
    total = settings.epochs * batches.steps_per_epoch
    watch = _Watch(run, batches, data, fabric.device)
    for step in run.steps(total, {"network": network, "optimizer": optimizer}):
        set_learning_rate(optimizer, step // batches.steps_per_epoch, settings)
        with _memory_advice(settings, fabric):
            context = StepContext(network, settings.normalisation, batches.random(step))
            with fabric.autocast():
                batch = transformed(batches.at(step, context.random), ingredients, context)
            terms = loss_terms(parallel.cam, batch, ingredients, context, reduction)
            parallel_optimizer.zero_grad()
            fabric.backward(torch.stack(list(terms.values())).sum())
            parallel_optimizer.step()
        watch.see(step, terms)
        if step % settings.log_every == 0 or step == total - 1:
            watch.log(step, fabric)
    return dict(network.state_dict())


def transformed(batch: Batch, ingredients: Sequence[Ingredient], context: StepContext) -> Batch:
    """The batch after every ingredient's `transform_batch`, in order."""
    for ingredient in ingredients:
        batch = ingredient.transform_batch(batch, context)
    return batch


def loss_terms(
    cam: Callable[[Tensor], CAMOutput],
    batch: Batch,
    ingredients: Sequence[Ingredient],
    context: StepContext,
    reduction: Reduction,
) -> dict[str, Float[Tensor, ""]]:
    """The summands of the objective (EGA eq. 8) from one forward pass, by name."""
    with ExitStack() as stack:
        for ingredient in ingredients:
            stack.enter_context(ingredient.forward_context(context))
        output = cam(batch.images)
    views = list(batch.by_view(output.logits).values())
    terms = {"classification": ega_loss(views, batch.target, reduction)}
    for ingredient in ingredients:
        terms |= ingredient.losses(output, batch, context)
    return terms


class _Watch:
    """Notices the first loss that is not finite without waiting for the device at every step."""

    def __init__(self, run: Run, batches: Batches, data: ImageSet, device: torch.device) -> None:
        self._run, self._batches, self._data = run, batches, data
        self._first_bad = torch.full((), torch.inf, device=device)
        self._terms: dict[str, Tensor] = {}

    def see(self, step: int, terms: dict[str, Float[Tensor, ""]]) -> None:
        """Take note of a step."""
        self._terms = {name: term.detach() for name, term in terms.items()}
        total = torch.stack(list(self._terms.values())).sum()
        self._first_bad = torch.where(total.isfinite(), self._first_bad, self._first_bad.clamp(max=step))

    def log(self, step: int, fabric: Fabric) -> None:
        """Write the last terms to the run's history, averaged over processes.

        Raises:
            Diverged: a loss since the last call was not finite.
        """
        names = list(self._terms)
        values = torch.stack([self._terms[name] for name in names] + [self._first_bad])
        bad = float(cast(Tensor, fabric.all_reduce(values[-1], reduce_op="min")))
        if math.isfinite(bad):
            raise Diverged(self._keep_batch(int(bad)))
        means = cast(Tensor, fabric.all_reduce(values[:-1], reduce_op="mean")).tolist()
        self._run.log(step, loss=sum(means), **dict(zip(names, means, strict=True)))

    def _keep_batch(self, step: int) -> str:
        indices = self._batches.indices(step)
        path = self._run.folder / f"diverged-{step}.safetensors"
        images = self._data.images[indices].contiguous()
        save_file({"images": images, "labels": self._data.labels[indices], "indices": indices}, path)
        names = [self._data.ids[index] for index in indices[:3].tolist()]
        return (
            f"the loss is not finite at step {step}; its batch ({', '.join(names)}, …) is kept in {path.name} "
            "of the run's folder; lower learning_rate or look at these images"
        )


def _on_device(network: CAMNetwork, fabric: Fabric) -> CAMNetwork:
    if fabric.world_size > 1:
        to_global_batch_norm(network)
    if fabric.device.type == "cuda":
        network.to(memory_format=torch.channels_last)
    return network.to(fabric.device).train()


@contextmanager
def _memory_advice(settings: TrainingSettings, fabric: Fabric) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        share = settings.batch_size // fabric.world_size
        raise OutOfDeviceMemory(
            f"a step with {share} images on each of {fabric.world_size} device(s) does not fit into GPU memory; "
            f"lower batch_size (now {settings.batch_size}), set precision to 'bf16-mixed' or use more devices"
        ) from error
