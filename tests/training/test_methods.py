"""Every localisation method on every kind of network: a step, finite terms, a deterministic evaluation."""

import re
from pathlib import Path
from typing import ClassVar, get_args

import pytest
import torch
from cam_helpers import TINY, squares

from repro.evidence.published import load_published, own_label
from repro.models import CAMNetwork, small_cam, small_inception
from repro.training import Ingredient, Run, evaluate_localisation, prepare_network, train_ega
from repro.training.cam import Comparator, Method
from repro.training.comparators import METHODS
from repro.vocabulary import CAMMethod, cam_method_labels

ONE_STEP = TINY.model_copy(update={"epochs": 1, "batch_size": 16, "decay_epochs": ()})
NETWORKS = {"small_cam": small_cam, "small_inception": small_inception}


def settings(id: str) -> Method:
    method = METHODS[id](training=ONE_STEP).for_classes(["Coat", "Shirt", "Bag"])
    assert (method.parents == ((0, 0, 1),)) if id == "danet" else True  # type: ignore[attr-defined]
    return method


def fresh(name: str) -> CAMNetwork:
    torch.manual_seed(1)
    return NETWORKS[name](3, width=4)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("id", METHODS)
def test_it_trains_and_localises_without_randomness(id: str, network: str, tmp_path: Path) -> None:
    method, run, started = settings(id), Run(tmp_path, 1e9), fresh(network)
    random = torch.random.get_rng_state()
    state = train_ega(started, squares(), method, run, 0)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert len(run.history) == 2 and all(0 < entry["loss"] < 12 for entry in run.history)
    assert ("entropy_adversarial" in run.history[0]) == id.endswith("ega")
    assert all(value.isfinite().all() for value in state.values())
    loaded = prepare_network(fresh(network), method.ingredients())
    loaded.load_state_dict(state)
    maps = [evaluate_localisation(loaded, squares(), ONE_STEP, method.ingredients()).maps for _ in range(2)]
    assert torch.equal(maps[0], maps[1]) and maps[0].isfinite().all() and len(maps[0]) == 32


def test_names_and_labels_follow_from_the_classes() -> None:
    assert set(get_args(CAMMethod)) == set(METHODS)
    assert cam_method_labels() == {id: kind.label for id, kind in METHODS.items()}
    assert all(own_label(id) == kind.label and kind.source for id, kind in METHODS.items())
    printed = {method for table in load_published("ega") for method in table.methods}
    assert printed - set(METHODS) <= {"cam_ensemble", "has_ensemble", "clean", "adversarial"}


def test_a_method_is_one_class(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Toy(Comparator):
        id: ClassVar[str] = "toy"
        label: ClassVar[str] = "Toy"
        source: ClassVar[str] = "this test"

        def losses(self, output, batch, context):
            return {"toy": 0.1 * output.logits.square().mean()}

    monkeypatch.setitem(METHODS, "toy", Toy)
    run = Run(tmp_path, 1e9)
    train_ega(fresh("small_cam"), squares(), settings("toy"), run, 0)
    assert run.history[0].keys() == {"step", "loss", "classification", "toy"}
    text = Path(__file__).read_text(encoding="utf-8")
    (tmp_path / "toy.py").write_text("class Toy:\n" + "\n".join(re.findall(r"^ {4}( {4}(?:id|label): .*)", text, re.M)))
    assert cam_method_labels(tmp_path) == {"toy": "Toy"}


def test_the_defaults_of_an_ingredient_do_nothing() -> None:
    bare = Ingredient()
    built = fresh("small_cam")
    assert bare.wrap_network(built) is built and bare.classification_weight() == 1
