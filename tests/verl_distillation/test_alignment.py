"""What the teacher reads, where its answer goes, what is learnt from it: values worked out by hand."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from verl_distillation.alignment import (
    ABSENT,
    advantage,
    fix_extended,
    mask_extended,
    mask_rows,
    plan,
    realign,
)

START = 100  # ids from here on are the extended vocabulary


def test_the_teacher_reads_base_tokens_only_and_extended_ones_are_not_learnt():
    # prompt 7 8, response 9 [150] 10 11: the teacher reads positions 0 1 2 4 5.
    asked = plan([7, 8], [9, 150, 10, 11], [1, 1, 1, 1], START, mask_response=False)
    assert asked.places == [0, 1, 2, 4, 5]
    assert asked.learn == [True, False, True, True]


def test_one_extended_token_masks_the_whole_response_when_asked_and_the_teacher_is_not_bothered():
    asked = plan([7, 8], [9, 150, 10], [1, 1, 1], START, mask_response=True)
    assert asked.places == [] and asked.learn == [False, False, False]
    # One in the prompt does not: it is only hidden.
    asked = plan([7, 150, 8], [9, 10], [1, 1], START, mask_response=True)
    assert asked.places == [0, 2, 3, 4] and asked.learn == [True, True]


def test_forced_tokens_are_read_but_not_learnt():
    asked = plan([7], [8, 9, 10], [0, 1, 0], START, mask_response=False)
    assert asked.places == [0, 1, 2, 3] and asked.learn == [False, True, False]


def test_a_token_with_nothing_before_it_that_the_teacher_can_read_is_not_learnt():
    asked = plan([150, 151], [9, 10], [1, 1], START, mask_response=False)
    assert asked.places == [2, 3] and asked.learn == [False, True]


def test_teacher_rows_go_where_their_tokens_are():
    # 7 8 9 [150] 10 11; the teacher read 7 8 9 10 11. Its row j is the log-probability of what it read next.
    ids = torch.tensor([[8], [9], [10], [11], [0]])
    logprobs = torch.tensor([[-0.8], [-0.9], [-1.0], [-1.1], [0.0]])
    all_ids, all_logprobs = realign([0, 1, 2, 4, 5], ids, logprobs, 6, START)
    # Row t belongs to token t + 1: token 150 stands at 3, so row 2 is absent, and row 3 is of token 10.
    assert all_ids[:, 0].tolist() == [8, 9, 0, 10, 11, 0]
    assert all_logprobs[:, 0].tolist() == pytest.approx([-0.8, -0.9, ABSENT, -1.0, -1.1, ABSENT])


def test_minus_infinity_from_the_teacher_stands_for_no_answer():
    ids = torch.tensor([[5, 6], [7, 8], [0, 0]])
    logprobs = torch.tensor([[-0.5, float("-inf")], [float("nan"), float("-inf")], [0.0, 0.0]])
    all_ids, all_logprobs = realign([0, 1, 2], ids, logprobs, 3, START)
    assert all_ids.tolist() == [[5, 0], [0, 0], [0, 0]]
    assert all_logprobs.tolist() == [[-0.5, ABSENT], [ABSENT, ABSENT], [ABSENT, ABSENT]]
    *_, mask = mask_rows([True, True], all_ids, all_logprobs)
    assert mask == [1, 0]


def test_padding_rows_of_the_teachers_head_are_not_itemic_tokens():
    # A base LLM's head is padded past its last token: what it says there has the ids of the student's itemic tokens.
    ids = torch.tensor([[5, START, 6], [START + 1, 7, START + 2], [0, 0, 0]], dtype=torch.int32)
    logprobs = torch.tensor([[-0.1, -3.0, -4.0], [-0.2, -0.5, -6.0], [0.0, 0.0, 0.0]])
    all_ids, all_logprobs = realign([0, 1, 2], ids, logprobs, 3, START)
    assert all_ids[:2].tolist() == [[5, 0, 6], [0, 7, 0]]
    assert all_logprobs[:2].flatten().tolist() == pytest.approx([-0.1, ABSENT, -4.0, ABSENT, -0.5, ABSENT])
    # An anchor's teacher is the student itself: it means them.
    all_ids, _ = realign([0, 1, 2], ids, logprobs, 3, sys.maxsize)
    assert all_ids[:2].tolist() == ids[:2].tolist()


def test_only_rows_of_learnt_tokens_keep_their_values():
    ids, logprobs = torch.tensor([[1], [2], [3], [0]]), torch.tensor([[-1.0], [-2.0], [-3.0], [ABSENT]])
    ids, logprobs, mask = mask_rows([True, False, True], ids, logprobs)  # one prompt token, three of the response
    assert mask == [1, 0, 1]
    assert ids[:, 0].tolist() == [1, 0, 3, 0]
    assert logprobs[:, 0].tolist() == [-1.0, ABSENT, -3.0, ABSENT]


def test_a_response_without_signal_stays_in_the_batch_with_a_signal_of_exactly_zero():
    ids, logprobs = torch.tensor([[1], [2], [0]]), torch.tensor([[-1.0], [-2.0], [0.0]])
    _, logprobs, mask = mask_rows([False, False], ids, logprobs)
    assert mask == [1, 0]
    assert advantage(torch.tensor([[-9.0], [-9.0], [-9.0]]), logprobs, -30, 5).abs().max() == 0


def test_advantages_are_minus_the_log_ratio_cut_to_their_range():
    student = torch.tensor([-1.0, -1.0, -9.0, -0.1, -2.0])
    teacher = torch.tensor([-1.5, -40.0, -1.0, ABSENT, -2.0])
    assert advantage(student, teacher, -30.0, 5.0).tolist() == pytest.approx([-0.5, -30.0, 5.0, 0.0, 0.0])


def test_the_student_is_compared_over_the_ids_that_the_teacher_has():
    # Probabilities 1/8, 3/8 of base ids and 1/2 of an extended one: 1/4 and 3/4 without it.
    logits = torch.tensor([[math.log(1.0), math.log(3.0), math.log(4.0)]])
    logprobs = mask_extended(logits, 2).log_softmax(-1)
    assert logprobs[0, :2].exp().tolist() == pytest.approx([0.25, 0.75])
    assert torch.isfinite(logprobs).all()


def test_gradients_of_base_tokens_leave_the_extended_ones_alone():
    """The policy gradient of masked rows may not push probability into tokens that nobody scores."""
    weight = torch.zeros(1, 3, requires_grad=True)
    logprobs = mask_extended(weight * 1.0, 2).log_softmax(-1)
    (4.0 * logprobs[0, 0]).backward()  # minus an advantage of -4 on a base token
    assert weight.grad[0].tolist() == pytest.approx([2.0, -2.0, 0.0])


def test_fixed_extended_logits_stay_in_the_softmax_and_get_no_gradient():
    weight = torch.zeros(1, 4, requires_grad=True)
    logprobs = fix_extended(weight * 1.0, 2).log_softmax(-1)
    assert logprobs[0, 0].item() == pytest.approx(math.log(1 / 4))
    (-logprobs[0, 0]).backward()  # base tokens together take mass from the extended ones
    assert weight.grad[0].tolist() == pytest.approx([-0.75, 0.25, 0.0, 0.0])


def test_rows_whose_teacher_has_the_extended_ids_keep_their_gradient():
    weight = torch.zeros(2, 4, requires_grad=True)
    taught = torch.tensor([[False], [True]])
    (-fix_extended(weight * 1.0, 2, taught).log_softmax(-1)[:, 0].sum()).backward()
    assert weight.grad[0].tolist() == pytest.approx([-0.75, 0.25, 0.0, 0.0])
    assert weight.grad[1].tolist() == pytest.approx([-0.75, 0.25, 0.25, 0.25])


class TestAgainstTransformers:
    """With real models: a student of 40 base ids and 14 itemic ones, a teacher of 40 (48 rows)."""

    @pytest.fixture(scope="class")
    @staticmethod
    def teacher():
        from transformers import Qwen3Config, Qwen3ForCausalLM

        torch.manual_seed(1)
        config = Qwen3Config(
            vocab_size=48,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=256,
            initializer_range=0.3,
        )
        return Qwen3ForCausalLM(config).eval()

    @staticmethod
    def score(model, ids):
        """What verl's teacher server answers: ids and log-probabilities [n, 1], a dummy row last."""
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        rows = [logprobs[j, ids[j + 1]].item() for j in range(len(ids) - 1)]
        return torch.tensor([[i] for i in [*ids[1:], 0]]), torch.tensor([[r] for r in [*rows, 0.0]])

    def signal(self, student, teacher, prompt, response, start):
        """Advantages of the response's rows and their mask, as in a run, and the student's log-probabilities."""
        sequence = [*prompt, *response]
        asked = plan(prompt, response, [1] * len(response), start, mask_response=False)
        ids, logprobs = realign(
            asked.places, *self.score(teacher, [sequence[i] for i in asked.places]), len(sequence), start
        )
        _, logprobs, mask = mask_rows(asked.learn, ids, logprobs)
        logits = mask_extended(student(torch.tensor([sequence])).logits[0] * 1.0, start)
        own = logits[:-1].log_softmax(-1).gather(1, torch.tensor(sequence[1:])[:, None])[len(prompt) - 1 :, 0]
        return advantage(own, logprobs[len(prompt) - 1 : -1, 0], -30.0, 5.0), torch.tensor(mask), own

    def test_a_student_that_is_its_teacher_gets_no_signal(self, toy_model, toy_spec):
        first = toy_spec.first_id
        # Over the ids that both have: the teacher is the student without its itemic rows.
        adv, mask, _ = self.signal(toy_model, _Without(toy_model, first), [3, 4, 5], [6, 7, 8, 9], first)
        assert mask.tolist() == [1, 1, 1, 1] and adv.abs().max() < 1e-5

    def test_values_equal_a_direct_computation_and_gradients_are_finite(self, toy_model, teacher, toy_spec):
        first = toy_spec.first_id
        prompt, response = [3, first + 1, 4], [6, first + 5, 47 - 10, 8]
        adv, mask, own = self.signal(toy_model, teacher, prompt, response, first)
        assert mask.tolist() == [1, 0, 1, 1]
        # Directly: the teacher without the two itemic tokens, the student over its first 40 ids.
        with torch.no_grad():
            theirs = teacher(torch.tensor([[3, 4, 6, 37, 8]])).logits[0].log_softmax(-1)
            ours = toy_model(torch.tensor([prompt + response])).logits[0, :, :first].log_softmax(-1)
        expected = [
            theirs[1, 6] - ours[2, 6],
            torch.tensor(0.0),
            theirs[2, 37] - ours[4, 37],
            theirs[3, 8] - ours[5, 8],
        ]
        assert adv.tolist() == pytest.approx([value.item() for value in expected], abs=1e-5)
        toy_model.zero_grad()
        (-(adv * own) * mask).sum().backward()
        grads = [p.grad for p in toy_model.parameters() if p.grad is not None]
        assert grads and all(torch.isfinite(g).all() for g in grads) and any(g.abs().max() > 0 for g in grads)
        toy_model.zero_grad()


class _Without:
    """A model whose vocabulary ends before ``start``."""

    def __init__(self, model, start):
        self.model, self.start = model, start

    def __call__(self, ids):
        output = self.model(ids)
        output.logits = output.logits[..., : self.start]
        return output
