"""CAM entropy, PGD, WGAN-GP, DELTA and the DFG objectives."""

from repro.losses.attack import AttackSettings, pgd_attack
from repro.losses.ega import ega_loss
from repro.losses.entropy import EntropyForm, cam_entropy

__all__ = ["AttackSettings", "EntropyForm", "cam_entropy", "ega_loss", "pgd_attack"]
