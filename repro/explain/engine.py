"""The engine of Score-CAM and ScoreCAM++: what the network says about the image seen through each channel.

It runs the network on X∘H_k for every channel of every image, batches spanning images, and keeps two numbers per
channel, from which every score space, baseline and weighting follows by arithmetic. Channels whose mask is zero
everywhere share one pass of the all-zero input, so a dead channel costs nothing.

The passes run on a private copy of the network (`network_copy`). It is kept for as long as the model's weights are the
same objects at the same version, and in every call has to give the whole images the logits that the model gives them;
where it cannot be made, fails or does not agree, the next plainer one runs, in the end the model itself.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from repro.explain.base import check_words, forward_bytes, is_out_of_memory, run_in_shrinking_batches, upsample_map
from repro.explain.layer import LayerReader, ModelInputs, at_least_float32, checked_logits
from repro.explain.network_copy import Traced, convert, fold_batch_norm, fuse_convolutions, inference_copy, pack_filters
from repro.models.class_scores import (
    ClassScores,
    ScoreSpace,
    class_scores,
    resolve_target,
    sum_to_one,
    warn_of_second_softmax,
)
from repro.vocabulary import Gate

Baseline = Literal["none", "input", "black"]

# CPU: beyond 8 images of 224² the activations leave the cache (measured); smaller images, larger batches.
_PIXELS_AT_ONCE = {"cpu": 8 * 224**2, "cuda": 128 * 224**2}
_PIXELS_AT_ONCE_OTHER = 32 * 224**2
# Of the largest logit; rounding alone stays a tenth below. Half precision hides too much to trust a rewritten graph.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_TOLERANCE_HALF = 0.1

GATES = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "sigmoid_relu": lambda values: values.relu().sigmoid(),
    "mish": nn.functional.mish,
    "swish": nn.functional.silu,
}
"""ScoreCAM++'s gates (paper Table 5); `sigmoid_relu` is the released code's sigmoid(relu(u))."""


@dataclass(frozen=True)
class MaskRule:
    """How a channel becomes a mask; explanations with equal rules share their masked passes."""

    gate: Gate | None = None
    """Gate of the upsampled channel; None: min-max normalisation (Score-CAM)."""
    normalise: Literal["upsample_first", "lowres_first"] = "upsample_first"
    """Min-max after upsampling, or on the layer's own grid before it. Gates always come after."""
    align_corners: bool = False
    """Upsampling with corner pixels aligned (pytorch-grad-cam's UpsamplingBilinear2d)."""

    def __post_init__(self) -> None:
        check_words(self)

    def upsample(self, channels: Float[Tensor, "b 1 *grid"], size: tuple[int, ...]) -> Float[Tensor, "b 1 *size"]:
        """The rule's interpolation to input size."""
        return upsample_map(channels, size, corners=self.align_corners)

    def masks(self, channels: Float[Tensor, "b 1 *grid"], size: tuple[int, ...]) -> Float[Tensor, "b 1 *size"]:
        """Masks of input size. A constant channel has no min-max; see `blank`."""
        if self.gate is not None:
            return GATES[self.gate](self.upsample(channels, size))
        if self.normalise == "lowres_first":
            return self.upsample(_minmax(channels), size)
        return _minmax(self.upsample(channels, size))

    def blank(self, activations: Float[Tensor, "n k *grid"]) -> Bool[Tensor, "n k"]:
        """Channels whose mask is zero everywhere: constant (min-max) or all zero (gates with gate(0) = 0).

        Constancy is judged on the layer's grid: upsampling a constant leaves rounding noise, which a min-max
        of the upsampled channel would stretch to a random mask.
        """
        cells = activations.flatten(2)
        if self.gate is None:
            return cells.amax(dim=2) == cells.amin(dim=2)
        return (cells == 0).all(dim=2) & (self.gate not in ("sigmoid", "sigmoid_relu"))


def _minmax(channels: Float[Tensor, "b 1 *size"]) -> Float[Tensor, "b 1 *size"]:
    axes = tuple(range(2, channels.ndim))
    low = channels.amin(dim=axes, keepdim=True)
    extent = channels.amax(dim=axes, keepdim=True) - low
    # Two values one rounding step apart may be upsampled to one and the same: the mask is then zero.
    return (channels - low).div_(extent.masked_fill_(extent == 0, 1))


