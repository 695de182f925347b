"""CAM entropy: hand-computed values, and for every reading the pixels it pushes up and down."""

import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from repro.losses import EntropyForm, cam_entropy, ega_loss

ZERO = torch.tensor([0])


def one_class(values: list[float]) -> Tensor:
    """A map of one image and one class, as a row."""
    return torch.tensor(values).view(1, 1, 1, -1)


def pushed_up(maps: Tensor, form: EntropyForm, label: Tensor = ZERO) -> Tensor:
    """Where one step of gradient descent on the term alone raises the map: +1 up, -1 down, 0 unmoved."""
    maps = maps.clone().requires_grad_()
    return -torch.autograd.grad(cam_entropy(maps, label, form), maps)[0].sign()


# p = (1/4, 1/2, 1, 0) after min–max: entropies 1/2, 1/2, 0 and 0 bits.
QUARTERS = one_class([-1.0, 1.0, 5.0, -3.0])


@pytest.mark.parametrize(
    "form,expected",
    [
        ("minmax", (0.5 + 0.5) / 4),
        ("minmax_sum", 1.0),
        ("released", 0.25),
        ("binary", (0.5 - 0.75 * math.log2(0.75) + 1.0) / 4),
    ],
)
def test_minmax_forms_by_hand(form: EntropyForm, expected: float) -> None:
    assert cam_entropy(QUARTERS, ZERO, form).item() == pytest.approx(expected, abs=1e-6)


def test_softmax_and_sigmoid_forms_by_hand() -> None:
    uniform = torch.zeros(2, 4, 3, 5)
    labels = torch.tensor([0, 3])
    assert cam_entropy(uniform, labels, "class_softmax").item() == pytest.approx(1.0)
    assert cam_entropy(uniform, labels, "spatial_softmax").item() == pytest.approx(math.log2(15), abs=1e-5)
    assert cam_entropy(uniform, labels, "sigmoid").item() == pytest.approx(0.5)
    logits = one_class([math.log(3), -math.log(3)])  # sigmoid 3/4 and 1/4
    assert cam_entropy(logits, ZERO, "sigmoid").item() == pytest.approx((0.5 - 0.75 * math.log2(0.75)) / 2)
    maps = torch.tensor([math.log(3), 0.0]).view(1, 2, 1, 1)  # classes 3/4 and 1/4
    assert cam_entropy(maps, ZERO, "class_softmax").item() == pytest.approx(0.5 - 0.75 * math.log2(0.75), abs=1e-6)
    row = one_class([math.log(2), 0.0, 0.0])  # pixels 1/2, 1/4, 1/4
    assert cam_entropy(row, ZERO, "spatial_softmax").item() == pytest.approx(1.5, abs=1e-6)


def test_only_the_map_of_the_images_class_counts() -> None:
    maps = torch.cat([QUARTERS, torch.randn(1, 1, 1, 4)], dim=1)
    assert cam_entropy(maps, torch.tensor([0])).item() == pytest.approx(0.25)
    assert cam_entropy(maps.flip(1), torch.tensor([1])).item() == pytest.approx(0.25)


@pytest.mark.parametrize("form", ["minmax", "minmax_sum"])
def test_minmax_pushes_pixels_above_1_over_e_up_and_others_down(form: EntropyForm) -> None:
    border = 1 / math.e
    signs = pushed_up(one_class([0.0, border - 0.02, border + 0.02, 0.9, 1.0]), form).flatten()
    assert signs[1:4].tolist() == [-1, 1, 1]


def test_sigmoid_has_its_border_at_1_over_e_too() -> None:
    border = math.log((1 / math.e) / (1 - 1 / math.e))
    assert pushed_up(one_class([-3.0, border - 0.1, border + 0.1, 3.0]), "sigmoid").flatten().tolist() == [-1, -1, 1, 1]


def test_binary_has_its_border_at_one_half() -> None:
    assert pushed_up(one_class([0.0, 0.45, 0.55, 1.0]), "binary").flatten()[1:3].tolist() == [-1, 1]


def test_spatial_softmax_pushes_only_the_peak_up() -> None:
    assert pushed_up(one_class([0.0, 1.0, 3.0]), "spatial_softmax").flatten().tolist() == [-1, -1, 1]


def test_class_softmax_pushes_the_winning_class_up_wherever_it_wins() -> None:
    maps = torch.tensor([[[[2.0, -1.0]], [[0.0, 1.0]]]])
    assert pushed_up(maps, "class_softmax").tolist() == [[[[1, -1]], [[-1, 1]]]]


def test_released_form_has_the_value_of_minmax_and_no_gradient() -> None:
    maps = torch.randn(3, 4, 5, 5, requires_grad=True)
    labels = torch.tensor([0, 1, 3])
    released = cam_entropy(maps, labels, "released")
    assert not released.requires_grad
    assert released.item() == pytest.approx(cam_entropy(maps, labels, "minmax").item())
    assert cam_entropy(maps, labels, "minmax").requires_grad


@pytest.mark.parametrize("form", get_args(EntropyForm))
def test_constant_maps_are_finite_in_value_and_gradient(form: EntropyForm) -> None:
    maps = torch.full((1, 2, 3, 3), 0.7, requires_grad=True)
    value = cam_entropy(maps, ZERO, form)
    assert value.isfinite()
    if value.requires_grad:
        value.backward()
        assert maps.grad is not None and maps.grad.isfinite().all()
        if form.startswith("minmax"):
            assert value.item() == 0 and maps.grad.abs().max() < 1e-4


def test_gradient_is_finite_at_the_zero_of_the_map_and_agrees_with_differences() -> None:
    maps = torch.tensor([0.0, 0.1, 0.5, 0.7, 1.0], dtype=torch.float32).view(1, 1, 1, 5).requires_grad_()
    gradient = torch.autograd.grad(cam_entropy(maps, ZERO), maps)[0]
    shifted = [maps.detach().clone() for _ in range(2)]
    shifted[0][..., 2] += 1e-3
    shifted[1][..., 2] -= 1e-3
    difference = (cam_entropy(shifted[0], ZERO) - cam_entropy(shifted[1], ZERO)) / 2e-3
    assert gradient.isfinite().all()
    assert gradient[..., 2].item() == pytest.approx(difference.item(), abs=1e-3)


@pytest.mark.usefixtures("unchecked")
def test_unknown_form_is_named() -> None:
    with pytest.raises(ValueError, match="'softmin'"):
        cam_entropy(QUARTERS, ZERO, "softmin")  # type: ignore[arg-type]


@pytest.mark.usefixtures("unchecked")
def test_equation_6_sums_the_two_cross_entropies_and_mean_is_a_reading() -> None:
    clean, adversarial, labels = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    a, b = F.cross_entropy(clean, labels), F.cross_entropy(adversarial, labels)
    assert ega_loss([clean, adversarial], labels).item() == pytest.approx((a + b).item(), abs=1e-6)
    assert ega_loss([clean, adversarial], labels, "mean").item() == pytest.approx((a + b).item() / 2, abs=1e-6)
    with pytest.raises(ValueError, match="'max'"):
        ega_loss([clean], labels, "max")  # type: ignore[arg-type]
