"""Real and generated features of a trained DFG: statistics, distances and projections (Figure 2)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from repro.evidence.comparison import sample_key
from repro.evidence.record import Row, Setting
from repro.explain.gradient import GradCAM
from repro.losses.dfg import blend_filter_weights
from repro.metrics.classification import frechet_distance
from repro.models.feature_gan import FEATURE_GAN_SHAPES, FeatureGenerator
from repro.models.split_classifier import Architecture
from repro.studies.dfg import Study, Trained, rho_setting
from repro.training.sampling import one_hot


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
    device = study.tasks.device
    labels = study.tasks.test.labels
    index = torch.cat([torch.nonzero(labels == c).flatten()[:per_class] for c in range(study.tasks.classes)])
    extractor = trained.network.extractor.to(device)
    inputs = study.tasks.test.inputs(index, augmentation=study.tasks.augmentation)
    real = torch.cat([extractor(part) for part in inputs.split(500)])
    wanted = torch.arange(study.tasks.classes).repeat_interleave(per_class)
    return Features(real.cpu(), labels[index].cpu(), generate(study, trained, wanted), wanted)


@torch.no_grad()
def generate(study: Study, trained: Trained, labels: Int[Tensor, " m"]) -> Float[Tensor, "m f p q"]:
    """Features of the wanted classes from a trained generator, z by the study's seed."""
    shape, readings = FEATURE_GAN_SHAPES[study.protocol.architecture], study.readings
    generator = FeatureGenerator(
        shape,
        study.tasks.classes,
        readings.critic_slope,
        readings.filter_weight_position,
        readings.generator_order,
        readings.convolution_bias,
    )
    prefix = "0/generator."
    state = {k.removeprefix(prefix): v for k, v in trained.result.tensors.items() if k.startswith(prefix)}
    generator.load_state_dict(state)
    generator.eval()
    draw = torch.Generator().manual_seed(study.settings.seed)
    noise = torch.rand(len(labels), shape.noise, generator=draw) * 2 - 1
    star = trained.result.tensors["filter_weights_star"][0]
    return generator(noise, one_hot(labels, study.tasks.classes, noise.dtype), star[labels])


@torch.no_grad()
def statistics_table(trained: Trained, features: Features) -> list[list[str]]:
    """Text rows real / generated: mean, standard deviation, negative share, C's accuracy on them."""
    classifier = trained.network.classifier.cpu()
    rows = []
    for name, values, labels in (
        ("real (test images)", features.real, features.real_labels),
        ("generated", features.generated, features.generated_labels),
    ):
        right = classifier(values).argmax(1) == labels
        rows.append(
            [
                name,
                f"{values.mean():.3f}",
                f"{values.std():.3f}",
                f"{values.std(dim=0).mean():.3f}",
                f"{100 * (values < 0).float().mean():.1f}",
                f"{100 * right.float().mean():.1f}",
            ]
        )
    return rows


STATISTICS = ("features", "mean", "std over everything", "std over samples", "below 0, %", "classified as labelled, %")
"""Columns of `statistics_table`."""


@dataclass(frozen=True)
class Distances:
    """Fréchet distances per class of generated features, in the space of the first principal components."""

    same_class: list[float]
    other_class: list[float]
    real_other_class: list[float]
    """Real features of a class against real ones of the others: the scale of the two above."""
    components: int
    explained: float
    """Share of the variance of real features that the components hold, in %."""

    def rows(self, study: Study, index: int, setting: Setting) -> tuple[list[Row], dict[str, list[float]]]:
        """Mean distances, and their values per class."""
        rows, samples = [], {}
        for method in ("same_class", "other_class", "real_other_class"):
            values: list[float] = getattr(self, method)
            rows.append(
                Row(
                    method=method,
                    metric="frechet_distance",
                    value=sum(values) / len(values),
                    dataset=study.settings.target,
                    network=study.protocol.architecture,
                    seed=index,
                    setting=setting,
                    n=len(values),
                )
            )
            samples[sample_key(method, "frechet_distance", index, setting)] = values
        return rows, samples

    @property
    def sentence(self) -> str:
        """The finding in words: how many classes are nearer to their own real features than to the others'."""
        nearer = sum(same < other for same, other in zip(self.same_class, self.other_class, strict=True))
        same, other = (sum(v) / len(v) for v in (self.same_class, self.other_class))
        scale = sum(self.real_other_class) / len(self.real_other_class)
        return (
            f"Generated features of {nearer} of {len(self.same_class)} classes lie nearer to the real features of "
            f"their own class than to those of the others (mean Fréchet distance {same:.2f} against {other:.2f}; "
            f"real classes lie {scale:.2f} apart)."
        )


