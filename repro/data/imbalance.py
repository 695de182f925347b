"""Step imbalance (Buda et al. 2018; DFG, Section 4.1): μ majority classes keep n_max images, the others n_max / ratio.

Which classes are in the majority matters, so all combinations are enumerated as data. For 10 classes that is
C(10, 2) + C(10, 8) = 45 + 45 = 90; for Food-101 "all combinations" would be 5,050 and 2.0·10¹¹, so the paper must have
drawn some: `majority_combinations(..., limit=…)` draws them by seed.
"""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

MOST_MISSING = 0.1
"""Share of the requested images that a class may lack (SVHN's digit 9 lacks 7 %); more would be another imbalance."""


@dataclass(frozen=True)
class StepImbalance:
    """One imbalanced subset of a training set.

    Attributes:
        indices: chosen images, sorted, without repetition.
        counts: true number of images per class; below the requested number where a class has too few
            (SVHN's digits 9 and 0 have 4,659 and 4,948 of the 5,000 asked for).
        majority_classes: classes that keep `n_max` images.
        short: classes with fewer images than requested.
    """

    indices: Int[Tensor, " n"]
    counts: Int[Tensor, " k"]
    majority_classes: tuple[int, ...]
    short: tuple[int, ...]


def step_imbalance(
    labels: Int[Tensor, " n"], majority_classes: Sequence[int], n_max: int, ratio: float, seed: int
) -> StepImbalance:
    """Choose `n_max` images of each majority class and round(n_max / ratio) of each other class.

    The choice within a class depends on `seed` and that class only, so two combinations share their images of a
    class that plays the same role, and the minority images of a class are among its majority images.

    Args:
        labels: class of every image of the training set.
        majority_classes: distinct class indices.
        n_max: images per majority class; a class that has up to 10 % fewer gives what it has and is named in `short`.
        ratio: imbalance ratio (10 means 10:1); 1 gives a balanced subset.
        seed: of the choice of images.

    Raises:
        ValueError: for an unknown or repeated class, a ratio below 1, a minority class left without images, or a class
            that lacks more than 10 % of what is asked of it.
    """
    classes = int(labels.max()) + 1
    majority = tuple(sorted(set(majority_classes)))
    if len(majority) != len(majority_classes) or not all(0 <= c < classes for c in majority):
        raise ValueError(f"majority_classes={list(majority_classes)} must be distinct and within 0..{classes - 1}")
    if ratio < 1:
        raise ValueError(f"ratio={ratio} must be at least 1; 10 means ten majority images per minority image")
    n_min = round(n_max / ratio)
    if n_min < 1:
        raise ValueError(f"n_max={n_max} with ratio={ratio} leaves {n_min} images per minority class; lower the ratio")
    chosen, short = [], []
    for c in range(classes):
        wanted = n_max if c in majority else n_min
        members = torch.nonzero(labels == c).flatten()
        if len(members) < (1 - MOST_MISSING) * wanted:
            raise ValueError(
                f"class {c} has {len(members)} images, n_max={n_max} with ratio={ratio} asks for {wanted}: the "
                "imbalance would be another one; lower n_max or take a larger training set"
            )
        generator = torch.Generator().manual_seed(seed * 1_000_003 + c)
        members = members[torch.randperm(len(members), generator=generator)[:wanted]]
        if len(members) < wanted:
            short.append(c)
        chosen.append(members)
    counts = torch.tensor([len(members) for members in chosen])
    return StepImbalance(torch.cat(chosen).sort().values, counts, majority, tuple(short))


def majority_combinations(
    classes: int, majority: int, limit: int | None = None, seed: int = 0
) -> list[tuple[int, ...]]:
    """All sets of `majority` out of `classes` classes in lexicographic order, or `limit` different ones drawn by seed.

    Raises:
        ValueError: if `majority` is not within 1..classes − 1, or there are more than 10,000 and no limit is given.
    """
    if not 0 < majority < classes:
        raise ValueError(f"majority={majority} must be within 1..{classes - 1} for {classes} classes")
    total = math.comb(classes, majority)
    if limit is None or limit >= total:
        if total > 10_000:
            raise ValueError(f"C({classes}, {majority}) = {total} combinations; pass limit= to draw some of them")
        return list(itertools.combinations(range(classes), majority))
    drawn: dict[tuple[int, ...], None] = {}
    source = random.Random(f"{classes}-{majority}-{seed}")
    while len(drawn) < limit:
        drawn[tuple(sorted(source.sample(range(classes), majority)))] = None
    return list(drawn)


def held_out_split(
    indices: Int[Tensor, " n"], labels: Int[Tensor, " m"], fraction: float, seed: int
) -> tuple[Int[Tensor, " t"], Int[Tensor, " v"]]:
    """Split chosen training images into a part to train on and a held-out part, class by class (at least one each).

    Args:
        indices: chosen images, e.g. `StepImbalance.indices`.
        labels: class of every image of the whole training set.
        fraction: share of every class that is held out, in [0, 1); 0 gives an empty held-out part.
        seed: of the split.

    Raises:
        ValueError: if `fraction` is outside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction={fraction} must be in [0, 1)")
    if fraction == 0:
        return indices, indices[:0]
    kept, held = [], []
    for c in labels[indices].unique().tolist():
        members = indices[labels[indices] == c]
        generator = torch.Generator().manual_seed(seed * 1_000_003 + c)
        members = members[torch.randperm(len(members), generator=generator)]
        size = max(1, round(fraction * len(members))) if len(members) > 1 else 0
        held.append(members[:size])
        kept.append(members[size:])
    return torch.cat(kept).sort().values, torch.cat(held).sort().values
