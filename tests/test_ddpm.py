"""DDPM: q step by step, Bayes' rule on a grid, samplers and bound where the best guess is known."""

import functools
import math

import pytest
import torch
from chapters import TINY, check_samples, digits, edited, short_run
from torch.distributions import Normal, kl_divergence

import ddpm

BETA = torch.cat([torch.zeros(1), torch.linspace(1e-4, 0.02, 1000)]).double().view(-1, 1, 1, 1)
ALPHA_BAR = (1 - BETA).cumprod(0)  # for t = 0 to T, in float64
NO_CLASS = torch.zeros(20_000, dtype=torch.long)


def oracle(guess, T=1000, classes=10):
    """A DDPM that knows what there is to know: `guess` gives x̂_0 from x_t and ᾱ_t."""
    torch.manual_seed(0)
    model = ddpm.DDPM(8, T, classes)
    model.calls = []

    def noise(x, t, y):
        model.calls.append((t.tolist(), y.tolist()))
        alpha_bar = model.alpha_bar[t]
        return (x - alpha_bar.sqrt() * guess(x, alpha_bar)) / (1 - alpha_bar).sqrt()

    model.network.forward = noise
    return model


def some_digits(n=4):
    return ddpm.to_pixels(digits()[0][:n])


def close(ours, expected, rtol=0.0, atol=0.0):
    torch.testing.assert_close(ours.double(), expected.double(), rtol=rtol, atol=atol)


def test_noise_at_once_is_noise_step_by_step():
    model, x0 = ddpm.DDPM(8), torch.tensor([-1.0, 0.3, 1.0]).view(3, 1, 1, 1)
    mean, variance = x0.double(), torch.zeros(3, 1, 1, 1)
    for t in range(1, 1001):
        mean = (1 - BETA[t]).sqrt() * mean
        variance = (1 - BETA[t]) * variance + BETA[t]
        times = torch.full((3,), t)
        close(model.add_noise(x0, times, 0 * x0), mean, rtol=1e-3)
        close(model.add_noise(0 * x0, times, torch.ones_like(x0)) ** 2, variance, rtol=1e-3)
    close(model.add_noise(x0, 0, torch.randn_like(x0)), x0)  # t = 0: the image


def test_the_table_of_the_opening():
    rows = [line.split() for line in ddpm.__doc__.splitlines()]
    table = {
        row[0]: [float(number) for number in row[1:6]]
        for row in rows
        if len(row) > 5 and row[0] in ("t", "√ᾱ_t", "√(1−ᾱ_t)")
    }
    alpha_bar = ALPHA_BAR[[int(t) for t in table["t"]]].flatten()
    close(torch.tensor(table["√ᾱ_t"]), alpha_bar.sqrt(), atol=6e-4)
    close(torch.tensor(table["√(1−ᾱ_t)"]), (1 - alpha_bar).sqrt(), atol=6e-4)


@pytest.mark.parametrize("t", [2, 3, 40, 999])
def test_the_right_step_back_is_bayes_rule(t):
    x0, x_t = -0.7, torch.tensor(0.4).double()
    before = torch.linspace(-6, 6, 200_001).double()  # x_{t−1}
    forward = Normal((1 - BETA[t]).sqrt().flatten() * before, BETA[t].sqrt().flatten())
    prior = Normal(ALPHA_BAR[t - 1].sqrt().item() * x0, (1 - ALPHA_BAR[t - 1]).sqrt().item())
    p = (forward.log_prob(x_t) + prior.log_prob(before)).softmax(0)
    mean = (p * before).sum()
    ours = ddpm.DDPM(8).posterior(x_t, t, x0)
    close(ours[0].squeeze(), mean, atol=2e-4)
    close(ours[1].squeeze(), (p * (before - mean) ** 2).sum(), rtol=2e-3)


