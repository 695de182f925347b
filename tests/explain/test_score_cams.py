"""Score-CAM and ScoreCAM++: every reading against a plain loop over channels, and the peers as oracles."""

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from repro.explain import (
    SCORE_CAM_PLUS_PLUS_PRESETS,
    SCORE_CAM_PRESETS,
    EngineSettings,
    MaskedPasses,
    ScoreCAM,
    ScoreCAMPlusPlus,
    ScoreCAMSettings,
    score_map,
    shared_score_maps,
)
from repro.explain.layer import LayerReader, ModelInputs
from repro.models.class_scores import as_classes

PRESETS = [*SCORE_CAM_PRESETS.items(), *SCORE_CAM_PLUS_PLUS_PRESETS.items()]
GATES = {
    "tanh": torch.tanh,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "sigmoid_relu": lambda u: u.relu().sigmoid(),
    "mish": F.mish,
    "swish": lambda u: u * u.sigmoid(),
}


def activation_of(model, layer, images):
    kept = []
    handle = layer.register_forward_hook(lambda _m, _i, output: kept.append(output.clone()))
    model(images)
    handle.remove()
    return kept[0] if kept[0].ndim == 4 else kept[0][:, 1:].transpose(1, 2).unflatten(2, (4, 4))


def scores_of(model, layer, images, target, rule):
    """One run of the masked passes."""
    return MaskedPasses(LayerReader(model, layer)).run(ModelInputs.of(images), as_classes(target, len(images)), rule)


def minmax(channel):
    return (channel - channel.min()) / (channel.max() - channel.min())


@torch.no_grad()
def plain_loop(model, layer, image, label, settings):
    """One image, one channel, one forward pass at a time."""
    size, plus_plus = image.shape[-2:], settings.gate is not None
    grid = {"size": size, "mode": "bilinear", "align_corners": not plus_plus and settings.align_corners}
    weights, maps = [], []
    for a in activation_of(model, layer, image)[0]:
        up, flat = F.interpolate(a[None, None], **grid)[0, 0], bool(a.max() == a.min())
        if plus_plus:
            mask = GATES[settings.gate](up)
        elif flat:  # on the layer's grid: upsampling leaves rounding noise, which is no pattern to stretch
            mask = torch.zeros_like(up)
        else:
            lowres_first = settings.normalise == "lowres_first"
            mask = F.interpolate(minmax(a)[None, None], **grid)[0, 0] if lowres_first else minmax(up)
        gate = GATES[settings.gate] if plus_plus and settings.gate_on == "both" else torch.nn.Identity()
        outputs = model(torch.cat([image * mask, image, image * 0]))
        scores = (outputs.softmax(1) if settings.score_space == "probability" else outputs)[:, label]
        alpha = scores[0] - {"none": 0, "input": scores[1], "black": scores[2]}[settings.baseline]
        weights.append(alpha)
        maps.append(gate(up if settings.summed_map == "upsampled" else a) * (plus_plus or keep(settings, flat)))
    alphas = torch.stack(weights)
    alphas = alphas.softmax(0) if not plus_plus and settings.channel_softmax else alphas
    cam = torch.einsum("k,kab->ab", alphas, torch.stack(maps)).relu()
    return F.interpolate(cam[None, None], size=size, mode="bilinear", align_corners=False)


def keep(settings, flat):
    return not (settings.skip_constant and flat)


def explainer(model, layer, settings, **engine):
    method = ScoreCAMPlusPlus if settings.gate else ScoreCAM
    return method(model, layer, settings, engine=EngineSettings(**engine))


def kill_channels(model, dead=(1, 5), constant=7):
    """Two channels of the last convolution that are always zero, one that is 0.5 everywhere."""
    with torch.no_grad():
        model.last.weight[[*dead, constant]] = 0
        model.last.bias[list(dead)] = 0
        model.last.bias[constant] = 0.5
    return model


def all_score_cam_settings():
    spaces, baselines = ("probability", "logit"), ("none", "input", "black")
    orders, flags = ("upsample_first", "lowres_first"), (False, True)
    for space, base, order, corners, softmax, summed, skip in product(
        spaces, baselines, orders, flags, flags, ("lowres", "upsampled"), flags
    ):
        yield ScoreCAMSettings(space, base, order, corners, softmax, summed, skip)


