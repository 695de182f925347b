"""Normalisation: hand-computed values, exact inversion, refused input."""

import pytest
import torch

from repro.data.images import HALF, IMAGENET, Normalisation


def test_apply_is_hand_computed() -> None:
    pixel = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    assert HALF.apply(pixel).flatten().tolist() == pytest.approx([1.0, -1.0, -0.6])
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]
    assert IMAGENET.apply(pixel).flatten().tolist() == pytest.approx(expected)


def test_black_is_a_normalised_zero_pixel() -> None:
    zero = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    torch.testing.assert_close(IMAGENET.black(), IMAGENET.apply(zero))


@pytest.mark.parametrize("normalisation", [IMAGENET, HALF])
def test_invert_restores_every_pixel_value(normalisation: Normalisation) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(normalisation.invert(normalisation.apply(every)), every)


def test_scaled_images_and_statistics_on_the_255_scale_are_refused() -> None:
    with pytest.raises((ValueError, TypeError), match=r"uint8|UInt8"):
        HALF.apply(torch.rand(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"0\.\.1 scale"):
        Normalisation(mean=(123.7, 116.3, 103.5), std=(0.2, 0.2, 0.2))
    with pytest.raises(ValueError, match="positive"):
        Normalisation(mean=(0.5, 0.5, 0.5), std=(0.0, 0.2, 0.2))
