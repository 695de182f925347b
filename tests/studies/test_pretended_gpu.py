"""Studies on a pretended GPU: heavy work on the device, no mixed devices, no waiting inside a step beyond what is named."""

import pytest
import torch
from tests.pretended_gpu import pretended_gpu

from repro.metrics import FaithfulnessSettings
from repro.studies.explanations import PAPER_METHODS, SubjectSettings, explain, prepare_subject
from repro.studies.scorecampp import columns, faithfulness
from repro.training.run_store import RunStore


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


def test_scorecampp(tmp_path) -> None:
    settings = SubjectSettings(
        dataset="scenes", images=5, architecture="small_cnn", weights=None, epochs=1, train_images=64, input_size=32
    )
    with pretended_gpu() as gpu:
        store = RunStore(tmp_path)
        subject = prepare_subject(settings, store)
        trained = gpu.copies.total(), gpu.waits.total()
        explanations = explain(subject, PAPER_METHODS, FaithfulnessSettings(), store, insertion_steps=2, augmented_copies=2)
    rows = faithfulness(subject, explanations, columns(PAPER_METHODS), "probability").rows
    print(trained, gpu.copies, gpu.waits, gpu.work)
    assert gpu.work["cpu"] == 0
    assert gpu.work["cuda"] > 100
    assert rows
