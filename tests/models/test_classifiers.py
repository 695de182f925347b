"""Classifiers: shapes, seeds, weights from files, clear refusals, the layers that the papers explain."""

import os
from pathlib import Path

import pytest
import torch
from captum.attr import LayerGradCam
from safetensors.torch import save_file

from repro.models import ARCHITECTURES, WeightsUnavailable, load_classifier
from repro.models import weights as weights_module


def _activation(classifier, inputs):
    seen = []
    handle = classifier.target_layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        logits = classifier.network(inputs)
    handle.remove()
    return seen[0], logits


@pytest.mark.parametrize(
    ("architecture", "size", "shape"),
    [
        ("small_cnn", 64, (64, 8, 8)),
        ("small_vit", 64, (65, 64)),
        ("small_vit", 32, (65, 64)),
        ("small_vit", 28, (50, 64)),
        ("squeezenet1_0", 224, (512, 13, 13)),
        ("resnet18", 224, (512, 7, 7)),
    ],
)
def test_target_layer_and_logits(architecture, size, shape) -> None:
    classifier = load_classifier(architecture, num_classes=5, input_size=size)
    activation, logits = _activation(classifier, torch.randn(1, 3, size, size))
    assert activation.shape[1:] == shape
    assert logits.shape == (1, 5)
    assert not any(module.training for module in classifier.network.modules())


def test_vgg19_and_vit_b_16_name_the_layers_of_the_digest() -> None:
    with torch.device("meta"):
        vgg = ARCHITECTURES["vgg19"].build(1000, 224)
        vit = ARCHITECTURES["vit_b_16"].build(1000, 224)
    assert isinstance(vgg.get_submodule(ARCHITECTURES["vgg19"].target_layer), torch.nn.MaxPool2d)
    assert isinstance(vgg.get_submodule("features.35"), torch.nn.ReLU)
    assert vit.get_submodule(ARCHITECTURES["vit_b_16"].target_layer) is vit.encoder.layers[-1].ln_1


@pytest.mark.parametrize("architecture", ["small_cnn", "small_vit"])
def test_a_seed_fixes_the_weights_and_the_global_state_is_untouched(architecture) -> None:
    before = torch.get_rng_state()
    states = [load_classifier(architecture, num_classes=3, seed=seed).network.state_dict() for seed in (1, 1, 2)]
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_the_vit_target_layer_gets_gradients_at_random_initialisation() -> None:
    classifier = load_classifier("small_vit", num_classes=3)
    attribution = LayerGradCam(classifier.network, classifier.target_layer).attribute(
        torch.randn(1, 3, 64, 64), target=1, attr_dim_summation=False
    )
    assert attribution.abs().max() > 0


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_from_a_file_and_from_the_data_root(suffix, tmp_path, monkeypatch) -> None:
    source = load_classifier("small_cnn", num_classes=3, seed=5)
    path = tmp_path / "weights" / f"cnn{suffix}"
    path.parent.mkdir()
    state = source.network.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    inputs = torch.randn(2, 3, 64, 64)
    for weights in (path, f"cnn{suffix}", state):
        loaded = load_classifier("small_cnn", num_classes=3, weights=weights)
        assert torch.equal(loaded.network(inputs), source.network(inputs))


def test_another_number_of_classes_needs_replace_head() -> None:
    state = load_classifier("small_cnn", num_classes=3, seed=5).network.state_dict()
    with pytest.raises(WeightsUnavailable, match=r"head.*replace_head=True"):
        load_classifier("small_cnn", num_classes=2, weights=state)
    tuned = load_classifier("small_cnn", num_classes=2, weights=state, replace_head=True, seed=9)
    assert torch.equal(tuned.network.features[0][0].weight, state["features.0.0.weight"])
    fresh = load_classifier("small_cnn", num_classes=2, seed=9)
    assert torch.equal(tuned.network.head.weight, fresh.network.head.weight)


def test_weights_that_are_damaged_or_of_another_network_are_refused(tmp_path) -> None:
    for name in ("a.safetensors", "a.pt"):
        (tmp_path / name).write_bytes(b"\x08")
        with pytest.raises(WeightsUnavailable, match="cannot be read"):
            load_classifier("small_cnn", num_classes=2, weights=tmp_path / name)
    with pytest.raises(WeightsUnavailable, match="names missing"):
        load_classifier("small_cnn", num_classes=2, weights={"head.bias": torch.zeros(2)})
    with pytest.raises(WeightsUnavailable, match="repro data prepare weights"):
        load_classifier("small_cnn", num_classes=2, weights="nowhere.safetensors")


def test_torchvision_weights_without_a_connection_say_what_to_do(monkeypatch) -> None:
    class Offline:
        def get_state_dict(self, **_options):
            raise OSError("no route to host")

    monkeypatch.setattr(weights_module, "get_weight", lambda _name: Offline())
    with pytest.raises(WeightsUnavailable, match=r"could not download ResNet18_Weights.*copy"):
        load_classifier("resnet18", num_classes=1000, weights="torchvision")
    with pytest.raises(WeightsUnavailable, match="torchvision has none"):
        load_classifier("small_cnn", num_classes=10, weights="torchvision")


def test_bad_arguments_are_named() -> None:
    with pytest.raises((ValueError, TypeError), match="small_cnn"):
        load_classifier("resnet50", num_classes=10)
    with pytest.raises(ValueError, match="multiple of the patch size"):
        load_classifier("small_vit", num_classes=10, input_size=30)
    with pytest.raises(ValueError, match="made for 224"):
        load_classifier("vit_b_16", num_classes=10, input_size=64)
    with pytest.raises(ValueError, match="no layer 'layer9'"):
        load_classifier("small_cnn", num_classes=10, target_layer="layer9")
    with pytest.raises(ValueError, match="2 names for num_classes=3"):
        load_classifier("small_cnn", num_classes=3, classes=["a", "b"])


def test_class_names() -> None:
    assert load_classifier("squeezenet1_0", num_classes=1000).classes[207] == "golden retriever"
    assert load_classifier("small_cnn", num_classes=2).classes == ("class 0", "class 1")


def test_squeezenet_weights_of_the_data_root_fit() -> None:
    root = Path(os.environ.get("REPRO_DATA", "data"))
    path = root / "weights" / "squeezenet1_0_imagenet.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path.name} under REPRO_DATA")
    classifier = load_classifier("squeezenet1_0", num_classes=1000, weights=path.name)
    assert classifier.network(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
