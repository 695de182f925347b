"""The eight class-specific emblems of the part-whole scenes, each a coverage mask on a disc of radius 1."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

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
