"""CAM classifiers, dual batch norm, extractor/classifier splits, feature GAN."""