def test_the_step_back_in_terms_of_noise_is_line_4_of_algorithm_2():
    model, x0 = ddpm.DDPM(8), 0.9 * some_digits()
    for t in (1, 2, 100, 600, 1000):
        eps = torch.randn_like(x0)
        x = model.add_noise(x0, t, eps)
        guess = model.predict_x0(x, t, eps)
        close(guess, x0, atol=1e-3)
        line_4 = (x - BETA[t] / (1 - ALPHA_BAR[t]).sqrt() * eps) / (1 - BETA[t]).sqrt()
        close(model.posterior(x, t, guess)[0], line_4, atol=5e-4)
    assert model.predict_x0(x, 1000, -9 * x).abs().max() == 1  # never beyond black and white


def test_training_asks_for_the_noise_at_each_t_from_1_to_T():
    model, x0 = oracle(lambda x, alpha_bar: 0.3, T=5), torch.full((5000, 1, 2, 2), 0.3)
    assert model.loss(x0, NO_CLASS[:5000]) < 1e-8  # who knows x_0 knows the noise
    counts = torch.tensor(model.calls[0][0]).bincount()
    assert len(counts) == 6 and counts[0] == 0 and counts[1:].min() > 850
    wrong_by_1 = oracle(lambda x, alpha_bar: 0.3 + (1 / alpha_bar - 1).sqrt(), T=5)
    assert wrong_by_1.loss(x0, NO_CLASS[:5000]).item() == pytest.approx(1, rel=1e-3)


@torch.no_grad()
def test_the_network_looks_at_time_and_class_image_by_image():
    torch.manual_seed(0)
    network = ddpm.DDPM(8).network
    for weights in network.parameters():
        torch.nn.init.normal_(weights, std=0.1)
    x, t, y = torch.randn(2, 1, 28, 28), torch.tensor([3, 900]), torch.tensor([1, 4])
    noise = network(x, t, y)
    for other in (network(x, t, torch.tensor([10, 4])), network(x, torch.tensor([30, 900]), y)):
        assert (other[0] - noise[0]).abs().max() > 1e-4
        close(other[1], noise[1], atol=1e-5)


def test_algorithm_2_draws_the_only_image_there_is():
    image = some_digits(1)
    model = oracle(lambda x, alpha_bar: image)
    samples = model.sample(torch.arange(3))
    times = torch.tensor([times for times, _ in model.calls])
    assert torch.equal(times, torch.arange(1000, 1, -1)[:, None].expand(-1, 3))
    assert all(y == [0, 1, 2] for _, y in model.calls)
    close(samples, (image.expand(3, -1, -1, -1) + 1) / 2, atol=0.03)


def test_algorithm_2_draws_gaussian_pixels_with_their_spread():
    s2 = 0.2**2  # of x_0; then the mean of x_0 given x_t is linear in x_t
    model = oracle(lambda x, a: a.sqrt() * s2 / (a * s2 + 1 - a) * x)
    samples = 2 * model.sample(NO_CLASS[:20]) - 1
    assert samples.mean().item() == pytest.approx(0, abs=0.01)
    assert samples.std().item() == pytest.approx(0.2, rel=0.03)


@torch.no_grad()
def test_the_last_step_and_L_0_are_bayes_rule_with_the_shares_of_grey_levels():
    model = ddpm.DDPM(8)
    model.histogram.copy_(torch.arange(1, 257) / 32_896)
    x1 = torch.tensor([-1.02, -0.3, 0.5, 0.999]).view(1, 1, 2, 2)
    for value, p in zip(x1.flatten().tolist(), model.last_step(x1).view(4, 256)):
        weights = []
        for k in range(256):
            distance = value - ALPHA_BAR[1].sqrt().item() * (2 * k / 255 - 1)
            weights.append((k + 1) * math.exp(-(distance**2) / (2 * BETA[1].item())))
        close(p, torch.tensor(weights) / sum(weights), rtol=1e-2, atol=1e-6)
    x0, levels = some_digits(), digits()[0][:4].long()
    torch.manual_seed(3)
    ours = ddpm.L_0(model, x0)
    torch.manual_seed(3)
    p = model.last_step(model.add_noise(x0, 1, torch.randn_like(x0)))
    by_pixel = p.view(-1, 256)[torch.arange(4 * 784), levels.flatten()]
    close(ours, -by_pixel.log().view(4, 784).sum(1), rtol=1e-4)


