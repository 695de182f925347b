"""Images made when they are used: part-whole scenes, font digits, garment scenes.

Embedded *part-whole scenes*: objects that share a body and differ only in a small part.

Every object is a blob (body) of random colour, texture, pose and scale with a small emblem (part) attached to
its rim. Only the emblem's shape depends on the class; body, background and distractors are drawn from one
distribution for all classes. A classifier therefore needs the part alone, and a plain class activation map
lights the part instead of the whole object: the failure that localisation papers set out to repair.

An image is a function of `(split, seed, index)` alone: image 7 is the same whether 10 or 10,000 are drawn. All
geometry is in units of the image side and drawn before the pixel noise, so sizes show the same scene.
"""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_closing, binary_fill_holes

from repro.data import readers
from repro.data.images import DIGITS, FASHION_MNIST, ImageSet
from repro.data.listing import choose_split

# The eight class-specific emblems of the part-whole scenes, each a coverage mask on a disc of radius 1.

Plane = Float[np.ndarray, "s s"]
Emblem = Callable[[Plane, Plane, float], Plane]
"""`(u, v, edge) -> coverage in 0..1`; `u, v` in units of the radius, `edge` the width of one pixel."""


def _soft(inside: Plane, edge: float) -> Plane:
    """Coverage from a signed distance that is positive inside."""
    return np.clip(0.5 + inside / np.float32(edge), 0.0, 1.0)


def _star(u: Plane, v: Plane, edge: float) -> Plane:
    # Mirrored into one tenth of the turn, a five-pointed star is one straight edge from tip to notch.
    turn = np.mod(np.arctan2(u, -v) + math.pi / 5, 2 * math.pi / 5) - math.pi / 5
    radius = np.hypot(u, v)
    x, y = radius * np.cos(turn), radius * np.sin(np.abs(turn))
    tip, notch = (0.88, 0.0), (0.34 * math.cos(math.pi / 5), 0.34 * math.sin(math.pi / 5))
    dx, dy = notch[0] - tip[0], notch[1] - tip[1]
    return _soft((dx * (y - tip[1]) - dy * (x - tip[0])) / -math.hypot(dx, dy), edge)


def _cross(u: Plane, v: Plane, edge: float) -> Plane:
    return _soft(0.2 - np.minimum(np.abs(u), np.abs(v)), edge)


def _ring(u: Plane, v: Plane, edge: float) -> Plane:
    return _soft(0.18 - np.abs(np.hypot(u, v) - 0.55), edge)


def _triangle(u: Plane, v: Plane, edge: float) -> Plane:
    return _soft(np.minimum(0.45 - v, 0.4 + v / 2 - np.abs(u) * math.sqrt(3) / 2), edge)


def _checker(u: Plane, v: Plane, edge: float) -> Plane:
    return _soft(np.sin(1.5 * math.pi * u) * np.sin(1.5 * math.pi * v) * 0.3, edge)


def _stripes(_: Plane, v: Plane, edge: float) -> Plane:
    return _soft(np.cos(2.5 * math.pi * v) * 0.2, edge)


def _crescent(u: Plane, v: Plane, edge: float) -> Plane:
    return _soft(np.minimum(0.8 - np.hypot(u, v), np.hypot(u - 0.4, v) - 0.62), edge)


def _half(_: Plane, v: Plane, edge: float) -> Plane:
    return _soft(v, edge)


EMBLEMS: dict[str, Emblem] = {
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "triangle": _triangle,
    "checker": _checker,
    "stripes": _stripes,
    "crescent": _crescent,
    "half": _half,
}


CLASSES: list[str] = list(EMBLEMS)
SCENE_COUNTS: dict[str, int] = {"train": 2000, "val": 400, "test": 600}
SPLITS = tuple(SCENE_COUNTS)

Canvas = Float[np.ndarray, "s s 3"]
Mask = Bool[np.ndarray, "s s"]
Point = Float[np.ndarray, "2"]


class Grid(NamedTuple):
    """Pixel centres in units of the image side, and the width of an antialiased edge."""

    x: Float[np.ndarray, "1 s"]
    y: Float[np.ndarray, "s 1"]
    edge: float


class Scene(NamedTuple):
    """One rendered image with its ground truth; objects in drawing order."""

    image: UInt8[np.ndarray, "s s 3"]
    boxes: Int[np.ndarray, "k 4"]
    labels: list[int]
    mask: Mask
    part_mask: Mask


