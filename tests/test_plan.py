"""Predictions against hand-computed counts and a clock that only moves when the test says so; planned is run work."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from repro.catalogue import Table
from repro.evidence.record import Plan, load_plan, plan_path, prediction_for
from repro.parameters import parameters_hash, preset_values
from repro.plan import STUDIES, Planner, Size, StandIns, Study, _extrapolated, make_plan
from repro.sampling_store import Cost, Loop, SampledRun, SamplingStore
from repro.training.run_store import Run, RunConfig, RunResult, RunStore


class Clock:
    """Seconds that pass only when `now` is changed."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Toy(RunConfig):
    kind: ClassVar[str] = "toy"
    batch: int = 2
    seed: int = 0
    rate: float = 0.1


def training(clock: Clock, steps: int, setup: float = 0.0, batch: int = 1) -> Callable[[Run], dict[str, Tensor]]:
    """Step 0 takes 3 s, every fifth 2 s, the others 1 s; each image of a batch half a second more."""

    def do(run: Run) -> dict[str, Tensor]:
        clock.now += setup
        for step in run.steps(steps, {}):
            clock.now += (3 if step == 0 else 2 if step % 5 == 4 else 1) + (batch - 1) / 2
        return {"weights": torch.zeros(25)}

    return do


def test_a_sample_of_every_kind_stands_for_all_steps(tmp_path: Path) -> None:
    clock = Clock()
    run = SampledRun(tmp_path, lambda step: step % 5 == 4, repeats=2, clock=clock)
    training(clock, 20)(run)
    (loop,) = run.loops
    assert loop.counts == {False: 15, True: 4}, "the first step is counted by itself"
    assert loop.seconds == {False: [1, 1], True: [2]}
    assert loop.cost == Cost(3 + 15 * 1 + 4 * 2)
    assert not list(tmp_path.iterdir())


def test_the_interval_by_hand() -> None:
    cost = Loop(Counter({"step": 10}), 0.0, {"step": [1.0, 2.0, 3.0]}).cost
    assert cost.seconds == 20
    assert cost.half_width == pytest.approx(10 * 4.302653 * 1 / 3**0.5, rel=1e-6)  # t(0.975, 2) · s / √3
    once = Loop(Counter({"a": 10, "b": 2}), 0.0, {"a": [1.0, 2.0, 3.0], "b": [5.0]}).cost
    assert once.half_width == pytest.approx(cost.half_width * (1 + 10 / 20)), "a lone timing is as uncertain as others"


def test_what_costs_the_same_is_sampled_once(tmp_path: Path) -> None:
    clock, calls = Clock(), 0

    def do(run: Run) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        return training(clock, 20, setup=5.0)(run)

    store = SamplingStore(tmp_path, clock=clock)
    for config in (Toy(), Toy(seed=1), Toy(rate=0.2), Toy()):
        store.run(config, do)
    assert calls == 1 and len(store.runs) == 3
    assert all(sample.cost.seconds == 5 + 3 + 19 * 1.5 and sample.cost.stored == 100 for sample in store.runs.values())
    store.run(Toy(rate=0.0), do)
    store.run(Toy(batch=4), do)
    assert calls == 3, "a term that is switched off, or another batch, costs something else"


def test_costs_are_linear_in_every_size(tmp_path: Path) -> None:
    clock = Clock()

    def run(values: dict[str, Any], store: RunStore) -> None:
        for seed in range(2):
            store.run(Toy(batch=values["batch"], seed=seed), training(clock, 20, batch=values["batch"]))

    study = Study({"batch": 0}, run, lambda small: StandIns(None), {"batch": Size(2, 4, lambda *_: 30)}, lambda *_: 4.0)
    planner = Planner(clock=clock)
    base, seen = planner.sampled(study, {"batch": 2})
    raised, _ = planner.sampled(study, {"batch": 4})
    for small, larger in zip(base.runs.values(), raised.runs.values(), strict=True):
        identity, cost = _extrapolated(study, seen, small, {"batch": larger})
        assert cost.seconds == pytest.approx(4 * (3 + 19 * 1.5 + 20 * 29 / 2)), "20 steps of 30 images"
        assert small.config.key in identity


