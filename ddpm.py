# /// script
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""DDPM: denoising diffusion probabilistic models (Ho, Jain & Abbeel 2020, arXiv:2006.11239).

How does one draw a digit from pure noise? A network's guess at once would be a blur, the mean of
all digits. But take a digit, add a little noise, and ask for it back: that is easy. So destroy
digits in T = 1000 small steps, and learn to undo one. A thousand undone, noise has become a digit.

The destruction is fixed. x_0 is the image, pixels in [−1, 1]; each step shrinks it a little and
adds a little Gaussian noise, with variances β_1 = 0.0001 to β_T = 0.02, so the sum does not grow:

    q(x_t | x_{t−1}) = N(√α_t x_{t−1}, β_t I)        α_t = 1 − β_t,   ᾱ_t = α_1 α_2 ⋯ α_t

Many steps at once are no harder. Two of them: x_2 = √α_2 (√α_1 x_0 + √β_1 ε_1) + √β_2 ε_2. The
variances of independent noises add, to α_2 (1 − α_1) + (1 − α_2) = 1 − α_1 α_2 = 1 − ᾱ_2. So

    x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε,  ε ~ N(0, I)                                  equation 4

      t        1       250     500     750     1000
      √ᾱ_t     1.000   0.724   0.280   0.058   0.006    what is left of the image
      √(1−ᾱ_t) 0.010   0.690   0.960   0.998   1.000    how much noise there is

The creation is a chain the other way, given the class y, from p(x_T) = N(0, I):

    p(x_{t−1} | x_t, y) = N(μ(x_t, t, y), σ_t² I), t ≥ 2    μ: from a network;   σ_t²: β̃, below

What should μ be? Were x_0 known, Bayes' rule would give the right step back, q(x_{t−1} | x_t, x_0):
a Gaussian, worked out below. By equation 4, x_0 is known if ε is, the noise of all t steps. So a
network ε̂ learns to find it; the loss is its mean square error at a random t (why: above `L_T`):

    E ‖ε − ε̂(√ᾱ_t x_0 + √(1 − ᾱ_t) ε, t, y)‖²                                   equation 14

Run `python ddpm.py`; pictures appear in out/ddpm/. On MNIST and one core of an AMD EPYC (bfloat16)
it takes 597 seconds, on two 373. −ELBO of test images given the class: 1.343 bits/dim (bits a
pixel; b nats are b / (784 ln 2)); each pixel by itself, grey levels as often as in training:
1.967. A separate classifier finds the class in 99.3 % of 5,000 samples by DDIM with guidance
(Fréchet distance 2.2, see benchmarks/judge.py) and in 91.0 % of 1,000 by Algorithm 2 (5.1).