@torch.no_grad()
def test_L_T_and_L_between_are_the_kls_of_torch():
    x0, t = 0.8 * some_digits(), torch.tensor([2, 5, 300, 1000])
    model = oracle(lambda x, alpha_bar: x0 + 0.1)
    q = Normal(ALPHA_BAR[1000].sqrt() * x0, (1 - ALPHA_BAR[1000]).sqrt())
    close(ddpm.L_T(model, x0), kl_divergence(q, Normal(0.0, 1.0)).sum((1, 2, 3)), atol=2e-3)
    torch.manual_seed(5)
    ours = ddpm.L_between(model, x0, t, NO_CLASS[:4])
    torch.manual_seed(5)
    x = model.add_noise(x0, t, torch.randn_like(x0))
    beta, before = BETA[t], ALPHA_BAR[t - 1]
    precision = (1 - beta) / beta + 1 / (1 - before)  # of two Gaussians multiplied
    steps = []
    for image in (x0, x0 + 0.1):
        pull = (1 - beta).sqrt() * x / beta + before.sqrt() * image / (1 - before)
        steps.append(Normal(pull / precision, precision**-0.5))
    close(ours, kl_divergence(*steps).sum((1, 2, 3)), rtol=5e-3, atol=1e-4)
    knowing = oracle(lambda x, alpha_bar: x0)
    assert ddpm.L_between(knowing, x0, t, NO_CLASS[:4]).max() < 0.02  # nothing to pay for


@torch.no_grad()
def test_the_bound_is_on_average_the_sum_over_all_t():
    model, n = oracle(lambda x, alpha_bar: 0.8 * x.clamp(-1, 1), T=7), 20_000
    x0 = torch.full((n, 1, 2, 2), 0.6)
    expected = 0.0
    for t in range(2, 8):
        expected += ddpm.L_between(model, x0, torch.full((n,), t), NO_CLASS).mean()
    between = ddpm.bound(model, x0, NO_CLASS)[1]
    assert (between.mean() - expected).abs() < 6 * between.std() / n**0.5


def test_the_bound_of_coin_flips_is_hardly_above_their_entropy():
    """A coin makes each pixel dark or light; the mean of x_0 = ±a given x_t is a·tanh(…)."""
    a, n = 63 / 255, 2000  # grey levels 96 and 159
    model = oracle(lambda x, alpha_bar: a * torch.tanh(a * alpha_bar.sqrt() * x / (1 - alpha_bar)))
    model.histogram.fill_(1e-9)
    model.histogram[[96, 159]] = 0.5
    x0 = a * (2 * torch.rand(n, 1, 6, 6).round() - 1)
    nats = ddpm.bound(model, x0, NO_CLASS[:n]).sum(0)
    exact, error = 36 * math.log(2), nats.std().item() / n**0.5
    assert exact - 4 * error < nats.mean().item() < 1.03 * exact + 4 * error


def test_ddim_walks_straight_to_the_only_image_there_is():
    image = some_digits(1).sign()  # black and white
    model = oracle(lambda x, alpha_bar: image)
    model.histogram.fill_(1e-9)
    model.histogram[[0, 255]] = 0.5
    for steps in (1, 12, 1000):
        x_T = torch.randn(2, 1, 28, 28)
        walk = list(ddpm.ddim(model, x_T, NO_CLASS[:2], steps, w=1))
        times = [t for t, _, _ in walk]
        assert times == sorted(set(times), reverse=True) and (times[0], times[-1]) == (1000, 1)
        assert len(walk) == steps + 1 or steps == 1000
        eps = model.network(x_T, torch.full((2,), 1000), NO_CLASS[:2])
        for t, x, _ in walk:  # all on one line: the same noise, ever less of it
            close(x, model.add_noise(image, t, eps), atol=2e-3)
        close(walk[-1][2], image.expand(2, -1, -1, -1), atol=1e-3)  # the mean of p(x_0 | x_1)