class CountingStore(RunStore):
    """The real store, noting what it was asked for: kind and steps of every loop."""

    counted: ClassVar[list[tuple[str, tuple[int, ...]]]] = []

    def run(self, config: RunConfig, train: Callable[[Run], dict[str, Tensor]], fabric: Any = None) -> RunResult:
        totals: list[int] = []

        def noting(run: Run) -> dict[str, Tensor]:
            steps = run.steps

            def counting(total: int, state: Mapping[str, Any], name: str = "train") -> Any:
                totals.append(total)
                return steps(total, state, name)

            run.steps = counting  # type: ignore[method-assign]
            return train(run)

        result = super().run(config, noting)
        if not result.reused:
            self.counted.append((config.kind, tuple(totals)))
        return result


SMALL = {
    "ega/table5_corloc": {
        "train_images": 50, "test_images": 8, "batch_size": 8, "pretrain_epochs": 1, "width": 4, "methods": ["cam"],
        "other_thresholds": [],
    },
    "dfg/fig6_rho": {"source_iterations": 10, "source_images": 100, "test_images": 50, "rhos": [0.0, 1.0], "used": 1},
    "scorecampp/table5_activations": {"images": 5, "train_images": 40, "epochs": 2, "gates": ["tanh", "relu"]},
}  # fmt: skip


@pytest.mark.parametrize("id", SMALL)
def test_planned_work_is_run_work(id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(id)
    values = preset_values(table, "smoke") | SMALL[id]
    monkeypatch.setattr(CountingStore, "counted", [])
    planned: list[tuple[str, tuple[int, ...]]] = []
    for study in STUDIES[table.paper](id, values):
        study.run(study.values, CountingStore(tmp_path))
        store, _ = Planner().sampled(study, {})
        for sample in store.runs.values():
            planned.append((sample.config.kind, tuple(1 + loop.counts.total() for loop in sample.loops)))
    assert planned == CountingStore.counted and planned


def test_paper_sizes_by_hand() -> None:
    values = preset_values(Table("ega/table1_cub"), "paper") | {"seeds": [0], "networks": {"googlenet": "googlenet"}}
    (study,) = STUDIES["ega"]("ega/table1_cub", values)
    seen = study.stand_ins({"batch_size": 2, "test_images": 2})
    train, test = seen.images("cub", "train", None, 128), seen.images("cub", "test", 2, 128)
    assert len(train) // 2 == 5994 // 30, "as many steps of 2 images as there are of 30"
    assert train.images.untyped_storage().nbytes() == 3 * 128**2, "no pixel is stored twice"
    assert len(test) == 2 and seen.wholes[test.manifest] == 5794
    assert seen.cached == {"cub/train 5994": 0, "cub/test 5794": 0} or all(seen.cached.values())


def test_a_table_that_cannot_be_sampled_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRO_REPORTS", str(tmp_path))

    def broken(id: str, values: dict[str, Any]) -> list[Study]:
        raise ValueError("on purpose")

    monkeypatch.setitem(STUDIES, "ega", broken)
    plan = make_plan([Table("ega/table1_cub"), Table("dfg/table1_datasets")], "smoke", {}, repeats=2)
    assert plan.refused == {"ega/table1_cub": "ValueError: on purpose"} and list(plan.tables) == ["dfg/table1_datasets"]
    plan.save()
    assert load_plan("smoke") == plan
    Plan(preset="smoke").save()
    assert load_plan("smoke") == plan.model_copy(update={"refused": {}}), "another plan keeps what it says nothing of"
    digest = parameters_hash(preset_values(Table("dfg/table1_datasets"), "smoke"))
    assert prediction_for("dfg/table1_datasets", "smoke", digest) == plan.tables["dfg/table1_datasets"]
    assert prediction_for("dfg/table1_datasets", "smoke", "of other parameters") is None
    plan_path("smoke").write_text("{")
    assert load_plan("smoke") is None
