"""The GAN's losses at a critic that is known, and the penalty on its slope."""
import math

import pytest
import torch

import gan


def test_the_best_critic_scores_two_log_two_minus_twice_jensen_shannon():
    p, q = torch.tensor([1.0, 2.0, 5.0]).double() / 8, torch.tensor([4.0, 2.0, 2.0]).double() / 8
    best = (p / q).log()  # the logit of D = p / (p + q)
    m = (p + q) / 2
    jensen_shannon = ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2
    real, fake = (best.repeat_interleave((8 * v).long()) for v in (p, q))  # eight draws in exact proportion
    assert gan.critic_loss(real, fake).item() == pytest.approx(2 * math.log(2) - 2 * jensen_shannon.item(), abs=1e-9)
    for other in (best + 0.1, best - 0.1, 0.9 * best):
        real, fake = (other.repeat_interleave((8 * v).long()) for v in (p, q))
        assert gan.critic_loss(real, fake) > 2 * math.log(2) - 2 * jensen_shannon
    assert gan.critic_loss(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(2 * math.log(2))


def test_the_generator_loss_is_steepest_where_the_forger_fails():
    logit = torch.tensor([-10.0, 0.0, 10.0], requires_grad=True)
    for i, slope in enumerate((-1, -0.5, 0)):
        gradient, = torch.autograd.grad(gan.generator_loss(logit[i:i + 1]), logit)
        assert gradient[i].item() == pytest.approx(slope, abs=1e-4)


def test_slope_against_a_critic_whose_gradient_is_known():
    w, x = torch.randn(1, 1, 28, 28), torch.rand(6, 1, 28, 28, requires_grad=True)
    logits = (w * x.square()).flatten(1).sum(1)
    by_hand = (2 * w * x).square().flatten(1).sum(1).mean()
    penalty = gan.slope(logits, x)
    assert torch.allclose(penalty, by_hand)
    assert torch.allclose(torch.autograd.grad(penalty, x)[0], 8 * w.square() * x / 6)  # it can be trained on


def test_class_not_told_is_class_10_and_the_critic_hears_the_class():
    torch.manual_seed(0)
    model, critic, z = gan.Generator(4, 8), gan.Critic(4), torch.randn(3, 8)
    assert torch.equal(model.sample(3, None, z), model.sample(3, 10, z))
    assert not torch.equal(model.sample(3, None, z), model.sample(3, 2, z))
    torch.nn.init.normal_(critic.label.weight)
    x = torch.rand(3, 1, 28, 28)
    assert not torch.equal(critic(x, torch.tensor([1, 1, 1])), critic(x, torch.tensor([1, 1, 2])))


def test_the_critic_sees_a_generator_that_draws_one_digit_only():
    torch.manual_seed(0)
    critic, x, y = gan.Critic(4), torch.rand(8, 1, 28, 28), torch.zeros(8, dtype=torch.long)
    alone = critic(x, y)[0]
    assert not torch.allclose(critic(x[:1].expand(8, -1, -1, -1), y)[0], alone)  # the same digit in other company


def test_nearest_finds_the_closest_training_digit():
    torch.manual_seed(0)
    x = (torch.rand(50, 1, 28, 28) * 255).byte()
    assert gan.nearest(x[[7, 3]] / 255 * 0.95, x).tolist() == [7, 3]
