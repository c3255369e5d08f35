"""The chunked loss equals PyTorch's on the whole logits, in value and in gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pretrain import loss
from pretrain.loss import linear_cross_entropy


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_value_and_gradients_equal_the_plain_loss(chunk):
    torch.manual_seed(0)
    hidden = torch.randn(20, 8, requires_grad=True)
    head = torch.randn(33, 8, requires_grad=True)
    labels = torch.randint(0, 33, (20,))
    F.cross_entropy(hidden @ head.T, labels, reduction="sum").div(5).backward()
    expected = hidden.grad.clone(), head.grad.clone()
    hidden.grad = head.grad = None
    total, losses = linear_cross_entropy(hidden, labels, head, chunk=chunk)
    (total / 5).backward()
    torch.testing.assert_close(losses, F.cross_entropy(hidden @ head.T, labels, reduction="none"))
    torch.testing.assert_close(hidden.grad, expected[0])
    torch.testing.assert_close(head.grad, expected[1])


def test_a_head_in_parts_is_one_head_and_frozen_parts_get_no_gradient():
    torch.manual_seed(1)
    hidden, head = torch.randn(11, 6, requires_grad=True), torch.randn(17, 6)
    labels = torch.randint(0, 17, (11,))
    whole = head.clone().requires_grad_()
    linear_cross_entropy(hidden, labels, whole, chunk=4)[0].backward()
    trained = head[5:9].clone().requires_grad_()
    parts = (head[:5], trained, head[9:])
    total, _ = linear_cross_entropy(hidden.detach(), labels, *parts, chunk=4)
    total.backward()
    torch.testing.assert_close(trained.grad, whole.grad[5:9])
    assert all(part.grad is None for part in (parts[0], parts[2]))


def test_no_gradient_is_computed_in_evaluation():
    with torch.no_grad():
        total, losses = linear_cross_entropy(torch.randn(3, 4), torch.tensor([0, 1, 2]), torch.randn(5, 4))
    assert not total.requires_grad
    torch.testing.assert_close(total, losses.sum())


def halves(rows: int = 37, vocabulary: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    return (4 * torch.randn(rows, vocabulary)).bfloat16(), torch.randint(0, vocabulary, (rows, 1))


@pytest.mark.parametrize("function", [loss.in_blocks_, loss.fusable_])
def test_bfloat16_logits_are_rewritten_with_their_gradient_as_precisely_as_they_hold_it(function, monkeypatch):
    monkeypatch.setattr(loss, "BLOCK", 200)  # four rows
    logits, target = halves()
    exact = logits.float().requires_grad_()
    wanted = F.cross_entropy(exact, target[:, 0], reduction="none")
    wanted.sum().backward()
    losses, totals = function(logits, target)
    assert logits.dtype == torch.bfloat16 and losses.dtype == totals.dtype == torch.float32
    torch.testing.assert_close(losses, wanted.detach())
    torch.testing.assert_close(logits.float() / totals, exact.grad, rtol=2**-8, atol=1e-6)


def test_the_loss_in_bfloat16_is_that_of_the_rounded_logits():
    torch.manual_seed(3)
    hidden, head = torch.randn(20, 8).bfloat16().requires_grad_(), torch.randn(33, 8).bfloat16().requires_grad_()
    labels = torch.randint(0, 33, (20,))
    F.cross_entropy((hidden @ head.T).float(), labels, reduction="sum").backward()
    expected = hidden.grad.clone(), head.grad.clone()
    hidden.grad = head.grad = None
    total, losses = linear_cross_entropy(hidden, labels, head[:11], head[11:], chunk=7)
    total.backward()
    torch.testing.assert_close(losses, F.cross_entropy((hidden @ head.T).float(), labels, reduction="none").detach())
    torch.testing.assert_close(hidden.grad, expected[0], rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(head.grad, expected[1], rtol=2e-2, atol=2e-2)


def broken(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    raise RuntimeError("no compiler here")


def wrong(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    losses, totals = loss.fusable_(logits, target)
    return losses + 0.01, totals


@pytest.mark.parametrize("compiled", [loss.fusable_, broken, wrong])
def test_a_compiled_loss_is_taken_where_it_gives_the_plain_ones_numbers(compiled):
    chosen = loss.checked(compiled, "cpu")
    assert chosen is (compiled if compiled is loss.fusable_ else loss.in_blocks_)
    assert loss.of_half("cpu") is loss.in_blocks_