Good at: clear samples, stable training, being steered. Bad at: speed, a sample takes many passes.
Read before: vae.py. Read next: ebm.py, variations/.
"""

import argparse
import io
import json
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from data import mnist


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="optimiser steps")
    parser.add_argument("--batch-size", type=positive_int, default=64, help="images a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate of Adam")
    parser.add_argument("--channels", type=positive_int, default=32, help="feature maps at 14 x 14")
    parser.add_argument("--timesteps", type=positive_int, default=1000, help="T, steps of noise")
    parser.add_argument("--classes", type=positive_int, default=10, help="10: the digit is given")
    parser.add_argument("--label-dropout", type=float, default=0.1, help="share without a class")
    parser.add_argument("--sampling-steps", type=positive_int, default=12, help="of DDIM")
    parser.add_argument("--guidance", type=float, default=1.6, help="1: none; more: stronger class")
    add_common_flags(parser, out="out/ddpm", save_every=500)  # --device, --resume ...: at the end
    return parse(parser, argv)


# %% Data
def to_pixels(images):
    return images / 127.5 - 1  # grey levels 0 to 255 become −1 to 1, about as large as the noise


# %% Model
# The network takes an image and gives an image, the noise. A U-Net does so at two scales: features
# at 14 x 14 see strokes, at 7 x 7 the whole digit; the fine ones are also handed across. In each
# block time (as sines and cosines) and class give every channel a factor and an offset.
class ResBlock(nn.Module):
    """Two convolutions, added to the input, (B, C_in, H, W) to (B, C, H, W)."""

    def __init__(self, C_in, C, D):
        super().__init__()
        self.norm1 = nn.GroupNorm(math.gcd(8, C_in), C_in)
        self.conv1 = nn.Conv2d(C_in, C, 3, padding=1)
        self.scale_shift = nn.Linear(D, 2 * C)
        self.norm2 = nn.GroupNorm(math.gcd(8, C), C)
        self.conv2 = nn.Conv2d(C, C, 3, padding=1)
        self.skip = nn.Conv2d(C_in, C, 1) if C_in != C else nn.Identity()
        nn.init.zeros_(self.conv2.weight)  # at first a block is its skip and a bias

    def forward(self, x, e):
        scale, shift = self.scale_shift(e)[:, :, None, None].chunk(2, dim=1)  # (B, C, 1, 1) each
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(h))


class UNet(nn.Module):
    """ε̂, the noise in x_t (B, 1, 28, 28), from x_t, t (B,) in 1..T and y (B,) in 0..classes."""

    def __init__(self, C, classes, D=128):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(64, D), nn.SiLU(), nn.Linear(D, D))
        self.label = nn.Embedding(classes + 1, D)  # one more: the class is withheld
        self.stem = nn.Conv2d(1, C, 6, stride=2, padding=2)
        self.fine_in = ResBlock(C, C, D)
        self.down = nn.Conv2d(C, 2 * C, 3, stride=2, padding=1)
        self.coarse1 = ResBlock(2 * C, 2 * C, D)
        self.coarse2 = ResBlock(2 * C, 2 * C, D)
        self.up = nn.ConvTranspose2d(2 * C, C, 2, stride=2)
        self.fine_out = ResBlock(2 * C, C, D)
        self.norm = nn.GroupNorm(math.gcd(8, C), C)
        self.head = nn.ConvTranspose2d(C, 1, 6, stride=2, padding=2)
        nn.init.zeros_(self.head.weight)  # an untrained network takes all of x_t for noise

    def forward(self, x, t, y):
        frequencies = torch.exp(-torch.arange(32, device=x.device) * 0.3)  # 1 to 1 / 11,000
        angles = t[:, None] * frequencies  # (B, 32)
        time = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
        e = F.silu(time + self.label(y))  # (B, D)
        fine = self.fine_in(self.stem(x), e)  # (B, C, 14, 14)
        h = self.down(fine)  # (B, 2C, 7, 7)
        h = self.coarse1(h, e)
        h = self.coarse2(h, e)
        h = torch.cat([self.up(h), fine], dim=1)  # (B, 2C, 14, 14)
        h = self.fine_out(h, e)  # (B, C, 14, 14)
        h = self.head(F.silu(self.norm(h)))  # (B, 1, 28, 28)
        return x + h.float()  # x_t itself is nearly all noise at large t


# Who knows x_0 knows the right step back. By Bayes' rule, as x_t sees x_0 only through x_{t−1},
#     log q(x_{t−1} | x_t, x_0) = log q(x_t | x_{t−1}) + log q(x_{t−1} | x_0) + constant
#       = −(x_t − √α_t x_{t−1})² / 2β_t − (x_{t−1} − √ᾱ_{t−1} x_0)² / 2(1 − ᾱ_{t−1}) + constant
# a square in x_{t−1}: a Gaussian, −(x_{t−1} − μ̃)² / 2β̃ + constant. Compare the factors of
# −x_{t−1}² / 2 and of x_{t−1} on both sides, with α_t (1 − ᾱ_{t−1}) + β_t = 1 − ᾱ_t:
#
#     1 / β̃ = α_t / β_t + 1 / (1 − ᾱ_{t−1})                 so β̃ = β_t (1 − ᾱ_{t−1}) / (1 − ᾱ_t)
#     μ̃ / β̃ = √α_t x_t / β_t + √ᾱ_{t−1} x_0 / (1 − ᾱ_{t−1})
#     μ̃ = [√ᾱ_{t−1} β_t x_0 + √α_t (1 − ᾱ_{t−1}) x_t] / (1 − ᾱ_t)          equations 6 and 7
#
# The step that we take, p, has the variance σ_t² = β̃ and this mean, with a guess x̂_0 for x_0: by
# equation 4, (x_t − √(1 − ᾱ_t) ε̂) / √ᾱ_t. Where many x_0 fit x_t it is their mean, hence a blur.
class DDPM(nn.Module):
    """The noising q and its reversal p, for images x (B, 1, 28, 28) in [−1, 1], classes y (B,)."""

    def __init__(self, channels=32, timesteps=1000, classes=10):
        super().__init__()
        self.T = timesteps
        self.classes = classes  # also the label that stands for "no class given"
        self.network = UNet(channels, classes)
        beta = torch.linspace(0.1, 20, timesteps) / timesteps  # 0.0001 to 0.02 for T = 1000
        beta = torch.cat([torch.zeros(1), beta.clamp(max=0.999)])  # beta[t], with no noise at t = 0
        self.register_buffer("beta", beta.view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("alpha_bar", (1 - self.beta).cumprod(0), persistent=False)
        self.register_buffer("levels", to_pixels(torch.arange(256)), persistent=False)
        self.register_buffer("histogram", torch.full((256,), 1 / 256))  # how often each level is

    def add_noise(self, x0, t, eps):
        """x_t, of t steps of noise at once (equation 4)."""
        alpha_bar = self.alpha_bar[t]
        return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * eps

    def loss(self, x0, y):
        """Lines 3 to 5 of Algorithm 1: mean square error of the noise, t random for each image."""
        t = torch.randint(1, self.T + 1, (len(x0),), device=x0.device)  # 1 to T, T included
        eps = torch.randn_like(x0)
        predicted = self.network(self.add_noise(x0, t, eps), t, y)
        return F.mse_loss(predicted, eps)

    def predict_x0(self, x, t, eps):
        """x̂_0: equation 4 solved for x_0; clamped, as at t = T an error in ε̂ counts 157-fold."""
        alpha_bar = self.alpha_bar[t]
        x0 = (x - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
        return x0.clamp(-1, 1)

    def posterior(self, x, t, x0):
        """Mean μ̃ and variance β̃ of q(x_{t−1} | x_t, x_0) (equations 6 and 7)."""
        beta = self.beta[t]
        alpha_bar = self.alpha_bar[t]
        before = self.alpha_bar[t - 1]
        from_x0 = before.sqrt() * beta * x0
        from_x = (1 - beta).sqrt() * (1 - before) * x
        mean = (from_x0 + from_x) / (1 - alpha_bar)
        variance = beta * (1 - before) / (1 - alpha_bar)
        return mean, variance

    @torch.no_grad()
    def sample(self, y):
        """Algorithm 2: an image for each class in y (B,), (B, 1, 28, 28) in [0, 1]."""
        x = torch.randn(len(y), 1, 28, 28, device=y.device)
        for t in range(self.T, 1, -1):
            times = torch.full_like(y, t)
            x0 = self.predict_x0(x, t, self.network(x, times, y))
            mean, variance = self.posterior(x, t, x0)
            x = mean + variance.sqrt() * torch.randn_like(x)
        return (self.last_step(x) @ self.levels + 1) / 2  # the mean of p(x_0 | x_1)

    # Bayes' rule, each pixel by itself: x_1 is x_0 but for a noise of about one grey level.
    def last_step(self, x1):
        """p(x_0 | x_1) ∝ h(x_0) N(x_1; √ᾱ_1 x_0, β_1), h the histogram, (B, 1, 28, 28, 256)."""
        distance = x1[..., None] - self.alpha_bar[1].sqrt() * self.levels
        log_p = self.histogram.log() - distance**2 / (2 * self.beta[1])
        return log_p.softmax(-1)


# %% Training
def warmup_cosine(u):
    """Share of the peak learning rate, u = 0 to 1 through training: a rise, then half a cosine."""
    return min(u / 0.05, 0.5 + 0.5 * math.cos(math.pi * u))


def main(argv=None):
    args = parse_flags(argv)
    x, y, x_test, y_test, source = mnist(args.stand_in, args.device, args.classes)
    n = len(x) * 11 // 12  # the last twelfth, 5,000 digits of MNIST, is for validation
    dropout = args.label_dropout if args.classes > 1 else 0.0  # one class: nothing to withhold

    torch.manual_seed(args.seed)
    model = DDPM(args.channels, args.timesteps, args.classes).to(args.device)
    counts = x[:n].flatten().bincount(minlength=256) + 1  # no grey level is impossible
    model.histogram.copy_(counts / counts.sum())
    optimizer = torch.optim.Adam(model.parameters(), fused=True)  # fused: faster, nothing else
    run = Run(args, source, n, "error of the noise", model=model, optimizer=optimizer)
    for step in run.steps():
        optimizer.param_groups[0]["lr"] = args.lr * warmup_cosine(step / args.steps)
        batch = torch.randint(n, (args.batch_size,), device=args.device)
        withheld = torch.rand(args.batch_size, device=args.device) < dropout  # for guidance, below
        labels = torch.where(withheld, args.classes, y[batch])
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
            loss = model.loss(to_pixels(x[batch]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss)
        if step % args.save_every == 0 or step == args.steps:
            with torch.no_grad():
                validation = model.loss(to_pixels(x[n:]), y[n:])
            run.save(validation.item())
            shown = ten_classes(y).repeat(2)
            samples = ddim_sample(model, shown, args.sampling_steps, args.guidance)
            run.picture("samples.png", grid(samples, f"samples, step {step:,}"))
    evaluate(run, model, x_test, y_test)


# %% That is the whole idea. Below: what the trained model can do, and the frame.
# %% Evaluation
def load_checkpoint(path):
    """What a run wrote into model.pt, a dictionary."""
    try:
        saved = torch.load(Path(path).expanduser(), map_location="cpu", weights_only=True)
        return saved | {"flags": saved["flags"]}  # KeyError if this is somebody else's file
    except Exception as error:  # a damaged file fails in many ways
        raise OSError(f"{path} is missing, damaged, or no checkpoint of this script") from error


def load(path="out/ddpm/model.pt", device="cpu"):
    """The model of a finished or unfinished run, ready to sample."""
    saved = load_checkpoint(path)
    flags = saved["flags"]
    model = DDPM(flags["channels"], flags["timesteps"], flags["classes"])
    model.load_state_dict(saved["model"])
    return model.to(device).eval()


def ten_classes(y):
    """Ten of the classes in y, for a row of samples: the first ten, or fewer in turn."""
    present = y.unique()
    return present[torch.arange(10, device=y.device) % len(present)]


def grid(images, title):
    """A figure of images (N, 1, H, W), ten to a row: 0 is white, 1 is black."""
    missing = -len(images) % 10  # to fill the last row with white
    images = torch.cat([images, torch.zeros_like(images[:missing])]).cpu()
    rows = [torch.cat(list(row), dim=2) for row in images.split(10)]
    page = torch.cat(rows, dim=1)[0]
    figure = Figure(figsize=(6.2, len(page) / 45 + 0.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(page.numpy(), cmap="gray_r", vmin=0, vmax=1)
    axes.set_axis_off()
    axes.set_title(title)
    return figure


# What has noise to do with probability? log q(x_t | x_0) has the gradient −ε / √(1 − ᾱ_t). Its mean
# over the x_0 that may be behind x_t is ∇ log q(x_t), the score; and the mean of ε is what least
# square error makes of ε̂. So −ε̂ points to likelier images. To see more of the class, follow
# ∇ log q(x_t) + w ∇ log q(y | x_t) with w > 1. By Bayes' rule the second gradient is
# ∇ log q(x_t | y) − ∇ log q(x_t), and a network at times given no class knows both scores:
# classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598, whose w is ours minus 1).
def guided_noise(model, x, t, y, w):
    """ε̂ of x_t (B, 1, 28, 28) at the time t, a number, for classes y (B,), guided by w."""
    times = torch.full_like(y, t)
    with_class = model.network(x, times, y)
    if w == 1 or model.classes == 1:
        return with_class
    without = model.network(x, times, torch.full_like(y, model.classes))
    return without + w * (with_class - without)


# A thousand passes are many. But put x̂_0 and ε̂, found at t, into equation 4 for a much smaller
# time s: it gives x_s, no noise drawn. A dozen times will do, densest at small t. This is DDIM
# (Song, Meng & Ermon 2021, arXiv:2010.02502, eq. 12 with σ = 0).
@torch.no_grad()
def ddim(model, x, y, steps, w):
    """From x_T (B, 1, 28, 28) to x_0: yields t, x_t and x̂_0 at each of the times."""
    times = model.T * torch.linspace(1, 0, steps + 1) ** 2
    times = times.ceil().int().clamp(min=1).unique().flip(0).tolist()  # from T to 1
    for t, s in zip(times, times[1:]):
        x0 = model.predict_x0(x, t, guided_noise(model, x, t, y, w))
        yield t, x, x0
        alpha_bar = model.alpha_bar[t]
        eps = (x - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()  # the noise that fits this x̂_0
        x = model.add_noise(x0, s, eps)
    yield 1, x, model.last_step(x) @ model.levels  # as in DDPM.sample


def ddim_sample(model, y, steps=12, w=1.6):
    """As DDPM.sample, (B, 1, 28, 28) in [0, 1], but guided and fast."""
    noise = torch.randn(len(y), 1, 28, 28, device=y.device)
    *_, (_, _, x0) = ddim(model, noise, y, steps, w)
    return (x0 + 1) / 2


# The chain is a latent variable model as in vae.py, x_1 … x_T its latents, q a fixed encoder. The
# −ELBO, with q from its end by Bayes' rule, q(x_T | x_0) Π_{t ≥ 2} q(x_{t−1} | x_t, x_0):
#     −log p(x_0 | y) ≤ E_q[log q(x_1, …, x_T | x_0) − log p(x_0, …, x_T | y)]        by Jensen
#       = E_q[log q(x_T | x_0) / p(x_T) + Σ_{t ≥ 2} log q(x_{t−1} | x_t, x_0) / p(x_{t−1} | x_t, y)
#             − log p(x_0 | x_1)] = L_T + Σ_{t ≥ 2} L_{t−1} + L_0
# L_T, L_{t−1} are KLs. That of two Gaussians of variance β̃ is (μ̃ − μ)² / 2β̃ a pixel; but for the
# clamp that is β_t (ε − ε̂)² / 2α_t (1 − ᾱ_{t−1}). Without that factor it is the loss at t.
def L_T(model, x0):
    """KL(q(x_T | x_0) ‖ N(0, I)), as in vae.py: how much of x_0 is left in x_T."""
    alpha_bar = model.alpha_bar[model.T]
    kl = alpha_bar * x0**2 + (1 - alpha_bar) - 1 - (1 - alpha_bar).log()
    return 0.5 * kl.flatten(1).sum(1)


def L_between(model, x0, t, y):
    """L_{t−1}: KL(q(x_{t−1} | x_t, x_0) ‖ p(x_{t−1} | x_t, y)) at times t (B,) in 2..T."""
    x = model.add_noise(x0, t, torch.randn_like(x0))
    guess = model.predict_x0(x, t, model.network(x, t, y))
    right_mean, variance = model.posterior(x, t, x0)
    mean, _ = model.posterior(x, t, guess)
    kl = (right_mean - mean) ** 2 / (2 * variance)
    return kl.flatten(1).sum(1)


def L_0(model, x0):
    """−log p(x_0 | x_1), of the grey level that each pixel has."""
    x1 = model.add_noise(x0, 1, torch.randn_like(x0))
    level = ((x0 + 1) * 127.5).round().long()
    p = model.last_step(x1).gather(-1, level[..., None])
    return -p.log().flatten(1).sum(1)


# The sum over t is estimated from one t an image. L_{t−1} falls about like 1 / t, so small t are
# drawn more often, with p(t) ∝ 1 / t, and the term is divided by p(t), which keeps the mean right.
@torch.no_grad()
def bound(model, x0, y):
    """Estimates of L_T, of the sum of all L_{t−1}, and of L_0: nats (3, B)."""
    p = 1 / torch.arange(2, model.T + 1, device=x0.device)
    p = p / p.sum()
    drawn = torch.multinomial(p, len(x0), replacement=True)
    between = L_between(model, x0, drawn + 2, y) / p[drawn]
    return torch.stack([L_T(model, x0), between, L_0(model, x0)])


@torch.no_grad()
def evaluate(run, model, x, y):
    """Results and pictures for test images x (N, 1, 28, 28) of classes y (N,)."""
    torch.manual_seed(1)
    terms = []
    for images, labels in zip(x.split(250), y.split(250)):
        terms.append(bound(model, to_pixels(images), labels))
    bits = torch.cat(terms, dim=1) / (28 * 28 * math.log(2))  # nats an image to bits a pixel
    results = {
        "grey levels by their shares, bits/dim": -model.histogram.log2()[x.long()].mean().item(),
        "bound, bits/dim": bits.sum(0).mean().item(),
        "bound, standard error": bits.sum(0).std().item() / len(x) ** 0.5,
    }
    for name, part in zip(["L_T", "L_1 to L_{T-1}", "L_0"], bits.mean(1)):
        results[f"bound, of it {name}"] = part.item()
    run.report(results)

    shown = ten_classes(y)
    steps, w = run.args.sampling_steps, run.args.guidance
    samples = ddim_sample(model, shown.repeat(10), steps, w)
    run.picture("samples.png", grid(samples, f"{steps} steps of DDIM, guidance {w:g}"))
    print(f"Algorithm 2, {model.T:,} steps ...", flush=True)
    samples = model.sample(shown.repeat(5))
    run.picture("algorithm_2.png", grid(samples, f"Algorithm 2: {model.T:,} steps, no guidance"))
    pages = []
    noise = torch.randn(len(shown), 1, 28, 28, device=x.device)
    for t, x_t, x0 in ddim(model, noise, shown, 40, w):
        pages.append(grid(torch.cat([x_t, x0]) / 2 + 0.5, f"x_t at t = {t}; below: guess at x_0"))
    run.picture("denoising.gif", *pages)


# %% Notes
# Differs from the paper: a U-Net of 0.3 M weights (theirs: 36 M) at half resolution, which adds its
# input to its output, scales by time, has no attention; a rate that rises and falls; no average of
# the weights, which gained nothing; classes; the last step by Bayes' rule; DDIM's times as squares.
# Bound and sampler both clamp x̂_0 and use σ_t² = β̃; σ_t² = β_t would cost 0.29 bits/dim.
#
# Things to break:
# 1. In `UNet.forward`, leave out "x +": after the same steps the loss is higher.
# 2. In `DDPM`, torch.linspace(0.1, 2, timesteps): x_T still shows the digit, and L_T is large.
# 3. In `predict_x0`, leave out the clamp: the bound gets worse.


# %% The frame: flags, checkpoints, status lines, pictures; the same in every script
def add_common_flags(parser, out, save_every):
    devices = [d for d in ("cuda", "cpu", "mps") if torch.get_device_module(d).device_count()]
    parser.add_argument("--device", default=devices[0], choices=devices, help="where to compute")
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, help="None: if faster")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder of the run")
    parser.add_argument("--save-every", type=positive_int, default=save_every, help="in steps")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    choices = ["auto", "always", "never"]
    parser.add_argument("--stand-in", default="auto", choices=choices, help="use made-up data")


def positive_int(text):
    if int(text) < 1:
        raise ValueError
    return int(text)


def parse(parser, argv):
    """The flags. With --resume, those not given now are as in the saved run."""
    if argv is None and Path(sys.argv[0]).name.endswith("kernel_launcher.py"):
        argv = []  # these flags are not ours but those of a notebook's kernel
    args = parser.parse_args(argv)
    if args.resume:
        parser.set_defaults(**load_checkpoint(args.out / "model.pt")["flags"])
        args = parser.parse_args(argv)
    args.out = args.out.expanduser()
    if args.bfloat16 is None:
        args.bfloat16 = fast_bfloat16(args.device)
    return args


def fast_bfloat16(device):
    """Whether the hardware computes in bfloat16, which is then faster than float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return device == "cpu" and bool(cpu.get("avx512_bf16") or cpu.get("amx_tile"))


