"""Replicas equal the loop, draws are independent of R, updates equal plain PyTorch, runs resume exactly."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from repro.data.images import ImageSet
from repro.losses import classification_loss
from repro.models import SplitClassifier
from repro.training import Run
from repro.training.baselines import load_source
from repro.training.dfg import (
    build_networks,
    dfg_cycle,
    group_size,
    train_dfg,
    train_method,
    update_cycle,
    update_extractor_and_classifier,
    update_generator,
    update_generator_on_classes,
)
from repro.training.dfg_settings import PAPER_SETTINGS, RECIPES, DFGReadings, DFGSettings
from repro.training.replicas import Cycle, ReplicaNetwork, in_groups
from repro.training.sampling import Augmentation, CriticBatches, CycleDraws, ReplicaTasks, ResidentData, resident
from repro.training.transfer import chosen_accuracies, measure_source
from repro.vocabulary import DFGMethod

MakeTasks = Callable[[list[int]], ReplicaTasks]
NewRun = Callable[[str], Run]


def of_replica(tensors: dict[str, Tensor], replica: int) -> dict[str, Tensor]:
    return {k.split("/", 1)[1]: v for k, v in tensors.items() if k.startswith(f"{replica}/")}


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys() and a
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


def test_stacked_replicas_equal_the_loop_whatever_their_number_and_slot(
    source: SplitClassifier, make_tasks: MakeTasks, short: DFGSettings, paper: DFGReadings, new_run: NewRun
) -> None:
    stacked = train_dfg(source, make_tasks([0, 1, 2]), short, paper, new_run("stacked"))
    swapped = train_dfg(source, make_tasks([2, 0]), short, paper, new_run("swapped"))
    for seed, slot in ((0, 1), (2, 0)):
        alone = of_replica(train_dfg(source, make_tasks([seed]), short, paper, new_run(f"alone{seed}")), 0)
        assert {name.split(".")[0] for name in alone} == {"extractor", "classifier", "generator", "critic"}
        assert largest_difference(of_replica(stacked, seed), alone) <= 1e-9
        assert largest_difference(of_replica(swapped, slot), alone) <= 1e-9
        start = source.extractor.state_dict()["layers.conv1.weight"]
        assert (alone["extractor.layers.conv1.weight"] - start).abs().max() > 1e-4, "it did train"
    assert stacked["filter_weights"].shape == (3, 3, 10, 6)


def test_an_update_equals_plain_pytorch(
    source: SplitClassifier, make_tasks: MakeTasks, short: DFGSettings, paper: DFGReadings
) -> None:
    tasks = make_tasks([3])
    settings = short.model_copy(update={"map_penalty": 0.0, "head_penalty": 0.0})
    nets = build_networks(source, tasks, settings, paper)
    draws = dfg_cycle(nets, tasks, settings, paper).draws
    draws.load(0)
    batch = draws.batch(0, 0)
    plain = nets.target.classify(0).train().requires_grad_(True)
    optimiser = torch.optim.Adam(plain.parameters(), lr=settings.network_lr, betas=(0.5, 0.9))
    for _ in range(3):
        update_extractor_and_classifier(nets, batch, paper)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(plain(batch.images[0]), batch.labels[0]).backward()
        optimiser.step()
    assert largest_difference(nets.target.classify(0).state_dict(), plain.state_dict()) <= 1e-12


def test_each_update_changes_its_own_networks_only(
    source: SplitClassifier, make_tasks: MakeTasks, short: DFGSettings, paper: DFGReadings
) -> None:
    tasks = make_tasks([0, 1])
    nets = build_networks(source, tasks, short, paper)
    draws = dfg_cycle(nets, tasks, short, paper).draws
    draws.load(0)
    batch = draws.batch(0, 0)

    def changed(update: Callable[[], None]) -> set[str]:
        before = {
            label: {name: value.detach().clone() for name, value in network.parameters.items()}
            for label, network in nets.every.items()
        }
        update()
        after = {label: network.parameters for label, network in nets.every.items()}
        return {
            label for label in before if any(not torch.equal(before[label][n], after[label][n]) for n in before[label])
        }

    assert changed(lambda: update_generator(nets, batch)) == {"generator"}
    assert changed(lambda: update_generator_on_classes(nets, batch)) == {"generator"}
    assert changed(lambda: update_extractor_and_classifier(nets, batch, paper)) == {"extractor", "classifier"}


def test_generator_steps_raise_the_critics_score_and_the_label_agreement(
    source: SplitClassifier, make_tasks: MakeTasks, short: DFGSettings, paper: DFGReadings
) -> None:
    tasks = make_tasks([0])
    nets = build_networks(source, tasks, short.model_copy(update={"generator_lr": 1e-3}), paper)
    draws = dfg_cycle(nets, tasks, short, paper).draws
    draws.load(0)
    batch = draws.batch(0, 0)

    def score() -> float:
        return nets.critic(nets.generate(batch)).mean().item()

    def disagreement() -> float:
        return classification_loss(nets.target.classifier(nets.generate(batch)), batch.generated_labels).item()

    before = score()
    for _ in range(5):
        update_generator(nets, batch)
    assert score() > before
    before = disagreement()
    for _ in range(5):
        update_generator_on_classes(nets, batch)
    assert disagreement() < before


def draws_of(tasks: ReplicaTasks, settings: DFGSettings, critic_batches: CriticBatches) -> CycleDraws:
    slots = settings.critic_updates + 1
    return CycleDraws(
        tasks, steps=settings.cycle, slots=slots, batch=settings.batch, noise=100, critic_batches=critic_batches
    )


def test_draws_are_a_function_of_seed_and_cycle_alone(make_tasks: MakeTasks, short: DFGSettings) -> None:
    paper, window = DFGReadings.paper(), DFGReadings(critic_batches="window")
    for readings in (paper, window):
        three, one = (draws_of(make_tasks(seeds), short, readings.critic_batches) for seeds in ([5, 6, 7], [6]))
        three.load(0)
        three.load(4)
        one.load(4)
        for step, slot in ((0, 0), (3, 2)):
            a, b = three.batch(step, slot), one.batch(step, slot)
            assert torch.equal(a.images[1], b.images[0])
            assert torch.equal(a.noise[1], b.noise[0])
            assert torch.equal(a.generated_labels[1], b.generated_labels[0])
        first = one.batch(0, 0).noise.clone()
        one.load(5)
        assert not torch.equal(first, one.batch(0, 0).noise)


def test_the_window_shows_every_real_batch_to_the_critic_in_successive_steps(make_tasks: MakeTasks) -> None:
    settings = DFGSettings(iterations=8, merged_every=8, classes_every=8, filter_weights_every=8, critic_updates=3)
    draws = draws_of(make_tasks([0]), settings, "window")
    draws.load(1)
    for step in range(5):
        newest = draws.batch(step, 3).images
        assert torch.equal(draws.batch(step, 2).images, newest)
        assert torch.equal(draws.batch(step + 1, 1).images, newest)
        assert torch.equal(draws.batch(step + 2, 0).images, newest)
        assert not torch.equal(draws.batch(step + 1, 3).images, newest)


def test_draws_stay_in_the_subset_and_balanced_draws_favour_no_class(resident: ResidentData) -> None:
    subset = torch.tensor([0, 10, 20, 30, 40, 50, 1])  # six of class 0, one of class 1

    def labels(real_classes: str) -> Tensor:
        tasks = ReplicaTasks(resident, resident, 10, [subset], [subset[:0]], [0])
        draws = CycleDraws(tasks, steps=10, slots=1, batch=100, real_classes=real_classes)  # type: ignore[arg-type]
        draws.load(0)
        return torch.cat([draws.batch(step, 0).labels[0] for step in range(10)])

    assert labels("as_they_are").float().mean().item() == pytest.approx(1 / 7, abs=0.04)
    assert labels("balanced").float().mean().item() == pytest.approx(1 / 2, abs=0.05)


def test_augmentation_crops_flips_and_is_central_without_moves() -> None:
    images = torch.arange(2 * 1 * 4 * 4, dtype=torch.uint8).reshape(2, 1, 4, 4)
    data = ResidentData(images, torch.zeros(2, dtype=torch.long))
    augmentation = Augmentation(size=2, padding=0)
    index = torch.tensor([[0, 1]])
    moves = torch.tensor([[[0.0, 0.0, 0.0], [0.99, 0.99, 0.9]]])
    moved = (data.inputs(index, augmentation=augmentation, moves=moves)[0, :, 0] + 1) * 127.5
    assert moved[0].round().tolist() == [[0, 1], [4, 5]]
    assert moved[1].round().tolist() == [[27, 26], [31, 30]]
    central = (data.inputs(index, augmentation=augmentation)[0, 0, 0] + 1) * 127.5
    assert central.round().tolist() == [[5, 6], [9, 10]]


class Stopped(Exception):
    """The fault that interrupts a training."""


class StoppingRun(Run):
    """A run that checkpoints each cycle and is stopped after the third."""

    def steps(self, total: int, state: dict, name: str = "train") -> Iterator[int]:  # type: ignore[override, type-arg]
        for step in super().steps(total, state, name):
            if step == 3:
                raise Stopped
            yield step


@pytest.mark.faults("a DFG training stopped between cycles", "the end is bit-identical")
@pytest.mark.parametrize("method", [name for name in RECIPES if name not in ("dfg", "dfg_without_delta")])
def test_every_method_stacked_equals_alone_resumes_and_freezes_what_it_says(
    method: DFGMethod,
    source: SplitClassifier,
    make_tasks: MakeTasks,
    short: DFGSettings,
    paper: DFGReadings,
    new_run: NewRun,
) -> None:
    def train(seeds: list[int], run: Run, measured: bool = False) -> dict[str, Tensor]:
        tasks = make_tasks(seeds)
        measures = measure_source(source, tasks, short, paper, RECIPES[method]) if measured else None
        return train_method(method, source, tasks, short, paper, run, measures)

    alone = train([1], new_run("alone"))
    stacked = of_replica(train([0, 1], new_run("stacked"), measured=True), 1)
    assert largest_difference(stacked, of_replica(alone, 0)) <= 1e-9
    folder = new_run("broken").folder
    with pytest.raises(Stopped):
        train([1], StoppingRun(folder, checkpoint_seconds=0))
    assert largest_difference(train([1], Run(folder, 0)), alone) == 0, "resumed"
    start = source.state_dict()
    moved = {name for name, value in stacked.items() if name in start and not torch.equal(value, start[name])}
    frozen = {name for name in start if RECIPES[method].freeze_early and name.startswith(source.frozen)}
    assert moved == set(start) - frozen


def test_cmwgan_trains_only_the_head_after_its_first_stage(
    source: SplitClassifier, make_tasks: MakeTasks, short: DFGSettings, paper: DFGReadings, new_run: NewRun
) -> None:
    methods: tuple[DFGMethod, ...] = ("whole_transfer", "difa_cmwgan")
    first, last = (
        of_replica(train_method(method, source, make_tasks([1]), short, paper, new_run(method)), 0)
        for method in methods
    )
    moved = {name for name in first if (last[name] - first[name]).abs().max() > 1e-8}
    assert moved == {"classifier.head.weight", "classifier.head.bias"}


def test_class_weights_and_delta_enter_dfg_where_the_recipe_says(
    source: SplitClassifier, make_tasks: MakeTasks, short: DFGSettings, paper: DFGReadings
) -> None:
    tasks = make_tasks([0])
    for method, weighted, regularised in (("dfg_without_delta", False, False), ("dfg_reweighting", True, True)):
        nets = build_networks(source, tasks, short, paper, RECIPES[method])  # type: ignore[index]
        draws = dfg_cycle(nets, tasks, short, paper).draws
        draws.load(0)
        batch = draws.batch(0, 0)
        weights = nets.target.class_weights
        expected = classification_loss(
            nets.target.classifier(nets.target.extractor(batch.images)), batch.labels, weights
        )
        update_extractor_and_classifier(nets, batch, paper)
        assert (weights is not None) == weighted
        assert torch.equal(nets.losses["real"], expected.detach())
        assert (nets.losses["regularizer"] > 0) == regularised or method == "dfg_reweighting"


def test_dropout_is_a_function_of_seed_and_cycle_and_leaves_the_global_generator(make_tasks: MakeTasks) -> None:
    draws = CycleDraws(make_tasks([3]), steps=1, slots=1, batch=2)
    seen: list[Tensor] = []
    play = Cycle(lambda: seen.append(nn.functional.dropout(torch.ones(50))), [], draws)
    before = torch.get_rng_state()
    for cycle in (4, 5, 4):
        play(cycle)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[1])


def test_statistics_of_fixed_layers_stay_fixed_unless_the_reading_moves_them() -> None:
    network = nn.Sequential(OrderedDict(fixed=nn.BatchNorm1d(3), free=nn.BatchNorm1d(3)))
    for frozen_norms in (True, False):
        replicas = ReplicaNetwork([network], frozen=["fixed."], frozen_norms=frozen_norms)
        replicas(torch.randn(1, 8, 3))
        moved = {
            name.split(".")[0] for name, value in replicas.buffers.items() if name.endswith("mean") and value.any()
        }
        assert moved == ({"free"} if frozen_norms else {"fixed", "free"})


def test_groups_are_halved_where_memory_runs_out() -> None:
    done: list[list[int]] = []

    def train(members: Sequence[int]) -> None:
        if len(members) > 2:
            raise torch.OutOfMemoryError
        done.append(list(members))

    in_groups(range(10, 17), 5, train)
    assert done == [[10, 11], [12, 13], [14, 15], [16]]


def test_released_readings_train_and_regularised_networks_stay_nearer_to_the_source(
    make_tasks: MakeTasks, short: DFGSettings, new_run: NewRun, source: SplitClassifier, paper: DFGReadings
) -> None:
    released = DFGReadings.released()
    torch.manual_seed(0)
    big = load_source({f"0/{k}": v for k, v in build_released().state_dict().items()}, short, released).double()
    run = new_run("released")
    tensors = train_dfg(big, make_tasks([0]), short, released, run)
    assert all(torch.isfinite(value).all() for value in tensors.values())
    strong = short.model_copy(update={"map_penalty": 10.0})

    def distance(settings: DFGSettings, name: str) -> float:
        trained = of_replica(train_method("delta", source, make_tasks([0]), settings, paper, new_run(name)), 0)
        start = source.state_dict()
        return (trained["extractor.layers.conv1.weight"] - start["extractor.layers.conv1.weight"]).norm().item()

    assert distance(strong, "strong") < distance(short, "weak")


def build_released() -> SplitClassifier:
    from repro.models import lenet5

    return lenet5(hidden=DFGReadings.released().hidden)


def test_model_choice_rules_read_the_history() -> None:
    def row(step: int, test: float, held_out: float) -> dict[str, float]:
        values = {"test/top1_accuracy": test, "test/macro_recall": test, "held_out/macro_recall": held_out}
        return {"step": step, **{f"0/{name}": value for name, value in values.items()}}

    history = [row(10, 50, 70), row(20, 80, 60), row(30, 60, 65), {"step": 30, "0/loss/real": 1.0}]
    found = {rule: values["step"] for rule, values in chosen_accuracies(history, 0, equal_updates=10).items()}
    assert found == {"last": 30, "held_out": 10, "best_on_test": 20, "equal_updates": 10}
    assert "equal_updates" not in chosen_accuracies(history, 0, equal_updates=15), "that step was not evaluated"


def test_paper_settings_are_those_of_appendix_a_and_schedules_are_checked() -> None:
    svhn, fashion, caltech = (PAPER_SETTINGS[name] for name in ("svhn", "fashion_mnist", "caltech256"))
    assert (svhn.network_lr, svhn.generator_lr, svhn.critic_lr, svhn.iterations) == (2e-5, 2e-4, 1e-4, 20_000)
    assert (fashion.network_lr, fashion.cycle, fashion.filter_weights_every) == (1e-5, 10, 5_000)
    assert (caltech.cycle, caltech.network_lr_drop, caltech.network_optimiser) == (5, 20_000, "sgd")
    assert sum(svhn.evaluate_after(c) for c in range(2000)) == svhn.evaluations
    with pytest.raises(ValueError, match="multiple of 10"):
        DFGSettings(iterations=1005)
    for drop in (2000, 1005):
        with pytest.raises(ValueError, match=f"network_lr_drop={drop} never happens"):
            DFGSettings(iterations=2000, network_lr_drop=drop)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")
def test_a_captured_cycle_equals_the_eager_one(
    source: SplitClassifier, make_tasks: MakeTasks, short: DFGSettings, paper: DFGReadings, new_run: NewRun
) -> None:
    tasks = make_tasks([0, 1])
    gpu = ReplicaTasks(
        tasks.train.to(torch.device("cuda")),
        tasks.test.to(torch.device("cuda")),
        10,
        tasks.subsets,
        tasks.held_out,
        tasks.seeds,
    )
    nets = build_networks(source, gpu, short, paper)
    draws = dfg_cycle(nets, gpu, short, paper).draws
    for cycle in range(2):
        draws.load(cycle)
        update_cycle(nets, draws, short, paper)
    eager = {f"{label}.{n}": v for label, net in nets.every.items() for n, v in net.state_dict().items()}
    captured = train_dfg(source, gpu, short.model_copy(update={"iterations": 8}), paper, new_run("graph"))
    for name, value in eager.items():
        assert torch.allclose(captured[f"1/{name}"].double(), value[1].double(), atol=1e-9)


def test_grey_images_keep_grey_and_weigh_colours() -> None:
    images = torch.full((2, 3, 4, 4), 77, dtype=torch.uint8)
    images[1] = torch.tensor([255, 0, 0])[:, None, None]
    data = ImageSet("any", "train", images, torch.tensor([0, 1]), ["a", "b"], ["0", "1"])
    assert resident(data, grey=True).images.flatten(1)[:, 0].tolist() == [77, 76]
    assert resident(data, grey=False).images is images


def test_a_cpu_trains_replica_by_replica(
    source: SplitClassifier, make_tasks: MakeTasks, short: DFGSettings, paper: DFGReadings
) -> None:
    assert group_size(source, make_tasks([4]), 6, short, paper) == 1
