"""Models nobody here wrote: threads, layouts, heads, precisions, copies that cannot be made, blocked gradients."""

import copy
import gc
import threading
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from repro.explain import (
    SCORE_CAM_PRESETS,
    AugmentationSettings,
    AugmentedGradCAMPlusPlus,
    EngineSettings,
    GradCAM,
    GradCAMPlusPlus,
    LayerCAM,
    ScoreCAM,
    ScoreCAMPlusPlus,
    ScoreCAMSettings,
    layers,
)
from repro.explain import engine as engine_module
from repro.explain.layer import find_layout

ONE_EACH = [GradCAM, ScoreCAM]


class Bystander(threading.Thread):
    """Runs a network of its own for as long as others explain theirs."""

    def __init__(self, network, image):
        super().__init__(daemon=True)
        self.network, self.image = network, image
        self.stop, self.errors, self.passes = threading.Event(), [], 0

    def run(self):
        expected = self.network(self.image)
        while not self.stop.is_set():
            try:
                assert torch.equal(self.network(self.image), expected)
                self.passes += 1
            except Exception as error:
                self.errors.append(error)


@torch.no_grad()
def test_four_threads_explain_four_models_beside_a_bystander(cnn, images):
    models = [copy.deepcopy(cnn) for _ in range(4)]
    for index, model in enumerate(models):
        model.last.weight.mul_(1 + index)
    alone = [ScoreCAMPlusPlus(copy.deepcopy(model), "rectify").attribute(images, 1) for model in models]
    bystander = Bystander(copy.deepcopy(cnn), images)
    found, errors = [[] for _ in models], []

    def explain(index):
        try:
            for _ in range(10):
                engine_module._kept.pop(models[index], None)  # the copy is traced anew: that is where harm was done
                found[index].append(ScoreCAMPlusPlus(models[index], "rectify").attribute(images, 1))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=explain, args=(index,)) for index in range(4)]
    bystander.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bystander.stop.set()
    bystander.join()
    assert not errors and not bystander.errors and bystander.passes
    for maps, expected in zip(found, alone, strict=True):
        assert len(maps) == 10
        for cam in maps:
            torch.testing.assert_close(cam, expected, rtol=1e-5, atol=1e-7)


def test_threads_may_share_a_model_in_training_mode(cnn, images):
    cnn.train()
    expected = [method(cnn, "rectify").attribute(images, 1) for method in ONE_EACH]
    errors = []

    def explain():
        try:
            for _ in range(5):
                for method, cam in zip(ONE_EACH, expected, strict=True):
                    torch.testing.assert_close(method(cnn, "rectify").attribute(images, 1), cam, rtol=1e-5, atol=1e-7)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=explain) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(module.training for module in cnn.modules())


# Copies kept between calls.


def copies_made(monkeypatch):
    made = []
    original = engine_module.inference_copy
    monkeypatch.setattr(engine_module, "inference_copy", lambda model: made.append(model) or original(model))
    return made


