import pytest

from common.config import Config, replace
from deploy.demo.recipe import RECIPES, with_recipe
from deploy.named import check_names


@pytest.mark.parametrize("task", RECIPES)
def test_a_demo_whose_user_names_no_model_trains_by_its_tasks_recipe(task: str) -> None:
    made = with_recipe(replace(Config(), experiment={"task": task}), ("experiment.num_clients=4",))
    recipe = RECIPES[task]
    check_names(made)
    assert (made.model.name, made.training.copies, made.training.sample_rate) == (recipe.model, recipe.copies, 1.0)
    assert made.training.learning_rate * made.experiment.rounds == pytest.approx(recipe.length)
    assert made.privacy.mean_share == recipe.mean_share
    assert (made.privacy.mode, made.privacy.target_epsilon) == (Config().privacy.mode, 8.0)


def test_the_steps_go_as_far_whatever_number_of_rounds_is_named() -> None:
    config = replace(Config(), experiment={"rounds": 5})
    made = with_recipe(config, ("experiment.rounds=5",))
    assert made.experiment.rounds == 5
    assert made.training.learning_rate == pytest.approx(80.0)


def test_what_the_user_names_is_left_alone() -> None:
    config = replace(Config(), training={"learning_rate": 3.0})
    made = with_recipe(config, ("training.learning_rate=3",))
    assert made.training.learning_rate == 3.0
    assert made.model.name == RECIPES["pneumonia"].model


@pytest.mark.parametrize(
    ("sections", "given"),
    [
        ({"model": {"name": "cnn"}}, ("model.name=cnn",)),
        ({"model": {"name": "cnn_wide"}}, ()),
        ({"experiment": {"rounds": 12}}, ()),
        ({"experiment": {"task": "blood"}}, ()),
    ],
)
def test_a_model_a_file_or_a_task_of_the_users_own_has_no_recipe(
    sections: dict[str, dict[str, object]], given: tuple[str, ...]
) -> None:
    config = replace(Config(), **sections)
    assert with_recipe(config, given) == config


def test_images_of_ones_own_have_a_recipe_that_needs_no_network() -> None:
    config = replace(Config(), experiment={"task": "lungs"})
    made = with_recipe(config, (), own=True)
    check_names(made)
    assert (made.model.name, made.experiment.rounds, made.training.copies) == ("scattering_linear", 10, 1)
    assert with_recipe(config, ("model.name=cnn",), own=True) == config
    assert with_recipe(config, ("experiment.rounds=5",), own=True).training.learning_rate == 20.0
