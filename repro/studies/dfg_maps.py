"""Class activation maps of differently trained classifiers on minority classes (Figures 3 and 4 of DFG)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from repro.evidence.comparison import sample_key
from repro.evidence.record import Row, Setting
from repro.explain import GradCAM
from repro.models.split_classifier import Architecture
from repro.studies.dfg import Study, Trained

CAM_LAYERS: Mapping[Architecture, str] = {
    "lenet5": "classifier.body.relu2",
    "vgg16_32": "classifier.body.relu5_3",
    "resnet50": "classifier.body.layer4",
}
"""Output of the last convolution block. On ResNet-50, whose head is a pooling and one linear layer, Grad-CAM is CAM up
to a factor; LeNet-5 and VGG-16 have several linear layers, on which CAM itself is not defined."""


@dataclass(frozen=True, eq=False)
class MinorityImages:
    """Test images of a replica's minority classes."""

    images: UInt8[Tensor, "n 3 h w"]
    """As shown."""
    inputs: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]

    def objects(self, brightness: float) -> Bool[Tensor, "n h w"]:
        """Pixels brighter than a share (0..1) of white: the object, on sets with a black background."""
        return self.images.float().mean(dim=1) > 255 * brightness


def minority_images(study: Study, trained: Trained, per_class: int) -> MinorityImages:
    """The first `per_class` test images of every minority class (of every class where the set is balanced)."""
    classes = [c for c in range(study.tasks.classes) if c not in trained.replica.majority]
    labels = study.tasks.test.labels.cpu()
    index = torch.cat([torch.nonzero(labels == c).flatten()[:per_class] for c in classes])
    test = study.tasks.test.to(torch.device("cpu"))
    inputs = test.inputs(index, augmentation=study.tasks.augmentation)
    shown = ((inputs + 1) * 127.5).round().byte()
    return MinorityImages(shown.expand(-1, 3, -1, -1), inputs, labels[index])


def activation_maps(study: Study, trained: Trained, chosen: MinorityImages) -> Float[Tensor, "n 1 h w"]:
    """Grad-CAM of the *true* class, >= 0: how each training sees the minority class, right or wrong."""
    network = trained.network.cpu()
    layer = network.get_submodule(CAM_LAYERS[study.protocol.architecture])
    # The extractor's parameters have no gradient; the map needs one with respect to the layer only.
    return GradCAM(network.requires_grad_(True), layer).attribute(chosen.inputs, chosen.labels)


def share_inside(
    maps: Float[Tensor, "n 1 h w"], objects: Bool[Tensor, "n h w"]
) -> tuple[Float[Tensor, " k"], Int[Tensor, ""]]:
    """Share of each positive map that lies on the object in %, and how many maps are zero everywhere (left out)."""
    total = maps.sum(dim=(1, 2, 3))
    inside = (maps[:, 0] * objects).sum(dim=(1, 2))
    defined = total > 0
    return 100 * inside[defined] / total[defined], (~defined).sum()


def map_rows(
    study: Study, maps: Mapping[str, Tensor], objects: Bool[Tensor, "n h w"], setting: Setting
) -> tuple[list[Row], dict[str, list[float]]]:
    """Mean share inside the object per method, on the images where every method's map is non-zero, and zero maps."""
    totals = torch.stack([values.sum(dim=(1, 2, 3)) for values in maps.values()])
    common = (totals > 0).all(dim=0)
    rows, samples = [], {}
    if not common.any():
        raise ValueError("on no image do all methods have a map that is positive somewhere; take more images")
    for method, values in maps.items():
        shares, _ = share_inside(values[common], objects[common])
        _, empty = share_inside(values, objects)
        samples[sample_key(method, "activation_in_object", study.settings.seed, setting)] = shares.tolist()
        for metric, value, count in (
            ("activation_in_object", shares.mean().item(), len(shares)),
            ("empty_maps", 100 * empty.item() / len(values), len(values)),
        ):
            rows.append(
                Row(
                    method=method,
                    metric=metric,
                    value=value,
                    dataset=study.settings.target,
                    network=study.protocol.architecture,
                    seed=study.settings.seed,
                    setting=setting,
                    n=count,
                    unit="%",
                )
            )
    return rows, samples
