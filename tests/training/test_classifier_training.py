"""Training of classifiers: it learns, is found again, resumes bit-exactly, and fine-tunes what it should."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from repro.models import Classifier, load_classifier
from repro.training import (
    ClassifierRun,
    ClassifierSettings,
    Run,
    RunResult,
    RunStore,
    accuracy,
    train_classifier,
)
from repro.training.classifier import batch_of_step, flip_and_shift


@dataclass(frozen=True)
class Squares:
    """A bright square in the left or in the right half: learnable in a few steps."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...] = ("left", "right")


def squares(count: int = 64, size: int = 32, seed: int = 0) -> Squares:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % 2
    for image, label in zip(images, labels.tolist(), strict=True):
        row = int(torch.randint(0, size - 8, (1,), generator=generator))
        image[label, row : row + 8, 4 + label * size // 2 : 12 + label * size // 2] = 255
    return Squares(images, labels)


SHORT = ClassifierSettings(learning_rate=3e-3, schedule="cosine", epochs=2, batch_size=16)


def train(store: RunStore, settings=SHORT, architecture="small_cnn", start=None) -> tuple[Classifier, RunResult]:
    data = squares()
    classifier = load_classifier(
        architecture, num_classes=2, input_size=32, weights=start, replace_head=start is not None, seed=settings.seed
    )
    config = ClassifierRun(architecture=architecture, weights="test", data="squares", settings=settings)
    result = store.run(config, lambda run: train_classifier(run, classifier, data, settings))
    return load_classifier(architecture, num_classes=2, input_size=32, weights=result.tensors), result


@pytest.mark.parametrize("architecture", ["small_cnn", "small_vit"])
def test_a_small_network_learns_and_is_found_again(architecture, tmp_path) -> None:
    store = RunStore(tmp_path)
    settings = SHORT.model_copy(update={"epochs": 6})
    classifier, result = train(store, settings, architecture)
    assert not result.reused
    assert accuracy(classifier, squares(seed=1)) > 0.95
    assert result.metrics["train_accuracy"] > 0.95
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    again, found = train(store, settings, architecture)
    assert found.reused
    images = classifier.normalisation.apply(squares().images[:4])
    assert torch.equal(again.network(images), classifier.network(images))


def test_an_interrupted_training_ends_bit_identically(tmp_path, monkeypatch) -> None:
    settings = SHORT.model_copy(update={"flip": True, "shift": 2})
    _, whole = train(RunStore(tmp_path / "whole"), settings)
    calls = iter(range(100))

    def fail_at_the_fifth(*arguments, **options):
        if next(calls) == 5:
            raise KeyboardInterrupt
        return flip_and_shift(*arguments, **options)

    store = RunStore(tmp_path / "cut", checkpoint_seconds=0)
    monkeypatch.setattr("repro.training.classifier.flip_and_shift", fail_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        train(store, settings)
    _, resumed = train(store, settings)
    assert len(resumed.history) == len(whole.history) == 8
    assert all(torch.equal(resumed.tensors[name], value) for name, value in whole.tensors.items())


def test_training_the_head_leaves_the_rest_and_batch_norm_alone(tmp_path) -> None:
    start = load_classifier("small_cnn", num_classes=7, seed=3).network.state_dict()
    settings = SHORT.model_copy(update={"epochs": 1, "trainable": "head"})
    _, result = train(RunStore(tmp_path), settings, start=start)
    fresh_head = load_classifier("small_cnn", num_classes=2, seed=settings.seed).network.head.weight
    assert all(torch.equal(result.tensors[name], value) for name, value in start.items() if name.startswith("features"))
    assert result.tensors["head.weight"].shape == (2, 64)
    assert not torch.equal(result.tensors["head.weight"], fresh_head)


def test_the_paper_fine_tunes_with_adam_and_small_networks_start_from_scratch() -> None:
    paper = ClassifierSettings.for_architecture("resnet18", epochs=100, seed=0)
    assert (paper.optimizer, paper.learning_rate, paper.batch_size) == ("adam", 1e-4, 64)
    assert paper == ClassifierSettings()
    assert ClassifierSettings.for_architecture("small_vit", epochs=3, seed=2).learning_rate > paper.learning_rate


def test_the_global_random_state_is_left_alone(tmp_path) -> None:
    before = torch.get_rng_state()
    train(RunStore(tmp_path), SHORT.model_copy(update={"epochs": 1}))
    assert torch.equal(before, torch.get_rng_state())


def test_an_epoch_sees_every_image_once() -> None:
    seen = torch.cat([batch_of_step(step, images=10, batch=5, seed=0)[0] for step in range(4)])
    assert seen[:5].tolist() != seen[5:].tolist()
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


def test_flip_and_shift_move_pixels_as_told() -> None:
    images = torch.arange(3 * 5 * 5, dtype=torch.uint8).view(1, 3, 5, 5).expand(40, 3, 5, 5)
    still = flip_and_shift(images, flip=False, shift=0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(still, images)
    flipped = flip_and_shift(images, flip=True, shift=0, generator=torch.Generator().manual_seed(0))
    mirrored = (flipped == images.flip(3)).flatten(1).all(dim=1)
    assert ((flipped == images).flatten(1).all(dim=1) ^ mirrored).all()
    assert 5 < int(mirrored.sum()) < 35
    moved = flip_and_shift(images, flip=False, shift=1, generator=torch.Generator().manual_seed(0))
    centres = set(moved[:, 0, 2, 2].tolist())
    assert centres == {6, 7, 8, 11, 12, 13, 16, 17, 18}


def test_bad_data_is_named(tmp_path) -> None:
    classifier = load_classifier("small_cnn", num_classes=3, input_size=32)
    with pytest.raises(ValueError, match=r"64 images of 2 classes.*network's 3"):
        train_classifier(Run(tmp_path, 1.0), classifier, squares(), SHORT)
