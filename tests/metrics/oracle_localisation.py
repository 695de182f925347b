"""Test oracle: the benchmark's box and mask metrics restated with OpenCV and NumPy (digest: EGA §1)."""

import cv2
import numpy as np

THRESHOLDS = np.arange(0, 1, 0.001)


def normalised(cam: np.ndarray, side: int) -> np.ndarray:
    """Cubic resize in float64, then min-max; constant or NaN maps become zero."""
    large = cv2.resize(cam.astype(np.float64), (side, side), interpolation=cv2.INTER_CUBIC)
    if np.isnan(large).any() or large.min() == large.max():
        return np.zeros_like(large)
    large = large - large.min()
    return large / large.max()


def contour_boxes(score: np.ndarray, threshold: float, rule: str = "all", holes: bool = True) -> np.ndarray:
    """Boxes (k, 4), inclusive corners, of the map (h, w) in [0, 1] at one threshold."""
    height, width = score.shape
    grey = (score * 255).astype(np.uint8)
    _, mask = cv2.threshold(grey, int(threshold * grey.max()), 255, cv2.THRESH_BINARY)
    mode = cv2.RETR_TREE if holes else cv2.RETR_EXTERNAL
    contours = list(cv2.findContours(mask, mode, cv2.CHAIN_APPROX_SIMPLE)[0])
    if not contours:
        return np.array([[0, 0, 0, 0]])
    if rule == "largest":
        contours = [max(contours, key=cv2.contourArea)]
    found = []
    for contour in contours:
        x, y, w, h = cv2.boundingRect(contour)
        found.append([x, y, min(x + w, width - 1), min(y + h, height - 1)])
    return np.array(found)


def inclusive_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (k, m) of boxes with inclusive corners."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inter = np.maximum(high - low + 1, 0).prod(-1)
    area_a = (a[:, 2:] - a[:, :2] + 1).prod(-1)
    area_b = (b[:, 2:] - b[:, :2] + 1).prod(-1)
    return inter / (area_a[:, None] + area_b[None] - inter)


def best_iou_per_threshold(
    score: np.ndarray, truth: np.ndarray, rule: str = "all", thresholds: np.ndarray = THRESHOLDS
) -> np.ndarray:
    """Best IoU of any predicted with any true box, at every threshold; one findContours per threshold."""
    return np.array([inclusive_iou(contour_boxes(score, t, rule), truth).max() for t in thresholds])


def best_iou_distinct(score: np.ndarray, truth: np.ndarray, rule: str = "all") -> np.ndarray:
    """The same, computed once per distinct mask (thresholds between two grey values of the map share it)."""
    grey = (score * 255).astype(np.uint8)
    kept = np.searchsorted(np.unique(grey), (THRESHOLDS * grey.max()).astype(int), side="right")
    _, first, inverse = np.unique(kept, return_index=True, return_inverse=True)
    return best_iou_per_threshold(score, truth, rule, THRESHOLDS[first])[inverse]


def max_box_acc(curves: np.ndarray, ious: tuple[float, ...]) -> float:
    """Mean over IoU thresholds of the best accuracy over τ, in percent; curves is images x thresholds."""
    return float(np.mean([(curves >= iou).mean(0).max() for iou in ious]) * 100)


def pixel_histograms(scores: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Histograms (2, 1002) of foreground and background scores; mask 255 is ignored."""
    edges = np.append(THRESHOLDS, [1.0, 2.0, 3.0])
    return np.stack([np.histogram(scores[masks == value], bins=edges)[0] for value in (1, 0)])


def pxap(histograms: np.ndarray) -> float:
    """Area under the precision-recall steps, in percent."""
    tp, fp = histograms[:, ::-1].cumsum(1).astype(float)
    kept = tp + fp > 0
    precision = tp / np.where(kept, tp + fp, 1)
    recall = tp / tp[-1]
    return float((precision[1:] * np.diff(recall))[kept[1:]].sum() * 100)