def class_distances(features: Features, components: int) -> Distances:
    """Fréchet distance of each class's generated features to real ones of its own and of each other class.

    Raw features have more dimensions than there are images per class, so their covariances would be singular; PCA
    of the real features brings them to `components` dimensions first.
    """
    pca = PCA(components, random_state=0).fit(features.real.flatten(1).numpy())
    real = torch.from_numpy(pca.transform(features.real.flatten(1).numpy()))
    made = torch.from_numpy(pca.transform(features.generated.flatten(1).numpy()))
    classes = features.real_labels.unique().tolist()
    by_class = {c: real[features.real_labels == c] for c in classes}
    same, other, apart = [], [], []
    for c in classes:
        own = made[features.generated_labels == c]
        rest = [d for d in classes if d != c]
        same.append(frechet_distance(own, by_class[c]))
        other.append(sum(frechet_distance(own, by_class[d]) for d in rest) / len(rest))
        apart.append(sum(frechet_distance(by_class[c], by_class[d]) for d in rest) / len(rest))
    return Distances(same, other, apart, components, 100 * float(pca.explained_variance_ratio_.sum()))


def projections(features: Features, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Real and generated features in two dimensions by PCA (fitted on the real ones) and by t-SNE of both together."""
    real, made = features.real.flatten(1).numpy(), features.generated.flatten(1).numpy()
    pca = PCA(2, random_state=seed).fit(real)
    both = np.concatenate([real, made])
    compact = PCA(min(30, len(real)), random_state=seed).fit(real).transform(both)
    perplexity = min(30, len(compact) // 4)
    embedded = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(compact)
    return {
        "PCA": (pca.transform(real), pca.transform(made)),
        "t-SNE": (embedded[: len(real)], embedded[len(real) :]),
    }


# Class activation maps of differently trained classifiers on minority classes (Figures 3 and 4 of DFG).

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


# Class-wise filter weights over training (Figure 5 of DFG).


def weight_history(trained: Trained, rho: float) -> dict[str, Float[Tensor, "u k f"]]:
    """Weights after every update, in Figure 5's unit (the softmax itself; their mean over filters is 1 / n_f).

    Returns:
        `target`: W(E) alone; `blend`: ρ·W(E_S) + (1 − ρ)·W(E) of eq. (7) before the threshold, which is what the
        generator is trained with. Entry 0 of both is the start, W(E_S).
    """
    measured = trained.result.tensors["filter_weights"][:, 0] / trained.result.tensors["filter_weights"].shape[-1]
    source = measured[:1].expand_as(measured)
    return {"target": measured, "blend": blend_filter_weights(source, measured, rho)}


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


def spread_rows(study: Study, trained: Mapping[float, Trained]) -> list[Row]:
    """Spread of the last weights per ρ: of the blend (the printed cell) and of the target's weights alone."""
    rows = []
    for rho, one in trained.items():
        for name, values in weight_history(one, rho).items():
            rows.append(
                Row(
                    method="dfg",
                    metric="filter_weight_spread",
                    value=spread(values)[-1].item(),
                    dataset=study.settings.target,
                    network=study.protocol.architecture,
                    seed=one.index,
                    setting=rho_setting(rho) | ({} if name == "blend" else {"weights": "target"}),
                    n=values.shape[1] * values.shape[2],
                )
            )
    return rows


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


def active_share(one: Trained) -> Float[Tensor, " k"]:
    """Share of active filters (W* > 0) per class at the end, in %."""
    return 100 * (one.result.tensors["filter_weights_star"][0] > 0).double().mean(dim=1)


def weight_summary(trained: Mapping[float, Trained]) -> list[list[str]]:
    """Text rows: ρ, active filters, smallest and largest W* among the active."""
    rows = []
    for rho, one in trained.items():
        star = one.result.tensors["filter_weights_star"][0]
        active = star[star > 0]
        low, high = (f"{active.min():.2f}", f"{active.max():.2f}") if len(active) else ("–", "–")
        rows.append([f"{rho:g}", f"{active_share(one).mean():.0f}", low, high])
    return rows


def agreement(trained: Mapping[float, Trained]) -> Tensor:
    """Pearson correlation of source and final target weights over all classes and filters, one number per ρ."""
    pairs = [weight_history(one, rho)["target"][[0, -1]].flatten(1) for rho, one in trained.items()]
    return torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs])
