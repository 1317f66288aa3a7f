import copy

import pytest
import torch
from torch import nn

from llmq.torch.fold import fold_norm


def random_norm(norm, generator):
    norm.running_mean.copy_(torch.randn(norm.num_features, generator=generator))
    norm.running_var.copy_(torch.rand(norm.num_features, generator=generator) + 0.1)
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(torch.randn(norm.num_features, generator=generator))
            norm.bias.copy_(torch.randn(norm.num_features, generator=generator))
    return norm.eval()


CASES = [
    (lambda: nn.Conv2d(3, 8, 3), lambda: nn.BatchNorm2d(8), (2, 3, 6, 7)),
    (lambda: nn.Conv2d(3, 8, 3, bias=False), lambda: nn.BatchNorm2d(8), (2, 3, 6, 7)),
    (lambda: nn.Conv2d(4, 8, 3, groups=4), lambda: nn.BatchNorm2d(8, affine=False), (2, 4, 6, 7)),
    (lambda: nn.Conv1d(3, 5, 2, stride=2), lambda: nn.BatchNorm1d(5, eps=0.3), (2, 3, 9)),
]


@pytest.mark.parametrize(("conv", "norm", "shape"), CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_a_folded_convolution_computes_both(conv, norm, shape, dtype, tolerance):
    generator = torch.Generator().manual_seed(5)
    layer, norm = conv().to(dtype), random_norm(norm().to(dtype), generator)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    expected = norm(layer(x))
    folded = copy.deepcopy(layer)
    fold_norm(folded, norm)
    assert folded.weight.dtype == dtype
    assert (folded(x) - expected).abs().max() <= tolerance * expected.abs().max()
    assert not torch.equal(folded.weight, layer.weight)


def test_a_dead_channel():
    """Without variance and with a gain of zero, a channel is its shift."""
    layer, norm = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2).eval()
    norm.running_var.zero_()
    nn.init.zeros_(norm.weight)
    nn.init.constant_(norm.bias, 3.0)
    fold_norm(layer, norm)
    assert torch.equal(layer(torch.randn(1, 1, 2, 2)), torch.full((1, 2, 2, 2), 3.0))
