"""EGA training: the baseline is a plain loop, terms are those of eq. 8, interruptions change nothing."""

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cam_helpers import TINY, network, squares
from pydantic import ValidationError
from torch import Tensor

from repro.losses import AttackSettings, cam_entropy, pgd_attack
from repro.models import DualBatchNorm2d, route_batch_norm, small_cam
from repro.training import (
    CAMSettings,
    Diverged,
    EGASettings,
    Ingredient,
    Method,
    OutOfDeviceMemory,
    Run,
    StepContext,
    evaluate_localisation,
    prepare_network,
    ten_crop_probabilities,
    train_cam,
    train_ega,
)
from repro.training.batches import Batch, Batches, augment
from repro.training.cam import loss_terms, set_learning_rate, sgd, transformed

CPU = torch.device("cpu")
ONE_STEP = TINY.model_copy(update={"batch_size": 32, "epochs": 1})


def run_in(folder: Path, seconds: float = 1e9) -> Run:
    folder.mkdir(exist_ok=True)
    return Run(folder, checkpoint_seconds=seconds)


def test_baseline_step_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    data, reference = squares(), network()
    state = train_ega(network(), data, CAMSettings(training=ONE_STEP), run_in(tmp_path), seed=3)
    batches = Batches(data, ONE_STEP, 3, CPU)
    batch = batches.at(0, batches.random(0))
    torch.manual_seed(3)
    F.cross_entropy(reference.train()(batch.images), batch.labels).backward()
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            rate = 2e-3 * (1 if name.startswith("backbone") else 10) * (2 if name.endswith("bias") else 1)
            gradient = weight.grad + 5e-4 * weight
            weight -= rate * 1.9 * gradient  # Nesterov's first step: (1 + momentum) · gradient
    for name, value in reference.state_dict().items():
        assert torch.allclose(state[name], value, atol=1e-6), name


def test_terms_are_those_of_equation_8_and_weights_are_applied() -> None:
    settings = EGASettings(training=TINY, clean_entropy_weight=2.0, adversarial_entropy_weight=0.5)
    parts = settings.ingredients()
    trained = prepare_network(small_cam(3, width=4), parts).train()
    batches = Batches(squares(), TINY, 0, CPU)
    context = StepContext(trained, TINY.normalisation, batches.random(0))
    clean = batches.at(0, context.random)
    noise = 2 * context.random.uniform(3, 24, 24) - 1
    reference = copy.deepcopy(trained)  # the mixed pass moves running statistics, which the attack reads
    moved = pgd_attack(reference, clean.images, clean.labels, AttackSettings(), noise=noise)
    with route_batch_norm(reference, "mixed"):
        logits, maps, _ = reference.cam(torch.cat([clean.images, moved]))
    context = StepContext(trained, TINY.normalisation, batches.random(0))
    batch = transformed(batches.at(0, context.random), parts, context)
    terms = loss_terms(trained.cam, batch, parts, context, "sum")
    assert batch.views == ("clean", "adversarial")
    assert torch.equal(batch.images[8:], moved)
    expected = F.cross_entropy(logits[:8], clean.labels) + F.cross_entropy(logits[8:], clean.labels)
    assert terms["classification"].item() == pytest.approx(expected.item(), abs=1e-5)
    for view, half, weight in (("clean", maps[:8], 2.0), ("adversarial", maps[8:], 0.5)):
        value = weight * cam_entropy(half, clean.labels).item()
        assert terms[f"entropy_{view}"].item() == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("reading", ["paper", "released"])
def test_the_entropy_moves_the_network_in_the_papers_reading_only(reading: str, tmp_path: Path) -> None:
    settings = EGASettings(training=ONE_STEP) if reading == "paper" else EGASettings.released(ONE_STEP)
    without = settings.model_copy(update={"entropy": None})
    first = train_ega(network(), squares(), settings, run_in(tmp_path / "with"), seed=0)
    second = train_ega(network(), squares(), without, run_in(tmp_path / "without"), seed=0)
    same = all(torch.equal(first[name], second[name]) for name in first)
    assert same == (reading == "released")


