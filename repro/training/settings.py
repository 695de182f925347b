"""What every CAM training needs to know, apart from its ingredients."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from repro.data.normalisation import IMAGENET, Normalisation


class TrainingSettings(BaseModel):
    """Optimiser, schedule, batches and augmentation of a CAM training.

    EGA §4.1 says only "resized to 256, randomly cropped to 224, fine-tuned"; the other defaults are DANet's for CUB,
    whose head and protocol text EGA shares (digest §3). Readings: `ega.optimiser.*`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    learning_rate: PositiveFloat = 1e-3
    """Of pretrained weights. DANet 1e-3; the EGA release's README too."""
    head_multiplier: PositiveFloat = 10.0
    """Factor for the new layers. DANet, ACoL and the benchmark: 10."""
    bias_multiplier: PositiveFloat = 2.0
    """Factor for biases, on top of the head's. DANet and ACoL 2, so 20 in the head; the benchmark and the release 1."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """All sources: 0.9."""
    nesterov: bool = True
    """All sources but Zhou et al. 2016."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """All sources, for weights and biases alike."""
    batch_size: PositiveInt = 30
    """Images a step over all devices. DANet 30; the benchmark 32; the release's README 1."""
    epochs: PositiveInt = 100
    """DANet on CUB: 100. The release on OpenImages: 10."""
    decay_epochs: tuple[int, ...] = (80,)
    """Epochs after which the learning rate is multiplied by `decay_factor`. DANet on CUB: 80."""
    decay_factor: PositiveFloat = 0.1
    """All sources: 0.1."""
    resize: PositiveInt | None = 256
    """Side to which images of another size are resized, squashed to a square (EGA §4.1); None leaves them."""
    crop: PositiveInt | None = 224
    """Side of the random crop (EGA §4.1); None takes the whole image."""
    flip: bool = True
    """Mirror half of the images. The release and every baseline."""
    normalisation: Normalisation = IMAGENET
    """Channel statistics the pretrained weights expect."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """`bf16-mixed` runs convolutions in bfloat16 under autocast; weights stay float32."""
    log_every: PositiveInt = 10
    """Steps between two entries of the history; a diverged loss is noticed then."""

    @model_validator(mode="after")
    def _check(self) -> "TrainingSettings":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0; set nesterov to false")
        if any(epoch <= 0 for epoch in self.decay_epochs) or list(self.decay_epochs) != sorted(self.decay_epochs):
            raise ValueError(f"decay_epochs is {self.decay_epochs}; give positive epochs in rising order")
        if self.crop is not None and self.resize is not None and self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is larger than resize {self.resize}")
        return self
