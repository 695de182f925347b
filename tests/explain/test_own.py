"""Your own network and pictures: the page, the command's choices, the notebook; the overlay."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import nn

from repro.explain import overlay
from repro.models.classifiers import load_classifier
from repro.project import UserError, code_root
from repro.studies.own import METHODS, PHOTOS, choose_layer, explain_images, read_photos, write_study

FAST = ("gradcam", "layercam", "scorecam", "scorecampp")


@pytest.fixture(scope="module")
def study():
    return explain_images("small_cnn", None, num_classes=3, methods=FAST)


def test_the_page_is_one_offline_file_with_picture_table_and_controls(study, tmp_path):
    text = write_study(study, tmp_path / "out").read_text()
    HTMLParser().feed(text)
    assert re.findall(r"<img[^>]*src=\"([^\"]{21})", text) == ["data:image/png;base64"]
    assert not re.search(r"<script|https?://", text)
    for words in ("Score-CAM", "control: the whole image", "Average Drop", "SHA-256", "features"):
        assert words in text
    assert (tmp_path / "out" / "maps.png").stat().st_size > 10_000


def test_the_whole_image_drops_nothing_and_covers_everything(study):
    assert study.rows[-1] == ("control: the whole image", "0.0", "0", "100.0")
    assert len(study.rows) == len(FAST) + 1


def test_the_photographs_are_small_and_have_a_licence():
    licences = (PHOTOS / "LICENCES.md").read_text()
    files = sorted(PHOTOS.glob("*.jpg"))
    assert len(files) == 5
    for path in files:
        assert path.stat().st_size <= 100_000
        assert path.name in licences


def test_the_layer_chosen_is_the_last_behind_a_rectifier():
    network = load_classifier("timm:tf_efficientnet_lite0", num_classes=10, target_layer="").network
    chosen = choose_layer(network, torch.randn(1, 3, 64, 64))
    assert (chosen.name, chosen.negative, chosen.connected) == ("bn2", 0, True)


def test_a_signed_layer_is_warned_about_on_the_page():
    with pytest.warns(UserWarning, match="negative"):
        found = explain_images("small_cnn", None, num_classes=3, methods=("gradcam",), layer="features.3.0")
    assert "behind a rectifier" in found.page()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": "features.3.9"}, "features.3"),
        ({"methods": ("scorecamp",)}, "did you mean 'scorecam"),
        ({"folder": PHOTOS / "nowhere"}, "no images there"),
        ({"architecture": "timm:resnet5"}, "resnet50"),
    ],
)
def test_mistakes_are_named(change, message):
    options = {"architecture": "small_cnn", "weights": None, "num_classes": 3, "methods": FAST} | change
    with pytest.raises((UserError, ValueError), match=message):
        explain_images(options.pop("architecture"), options.pop("weights"), **options)


def test_damaged_pictures_are_named(tmp_path):
    (tmp_path / "half.jpg").write_bytes((PHOTOS / "coffee.jpg").read_bytes()[:3000])
    with pytest.raises(UserError, match=r"half\.jpg"):
        read_photos(tmp_path, 32)


def test_the_notebook_runs(monkeypatch, tmp_path, capsys):
    path = code_root() / "notebooks" / "own" / "explain_your_network.ipynb"
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    monkeypatch.setattr("repro.project.reports_root", lambda: tmp_path)
    names = {}
    for cell in cells:
        exec(compile("".join(cell["source"]), str(path), "exec"), names)
        if "parameters" in cell["metadata"].get("tags", []):
            assert (names["architecture"], names["weights"], names["methods"]) == (
                "timm:tf_efficientnet_lite0", "package", METHODS
            )  # fmt: skip
            names |= {"architecture": "small_cnn", "weights": None, "classes": 3, "methods": ("gradcam",)}
    assert (tmp_path / "own" / "explanations.html").is_file()


def test_an_overlay_mixes_image_and_map():
    image = torch.full((3, 4, 4), 255, dtype=torch.uint8)
    cam = torch.zeros(1, 1, 4, 4)
    cam[..., 1, 2] = 5
    mixed = overlay(image, cam, opacity=0.5)
    assert mixed.shape == (4, 4, 3) and mixed.dtype == np.uint8
    yellow, violet = mixed[1, 2].astype(int), mixed[0, 0].astype(int)
    assert yellow[1] > violet[1] + 80  # viridis: its top is yellow, its bottom violet
    assert np.array_equal(overlay(image, torch.zeros(2, 2), opacity=0), np.full((4, 4, 3), 255))
    with pytest.raises(ValueError, match="not normalised"):
        overlay(torch.randn(3, 4, 4) * 9, cam)
    with pytest.raises(ValueError, match="cam"):
        overlay(image, torch.zeros(3, 4, 4))


def test_layers_without_a_grid_are_no_choice():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(UserError, match="--layer"):
        choose_layer(network, torch.randn(1, 3, 2, 2))
