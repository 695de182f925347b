"""Training of classifiers: it learns, is found again, resumes bit-exactly, and fine-tunes what it should."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from repro.models import load_classifier
from repro.training import ClassifierSettings, RunStore, accuracy, train_classifier
from repro.training.augmentation import flip_and_shift
from repro.training.classifier import batch_of_step


@dataclass(frozen=True)
class Squares:
    """A bright square in the left or in the right half: learnable in a few steps."""

    images: Tensor
    labels: Tensor
    manifest: str
    classes: tuple[str, ...] = ("left", "right")


def squares(count: int = 64, size: int = 32, seed: int = 0) -> Squares:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % 2
    for image, label in zip(images, labels.tolist(), strict=True):
        row = int(torch.randint(0, size - 8, (1,), generator=generator))
        image[label, row : row + 8, 4 + label * size // 2 : 12 + label * size // 2] = 255
    return Squares(images, labels, f"squares {count} {size} {seed}")


QUICK = ClassifierSettings(learning_rate=3e-3, schedule="cosine", epochs=6, batch_size=16)


@pytest.mark.parametrize("architecture", ["small_cnn", "small_vit"])
def test_a_small_network_learns_and_is_found_again(architecture, tmp_path) -> None:
    store = RunStore(tmp_path)
    trained = train_classifier(architecture, squares(), QUICK, store=store)
    assert not trained.run.reused
    assert accuracy(trained.classifier, squares(seed=1)) > 0.95
    assert trained.run.metrics["train_accuracy"] > 0.95
    assert trained.run.history[-1]["loss"] < trained.run.history[0]["loss"]
    again = train_classifier(architecture, squares(), QUICK, store=store)
    assert again.run.reused
    images = trained.classifier.normalisation.apply(squares().images[:4])
    assert torch.equal(again.classifier.network(images), trained.classifier.network(images))
    assert again.classifier.classes == ("left", "right")
    assert not again.classifier.network.training


def test_every_part_of_the_configuration_makes_another_run(tmp_path) -> None:
    store, short = RunStore(tmp_path), QUICK.model_copy(update={"epochs": 1})
    start = load_classifier("small_cnn", num_classes=7, seed=3).network.state_dict()
    keys = [
        train_classifier("small_cnn", squares(), short, store=store).run.key,
        train_classifier("small_cnn", squares(seed=1), short, store=store).run.key,
        train_classifier("small_cnn", squares(), short.model_copy(update={"seed": 1}), store=store).run.key,
        train_classifier("small_cnn", squares(), short, start=start, store=store).run.key,
    ]
    assert len(set(keys)) == 4


def test_an_interrupted_training_ends_bit_identically(tmp_path, monkeypatch) -> None:
    settings = QUICK.model_copy(update={"epochs": 2, "flip": True, "shift": 2})
    whole = train_classifier("small_cnn", squares(), settings, store=RunStore(tmp_path / "whole"))
    calls = iter(range(100))

    def fail_at_the_fifth(*arguments, **options):
        if next(calls) == 5:
            raise KeyboardInterrupt
        return flip_and_shift(*arguments, **options)

    store = RunStore(tmp_path / "cut", checkpoint_seconds=0)
    monkeypatch.setattr("repro.training.classifier.flip_and_shift", fail_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        train_classifier("small_cnn", squares(), settings, store=store)
    resumed = train_classifier("small_cnn", squares(), settings, store=store)
    assert len(resumed.run.history) == len(whole.run.history) == 8
    assert all(torch.equal(resumed.run.tensors[name], value) for name, value in whole.run.tensors.items())


def test_training_the_head_leaves_the_rest_and_batch_norm_alone(tmp_path) -> None:
    start = load_classifier("small_cnn", num_classes=7, seed=3).network.state_dict()
    settings = QUICK.model_copy(update={"epochs": 1, "trainable": "head"})
    tensors = train_classifier("small_cnn", squares(), settings, start=start, store=RunStore(tmp_path)).run.tensors
    fresh_head = load_classifier("small_cnn", num_classes=2, seed=settings.seed).network.head.weight
    assert all(torch.equal(tensors[name], value) for name, value in start.items() if name.startswith("features"))
    assert tensors["head.weight"].shape == (2, 64)
    assert not torch.equal(tensors["head.weight"], fresh_head)


def test_the_global_random_state_is_left_alone(tmp_path) -> None:
    before = torch.get_rng_state()
    train_classifier("small_cnn", squares(), QUICK.model_copy(update={"epochs": 1}), store=RunStore(tmp_path))
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
    wide = Squares(torch.zeros(4, 3, 8, 16, dtype=torch.uint8), torch.zeros(4, dtype=torch.long), "wide")
    with pytest.raises(ValueError, match="square"):
        train_classifier("small_cnn", wide, QUICK, store=RunStore(tmp_path))
