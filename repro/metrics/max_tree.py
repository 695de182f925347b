"""Boxes of a map at all 256 grey levels in one union-find pass (numba kernels).

The contours of `{v > L}` are one per 8-connected foreground component, with the component's bounding box, and
one per hole, i.e. per 4-connected background component that does not reach the border, with the hole's box
grown by one pixel. The boxes at all levels are therefore the nodes of a max-tree (foreground, flooded
downwards) and of a min-tree (background, flooded upwards). Each flood merges components as pixels arrive and,
at the end of a level, books the best IoU of the components alive then.

Annotations are left plain and every kernel is marked `no_type_check`: numba compiles these functions, a
checker wrapped around them would stop it. All kernels live in this one file because numba's disk cache only
notices changes of the file that holds the cached function.
"""

from collections.abc import Callable
from typing import Any, no_type_check

import numba
import numpy as np

# A component: inclusive box, area in half pixels, first pixel in reading order, place in the list of live
# ones, and its best IoU (-1 when the box changed since).
PART = np.dtype(
    [(name, np.uint32) for name in ("parent", "left", "top", "right", "bottom", "area", "start", "slot")]
    + [("iou", np.float64)]
)
# Component ids start at 1; ids and indices are unsigned, which spares numba the test for negative ones.
UNSET, BORDER = np.uint32(0), np.uint32(1)
# Rows of the result: every contour, the contour of largest area, the box around the whole foreground.
ALL, LARGEST, UNION = range(3)
N_COLUMNS = 257
# Clockwise from east; the order matters for `boundary_area`.
STEP_X = np.array([1, 1, 0, -1, -1, -1, 0, 1])
STEP_Y = np.array([0, 1, 1, 1, 0, -1, -1, -1])


def corner_gains() -> np.ndarray:
    """Half pixels the polygon through the pixel centres gains with a pixel, per pattern of its 8 neighbours.

    A 2 x 2 block holds a unit square if its four pixels are set and a triangle of one half if three are, so a
    pixel adds one half per corner where at least two of the other three pixels are set.
    """
    is_set = (np.arange(256)[:, None] >> np.arange(8)) & 1
    corners = [is_set[:, [k, k + 1, (k + 2) % 8]].sum(1) >= 2 for k in range(0, 8, 2)]
    return np.sum(corners, axis=0).astype(np.int32)


GAINED = corner_gains()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile without the interpreter lock, cached on disk where any cache folder is writable."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found no writable place for the cache: compile in memory
        return numba.njit(nogil=True)(function)


@compiled
@no_type_check
def best_iou(left, top, right, bottom, boxes):
    """Largest IoU of one half-open box with any row of `boxes` (half-open, k x 4)."""
    best = 0.0
    area = (right - left) * (bottom - top)
    for k in range(boxes.shape[0]):
        wide = min(right, boxes[k, 2]) - max(left, boxes[k, 0])
        high = min(bottom, boxes[k, 3]) - max(top, boxes[k, 1])
        if wide > 0 and high > 0:
            inter = wide * high
            other = (boxes[k, 2] - boxes[k, 0]) * (boxes[k, 3] - boxes[k, 1])
            best = max(best, inter / (area + other - inter))
    return best


@compiled
@no_type_check
def find(parts, c):
    while parts[c].parent != c:
        parts[c].parent = parts[parts[c].parent].parent
        c = parts[c].parent
    return c


@compiled
@no_type_check
def merge(parts, live, count, a, b):
    """Join two live components; the older id survives, so the border always does."""
    keep, drop = min(a, b), max(a, b)
    parts[drop].parent = keep
    count[1] -= 1
    last = live[count[1]]
    live[parts[drop].slot] = last
    parts[last].slot = parts[drop].slot
    parts[keep].left = min(parts[keep].left, parts[drop].left)
    parts[keep].top = min(parts[keep].top, parts[drop].top)
    parts[keep].right = max(parts[keep].right, parts[drop].right)
    parts[keep].bottom = max(parts[keep].bottom, parts[drop].bottom)
    parts[keep].area += parts[drop].area
    parts[keep].start = min(parts[keep].start, parts[drop].start)
    parts[keep].iou = -1.0
    return keep


