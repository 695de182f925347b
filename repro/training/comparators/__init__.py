"""Every method of weakly supervised localisation that can be trained, by its id in parameters and published tables."""

from repro.training import ega
from repro.training.cam import Method
from repro.training.comparators import attention, erasing

METHODS: dict[str, type[Method]] = {
    kind.id: kind
    for module in (ega, erasing, attention)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Method) and "id" in vars(kind)
}
"""A class that gives itself an `id` in one of these modules is a method; nothing else needs to know of it."""
