"""Class activation maps of a whole image set, small and unscaled, as the localisation metrics take them."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from repro.data.image_set import ImageSet
from repro.metrics.ten_crop import ten_crop_scores
from repro.models.cam_network import CAMNetwork
from repro.training.batches import normalised, resized
from repro.training.ingredients import Ingredient, SeenBatch
from repro.training.settings import TrainingSettings


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
    map_class: Literal["label", "prediction"] = "label",
    batch_size: int = 64,
) -> LocalisationMaps:
    """Maps and scores of all images, each squashed to the side of the training crop (EGA §4.1), in eval mode.

    The network works where it is and is left in its mode. With dual batch norms the main half is used.

    Args:
        network: trained network.
        data: images; boxes and masks are not looked at.
        settings: those of the training: side, normalisation and precision.
        ingredients: of the training; the last one that defines its own maps decides.
        map_class: `label`, the benchmark's, takes the map of the true class; `prediction` that of the top class.
        batch_size: images a forward pass.
    """
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    maps, scores = [], []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, settings.precision == "bf16-mixed"):
        for start in range(0, len(data), batch_size):
            rows = slice(start, start + batch_size)
            images = normalised(resized(data.images[rows].to(device), settings.crop), settings)
            output = network.cam(images)
            classes = data.labels[rows].to(device) if map_class == "label" else output.logits.argmax(1)
            chosen = output.maps[torch.arange(len(classes), device=device), classes]
            for ingredient in ingredients:
                own = ingredient.localise(SeenBatch(network, images, output, classes))
                chosen = chosen if own is None else own
            maps.append(chosen.float().cpu())
            scores.append(output.logits.float().cpu())
    network.train(training)
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
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    scores = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, settings.precision == "bf16-mixed"):
        for start in range(0, len(data), batch_size):
            images = resized(data.images[start : start + batch_size].to(device), settings.resize)
            inputs = normalised(images, settings)
            scores.append(ten_crop_scores(network, inputs, size=settings.crop).float().cpu())
    network.train(training)
    return torch.cat(scores)