@compiled
@no_type_check
def add_pixel(p, grid_x, grid_y, labels, parts, live, count, offsets):
    """Add the pixel at padded index `p` to the component it touches, joining or founding components."""
    c, pattern, seen = UNSET, 0, UNSET
    for k in range(offsets.shape[0]):
        label = labels[p + offsets[k]]
        if label == UNSET:
            continue
        pattern |= 1 << k
        if label != seen:
            seen = label
            root = find(parts, label)
            if c == UNSET:
                c = root
            elif root != c:
                c = merge(parts, live, count, c, root)
    x, y = grid_x[p], grid_y[p]
    if c == UNSET:
        c = np.uint32(count[0])
        count[0] += 1
        parts[c].parent, parts[c].area, parts[c].start, parts[c].slot = c, 0, p, count[1]
        parts[c].left, parts[c].top, parts[c].right, parts[c].bottom = x, y, x, y
        live[count[1]] = c
        count[1] += 1
        parts[c].iou = -1.0
    elif x < parts[c].left or x > parts[c].right or y < parts[c].top or y > parts[c].bottom:
        parts[c].left, parts[c].right = min(parts[c].left, x), max(parts[c].right, x)
        parts[c].top, parts[c].bottom = min(parts[c].top, y), max(parts[c].bottom, y)
        parts[c].iou = -1.0
    parts[c].start = min(parts[c].start, p)
    parts[c].area += GAINED[pattern]
    labels[p] = c


@compiled
@no_type_check
def boundary_area(start, width, labels, offsets):
    """Twice the area inside the outer contour that passes `start`, its first pixel in reading order.

    The contour is followed clockwise through pixel centres until it leaves `start` the way it did first.
    """
    x, y, p = 0, 0, start
    doubled, first, direction = 0, -1, 0
    while True:
        turns = 0
        while labels[p + offsets[direction]] == UNSET:
            direction = (direction + 1) % 8
            turns += 1
            if turns == 8:
                return 0
        if p == start:
            if first == direction:
                return abs(doubled)
            if first < 0:
                first = direction
        doubled += x * STEP_Y[direction] - y * STEP_X[direction]
        x, y = x + STEP_X[direction], y + STEP_Y[direction]
        p += offsets[direction]
        # Look first where the pixel before last could not: just left of the way we came.
        direction = (direction + 7 - direction % 2) % 8


@compiled
@no_type_check
def largest_part(width, labels, parts, live, count, offsets):
    """Live component whose outer contour encloses the largest area.

    On ties it is the last to start in reading order, the first in OpenCV's list. The area without holes (a
    lower bound) and that of the box (an upper bound) settle nearly all cases; the contour is followed only
    where they do not.
    """
    if count[1] == 1:
        return live[0]
    bound = np.int64(0)
    for j in range(count[1]):
        bound = max(bound, np.int64(parts[live[j]].area))
    best, best_area = live[0], -1
    for j in range(count[1]):
        c = live[j]
        limit = 2 * np.int64(parts[c].right - parts[c].left) * (parts[c].bottom - parts[c].top)
        if limit < max(bound, best_area):
            continue
        area = limit
        if parts[c].area < limit:
            area = boundary_area(parts[c].start, width, labels, offsets)
        if area > best_area or (area == best_area and parts[c].start > parts[best].start):
            best, best_area = c, area
    return best


@compiled
@no_type_check
def book_level(parts, live, count, grow, excess, shape, boxes):
    """Best IoU of the components alive; `grow` widens on all sides, `excess` only on the far ones."""
    best = 0.0
    for j in range(count[1]):
        c = live[j]
        if parts[c].iou < 0:
            right = min(parts[c].right + 1 + grow + excess, shape[1])
            bottom = min(parts[c].bottom + 1 + grow + excess, shape[0])
            parts[c].iou = best_iou(parts[c].left - grow, parts[c].top - grow, right, bottom, boxes)
        best = max(best, parts[c].iou)
    return best


@compiled
@no_type_check
def union_iou(parts, live, count, excess, shape, boxes):
    """Best IoU of the box around all components alive."""
    if count[1] == 1:
        return parts[live[0]].iou
    left, top, right, bottom = shape[1], shape[0], 0, 0
    for j in range(count[1]):
        c = live[j]
        left, right = min(left, parts[c].left), max(right, parts[c].right)
        top, bottom = min(top, parts[c].top), max(bottom, parts[c].bottom)
    far_x, far_y = min(right + 1 + excess, shape[1]), min(bottom + 1 + excess, shape[0])
    return best_iou(left, top, far_x, far_y, boxes)


@compiled
@no_type_check
def sort_pixels(values):
    """Padded indices by grey value, and where each value starts (257 entries)."""
    height, width = values.shape
    first = np.zeros(257, np.int64)
    for y in range(height):
        for x in range(width):
            first[values[y, x] + 1] += 1
    first = np.cumsum(first)
    place = first.copy()
    order = np.empty(height * width, np.uint32)
    for y in range(height):
        for x in range(width):
            order[place[values[y, x]]] = (y + 1) * (width + 2) + x + 1
            place[values[y, x]] += 1
    return order, first


