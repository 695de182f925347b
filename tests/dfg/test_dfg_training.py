"""Replicas equal the loop, draws are independent of R, updates equal plain PyTorch, runs resume exactly."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from repro.data.images import ImageSet
from repro.losses import classification_loss
from repro.models import SplitClassifier
from repro.training import Run
from repro.training.baselines import RECIPES, load_source, train_cmwgan, train_supervised
from repro.training.dfg import (
    build_networks,
    dfg_draws,
    train_dfg,
    update_cycle,
    update_extractor_and_classifier,
    update_generator,
    update_generator_on_classes,
)
from repro.training.dfg_settings import PAPER_SETTINGS, DFGReadings, DFGSettings
from repro.training.methods import replica_chunks
from repro.training.sampling import Augmentation, CycleDraws, ResidentData
from repro.training.tasks import ReplicaTasks, chosen_accuracies, resident

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
    draws = dfg_draws(tasks, settings, paper, torch.float64)
    draws.load(0)
    batch = draws.batch(0, 0)
    plain = nets.classify(0).train().requires_grad_(True)
    optimiser = torch.optim.Adam(plain.parameters(), lr=settings.network_lr, betas=(0.5, 0.9))
    for _ in range(3):
        update_extractor_and_classifier(nets, batch, paper)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(plain(batch.images[0]), batch.labels[0]).backward()
        optimiser.step()
    assert largest_difference(nets.classify(0).state_dict(), plain.state_dict()) <= 1e-12


def test_each_update_changes_its_own_networks_only(
    source: SplitClassifier, make_tasks: MakeTasks, short: DFGSettings, paper: DFGReadings
) -> None:
    tasks = make_tasks([0, 1])
    nets = build_networks(source, tasks, short, paper)
    draws = dfg_draws(tasks, short, paper, torch.float64)
    draws.load(0)
    batch = draws.batch(0, 0)

    def changed(update: Callable[[], None]) -> set[str]:
        before = {
            label: {name: value.detach().clone() for name, value in network.parameters.items()}
            for label, network in nets.all_networks.items()
        }
        update()
        after = {label: network.parameters for label, network in nets.all_networks.items()}
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
    draws = dfg_draws(tasks, short, paper, torch.float64)
    draws.load(0)
    batch = draws.batch(0, 0)

    def score() -> float:
        return nets.critic(nets.generate(batch)).mean().item()

    def disagreement() -> float:
        return classification_loss(nets.classifier(nets.generate(batch)), batch.generated_labels).item()

    before = score()
    for _ in range(5):
        update_generator(nets, batch)
    assert score() > before
    before = disagreement()
    for _ in range(5):
        update_generator_on_classes(nets, batch)
    assert disagreement() < before


def test_draws_are_a_function_of_seed_and_cycle_alone(make_tasks: MakeTasks, short: DFGSettings) -> None:
    paper, window = DFGReadings.paper(), DFGReadings(critic_batches="window")
    for readings in (paper, window):
        three = dfg_draws(make_tasks([5, 6, 7]), short, readings, torch.float32)
        one = dfg_draws(make_tasks([6]), short, readings, torch.float32)
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
    draws = dfg_draws(make_tasks([0]), settings, DFGReadings(critic_batches="window"), torch.float32)
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
        draws = CycleDraws(
            resident,
            [subset],
            [0],
            10,
            steps=10,
            slots=1,
            batch=100,
            noise=0,
            real_classes=real_classes,  # type: ignore[arg-type]
        )
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
def test_an_interrupted_training_resumes_to_the_identical_end(
    source: SplitClassifier, make_tasks: MakeTasks, short: DFGSettings, paper: DFGReadings, new_run: NewRun
) -> None:
    tasks = make_tasks([0])
    whole = train_dfg(source, tasks, short, paper, new_run("whole"))
    folder = new_run("broken").folder
    with pytest.raises(Stopped):
        train_dfg(source, tasks, short, paper, StoppingRun(folder, checkpoint_seconds=0))
    resumed = train_dfg(source, tasks, short, paper, Run(folder, 0))
    assert largest_difference(whole, resumed) == 0


@pytest.mark.parametrize("method", RECIPES)
def test_supervised_replicas_equal_the_loop_and_freeze_what_they_say(
    method: str,
    source: SplitClassifier,
    make_tasks: MakeTasks,
    short: DFGSettings,
    paper: DFGReadings,
    new_run: NewRun,
) -> None:
    def train(seeds: list[int], name: str) -> dict[str, Tensor]:
        return train_supervised(method, source, make_tasks(seeds), short, paper, new_run(name))  # type: ignore[arg-type]

    stacked, alone = train([0, 1], "stacked"), of_replica(train([1], "alone"), 0)
    assert largest_difference(of_replica(stacked, 1), alone) <= 1e-9
    start = source.state_dict()
    moved = {name for name, value in alone.items() if not torch.equal(value, start[name])}
    frozen = {name for name in start if RECIPES[method].freeze_early and name.startswith(source.frozen)}  # type: ignore[index]
    assert moved == set(start) - frozen


def test_cmwgan_trains_only_the_head_after_its_first_stage(
    source: SplitClassifier, make_tasks: MakeTasks, short: DFGSettings, paper: DFGReadings, new_run: NewRun
) -> None:
    first = of_replica(train_supervised("whole_transfer", source, make_tasks([1]), short, paper, new_run("first")), 0)
    run = new_run("all")
    stacked = of_replica(train_cmwgan(source, make_tasks([0, 1]), short, paper, run), 1)
    alone = of_replica(train_cmwgan(source, make_tasks([1]), short, paper, new_run("alone")), 0)
    assert largest_difference(stacked, alone) <= 1e-9
    moved = {name for name in first if (stacked[name] - first[name]).abs().max() > 1e-8}
    assert moved == {"classifier.head.weight", "classifier.head.bias"}


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
        trained = of_replica(train_supervised("delta", source, make_tasks([0]), settings, paper, new_run(name)), 0)
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
    chosen = chosen_accuracies(history, 0)
    assert {rule: values["step"] for rule, values in chosen.items()} == {"last": 30, "held_out": 10, "best_on_test": 20}


def test_paper_settings_are_those_of_appendix_a_and_schedules_are_checked() -> None:
    svhn, fashion, caltech = (PAPER_SETTINGS[name] for name in ("svhn", "fashion_mnist", "caltech256"))
    assert (svhn.network_lr, svhn.generator_lr, svhn.critic_lr, svhn.iterations) == (2e-5, 2e-4, 1e-4, 20_000)
    assert (fashion.network_lr, fashion.cycle, fashion.filter_weights_every) == (1e-5, 10, 5_000)
    assert (caltech.cycle, caltech.network_lr_drop, caltech.network_optimiser) == (5, 20_000, "sgd")
    assert sum(svhn.evaluate_after(c) for c in range(2000)) == svhn.evaluations
    with pytest.raises(ValueError, match="multiple of 10"):
        DFGSettings(iterations=1005)


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
    draws = dfg_draws(gpu, short, paper, torch.float64)
    for cycle in range(2):
        draws.load(cycle)
        update_cycle(nets, draws, short, paper)
    eager = {f"{label}.{n}": v for label, net in nets.all_networks.items() for n, v in net.state_dict().items()}
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
    chunks = replica_chunks(source, make_tasks([4, 5, 6]), short, paper)
    assert [list(chunk.seeds) for chunk in chunks] == [[4], [5], [6]]
    assert all(chunk.train is chunks[0].train for chunk in chunks)
