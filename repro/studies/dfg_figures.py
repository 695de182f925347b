"""What Figures 2 to 5 of DFG show of trained networks: generated features, activation maps, filter weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from repro.evidence.record import Setting
from repro.explain.gradient import GradCAM
from repro.losses.dfg import blend_filter_weights
from repro.metrics.classification import frechet_distance
from repro.models.feature_gan import FEATURE_GAN_SHAPES
from repro.models.split_classifier import Architecture
from repro.studies.dfg import Study, Trained, rho_setting
from repro.studies.rows import RowCollector
from repro.training.dfg import build_generator
from repro.training.sampling import ResidentData, one_hot

# Real and generated features (Figure 2).


@dataclass(frozen=True, eq=False)
class Features:
    """E(x) of test images and G(z, ŷ) of a trained replica, equally many per class."""

    real: Float[Tensor, "n f p q"]
    real_labels: Int[Tensor, " n"]
    generated: Float[Tensor, "m f p q"]
    generated_labels: Int[Tensor, " m"]


@torch.no_grad()
def sample_features(study: Study, trained: Trained, per_class: int) -> Features:
    """Features of test images (unseen, so that memorising cannot help) and as many generated ones per class.

    G's batch norms use their running statistics. A class with fewer test images gives what it has.
    """
    test, classes = study.resident(study.test), len(study.classes)
    index = torch.cat([torch.nonzero(test.labels == c).flatten()[:per_class] for c in range(classes)])
    extractor = trained.network(study).extractor.to(study.device)
    inputs = test.inputs(index, augmentation=study.protocol.augmentation)
    real = torch.cat([extractor(part) for part in inputs.split(500)])
    wanted = torch.arange(classes).repeat_interleave(per_class)
    return Features(real.cpu(), test.labels[index].cpu(), generate(study, trained, wanted), wanted)


@torch.no_grad()
def generate(study: Study, trained: Trained, labels: Int[Tensor, " m"]) -> Float[Tensor, "m f p q"]:
    """Features of the wanted classes from a trained generator, z by the study's seed."""
    if trained.star is None:
        raise ValueError(f"{trained.key} has no generator of features")
    classes, prefix = len(study.classes), "0/generator."
    generator = build_generator(study.schedule, study.readings, classes)
    tensors = trained.tensors()
    generator.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    draw = torch.Generator().manual_seed(study.settings.seed)
    noise = torch.rand(len(labels), FEATURE_GAN_SHAPES[study.protocol.architecture].noise, generator=draw) * 2 - 1
    return generator.eval()(noise, one_hot(labels, classes, noise.dtype), trained.star[labels])


@torch.no_grad()
def statistics_table(study: Study, trained: Trained, features: Features) -> list[list[str]]:
    """Text rows real / generated under `STATISTICS`."""
    classifier = trained.network(study).classifier
    rows = []
    for name, values, labels in (
        ("real (test images)", features.real, features.real_labels),
        ("generated", features.generated, features.generated_labels),
    ):
        numbers = [values.mean(), values.std(), values.std(dim=0).mean()]
        shares = [(values < 0).float().mean(), (classifier(values).argmax(1) == labels).float().mean()]
        rows.append([name, *(f"{number:.3f}" for number in numbers), *(f"{100 * share:.1f}" for share in shares)])
    return rows


STATISTICS = ("features", "mean", "std over everything", "std over samples", "below 0, %", "classified as labelled, %")


@dataclass(frozen=True)
class Distances:
    """Fréchet distances per class of generated features, in the space of the first principal components."""

    values: Mapping[str, list[float]]
    """`same_class` and `other_class` of generated features to real ones; `real_other_class` of real features of a
    class to real ones of the others: the scale of the two."""
    explained: float
    """Share of the variance of real features that the components hold, in %."""

    def add_to(self, found: RowCollector, study: Study, index: int, setting: Setting) -> None:
        """Mean distances, and their values per class."""
        target, network = study.settings.target, study.protocol.architecture
        for method, values in self.values.items():
            mean = sum(values) / len(values)
            where = {"dataset": target, "network": network, "seed": index, "setting": setting}
            found.add(method, "frechet_distance", mean, **where, samples=values)  # type: ignore[arg-type]

    @property
    def sentence(self) -> str:
        """The finding in words: how many classes are nearer to their own real features than to the others'."""
        pairs = list(zip(self.values["same_class"], self.values["other_class"], strict=True))
        same, other, scale = (sum(values) / len(values) for values in self.values.values())
        return (
            f"Generated features of {sum(a < b for a, b in pairs)} of {len(pairs)} classes lie nearer to the real "
            f"features of their own class than to those of the others (mean Fréchet distance {same:.2f} against "
            f"{other:.2f}; real classes lie {scale:.2f} apart)."
        )


