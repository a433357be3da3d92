"""Both losses are those of PyTorch, and their gradients by the scores are autograd's."""

import pytest
import torch
from torch.nn import functional

from client.losses import score_gradients, summed_loss

SCORES = torch.tensor([[0.5, -2.0, 1.0], [30.0, -40.0, 0.0], [0.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([0, 2, 1]),
        torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0]]),
        torch.tensor([[1, -1, 1], [-1, -1, 0], [-1, -1, -1]]),
    ],
)
def test_the_closed_form_is_the_gradient_of_the_loss(labels: torch.Tensor) -> None:
    scores = SCORES.clone().requires_grad_()
    summed_loss(scores, labels).backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    assert torch.allclose(score_gradients(SCORES, labels), scores.grad, atol=1e-6)


def test_of_several_labels_each_counts_for_itself() -> None:
    labels = torch.tensor([[1, 0, 1]])
    alone = [functional.softplus(-SCORES[0, place] if labels[0, place] else SCORES[0, place]) for place in range(3)]
    assert torch.allclose(summed_loss(SCORES[:1], labels), torch.stack(alone).sum())


def test_a_label_that_is_not_known_adds_nothing_whatever_its_score() -> None:
    labels = torch.tensor([[1, -1, 0]])
    known = functional.softplus(-SCORES[0, 0]) + functional.softplus(SCORES[0, 2])
    for score in (0.0, 1e30, float("inf"), float("nan")):
        scores = SCORES[:1].clone()
        scores[0, 1] = score
        assert torch.allclose(summed_loss(scores, labels), known)
        gradient = score_gradients(scores, labels)[0]
        assert gradient[1] == 0.0
        assert torch.isfinite(gradient).all()