@compiled
@no_type_check
def flood_down(order, first, peak, shape, grid_x, grid_y, boxes, excess, parts, live, curve):
    """Foreground components of `{v > L}` for L = peak - 1 … 0; column L + 1 of `curve` (3 x 257)."""
    width = shape[1] + 2
    offsets = (STEP_X + width * STEP_Y).astype(np.uint64)
    labels = np.zeros((shape[0] + 2) * width, np.uint32)
    count = np.array([1, 0])
    for value in range(peak, 0, -1):
        for i in range(first[value], first[value + 1]):
            add_pixel(order[i], grid_x, grid_y, labels, parts, live, count, offsets)
        curve[ALL, value] = book_level(parts, live, count, 0, excess, shape, boxes)
        curve[LARGEST, value] = parts[largest_part(width, labels, parts, live, count, offsets)].iou
        curve[UNION, value] = union_iou(parts, live, count, excess, shape, boxes)


@compiled
@no_type_check
def flood_up(order, first, peak, shape, grid_x, grid_y, boxes, excess, parts, live, curve):
    """Holes of `{v > L}` for L = 0 … peak - 1, added to the best of all contours."""
    width = shape[1] + 2
    offsets = np.array([1, width, -1, -width]).astype(np.uint64)
    labels = np.full((shape[0] + 2) * width, BORDER, np.uint32)
    for y in range(shape[0]):
        labels[(y + 1) * width + 1 : (y + 2) * width - 1] = UNSET
    parts[BORDER].parent = BORDER
    count = np.array([2, 0])
    for level in range(peak):
        for i in range(first[level], first[level + 1]):
            add_pixel(order[i], grid_x, grid_y, labels, parts, live, count, offsets)
        hole = book_level(parts, live, count, 1, excess, shape, boxes)
        curve[ALL, level + 1] = max(curve[ALL, level + 1], hole)


@compiled
@no_type_check
def level_curves(values, boxes, first_box, excess, holes):
    """Best IoU at every level of n maps (n x h x w, uint8) → (n x 3 x 257 float32, n peaks).

    Column L + 1 belongs to `{v > L}`; column 0 to the whole image. Boxes of map i are rows
    `first_box[i]:first_box[i + 1]` of `boxes` (half-open). An empty mask has the box (0, 0, excess, excess).
    """
    n, height, width = values.shape
    shape = (height, width)
    grid = np.arange((height + 2) * (width + 2))
    grid_x = (grid % (width + 2) - 1).astype(np.uint32)
    grid_y = (grid // (width + 2) - 1).astype(np.uint32)
    curves = np.zeros((n, 3, N_COLUMNS), np.float32)
    peaks = np.zeros(n, np.int64)
    parts = np.empty(height * width // 2 + 4, PART)
    live = np.empty(parts.shape[0], np.uint32)
    for i in range(n):
        truth = boxes[first_box[i] : first_box[i + 1]]
        order, first = sort_pixels(values[i])
        peak = values[i].max()
        flood_down(order, first, peak, shape, grid_x, grid_y, truth, excess, parts, live, curves[i])
        if holes:
            flood_up(order, first, peak, shape, grid_x, grid_y, truth, excess, parts, live, curves[i])
        curves[i, :, 0] = best_iou(0, 0, width, height, truth)
        curves[i, :, peak + 1 :] = best_iou(0, 0, excess, excess, truth)
        peaks[i] = peak
    return curves, peaks


# Exact score histograms for PxAP (numba kernel; annotations stay plain, see `max_tree`).

EDGES = np.append(np.arange(0, 1, 0.001), [1.0, 2.0, 3.0])
"""The benchmark's bin edges: its 1000 thresholds and three more, so that a score of 1 has its own bin."""
N_BINS = len(EDGES) - 1


@compiled
@no_type_check
def count_scores(scores, labels, counts):
    """Count foreground (label 1, row 0) and background (label 0, row 1) scores per bin; label 255 is skipped.

    Returns False at a score outside [0, 1] or another label. `int(1000 s)` is the bin up to rounding of the
    decimal edges, so it is moved by one where the true edges say so.
    """
    for i in range(scores.shape[0]):
        label = labels[i]
        if label == 255:
            continue
        score = scores[i]
        if not (score >= 0.0 and score <= 1.0) or label > 1:
            return False
        place = int(score * 1000.0)
        if score < EDGES[place]:
            place -= 1
        elif score >= EDGES[place + 1]:
            place += 1
        counts[1 - label, place] += 1
    return True
