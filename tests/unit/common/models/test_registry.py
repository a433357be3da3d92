import numpy as np
import pytest
import torch
from torch import nn

from common.errors import ConfigError, RunError
from common.models import registry
from common.models.flat import flat_parameters, share_parameters


@pytest.mark.long
@pytest.mark.parametrize("name", registry.MODELS)
@pytest.mark.parametrize(("classes", "channels", "image_size"), [(2, 1, 28), (5, 3, 64)])
def test_every_model_scores_every_class_and_has_no_buffers(
    name: str, classes: int, channels: int, image_size: int
) -> None:
    image_size = max(image_size, registry.smallest_image(name))
    model = registry.build(name, classes, channels, image_size, seed=1)
    with torch.inference_mode():
        scores = model(torch.zeros(registry.input_shape(name, 3, channels, image_size)))
    assert scores.shape == (3, classes)
    assert not list(model.buffers())
    assert registry.parameter_count(name, classes, channels, image_size) == len(flat_parameters(model))


@pytest.mark.long
@pytest.mark.parametrize("name", registry.MODELS)
def test_initial_weights_depend_on_the_seed_alone_and_leave_the_global_generator_alone(name: str) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    size = registry.smallest_image(name)
    one = flat_parameters(registry.build(name, 2, 1, size, seed=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert np.array_equal(one, flat_parameters(registry.build(name, 2, 1, size, seed=1)))
    if not np.array_equal(one, np.zeros_like(one)):
        assert not np.array_equal(one, flat_parameters(registry.build(name, 2, 1, size, seed=2)))


def test_the_default_model_is_small() -> None:
    assert registry.parameter_count("cnn", classes=2, channels=1, image_size=28) == 25_842
    assert registry.parameter_count("cnn_wide", classes=2, channels=1, image_size=28) == 57_194


@pytest.mark.parametrize("name", ["densenet121", "efficientnet_b0"])
def test_deep_networks_take_images_of_64_to_512_pixels(name: str) -> None:
    model = registry.build(name, 2, 1, 512, seed=1)
    with torch.inference_mode():
        for side in (64, 512):
            assert torch.isfinite(model(torch.rand(1, 1, side, side))).all()
    with pytest.raises(ConfigError, match=rf"at least 64 for model\.name {name}, got 63"):
        registry.build(name, 2, 1, 63, seed=1)


def test_an_unknown_model_is_refused_with_the_known_names() -> None:
    known = ", ".join(registry.MODELS)
    with pytest.raises(ConfigError, match=rf"model\.name must be one of {known}.*got 'vgg'"):
        registry.build("vgg", 2, 1, 28, seed=1)


def test_shared_parameters_are_views_in_both_directions() -> None:
    model = nn.Linear(3, 2)
    flat = torch.arange(8, dtype=torch.float32)
    share_parameters(model, flat)
    assert model.weight.tolist() == [[0, 1, 2], [3, 4, 5]]
    flat[7] = -1
    assert model.bias.tolist() == [6, -1]
    with torch.no_grad():
        model.weight[0, 0] = 9
    assert flat[0] == 9
    assert flat_parameters(model).tolist() == flat.tolist()


@pytest.mark.parametrize("flat", [torch.zeros(7), torch.zeros(8, dtype=torch.float64)])
def test_a_flat_model_of_wrong_length_or_type_is_refused(flat: torch.Tensor) -> None:
    with pytest.raises(RunError, match="8 float32 parameters"):
        share_parameters(nn.Linear(3, 2), flat)
