"""The engine behind the masked passes: memory, folding, what it does with networks it cannot fold."""

import operator

import pytest
import torch
from torch import nn

from repro.explain import EngineSettings, ScoreCAM
from repro.explain.base import forward_bytes, run_in_shrinking_batches
from repro.explain.layer import ModelInputs
from repro.explain.network_copy import (
    Traced,
    convert,
    fold_batch_norm,
    fuse_convolutions,
    inference_copy,
    pack_filters,
)


class LimitedMemory(nn.Module):
    """A network that runs out of memory above `limit` images."""

    def __init__(self, network, limit, error):
        super().__init__()
        self.network, self.limit, self.error = network, limit, error
        self.batches = []

    def __deepcopy__(self, memo):
        twin = LimitedMemory(self.network, self.limit, self.error)
        twin.batches = self.batches
        return twin

    def forward(self, images):
        self.batches.append(len(images))
        if len(images) > self.limit:
            raise self.error
        return self.network(images)


@pytest.mark.faults("out of memory in ScoreCAM", "the batch halves, the maps are the same")
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
)
def test_batches_halve_when_memory_runs_out(error, cnn, images):
    expected = ScoreCAM(cnn, cnn.rectify).attribute(images, 1)
    limited = LimitedMemory(cnn, 5, error)
    settings = EngineSettings(batch_size=32, fold_batch_norm=False, channels_last=False)
    ours = ScoreCAM(limited, cnn.rectify, engine=settings).attribute(images, 1)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert {32, 16, 8, 4} <= set(limited.batches)