@pytest.mark.parametrize("settings", [EGASettings(training=TINY), CAMSettings(training=TINY)], ids=["ega", "baseline"])
@pytest.mark.parametrize("die_at", [1, 5])
def test_an_interrupted_training_ends_bit_identical(settings: Method, die_at: int, tmp_path: Path) -> None:
    whole_run = run_in(tmp_path / "whole")
    whole = train_ega(network(), squares(), settings, whole_run, seed=5)

    class Killed(BaseException):
        pass

    class Killer(Ingredient):
        def transform_batch(self, batch: Batch, context: StepContext) -> Batch:
            if len(first.history) == die_at:
                raise Killed
            return batch

    first = run_in(tmp_path / "cut", seconds=0)
    with pytest.raises(Killed):
        parts = [*settings.ingredients(), Killer()]
        train_cam(network(), squares(), TINY, parts, first, 5, settings.reduction)
    torch.manual_seed(99)
    second = run_in(tmp_path / "cut")
    resumed = train_ega(network(seed=77), squares(), settings, second, seed=5)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert whole_run.history == second.history
    assert len(whole_run.history) == 8


def test_training_learns_and_localises(tmp_path: Path) -> None:
    settings = EGASettings(training=TINY.model_copy(update={"epochs": 12, "decay_epochs": (9,)}))
    trained, data = network(), squares()
    train_ega(trained, data, settings, run_in(tmp_path), seed=0)
    trained.train()
    output = evaluate_localisation(trained, data, settings.training, settings.ingredients(), batch_size=10)
    assert trained.training
    assert output.maps.shape == (32, 3, 3) and output.maps.dtype == torch.float32
    assert (output.logits.argmax(1) == data.labels).float().mean() > 0.9
    crops = ten_crop_probabilities(trained, data, settings.training)
    assert torch.allclose(crops.sum(1), torch.ones(32), atol=1e-5)
    assert (crops.argmax(1) == data.labels).float().mean() > 0.9


def test_an_ingredient_that_localises_replaces_the_maps() -> None:
    class Constant(Ingredient):
        def localise(self, seen):
            return torch.ones(len(seen.classes), 2, 2)

    assert evaluate_localisation(network(), squares(3), TINY, [Constant()]).maps.shape == (3, 2, 2)


@pytest.mark.faults("NaN loss in CAM training", "stops; step named, its batch kept")
def test_a_loss_that_is_not_finite_stops_and_keeps_the_batch(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    class Poison(Ingredient):
        def losses(self, output, batch, context):
            poisoned = len(run.history) == 1 and context.network.training
            return {"poison": output.logits.sum() * (float("nan") if poisoned else 0.0)}

    run = run_in(tmp_path)
    settings = TINY.model_copy(update={"log_every": 3})
    with pytest.raises(Diverged, match=r"step 1; .*image"):
        train_cam(network(), squares(), settings, [Poison()], run, seed=0)
    kept = load_file(tmp_path / "diverged-1.safetensors")
    assert torch.equal(kept["indices"], Batches(squares(), settings, 0, CPU).indices(1))
    assert torch.equal(kept["images"], squares().images[kept["indices"]])


@pytest.mark.faults("out of memory in CAM training", "the message names the setting to change")
def test_out_of_memory_names_the_setting(tmp_path: Path) -> None:
    class Hungry(Ingredient):
        def forward_context(self, context):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OutOfDeviceMemory, match=r"lower batch_size \(now 8\)"):
        train_cam(network(), squares(), TINY, [Hungry()], run_in(tmp_path), seed=0)


def test_dual_batch_norm_is_prepared_and_needed(tmp_path: Path) -> None:
    settings = EGASettings(training=TINY)
    prepared = prepare_network(small_cam(3, width=4), settings.ingredients())
    assert any(isinstance(layer, DualBatchNorm2d) for layer in prepared.modules())
    bare = small_cam(3, width=4, batch_norm="none")
    with pytest.raises(ValueError, match="shared"):
        train_ega(bare, squares(), settings, run_in(tmp_path), seed=0)
    shared = settings.model_copy(update={"batch_norm": "shared"})
    train_ega(bare, squares(8), shared, run_in(tmp_path), seed=0)


