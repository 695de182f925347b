"""The area control: a hand-computed exponent, the wanted mean, the same order of pixels, limits that are reported."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.metrics import area_matched, explanation_maps, whole_image
from repro.metrics.faithfulness import FaithfulnessSettings


def test_exponent_is_hand_computed() -> None:
    # mean(0, 1/2, 1/2, 1) = 1/2; with γ = 2 it is (0 + 1/4 + 1/4 + 1) / 4 = 3/8.
    mask = torch.tensor([[0.0, 0.5], [0.5, 1.0]]).view(1, 1, 2, 2)
    matched = area_matched(mask, torch.tensor([[0.375]]))
    assert matched.exponent.item() == pytest.approx(2, rel=1e-4)
    assert matched.maps.flatten().tolist() == pytest.approx([0, 0.25, 0.25, 1], abs=1e-4)
    assert matched.reached.all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), area=st.floats(0.15, 0.9))
def test_the_area_is_met_and_the_ranking_kept(seed: int, area: float) -> None:
    raw = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    masks = explanation_maps(raw, (12, 12), FaithfulnessSettings()).masks
    matched = area_matched(masks, torch.full((2, 3), area))
    assert matched.reached.all()
    torch.testing.assert_close(matched.maps.mean(dim=(2, 3)), torch.full((2, 3), area), atol=1e-4, rtol=0)
    order = masks.flatten(2).argsort(dim=2, stable=True)
    assert (matched.maps.flatten(2).gather(2, order).diff(dim=2) >= 0).all()


def test_a_wider_area_needs_a_smaller_exponent() -> None:
    mask = torch.rand(1, 1, 8, 8).sub(0.1).clamp(0)
    mask = mask / mask.max()
    narrow, wide = (area_matched(mask, torch.tensor([[area]])) for area in (0.2, 0.7))
    assert wide.exponent < narrow.exponent


def test_an_area_out_of_reach_is_reported() -> None:
    # Three of four pixels are zero: no power lets more than a quarter of the image through.
    mask = torch.tensor([[0.0, 0.0], [0.0, 1.0]]).view(1, 1, 2, 2)
    masks = torch.cat((mask, whole_image(mask)), dim=1)
    matched = area_matched(masks, torch.tensor([[0.6, 0.6]]))
    assert matched.reached.tolist() == [[False, False]]
    assert matched.maps.isfinite().all()


def test_maps_that_are_not_masks_are_refused() -> None:
    with pytest.raises(ValueError, match="masks: values outside"):
        area_matched(torch.full((1, 1, 2, 2), 3.0), torch.tensor([[0.5]]))
    with pytest.raises(ValueError, match="target_area: values outside"):
        area_matched(torch.rand(1, 1, 2, 2), torch.tensor([[50.0]]))