@dataclass(frozen=True)
class EngineSettings:
    """How the masked passes are run; none of this changes a map beyond rounding, except `dtype`."""

    batch_size: int | None = None
    """Masked images per pass; None: `default_batch_size`. Halved when memory runs out."""
    memory_budget_mib: float | None = None
    """MiB that the activations of one pass may take (an estimate, see `forward_bytes`); None: no limit."""
    dtype: torch.dtype | None = None
    """Floating type of the masked passes, e.g. torch.bfloat16; None: the model's own."""
    fold_batch_norm: bool = True
    """Fold batch norm into convolutions where the network can be traced and the folded network agrees."""
    fuse_convolutions: bool = True
    """Likewise, run each convolution with the sum and the rectifier after it in one call (CPU, channels-last)."""
    channels_last: bool = True
    """Channels-last memory layout of the masked passes."""

    def __post_init__(self) -> None:
        check_words(self)
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; expected at least 1, or None")
        if self.memory_budget_mib is not None and self.memory_budget_mib <= 0:
            raise ValueError(f"memory_budget_mib is {self.memory_budget_mib}; expected more than 0, or None")
        if self.dtype is not None and not self.dtype.is_floating_point:
            raise ValueError(f"dtype is {self.dtype}; expected a floating type, or None")


def default_batch_size(inputs: Float[Tensor, "n c *size"]) -> int:
    """Masked images per pass: at 224² 8 on CPU, 128 on CUDA, 32 elsewhere; in proportion for other sizes."""
    pixels = _PIXELS_AT_ONCE.get(inputs.device.type, _PIXELS_AT_ONCE_OTHER)
    return max(1, pixels // inputs.shape[2:].numel())


@dataclass(frozen=True)
class MaskedScores:
    """Result of one run of the masked passes: all that Score-CAM and ScoreCAM++ need to make their maps."""

    rule: MaskRule
    activations: Float[Tensor, "n k *grid"]
    size: tuple[int, ...]
    """Height and width of the input images."""
    target: Int[Tensor, " n"]
    masked: ClassScores
    """f(X∘H_k), shape (n, k)."""
    whole: ClassScores
    """f(X), shape (n, 1)."""
    black: ClassScores
    """f(0), the all-zero input (after normalisation: the data set's mean colour), shape (n, 1)."""
    sums_to_one: bool = False
    """Whether the network's outputs look like the result of a softmax."""

    def scores(self, space: ScoreSpace, baseline: Baseline = "none") -> Float[Tensor, "n k"]:
        """f(X∘H_k), minus f(X) (`input`: ScoreCAM++ eq. 5, 10) or f(0) (`black`: Score-CAM paper)."""
        if self.sums_to_one and space == "probability":
            warn_of_second_softmax()
        scores = self.masked.in_space(space)
        if baseline == "none":
            return scores
        return scores - (self.whole if baseline == "input" else self.black).in_space(space)


# Copies that are kept between calls.


class _Fingerprint:
    """Modules, hooks and tensors of a model as they were, without keeping any of them alive."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        tensors = [
            value
            for module in modules
            for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values())
            if isinstance(value, Tensor)
        ]
        self.objects = [weakref.ref(found) for found in (*modules, *tensors)]
        self.state = [
            *((tuple(module._forward_hooks), tuple(module._forward_pre_hooks)) for module in modules),
            *(None if tensor.is_inference() else tensor._version for tensor in tensors),
        ]

    def same(self, other: _Fingerprint) -> bool:
        """Whether the same objects, all alive, are at the same versions."""
        if self.state != other.state or len(self.objects) != len(other.objects):
            return False
        return all(a() is b() is not None for a, b in zip(self.objects, other.objects, strict=True))


@dataclass(frozen=True)
class _Kept:
    key: tuple[Any, ...]
    fingerprint: _Fingerprint
    network: nn.Module | None
    """None: the model itself."""


_kept: weakref.WeakKeyDictionary[nn.Module, _Kept] = weakref.WeakKeyDictionary()
_kept_lock = threading.Lock()


class MaskedPasses:
    """The masked forward passes of one layer; `run` may be called for any images and rules."""

    def __init__(self, reader: LayerReader, settings: EngineSettings | None = None) -> None:
        self.reader = reader
        self.settings = settings or EngineSettings()

    def run(self, inputs: ModelInputs, target: Tensor | None, rule: MaskRule) -> MaskedScores:
        """Score each channel's masked image of each input for its target (None: the predicted class).

        The model must be in evaluation mode (`evaluation_mode`).
        """
        if len(inputs.tensors) > 1:
            raise ValueError("inputs: Score-CAM masks one tensor of images; pass the others as additional_forward_args")
        batch = self.settings.batch_size or default_batch_size(inputs.tensors[0])
        activations, logits = self._whole_images(inputs, batch)
        classes = resolve_target(target, logits)
        with torch.no_grad():
            network, whole = self._fastest(inputs, logits, batch)
            if self.settings.memory_budget_mib is not None:
                needed = forward_bytes(network, self._prepared(network, inputs.part(slice(0, 1))))
                batch = max(1, min(batch, int(self.settings.memory_budget_mib * 2**20 / needed)))
            scores = self._score(network, inputs, activations, classes, whole, rule, batch)
        return replace(scores, sums_to_one=sum_to_one(logits))

    def _whole_images(self, inputs: ModelInputs, batch: int) -> tuple[Tensor, Tensor]:
        parts: dict[int, tuple[Tensor, Tensor]] = {}

        def step(part: slice) -> None:
            reading = self.reader.read(inputs.part(part), differentiable=False)
            parts[part.start] = (reading.activation, at_least_float32(reading.logits))

        run_in_shrinking_batches(step, len(inputs), batch)
        activations, logits = zip(*(parts[start] for start in sorted(parts)), strict=True)
        return torch.cat(activations), torch.cat(logits)

    # Which network runs.

    def _fastest(self, inputs: ModelInputs, reference: Tensor, batch: int) -> tuple[nn.Module, Tensor]:
        """The first network that gives the whole images the model's logits, and these logits."""
        model, key, found = self.reader.model, self._key(inputs, batch), _Fingerprint(self.reader.model)
        for network in self._networks(inputs, reference, batch, key, found):
            try:
                whole = self._logits(network, inputs, batch)
            except Exception as error:
                if network is model or is_out_of_memory(error):
                    raise
                continue
            if network is model or self._agrees(whole, reference):
                with _kept_lock:
                    _kept[model] = _Kept(key, found, None if network is model else network)
                return network, whole
        raise AssertionError("the model itself is always a candidate")

    def _networks(
        self, inputs: ModelInputs, reference: Tensor, batch: int, key: tuple[Any, ...], found: _Fingerprint
    ) -> Iterator[nn.Module]:
        """From the fastest to the surest: the copy kept, rewritten ones, a plain one, the model itself."""
        with _kept_lock:
            kept = _kept.get(self.reader.model)
        if kept is not None and kept.key == key and kept.fingerprint.same(found):
            yield kept.network or self.reader.model
        image, settings = inputs.part(slice(0, 1)), self.settings
        fuse = settings.fuse_convolutions and settings.channels_last and image.tensors[0].device.type == "cpu"
        fold = settings.fold_batch_norm
        for folded, fused in dict.fromkeys([(fold, fuse), (fold, False), (False, False)]):
            try:
                yield self._copy(image, reference[:1], batch, fold=folded, fuse=fused)
            except Exception as error:  # whatever copying and tracing raise of models that allow neither
                if is_out_of_memory(error):
                    raise
        if settings.dtype not in (None, image.tensors[0].dtype):
            warnings.warn(f"the model cannot be copied: its masked passes do not run in {settings.dtype}", stacklevel=2)
        yield self.reader.model

    def _copy(self, image: ModelInputs, reference: Tensor, batch: int, *, fold: bool, fuse: bool) -> nn.Module:
        network = inference_copy(self.reader.model)
        if fold or fuse:
            network = traced = Traced(network, len(image.arguments))
            if fold:
                fold_batch_norm(traced)
            if fuse:
                fuse_convolutions(traced, *image.arguments)
            # In the model's own precision: a lower one would hide a graph that is wrong.
            if not self._agrees(network(*image.arguments), reference, image.tensors[0].dtype):
                raise ValueError("the traced network does not agree with the model")
        network = convert(network, dtype=self.settings.dtype, channels_last=self.settings.channels_last)
        pack_filters(network, batch)
        return network

    def _key(self, inputs: ModelInputs, batch: int) -> tuple[Any, ...]:
        """Everything but the model that a copy depends on."""
        image = inputs.tensors[0]
        kind = image.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return self.settings, image.device, image.dtype, image.shape[1:], batch, len(inputs.extra), autocast

    def _agrees(self, logits: Tensor, reference: Tensor, dtype: torch.dtype | None = None) -> bool:
        """Whether two sets of logits differ by rounding only."""
        kinds = (dtype or self.settings.dtype or reference.dtype, reference.dtype)
        tolerance = max(_TOLERANCE.get(kind, _TOLERANCE_HALF) for kind in kinds)
        return bool((logits.to(reference.dtype) - reference).abs().max() <= tolerance * reference.abs().max())

    # The passes.

    def _prepared(self, network: nn.Module, inputs: ModelInputs) -> ModelInputs:
        """Images in the floating type and layout of the passes."""
        (images,) = inputs.tensors
        dtype = self.settings.dtype if network is not self.reader.model else None
        last = self.settings.channels_last and images.ndim == 4
        memory_format = torch.channels_last if last else torch.contiguous_format
        return ModelInputs((images.to(dtype=dtype or images.dtype, memory_format=memory_format),), inputs.extra)

    def _score(
        self,
        network: nn.Module,
        inputs: ModelInputs,
        activations: Tensor,
        classes: Tensor,
        whole: Tensor,
        rule: MaskRule,
        batch: int,
    ) -> MaskedScores:
        channels, size = activations.shape[1], inputs.size
        # One flat list of jobs: masked channels, so that batches span images.
        image_of, channel_of = (~rule.blank(activations)).nonzero(as_tuple=True)
        first = slice(0, 1)
        black = self._logits(network, _zeros(inputs if inputs.extra else inputs.part(first)), batch)
        black_scores = class_scores(black.expand(len(inputs), -1), classes)
        logit, probability = (
            score[:, None].repeat(1, channels) for score in (black_scores.logit, black_scores.probability)
        )
        jobs = min(batch, max(1, len(image_of)))
        buffer = self._prepared(network, ModelInputs((inputs.tensors[0][:1].repeat(jobs, *[1] * (len(size) + 1)),)))

        def step(part: slice) -> None:
            image, channel = image_of[part], channel_of[part]
            masks = rule.masks(activations[image, channel, None], size)
            chosen = inputs.part(image)
            masked = torch.mul(chosen.tensors[0], masks, out=buffer.tensors[0][: len(image)])
            scores = class_scores(self._run(network, ModelInputs((masked,), chosen.extra)), classes[image])
            logit[image, channel], probability[image, channel] = scores.logit, scores.probability

        run_in_shrinking_batches(step, len(image_of), batch)
        return MaskedScores(
            rule,
            activations,
            size,
            classes,
            ClassScores(logit, probability, black.shape[1]),
            _column(class_scores(whole, classes)),
            _column(black_scores),
        )

    def _logits(self, network: nn.Module, inputs: ModelInputs, batch: int) -> Tensor:
        parts: dict[int, Tensor] = {}

        def step(part: slice) -> None:
            parts[part.start] = self._run(network, self._prepared(network, inputs.part(part)))

        run_in_shrinking_batches(step, len(inputs), batch)
        return torch.cat([parts[start] for start in sorted(parts)])

    def _run(self, network: nn.Module, inputs: ModelInputs) -> Float[Tensor, "n classes"]:
        # The model itself may keep what it computes: no inference tensors for it.
        with torch.no_grad() if network is self.reader.model else torch.inference_mode():
            return at_least_float32(checked_logits(network(*inputs.arguments), len(inputs)))


def _zeros(inputs: ModelInputs) -> ModelInputs:
    return ModelInputs(tuple(torch.zeros_like(tensor) for tensor in inputs.tensors), inputs.extra)


def _column(scores: ClassScores) -> ClassScores:
    """Scores (n,) as (n, 1)."""
    return ClassScores(scores.logit[:, None], scores.probability[:, None], scores.classes)