def write(path, content):
    """Write a file whole or not at all: first beside the old one, which it then replaces."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        if part.exists():
            part.unlink()
        raise OSError(f"cannot write {path}, see --out: {error.strerror}") from error


class Run:
    """A training run in the folder --out: its steps, status lines, checkpoints and results."""

    def __init__(self, args, source, size, loss_name, **parts):
        self.args = args
        self.source = source  # the name of the training data, of which there are `size`
        self.loss_name = loss_name
        self.parts = parts  # models and optimisers: checkpoints hold them, --resume restores them
        self.step = 0
        self.seconds = 0.0
        self.losses = []  # of the steps since the last checkpoint
        self.curve = []  # a point for each checkpoint
        networks = nn.ModuleList(p for p in parts.values() if isinstance(p, nn.Module))
        weights = sum(p.numel() for p in networks.parameters() if p.requires_grad)
        self.where = f"{args.device}, {torch.get_num_threads()} threads, bfloat16: {args.bfloat16}"
        print(f"{size:,} examples of {source!a}, {weights:,} weights, {self.where}", flush=True)
        self.checkpoint = args.out / "model.pt"
        if args.resume:
            self.restore(load_checkpoint(self.checkpoint))
        else:
            self.move_aside()
            self.save_checkpoint()

    def restore(self, saved):
        if saved["source"] != self.source:
            raise OSError(f"{self.args.out} learnt from {saved['source']}, not {self.source}")
        try:
            for name, part in self.parts.items():
                part.load_state_dict(saved[name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise OSError(f"{self.checkpoint} is of another script or other sizes") from error
        for name in ("step", "seconds", "curve"):
            setattr(self, name, saved[name])
        self.args.steps = max(self.args.steps, self.step)
        self.written = self.checkpoint.stat().st_mtime_ns

    def move_aside(self):
        """Move an earlier run's checkpoint, results and pictures to a folder of their own."""
        if not self.checkpoint.exists():
            return
        aside = self.args.out / time.strftime("earlier-%Y%m%d-%H%M%S")
        aside.mkdir()
        for path in list(self.args.out.iterdir()):
            if path.name in ("model.pt", "metrics.json") or path.suffix in (".png", ".gif", ".wav"):
                path.rename(aside / path.name)
        print(f"the earlier run is now in {str(aside)!a}", flush=True)

    def steps(self):
        """Yield the number of each step to come, up to --steps."""
        self.started = time.time() - self.seconds
        self.printed = time.time() - 5  # the first status line comes after five seconds
        while self.step < self.args.steps:
            self.step += 1
            torch.manual_seed(self.args.seed * 10**9 + self.step)  # a resumed run draws the same
            yield self.step

    def log(self, loss):
        """Note the loss of a step; every ten seconds, print a status line."""
        self.losses.append(loss.detach())  # .item() would make a GPU wait at every step
        if time.time() > self.printed + 10:
            self.printed = time.time()
            recent = torch.stack(self.losses[-100:]).mean().item()
            self.require_finite(recent)
            left = (self.printed - self.started) * (self.args.steps / self.step - 1) / 60
            print(f"step {self.step:,}  loss {recent:.4g}  {left:.1f} min left", flush=True)

    def require_finite(self, loss):
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss of step {self.step:,} is {loss}: try a lower --lr")

    def save(self, validation):
        """Add a point to the learning curve and write a checkpoint."""
        training = torch.stack(self.losses).mean().item()
        self.require_finite(training + validation)
        print(f"step {self.step:,}: loss {training:.4g}, validation {validation:.4g}", flush=True)
        if self.checkpoint.exists() and self.checkpoint.stat().st_mtime_ns != self.written:
            raise OSError(f"another run has changed {self.checkpoint}: give each its own --out")
        self.curve.append({"step": self.step, "training": training, "validation": validation})
        self.losses = []
        self.seconds = time.time() - self.started
        self.save_checkpoint()

    def save_checkpoint(self):
        states = {name: part.state_dict() for name, part in self.parts.items()}
        content = io.BytesIO()
        torch.save(self.record() | states, content)
        write(self.checkpoint, content.getvalue())
        self.written = self.checkpoint.stat().st_mtime_ns

    def record(self):
        """What model.pt and metrics.json both say about the run."""
        flags = vars(self.args).copy()
        for name in ("device", "out", "resume"):
            del flags[name]
        record = {"flags": flags, "torch": str(torch.__version__)}
        for name in ("source", "where", "step", "seconds", "curve"):
            record[name] = getattr(self, name)
        return record

    def report(self, results):
        """Print the results; write them to metrics.json, and the learning curve to curve.png."""
        for name, value in results.items():
            print(f"{name}: {value:.4g}", flush=True)
            results[name] = value if math.isfinite(value) else None  # JSON knows no NaN
        metrics = {"results": results} | self.record()
        write(self.args.out / "metrics.json", json.dumps(metrics, indent=1).encode())
        axes = Figure(layout="constrained").subplots()
        steps = [point["step"] for point in self.curve]
        for name in ("training", "validation"):
            axes.plot(steps, [point[name] for point in self.curve], "o-", label=name)
        axes.set(xlabel="step", ylabel=self.loss_name, title="learning curve")
        axes.legend()
        self.picture("curve.png", axes.figure)

    def picture(self, name, *figures):
        """Write one figure as a PNG, or several as the pages of a GIF."""
        pages = []
        for figure in figures:
            figure.supxlabel(f"data: {self.source}", size="x-small", parse_math=False)
            page = io.BytesIO()
            figure.savefig(page, dpi=100)
            pages.append(Image.open(page).convert("RGB"))
        file = io.BytesIO()
        pages[0].save(file, name[-3:], save_all=True, append_images=pages[1:], duration=150, loop=0)
        write(self.args.out / name, file.getvalue())


if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on, --resume --steps 0 evaluates the last checkpoint")