def class_distances(features: Features, components: int) -> Distances:
    """Fréchet distance of each class's generated features to real ones of its own and of each other class.

    Raw features have more dimensions than there are images per class, so their covariances would be singular; PCA
    of the real features brings them to `components` dimensions first.
    """
    pca = PCA(components, random_state=0).fit(features.real.flatten(1).numpy())
    real, made = (
        torch.from_numpy(pca.transform(maps.flatten(1).numpy())) for maps in (features.real, features.generated)
    )
    classes = features.real_labels.unique().tolist()
    by_class = {c: real[features.real_labels == c] for c in classes}
    values: dict[str, list[float]] = {"same_class": [], "other_class": [], "real_other_class": []}
    for c in classes:
        own, rest = made[features.generated_labels == c], [by_class[d] for d in classes if d != c]
        values["same_class"].append(frechet_distance(own, by_class[c]))
        values["other_class"].append(sum(frechet_distance(own, other) for other in rest) / len(rest))
        values["real_other_class"].append(sum(frechet_distance(by_class[c], other) for other in rest) / len(rest))
    return Distances(values, 100 * float(pca.explained_variance_ratio_.sum()))


def projections(features: Features, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Real and generated features in two dimensions by PCA (fitted on the real ones) and by t-SNE of both together."""
    real, made = features.real.flatten(1).numpy(), features.generated.flatten(1).numpy()
    pca = PCA(2, random_state=seed).fit(real)
    compact = PCA(min(30, len(real)), random_state=seed).fit(real).transform(np.concatenate([real, made]))
    perplexity = min(30, len(compact) // 4)
    embedded = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(compact)
    return {
        "PCA": (pca.transform(real), pca.transform(made)),
        "t-SNE": (embedded[: len(real)], embedded[len(real) :]),
    }


# Class activation maps of differently trained classifiers on minority classes (Figures 3 and 4).

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

    def objects(self, brightness: float | None) -> Bool[Tensor, "n h w"]:
        """Where the object is: pixels brighter than a share (0..1) of white, on sets with a black background.

        Photographs have no masks; with None the central square of half the area stands for the object, which the
        picture of a single thing mostly holds.
        """
        if brightness is not None:
            return self.images.float().mean(dim=1) > 255 * brightness
        side = self.images.shape[-1]
        line = (torch.arange(side) + 0.5 - side / 2).abs() <= side / 8**0.5
        return (line[:, None] & line).expand(len(self.images), -1, -1)


def minority_images(study: Study, trained: Trained, per_class: int) -> MinorityImages:
    """The first `per_class` test images of every minority class (of every class where the set is balanced)."""
    test = study.resident(study.test).to(torch.device("cpu"))
    classes = [c for c in range(len(study.classes)) if c not in trained.replica.majority]
    index = torch.cat([torch.nonzero(test.labels == c).flatten()[:per_class] for c in classes])
    plain = ResidentData(test.images, test.labels).inputs(index, augmentation=study.protocol.augmentation)
    shown = ((plain + 1) * 127.5).round().byte()
    inputs = test.inputs(index, augmentation=study.protocol.augmentation)
    return MinorityImages(shown.expand(-1, 3, -1, -1), inputs, test.labels[index])


def activation_maps(study: Study, trained: Trained, chosen: MinorityImages) -> Float[Tensor, "n 1 h w"]:
    """Grad-CAM of the *true* class, >= 0: how each training sees the minority class, right or wrong."""
    network = trained.network(study)
    layer = network.get_submodule(CAM_LAYERS[study.protocol.architecture])
    return GradCAM(network, layer).attribute(chosen.inputs, chosen.labels)


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
) -> RowCollector:
    """Mean share inside the object per method, on the images where every method's map is non-zero, and zero maps."""
    totals = torch.stack([values.sum(dim=(1, 2, 3)) for values in maps.values()])
    common = (totals > 0).all(dim=0)
    if not common.any():
        raise ValueError("on no image do all methods have a map that is positive somewhere; take more images")
    found = RowCollector()
    target, network, seed = study.settings.target, study.protocol.architecture, study.settings.seed
    for method, values in maps.items():
        shares, _ = share_inside(values[common], objects[common])
        _, empty = share_inside(values, objects)
        where = {"dataset": target, "network": network, "seed": seed, "setting": setting, "unit": "%"}
        samples, zeros = shares.tolist(), 100 * empty.item() / len(values)
        found.add(method, "activation_in_object", shares.mean().item(), **where, samples=samples)  # type: ignore[arg-type]
        found.add(method, "empty_maps", zeros, **where, n=len(values))  # type: ignore[arg-type]
    return found


# Class-wise filter weights over training (Figure 5).


def weight_history(trained: Trained, rho: float) -> dict[str, Float[Tensor, "u k f"]]:
    """Weights after every update, in Figure 5's unit (the softmax itself; their mean over filters is 1 / n_f).

    Returns:
        `target`: W(E) alone; `blend`: ρ·W(E_S) + (1 − ρ)·W(E) of eq. (7) before the threshold, which is what the
        generator is trained with. Entry 0 of both is the start, W(E_S).
    """
    if trained.filter_weights is None:
        raise ValueError(f"{trained.key} has no filter weights")
    measured = trained.filter_weights / trained.filter_weights.shape[-1]
    return {"target": measured, "blend": blend_filter_weights(measured[:1].expand_as(measured), measured, rho)}


def spread(weights: Float[Tensor, "*u k f"]) -> Float[Tensor, "*u"]:
    """Mean absolute deviation of class-wise weights from 1 / n_f, the red line of Figure 5."""
    return (weights - 1 / weights.shape[-1]).abs().mean(dim=(-2, -1))


def representative_filters(histories: Mapping[float, Float[Tensor, "u k f"]], count: int = 2) -> list[int]:
    """The filters whose source weights differ most between classes: the paper does not say how its two were chosen."""
    start = next(iter(histories.values()))[0]
    return start.std(dim=0).argsort(descending=True)[:count].tolist()


def weight_panels(
    histories: Mapping[float, Mapping[str, Float[Tensor, "u k f"]]], filters: Sequence[int], classes: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """Blended weights over updates: one panel per ρ and filter, one line per class."""
    return {
        f"filter {filter + 1}, ρ = {rho:g}": {
            name: history["blend"][:, index, filter].tolist() for index, name in enumerate(classes)
        }
        for rho, history in histories.items()
        for filter in filters
    }


def weight_rows(study: Study, trained: Mapping[float, Trained]) -> RowCollector:
    """Spread of the last weights per ρ: of the blend (the printed cell) and of the target's weights alone."""
    found = RowCollector()
    for rho, one in trained.items():
        for name, values in weight_history(one, rho).items():
            found.add(
                "dfg",
                "filter_weight_spread",
                spread(values)[-1].item(),
                dataset=study.settings.target,
                network=study.protocol.architecture,
                seed=one.index,
                setting=rho_setting(rho) | ({} if name == "blend" else {"weights": "target"}),
                n=values.shape[1] * values.shape[2],
            )
    return found


def spread_sentences(trained: Mapping[float, Trained]) -> list[str]:
    """What the weights did, per ρ: start and end of the target's and of the blended spread."""
    sentences = []
    for rho, one in trained.items():
        found = {name: spread(values) for name, values in weight_history(one, rho).items()}
        sentences.append(
            f"ρ = {rho:g}: the spread about 1 / n_f starts at {found['target'][0]:.4f} (source) and ends at "
            f"{found['target'][-1]:.4f} for the target's weights alone and {found['blend'][-1]:.4f} for the blend that "
            f"the generator is given, after {len(found['target']) - 1} updates."
        )
    return sentences


def weight_summary(trained: Mapping[float, Trained]) -> list[list[str]]:
    """Text rows: ρ, share of active filters (W* > 0), smallest and largest W* among the active."""
    rows = []
    for rho, one in trained.items():
        star = torch.zeros(0) if one.star is None else one.star
        active = star[star > 0]
        low, high = (f"{active.min():.2f}", f"{active.max():.2f}") if len(active) else ("–", "–")
        rows.append([f"{rho:g}", f"{100 * (star > 0).double().mean():.0f}", low, high])
    return rows
