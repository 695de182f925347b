"""Names of methods and controls in tables that do not print them."""

from __future__ import annotations

OWN_METHODS = {
    "whole_transfer": "Whole transfer (control)",
    "reweighting": "Re-weighting (control)",
    "class_balanced": "Class-balanced loss (control)",
    "backprop": "Backprop",
    "cam": "CAM",
    "cam_adversarial": "CAM + adversarial examples",
    "has": "HaS",
    "acol": "ACoL",
    "spg": "SPG",
    "cutmix": "CutMix",
    "adl": "ADL",
    "danet": "DANet",
    "ccam": "CCAM",
    "nl_ccam": "NL-CCAM",
    "has_ega": "HaS + EGA (not published)",
    "cutmix_ega": "CutMix + EGA (not published)",
    "adl_ega": "ADL + EGA (not published)",
    "centre_gaussian": "Centre Gaussian, sees no image (control)",
    "scorecam_area_matched": "Score-CAM at ScoreCAM++'s area (control)",
    "scorecam_eq5": "Score-CAM, eq. 5 literal",
    "scorecampp_eq10": "ScoreCAM++, eq. 10 literal",
    "scorecampp_mask_only": "ScoreCAM++, tanh on mask only",
}


def own_label(method: str) -> str:
    """The label of a method id that its table does not print."""
    return OWN_METHODS.get(method, method.replace("_", " "))
