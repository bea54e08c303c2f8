"""The energy-based model against exact answers: a Gaussian, sums over classes and images, stored chains."""
import contextlib
import math

import pytest
import torch

import data
import ebm


class Quadratic:
    """E(x, y) = k ‖x − m‖² / 2."""

    def __init__(self, k, m):
        self.k, self.m = k, m

    def energy(self, x, y=None):
        return self.k * (x - self.m).square().flatten(1).sum(1) / 2


def model_of(channels=2, std=0.3, **more):
    """Random weights everywhere, in float64."""
    torch.manual_seed(0)
    model = ebm.EBM(channels, **more).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    return model


def test_langevin_dynamics_samples_a_gaussian():
    """At noise² = 2 λ T the density is exp(−E / T) up to an error that falls with λ. Gradients are clipped
    at 0.1, too little to hold a narrow Gaussian in [0, 1] at T = 1; hence the energy below, at T = var k."""
    torch.manual_seed(0)
    k, m, var, step_size = 0.4, 0.5, 0.05**2, 0.1
    x = torch.rand(200, 1, 10, 10)
    x = ebm.langevin(Quadratic(k, m), x, None, 250, step_size, math.sqrt(2 * step_size * var * k))
    exact = var / (1 - step_size * k / 2)  # of steps of this size; var as step_size goes to 0
    assert exact == pytest.approx(var, rel=0.03)
    assert x.mean().item() == pytest.approx(m, abs=4 * math.sqrt(var / x.numel()))
    assert x.var().item() == pytest.approx(exact, rel=4 * math.sqrt(2 / x.numel()))
    fourth = (x - x.mean()).pow(4).mean().item() / x.var().item() ** 2  # 3 for a Gaussian
    assert fourth == pytest.approx(3, abs=4 * math.sqrt(24 / x.numel()))


def test_noise_squared_2_step_size_is_a_chain_of_p():
    """In the middle of [0, 1], with E a line of slope 0.05, a step is that of the equation in the opening."""
    class Line:
        def energy(self, x, y):
            return 0.05 * x.flatten(1).sum(1)
    step_size, x = 1e-4, torch.full((100, 1, 28, 28), 0.5)
    steps = ebm.langevin(Line(), x, None, 4, step_size, math.sqrt(2 * step_size)) - 0.5
    assert steps.mean().item() == pytest.approx(-4 * step_size * 0.05, abs=4 * math.sqrt(8e-4 / x.numel()))
    assert steps.var().item() == pytest.approx(8e-4, rel=4 * math.sqrt(2 / x.numel()))


def test_one_step_is_clipped_and_stays_between_0_and_1():
    x = torch.full((1, 1, 2, 2), 0.5)
    for slope, step in (1000.0, 0.1), (-1000.0, -0.1), (0.05, 0.05):
        class Line:
            def energy(self, x, y):
                return slope * x.flatten(1).sum(1)
        walked = ebm.langevin(Line(), x, None, 1, noise=0)
        assert torch.allclose(walked, torch.full_like(x, 0.5 - step))
        walked = ebm.langevin(Line(), x, None, 1, step_size=0.5, noise=0)
        assert torch.allclose(walked, torch.full_like(x, 0.5 - step / 2))
        end = ebm.langevin(Line(), x, None, 11, noise=0)
        assert (end == (0 if slope > 0 else 1)).all()
    noisy = ebm.langevin(Quadratic(0, 0), x, None, 5, noise=3.0)
    assert noisy.min() >= 0 and noisy.max() <= 1


def test_known_pixels_stay_and_frames_are_kept():
    torch.manual_seed(0)
    x, known, frames = torch.rand(3, 1, 4, 4), torch.arange(4).view(4, 1) < 2, []
    walked = ebm.langevin(Quadratic(1, 0.3), x, None, 7, known=known, frames=frames)
    assert len(frames) == 7 and torch.equal(frames[-1], walked)
    for v in frames:
        assert torch.equal(v[:, :, :2], x[:, :, :2]) and (v[:, :, 2:] != x[:, :, 2:]).all()


