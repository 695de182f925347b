"""Class-wise filter weights over training (Figure 5 of DFG)."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from repro.evidence.record import Row
from repro.losses import blend_filter_weights
from repro.studies.dfg import Study, Trained, rho_setting


def weight_history(trained: Trained, rho: float) -> dict[str, Float[Tensor, "u k f"]]:
    """Weights after every update, in Figure 5's unit (the softmax itself; their mean over filters is 1 / n_f).

    Returns:
        `target`: W(E) alone; `blend`: ρ·W(E_S) + (1 − ρ)·W(E) of eq. (7) before the threshold, which is what the
        generator is trained with. Entry 0 of both is the start, W(E_S).
    """
    measured = trained.result.tensors["filter_weights"][:, 0] / trained.result.tensors["filter_weights"].shape[-1]
    source = measured[:1].expand_as(measured)
    return {"target": measured, "blend": blend_filter_weights(source, measured, rho)}


def spread(weights: Float[Tensor, "*u k f"]) -> Float[Tensor, "*u"]:
    """Mean absolute deviation of class-wise weights from 1 / n_f, the red line of Figure 5."""
    return (weights - 1 / weights.shape[-1]).abs().mean(dim=(-2, -1))


def representative_filters(histories: Mapping[float, Float[Tensor, "u k f"]], count: int = 2) -> list[int]:
    """The filters whose source weights differ most between classes: the paper does not say how its two were chosen."""
    start = next(iter(histories.values()))[0]
    return start.std(dim=0).argsort(descending=True)[:count].tolist()


def weight_panels(
    histories: Mapping[float, Mapping[str, Float[Tensor, "u k f"]]], filters: Sequence[int], classes: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """Blended weights over updates: one panel per ρ and filter, one line per class."""
    return {
        f"filter {filter + 1}, ρ = {rho:g}": {
            name: history["blend"][:, index, filter].tolist() for index, name in enumerate(classes)
        }
        for rho, history in histories.items()
        for filter in filters
    }


def spread_rows(study: Study, trained: Mapping[float, Trained]) -> list[Row]:
    """Spread of the last weights per ρ: of the blend (the printed cell) and of the target's weights alone."""
    rows = []
    for rho, one in trained.items():
        for name, values in weight_history(one, rho).items():
            rows.append(
                Row(
                    method="dfg",
                    metric="filter_weight_spread",
                    value=spread(values)[-1].item(),
                    dataset=study.settings.target,
                    network=study.protocol.architecture,
                    seed=one.index,
                    setting=rho_setting(rho) | ({} if name == "blend" else {"weights": "target"}),
                    n=values.shape[1] * values.shape[2],
                )
            )
    return rows


def spread_sentences(trained: Mapping[float, Trained]) -> list[str]:
    """What the weights did, per ρ: start and end of the target's and of the blended spread."""
    sentences = []
    for rho, one in trained.items():
        found = {name: spread(values) for name, values in weight_history(one, rho).items()}
        sentences.append(
            f"ρ = {rho:g}: the spread about 1 / n_f starts at {found['target'][0]:.4f} (source) and ends at "
            f"{found['target'][-1]:.4f} for the target's weights alone and {found['blend'][-1]:.4f} for the blend that "
            f"the generator is given, after {len(found['target']) - 1} updates."
        )
    return sentences


def active_share(one: Trained) -> Float[Tensor, " k"]:
    """Share of active filters (W* > 0) per class at the end, in %."""
    return 100 * (one.result.tensors["filter_weights_star"][0] > 0).double().mean(dim=1)


def weight_summary(trained: Mapping[float, Trained]) -> list[list[str]]:
    """Text rows: ρ, active filters, smallest and largest W* among the active."""
    rows = []
    for rho, one in trained.items():
        star = one.result.tensors["filter_weights_star"][0]
        active = star[star > 0]
        low, high = (f"{active.min():.2f}", f"{active.max():.2f}") if len(active) else ("–", "–")
        rows.append([f"{rho:g}", f"{active_share(one).mean():.0f}", low, high])
    return rows


def agreement(trained: Mapping[float, Trained]) -> Tensor:
    """Pearson correlation of source and final target weights over all classes and filters, one number per ρ."""
    pairs = [weight_history(one, rho)["target"][[0, -1]].flatten(1) for rho, one in trained.items()]
    return torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs])
