"""Boxes of a map at all 256 grey levels in one union-find pass, and PxAP's score histograms (numba kernels).

The contours of `{v > L}` are one per 8-connected foreground component, with the component's bounding box, and
one per hole, i.e. per 4-connected background component that does not reach the border, with the hole's box
grown by one pixel. The boxes at all levels are therefore the nodes of a max-tree (foreground, flooded
downwards) and of a min-tree (background, flooded upwards). A flood unites components, not pixels: a pixel only
carries a component's id, and the IoU of a box is booked once, for all levels between two changes of the box.

Column `L + 1` of a curve belongs to `{v > L}`: a flood down passes columns peak … 1, a flood up columns 1 … peak.

Annotations are left plain and every kernel is marked `no_type_check`: numba compiles these functions, a
checker wrapped around them would stop it. All kernels live in this one file because numba's disk cache only
notices changes of the file that holds the cached function.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, no_type_check

import numba
import numpy as np

# A component: its inclusive box; its area without holes, and with them when last followed, in half pixels; its first
# pixel in reading order; the column since which it has its box (0: the box is new) and that box's best IoU; the column
# that changed it last; whether it is among the contenders for the largest.
FIELDS = ("left", "top", "right", "bottom", "area", "filled", "start", "since", "changed", "contends")
PART = np.dtype([(name, np.int32) for name in FIELDS] + [("iou", np.float32)])
# Ids are unsigned, which spares numba the test for negative indices; those of components begin behind the border's.
UNSET, BORDER = np.uint32(0), np.uint32(1)
# Rows of the result: every contour, the contour of largest area, the box around the whole foreground.
ALL, LARGEST, UNION = range(3)
# Counters of a flood: the last id given, components changed at this level, contenders, the area they have to reach.
IDS, CHANGED, CONTENDERS, BOUND = range(4)
N_COLUMNS = 257
# Clockwise from east; the order matters for `filled_area`.
STEP_X = np.array([1, 1, 0, -1, -1, -1, 0, 1])
STEP_Y = np.array([0, 1, 1, 1, 0, -1, -1, -1])


class Flood(NamedTuple):
    """What a flood works on; the image is padded by one pixel and its rows are 2^shift long."""

    labels: np.ndarray
    parts: np.ndarray
    parent: np.ndarray
    changed: np.ndarray
    contenders: np.ndarray
    counts: np.ndarray
    height: int
    width: int
    shift: int


def corner_gains() -> np.ndarray:
    """Half pixels the polygon through the pixel centres gains with a pixel, per pattern of its 8 neighbours.

    A 2 x 2 block holds a unit square if its four pixels are set and a triangle of one half if three are, so a
    pixel adds one half per corner where at least two of the other three pixels are set.
    """
    is_set = (np.arange(256)[:, None] >> np.arange(8)) & 1
    corners = [is_set[:, [k, k + 1, (k + 2) % 8]].sum(1) >= 2 for k in range(0, 8, 2)]
    return np.sum(corners, axis=0).astype(np.int32)


GAINED = corner_gains()


def compiled(function: Callable[..., Any], inline: Literal["never", "always"] = "never") -> Callable[..., Any]:
    """Compile without the interpreter lock, cached on disk where any cache folder is writable."""
    try:
        return numba.njit(nogil=True, cache=True, inline=inline)(function)
    except RuntimeError:  # numba found no writable place for the cache: compile in memory
        return numba.njit(nogil=True, inline=inline)(function)


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


@no_type_check
def find(parent, c):
    while parent[c] != c:
        parent[c] = parent[parent[c]]
        c = parent[c]
    return c


find = compiled(find, inline="always")


@compiled
@no_type_check
def settle(part, column, curve):
    """Book a box that ends at `column` for the columns it stood: those above it going down, below it going up."""
    if part.since:
        for passed in range(min(part.since, column + 1), max(part.since, column - 1) + 1):
            curve[passed] = max(curve[passed], part.iou)
        part.since = 0


@compiled
@no_type_check
def widen(part, left, top, right, bottom, column, curve):
    """Let a component's box hold another box."""
    if left < part.left or top < part.top or right > part.right or bottom > part.bottom:
        settle(part, column, curve)
        part.left, part.top = min(part.left, left), min(part.top, top)
        part.right, part.bottom = max(part.right, right), max(part.bottom, bottom)


@compiled
@no_type_check
def unite(parts, parent, a, b, column, curve):
    """Join two components; the older id survives, so the border always does."""
    keep, drop = min(a, b), max(a, b)
    parent[drop] = keep
    kept, dropped = parts[keep], parts[drop]
    settle(dropped, column, curve)
    widen(kept, dropped.left, dropped.top, dropped.right, dropped.bottom, column, curve)
    kept.area += dropped.area
    kept.filled = max(kept.filled, dropped.filled)
    kept.start = min(kept.start, dropped.start)
    return keep


@compiled
@no_type_check
def new_part(parts, parent, count, p, x, y):
    count[IDS] += 1
    c = np.uint32(count[IDS])
    parent[c] = c
    part = parts[c]
    part.left, part.top, part.right, part.bottom = x, y, x, y
    part.area, part.filled, part.start = 0, 0, p
    part.since, part.changed, part.contends = 0, 0, 0
    return c