CHANGES = {
    "an optimiser's step": lambda m: m.last.weight.mul_(1.5),
    "another tensor": lambda m: setattr(m.last, "weight", nn.Parameter(m.last.weight * 1.5)),
    ".data, which keeps the version": lambda m: m.last.weight.data.mul_(1.5),
    "a statistic": lambda m: m.block[1].running_var.mul_(2),
    "another module": lambda m: setattr(m, "rectify", nn.GELU()),
    "a hook": lambda m: m.block.register_forward_hook(lambda _m, _i, output: output * 0.5),
    "a hook on a leaf": lambda m: m.block[0].register_forward_hook(lambda _m, _i, output: output * 0.5),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_copy_is_kept_until_the_model_changes(change, cnn, images, monkeypatch):
    made = copies_made(monkeypatch)
    first = ScoreCAM(cnn, "last").attribute(images, 1)
    assert torch.equal(ScoreCAM(cnn, cnn.last).attribute(images, 1), first)
    assert len(made) == 1
    with torch.no_grad():
        change(cnn)
    changed = ScoreCAM(cnn, "last").attribute(images, 1)
    assert len(made) > 1
    plain = EngineSettings(fold_batch_norm=False, fuse_convolutions=False)
    expected = ScoreCAM(copy.deepcopy(cnn), "last", engine=plain).attribute(images, 1)
    torch.testing.assert_close(changed, expected, rtol=1e-4, atol=1e-5)
    assert (changed - first).abs().max() > 1e-4


def test_nothing_grows(cnn, images):
    explainers = [method(cnn, "rectify") for method in (GradCAM, ScoreCAM, ScoreCAMPlusPlus)]
    for explainer in explainers:
        explainer.attribute(images[:1], 1)

    def tensors():
        gc.collect()
        return sum(isinstance(found, torch.Tensor) for found in gc.get_objects()), len(engine_module._kept)

    before = tensors()
    for _ in range(30):
        for explainer in explainers:
            explainer.attribute(images[:1], 1)
    assert tensors() == before
    del explainers, explainer
    model = copy.deepcopy(cnn)
    ScoreCAM(model, "rectify").attribute(images[:1], 1)
    assert len(engine_module._kept) == before[1] + 1
    del model
    gc.collect()
    assert len(engine_module._kept) == before[1]


class Locked(nn.Module):
    """Cannot be deep-copied: a lock, and a list of its own maps, which hang on a graph."""

    def __init__(self, network):
        super().__init__()
        self.network, self.lock, self.maps = network, threading.Lock(), []

    def forward(self, images):
        with self.lock:
            logits = self.network(images)
        self.maps = [logits.softmax(1)]
        return logits


@pytest.mark.parametrize("method", [ScoreCAM, ScoreCAMPlusPlus])
def test_a_model_that_cannot_be_copied_runs_itself(method, cnn, images):
    expected = method(cnn, "rectify").attribute(images, 1)
    locked = Locked(cnn).train()
    ours = method(locked, "network.rectify").attribute(images, 1)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert locked.training and not locked.maps[0].is_inference()


# Precisions.


@pytest.mark.parametrize("method", ONE_EACH)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.15), (torch.float64, 1e-4)])
def test_models_of_other_precisions(method, dtype, tolerance, cnn, images):
    expected = method(cnn, "rectify").attribute(images, 1)
    other = method(copy.deepcopy(cnn).to(dtype), "rectify").attribute(images.to(dtype), 1)
    assert other.dtype == torch.promote_types(dtype, torch.float32)
    assert (other - expected).abs().max() <= tolerance * expected.max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_masked_passes_in_other_precisions(dtype, cnn, images):
    expected = ScoreCAMPlusPlus(cnn, "rectify").attribute(images, 1)
    for _ in range(2):  # the second call finds the copy kept
        other = ScoreCAMPlusPlus(cnn, "rectify", engine=EngineSettings(dtype=dtype)).attribute(images, 1)
        assert (other - expected).abs().max() <= 0.03 * expected.max()


