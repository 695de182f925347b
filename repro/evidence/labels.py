"""Names of the methods and controls that no published table prints."""

from __future__ import annotations

OWN_METHODS = {
    "centre_gaussian": "Centre Gaussian, sees no image (control)",
    "scorecam_area_matched": "Score-CAM at ScoreCAM++'s area (control)",
    "scorecam_eq5": "Score-CAM, eq. 5 literal",
    "scorecampp_eq10": "ScoreCAM++, eq. 10 literal",
    "scorecampp_mask_only": "ScoreCAM++, tanh on mask only",
}


def own_label(method: str) -> str:
    """The label of a method id that its table does not print."""
    return OWN_METHODS.get(method, method.replace("_", " "))