def pixel_adder(neighbours: int) -> Callable[..., Any]:
    """`add_pixels` for 4 or 8 neighbours: a count known when compiling halves the time of the loop over them."""

    @compiled
    @no_type_check
    def add_pixels(pixels, column, offsets, flood, curve):
        """Add pixels (padded indices) to the components they touch, joining or founding components."""
        labels, parts, parent, count, shift = flood.labels, flood.parts, flood.parent, flood.counts, flood.shift
        in_row = np.uint32((1 << shift) - 1)
        count[CHANGED] = 0
        for p in pixels:
            c, pattern, seen = UNSET, 0, UNSET
            for k in range(neighbours):
                label = labels[p + offsets[k]]
                if label == UNSET:
                    continue
                pattern |= 1 << k
                if label != seen:
                    seen = label
                    root = find(parent, label)
                    if c == UNSET:
                        c = root
                    elif root != c:
                        c = unite(parts, parent, c, root, column, curve)
            x, y = np.int32(p & in_row) - 1, np.int32(p >> shift) - 1
            if c == UNSET:
                c = new_part(parts, parent, count, p, x, y)
            labels[p] = c
            part = parts[c]
            widen(part, x, y, x, y, column, curve)
            part.area += GAINED[pattern]
            part.start = min(part.start, np.int32(p))
            if part.changed != column:
                part.changed = column
                flood.changed[count[CHANGED]] = c
                count[CHANGED] += 1

    return add_pixels


add_pixels_4, add_pixels_8 = pixel_adder(4), pixel_adder(8)


@compiled
@no_type_check
def rate_boxes(flood, column, grow, excess, boxes):
    """IoU of the boxes that are new at this level; `grow` widens on all sides, `excess` only on the far ones."""
    for j in range(flood.counts[CHANGED]):
        c = flood.changed[j]
        part = flood.parts[c]
        if flood.parent[c] == c and part.since == 0 and c != BORDER:
            part.since = column
            right = min(part.right + 1 + grow + excess, flood.width)
            bottom = min(part.bottom + 1 + grow + excess, flood.height)
            part.iou = best_iou(part.left - grow, part.top - grow, right, bottom, boxes)


@compiled
@no_type_check
def filled_area(start, labels, offsets):
    """Twice the area inside the outer contour that passes `start`, its first pixel in reading order.

    The contour is followed clockwise through pixel centres until it leaves `start` the way it did first.
    """
    x, y, p = 0, 0, np.uint64(start)
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
def box_area(part):
    """Twice the area between the centres of the box's corner pixels: no contour inside encloses more."""
    return 2 * (part.right - part.left) * (part.bottom - part.top)


@compiled
@no_type_check
def list_contenders(flood):
    """Keep the components that may be the largest: those whose box encloses what some component surely does.

    Areas only grow on the way down, so one that falls short stays out until it changes.
    """
    parts, parent, count, contenders = flood.parts, flood.parent, flood.counts, flood.contenders
    for j in range(count[CHANGED]):
        c = flood.changed[j]
        if parent[c] == c:
            count[BOUND] = max(count[BOUND], parts[c].area)
            if not parts[c].contends:
                contenders[count[CONTENDERS]] = c
                count[CONTENDERS] += 1
    kept = 0
    for j in range(count[CONTENDERS]):
        c = contenders[j]
        parts[c].contends = parent[c] == c and box_area(parts[c]) >= count[BOUND]
        if parts[c].contends:
            contenders[kept] = c
            kept += 1
    count[CONTENDERS] = kept


@compiled
@no_type_check
def largest_part(flood, offsets):
    """The contender whose outer contour encloses the largest area.

    On ties it is the last to start in reading order, the first in OpenCV's list. A contour is followed only where
    two contend and the area without holes (a lower bound) is not that of the box (an upper one).
    """
    parts, count, contenders = flood.parts, flood.counts, flood.contenders
    best, best_area = contenders[0], -1
    if count[CONTENDERS] == 1:
        return best
    for j in range(count[CONTENDERS]):
        c = contenders[j]
        part, limit = parts[c], box_area(parts[c])
        if limit < best_area:
            continue
        part.filled = limit if max(part.area, part.filled) == limit else filled_area(part.start, flood.labels, offsets)
        if part.filled > best_area or (part.filled == best_area and part.start > parts[best].start):
            best, best_area = c, part.filled
    count[BOUND] = max(count[BOUND], best_area)
    return best


