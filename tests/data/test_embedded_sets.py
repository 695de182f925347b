"""Embedded sets: determinism, ground truth that fits the pixels, nothing class-informative outside the part."""

import numpy as np
import pytest
import torch

from repro.data import ImageSet, load_dataset, load_scenes
from repro.data.scenes import CLASSES, EMBLEMS, render_scene


def test_scene_depends_on_split_seed_and_index_alone():
    few, many = load_scenes("train", 3), load_scenes("train", 20)
    assert torch.equal(few.images, many.images[:3]) and few.ids == many.ids[:3]
    for other in (load_scenes("test", 3), load_scenes("train", 3, seed=1)):
        assert not torch.equal(few.images, other.images)


def test_scene_sizes_show_the_same_scene():
    small, large = load_scenes(limit=16), load_scenes(limit=16, size=128)
    for a, b in zip(small.boxes, large.boxes, strict=True):
        assert (2 * a - b).abs().max() <= 3
    shrunk = torch.nn.functional.avg_pool2d(large.images.float(), 2)
    assert (shrunk - small.images).abs().mean() < 12


def test_scene_ground_truth_fits_together():
    scenes = load_scenes("test", 40)
    assert scenes.labels.tolist() == [i % len(CLASSES) for i in range(40)] and len(CLASSES) >= 6
    for mask, part, boxes in zip(scenes.masks, scenes.part_masks, scenes.boxes, strict=True):
        ys, xs = mask.nonzero(as_tuple=True)
        assert boxes.tolist() == [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]
        assert not (part & ~mask).any()
        assert 0.1 < part.sum() / mask.sum() < 0.65 and mask.float().mean() < 0.4


def test_classes_differ_in_the_emblem_only():
    """The same random stream with another label changes no pixel outside the part."""
    pair = [render_scene("test", 5, index, 64) for index in (0, 8)]
    assert pair[0].labels == pair[1].labels  # one full turn of the classes

    rendered = []
    for emblem in ("star", "stripes"):
        original = EMBLEMS["star"]
        EMBLEMS["star"] = EMBLEMS[emblem]
        try:
            rendered.append(render_scene("test", 5, 0, 64))
        finally:
            EMBLEMS["star"] = original
    star, stripes = rendered
    differs = (star.image != stripes.image).any(-1)
    assert differs.any() and np.array_equal(star.mask, stripes.mask)
    grown = torch.nn.functional.max_pool2d(torch.tensor(star.part_mask)[None].float(), 3, 1, 1)[0].bool()
    assert not (differs & ~grown.numpy()).any()


def test_two_objects_have_two_classes_and_two_separate_boxes():
    scenes = load_dataset("scenes_two_objects", limit=20)
    for boxes, labels in zip(scenes.boxes, scenes.box_labels, strict=True):
        assert boxes.shape == (2, 4) and labels[0] != labels[1]
        assert boxes[0, 2] <= boxes[1, 0] + 8
    assert scenes.labels.tolist() == [int(labels[0]) for labels in scenes.box_labels]


@pytest.mark.parametrize(
    "options", [{"split": "tset"}, {"size": 8}, {"limit": 0}, {"objects": 3}], ids=lambda o: next(iter(o))
)
def test_scene_arguments_are_checked(options):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        load_scenes(**options)


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    train, test = load_dataset("digits", "train"), load_dataset("digits", "test")
    assert (len(train), len(test)) == (1348, 449)
    bunch = load_digits()
    levels = np.rint(test.images[:, 0].numpy() / 255 * 16)
    assert np.array_equal(levels, bunch.images[3::4]) and test.labels.tolist() == bunch.target[3::4].tolist()
    assert load_dataset("digits", "test", limit=20, size=32).images.shape == (20, 3, 32, 32)


def test_font_digits():
    few, many = load_dataset("font_digits", "train", limit=10), load_dataset("font_digits", "train", limit=30)
    assert torch.equal(few.images, many.images[:10]) and few.labels.tolist() == list(range(10))
    assert few.images.shape == (10, 3, 32, 32) and (few.images.flatten(1).amax(1) > 120).all()
    assert not torch.equal(many.images[0], many.images[10])


def test_subset_keeps_everything_together():
    scenes = load_scenes(limit=8)
    part = scenes.subset([5, 2])
    assert part.ids == [scenes.ids[5], scenes.ids[2]] and part.labels.tolist() == [5, 2]
    for name in ("images", "masks", "part_masks"):
        assert torch.equal(getattr(part, name)[0], getattr(scenes, name)[5])
    assert torch.equal(part.boxes[1], scenes.boxes[2])
    with pytest.raises(ValueError, match=r"0\.\.7"):
        scenes.subset([8])


def test_manifest_notices_every_change():
    scenes = load_scenes(limit=4)
    assert scenes.manifest == load_scenes(limit=4).manifest
    changed = scenes.images.clone()
    changed[3, 2, 63, 63] ^= 1
    others = {
        ImageSet("scenes", "test", changed, scenes.labels, CLASSES, scenes.ids).manifest,
        ImageSet("scenes", "test", scenes.images, scenes.labels, CLASSES, scenes.ids).manifest,
        ImageSet("scenes", "test", scenes.images, scenes.labels, CLASSES, scenes.ids[::-1]).manifest,
        ImageSet("scenes", "test", scenes.images, scenes.labels.flip(0), CLASSES, scenes.ids).manifest,
        scenes.manifest,
    }
    assert len(others) == 5


def test_contradicting_fields_are_refused():
    scenes = load_scenes(limit=4)
    with pytest.raises((ValueError, TypeError), match="labels"):
        ImageSet("x", "test", scenes.images, scenes.labels[:3], CLASSES, scenes.ids)
    with pytest.raises(ValueError, match="there are 2 classes"):
        ImageSet("x", "test", scenes.images, scenes.labels, CLASSES[:2], scenes.ids)
