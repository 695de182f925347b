"""Data sets: registry, embedded sets, preparation from archives, integrity."""

from repro.data.image_set import BadImage, ImageSet
from repro.data.scenes import load_scenes

__all__ = ["BadImage", "ImageSet", "load_scenes"]