def test_every_score_cam_reading_equals_the_plain_loop(cnn, images):
    kill_channels(cnn)
    runs = {}
    for settings in all_score_cam_settings():
        scores = runs.setdefault(settings.rule, scores_of(cnn, cnn.rectify, images[:1], 2, settings.rule))
        expected = plain_loop(cnn, cnn.rectify, images[:1], 2, settings)
        torch.testing.assert_close(score_map(scores, settings), expected, rtol=1e-5, atol=1e-5, msg=str(settings))
    assert len(runs) == 4


@pytest.mark.parametrize("gate", GATES)
def test_every_scorecam_plus_plus_reading_equals_the_plain_loop(gate, cnn, images):
    kill_channels(cnn)
    for space, base, gate_on, summed in product(
        ("probability", "logit"), ("none", "input", "black"), ("mask", "both"), ("lowres", "upsampled")
    ):
        settings = ScoreCAMSettings(space, base, summed_map=summed, gate=gate, gate_on=gate_on)
        ours = ScoreCAMPlusPlus(cnn, cnn.rectify, settings).attribute(images[:1], 2)
        expected = plain_loop(cnn, cnn.rectify, images[:1], 2, settings)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5, msg=str(settings))


@pytest.mark.parametrize(("name", "settings"), PRESETS)
def test_presets_on_a_vit_equal_the_plain_loop(name, settings, vit, images):
    layer = vit.encoder.layers[-1].ln_1
    ours = explainer(vit, layer, settings).attribute(images, [0, 3, 1])
    for image, label, cam in zip(images.split(1), [0, 3, 1], ours.split(1), strict=True):
        torch.testing.assert_close(cam, plain_loop(vit, layer, image, label, settings), rtol=1e-5, atol=1e-5)


def test_tanh_masks_of_a_vit_are_signed(vit, images):
    rule = SCORE_CAM_PLUS_PLUS_PRESETS["released"].rule
    activations = scores_of(vit, vit.encoder.layers[-1].ln_1, images, None, rule).activations
    masks = rule.masks(activations[0, :, None], (32, 32))
    assert masks.amin() < -0.1
    assert masks.abs().amax() <= 1


def test_released_scorecam_plus_plus_is_probability_weighted_tanh_maps(cnn, images):
    layer = cnn.rectify
    upsampled = F.interpolate(activation_of(cnn, layer, images), size=(32, 32), mode="bilinear")
    gated = upsampled.tanh()
    with torch.no_grad():
        weights = torch.stack([cnn(images * gated[:, k, None]).softmax(1)[:, 3] for k in range(16)], dim=1)
    expected = torch.einsum("nk,nkhw->nhw", weights, gated)[:, None].relu()
    ours = ScoreCAMPlusPlus(cnn, layer).attribute(images, 3)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_scorecam_weights_have_the_sign_of_the_score_change(cnn, images):
    """α = f(X∘H) − f(X): negative where the mask costs confidence (paper eq. 5)."""
    scores = scores_of(cnn, cnn.rectify, images[:1], None, ScoreCAMSettings().rule)
    with torch.no_grad():
        whole = cnn(images[:1]).softmax(1).max()
    expected = scores.scores("probability") - whole
    torch.testing.assert_close(scores.scores("probability", "input"), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 200])
def test_batches_may_span_images(batch_size, cnn, images):
    kill_channels(cnn)
    for _, settings in PRESETS:
        whole = explainer(cnn, cnn.rectify, settings).attribute(images, [0, 1, 2])
        split = explainer(cnn, cnn.rectify, settings, batch_size=batch_size).attribute(images, [0, 1, 2])
        torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-6)


def test_dead_channels_cost_no_pass(cnn, images):
    kill_channels(cnn)
    seen = []
    cnn.head[1].register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    live = int((activation_of(cnn, cnn.rectify, images).std((2, 3)) > 0).sum())
    seen.clear()
    as_it_is = EngineSettings(fold_batch_norm=False, fuse_convolutions=False)
    ScoreCAM(cnn, cnn.rectify, engine=as_it_is).attribute(images, 0)
    assert live <= 3 * 13
    assert sum(seen) == live + 3 + 3 + 1  # masked, X for the activations, f(X), f(0)


def test_zero_activation_contributes_nothing_under_tanh(cnn, images):
    kill_channels(cnn, dead=tuple(range(16)), constant=0)
    with torch.no_grad():
        cnn.last.bias.zero_()
    assert ScoreCAMPlusPlus(cnn, cnn.rectify).attribute(images, 0).eq(0).all()


