"""CAM entropy, PGD, WGAN-GP, DELTA and the DFG objectives."""
