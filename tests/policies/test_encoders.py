import numpy as np
import pytest
import torch
from gymnasium import spaces

from envs.morphogenesis import observation_space
from envs.observation import ObservationLayout
from envs.slots import SlotConfig
from policies.encoders import BlueprintEncoder, FlatEncoder


@pytest.mark.parametrize("slots", [1, 3, 10])
def test_sizes_come_from_the_space(slots):
    layout = ObservationLayout(SlotConfig.for_row(slots))
    space = observation_space(layout)
    encoder = BlueprintEncoder.from_space(space, embedding_dim=4)
    obs = {name: torch.from_numpy(leaf) for name, leaf in space.sample().items()}
    assert encoder(obs).shape == (encoder.width,) == (layout.size + 4 * slots,)
    flat = FlatEncoder.from_space(space)
    assert torch.equal(flat(obs), obs["obs"])
    assert flat.width == layout.size


def test_what_is_no_vector_is_refused():
    with pytest.raises(ValueError, match="obs must be a Box with one axis"):
        FlatEncoder.from_space(spaces.Dict({"obs": spaces.Box(0, 1, (3, 3), np.float32)}))
    with pytest.raises(ValueError, match="blueprint_indices must be a Box"):
        BlueprintEncoder.from_space(
            spaces.Dict({"obs": spaces.Box(0, 1, (3,), np.float32), "blueprint_indices": spaces.Discrete(3)}), 4
        )
