"""What target networks take from the frozen source: its weights, DELTA's regulariser, a refitted last layer."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor

from repro.losses import channel_attention, classification_loss, delta_regularizer, knockout_loss_increase
from repro.models import SplitClassifier
from repro.training.dfg_settings import DFGSettings
from repro.training.replicas import ReplicaNetwork
from repro.training.tasks import ReplicaTasks

_ATTENTION_BATCHES = 4  # DELTA's released code


class SourceRegularizer:
    """α·Ω + β·½‖last layer‖² of a regularised training, one value per replica.

    Ω compares E's output and the tapped convolutions of C with those of the source. Its attention is computed per
    replica on four batches of the replica's own images with a source whose last layer was refitted to the target
    classes, as DELTA does; E's channels take the attention of its last convolution.
    """

    def __init__(self, source: SplitClassifier, tasks: ReplicaTasks, settings: DFGSettings) -> None:
        self.source = frozen_copy(source)
        self._settings = settings
        per_replica = [_attention(source, tasks, r, settings.batch) for r in range(tasks.replicas)]
        self.attention = [torch.stack(layer) for layer in zip(*per_replica, strict=True)]

    def __call__(
        self,
        images: Float[Tensor, "r b c h w"],
        features: Float[Tensor, "r b f p q"],
        maps: tuple[Tensor, ...],
        classifier: ReplicaNetwork,
    ) -> Float[Tensor, " r"]:
        """The penalty for these images; `features` are E's and `maps` C's tapped outputs in training."""
        replicas = images.shape[:2]
        with torch.no_grad():
            source_features = self.source.extractor(images.flatten(0, 1))
            _, source_maps = self.source.classifier.with_maps(source_features)
        source = [layer.unflatten(0, replicas) for layer in (source_features, *source_maps)]
        omega = delta_regularizer([features, *maps], source, self.attention)
        head = classifier.parameters["head.weight"].square().sum((-2, -1)) / 2
        return self._settings.map_penalty * omega + self._settings.head_penalty * head


def frozen_copy(network: SplitClassifier) -> SplitClassifier:
    """A copy in evaluation mode whose parameters get no gradient."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def target_start(source: SplitClassifier, classes: int, seed: int) -> SplitClassifier:
    """The source network as the start of a target training; its last layer is new where class counts differ."""
    network = copy.deepcopy(source).train().requires_grad_(True)
    if network.classes != classes:
        head = network.classifier.head
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = torch.nn.Linear(head.in_features, classes)
        network.classifier.head = fresh.to(head.weight)
    return network


def refit_head(source: SplitClassifier, tasks: ReplicaTasks, replica: int, images: int = 5_000) -> SplitClassifier:
    """The frozen source with a new last layer, fitted to a replica's training images by L-BFGS from zero.

    DELTA trains it for 10 epochs of SGD; the problem is convex, so that the optimum (with a weight decay of 10⁻³ that
    makes it unique) is taken instead. At most `images` evenly spaced images are used.
    """
    network = frozen_copy(source)
    subset = tasks.subsets[replica].to(tasks.device)
    subset = subset[:: max(1, -(-len(subset) // images))]
    dtype = network.classifier.head.weight.dtype
    with torch.no_grad():
        parts = [tasks.train.inputs(part, dtype, tasks.augmentation) for part in subset.split(500)]
        embedded = torch.cat([network.classifier.embed(network.extractor(part)) for part in parts])
    head = torch.nn.Linear(embedded.shape[1], tasks.classes).to(embedded)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimiser = torch.optim.LBFGS(head.parameters(), max_iter=50, line_search_fn="strong_wolfe")
    labels = tasks.train.labels[subset]

    def closure() -> float:
        optimiser.zero_grad()
        loss = classification_loss(head(embedded), labels) + 1e-3 * head.weight.square().sum() / 2
        loss.backward()
        return loss.item()

    optimiser.step(closure)
    network.classifier.head = head.requires_grad_(False)
    return network


def _attention(source: SplitClassifier, tasks: ReplicaTasks, replica: int, batch: int) -> list[Tensor]:
    network = refit_head(source, tasks, replica)
    subset = tasks.subsets[replica].to(tasks.device)
    wanted = min(_ATTENTION_BATCHES * batch, len(subset))
    chosen = subset[torch.linspace(0, len(subset) - 1, wanted, device=tasks.device).long()]
    images = tasks.train.inputs(chosen, network.classifier.head.weight.dtype, tasks.augmentation)
    convs = [network.extractor.layers.get_submodule(network.extractor.last_conv)]
    convs += [network.classifier.body.get_submodule(tap) for tap in network.classifier.taps]
    labels = tasks.train.labels[chosen]
    return [channel_attention(knockout_loss_increase(network, conv, images, labels)) for conv in convs]
