"""Real and generated features of a trained DFG: statistics, distances and projections (Figure 2)."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from torch import Tensor

from repro.evidence.comparison import sample_key
from repro.evidence.record import Row, Setting
from repro.metrics.frechet import frechet_distance
from repro.models import FEATURE_GAN_SHAPES, FeatureGenerator
from repro.studies.dfg import Study, Trained
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
