"""Where features lie is read off torch's layers, whatever the sizes are."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from envs.live.errors import LiveError
from envs.live.places import IMAGE, SEQUENCE, Places

torch.set_num_threads(1)
SIZES = (2, 3, 5, 8, 16, 24)


class Residual(nn.Module):
    """Adds to what it is given: no layer gives its output."""

    def __init__(self, *layers):
        super().__init__()
        self.inner = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.inner(x)


class Shuffled(nn.Module):
    """Half of the channels pass by; then all are interleaved."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))

    def forward(self, x):
        left, right = x.chunk(2, dim=1)
        x = torch.cat([left, self.branch(right)], 1)
        return x.unflatten(1, (2, 8)).transpose(1, 2).flatten(1, 2)


class ChannelsNorm(nn.LayerNorm):
    """A layer norm over the channels of images."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Modern(Residual):
    """A convolution, then what lies with its channels last; its output has them first."""

    def __init__(self):
        super().__init__(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.conv = nn.Conv2d(8, 8, 7, padding=3, groups=8)

    def forward(self, x):
        return x + self.inner(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Merging(nn.Module):
    """Takes images with channels last, not as a layer of torch does."""

    def forward(self, x):
        return F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2)).mean((1, 2))


def _width(model, slot, *shape):
    return Places(model, torch.randn(3, *shape)).place(slot)


@pytest.mark.parametrize("size", SIZES)
def test_channels_first_are_images_and_no_sequences(size):
    images = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1), nn.MaxPool2d(1))
    for slot, width in (("0", 8), ("1", 8), ("2", 2), ("3", 2)):
        place = _width(images, slot, 3, size, size)
        assert (place.kind, place.width) == (IMAGE, width)
    lines = nn.Sequential(nn.Conv1d(3, 8, 1), nn.ReLU(), nn.BatchNorm1d(8), Residual(nn.Conv1d(8, 8, 1), nn.GELU()))
    for slot in "0123":
        with pytest.raises(LiveError, match="features on axis 1"):
            _width(lines, slot, 3, size)


@pytest.mark.parametrize("size", SIZES)
def test_channels_last_are_sequences_and_no_images(size):
    block = Residual(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8), nn.Dropout())
    model = nn.Sequential(nn.Linear(3, 8), block, Merging())
    for slot in ("0", "1", "1.inner.2"):
        place = _width(model, slot, size, 3)
        assert (place.kind, place.width) == (SEQUENCE, 16 if slot == "1.inner.2" else 8)
        with pytest.raises(LiveError, match="features on axis 3"):
            _width(model, slot, size, size, 3)


@pytest.mark.parametrize("size", SIZES)
def test_outputs_that_no_layer_gave_are_as_the_layers_around_say(size):
    model = nn.Sequential(nn.Conv2d(3, 16, 1), Shuffled(), Shuffled(), nn.AdaptiveAvgPool2d(1))
    for slot in ("1", "2", "1.branch", "2.branch.2"):
        place = _width(model, slot, 3, size, size)
        assert (place.kind, place.width) == (IMAGE, 8 if "branch" in slot else 16)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Modern(), Modern(), ChannelsNorm(8), nn.Conv2d(8, 2, 1))
    for slot in ("1", "3", "1.conv"):
        assert _width(model, slot, 3, size, size).kind == IMAGE
    with pytest.raises(LiveError, match="features on axis 3"):
        _width(model, "1.inner.1", 3, size, size)


@pytest.mark.parametrize("size", SIZES)
def test_what_attention_and_recurrence_give(size):
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    model = nn.Sequential(
        nn.Embedding(11, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.GRU(8, 5)
    )
    places = Places(model, torch.randint(0, 11, (3, size)))
    for slot, width in (("0", 8), ("1", 8), ("1.layers.0", 8), ("2", 5)):
        assert (places.place(slot).kind, places.place(slot).width) == (SEQUENCE, width)


def test_without_a_layer_of_torchs_sizes_of_parameters_say_it():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 3))

        def forward(self, x):
            return torch.einsum("oc,bcl->bol", self.weight, x)

    with pytest.raises(LiveError, match="features on axis 1"):
        _width(nn.Sequential(Own()), "0", 3, 5)