def load_scenes(
    split: str = "test", limit: int | None = None, size: int = 64, seed: int = 0, objects: int = 1
) -> ImageSet:
    """Render the first `limit` scenes of the stream `(split, seed)`.

    Args:
        split: the three splits are independent streams.
        limit: number of images; None means 2000 (train), 400 (val), 600 (test).
        size: side of the square images in pixels, at least 32.
        seed: chooses the stream.
        objects: 2 puts two objects of different classes into each image, side by side; `labels` then holds the
            class of the first, `box_labels` the classes of both, masks cover both.

    Classes take turns (index modulo number of classes), so every prefix is balanced.

    Raises:
        ValueError: unknown split, size below 32, `limit` below 1 or `objects` not 1 or 2.
    """
    all_scenes = choose_split(SCENE_COUNTS, split, "scenes")
    if size < 32:
        raise ValueError(f"size={size}: scenes need at least 32 pixels to draw their parts")
    if (limit is not None and limit < 1) or objects not in (1, 2):
        raise ValueError(f"limit={limit}, objects={objects}: expected at least 1 image or None, and 1 or 2 objects")
    count = all_scenes if limit is None else limit
    scenes = [render_scene(split, seed, index, size, objects) for index in range(count)]
    return ImageSet(
        name="scenes" if objects == 1 else "scenes_two_objects",
        split=split,
        images=torch.from_numpy(np.stack([s.image for s in scenes])).permute(0, 3, 1, 2).contiguous(),
        labels=torch.tensor([s.labels[0] for s in scenes]),
        classes=CLASSES,
        ids=[f"{split}-{seed}-{index}" for index in range(count)],
        boxes=[torch.from_numpy(s.boxes) for s in scenes],
        box_labels=None if objects == 1 else [torch.tensor(s.labels) for s in scenes],
        masks=torch.from_numpy(np.stack([s.mask for s in scenes])),
        part_masks=torch.from_numpy(np.stack([s.part_mask for s in scenes])),
    )


def render_scene(split: str, seed: int, index: int, size: int, objects: int = 1) -> Scene:
    """Render image `index` of the stream `(split, seed)`; see `load_scenes`."""
    rng = np.random.default_rng([SPLITS.index(split), seed, index])
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    grid = Grid(centres[None, :], centres[:, None], 1.0 / size)
    labels = [index % len(CLASSES)]
    if objects == 2:
        labels.append(int((labels[0] + rng.integers(1, len(CLASSES))) % len(CLASSES)))
    canvas = _background(rng, grid)
    whole, part = np.zeros((size, size), bool), np.zeros((size, size), bool)
    boxes = []
    for label, (centre, scale) in zip(labels, _placements(rng, objects), strict=True):
        object_mask, part_mask = _draw_object(canvas, rng, grid, label, centre, scale)
        boxes.append(_box(object_mask))
        whole, part = whole | object_mask, (part & ~object_mask) | part_mask
    canvas += 0.03 * rng.standard_normal(canvas.shape, dtype=np.float32)
    image = (np.clip(canvas, 0.0, 1.0) * 255.0).round().astype(np.uint8)
    return Scene(image, np.array(boxes, dtype=np.int64), labels, whole, part)


def _placements(rng: np.random.Generator, objects: int) -> list[tuple[Point, float]]:
    """Centre and radius of each body: one anywhere, or two in opposite halves."""
    if objects == 1:
        scale = rng.uniform(0.17, 0.27)
        return [(rng.uniform(scale + 0.06, 0.94 - scale, 2), scale)]
    left = np.array([rng.uniform(0.22, 0.26), rng.uniform(0.28, 0.72)])
    right = np.array([rng.uniform(0.74, 0.78), rng.uniform(0.28, 0.72)])
    return [(left, rng.uniform(0.14, 0.17)), (right, rng.uniform(0.14, 0.17))]


def _colour(rng: np.random.Generator) -> Float[np.ndarray, "3"]:
    return rng.uniform(0.08, 0.95, 3).astype(np.float32)


def _background(rng: np.random.Generator, grid: Grid) -> Canvas:
    """Smooth colour field (bilinear between four corners), a faint wave and a few distractor shapes."""
    corners = rng.uniform(0.1, 0.9, (4, 3)).astype(np.float32)
    x, y = grid.x[..., None], grid.y[..., None]
    top, bottom = corners[0] * (1 - x) + corners[1] * x, corners[2] * (1 - x) + corners[3] * x
    canvas = top * (1 - y) + bottom * y
    canvas += 0.07 * _wave(rng, grid)[..., None]
    for _ in range(rng.integers(4, 9)):
        _paint(canvas, _distractor(rng, grid) * np.float32(rng.uniform(0.5, 1.0)), _colour(rng))
    return canvas


