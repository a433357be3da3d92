"""Both losses are those of PyTorch, and their gradients by the scores are autograd's."""

import pytest
import torch
from torch.nn import functional

from client.losses import score_gradients, summed_loss

SCORES = torch.tensor([[0.5, -2.0, 1.0], [30.0, -40.0, 0.0], [0.0, 0.0, 0.0]])


@pytest.mark.parametrize("labels", [torch.tensor([0, 2, 1]), torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0]])])
def test_the_closed_form_is_the_gradient_of_the_loss(labels: torch.Tensor) -> None:
    scores = SCORES.clone().requires_grad_()
    summed_loss(scores, labels).backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    assert torch.allclose(score_gradients(SCORES, labels), scores.grad, atol=1e-6)


def test_of_several_labels_each_counts_for_itself() -> None:
    labels = torch.tensor([[1, 0, 1]])
    alone = [functional.softplus(-SCORES[0, place] if labels[0, place] else SCORES[0, place]) for place in range(3)]
    assert torch.allclose(summed_loss(SCORES[:1], labels), torch.stack(alone).sum())
