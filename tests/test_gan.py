"""The GAN's losses at a discriminator that is known, R1, and what the two networks depend on."""
import math

import pytest
import torch

import gan


def test_the_best_discriminator_scores_two_log_two_minus_twice_jensen_shannon():
    p, q = torch.tensor([1.0, 2.0, 5.0]).double() / 8, torch.tensor([4.0, 2.0, 2.0]).double() / 8
    best = (p / q).log()  # the logit of D = p / (p + q)
    m = (p + q) / 2
    jensen_shannon = ((p * (p / m).log()).sum() + (q * (q / m).log()).sum()) / 2
    real, fake = (best.repeat_interleave((8 * v).long()) for v in (p, q))  # eight draws in exact proportion
    best_loss = 2 * math.log(2) - 2 * jensen_shannon.item()
    assert gan.discriminator_loss(real, fake).item() == pytest.approx(best_loss, abs=1e-9)
    for other in (best + 0.1, best - 0.1, 0.9 * best):
        real, fake = (other.repeat_interleave((8 * v).long()) for v in (p, q))
        assert gan.discriminator_loss(real, fake) > 2 * math.log(2) - 2 * jensen_shannon
    assert gan.discriminator_loss(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(2 * math.log(2))


def test_the_generator_loss_is_steepest_where_the_generator_fails():
    logit = torch.tensor([-10.0, 0.0, 10.0], requires_grad=True)
    for i, slope in enumerate((-1, -0.5, 0)):
        gradient, = torch.autograd.grad(gan.generator_loss(logit[i:i + 1]), logit)
        assert gradient[i].item() == pytest.approx(slope, abs=1e-4)


def test_r1_against_a_discriminator_whose_gradient_is_known():
    w, x = torch.randn(1, 1, 28, 28), torch.rand(6, 1, 28, 28, requires_grad=True)
    logits = (w * x.square()).flatten(1).sum(1)
    by_hand = (2 * w * x).square().flatten(1).sum(1).mean()
    penalty = gan.r1_penalty(logits, x)
    assert torch.allclose(penalty, by_hand)
    assert torch.allclose(torch.autograd.grad(penalty, x)[0], 8 * w.square() * x / 6)  # it can be trained on


def test_no_class_is_one_drawn_or_the_null_label_and_both_networks_depend_on_it():
    torch.manual_seed(0)
    model, D, z = gan.Generator(4, 8), gan.Discriminator(4), torch.randn(1, 8).expand(200, 8)
    of_each = torch.stack([model.sample(1, y, z[:1])[0] for y in range(11)])
    drawn = torch.cdist(model.sample(200, None, z).flatten(1), of_each.flatten(1)).argmin(1)
    assert set(drawn.tolist()) == set(range(10))  # never the null label
    y = torch.arange(5)
    assert torch.cdist(model.sample(5, y, z[:5]).flatten(1), of_each.flatten(1)).argmin(1).tolist() == y.tolist()
    model.conditional = False
    assert torch.equal(model.sample(200, None, z), model.sample(200, gan.NULL, z))
    torch.nn.init.normal_(D.label.weight)
    x = torch.rand(3, 1, 28, 28)
    assert not torch.equal(D(x, torch.tensor([1, 1, 1])), D(x, torch.tensor([1, 1, 2])))


def test_the_discriminator_sees_a_generator_that_draws_one_digit_only():
    torch.manual_seed(0)
    D, x, y = gan.Discriminator(4), torch.rand(8, 1, 28, 28), torch.zeros(8, dtype=torch.long)
    alone = D(x, y)[0]
    assert not torch.allclose(D(x[:1].expand(8, -1, -1, -1), y)[0], alone)  # the same digit in other company


def test_z_counts_by_its_direction_alone():
    torch.manual_seed(0)
    model, z = gan.Generator(4, 8), torch.randn(3, 8)
    assert torch.allclose(model.sample(3, 1, z), model.sample(3, 1, 7 * z), atol=1e-6)
    assert not torch.allclose(model.sample(3, 1, z), model.sample(3, 1, -z))
    seen = []
    model.net.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[0]))
    model.sample(3, 1, z)
    assert torch.allclose(seen[0].view(3, 2, 8).square().mean(2), torch.ones(3, 2))  # z and class on one sphere


def test_the_nearest_training_digit_is_the_one_with_the_smallest_distance():
    torch.manual_seed(0)
    x = (torch.rand(500, 1, 28, 28) * 255).byte()
    assert gan.nearest(x[[7, 300]] / 255 * 0.95, x).tolist() == [7, 300]


def test_images_that_are_all_alike_have_a_penalty_to_train_on():
    """Where the minibatch standard deviation is 0, the root of its variance must still have derivatives."""
    torch.manual_seed(0)
    D, x, y = gan.Discriminator(4), torch.rand(1, 1, 28, 28).repeat(8, 1, 1, 1).requires_grad_(), torch.arange(8)
    for images in (x, torch.rand(8, 1, 28, 28, requires_grad=True)):
        D.zero_grad()
        gan.r1_penalty(D(images, y), images).backward()
        gradients = [p.grad for p in D.parameters() if p.grad is not None]
        assert len(gradients) >= 6 and all(g.isfinite().all() and g.abs().max() < 1 for g in gradients)