@compiled
@no_type_check
def flood_down(order, first, peak, flood, boxes, excess, curves):
    """Foreground components of `{v > L}` for L = peak - 1 … 0, into the three rows of `curves` (3 x 257)."""
    offsets = (STEP_X + STEP_Y * (1 << flood.shift)).astype(np.uint64)
    flood.labels[:] = UNSET
    flood.counts[:] = 0
    flood.counts[IDS] = BORDER
    whole = flood.parts[0]
    whole.left, whole.top, whole.right, whole.bottom, whole.since = flood.width, flood.height, -1, -1, 0
    for column in range(peak, 0, -1):
        add_pixels_8(order[first[column] : first[column + 1]], column, offsets, flood, curves[ALL])
        rate_boxes(flood, column, 0, excess, boxes)
        list_contenders(flood)
        curves[LARGEST, column] = flood.parts[largest_part(flood, offsets)].iou
        for j in range(flood.counts[CHANGED]):
            part = flood.parts[flood.changed[j]]
            widen(whole, part.left, part.top, part.right, part.bottom, column, curves[ALL])
        right, bottom = min(whole.right + 1 + excess, flood.width), min(whole.bottom + 1 + excess, flood.height)
        curves[UNION, column] = best_iou(whole.left, whole.top, right, bottom, boxes)
    for c in range(BORDER + 1, flood.counts[IDS] + 1):
        settle(flood.parts[c], 0, curves[ALL])


@compiled
@no_type_check
def flood_up(order, first, peak, flood, boxes, excess, curve):
    """Holes of `{v > L}` for L = 0 … peak - 1, added to the best of all contours."""
    offsets = np.array([1, 1 << flood.shift, -1, -(1 << flood.shift)]).astype(np.uint64)
    flood.labels[:] = BORDER
    for y in range(flood.height):
        row = ((y + 1) << flood.shift) + 1
        flood.labels[row : row + flood.width] = UNSET
    flood.parent[BORDER] = BORDER
    border = flood.parts[BORDER]
    border.left, border.top, border.right, border.bottom = 0, 0, flood.width, flood.height
    border.since, border.changed, border.start = 0, 0, 0
    flood.counts[:] = 0
    flood.counts[IDS] = BORDER
    for column in range(1, peak + 1):
        add_pixels_4(order[first[column - 1] : first[column]], column, offsets, flood, curve)
        rate_boxes(flood, column, 1, excess, boxes)
    for c in range(BORDER + 1, flood.counts[IDS] + 1):
        settle(flood.parts[c], peak + 1, curve)


@compiled
@no_type_check
def sort_pixels(values, shift):
    """Padded indices by grey value, and where each value starts (257 entries)."""
    height, width = values.shape
    first = np.zeros(257, np.int64)
    for y in range(height):
        for x in range(width):
            first[values[y, x] + np.uint64(1)] += 1
    first = np.cumsum(first)
    place = first.copy()
    order = np.empty(height * width, np.uint32)
    for y in range(height):
        row = ((y + 1) << shift) + 1
        for x in range(width):
            value = np.uint64(values[y, x])
            order[place[value]] = row + x
            place[value] += 1
    return order, first


@compiled
@no_type_check
def level_curves(values, boxes, first_box, excess, holes):
    """Best IoU at every level of n maps (n x h x w, uint8) → (n x 3 x 257 float32, n peaks).

    Column L + 1 belongs to `{v > L}`; column 0 to the whole image. Boxes of map i are rows
    `first_box[i]:first_box[i + 1]` of `boxes` (half-open). An empty mask has the box (0, 0, excess, excess).
    """
    n, height, width = values.shape
    shift = 1
    while (1 << shift) < width + 2:
        shift += 1
    curves = np.zeros((n, 3, N_COLUMNS), np.float32)
    peaks = np.zeros(n, np.int64)
    most = height * width // 2 + 4
    ids = np.empty((3, most), np.uint32)
    labels = np.empty((height + 2) << shift, np.uint32)
    parts, count = np.empty(most, PART), np.zeros(4, np.int64)
    flood = Flood(labels, parts, ids[0], ids[1], ids[2], count, height, width, shift)
    for i in range(n):
        truth = boxes[first_box[i] : first_box[i + 1]]
        order, first = sort_pixels(values[i], shift)
        peak = values[i].max()
        flood_down(order, first, peak, flood, truth, excess, curves[i])
        if holes:
            flood_up(order, first, peak, flood, truth, excess, curves[i, ALL])
        curves[i, :, 0] = best_iou(0, 0, width, height, truth)
        curves[i, :, peak + 1 :] = best_iou(0, 0, excess, excess, truth)
        peaks[i] = peak
    return curves, peaks


EDGES = np.append(np.arange(0, 1, 0.001), [1.0, 2.0, 3.0])
"""Bin edges of the benchmark's PxAP: its 1000 thresholds and three more, so that a score of 1 has its own bin."""
N_BINS = len(EDGES) - 1


@compiled
@no_type_check
def count_scores(scores, labels):
    """Scores per bin (4 x 1002) of pixels that are ignored (label 255), background (0), foreground (1), anything else.

    Scores lie in [0, 1]. The nearest multiple of 0.001 is found by rounding; whether a score falls short of it is asked
    of the true decimal edge. No branch: random labels would mislead it.
    """
    counts = np.zeros((4, N_BINS), np.int64)
    for i in range(scores.shape[0]):
        score = scores[i]
        nearest = np.uint64(np.int64(score * 1000.0 + 0.5))
        row = min(np.uint64(np.uint8(labels[i] + np.uint8(1))), np.uint64(3))
        counts[row, nearest - np.uint64(score < EDGES[nearest])] += 1
    return counts
