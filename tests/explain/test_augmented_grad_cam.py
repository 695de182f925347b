"""Augmented Grad-CAM++: the geometry by hand, identities, the released reading."""

import math

import pytest
import torch
import torch.nn.functional as F

from repro.explain import (
    RELEASED_AUGMENTATION,
    AugmentationSettings,
    AugmentedGradCAMPlusPlus,
    GradCAMPlusPlus,
)
from repro.explain.augmented import draw_warps, invert, sampling_grid, super_resolve


def warp(image, warps):
    grids = sampling_grid(warps, (image.shape[-2], image.shape[-1]))
    return F.grid_sample(image.expand(len(warps), -1, -1, -1), grids, "bilinear", align_corners=False)


def test_a_shift_moves_the_image_by_that_many_pixels():
    image = torch.zeros(1, 1, 6, 8)
    image[0, 0, 2, 3] = 1
    right_two_down_one = torch.tensor([[[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]]])
    moved = warp(image, invert(right_two_down_one))
    assert moved[0, 0, 3, 5] == pytest.approx(1)
    torch.testing.assert_close(warp(moved, right_two_down_one), image)


def test_a_quarter_turn_on_a_rectangle_keeps_pixels_square():
    image = torch.zeros(1, 1, 5, 9)
    image[0, 0, 2, 6] = 1  # two pixels right of the centre
    quarter = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]])
    assert warp(image, invert(quarter))[0, 0, 4, 4] == pytest.approx(1)  # two below it


def test_warps_stay_in_their_range_and_follow_the_seed():
    settings = AugmentationSettings(copies=200)
    warps = draw_warps(settings, (100, 200), identity_first=True)
    assert torch.equal(warps[0], torch.tensor([[1.0, 0, 0], [0, 1, 0]]))
    angles = torch.atan2(warps[:, 1, 0], warps[:, 0, 0])
    assert 0.45 < angles.abs().max() <= math.radians(settings.max_angle) + 1e-6
    assert 0.9 * 30 / 224 * 200 < warps[:, 0, 2].abs().max() <= 30 / 224 * 200
    assert warps[:, 1, 2].abs().max() <= 30 / 224 * 100
    assert torch.equal(warps, draw_warps(settings, (100, 200), identity_first=True))
    other = draw_warps(AugmentationSettings(copies=200, seed=1), (100, 200), identity_first=True)
    assert not torch.equal(warps, other)


def test_one_copy_is_gradcam_plus_plus_divided_by_its_maximum(cnn, images):
    ours = AugmentedGradCAMPlusPlus(cnn, cnn.rectify, AugmentationSettings(copies=1)).attribute(images, 2)
    lowres = GradCAMPlusPlus(cnn, cnn.rectify).attribute_lowres(images, 2)
    lowres = lowres / lowres.amax((2, 3), keepdim=True)
    expected = F.interpolate(lowres, size=(32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("combine", ["mean", "max", "super_resolution"])
def test_maps_do_not_depend_on_the_batch(combine, cnn, images):
    explainer = AugmentedGradCAMPlusPlus(
        cnn, cnn.rectify, AugmentationSettings(copies=5, combine=combine), batch_size=2
    )
    together = explainer.attribute(images, [0, 1, 2])
    assert together.shape == (3, 1, 32, 32)
    assert together.amin() >= 0
    assert together.amax() > 0
    alone = explainer.attribute(images[1:2], 1)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-3, atol=1e-4)


def test_the_inverse_warp_and_super_resolution_find_the_object_again():
    """Low-resolution views of warped copies of a blob, as a perfect explainer would give them."""
    settings = AugmentationSettings(copies=40)
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    blob = torch.exp(-((rows - 20) ** 2 + (columns - 40) ** 2) / 72)[None, None]
    warps = draw_warps(settings, (64, 64), identity_first=True)
    views = F.adaptive_avg_pool2d(warp(blob, invert(warps)), 8)
    upsampled = F.interpolate(views, size=(64, 64), mode="bilinear")

    def correlation(cam):
        return torch.corrcoef(torch.stack([cam.flatten(), blob.flatten()]))[0, 1].item()

    aligned = correlation(warp_each(upsampled, warps).mean(0))
    fast = settings.super_resolution.__class__(learning_rate=1e-2)
    resolved = correlation(super_resolve(views, warps, (64, 64), fast))
    assert aligned > correlation(upsampled.mean(0)) + 0.02
    assert resolved > aligned


def warp_each(maps, warps):
    return F.grid_sample(maps, sampling_grid(warps, (64, 64)), "bilinear", align_corners=False)


def test_the_released_reading_explains_class_j_on_copy_j(cnn, images, monkeypatch):
    seen = []
    original = GradCAMPlusPlus._lowres
    monkeypatch.setattr(
        GradCAMPlusPlus,
        "_lowres",
        lambda self, reader, given, labels, *rest: (
            seen.append((given.tensors[0], labels)) or original(self, reader, given, labels, *rest)
        ),
    )
    AugmentedGradCAMPlusPlus(cnn, cnn.rectify, RELEASED_AUGMENTATION).attribute(images[:1], 3)
    copies, labels = seen[0]
    assert labels.tolist() == [3] + [j % 5 for j in range(100)]
    assert torch.equal(copies[0], images[0])


def test_contradicting_settings_are_refused():
    with pytest.raises(ValueError, match="inverse_warp"):
        AugmentationSettings(combine="super_resolution", inverse_warp=False)
    with pytest.raises(ValueError, match="copies"):
        AugmentationSettings(copies=0)