def test_groups_and_schedule() -> None:
    built = small_cam(3, width=4)
    optimizer = sgd(built, built.head_modules(), TINY)
    rates = sorted(group["lr"] for group in optimizer.param_groups)
    assert rates == pytest.approx([2e-3, 4e-3, 2e-2, 4e-2])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(built.parameters()))
    set_learning_rate(optimizer, 1, TINY)
    assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx([2e-4, 4e-4, 2e-3, 4e-3])


def test_every_image_is_seen_once_an_epoch_in_an_order_of_its_own() -> None:
    batches = Batches(squares(), TINY, 7, CPU)
    epochs: list[Tensor] = [torch.cat([batches.indices(4 * e + s) for s in range(4)]) for e in range(2)]
    assert all(torch.equal(epoch.sort().values, torch.arange(32)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(batches.indices(2), Batches(squares(), TINY, 7, CPU).indices(2))
    assert not torch.equal(epochs[0][:8], Batches(squares(), TINY, 8, CPU).indices(0))


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_shares_make_the_batch_of_one_process_also_where_they_are_uneven(processes: int) -> None:
    whole = Batches(squares(), TINY, 7, CPU)
    shares = [Batches(squares(), TINY, 7, CPU, rank, processes) for rank in range(processes)]
    images = [share.at(5, share.random(5)).images for share in shares]
    assert torch.equal(torch.cat(images), whole.at(5, whole.random(5)).images)
    assert {len(part) for part in images} <= {8 // processes, 8 // processes + 1}
    means = [share.share.weight * part.mean() for share, part in zip(shares, images, strict=True)]
    assert torch.stack(means).mean().item() == pytest.approx(torch.cat(images).mean().item(), abs=1e-6)
    with pytest.raises(ValueError, match="batch_size 8 leaves some of 9 devices"):
        Batches(squares(), TINY, 7, CPU, 0, 9)


def test_reading_ahead_changes_nothing() -> None:
    plain, ahead = Batches(squares(), TINY, 7, CPU), Batches(squares(), TINY, 7, CPU)
    ahead._reader = ThreadPoolExecutor(1)
    for step in (0, 1, 2, 7, 3, 4):  # an epoch has four steps; 7 and 3 were not read ahead
        found = [batches.at(step, batches.random(step)) for batches in (plain, ahead)]
        assert torch.equal(found[0].images, found[1].images) and torch.equal(found[0].labels, found[1].labels)


def test_crops_come_from_the_image_and_half_are_mirrored() -> None:
    ramp = torch.arange(32, dtype=torch.uint8).expand(64, 3, 32, 32)  # the value is the column
    batches = Batches(squares(64), TINY.model_copy(update={"batch_size": 64}), 0, CPU)
    columns = augment(ramp, batches.random(0), TINY)[:, 0, 0].int()
    steps = columns.diff(dim=1)
    assert columns.shape == (64, 24) and ((steps == 1).all(1) | (steps == -1).all(1)).all()
    assert 16 < (steps[:, 0] == -1).sum() < 48
    assert {int(row.min()) for row in columns} == set(range(9))


@pytest.mark.parametrize(
    "change,message",
    [({"batch_size": 64}, "32 images"), ({"crop": 40}, "crop is 40, but images are 32×32")],
)
def test_what_does_not_fit_the_data_is_named(change: dict, message: str, tmp_path: Path) -> None:
    settings = CAMSettings(training=TINY.model_copy(update=change))
    with pytest.raises(ValueError, match=message):
        train_ega(network(), squares(), settings, run_in(tmp_path), seed=0)


def test_settings_are_checked_and_named_readings_differ() -> None:
    with pytest.raises(ValidationError, match="crop"):
        EGASettings(training={"crop": 300})  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        EGASettings(entropy="softmin")  # type: ignore[arg-type]
    released = EGASettings.released()
    assert released != EGASettings() and EGASettings.model_validate_json(released.model_dump_json()) == released
