import numpy as np

from common.models import registry
from common.models.flat import flat_parameters
from deploy.results.classifier import Classifier
from deploy.results.model_file import ModelCard, TensorShape
from deploy.results.preparation import preparation_of

NAME = "scattering_linear"


def _card() -> ModelCard:
    return ModelCard(
        architecture=NAME, classes=("normal", "pneumonia"), channels=1, image_size=28, threshold=0.5, run_id=32 * "0",
        task="pneumonia", data_set="phantom", privacy={},
        preparation=preparation_of(NAME, 2, 1, 28), sha256=64 * "0", tensors=(TensorShape(name="x", shape=(1,)),),
    )  # fmt: skip


def test_a_model_that_was_stored_before_there_were_centres_scores_as_it_did() -> None:
    whole = flat_parameters(registry.build(NAME, 2, 1, 28, seed=1))
    random = np.random.default_rng(4)
    whole[:-3472] = random.normal(0, 0.1, len(whole) - 3472)
    images = random.integers(0, 256, (3, 1, 28, 28)).astype(np.uint8)
    scores = Classifier(whole, _card()).scores(images)
    assert np.array_equal(Classifier(whole[:-3472], _card()).scores(images), scores)
    whole[-3472:] = 0.01
    assert not np.allclose(Classifier(whole, _card()).scores(images), scores)
