"""Studies on a pretended GPU: heavy work on it, no mixed devices, and the host waits only where it is named here."""

from pathlib import Path

import pytest
import torch

from repro.metrics import FaithfulnessSettings
from repro.studies.cam_study import CamStudy, StudyImages
from repro.studies.ega import trials_of
from repro.studies.explanations import PAPER_METHODS, SubjectSettings, explain, prepare_subject
from repro.studies.scorecampp import columns, faithfulness
from repro.training.comparators import METHODS
from repro.training.run_store import RunStore
from tests.pretended_gpu import pretended_fabric, pretended_gpu
from tests.studies.test_ega_study import TINY


def test_the_pretence_refuses_counts_and_forgets() -> None:
    with pytest.raises(RuntimeError, match="cuda:0 and cpu"), pretended_gpu():
        torch.ones(2, device="cuda") + torch.ones(2)
    with pretended_gpu() as gpu:
        moved = torch.ones(2).to("cuda")
        assert moved.device.type == "cuda"
        assert (moved + 1).sum().item() == 4
        assert sum(gpu.copies.values()) == 1
        assert list(gpu.waits.values()) == [1]
        with pytest.raises(TypeError, match="numpy"):
            moved.numpy()
    assert moved.device.type == "cpu"


# Lines at which the host may wait. Once per call of an explainer or metric, never inside a masked pass: the check of
# targets and outputs, of maps that are not finite, of a folded copy's logits, the search for what is blank.
WAITS = {
    "explain/base.py",
    "explain/engine.py",
    "explain/gradient.py",
    "explain/layer.py",
    "metrics/faithfulness.py",
    "models/class_scores.py",
    "studies/explanations.py",  # whether a batch of maps and scores is finite
}


def test_scorecampp(tmp_path: Path) -> None:
    settings = SubjectSettings(
        dataset="scenes", images=5, architecture="small_cnn", weights=None, epochs=2, train_images=64, input_size=32
    )
    with pretended_gpu() as gpu:
        store = RunStore(tmp_path)
        subject = prepare_subject(settings, store)
        training = dict(gpu.waits)
        steps = {
            line: count
            for line, count in gpu.copies.items()
            if line.startswith("training/classifier.py") and line.endswith("_fit")
        }
        gpu.waits.clear()
        explanations = explain(
            subject, PAPER_METHODS, FaithfulnessSettings(), store, insertion_steps=2, augmented_copies=2
        )
    assert sum(training.values()) == 1, training  # the losses, once in 50 steps
    assert list(steps.values()) == [4, 4], steps  # images and labels, once a step
    assert {line.split(":")[0] for line in gpu.waits} <= WAITS, gpu.waits
    batches = 2
    assert gpu.waits.total() <= 80 * batches, gpu.waits
    assert gpu.work["cpu"] == 0
    assert gpu.work["cuda"] > 500
    assert len(faithfulness(subject, explanations, columns(PAPER_METHODS), "probability").rows) == 63


EGA_WAITS = {"training/cam.py": "log", "training/comparators/erasing.py": "forward_context"}
"""The losses of a logged step, and the list of images that ADL draws for a step."""
EGA_COPIES = {
    "training/batches.py": 2,  # indices and labels of the batch
    "losses/attack.py": 2,  # its constants
    "training/comparators/erasing.py": 2,  # the patches that Hide-and-Seek drew
}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_ega(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = TINY | {"methods": ["cam", method], "pretrain_epochs": 0}
    trial = next(trial for trial in trials_of("ega/table1_cub", values) if trial.method == method)
    monkeypatch.setattr("repro.training.cam.Fabric", pretended_fabric)
    with pretended_gpu() as gpu:
        study = CamStudy(trial.study, StudyImages.of(trial.study), RunStore(tmp_path))
        study.train(trial.settings, 0)
        steps = 2
        waits = {line.split(":")[0]: line.split()[1] for line in gpu.waits}
        assert waits.items() <= EGA_WAITS.items(), gpu.waits
        for path, most in EGA_COPIES.items():
            assert sum(n for line, n in gpu.copies.items() if line.startswith(path)) <= most * steps + 1, gpu.copies
        gpu.waits.clear()
        study.localise(trial.settings, 0)
    assert not gpu.waits
    assert gpu.work["cuda"] > 40
    assert gpu.work["cpu"] <= 56, "more than two looks at a network's shapes"