@pytest.mark.faults("out of memory with one image in ScoreCAM", "the error is passed on")
def test_a_single_image_that_does_not_fit_is_an_error(cnn, images):
    limited = LimitedMemory(cnn, 0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        ScoreCAM(limited, cnn.rectify).attribute(images, 1)


def test_other_errors_are_not_retried():
    calls = []

    def step(part):
        calls.append(part)
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        run_in_shrinking_batches(step, 10, 8)
    assert len(calls) == 1


def test_a_halved_batch_repeats_its_slice_and_stays_halved():
    done = []

    def step(part):
        if part.stop - part.start > 3:
            raise torch.OutOfMemoryError("out of memory")
        done.extend(range(part.start, part.stop))

    assert run_in_shrinking_batches(step, 10, 8) == 2
    assert done == list(range(10))


def test_the_budget_sets_the_batch(cnn, images):
    needed = forward_bytes(cnn, ModelInputs((images[:1],)))
    assert needed == 3 * 8 * 32 * 32 * 4  # thrice the stem's output in float32
    seen = []
    cnn.head[1].register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    settings = EngineSettings(memory_budget_mib=4.5 * needed / 2**20)
    ScoreCAM(cnn, cnn.rectify, engine=settings).attribute(images, 0)
    assert max(seen) == 4


@pytest.mark.parametrize("setting", [{"batch_size": 0}, {"memory_budget_mib": -1.0}])
def test_bad_engine_settings_are_named(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        EngineSettings(**setting)


def folded_copy(model):
    traced = Traced(inference_copy(model))
    fold_batch_norm(traced)
    return traced


def norms(traced):
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    return sum(isinstance(traced.modules_called[call], nn.BatchNorm2d) for call in calls)


def test_folding_removes_every_norm_and_keeps_the_function(cnn, images):
    folded = folded_copy(cnn)
    assert (norms(Traced(inference_copy(cnn))), norms(folded)) == (2, 0)
    torch.testing.assert_close(folded(images), cnn(images), rtol=1e-5, atol=1e-5)


class Awkward(nn.Module):
    """One convolution used twice, one whose output is used beside its norm: neither may be folded."""

    def __init__(self):
        super().__init__()
        self.twice, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.beside, self.other = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, images):
        a = self.twice(self.norm(self.twice(images)))
        b = self.beside(a)
        return (self.other(b) + b).mean((2, 3))


def test_shared_convolutions_are_not_folded(images):
    torch.manual_seed(0)
    model = Awkward()
    for norm in (model.norm, model.other):
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    model.eval()
    folded = folded_copy(model)
    assert norms(folded) == 2
    torch.testing.assert_close(folded(images), model(images))


class Branching(nn.Module):
    """Control flow that depends on values: cannot be traced."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images) if images.sum() > -1e9 else self.network(-images)


def test_an_untraceable_network_runs_unfolded(cnn, images):
    branching = Branching(cnn)
    with pytest.raises(Exception, match="control flow"):
        Traced(inference_copy(branching))
    expected = ScoreCAM(cnn, cnn.rectify).attribute(images, 1)
    ours = ScoreCAM(branching, cnn.rectify).attribute(images, 1)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


class SizeBranch(nn.Module):
    """Traceable only by accident: the branch on a flag is frozen while tracing."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images) * (2 if isinstance(images, torch.fx.Proxy) else 1)


def test_a_folded_network_that_disagrees_is_not_used(cnn, images):
    treacherous = SizeBranch(cnn)
    assert not torch.allclose(folded_copy(treacherous)(images), treacherous(images))
    expected = ScoreCAM(cnn, cnn.rectify).attribute(images, 1)
    ours = ScoreCAM(treacherous, cnn.rectify).attribute(images, 1)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_users_hook_on_a_block_stays_in_force(cnn, images):
    cnn.block.register_forward_hook(lambda _m, _i, output: output * 0.5)
    with pytest.raises(TypeError, match="hooks"):
        Traced(inference_copy(cnn))
    torch.testing.assert_close(inference_copy(cnn)(images), cnn(images))


def test_the_copy_shares_tensors_until_they_change(cnn):
    copy = inference_copy(cnn)
    assert all(a is b for a, b in zip(copy.parameters(), cnn.parameters(), strict=True))
    before = [parameter.clone() for parameter in cnn.parameters()]
    converted = convert(copy, dtype=torch.bfloat16, channels_last=True)
    assert {parameter.dtype for parameter in converted.parameters()} == {torch.bfloat16}
    assert all(torch.equal(a, b) for a, b in zip(before, cnn.parameters(), strict=True))


class Residual(nn.Module):
    """Sums that may be fused, and some that may not: of other shapes, and of a result that is read twice."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.aside, self.shrink = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 2, stride=2)

    def forward(self, images):
        a = torch.relu(self.first(images))
        b = self.second(a)
        b += self.aside(images)  # fused into the first of the two convolutions
        b = b.relu()
        c = self.third(b)
        d = c.mean((2, 3), keepdim=True) + c  # other shapes, and c is read twice
        return torch.nn.functional.relu(self.shrink(d)).mean((2, 3))


fusing = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this CPU has no fused convolutions")


@fusing
def test_fused_convolutions_keep_the_function(images):
    torch.manual_seed(0)
    model = Residual().eval()
    with torch.no_grad():
        expected = model(images)
        fused = Traced(inference_copy(model))
        fuse_convolutions(fused, images[:1])
        calls = [node.target for node in fused.graph.nodes if node.op == "call_function"]
        assert calls == [operator.add], "one sum is left, and no rectifier"
        torch.testing.assert_close(fused(images), expected)
        fused = convert(fused, dtype=None, channels_last=True)
        pack_filters(fused, len(images))
        for batch in (len(images), 1):
            torch.testing.assert_close(fused(images[:batch]), expected[:batch])
        torch.testing.assert_close(model(images), expected)


@fusing
def test_a_hooked_convolution_is_not_fused(cnn, images):
    cnn.block[0].register_forward_hook(lambda _m, _i, output: output * 0.5)
    with torch.no_grad():
        fused = Traced(inference_copy(cnn))
        fuse_convolutions(fused, images[:1])
        torch.testing.assert_close(fused(images), cnn(images))