def test_without_noise_it_is_descent():
    model, frames = model_of(), []
    x, y = torch.rand(5, 1, 28, 28).double(), torch.arange(5)
    ebm.langevin(model, x, y, 20, step_size=0.02, noise=0, frames=frames)
    e = torch.stack([model.energy(v, y) for v in (x, *frames)])
    assert (e[1:] < e[:-1]).all()
    by_hand = x.clone().requires_grad_()
    gradient, = torch.autograd.grad(model.energy(by_hand, y).sum(), by_hand)
    assert torch.allclose(frames[0], (x - 0.02 * gradient.clamp(-0.1, 0.1)).clamp(0, 1))
    end = ebm.langevin(Quadratic(1, 0.3), x, y, 200, step_size=0.1, noise=0)
    assert torch.allclose(end, torch.full_like(x, 0.3), atol=1e-4)


def test_the_energy_of_an_image_is_the_sum_over_its_classes():
    model, x = model_of(), torch.rand(5, 1, 28, 28).double()
    e = model.energies(x)
    assert e.shape == (5, 11)
    assert torch.allclose((-e[:, 10].double()).exp(), (-e[:, :10].double()).exp().sum(1), rtol=1e-5)
    for y in range(11):
        assert torch.equal(model.energy(x, y), e[:, y])
    assert torch.equal(model.energy(x), e[:, ebm.NULL])
    y = torch.tensor([3, 1, 4, 10, 5])
    assert torch.equal(model.energy(x, y), e[range(5), y])


def test_p_of_y_given_x_is_bayes_rule():
    """Over 40 images and ten classes, Z and all of p(x, y) are sums."""
    model = model_of()
    x = torch.rand(40, 1, 28, 28).double()
    e = model.energies(x).double()
    joint = (-torch.stack([model.energy(x, y).double() for y in range(10)], 1)).exp()
    joint = joint / joint.sum()
    assert torch.allclose(joint / joint.sum(1, keepdim=True), (e[:, 10:] - e[:, :10]).exp(), rtol=1e-5)
    assert torch.allclose(joint.sum(1), (-e[:, 10]).softmax(0), rtol=1e-5)
    assert joint.sum(1).max() > 1.2 * joint.sum(1).min()


def test_the_replay_buffer_gives_chains_back_as_they_were_stored():
    torch.manual_seed(0)
    buffer, stored = ebm.ReplayBuffer(22), torch.randint(256, (22, 1, 28, 28), dtype=torch.uint8)
    buffer.x[torch.arange(22)] = (255 * (stored / 255)).round().byte()  # as `main` stores
    i, fresh = torch.randint(22, (4000,)), []
    for part in i.split(500):
        x, y = buffer.draw(part)
        assert torch.equal(y, part % 11) and x.min() >= 0 and x.max() <= 1
        same = (x == stored[part] / 255).flatten(1).all(1)
        fresh.append(x[~same])
    fresh = torch.cat(fresh)
    assert len(fresh) / 4000 == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 4000))
    assert fresh.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / fresh.numel()))
    assert fresh.var().item() == pytest.approx(1 / 12, rel=0.02)
    assert buffer.y.bincount().tolist() == [2] * 11
    assert (ebm.ReplayBuffer(22, conditional=False).draw(torch.arange(22))[1] == ebm.NULL).all()


class Enough(Exception):
    """The gradient is there: training can end."""


