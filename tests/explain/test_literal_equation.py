"""ScoreCAM++ eq. (10) to the letter on a network that has learnt something: most maps vanish."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from repro.explain import SCORE_CAM_PLUS_PLUS_PRESETS, SCORE_CAM_PRESETS, shared_score_maps


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(digits.target)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 64, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(200):
        picked = torch.randint(1500, (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[picked]), labels[picked]).backward()
        optimizer.step()
    return model.eval(), images[1500:1600]


def test_the_literal_baseline_leaves_most_maps_empty(trained):
    model, images = trained
    variants = {
        "literal": SCORE_CAM_PLUS_PLUS_PRESETS["paper"],
        "released": SCORE_CAM_PLUS_PLUS_PRESETS["released"],
    }
    maps = shared_score_maps(model, model[3], images, variants)
    empty = {name: (cam.amax((1, 2, 3)) == 0).float().mean().item() for name, cam in maps.items()}
    assert empty["literal"] > 0.5
    assert empty["released"] == 0


def test_so_does_equation_5_of_score_cam(trained):
    model, images = trained
    maps = shared_score_maps(model, model[3], images, {"literal": SCORE_CAM_PRESETS["scorecampp_paper"]})["literal"]
    assert (maps.amax((1, 2, 3)) == 0).float().mean() > 0.5