def _wave(rng: np.random.Generator, grid: Grid) -> Plane:
    """Plane sine wave of random direction, frequency and phase, in -1..1."""
    angle, frequency, phase = rng.uniform(0, math.pi), rng.uniform(2, 9), rng.uniform(0, 2 * math.pi)
    along = grid.x * np.float32(math.cos(angle)) + grid.y * np.float32(math.sin(angle))
    return np.sin(along * np.float32(2 * math.pi * frequency) + np.float32(phase))


def _distractor(rng: np.random.Generator, grid: Grid) -> Plane:
    """Coverage of an ellipse or a bar: shapes that no class uses as its part."""
    u, v = _frame(grid, rng.uniform(0, 1, 2), rng.uniform(0, math.pi))
    long, short = rng.uniform(0.06, 0.22), rng.uniform(0.02, 0.12)
    if rng.random() < 0.5:
        distance = (np.hypot(u / np.float32(long), v / np.float32(short)) - 1) * np.float32(short)
    else:
        distance = np.maximum(np.abs(u) - np.float32(long), np.abs(v) - np.float32(short))
    return _coverage(distance, grid.edge)


def _draw_object(
    canvas: Canvas, rng: np.random.Generator, grid: Grid, label: int, centre: Point, scale: float
) -> tuple[Mask, Mask]:
    """Paint body and part of one object onto `canvas`; returns the masks of the whole and of the part."""
    u, v = _frame(grid, centre, rng.uniform(0, 2 * math.pi))
    body = _coverage(_blob_distance(rng, u, v, scale), grid.edge)
    shading = 1 + v * np.float32(0.3 / scale) + np.float32(rng.uniform(0.05, 0.22)) * _wave(rng, grid)
    _paint(canvas, body, _colour(rng) * shading[..., None])
    part_mask = _draw_part(canvas, rng, grid, label, centre, scale)
    return (body >= 0.5) | part_mask, part_mask


def _draw_part(canvas: Canvas, rng: np.random.Generator, grid: Grid, label: int, centre: Point, scale: float) -> Mask:
    """Paint the two-tone disc with the emblem of class `label` near the body's rim; returns the disc's mask."""
    radius = np.float32(0.75 * scale if scale < 0.16 else 0.12)
    around, reach = rng.uniform(0, 2 * math.pi), rng.uniform(0.6, 0.85) * scale
    place = centre + reach * np.array([math.cos(around), math.sin(around)])
    u, v = _frame(grid, np.clip(place, radius, 1 - radius), rng.uniform(-0.35, 0.35))
    disc = _coverage(np.hypot(u, v) - radius, grid.edge)
    emblem = EMBLEMS[CLASSES[label]](u / radius, v / radius, float(grid.edge / radius))
    tones = [rng.uniform(0.0, 0.3, 3).astype(np.float32), rng.uniform(0.75, 1.0, 3).astype(np.float32)]
    ground, ink = tones if rng.random() < 0.5 else tones[::-1]
    _paint(canvas, disc, ground)
    _paint(canvas, emblem * disc, ink)
    return disc >= 0.5


def _blob_distance(rng: np.random.Generator, u: Plane, v: Plane, scale: float) -> Plane:
    """Approximate signed distance to a blob: an ellipse whose radius is modulated by two harmonics."""
    angle = np.arctan2(v, u)
    stretch = np.float32(rng.uniform(0.75, 1.0))
    bumps = np.float32(rng.uniform(0.03, 0.1)) * np.cos(3 * angle + np.float32(rng.uniform(0, 6.3)))
    bumps += np.float32(rng.uniform(0.0, 0.07)) * np.cos(5 * angle + np.float32(rng.uniform(0, 6.3)))
    return np.hypot(u, v / stretch) - np.float32(scale) * (1 + bumps)


def _frame(grid: Grid, centre: Point, angle: float) -> tuple[Plane, Plane]:
    """Coordinates relative to `centre`, rotated by `angle` (radians)."""
    dx, dy = grid.x - np.float32(centre[0]), grid.y - np.float32(centre[1])
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return dx * cos + dy * sin, dy * cos - dx * sin


def _coverage(distance: Plane, edge: float) -> Plane:
    """Pixel coverage in 0..1 from a signed distance (negative inside), with a one-pixel soft edge."""
    return np.clip(0.5 - distance / np.float32(edge), 0.0, 1.0)


