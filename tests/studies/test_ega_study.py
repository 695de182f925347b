"""EGA studies: keys are shared where trainings are equal, numbers are those of hand-made maps, ranks do not write."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from repro.catalogue import Table
from repro.cli import app
from repro.data import ImageSet, load_scenes
from repro.evidence.published import load_published, published_table
from repro.evidence.readings import load_readings
from repro.losses import AttackSettings
from repro.parameters import preset_values
from repro.project import UserError
from repro.studies.cam_study import SCHEDULES, CamStudy, StudyImages, study_settings
from repro.studies.ega import (
    ENSEMBLES,
    READINGS,
    TRIALS,
    errors,
    has_ensemble,
    localise_all,
    note_readings,
    trials_of,
    with_changes,
    with_readings,
)
from repro.studies.ega_figures import activation_statistics, largest_boxes, masks_at, statistics_distance
from repro.studies.ega_findings import contrast_sentence, difference, find_outcome
from repro.studies.localised import Localised, MetricPolicy, measure, true_boxes
from repro.training import CAMSettings, EGASettings, RunResult, RunStore
from repro.training.comparators import METHODS
from repro.training.ega import AdversarialSettings

TINY: dict[str, Any] = {
    "networks": {"vgg16": "small_cam"},
    "methods": ["cam", "ega"],
    "readings": {},
    "compared_readings": ["released_entropy"],
    "dataset": "scenes",
    "width": 4,
    "weights": None,
    "image_size": 32,
    "train_images": 16,
    "test_images": 8,
    "pretrain_epochs": 1,
    "epochs": 1,
    "decay_epochs": [],
    "learning_rate": 0.01,
    "batch_size": 8,
    "resize": None,
    "crop": 32,
    "class_crops": "one",
    "on_bad_image": "stop",
}


def evaluated(correct: list[bool], hit_levels: list[int]) -> Localised:
    """Images whose box is right (IoU 0.6) at grey levels up to a limit, and nowhere else."""
    iou = torch.zeros(len(correct), 3, 257)
    for row, level in enumerate(hit_levels):
        iou[row, :, 1 : level + 2] = 0.6
    tensors = {
        "correct": torch.tensor(correct, dtype=torch.uint8),
        "iou": iou,
        "peaks": torch.full((len(correct),), 255),
    }
    return Localised(RunResult("", tensors, {}, [], 0.0, reused=False), "", 0)


def test_errors_are_those_of_hand_made_curves() -> None:
    found = evaluated([True, True, False, True], [255, 100, 255, 20])
    oracle, fixed = MetricPolicy(), MetricPolicy(threshold="fixed", tau=0.2)
    assert found.score("top1_cls_error", oracle).value == 25
    assert found.score("corloc_error", oracle).value == 0  # a low threshold hits all four
    assert found.score("corloc_error", fixed).value == 25  # level 51 misses the last
    assert found.score("top1_loc_error", fixed).samples == [0, 0, 100, 100]
    # V2: all four at IoU 0.3 and 0.5, none at 0.7
    assert found.score("max_box_acc_v2_error", oracle).value == pytest.approx(100 / 3)
    assert found.score("corloc_error", fixed).thresholds == (0.2,)
    with pytest.raises(ValueError, match="no masks"):
        found.score("pxap_error", oracle)
    with pytest.raises(ValueError, match="unknown metric 'miou'"):
        found.score("miou", oracle)


def test_the_validation_policy_takes_its_threshold_from_held_out_images() -> None:
    found = evaluated([True, True], [100, 255])
    policy = MetricPolicy(threshold="validation")
    with pytest.raises(ValueError, match="validate=True"):
        found.score("corloc_error", policy)
    held_out = evaluated([True], [255])
    held_out.result.tensors["iou"][:, :, :151] = 0  # its box is right from level 150 on: τ ≥ 150 / 255
    strict = replace(found, held_out=held_out).score("corloc_error", policy)
    assert strict.thresholds == pytest.approx((0.589,))
    assert strict.samples == [100, 0] and found.score("corloc_error", MetricPolicy()).value == 0


def test_perfect_maps_score_perfectly_in_one_pass() -> None:
    images = load_scenes("test", limit=6, size=64)
    assert images.masks is not None
    tensors = measure(images, images.masks.float(), torch.nn.functional.one_hot(images.labels, 8).float())
    found = Localised(RunResult("", tensors, {}, [], 0.0, reused=False), "", 0)
    assert found.score("top1_cls_error", MetricPolicy()).value == 0
    assert found.score("max_box_acc_v2_error", MetricPolicy()).value == 0
    assert found.score("pxap_error", MetricPolicy()).value < 3  # cubic enlargement blurs the rim
    tensors = measure(images, 1 - images.masks.float(), torch.zeros(6, 8))
    assert (
        Localised(RunResult("", tensors, {}, [], 0.0, reused=False), "", 0).score("pxap_error", MetricPolicy()).value
        > 80
    )


def test_true_boxes_are_inclusive_pixels_of_the_map() -> None:
    images = ImageSet(
        "made",
        "test",
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(1, dtype=torch.int64),
        ["a"],
        ["0"],
        boxes=[torch.tensor([[4, 8, 12, 16]])],
    )
    # columns 4..11 of 32: inclusive corners, times 7
    assert true_boxes(images)[0].tolist() == [[28, 56, 77, 105]]


def test_pictures_cut_the_map_as_the_metrics_do() -> None:
    maps = torch.zeros(1, 224, 224)
    maps[0, 40:80, 60:120] = 1.0
    masks = masks_at(maps, 0.5)
    assert masks.sum() == 40 * 60
    assert largest_boxes(masks, (112, 112))[0].tolist() == [[30, 20, 60, 40]]
    assert len(largest_boxes(np.zeros((1, 8, 8), bool), (8, 8))[0]) == 0


def test_a_reading_changes_what_it_names_and_nothing_else() -> None:
    paper = EGASettings()
    for name, changes in READINGS.items():
        changed = with_changes(paper, **changes)
        different = {field for field in EGASettings.model_fields if getattr(changed, field) != getattr(paper, field)}
        assert different == set(changes), name
    assert with_changes(paper, **READINGS["released"]) == EGASettings.released()


def test_readings_reach_attack_weights_and_loss_and_are_held_to_the_ledger() -> None:
    readings = {"ega.attack.step": 0.01, "ega.entropy.clean_weight": 3, "ega.loss.reduction": "mean"}
    found = with_readings(EGASettings(), readings)
    assert found == EGASettings(attack=AttackSettings(step=0.01), clean_entropy_weight=3, reduction="mean")
    assert with_readings(EGASettings(), {"ega.entropy.p_cam": "none"}).ingredients()[1:] == []
    assert with_readings(AdversarialSettings(), {"ega.entropy.p_cam": "binary"}) == AdversarialSettings()
    with pytest.raises(UserError, match="unknown 'ega.attack.stepp'.*ega.attack.step"):
        with_readings(EGASettings(), {"ega.attack.stepp": 1})
    with pytest.raises(UserError, match="ega.attack.space is 'pixel'; expected one of normalised, pixels"):
        with_readings(EGASettings(), {"ega.attack.space": "pixel"})


def test_tables_share_trainings_and_rows_are_printed_cells(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    outcomes = localise_all(trials_of("ega/table6_components", TINY), [0, 1], store)
    trained = len(list(tmp_path.glob("cam/*/result.json")))
    assert trained == 1 + 3 * 2  # the pretraining, then three trials with two seeds
    again = localise_all(trials_of("ega/table1_cub", TINY), [1], store)
    swept = {**TINY, "network": "small_cam", "weights_of_entropy": [[1, 0.01]]}
    chosen = trials_of("ega/table7_entropy_weights", swept)[0]
    study = CamStudy(chosen.study, outcomes[0].study.images, store)
    strength = trials_of("ega/fig7_attack_strength", {**TINY, "epsilons": [1]})[0]
    held_out = study.localise(chosen.settings, 0, validate=True).held_out
    assert held_out is not None and len(held_out.correct) == len(study.images.val) == 8
    assert study.images.val.manifest not in (study.images.train.manifest, study.images.test.manifest)
    assert study.train(chosen.settings, 0).key == study.train(strength.settings, 0).key
    assert len(list(tmp_path.glob("cam/*/result.json"))) == trained
    assert again[1].found[0].result.reused
    rows = errors(outcomes, ["top1_cls_error", "pxap_error"], MetricPolicy()).rows
    printed = {(cell.method, tuple(cell.setting.items())) for cell in published_table("ega/table6_components").cells}
    assert all((row.method, tuple(row.setting.items())) in printed for row in rows if "reading" not in row.setting)
    with_gradient, without = find_outcome(outcomes, "ega"), find_outcome(outcomes, "ega", reading="released_entropy")
    assert not torch.equal(with_gradient.found[0].maps, without.found[0].maps)
    assert difference(without, with_gradient, "pxap_error", MetricPolicy()).n == 2
    sentence = contrast_sentence("It", without, with_gradient, "top1_loc_error", MetricPolicy(), "smoke")
    assert "decides nothing" in sentence


def test_figure_4_sees_the_attack_and_both_halves(tmp_path: Path) -> None:
    trial = next(trial for trial in trials_of("ega/table1_cub", TINY) if trial.method == "ega")
    study = CamStudy(trial.study, StudyImages.of(trial.study), RunStore(tmp_path))
    network = study.network(trial.settings, study.train(trial.settings, 0))
    images, training = study.images.test, trial.settings.training
    found = activation_statistics(network, images, training, AttackSettings(epsilon=8, step=8))
    assert len(found.layers) == 7
    assert found.values["clean", "activation_std"].shape == (7, 8)
    moved = found.values["adversarial", "activation_mean"][0] - found.values["clean", "activation_mean"][0]
    assert (moved != 0).all()
    assert set(statistics_distance(network)) == set(found.layers)
    plain = study.network(CAMSettings(training=training), study.train(CAMSettings(training=training), 0))
    with pytest.raises(ValueError, match="no dual batch norm"):
        activation_statistics(plain, images, training, AttackSettings())


@pytest.mark.parametrize("preset", ["smoke", "quick", "paper"])
@pytest.mark.parametrize("id", TRIALS)
def test_every_preset_names_trials_and_paper_has_one_for_every_printed_cell(id: str, preset: Any) -> None:
    values = preset_values(Table(id), preset)
    trials = trials_of(id, values)
    reached = [(trial.method, trial.setting) for trial in trials]
    size = values.get("ensemble", 0)
    reached += [(ENSEMBLES[trial.method], trial.setting) for trial in trials if has_ensemble(trial, size)]
    assert trials and all(METHODS.get(trial.method) for trial in trials)
    tables = [table for table in load_published("ega") if table.id == id and preset == "paper"]
    missing = [str(cell) for table in tables for cell in table.cells if (cell.method, cell.setting) not in reached]
    assert not missing


def test_a_network_of_several_tables_is_trained_once_on_the_papers_data() -> None:
    found: dict[Any, set[Any]] = {}
    for id in TRIALS:
        for trial in trials_of(id, preset_values(Table(id), "paper")):
            if "lambda_clean" not in trial.setting and "reading" not in trial.setting:
                study = trial.study.model_copy(update={"class_crops": "ten"})
                key = (trial.method, study.dataset, study.network, trial.setting.get("epsilon", 1))
                found.setdefault(key, set()).add((study, trial.settings))
    assert all(len(same) == 1 for same in found.values())
    assert {key[1] for key in found} == set(SCHEDULES)


def test_evaluated_images_are_read_once_at_the_crop_and_ten_crops_come_from_the_larger_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    monkeypatch.setattr(
        "repro.studies.cam_study.load_dataset", lambda name, **how: asked.append(how) or load_scenes("test", limit=2)
    )
    images = StudyImages.of(
        study_settings({**TINY, "network": "small_cam", "image_size": 40, "resize": 40, "crop": 32})
    )
    test = images.test
    assert images.for_crops(test) is images.for_crops(test) is not test
    assert [how["size"] for how in asked] == [32, 40]
    same = StudyImages.of(study_settings({**TINY, "network": "small_cam"}))
    assert same.evaluated_size == 32 and same.for_crops(same.test) is same.test
    with pytest.raises(ValueError, match="'scenes' has no schedule of its own"):
        study_settings({**TINY, "network": "small_cam", "epochs": None})


def test_a_record_names_every_departure_of_a_comparator() -> None:
    noted: dict[str, Any] = {"reads": {}, "lines": []}
    experiment = SimpleNamespace(reads=lambda **found: noted["reads"].update(found), deviates=noted["lines"].append)
    ledger = {reading.id for reading in load_readings()}
    for kind in METHODS.values():
        note_readings(experiment, kind())  # type: ignore[arg-type]
        assert set(kind.readings) <= ledger
    assert noted["reads"]["ega__attack__step"] == "1" and noted["reads"]["ega__comparator__acol_map"] == "14"
    assert any(
        line.startswith("SPG: no dropout in the head; its authors' code: dropout of 0.5") for line in noted["lines"]
    )
    assert not any(line.startswith("CutMix") for line in noted["lines"])


def test_table_4_can_take_a_second_network_which_is_no_printed_column() -> None:
    values = {**TINY, "datasets": {"cub": "scenes"}, "network": "small_cam", "second_network": "small_inception"}
    settings = [(trial.setting, trial.study.network) for trial in trials_of("ega/table4_maxboxaccv2", values)]
    assert settings[::2] == [
        ({"dataset": "cub"}, "small_cam"),
        ({"dataset": "cub", "network": "small_inception"}, "small_inception"),
    ]


def test_the_train_command_fills_the_store_for_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPRO_RUNS", str(tmp_path))
    small = ["width=4", "train_images=20", "pretrain_epochs=0", "epochs=1", "methods=[cam]", "image_size=48"]
    command = ["train", "ega", "table1_cub", "--preset", "smoke", *(f"--set={value}" for value in small)]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    assert "cam, network = vgg16, seed 0: trained in" in first.output
    assert "already trained" in CliRunner().invoke(app, command).output
    assert len(list(tmp_path.glob("cam/*/result.json"))) == 1
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    many = CliRunner().invoke(app, [*command, "--devices=21"])
    assert "batch_size 20 leaves some of 21 devices without an image" in str(many.exception)  # before any is started
    wrong = CliRunner().invoke(app, [*command, "--set=epoch=3"])
    assert isinstance(wrong.exception, UserError)
    assert "did you mean 'epochs'" in str(wrong.exception)
