from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import nn

from common.shards import Records
from deploy.datasets import phantom

Maker = Callable[[int, int, int], Records]


@pytest.mark.parametrize(("maker", "channels", "classes"), [(phantom.chest, 1, 2), (phantom.retina, 3, 5)])
def test_every_class_is_there_and_no_image_is_blank(maker: Maker, channels: int, classes: int) -> None:
    made = maker(300, 28, 1)
    assert made.images.shape == (300, channels, 28, 28)
    assert set(made.labels.tolist()) == set(range(classes))
    assert made.images.std(axis=(1, 2, 3)).min() > 10


@pytest.mark.parametrize("maker", [phantom.chest, phantom.retina])
def test_the_same_seed_gives_the_same_images_and_another_gives_others(maker: Maker) -> None:
    first, again, other = maker(20, 28, 1), maker(20, 28, 1), maker(20, 28, 2)
    assert np.array_equal(first.images, again.images)
    assert first.patients == again.patients
    assert not np.array_equal(first.images, other.images)


@pytest.mark.parametrize("maker", [phantom.chest, phantom.retina])
def test_a_patient_has_one_to_three_images_of_one_class(maker: Maker) -> None:
    made = maker(400, 28, 1)
    by_patient: dict[str, list[int]] = {}
    for patient, label in zip(made.patients, made.labels.tolist(), strict=True):
        by_patient.setdefault(patient, []).append(label)
    assert {len(labels) for labels in by_patient.values()} == {1, 2, 3}
    assert all(len(set(labels)) == 1 for labels in by_patient.values())


def test_a_larger_size_shows_the_same_kind_of_picture() -> None:
    small, large = phantom.chest(64, 28, 1).images, phantom.chest(64, 112, 1).images
    shrunk = large.reshape(64, 28, 4, 28, 4).mean(axis=(2, 4))
    assert abs(small.mean() - shrunk.mean()) < 3


@pytest.mark.long
def test_a_small_network_learns_the_chest_images_and_a_linear_model_clearly_less() -> None:
    torch.set_num_threads(1)
    made = phantom.chest(1600, 28, 5)
    pixels = made.images.astype(np.float32) / 255.0
    train, test = slice(0, 1200), slice(1200, 1600)
    flat = pixels.reshape(len(pixels), -1)
    linear = LogisticRegression(C=1e-2, max_iter=100).fit(flat[train], made.labels[train])
    linear_auc = roc_auc_score(made.labels[test], linear.decision_function(flat[test]))
    network_auc = roc_auc_score(made.labels[test], _scores_of_a_small_network(pixels, made.labels, train)[test])
    assert 0.6 < linear_auc < 0.85
    assert linear_auc + 0.03 < network_auc < 0.98


def _scores_of_a_small_network(pixels: np.ndarray, labels: np.ndarray, train: slice) -> np.ndarray:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.ReLU(), nn.AdaptiveAvgPool2d(4),
        nn.Flatten(), nn.Linear(512, 2),
    )  # fmt: skip
    images, targets = torch.from_numpy((pixels - pixels.mean()) / pixels.std()), torch.from_numpy(labels)
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(6):
        for batch in torch.randperm(train.stop).view(-1, 60):
            optimiser.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(network(images[batch]), targets[batch]))
            optimiser.step()
    with torch.no_grad():
        return np.asarray(network(images).softmax(1)[:, 1])
