"""Shapes in signatures are checked while tests run; `int` passes for `float`, as PEP 484 says."""

from jaxtyping import install_import_hook

CHECKED = ["data", "models", "losses", "explain", "metrics", "training"]
install_import_hook(
    [f"repro.{package}" for package in CHECKED],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)
