"""Predictions against hand-computed counts and a clock that only moves when the test says so."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_project import project  # noqa: F401 (a fixture)
from torch import Tensor

from repro.catalogue import Table, all_tables
from repro.evidence.record import Plan, Record, load_plan, load_record, plan_path, prediction_for
from repro.parameters import parameters_hash, preset_values
from repro.planning import Loop, Planner, SampledRun, Work, cost_of, make_plan
from repro.planning.dfg import dfg_request, kind_of_cycle
from repro.planning.ega import ega_request
from repro.planning.requests import Request
from repro.planning.scorecampp import scorecampp_request
from repro.planning.stand_ins import shape_of, stand_in
from repro.project import code_root
from repro.training import Run
from repro.training.dfg_settings import DFGSettings


class Clock:
    """Seconds that pass only when `now` is changed."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def training(clock: Clock, steps: int, setup: float = 0.0) -> Callable[[Run], dict[str, Tensor]]:
    """Step 0 takes 3 s, every fifth 2 s, the others 1 s."""

    def do(run: Run) -> dict[str, Tensor]:
        clock.now += setup
        for step in run.steps(steps, {}):
            clock.now += 3 if step == 0 else 2 if step % 5 == 4 else 1
        return {"weights": torch.zeros(25)}

    return do


def every_fifth(step: int) -> bool:
    return step % 5 == 4


def test_a_sample_of_every_kind_stands_for_all_steps(tmp_path: Path) -> None:
    clock = Clock()
    run = SampledRun(tmp_path, every_fifth, repeats=2, clock=clock)
    training(clock, 20)(run)
    (loop,) = run.loops
    assert loop.counts == {False: 15, True: 4}, "the first step is counted by itself"
    assert loop.seconds == {False: [1, 1], True: [2, 2]}
    assert cost_of(loop).seconds == 3 + 15 * 1 + 4 * 2
    assert cost_of(loop).half_width == 0
    assert not list(tmp_path.iterdir())


def test_the_interval_by_hand() -> None:
    cost = cost_of(Loop("train", Counter({"step": 10}), 0.0, {"step": [1.0, 2.0, 3.0]}))
    assert cost.seconds == 20
    assert cost.half_width == pytest.approx(10 * 4.302653 * 1 / 3**0.5, rel=1e-6)  # t(0.975, 2) · s / √3
    assert cost.low == 0 and cost.high == pytest.approx(1.3 * (20 + cost.half_width) + 5)
    once = cost_of(Loop("train", Counter({"a": 10, "b": 2}), 0.0, {"a": [1.0, 2.0, 3.0], "b": [5.0]}))
    assert once.half_width == pytest.approx(cost.half_width * (1 + 10 / 20)), "a lone timing is as uncertain as others"


def test_shared_work_is_counted_once_and_alike_work_is_calibrated_once() -> None:
    clock, calls = Clock(), 0

    def do(run: Run) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        return training(clock, 20, setup=5.0)(run)

    def request(*keys: str) -> Request:
        return Request([Work(key, "same", do, every_fifth) for key in keys])

    planner = Planner(repeats=2, clock=clock)
    first = planner.predict(request("seed 0", "seed 1", "seed 1"), "")
    assert first.seconds == 2 * (5 + 26) and first.disk_bytes == 2 * 100
    second = planner.predict(request("seed 1", "seed 2"), "")
    assert second.seconds == 31 and "1 of its trainings" in second.notes[0]
    assert calls == 1
    if not torch.cuda.is_available():
        assert first.device_memory_bytes is None and first.gpu_hours is None


def smoke(id: str, **changes: object) -> dict:
    return preset_values(Table(id), "smoke") | changes


def test_ega_counts(tmp_path: Path) -> None:
    values = smoke(
        "ega/table6_components", train_images=50, test_images=70, batch_size=8, epochs=3, pretrain_epochs=2,
        seeds=[0, 1], methods=["cam", "ega"], readings=[], width=4,
    )  # fmt: skip
    works = ega_request("ega/table6_components", values).works
    # per method: one pre-training, shared, then 2 seeds × (training, evaluation)
    assert len(works) == 2 * (1 + 2 * 2) and len({work.key for work in works}) == 1 + 2 * 2 * 2
    assert len({work.alike for work in works}) == 1 + 2 * 2
    steps = []
    for work in works[:3]:
        run = SampledRun(tmp_path, work.kind, repeats=1)
        work.do(run)
        steps.append(1 + run.loops[0].counts.total())
    assert steps == [2 * (50 // 8), 3 * (50 // 8), 2]  # 70 test images are two batches of 64


def test_dfg_counts() -> None:
    values = smoke("dfg/fig6_rho", combinations=2, majorities=[2], repeats=3, used=90, rhos=[0.0, 1.0])
    works = dfg_request("dfg/fig6_rho", values).works
    assert len(works) == 1 + 2 * (2 + 2), "a source, then per ρ two combinations and two more seeds of the first"
    assert len({work.alike for work in works}) == 2
    every = [kind_of_cycle(DFGSettings(), updates_weights=True)(cycle) for cycle in range(2000)]
    assert sum(evaluates for evaluates, _ in every) == 20 and sum(updates for _, updates in every) == 4


def test_scorecampp_tables_share_their_explanations() -> None:
    first = scorecampp_request("scorecampp/table3_imagenet_resnet18", smoke("scorecampp/table3_imagenet_resnet18"))
    gates = scorecampp_request("scorecampp/table5_activations", smoke("scorecampp/table5_activations"))
    assert len(first.works) == 2, "a network and one group of methods"
    assert {work.key for work in first.works} < {work.key for work in gates.works}
    assert len(gates.works) == 2 + 5, "and one group for each gate but tanh"


def test_published_sizes_stand_in_for_absent_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    shape_of.cache_clear()
    found = shape_of("ilsvrc", "train", None, 256)
    assert (found.images, found.classes, found.side, found.here) == (1_281_167, 1000, 256, False)
    images = stand_in("cub", "test", None, 256)
    assert len(images) == 5794 and len(images.classes) == 200
    assert images.images.untyped_storage().nbytes() == 3 * 256**2, "no pixel is stored twice"
    shape_of.cache_clear()


def test_a_table_that_cannot_be_calibrated_is_named(
    project: Callable[[str, str], Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    project("ega/no_such_study", "")
    project("dfg/table1_datasets", "")
    plan = make_plan(all_tables(), "smoke", {}, repeats=2)
    assert list(plan.refused) == ["ega/no_such_study"] and "trains no CAM network" in plan.refused["ega/no_such_study"]
    assert list(plan.tables) == ["dfg/table1_datasets"]
    plan.save()
    assert load_plan("smoke") == plan
    Plan(preset="smoke").save()
    assert load_plan("smoke") == plan.model_copy(update={"refused": {}}), "another plan keeps what it says nothing of"
    digest = parameters_hash(preset_values(Table("dfg/table1_datasets"), "smoke"))
    assert prediction_for("dfg/table1_datasets", "smoke", digest) == plan.tables["dfg/table1_datasets"]
    assert prediction_for("dfg/table1_datasets", "smoke", "of other parameters") is None
    plan_path("smoke").write_text("{")
    assert load_plan("smoke") is None


def test_records_of_both_versions_are_read() -> None:
    folders = [path.parent for path in (code_root() / "reports" / "quick").glob("*/*/result.json")]
    assert folders
    for folder in folders:
        record = load_record(folder)
        newer = json.loads(record.model_dump_json()) | {"schema_version": 2}
        assert Record.model_validate(newer).predicted is record.predicted