@pytest.mark.parametrize("space", ["probability", "logit"])
def test_any_baseline_is_a_no_op_under_channel_softmax(space, cnn, images):
    maps = [
        ScoreCAM(cnn, cnn.rectify, ScoreCAMSettings(space, baseline, channel_softmax=True)).attribute(images, 1)
        for baseline in ("none", "input", "black")
    ]
    torch.testing.assert_close(maps[1], maps[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(maps[2], maps[0], rtol=1e-5, atol=1e-6)


def test_folding_and_layout_do_not_change_the_map(cnn, images):
    for _, settings in PRESETS:
        plain = explainer(cnn, cnn.rectify, settings, fold_batch_norm=False, channels_last=False)
        fast = explainer(cnn, cnn.rectify, settings)
        torch.testing.assert_close(fast.attribute(images, 1), plain.attribute(images, 1), rtol=1e-4, atol=1e-5)


def test_bfloat16_stays_close_and_differs(cnn, images):
    exact = ScoreCAM(cnn, cnn.rectify).attribute(images, 1)
    rounded = ScoreCAM(cnn, cnn.rectify, engine=EngineSettings(dtype=torch.bfloat16)).attribute(images, 1)
    difference = (exact - rounded).abs().amax() / exact.amax()
    assert 0 < difference < 0.03


def test_variants_share_passes(cnn, images, monkeypatch):
    runs = []
    original = MaskedPasses.run
    monkeypatch.setattr(MaskedPasses, "run", lambda *args: runs.append(args[-1]) or original(*args))
    settings = dict(PRESETS) | {"logit": ScoreCAMSettings(score_space="logit", gate="tanh")}
    maps = shared_score_maps(cnn, cnn.rectify, images, settings, 2)
    assert len(runs) == 4  # min-max: plain, aligned corners, low-resolution first; tanh
    for name, variant in settings.items():
        torch.testing.assert_close(maps[name], explainer(cnn, cnn.rectify, variant).attribute(images, 2))


def test_scores_of_another_mask_rule_are_refused(cnn, images):
    scores = scores_of(cnn, cnn.rectify, images, 0, ScoreCAMSettings().rule)
    with pytest.raises(ValueError, match="gate='tanh'"):
        score_map(scores, SCORE_CAM_PLUS_PLUS_PRESETS["released"])


def test_the_predicted_class_is_the_default_target(cnn, images):
    predicted = cnn(images).argmax(1)
    torch.testing.assert_close(
        ScoreCAM(cnn, cnn.rectify).attribute(images), ScoreCAM(cnn, cnn.rectify).attribute(images, predicted)
    )


def test_low_resolution_maps(cnn, images):
    settings = replace(ScoreCAMSettings(), summed_map="lowres")
    lowres = ScoreCAM(cnn, cnn.rectify, settings).attribute_lowres(images, 1)
    full = ScoreCAM(cnn, cnn.rectify, settings).attribute(images, 1)
    assert lowres.shape == (3, 1, 8, 8)
    torch.testing.assert_close(full, F.interpolate(lowres, size=(32, 32), mode="bilinear"))


def normalised(cam):
    return (cam - cam.min()) / (cam.max() - cam.min())


def test_agrees_with_pytorch_grad_cam(cnn, images):
    peer = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    theirs = peer.ScoreCAM(cnn, [cnn.rectify])(images[:1], [targets.ClassifierOutputTarget(3)])
    ours = ScoreCAM(cnn, cnn.rectify, SCORE_CAM_PRESETS["pytorch-grad-cam"]).attribute_lowres(images[:1], 3)
    full = normalised(F.interpolate(normalised(ours), size=(32, 32), mode="bilinear"))
    torch.testing.assert_close(full[0], torch.as_tensor(theirs), rtol=0, atol=1e-5)


def test_agrees_with_torchcam(cnn, images):
    peer = pytest.importorskip("torchcam.methods")
    with peer.ScoreCAM(cnn, "rectify", input_shape=(3, 32, 32)) as extractor:
        theirs = extractor(3, cnn(images[:1]))[0]
    ours = ScoreCAM(cnn, cnn.rectify, SCORE_CAM_PRESETS["torchcam"]).attribute_lowres(images[:1], 3)
    torch.testing.assert_close(normalised(ours)[0], theirs, rtol=0, atol=1e-5)
