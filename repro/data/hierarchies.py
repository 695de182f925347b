"""Parents of classes, for methods that learn several levels of a hierarchy."""

import re
from collections.abc import Sequence

_GARMENTS = {
    "T-shirt/top": "top",
    "Pullover": "top",
    "Coat": "top",
    "Shirt": "top",
    "Trouser": "trousers",
    "Dress": "dress",
    "Sandal": "shoe",
    "Sneaker": "shoe",
    "Ankle boot": "shoe",
    "Bag": "bag",
}
_CUB = re.compile(r"\d{3}\.(?:.*_)?([A-Za-z]+)")


def parent_levels(classes: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Per level the parent of every class, finest level first; empty where no hierarchy is known.

    Garments (Fashion-MNIST and scenes made of it) have kinds; birds of CUB have the last word of their name, a group of
    related species (Albatross, Sparrow). The embedded scenes have none: all their objects share one body.
    """
    birds = [_CUB.fullmatch(name) for name in classes]
    if all(name in _GARMENTS for name in classes):
        parents = [_GARMENTS[name] for name in classes]
    elif all(birds):
        parents = [found[1] for found in birds if found]
    else:
        return ()
    order = list(dict.fromkeys(parents))
    # One parent for all, or one for each, teaches nothing that the classes themselves do not.
    return (tuple(order.index(parent) for parent in parents),) if 1 < len(order) < len(classes) else ()
