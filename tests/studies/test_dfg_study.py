"""DFG's studies: plans, class order, splitting of groups, rows of printed cells, distances, printed tables."""

from pathlib import Path

import pytest
import torch
from scipy.linalg import sqrtm

from repro.data.images import CIFAR10, STL10
from repro.evidence.published import published_table
from repro.metrics.classification import frechet_distance
from repro.models import lenet5
from repro.studies.dfg import (
    DFGParameters,
    Study,
    Trained,
    member_of,
    prepare_study,
    rho_setting,
    stands_for,
    train_replicas,
)
from repro.studies.dfg_accuracy import accuracies, accuracy_rows, spread_rows, verdicts
from repro.studies.dfg_figures import (
    MinorityImages,
    activation_maps,
    class_distances,
    minority_images,
    sample_features,
    share_inside,
    spread,
    weight_history,
)
from repro.studies.dfg_protocol import (
    align_head,
    layers,
    paper_settings,
    paper_targets,
    plan,
    protocol_of,
    protocol_rows,
    schedule_rows,
)
from repro.training import Run, RunStore
from repro.training.dfg_settings import DFGReadings
from repro.training.run_store import RunResult
from repro.vocabulary import DFGMethod

TINY = {
    "iterations": 4,
    "batch": 8,
    "critic_updates": 1,
    "classes_every": 1,
    "merged_every": 2,
    "filter_weights_every": 2,
    "network_lr": 1e-3,
    "evaluations": 2,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return RunStore(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def study(store: RunStore) -> Study:
    settings = DFGParameters(
        target="digits", majorities=(2,), combinations=2, repeats=2, held_out=0.1, source_images=60,
        source_iterations=10, filter_weight_images=2, own_sources=True,
    )  # fmt: skip
    return prepare_study(settings, TINY, store)


@pytest.fixture(scope="module")
def results(study: Study) -> dict[str, list[Trained]]:
    methods: tuple[DFGMethod, ...] = ("original", "dfg", "balanced")
    return {method: train_replicas(study, method) for method in methods}


def test_a_plan_has_every_combination_once_and_marks_repeated_seeds() -> None:
    everything = plan(10, (2, 8), None, 3, 10.0, seed=5)
    assert len({r.majority for r in everything}) == 90
    assert [r.seed for r in everything if r.repeat] == [6, 7]
    assert {r.majority for r in everything if r.repeat} == {everything[0].majority}
    assert [r.seed for r in plan(257, (2, 8), 45, 10, 1.0, seed=0)] == list(range(10))
    with pytest.raises(ValueError, match="majorities"):
        plan(10, (), None, 1, 10.0, seed=0)
    chosen = plan(10, (), [(2, 1), (3, 4)], 3, 10.0, seed=5, own_sources=True)
    assert [(r.majority, r.seed, r.source) for r in chosen[1:]] == [((3, 4), 5, 5), ((1, 2), 6, 6), ((1, 2), 7, 7)]
    with pytest.raises(ValueError, match=r"\[1, 10\]"):
        plan(10, (), [(1, 10)], 1, 10.0, seed=0)
    with pytest.raises(ValueError, match="one different panel"):
        stands_for(["svhn", "stl10"], ["svhn"])


def test_readings_decide_how_resnet_sees_its_images() -> None:
    paper, released = (protocol_of("caltech256", r) for r in (DFGReadings.paper(), DFGReadings.released()))
    assert (paper.fit, paper.scale, released.fit) == ("squash", "symmetric", "squash")
    assert paper.augmentation and released.augmentation
    assert (paper.augmentation.central, released.augmentation.central) == (True, False)


def test_source_outputs_follow_the_targets_class_order() -> None:
    source = lenet5(10)
    images = torch.randn(3, 1, 32, 32)
    before = source(images)
    assert align_head(source, CIFAR10, STL10) == 9
    after = source(images)
    for name in set(CIFAR10) & set(STL10):
        torch.testing.assert_close(after[:, STL10.index(name)], before[:, CIFAR10.index(name)])
    torch.testing.assert_close(after[:, STL10.index("monkey")], before[:, CIFAR10.index("frog")])
    assert align_head(source, ["a", "b"], STL10) == 0


def test_unknown_schedule_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="iteratons"):
        paper_settings("svhn", {"iteratons": 10})


def test_rows_address_printed_cells_and_runs_are_shared(study: Study, results: dict[str, list[Trained]]) -> None:
    again = train_replicas(study, "dfg", rho=0.75)
    assert [one.key for one in again] == [one.key for one in results["dfg"]]
    assert all(one.reused for one in again)
    other = study.config("dfg", [0], study.schedule.model_copy(update={"rho": 0.0}))
    assert other.key != again[0].key
    rows = accuracy_rows(study, results, {"dataset": "svhn"})
    table = published_table("dfg/table2_accuracy")
    plain = [row for row in rows if row.metric == "top1_accuracy" and set(row.setting) == {"dataset"}]
    assert all(table.cell(row.method, row.metric, row.setting) for row in plain if row.method != "balanced")
    assert [row.seed for row in plain if row.method == "dfg"] == [0, 1], "a repeated seed is no further combination"
    assert {row.setting.get("model_choice") for row in rows} == {None, "held_out", "best_on_test"}
    spreads = {row.metric: row.n for row in spread_rows(study, results, {}) if row.method == "dfg"}
    assert spreads == {"std_over_seeds": 2, "std_over_combinations_2": 2}
    assert accuracies(results["dfg"][0])["top1_accuracy"] == next(r.value for r in plain if r.method == "dfg")
    assert [row.seed for row in rows if row.setting.get("varies") and row.method == "dfg"] == [0, 0, 2, 2]
    assert len({one.key for one in results["balanced"]}) == 2, "one per seed, whatever the combination"
    assert len(verdicts(results, {}, ["original", "delta"])) == 2, "one per metric, none for what was not trained"


def test_only_what_tables_need_is_kept(study: Study, store: RunStore, results: dict[str, list[Trained]]) -> None:
    kept = [{name.split(".")[0] for name in one.tensors()} for one in results["dfg"]]
    weights = {"filter_weights", "filter_weights_star"}
    assert kept == [weights | {"0/extractor", "0/classifier", "0/generator"}, weights, weights]
    assert [set(one.tensors()) for one in results["original"][1:]] == [set(), set()]
    assert len(list((store.root / "dfg_source").iterdir())) == 2, "a source network per seed"
    measured = list((store.root / "dfg_source_measures").iterdir())
    assert len(measured) == 2 * 3, "attention and filter weights per source and combination, whatever the method"


def test_features_maps_and_weights_of_a_trained_replica(study: Study, results: dict[str, list[Trained]]) -> None:
    one = results["dfg"][0]
    features = sample_features(study, one, per_class=12)
    assert features.real.shape == features.generated.shape == (120, 6, 14, 14)
    assert len(class_distances(features, 4).values["same_class"]) == 10
    chosen = minority_images(study, one, per_class=2)
    assert not set(chosen.labels.tolist()) & set(one.replica.majority)
    assert activation_maps(study, one, chosen).shape == (16, 1, 32, 32)
    history = weight_history(one, rho=1.0)
    assert history["blend"].shape == (3, 10, 6)
    torch.testing.assert_close(history["blend"][2], history["blend"][0])
    torch.testing.assert_close(history["target"].mean(-1), torch.full((3, 10), 1 / 6))


def test_a_member_of_a_group_is_stored_as_if_trained_alone(tmp_path: Path) -> None:
    tensors = {f"{r}/extractor.w": torch.full((2,), float(r)) for r in range(3)}
    tensors |= {"filter_weights": torch.arange(6.0).reshape(2, 3, 1, 1), "filter_weights_star": torch.ones(3, 1, 1)}
    history = [{"step": 5.0, "0/loss/real": 0.0, "2/loss/real": 2.0}, {"step": 6.0, "1/loss/real": 1.0}]
    run = Run(tmp_path, checkpoint_seconds=1e9)
    found = member_of(RunResult("k", tensors, {}, history, 0.0, reused=False), 2, run)
    assert set(found) == {"0/extractor.w", "filter_weights", "filter_weights_star"}
    assert found["0/extractor.w"].tolist() == [2.0, 2.0]
    assert found["filter_weights"].flatten().tolist() == [2.0, 5.0]
    assert run.history == [{"step": 5.0, "0/loss/real": 2.0}]


def test_frechet_distance() -> None:
    line = torch.tensor([[0.0], [2.0]], dtype=torch.float64)  # mean 1, variance 2
    assert frechet_distance(line, 3 * line + 1) == pytest.approx((4 - 1) ** 2 + (18**0.5 - 2**0.5) ** 2)
    first, second = torch.randn(50, 4, dtype=torch.float64), torch.randn(60, 4, dtype=torch.float64) * 2 + 1
    one, other = torch.cov(first.T), torch.cov(second.T)
    root = torch.from_numpy(sqrtm((one @ other).numpy()).real)
    expected = (first.mean(0) - second.mean(0)).square().sum() + (one + other - 2 * root).trace()
    assert frechet_distance(first, second) == pytest.approx(expected.item())
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


@pytest.mark.usefixtures("unchecked")
def test_frechet_distance_needs_two_rows_and_equal_columns() -> None:
    for first, second in ((torch.ones(5, 4), torch.ones(5, 3)), (torch.ones(1, 4), torch.ones(5, 4))):
        with pytest.raises(ValueError, match="equal columns"):
            frechet_distance(first, second)


def test_share_inside_and_spread_by_hand() -> None:
    maps = torch.tensor([[[[1.0, 3.0]]], [[[0.0, 0.0]]]])
    shares, empty = share_inside(maps, torch.tensor([[[False, True]], [[True, True]]]))
    assert shares.tolist() == [75.0]
    assert empty == 1
    assert spread(torch.tensor([[0.75, 0.25]])) == pytest.approx(0.25)
    central = MinorityImages(torch.zeros(1, 3, 40, 40).byte(), torch.zeros(1, 1, 40, 40), torch.zeros(1).long())
    assert central.objects(None).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert rho_setting(0.0) == {"rho": 0}
    assert isinstance(rho_setting(0.0)["rho"], int)


def test_only_the_known_entries_of_the_appendix_are_impossible() -> None:
    wrong = {(layer.table, layer.part, layer.printed, layer.ours) for layer in layers() if not layer.agrees}
    assert wrong == {
        ("Table A.4", "discriminator", "512", "1"),
        ("Table A.6", "discriminator", "512", "1"),
        ("Table A.7", "classifier", "55 × 55 × 64", "56 × 56 × 64"),
        ("Table A.7", "classifier", "55 × 55 × 256", "56 × 56 × 256"),
        ("Table A.8", "discriminator", "6272", "1"),
        ("Table A.8", "discriminator", "512", "1"),
    }
    ours = {(row.metric, row.setting["dataset"]): row.value for row in schedule_rows().rows}
    for cell in published_table("dfg/appendix_architectures").cells:
        assert ours.pop((cell.metric, cell.setting["dataset"])) == pytest.approx(cell.value, abs=5e-4, rel=1e-9), cell
    assert not ours


def test_table_1_differs_from_print_in_the_known_slips_only() -> None:
    ours = {(row.metric, row.setting["dataset"]): row.value for row in protocol_rows(paper_targets()).rows}
    cells = published_table("dfg/table1_datasets").cells
    wrong = {(c.metric, c.setting["dataset"]) for c in cells if ours[c.metric, c.setting["dataset"]] != c.value}
    assert wrong == {
        ("training_images", "svhn"),
        ("training_images", "cinic10"),
        ("training_images", "caltech256"),
        ("minority_images_per_class", "food101"),
    }