@torch.no_grad()
def test_ddim_samples_are_guided_by_default():
    y, flags = torch.tensor([2, 5]), ddpm.parse_flags([])
    model = oracle(lambda x, alpha_bar: 0.0)
    samples = ddpm.ddim_sample(model, y)
    assert samples.shape == (2, 1, 28, 28) and (samples - 0.5).abs().max() < 0.03
    asked = [labels for _, labels in model.calls]
    assert asked == [[2, 5], [10, 10]] * flags.sampling_steps and flags.guidance > 1


@torch.no_grad()
def test_guidance_goes_from_the_label_free_noise_through_the_labelled():
    model, x, y = ddpm.DDPM(8), torch.randn(3, 1, 28, 28), torch.tensor([0, 4, 9])
    noises = torch.randn(11, 1, 28, 28)  # one for each label; 10: no class given
    model.network.forward = lambda x, t, y: noises[y]
    for w, share in ((1, 1.0), (0, 0.0), (1.6, 1.6)):
        expected = share * noises[y] + (1 - share) * noises[10]
        close(ddpm.guided_noise(model, x, 500, y, w), expected, atol=1e-5)
    alike = oracle(lambda x, alpha_bar: 0.0, classes=1)
    ddpm.guided_noise(alike, x, 500, NO_CLASS[:3], 3.0)
    assert alike.calls == [([500] * 3, [0] * 3)]  # one class: nothing to guide by


@pytest.mark.parametrize(
    ("more", "withheld"),
    [
        ("", 0.1),
        ("--label-dropout 1", 1.0),
        ("--label-dropout 0", 0.0),
        ("--classes 1 --label-dropout 1", 0.0),
    ],
)
def test_labels_are_withheld_in_training(monkeypatch, more, withheld):
    seen, loss = [], ddpm.DDPM.loss
    monkeypatch.setattr(
        ddpm.DDPM, "loss", lambda model, x0, y: seen.append(y) or loss(model, x0, y)
    )
    model, _ = short_run(ddpm, f"{TINY['ddpm']} --steps 2 --batch-size 300 {more}")
    share = (torch.cat(seen[:2]) == model.classes).float().mean().item()
    assert share == pytest.approx(withheld, abs=0.04 if withheld == 0.1 else 0)


def test_a_saved_model_samples_and_knows_the_shares_of_grey_levels():
    model, saved = short_run(ddpm, TINY["ddpm"])
    x = digits()[0]
    counts = x[: len(x) * 11 // 12].flatten().bincount(minlength=256) + 1
    close(model.histogram, counts / counts.sum(), rtol=1e-5)
    for name, weights in model.state_dict().items():
        assert torch.equal(weights, saved["model"][name])
    check_samples(model)


FLAGS = "--steps 150 --batch-size 32 --channels 8 --timesteps 200 --save-every 50"


@functools.cache
def intact():
    return short_run(ddpm, FLAGS)


def terms(module, model):
    """L_T, the sum of L_1 to L_{T−1}, and L_0: nats, means over test digits."""
    torch.manual_seed(0)
    _, _, x, y = digits()
    return module.bound(model, ddpm.to_pixels(x[:200]), y[:200]).mean(1)


@pytest.mark.slow
def test_break_a_chain_that_ends_too_early():
    early = edited(
        "ddpm", ("torch.linspace(0.1, 20, timesteps)", "torch.linspace(0.1, 2, timesteps)")
    )
    broken, _ = short_run(early, FLAGS)
    assert broken.alpha_bar[-1] > 0.3  # of x_0's variance, a third is left at the end
    assert terms(early, broken)[0] > 100 and terms(ddpm, intact()[0])[0] < 0.1


@pytest.mark.slow
def test_break_no_short_way_for_the_noise():
    cut = edited("ddpm", ("return x + h.float()", "return h.float()"))
    for whole, broken in zip(intact()[1]["curve"], short_run(cut, FLAGS)[1]["curve"]):
        assert broken["validation"] > 1.3 * whole["validation"]


@pytest.mark.slow
def test_break_guesses_beyond_black_and_white():
    loose = edited("ddpm", ("return x0.clamp(-1, 1)", "return x0"))
    model, _ = intact()
    broken = loose.DDPM(8, 200)
    broken.load_state_dict(model.state_dict())
    assert terms(loose, broken)[1] > 1.2 * terms(ddpm, model)[1]
