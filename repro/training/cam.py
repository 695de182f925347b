"""The training loop of every CAM method: the baseline with no ingredients, EGA and the comparators with theirs."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from lightning_fabric import Fabric
from pydantic import BaseModel, ConfigDict
from safetensors.torch import save_file
from torch import Tensor, nn

from repro.data.images import ImageSet, Normalisation
from repro.losses.cam import Reduction, ega_loss
from repro.metrics.classification import ten_crop_scores
from repro.models.cam_network import CAMNetwork, CAMOutput, maps_of
from repro.models.dual_batch_norm import to_global_batch_norm
from repro.training.batches import Batch, Batches, StepRandom, TrainingSettings, normalised, resized
from repro.training.run_store import Diverged, Run

# A method of weakly supervised localisation is a list of ingredients. Each overrides the hooks it needs; the defaults
# do nothing. EGA is `[AdversarialExamples(...), EntropyTerm(...)]`, plain CAM is `[]`.


@dataclass(frozen=True)
class StepContext:
    """What the hooks of one training step may use."""

    network: CAMNetwork
    """The bare network, outside any distributed wrapper."""
    normalisation: Normalisation
    """How the images of the batch were made from pixels."""
    random: StepRandom
    """The only source of random numbers for hooks."""


@dataclass(frozen=True)
class SeenBatch:
    """What localisation knows of a batch of evaluated images."""

    network: CAMNetwork
    images: Float[Tensor, "n 3 height width"]
    """Normalised."""
    output: CAMOutput
    classes: Int[Tensor, " n"]
    """The classes to localise."""


class Ingredient:
    """Hooks of the training loop and of localisation; every default does nothing."""

    def classification_weight(self) -> float:
        """Factor for the cross-entropy of the network itself."""
        return 1.0

    def wrap_network(self, network: CAMNetwork) -> CAMNetwork:
        """Add layers, before the optimiser is built; called once, for training and again when weights are loaded."""
        return network

    def transform_batch(self, batch: Batch, context: StepContext) -> Batch:
        """Change images or targets of a step; called in the order of the ingredients."""
        return batch

    def forward_context(self, context: StepContext) -> AbstractContextManager[None]:
        """What must hold during the forward pass of a step."""
        return nullcontext()

    def losses(self, output: CAMOutput, batch: Batch, context: StepContext) -> dict[str, Float[Tensor, ""]]:
        """Weighted terms to add to the cross-entropy, by name."""
        return {}

    def localise(self, seen: SeenBatch) -> Float[Tensor, "n h w"] | None:
        """The maps that boxes are read from, if not the plain class maps; called in evaluation mode."""
        return None


class Method(BaseModel, ABC):
    """A way to train a CAM network and to localise with it; a subclass adds its settings and `ingredients`.

    A class with an `id` is a method that tables can name (`repro.training.comparators.METHODS`); its label and the list
    of names that parameters may take follow from the class.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: ClassVar[str]
    """Name in parameters and published tables."""
    label: ClassVar[str]
    """Name for readers, where a table does not print one."""
    source: ClassVar[str]
    """Where it was published."""
    version: ClassVar[int] = 1
    """Raised by hand whenever the code computes something else from the same settings."""
    readings: ClassVar[dict[str, str]] = {}
    """What is done here at each point where paper and code of its authors differ or are not followed (ledger)."""

    reduction: Reduction = "sum"
    """How the cross-entropies of several views are put together; with one view both are the same."""
    training: TrainingSettings = TrainingSettings()
    """Optimiser, schedule and augmentation: those of the notebook, equal for all methods."""

    @abstractmethod
    def ingredients(self) -> list[Ingredient]:
        """Add-ons of the CAM loop, in order."""

    def for_classes(self, classes: Sequence[str]) -> "Method":
        """The settings for a data set with these classes; most are the same on all."""
        return self

    @property
    def trained_as(self) -> "Method":
        """The method whose training is used: another one where only the maps differ."""
        return self


class Comparator(Method, Ingredient):
    """A method whose settings are its one ingredient: a subclass adds fields and the hooks it needs."""

    def ingredients(self) -> list[Ingredient]:
        """Its own hooks."""
        return [self]