def _paint(canvas: Canvas, alpha: Plane, colour: Float[np.ndarray, "*shape"]) -> None:
    """Blend `colour` (one colour, or one per pixel) over the canvas, in place."""
    canvas += alpha[..., None] * (colour - canvas)


def _box(mask: Mask) -> list[int]:
    """Tight half-open box of a mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


# Font digits: rendered from matplotlib's DejaVu fonts, a source domain for transfer to handwritten digits.

FONT_DIGIT_COUNTS: dict[str, int] = {"train": 4000, "val": 500, "test": 1000}
_CANVAS = 96


def load_font_digits(split: str = "train", limit: int | None = None, size: int = 32, seed: int = 0) -> ImageSet:
    """Render the first `limit` (default 4000 / 500 / 1000) grey digits as RGB, classes in turn.

    Raises:
        ValueError: unknown split, or `limit` or `size` too small.
    """
    wanted = choose_split(FONT_DIGIT_COUNTS, split, "font_digits")
    if size < 8 or (limit is not None and limit < 1):
        raise ValueError(f"size={size}, limit={limit}: expected size >= 8 and limit >= 1 or None")
    count = wanted if limit is None else limit
    grey = np.stack([render_digit(split, seed, index, size) for index in range(count)])
    return ImageSet(
        name="font_digits",
        split=split,
        images=torch.from_numpy(grey)[:, None].repeat(1, 3, 1, 1),
        labels=torch.arange(count) % len(DIGITS),
        classes=DIGITS,
        ids=[f"{split}-{seed}-{index}" for index in range(count)],
    )


def render_digit(split: str, seed: int, index: int, size: int) -> UInt8[np.ndarray, "s s"]:
    """White digit `index % 10` on black: random font, rotation ±15°, shear, scale, shift, blur by resampling, noise."""
    rng = np.random.default_rng([10 + SPLITS.index(split), seed, index])
    image = Image.new("L", (_CANVAS, _CANVAS))
    fonts = _fonts()
    font = fonts[rng.integers(len(fonts))]
    centre = (_CANVAS / 2, _CANVAS / 2)
    ImageDraw.Draw(image).text(centre, DIGITS[index % len(DIGITS)], fill=255, font=font, anchor="mm")
    warped = image.transform((_CANVAS, _CANVAS), Image.Transform.AFFINE, _font_pose(rng), Image.Resampling.BILINEAR)
    small = np.asarray(warped.resize((size, size), Image.Resampling.BILINEAR), np.float32)
    noisy = small * rng.uniform(0.7, 1.0) + rng.normal(0, rng.uniform(2, 20), small.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _font_pose(rng: np.random.Generator) -> tuple[float, ...]:
    """Coefficients of PIL's inverse map (output pixel → input pixel) about the centre."""
    angle, shear = rng.normal(0, math.radians(8)), rng.normal(0, 0.15)
    wide, tall = rng.uniform(0.8, 1.15, 2)
    matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = matrix @ np.array([[1 / wide, shear], [0.0, 1 / tall]])
    middle = np.full(2, _CANVAS / 2)
    shift = middle - matrix @ (middle + rng.uniform(-0.06, 0.06, 2) * _CANVAS)
    return (*matrix[0], shift[0], *matrix[1], shift[1])


@cache
def _fonts() -> list[ImageFont.FreeTypeFont]:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts/ttf"
    paths = [path for path in sorted(folder.glob("DejaVu*.ttf")) if "Display" not in path.name]
    return [ImageFont.truetype(path, 78) for path in paths]


# Garment scenes: Fashion-MNIST garments composed over photographs, with masks and boxes as exact as a rendering's.
#
# Garments of `train` come from Fashion-MNIST's training images, those of `test` from its test images; photographs are
# split by the parity of their position, so no garment and no photograph is in both. `val` draws from the same ones as
# `train`: held out as scenes only, it can choose a threshold but says nothing about new images.

GARMENT_COUNTS = {"train": 6000, "val": 1000, "test": 2000}
_STREAM = {"train": 21, "test": 22, "val": 23}
# The ground of Fashion-MNIST is 0 with a faint halo of single-digit values; above this a pixel is garment.
_THRESHOLD = 16


def load_garment_scenes(
    root: Path, split: str = "test", limit: int | None = None, size: int = 96, seed: int = 0
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
    all_scenes = choose_split(GARMENT_COUNTS, split, "garment_scenes")
    count = all_scenes if limit is None else limit
    garments = readers.fashion_mnist(root / "fashion_mnist", "test" if split == "test" else "train")
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
        self._listing = readers.imagenet_sample(root / "imagenet_sample", "test")
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