class Autocast(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        with torch.autocast("cpu", torch.bfloat16):
            return self.network(images)


@pytest.mark.parametrize("method", ONE_EACH)
def test_autocast_inside_and_outside_a_model(method, cnn, images):
    expected = method(cnn, "rectify").attribute(images, 1)
    inside = method(Autocast(cnn), "network.rectify").attribute(images, 1)
    with torch.autocast("cpu", torch.bfloat16):
        outside = method(cnn, "rectify").attribute(images, 1)
    for other in (inside, outside, method(cnn, "rectify").attribute(images, 1)):
        assert (other - expected).abs().max() <= 0.15 * expected.max()


# Layouts.


class ChannelsLast(nn.Module):
    """Works on (n, h, w, c) inside, as Swin does, on a grid of `stride`; optionally turned back at the end."""

    def __init__(self, channels=24, stride=4):
        super().__init__()
        self.patches = nn.Conv2d(3, channels, stride, stride)
        self.norm, self.mix = nn.LayerNorm(channels), nn.Linear(channels, channels)
        self.head = nn.Linear(channels, 5)

    def forward(self, images):
        x = self.patches(images).movedim(1, -1)
        x = F.relu(self.mix(self.norm(x)))
        return self.head(x.mean((1, 2)))


@pytest.mark.parametrize("size", [(32, 32), (32, 64)])
@pytest.mark.parametrize("method", ONE_EACH)
def test_channels_last_activations_are_recognised(method, size):
    torch.manual_seed(0)
    model = ChannelsLast().eval()
    images = torch.randn(2, 3, *size)
    cells = (size[0] // 4, size[1] // 4)
    found = method(model, "mix").attribute_lowres(images, 1)
    assert found.shape == (2, 1, *cells)
    explicit = method(model, "mix", reshape=lambda activation: activation.movedim(-1, 1))
    torch.testing.assert_close(found, explicit.attribute_lowres(images, 1))


def test_a_square_of_three_equal_sides_is_refused_until_the_layout_is_given():
    model = ChannelsLast(channels=8).eval()
    images = torch.randn(1, 3, 32, 32)
    with pytest.raises(ValueError, match="layout="):
        GradCAM(model, "mix").attribute(images)
    assert GradCAM(model, "mix", layout="channels_last").attribute_lowres(images).shape == (1, 1, 8, 8)
    assert GradCAM(model, "patches").attribute_lowres(images).shape == (1, 1, 8, 8), "a convolution's layout is known"


def named(layer=None, *, tokens=(), norm=None):
    """A model that owns the given token parameters and a layer norm of a size."""
    model = nn.Module()
    for name in tokens:
        model.register_parameter(name, nn.Parameter(torch.zeros(1, 1, 4)))
    if norm:
        model.norm = nn.LayerNorm(norm)
    return model


@pytest.mark.parametrize(
    ("shape", "size", "model", "expected"),
    [
        ((2, 197, 768), (224, 224), named(tokens=["cls_token"]), (True, (14, 14), 1)),
        ((2, 198, 384), (224, 224), named(tokens=["cls_token", "dist_token"]), (True, (14, 14), 2)),
        ((2, 196, 768), (448, 112), named(), (True, (28, 7), 0)),
        ((2, 197, 768), (448, 112), named(tokens=["class_token"]), (True, (28, 7), 1)),
        ((2, 25, 64), (32, 48), named(tokens=["cls_token"]), (True, (4, 6), 1)),
        ((2, 65, 64), (64, 64), named(tokens=["cls_token"], norm=64), (True, (8, 8), 1)),
        ((2, 768, 7, 7), (224, 224), named(norm=768), (False, (7, 7), 0)),
        ((2, 7, 7, 768), (224, 224), named(norm=768), (True, (7, 7), 0)),
        ((2, 7, 14, 768), (224, 448), named(norm=768), (True, (7, 14), 0)),
        ((2, 64, 64, 64), (256, 256), named(), (False, (64, 64), 0)),
        ((2, 512, 4, 7), (120, 224), named(), (False, (4, 7), 0)),
        ((2, 16, 50), (100,), named(), (False, (50,), 0)),
        ((2, 16, 4, 14, 14), (16, 112, 112), named(), (False, (4, 14, 14), 0)),
    ],
)  # fmt: skip
def test_layouts_by_hand(shape, size, model, expected):
    found = find_layout(shape, size, model, nn.ReLU())
    assert (found.channels_last, found.grid, found.prefix) == expected


@pytest.mark.parametrize(
    ("shape", "size", "model", "message"),
    [
        ((2, 768), (224, 224), named(), "one vector per image"),
        ((2, 64, 64, 64), (256, 256), named(norm=64), "layout="),
        ((2, 150, 64), (100, 224), named(), "grid="),
        ((2, 50, 50), (100,), named(norm=50), "layout="),
        ((2, 3, 4, 5, 6, 7), (32, 32), named(), "reshape="),
    ],
)
def test_layouts_that_cannot_be_known_are_refused(shape, size, model, message):
    with pytest.raises(ValueError, match=message):
        find_layout(shape, size, model, nn.ReLU())


def test_a_grid_given_by_the_user_drops_leading_tokens(vit, images):
    layer = vit.encoder.layers[-1].ln_1
    found = GradCAM(vit, layer, grid=(2, 8)).attribute_lowres(images)
    assert found.shape == (3, 1, 2, 8)
    torch.testing.assert_close(found.flatten(1), GradCAM(vit, layer).attribute_lowres(images).flatten(1))


class Windows(nn.Module):
    """A layer inside that works on windows of 2×2 cells, as Swin's attention does."""

    def __init__(self):
        super().__init__()
        self.patches, self.attention, self.head = nn.Conv2d(3, 5, 8, 8), nn.ReLU(), nn.Linear(5, 5)

    def forward(self, images):
        windows = self.patches(images).unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 4, 5, 1).reshape(-1, 4, 5)
        return self.head(self.attention(windows).reshape(len(images), -1, 5).mean(1))


def test_windows_before_the_batch_are_refused(images):
    with pytest.raises(ValueError, match="not the batch"):
        GradCAM(Windows(), "attention").attribute(images)


@pytest.mark.parametrize("method", [GradCAM, GradCAMPlusPlus, LayerCAM, ScoreCAM, ScoreCAMPlusPlus])
@pytest.mark.parametrize(("convolution", "size"), [(nn.Conv1d, (40,)), (nn.Conv3d, (8, 16, 16))])
def test_signals_and_volumes(method, convolution, size):
    torch.manual_seed(0)
    model = nn.Sequential(convolution(2, 6, 3, 2, 1), nn.ReLU(), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten())
    inputs = torch.randn(2, 2, *size)
    explainer = method(model, model[1])
    assert explainer.attribute(inputs, 1).shape == (2, 1, *size)
    assert explainer.attribute_lowres(inputs, 1).shape == (2, 1, *[side // 2 for side in size])


# Settings, heads, targets.


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("settings", "value"),
    [
        (ScoreCAMSettings, {"gate": "tahn"}),
        (ScoreCAMSettings, {"gate_on": "masks"}),
        (ScoreCAMSettings, {"score_space": "prob"}),
        (ScoreCAMSettings, {"baseline": "blurred"}),
        (ScoreCAMSettings, {"normalise": "lowres"}),
        (ScoreCAMSettings, {"summed_map": "full"}),
        (ScoreCAMSettings, {"align_corners": "no"}),
        (AugmentationSettings, {"combine": "median"}),
        (AugmentationSettings, {"interpolation": "cubic"}),
        (EngineSettings, {"channels_last": "yes"}),
        (EngineSettings, {"batch_size": 0}),
    ],
)
def test_a_word_that_is_none_of_the_settings_is_refused(settings, value):
    with pytest.raises(ValueError, match=next(iter(value))):
        settings(**value)


def test_settings_by_name(cnn, images):
    named = ScoreCAM(cnn, "rectify", "paper").attribute(images, 1)
    torch.testing.assert_close(named, ScoreCAM(cnn, "rectify", SCORE_CAM_PRESETS["paper"]).attribute(images, 1))
    with pytest.raises(ValueError, match="normalization_only"):
        ScoreCAMPlusPlus(cnn, "rectify", "torchcam")


def test_one_logit_has_no_softmax(cnn, images):
    cnn.head[-1] = nn.Linear(20, 1)
    with pytest.raises(ValueError, match="score_space='sigmoid'"):
        ScoreCAM(cnn, "rectify").attribute(images)
    for space in ("sigmoid", "logit"):
        assert ScoreCAM(cnn, "rectify", ScoreCAMSettings(score_space=space)).attribute(images).amax() >= 0


def test_sigmoid_scores_are_those_of_the_class_alone(cnn, images):
    settings = ScoreCAMSettings(score_space="sigmoid", summed_map="lowres")
    ours = ScoreCAM(cnn, "rectify", settings).attribute_lowres(images, 2)
    alone = copy.deepcopy(cnn)
    alone.head[-1] = nn.Linear(20, 1)
    with torch.no_grad():
        alone.head[-1].weight.copy_(cnn.head[-1].weight[2:3])
        alone.head[-1].bias.copy_(cnn.head[-1].bias[2:3])
    torch.testing.assert_close(ScoreCAM(alone, "rectify", settings).attribute_lowres(images, 0), ours)


def test_a_second_softmax_is_warned_about(cnn, images):
    with pytest.warns(UserWarning, match="second softmax"):
        ScoreCAM(nn.Sequential(cnn, nn.Softmax(1)), "0.rectify").attribute(images, 1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("method", [*ONE_EACH, ScoreCAMPlusPlus, AugmentedGradCAMPlusPlus])
@pytest.mark.parametrize("target", [[0, 1, 2, 3], torch.arange(4), np.arange(2), "cat", [0.5] * 3])
def test_targets_that_are_not_one_per_image_are_refused(method, target, cnn, images):
    with pytest.raises(ValueError, match="target"):
        method(cnn, "rectify").attribute(images, target)


@pytest.mark.parametrize("method", ONE_EACH)
def test_targets_of_every_kind_mean_the_same(method, cnn, images):
    explainer = method(cnn, "rectify")
    expected = explainer.attribute(images, 2)
    for target in ([2, 2, 2], (2, 2, 2), np.full(3, 2), np.int64(2), torch.tensor(2), torch.full((3,), 2)):
        assert torch.equal(explainer.attribute(images, target), expected)


@pytest.mark.parametrize("size", [-3, 0])
def test_batch_sizes_are_positive(size, cnn, images):
    with pytest.raises(ValueError, match="batch_size"):
        GradCAM(cnn, "rectify").attribute(images, batch_size=size)
    with pytest.raises(ValueError, match="batch_size"):
        AugmentedGradCAMPlusPlus(cnn, "rectify", batch_size=size)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("method", ONE_EACH)
def test_inputs_that_are_no_batch_of_images_are_refused(method, cnn, images):
    explainer = method(cnn, "rectify")
    for inputs, message in (
        (images.numpy(), "from_numpy"),
        (images[0], r"inputs\[None\]"),
        ((images * 99).byte(), "dtype"),
        (images[:0], "no image"),
        (images * torch.nan, "NaN"),
    ):
        with pytest.raises(ValueError, match=message):
            explainer.attribute(inputs)


# Warnings that name a cure.


def test_a_layer_behind_the_last_attention_names_the_one_to_take(vit, images):
    with pytest.warns(UserWarning, match=r"encoder\.layers\.encoder_layer_1\.ln_1"):
        assert GradCAM(vit, vit.encoder.layers[-1].mlp).attribute(images).eq(0).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GradCAM(vit, vit.encoder.layers[-1].ln_1).attribute(images)


def test_a_signed_layer_is_warned_about_where_a_rectified_one_exists(cnn, vit, images):
    with pytest.warns(UserWarning, match=r"negative.*'rectify'"):
        ScoreCAM(cnn, "last").attribute(images, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ScoreCAM(cnn, "rectify").attribute(images, 1)
        ScoreCAM(vit, vit.encoder.layers[-1].ln_1).attribute(images, 1)


def test_layers_are_listed_with_their_grids(cnn, vit, images):
    found = {info.name: info for info in layers(cnn, images)}
    assert found["rectify"].grid == (8, 8) and found["rectify"].connected and found["rectify"].negative == 0
    assert found["last"].negative > 0.1
    assert "head" not in found
    assert not next(info for info in layers(vit, images) if info.name.endswith("1.mlp")).connected
    assert all(parameter.grad is None for parameter in cnn.parameters())


# Gradients that do not flow.


class Frozen(nn.Module):
    """A backbone under no_grad, as fine-tuning recipes write it."""

    def __init__(self, network, context=torch.no_grad):
        super().__init__()
        self.network, self.context = network, context

    def forward(self, images):
        with self.context():
            features = self.network.rectify(self.network.last(self.network.block(self.network.stem(images))))
        return self.network.head(features)


def test_a_backbone_under_no_grad_is_explained(cnn, images):
    for layer in ("rectify", "block"):
        ours = GradCAM(Frozen(cnn), f"network.{layer}").attribute(images, 1)
        torch.testing.assert_close(ours, GradCAM(cnn, layer).attribute(images, 1))


class Aside(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 3)

    def forward(self, images):
        self.unused(images)
        return self.used(images).mean((2, 3))


def inference_parameters(network):
    with torch.inference_mode():
        return copy.deepcopy(network)


@pytest.mark.parametrize(
    ("model", "layer", "message"),
    [
        (lambda cnn: Aside(), "unused", "off the path"),
        (lambda cnn: Frozen(cnn, torch.inference_mode), "network.rectify", "inference_mode"),
        (inference_parameters, "rectify", "inference_mode"),
    ],
)
def test_gradients_that_cannot_flow_are_explained_in_words(model, layer, message, cnn, images):
    with pytest.raises(ValueError, match=message):
        GradCAM(model(cnn), layer).attribute(images, 1)


def test_score_cam_needs_no_gradients(cnn, images):
    expected = ScoreCAM(cnn, "rectify").attribute(images, 1)
    torch.testing.assert_close(ScoreCAM(inference_parameters(cnn), "rectify").attribute(images, 1), expected)


class Shared(nn.Module):
    """One activation module that runs twice, as in residual blocks."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.relu = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 5, 3, 2, 1), nn.ReLU(inplace=True)

    def forward(self, images):
        return self.relu(self.second(self.relu(self.first(images)))).mean((2, 3))


@pytest.mark.parametrize("method", [GradCAM, LayerCAM, ScoreCAM])
def test_one_call_of_a_shared_module(method, images):
    torch.manual_seed(0)
    model = Shared().eval()
    with pytest.raises(ValueError, match="call="):
        method(model, "relu").attribute(images, 1)
    for call, grid, before in (("first", (16, 16), "first"), ("last", (8, 8), "second")):
        ours = method(model, "relu", call=call).attribute_lowres(images, 1)
        assert ours.shape[2:] == grid
        model.relu.inplace = False
        rectified = lambda activation: activation.relu()  # noqa: E731
        if method is ScoreCAM:
            expected = method(model, before, reshape=rectified).attribute_lowres(images, 1)
            torch.testing.assert_close(ours, expected)
        model.relu.inplace = True