# Parameter groups and schedule shared by the WSOL methods (DANet, ACoL, EGA's release).


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
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = _on_device(prepare_network(network, ingredients), fabric)
        _fit(network, data, settings, ingredients, run, seed, reduction, fabric)
    return dict(network.state_dict())


def _fit(
    network: CAMNetwork,
    data: ImageSet,
    settings: TrainingSettings,
    ingredients: Sequence[Ingredient],
    run: Run,
    seed: int,
    reduction: Reduction,
    fabric: Fabric,
) -> None:
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
    """The summands of the objective (EGA eq. 8) from one forward pass, by name.

    Each is this process's part: their mean over processes is the term of the whole batch, however it was shared.
    """
    with ExitStack() as stack:
        for ingredient in ingredients:
            stack.enter_context(ingredient.forward_context(context))
        output = cam(batch.images)
    views = list(batch.by_view(output.logits).values())
    weight = math.prod(ingredient.classification_weight() for ingredient in ingredients)
    terms = {"classification": weight * ega_loss(views, batch.target, reduction)}
    for ingredient in ingredients:
        terms |= ingredient.losses(output, batch, context)
    return {name: context.random.share.weight * term for name, term in terms.items()}


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
        share = -(-settings.batch_size // fabric.world_size)
        raise OutOfDeviceMemory(
            f"a step with {share} images on each of {fabric.world_size} device(s) does not fit into GPU memory; "
            f"lower batch_size (now {settings.batch_size}), set precision to 'bf16-mixed' or use more devices"
        ) from error


# Class activation maps of a whole image set, small and unscaled, as the localisation metrics take them.


class LocalisationMaps(NamedTuple):
    """What localisation and classification metrics need of every image."""

    maps: Float[Tensor, "n h w"]
    """Float32 maps at the network's resolution, not rectified, not normalised."""
    logits: Float[Tensor, "n classes"]
    """Scores of the whole image."""


def evaluate_localisation(
    network: CAMNetwork,
    data: ImageSet,
    settings: TrainingSettings,
    ingredients: Sequence[Ingredient] = (),
    batch_size: int = 64,
) -> LocalisationMaps:
    """Maps of the true classes and scores of all images, squashed to the side of the training crop (EGA §4.1).

    The network works where it is and is left in its mode. With dual batch norms the main half is used.

    Args:
        network: trained network.
        data: images; boxes and masks are not looked at.
        settings: those of the training: side, normalisation and precision.
        ingredients: of the training; the last one that defines its own maps decides.
        batch_size: images a forward pass.
    """
    maps, scores = [], []
    with _evaluating(network, settings) as device:
        for start in range(0, len(data), batch_size):
            rows = slice(start, start + batch_size)
            images = normalised(resized(data.images[rows].to(device), settings.crop), settings)
            output = network.cam(images)
            classes = data.labels[rows].to(device)
            chosen = maps_of(output.maps, classes)
            for ingredient in ingredients:
                own = ingredient.localise(SeenBatch(network, images, output, classes))
                chosen = chosen if own is None else own
            maps.append(chosen.float().cpu())
            scores.append(output.logits.float().cpu())
    return LocalisationMaps(torch.cat(maps), torch.cat(scores))


def ten_crop_probabilities(
    network: CAMNetwork, data: ImageSet, settings: TrainingSettings, batch_size: int = 16
) -> Float[Tensor, "n classes"]:
    """Softmax scores averaged over corners, centre and their mirror images (EGA §4.1), from images of side `resize`.

    Raises:
        ValueError: `settings.crop` is None or larger than the images.
    """
    if settings.crop is None:
        raise ValueError("ten crops need settings.crop, which is None; use the scores of evaluate_localisation")
    scores = []
    with _evaluating(network, settings) as device:
        for start in range(0, len(data), batch_size):
            images = resized(data.images[start : start + batch_size].to(device), settings.resize)
            inputs = normalised(images, settings)
            scores.append(ten_crop_scores(network, inputs, size=settings.crop).float().cpu())
    return torch.cat(scores)


@contextmanager
def _evaluating(network: CAMNetwork, settings: TrainingSettings) -> Iterator[torch.device]:
    """Evaluation mode and precision inside the block, where the network is; its mode comes back afterwards."""
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    try:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, settings.precision == "bf16-mixed"):
            yield device
    finally:
        network.train(training)
