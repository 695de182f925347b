"""Every kind of image file becomes RGB bytes, damaged ones are named, geometry is hand-computed."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from repro.data.images import Frame, UnreadableImageError, read_image

RED = (200, 30, 40)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def test_every_colour_mode_becomes_rgb():
    wide = Image.fromarray(np.full((4, 6), 257 * 100, np.uint16))
    palette = Image.new("RGB", (6, 4), RED).convert("P", palette=Image.Palette.ADAPTIVE)
    kinds = {
        "grey": (encoded(Image.new("L", (6, 4), 77)), (77, 77, 77)),
        "bilevel": (encoded(Image.new("1", (6, 4), 1)), (255, 255, 255)),
        "16 bit": (encoded(wide), (100, 100, 100)),
        "palette": (encoded(palette), RED),
        "alpha": (encoded(Image.new("RGBA", (6, 4), (*RED, 10))), RED),
        "grey with alpha": (encoded(Image.new("LA", (6, 4), (50, 0))), (50, 50, 50)),
        "cmyk": (encoded(Image.new("CMYK", (6, 4), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
    }
    for kind, (content, colour) in kinds.items():
        pixels = read_image(content)
        assert pixels.shape == (4, 6, 3) and pixels.dtype == np.uint8, kind
        assert np.abs(pixels.reshape(-1, 3).astype(int) - colour).max() <= 1, kind


def test_cmyk_jpeg_is_not_inverted():
    pixels = read_image(encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG"))
    assert pixels.min() > 250


def test_exif_orientation_is_applied_unless_boxes_refer_to_stored_pixels():
    image = Image.new("RGB", (6, 4))
    image.putpixel((0, 0), (255, 255, 255))
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise: the stored top left becomes the top right
    content = encoded(image, exif=exif)
    upright, stored = read_image(content), read_image(content, upright=False)
    assert upright.shape == (6, 4, 3) and upright[0, 3].tolist() == [255, 255, 255]
    assert stored.shape == (4, 6, 3) and stored[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["zero bytes", "truncated jpeg", "truncated png", "text", "missing", "folder"])
def test_damaged_files_are_refused(kind, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    contents = {
        "zero bytes": b"",
        "truncated jpeg": encoded(noise, "JPEG")[:-600],
        "truncated png": encoded(noise)[:-600],
        "text": b"<html>404 not found</html>",
    }
    path = tmp_path / "image.jpg"
    if kind in contents:
        path.write_bytes(contents[kind])
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(UnreadableImageError):
        read_image(path)


def test_crop_takes_the_middle_and_moves_boxes():
    frame = Frame(width=8, height=4, size=2, fit="crop")
    assert frame.resized == (4, 2) and frame.offset == (1, 0)
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 2:6] = 90
    assert (frame.place(pixels, smooth=False) == 90).all()
    boxes = np.array([[2, 0, 6, 4], [0, 0, 2, 4], [0, 2, 4, 4], [6, 0, 8, 4]])
    assert frame.place_boxes(boxes).tolist() == [[0, 0, 2, 2], [0, 1, 1, 2]]


def test_squash_truncates_corners_like_the_benchmark():
    frame = Frame(width=500, height=335, size=224, fit="squash")
    expected = [int(60 * 224 / 500), int(27 * 224 / 335), int(385 * 224 / 500), int(331 * 224 / 335)]
    assert frame.place_boxes(np.array([[60, 27, 385, 331]])).tolist() == [expected]


def test_pad_centres_without_resampling_and_refuses_to_shrink():
    image = np.full((28, 28, 3), 9, np.uint8)
    padded = Frame(28, 28, 32, "pad").place(image, smooth=True)
    assert padded.shape == (32, 32, 3) and (padded[2:30, 2:30] == 9).all() and padded.sum() == image.sum()
    assert Frame(28, 28, 32, "pad").place_boxes(np.array([[0, 0, 28, 28]])).tolist() == [[2, 2, 30, 30]]
    with pytest.raises(ValueError, match="at least 28"):
        Frame(28, 28, 20, "pad").place(image, smooth=True)


@given(st.integers(5, 60), st.integers(5, 60), st.integers(4, 64), st.sampled_from(["crop", "squash"]), st.data())
def test_boxes_follow_the_pixels(width, height, size, fit, data):
    """The box of a filled rectangle stays within one output pixel of the rectangle's own mask."""
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    frame = Frame(width, height, size, fit)
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    placed, boxes = frame.place_mask(mask), frame.place_boxes(np.array([[x0, y0, x1, y1]]))
    assert placed.shape == (size, size)
    if len(boxes):
        assert (boxes[:, :2] < boxes[:, 2:]).all() and boxes.min() >= 0 and boxes.max() <= size
    if placed.any() and len(boxes):
        rows, columns = np.flatnonzero(placed.any(1)), np.flatnonzero(placed.any(0))
        tight = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert np.abs(tight - boxes[0]).max() <= 1 + size / min(width, height)
