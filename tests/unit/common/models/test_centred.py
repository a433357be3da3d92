import numpy as np
import pytest
import torch
from torch import nn

from common.models import frozen, registry
from common.models.centred import CentredModel, centre_length, trained_length
from common.models.flat import flat_parameters, share_parameters
from common.models.heads import linear_head

WIDTH = 9


def features(n: int = 5) -> torch.Tensor:
    return nn.functional.normalize(torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(1)), dim=1) * 10


def test_without_a_centre_the_head_sees_the_features_as_they_are() -> None:
    model = CentredModel(linear_head(WIDTH, 2), WIDTH)
    assert torch.allclose(model.centring(features()), features(), atol=1e-5)


def test_the_centre_is_subtracted_at_norm_one_and_the_rest_has_the_usual_norm() -> None:
    model = CentredModel(linear_head(WIDTH, 2), WIDTH)
    centre = torch.linspace(-0.3, 0.3, WIDTH)
    model.centring.centre.data = centre
    made = model.centring(features())
    expected = features() / frozen.NORM - centre
    assert torch.allclose(made.norm(dim=1), torch.full((5,), frozen.NORM), rtol=1e-5)
    assert torch.allclose(made, expected / expected.norm(dim=1, keepdim=True) * frozen.NORM, atol=1e-4)
    copies = features(6).view(3, 2, WIDTH)
    assert torch.allclose(model.centring(copies).flatten(0, 1), model.centring(features(6)), atol=1e-6)


@pytest.mark.parametrize("value", [1e20, 3e38, -3e38])
def test_a_centre_beyond_any_float_gives_finite_features(value: float) -> None:
    model = CentredModel(linear_head(WIDTH, 2), WIDTH)
    model.centring.centre.data = torch.full((WIDTH,), value)
    assert torch.isfinite(model.centring(features())).all()


def test_the_trained_parameters_come_first_and_the_centre_last() -> None:
    model = registry.build("scattering_linear", 2, 1, 28, seed=1)
    width = registry.input_shape("scattering_linear", 1, 1, 28)[1]
    assert (trained_length(model), centre_length(model)) == (2 * width + 2, width)
    flat = torch.arange(len(flat_parameters(model)), dtype=torch.float32)
    share_parameters(model, flat)
    assert isinstance(model, CentredModel)
    assert np.array_equal(model.centring.centre.numpy(), flat[-width:].numpy())
    assert (trained_length(nn.Linear(3, 2)), centre_length(nn.Linear(3, 2))) == (8, 0)
