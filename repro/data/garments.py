"""Garment scenes: real Fashion-MNIST garments composed over real photographs, with exact masks and boxes.

Real pixels with ground truth as exact as a rendering's, for weakly supervised localisation at small cost. Garments of
`train` come from Fashion-MNIST's training images, those of `test` from its test images; photographs are
split by the parity of their position, so no garment and no photograph is in both. `val` is held out from training as
scenes, not as garments or photographs: it draws from the same ones as `train`, so it can choose a threshold but says
nothing about new images. Image `index` of `(split, seed)` does not depend on how many are drawn.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy.ndimage import binary_closing, binary_fill_holes

from repro.data.image_set import ImageSet
from repro.data.labels import FASHION_MNIST
from repro.data.listing import choose_split
from repro.data.readers import arrays, folders

DEFAULT_SIZE = 96
COUNTS = {"train": 6000, "val": 1000, "test": 2000}
_STREAM = {"train": 21, "test": 22, "val": 23}
# The ground of Fashion-MNIST is 0 with a faint halo of single-digit values; above this a pixel is garment.
_THRESHOLD = 16


def load_garment_scenes(
    root: Path, split: str = "test", limit: int | None = None, size: int = DEFAULT_SIZE, seed: int = 0
) -> ImageSet:
    """Compose the first `limit` (default 6000 / 1000 / 2000) scenes of the stream `(split, seed)`, classes in turn.

    Args:
        root: data root with `fashion_mnist` and `imagenet_sample`.
        size: side of the square images; garments are enlarged 1 to 2.5 times at 96 and in proportion otherwise.

    Raises:
        ValueError: unknown split, or a size below 64.
        FileNotFoundError: one of the two sets is not there.
    """
    if size < 64:
        raise ValueError(f"size={size}: garment scenes need at least 64 pixels")
    all_scenes = choose_split(COUNTS, split, "garment_scenes")
    count = all_scenes if limit is None else limit
    garments = arrays.fashion_mnist(root / "fashion_mnist", "test" if split == "test" else "train")
    members = [np.flatnonzero(garments.labels == label) for label in range(len(FASHION_MNIST))]
    photographs = _Photographs(root, split)
    images = np.empty((count, 3, size, size), np.uint8)
    masks = np.empty((count, size, size), bool)
    for index in range(count):
        rng = np.random.default_rng([_STREAM[split], seed, index])
        garment = garments.read(int(rng.choice(members[index % len(members)]))).image[..., 0]
        ground = photographs.crop(rng, size)
        image, masks[index] = compose(ground, garment, rng)
        images[index] = image.transpose(2, 0, 1)
    return ImageSet(
        name="garment_scenes",
        split=split,
        images=torch.from_numpy(images),
        labels=torch.arange(count) % len(FASHION_MNIST),
        classes=FASHION_MNIST,
        ids=[f"{split}-{seed}-{index}" for index in range(count)],
        boxes=[torch.tensor([_box(mask)]) for mask in masks],
        masks=torch.from_numpy(masks),
    )


def compose(
    ground: UInt8[np.ndarray, "s s 3"], garment: UInt8[np.ndarray, "28 28"], rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "s s 3"], Bool[np.ndarray, "s s"]]:
    """Put one garment over a photograph: enlarged, mirrored at random, tinted, anywhere inside.

    The mask is where the garment covers at least half of a pixel; enclosed holes belong to the garment.
    """
    size = len(ground)
    side = round(28 * rng.uniform(1.0, 2.5) * size / 96)
    left, top = rng.integers(0, size - side + 1, 2)
    if rng.random() < 0.5:
        garment = garment[:, ::-1]
    cover = _enlarge(_silhouette(garment).astype(np.uint8) * 255, side) / 255.0
    light = _enlarge(garment, side) / 255.0
    tint = rng.uniform(0.35, 1.0, 3).astype(np.float32)
    colour = (0.15 + 0.85 * light)[..., None] * tint * 255.0
    patch = ground[top : top + side, left : left + side]
    blended = patch + cover[..., None] * (colour - patch)
    image, mask = ground.copy(), np.zeros((size, size), bool)
    image[top : top + side, left : left + side] = np.rint(np.clip(blended, 0, 255)).astype(np.uint8)
    mask[top : top + side, left : left + side] = cover >= 0.5
    return image, mask


class _Photographs:
    """Random square crops of the photographs of one split; each photograph is read at most once."""

    def __init__(self, root: Path, split: str) -> None:
        self._listing = folders.imagenet_sample(root / "imagenet_sample", "test")
        parity = 1 if split == "test" else 0
        self._members = np.arange(parity, len(self._listing.ids), 2)
        self._seen: dict[int, UInt8[np.ndarray, "h w 3"]] = {}

    def crop(self, rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "s s 3"]:
        """A square of at least half the short side, resampled to `size`."""
        index = int(rng.choice(self._members))
        if index not in self._seen:
            self._seen[index] = self._listing.read(index).image
        image = self._seen[index]
        height, width = image.shape[:2]
        side = int(min(height, width) * rng.uniform(0.5, 1.0))
        left, top = rng.integers(0, width - side + 1), rng.integers(0, height - side + 1)
        box = (int(left), int(top), int(left) + side, int(top) + side)
        return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box=box))


def _silhouette(garment: UInt8[np.ndarray, "28 28"]) -> Bool[np.ndarray, "28 28"]:
    """Pixels of the garment; cracks one pixel wide are closed and enclosed holes (dark fabric) filled."""
    closed = binary_closing(np.pad(garment > _THRESHOLD, 2), np.ones((3, 3), bool))
    return binary_fill_holes(closed)[2:-2, 2:-2]


def _enlarge(pixels: UInt8[np.ndarray, "28 28"], side: int) -> Float[np.ndarray, "side side"]:
    image = Image.fromarray(np.ascontiguousarray(pixels)).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32)


def _box(mask: Bool[np.ndarray, "s s"]) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