@pytest.mark.parametrize("dropout", [0, 0.3, 1])
def test_the_loss_has_the_gradient_of_the_log_likelihood(dropout, monkeypatch, tmp_path):
    """Over a finite set of images Z is a sum. With draws of p(x | y) as chains, the gradient of `main`'s
    loss is that of −log p(x | y), up to the error of a mean over chains, plus the cross-entropy's."""
    torch.manual_seed(0)
    every, B, kept = torch.randint(256, (30, 1, 28, 28)) / 255, 2000, {}

    class Kept(ebm.EBM):
        def __init__(self, *args):
            super().__init__(*args)
            for p in self.parameters():
                torch.nn.init.normal_(p, std=0.3)
            kept["model"] = self

        def energies(self, x):
            kept["x"] = x
            return super().energies(x)

    def exact_chains(model, x, y, steps):
        e = -torch.stack([model.energy(every, d) for d in range(11)]).detach()
        kept.update(y=y, i=torch.multinomial(e.softmax(1)[y], 1)[:, 0])
        return every[kept["i"]]

    def labels_of(y, rate):
        kept["labels"] = drop_labels(y, rate)
        return kept["labels"]

    def stop(*_):
        raise Enough

    def buffer_of(*args):
        kept["buffer"] = ReplayBuffer(*args)
        return kept["buffer"]
    drop_labels, ReplayBuffer, digits = ebm.drop_labels, ebm.ReplayBuffer, data.stand_in_digits(3000, 0)
    for name, value in {"EBM": Kept, "langevin": exact_chains, "drop_labels": labels_of,
                        "ReplayBuffer": buffer_of, "mnist": lambda *_: (*digits, *digits, "drawn")}.items():
        monkeypatch.setattr(ebm, name, value)
    monkeypatch.setattr(ebm.Run, "autocast", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", stop)
    with pytest.raises(Enough):
        ebm.main(["--channels", "1", "--batch-size", str(B), "--energy-penalty", "0", "--label-dropout",
                  str(dropout), "--device", "cpu", "--out", str(tmp_path)])
    model, y, labels, real = (kept[k] for k in ("model", "y", "labels", "x"))
    assert (labels == ebm.NULL).float().mean().item() == pytest.approx(dropout, abs=0.05)
    assert dropout < 1 or (y == ebm.NULL).all()
    stored = {(255 * v).round().byte().numpy().tobytes() for v in every}
    assert sum(v.numpy().tobytes() in stored for v in kept["buffer"].x) > 1000  # `main` stored the chains

    def flat(loss):
        gradient = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
        return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten()
                          for g, p in zip(gradient, model.parameters())])
    got = torch.cat([p.grad.flatten() for p in model.parameters()])
    e, e_real = model.energies(every), model.energies(real[:B])  # (30, 11), (B, 11)
    log_p = -e_real.gather(1, labels[:, None])[:, 0].mean() - (-e).logsumexp(0)[y].mean()
    classified = labels != ebm.NULL
    log_p_class = (e_real[:, 10] - e_real.gather(1, labels[:, None])[:, 0])[classified].sum() / B
    exact = flat(-log_p - log_p_class)
    each = torch.stack([flat(v) for v in e.T.flatten()]).view(11, 30, -1)  # gradient of each E(x, y)
    p = (-e).softmax(0).T.detach()[:, :, None]
    variance = ((p * each.square()).sum(1) - (p * each).sum(1).square()).sum(1)[y].mean().item()
    error = math.sqrt(variance / B)
    assert (got - exact).norm().item() < 3 * error < 0.2 * exact.norm().item()


def test_samples_are_langevin_dynamics_from_noise():
    model = model_of(sample_steps=3).float()
    y = torch.arange(120) % 10
    torch.manual_seed(1)
    x = model.sample(120, y)
    torch.manual_seed(1)
    start, parts = torch.rand(120, 1, 28, 28), []
    for at in (0, 100):
        v = start[at:at + 100]
        for _ in range(3):
            v = v.clone().requires_grad_()
            gradient, = torch.autograd.grad(model.energy(v, y[at:at + 100]).sum(), v)
            v = (v.detach() - gradient.clamp(-0.1, 0.1) + 0.005 * torch.randn_like(v)).clamp(0, 1)
        parts.append(v)
    assert torch.allclose(x, torch.cat(parts), atol=1e-5)


def test_an_unconditional_model_ignores_the_class():
    same = []
    for conditional in (False, True):
        model, samples = model_of(sample_steps=3, conditional=conditional).float(), []
        for y in (3, 8):
            torch.manual_seed(0)
            samples.append(model.sample(4, y))
        same.append(torch.equal(*samples))
    assert same == [True, False]
    assert (model_of(conditional=False).labels(None, 50) == ebm.NULL).all()
    drawn = model_of().labels(None, 5000).bincount(minlength=11) / 5000
    assert drawn.tolist() == pytest.approx([0.1] * 10 + [0], abs=4 * (0.09 / 5000) ** 0.5)
