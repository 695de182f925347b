"""The prototype that `repro.metrics.max_tree` is held against for speed: every contour and hole, one box rule only.

Union-find over components instead of pixels, on a padded image, with levels and boxes in short arrays per component.
Kept as it was measured first, so that a bar of 1.3 times its time means the same from one release to the next.
"""

import numpy as np
from numba import njit

LEVELS = 256


@njit(cache=True, inline="always")
def _root(par, c):
    while par[c] != c:
        par[c] = par[par[c]]
        c = par[c]
    return c


@njit(cache=True, inline="always")
def _iou(x0, y0, x1, y1, gt):
    best = 0.0
    for g in range(gt.shape[0]):
        iw = min(x1, gt[g, 2]) - max(x0, gt[g, 0]) + 1
        ih = min(y1, gt[g, 3]) - max(y0, gt[g, 1]) + 1
        if iw > 0 and ih > 0:
            inter = iw * ih
            union = (x1 - x0 + 1) * (y1 - y0 + 1) + (gt[g, 2] - gt[g, 0] + 1) * (gt[g, 3] - gt[g, 1] + 1) - inter
            v = inter / union
            if v > best:
                best = v
    return best


@njit(cache=True, inline="always")
def _close(best, lo, hi, v):
    for j in range(lo, hi):
        if v > best[j]:
            best[j] = v


@njit(cache=True)
def _pass(order, start, lab, W2, W, H, gt, best, ncomp, offs, fg, grow, count):
    """One flood. fg: levels high->low, 8 neighbours; else low->high, 4 neighbours, comp 0 = outside.

    count[L] += number of live boxes at level L.
    """
    n = order.size
    cap = n + 2
    par = np.empty(cap, np.int32)
    bx0 = np.empty(cap, np.int32)
    by0 = np.empty(cap, np.int32)
    bx1 = np.empty(cap, np.int32)
    by1 = np.empty(cap, np.int32)
    since = np.empty(cap, np.int32)
    val = np.empty(cap, np.float64)
    mark = np.empty(cap, np.int32)
    touched = np.empty(cap, np.int32)
    nc = ncomp
    for c in range(ncomp):
        par[c] = c
        since[c] = -1
        mark[c] = -1
    no = offs.size
    for step in range(LEVELS):
        L = LEVELS - 1 - step if fg else step
        if fg and L == 0:
            break
        if (not fg) and L == LEVELS - 1:
            break
        a, b = start[L], start[L + 1]
        if a == b:
            continue
        nt = 0
        for k in range(a, b):
            p = order[k]
            y = p // W2 - 1
            x = p - (y + 1) * W2 - 1
            r = -1
            last = -1
            for o in range(no):
                c = lab[p + offs[o]]
                if c < 0 or c == last:
                    continue
                last = c
                c = _root(par, c)
                if c == r:
                    continue
                if since[c] >= 0:  # its box changes now: book the levels it held
                    if fg:
                        _close(best, L, since[c], val[c])
                        for j in range(L, since[c]):
                            count[j] += 1
                    else:
                        _close(best, since[c], L, val[c])
                        for j in range(since[c], L):
                            count[j] += 1
                    since[c] = -1
                if r == -1:
                    r = c
                else:
                    if c < r:
                        r, c = c, r
                    par[c] = r
                    if r != 0 or fg:
                        bx0[r] = min(bx0[r], bx0[c])
                        by0[r] = min(by0[r], by0[c])
                        bx1[r] = max(bx1[r], bx1[c])
                        by1[r] = max(by1[r], by1[c])
            if r == -1:
                r = nc
                nc += 1
                par[r] = r
                mark[r] = -1
                since[r] = -1
                bx0[r] = x
                bx1[r] = x
                by0[r] = y
                by1[r] = y
            elif r != 0 or fg:
                if x < bx0[r]:
                    bx0[r] = x
                if x > bx1[r]:
                    bx1[r] = x
                if y < by0[r]:
                    by0[r] = y
                if y > by1[r]:
                    by1[r] = y
            lab[p] = r
            if mark[r] != L:
                mark[r] = L
                touched[nt] = r
                nt += 1
        for k in range(nt):
            r = touched[k]
            if par[r] != r or since[r] >= 0 or (r == 0 and not fg):
                continue
            since[r] = L
            val[r] = _iou(
                bx0[r] - grow, by0[r] - grow, min(bx1[r] + 1 + grow, W - 1), min(by1[r] + 1 + grow, H - 1), gt
            )
    top = 0
    for L in range(LEVELS - 1, -1, -1):
        if start[L + 1] > start[L]:
            top = L
            break
    for c in range(nc):
        if par[c] == c and since[c] >= 0:
            if fg:
                _close(best, 0, since[c], val[c])
                for j in range(since[c]):
                    count[j] += 1
            else:
                _close(best, since[c], top, val[c])
                for j in range(since[c], top):
                    count[j] += 1
    return top


@njit(cache=True)
def best_iou_per_level(img, gt, holes):
    H, W = img.shape
    W2 = W + 2
    start = np.zeros(LEVELS + 1, np.int64)
    for y in range(H):
        for x in range(W):
            start[np.int64(img[y, x]) + 1] += 1
    for i in range(LEVELS):
        start[i + 1] += start[i]
    pos = start[:LEVELS].copy()
    order = np.empty(H * W, np.int32)
    for y in range(H):
        for x in range(W):
            v = img[y, x]
            order[pos[v]] = (y + 1) * W2 + x + 1
            pos[v] += 1
    best = np.zeros(LEVELS, np.float64)
    count = np.zeros(LEVELS, np.int64)
    lab = np.full((H + 2) * W2, -1, np.int32)
    o8 = np.array([-1, 1, -W2, W2, -W2 - 1, -W2 + 1, W2 - 1, W2 + 1], np.int64)
    top = _pass(order, start, lab, W2, W, H, gt, best, 1, o8, True, 0, count)
    if holes:
        lab[:] = -1
        for x in range(W2):
            lab[x] = 0
            lab[(H + 1) * W2 + x] = 0
        for y in range(H + 2):
            lab[y * W2] = 0
            lab[y * W2 + W2 - 1] = 0
        o4 = np.array([-1, 1, -W2, W2], np.int64)
        _pass(order, start, lab, W2, W, H, gt, best, 1, o4, False, 1, count)
    v = _iou(0, 0, 0, 0, gt)
    for j in range(top, LEVELS):
        best[j] = v
        count[j] = 1
    return best, count


def best_iou_per_threshold(scoremap, gt_boxes, thresholds, holes=True):
    img = np.ascontiguousarray((scoremap * 255).astype(np.uint8))
    gt = np.ascontiguousarray(np.asarray(gt_boxes, dtype=np.int64).reshape(-1, 4))
    best, _ = best_iou_per_level(img, gt, holes)
    lv = (np.asarray(thresholds) * int(img.max())).astype(np.int64)
    return best[lv]
