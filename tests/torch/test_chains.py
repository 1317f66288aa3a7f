import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llmq.torch.chains import Chain, find_chains


class Straight(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.bn(self.conv(x)))


class Tapped(Straight):
    """Somebody else reads the output of the convolution."""

    def forward(self, x):
        y = self.conv(x)
        return self.relu(self.bn(y)) + y


class TappedNorm(Straight):
    """Somebody else reads the output of the norm."""

    def forward(self, x):
        y = self.bn(self.conv(x))
        return self.relu(y) + y


class TwiceConv(Straight):
    def forward(self, x):
        return self.relu(self.bn(self.conv(x))) + self.conv(x)


class TwiceNorm(Straight):
    def forward(self, x):
        return self.relu(self.bn(self.conv(x))) + self.bn(self.conv(x + 1))


class SharedRelu(Straight):
    """One ReLU for two layers, as residual networks have it."""

    def __init__(self):
        super().__init__()
        self.second = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.relu(self.second(self.relu(self.bn(self.conv(x)))))


class Functional(Straight):
    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class ReadsWeight(Straight):
    def forward(self, x):
        return self.relu(self.bn(self.conv(x))) * self.conv.weight.mean()


class Branching(nn.Module):
    """What it does depends on the values of its input: no trace."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU())

    def forward(self, x):
        return self.body(x) if x.sum() > 0 else x


class BranchingTapped(Branching):
    def forward(self, x):
        taps = []
        if x.sum() > 0:
            for child in self.body:
                x = child(x)
                taps.append(x)
        return taps


WHOLE = {"conv": Chain("conv", "bn", "relu")}


@pytest.mark.parametrize(
    ("kind", "chains"),
    [
        (Straight, WHOLE),
        (Tapped, {}),
        (TappedNorm, {"conv": Chain("conv", "bn")}),
        (TwiceConv, {}),
        (TwiceNorm, {}),
        (SharedRelu, {"conv": Chain("conv", "bn")}),
        (Functional, {"conv": Chain("conv", "bn")}),
        (ReadsWeight, {}),
    ],
)
def test_what_a_trace_shows(kind, chains):
    assert find_chains(kind().eval()) == chains


def test_linears_take_over_relus_only():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()).eval()
    assert find_chains(model) == {"0": Chain("0", relu="1")}


def test_names_within_modules():
    model = nn.Sequential(nn.Sequential(Straight(), nn.Conv2d(4, 1, 1)), nn.ReLU()).eval()
    assert find_chains(model) == {
        "0.0.conv": Chain("0.0.conv", "0.0.bn", "0.0.relu"),
        "0.1": Chain("0.1", relu="1"),
    }


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(4, track_running_stats=False), nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.Identity()]
)
def test_other_norms_stay(norm):
    assert find_chains(nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.ReLU()).eval()) == {}


@pytest.mark.parametrize("watched", ["conv", "bn", "relu"])
def test_nothing_that_a_hook_watches_goes_away(watched):
    model = Straight().eval()
    model.get_submodule(watched).register_forward_hook(lambda *_: None)
    taken = {"conv": {}, "bn": {}, "relu": {"conv": Chain("conv", "bn")}}
    assert find_chains(model) == taken[watched]


def test_without_a_trace_sequentials_must_be_called_as_a_whole():
    example = torch.ones(1, 2, 5, 5)
    expected = {"body.0": Chain("body.0", "body.1", "body.2"), "body.3": Chain("body.3", relu="body.4")}
    assert find_chains(Branching().eval()) == {}
    for inputs in (example, (example,), {"x": example}):
        assert find_chains(Branching().eval(), inputs) == expected
    assert find_chains(BranchingTapped().eval(), example) == {}
    assert find_chains(Branching().eval(), -example) == {}  # the branch that calls it was not taken


class Block(nn.Module):
    """Can be traced, unlike what calls it."""

    def __init__(self, tap=False):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)])
        self.relu = nn.ReLU()
        self.tap = tap

    def forward(self, x):
        y = self.layers[0](x)
        z = self.relu(self.layers[1](y))
        return z + y if self.tap else z


class Reaching(nn.Module):
    """Cannot be traced; it calls one block, and the parts of another."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block(), Block(tap=True)])

    def forward(self, x):
        x = self.blocks[2](self.blocks[0](x)) if x.sum() > 0 else x
        y = self.blocks[1].layers[0](x)
        return self.blocks[1].layers[1](y) + y


def test_without_a_trace_modules_are_traced_one_by_one():
    expected = {"blocks.0.layers.0": Chain("blocks.0.layers.0", "blocks.0.layers.1", "blocks.0.relu")}
    assert find_chains(Reaching().eval()) == {}
    assert find_chains(Reaching().eval(), torch.ones(1, 2, 3, 3)) == expected
    assert find_chains(Reaching().eval(), -torch.ones(1, 2, 3, 3)) == {}


def test_without_a_trace_modules_with_two_names_stay():
    model = Branching().eval()
    model.again = model.body[0]
    assert find_chains(model, torch.ones(1, 2, 5, 5)) == {"body.3": Chain("body.3", relu="body.4")}


def test_looking_leaves_no_trace():
    class Counting(Straight):
        runs = 0

        def forward(self, x):
            self.runs += 1
            self.last = super().forward(x)
            return self.last

    model = Counting().eval()
    assert find_chains(model) == WHOLE
    assert model.runs == 0
    assert not hasattr(model, "last")
