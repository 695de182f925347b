"""Exact score histograms for PxAP (numba kernel; annotations stay plain, see `max_tree`)."""

from typing import no_type_check

import numpy as np

from repro.metrics.max_tree import compiled

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
