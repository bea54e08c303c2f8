# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""DDPM: denoising diffusion probabilistic models (Ho, Jain & Abbeel 2020, arXiv:2006.11239).

The forward chain q adds a little Gaussian noise to an image x_0, T = 1,000 times, until nothing is left:

    q(x_t | x_{t−1}) = N(√α_t x_{t−1}, β_t I)        α_t = 1 − β_t,  β_t rising linearly from 0.0001 to 0.02

The steps add up in closed form, with ᾱ_t = α_1 α_2 ⋯ α_t falling from 1 to nearly 0:

    x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε,   ε ~ N(0, I)                                        (eq. 4)

Each step is so small that its reverse is nearly Gaussian too. A network ε̂(x_t, t, y), given the time t and
the class y, learns to predict the noise in x_t; the prediction gives the mean of the reverse step:

    loss = E ‖ε − ε̂(x_t, t, y)‖²                                                        (Algorithm 1)
    x_{t−1} = (x_t − β_t / √(1 − ᾱ_t) · ε̂) / √α_t + √β_t z,   z ~ N(0, I), 0 at t = 1   (Algorithm 2)

Training is plain regression: pick a digit, a time t, a noise ε. Sampling starts from pure noise x_T and walks
the chain back; DDIM, a faster sampler, does it in 12 long strides without new noise. p(x): a lower bound, T +
1 terms. Latent: x_T, as large as the image. Good at: sample quality, stable training. Bad at: speed, many
calls a sample.

Why it works: −ε̂ / σ_t is a score, the gradient of a log-density in x_t. Given x_0, x_t is Gaussian with
standard deviation σ_t = √(1 − ᾱ_t), so ∇ log q(x_t | x_0) = −(x_t − √ᾱ_t x_0) / σ_t² = −ε / σ_t. The best
prediction of ε averages over every x_0 that may hide in x_t, and that average of gradients is the gradient of
the noisy data's own log-density: ∇ log q(x_t) = −E[ε | x_t] / σ_t ≈ −ε̂ / σ_t. To predict the noise is to
know the direction of the data.

Label dropout: a tenth of the digits carry the null label in place of y; classifier-free guidance exaggerates
the difference between the two predictions, which makes classes clearer and less varied.

`python ddpm.py` on MNIST and 2 cores of an Intel Xeon (bfloat16): 387 s of training, 425 s in all.

    step 684/10,000  noise prediction error 0.0433  1,681 digits/s  5 min 55 s left
    step 5,576/10,000  noise prediction error 0.0265  1,662 digits/s  2 min 50 s left
    step 10,000/10,000  noise prediction error 0.0240  1,652 digits/s  0 min 00 s left

A separate classifier finds the class asked for in 99.2 % of 5,000 samples (92.7 % without guidance). Test
set: −log p(x) ≤ 1.38 ± 0.01 bits/dim under the null label, of it 0.43 for L_0 (8-bit grey, one draw a term, ±
one standard error); independent pixels: 1.69.
"""
import argparse
import functools
import io
import json
import math
import signal
import sys
import time
from pathlib import Path

from data import mnist

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

# %% Settings: the published run's value, what it is, its range; `--help` prints them
NAME, LOSS, ITEMS = "ddpm", "noise prediction error", "digits"
NULL = 10  # the null label: no class given
SETTINGS = {
    "steps": (10000, "optimiser steps", 1, 10**9),
    "batch_size": (64, "digits per step", 1, 10**6),
    "lr": (2e-3, "peak learning rate of Adam", 0, 10),
    "channels": (32, "feature maps at 14 x 14, twice as many at 7 x 7", 1, 10**4),
    "timesteps": (1000, "T, the length of the noising chain", 2, 10**5),
    "sampling_steps": (12, "steps of the fast sampler; guidance doubles the work of each", 1, 10**5),
    "guidance": (1.6, "weight w of guidance: 1 is p(x | y), more exaggerates the class", 0, 100),
    "label_dropout": (0.1, "share of digits under the null label; 1 gives an unconditional model", 0, 1),
}

# %% Model: a U-Net that predicts the noise in x_t
class ResBlock(nn.Module):
    """Two 3 x 3 convolutions; the embedding of time and class scales and shifts each channel between them."""

    def __init__(self, C_in, C, D):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(math.gcd(8, C_in), C_in), nn.GroupNorm(math.gcd(8, C), C)
        self.conv1, self.conv2 = nn.Conv2d(C_in, C, 3, padding=1), nn.Conv2d(C, C, 3, padding=1)
        self.scale_shift = nn.Linear(D, 2 * C)
        self.skip = nn.Conv2d(C_in, C, 1) if C_in != C else nn.Identity()
        nn.init.zeros_(self.conv2.weight)  # at first a block is its skip, up to a bias

    def forward(self, x, e):
        scale, shift = self.scale_shift(e)[:, :, None, None].chunk(2, 1)  # (B, C, 1, 1) each
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h

class UNet(nn.Module):
    """The noise in x_t, (B, 1, 28, 28), predicted from x_t, t (B,) in 1..T and y (B,) in 0..9 or NULL."""

    def __init__(self, C, D=128):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(64, D), nn.SiLU(), nn.Linear(D, D))
        self.label = nn.Embedding(11, D)
        self.stem = nn.Conv2d(4, C, 3, padding=1)
        self.fine_in = ResBlock(C, C, D)
        self.down = nn.Conv2d(C, 2 * C, 3, stride=2, padding=1)
        self.coarse1, self.coarse2 = ResBlock(2 * C, 2 * C, D), ResBlock(2 * C, 2 * C, D)
        self.up = nn.ConvTranspose2d(2 * C, C, 2, stride=2)
        self.fine_out = ResBlock(2 * C, C, D)
        self.head = nn.Sequential(nn.GroupNorm(math.gcd(8, C), C), nn.SiLU(), nn.Conv2d(C, 4, 3, padding=1))
        nn.init.zeros_(self.head[-1].weight)  # an untrained network predicts x_t
        nn.init.zeros_(self.head[-1].bias)

    def forward(self, x, t, y):
        angle = t[:, None] * torch.exp(-math.log(1e4) * torch.arange(32, device=t.device) / 32)  # (B, 32)
        e = F.silu(self.time(torch.cat([angle.sin(), angle.cos()], 1)) + self.label(y))  # (B, D)
        fine = self.fine_in(self.stem(F.pixel_unshuffle(x, 2)), e)  # 2 x 2 pixels to a place: (B, C, 14, 14)
        h = self.coarse2(self.coarse1(self.down(fine), e), e)  # (B, 2C, 7, 7)
        h = self.fine_out(torch.cat([self.up(h), fine], 1), e)  # (B, C, 14, 14)
        return x + F.pixel_shuffle(self.head(h), 2).float()  # residual, as x_t is nearly all noise at high t

class DDPM(nn.Module):
    """The forward chain q and the reverse chain that the network defines, for pixels in [-1, 1]."""

    def __init__(self, channels=32, timesteps=1000, conditional=True):
        super().__init__()
        self.net, self.T, self.conditional = UNet(channels), timesteps, conditional
        beta = torch.linspace(0.1, 20, timesteps) / timesteps  # the paper's 1e-4 to 0.02 for T = 1000
        beta = torch.cat([torch.zeros(1), beta.clamp(max=0.999)])  # index t runs from 0, the data, to T
        self.register_buffer("beta", beta.view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("alpha", 1 - self.beta, persistent=False)
        self.register_buffer("alpha_bar", self.alpha.cumprod(0), persistent=False)

    def eps(self, x, t, y=None):
        """ε̂(x_t, t, y); t is a number or (B,); y is None (the null label), a class or (B,) classes."""
        t = torch.as_tensor(t, device=x.device).expand(len(x))
        y = self.labels(NULL if y is None else y, len(x))
        return self.net(x.contiguous(memory_format=torch.channels_last), t, y)

    def q_sample(self, x0, t, eps):
        """x_t of t steps of noise in one stroke (eq. 4)."""
        return self.alpha_bar[t].sqrt() * x0 + (1 - self.alpha_bar[t]).sqrt() * eps

    def loss(self, x0, y=None):
        """Algorithm 1: the mean square error of the predicted noise, t uniform in 1..T (eq. 14)."""
        t = torch.randint(1, self.T + 1, (len(x0),), device=x0.device)
        eps = torch.randn_like(x0)
        return (eps - self.eps(self.q_sample(x0, t, eps), t, y)).square().mean()

    def labels(self, y, n):
        """y as (n,) classes; None draws them from p(y), uniform. An unconditional model knows NULL alone."""
        y = torch.randint(10, (n,)) if y is None else torch.as_tensor(y)
        return (y if self.conditional else torch.tensor(NULL)).to(self.beta.device).expand(n)

    @torch.no_grad()
    def sample(self, n, y=None):
        """Algorithm 2: n images (n, 1, 28, 28) in [0, 1], T network calls; y: None (drawn), class or (n,)."""
        x, y = torch.randn(n, 1, 28, 28, device=self.beta.device), self.labels(y, n)
        for t in range(self.T, 0, -1):
            z = torch.randn_like(x) if t > 1 else 0
            beta, alpha, alpha_bar = self.beta[t], self.alpha[t], self.alpha_bar[t]
            x = (x - beta / (1 - alpha_bar).sqrt() * self.eps(x, t, y)) / alpha.sqrt() + beta.sqrt() * z
        return (x.clamp(-1, 1) + 1) / 2

def drop_labels(y, rate):
    """Labels (B,), each the null label with probability `rate`: one network learns p(x | y) and p(x)."""
    return torch.where(torch.rand(len(y), device=y.device) < rate, NULL, y)

# %% Training
def main(argv=None):
    run = Run(argv)  # flags, output folder, resuming: the frame, at the end of this file
    x, y, x_test, y_test, run.source = mnist(run.stand_in)
    x, y, x_test, y_test = (v.to(run.device) for v in (x, y, x_test, y_test))
    n = len(x) * 11 // 12  # the last twelfth (5,000 digits of MNIST) is for validation

    torch.manual_seed(run.seed)
    model = DDPM(run.channels, run.timesteps, run.label_dropout < 1)
    model.to(run.device, memory_format=torch.channels_last)  # how convolutions are fastest
    run.baselines = {f"untrained, {LOSS}": model.loss(x[:1000] / 127.5 - 1).item()}
    decay = max(0.0, 1 - 10 / run.steps)  # the EMA of the weights looks back over a tenth of the run
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    optimizer = torch.optim.Adam(model.parameters(), lr=run.lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, run.lr, total_steps=run.steps, pct_start=0.06, cycle_momentum=False)
    for step in run.loop(model=model, ema=ema, optimizer=optimizer, schedule=schedule):
        i = torch.randint(n, (run.batch_size,), device=run.device)
        with run.autocast():
            loss = model.loss(x[i] / 127.5 - 1, drop_labels(y[i], run.label_dropout))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        ema.update_parameters(model)
        if run.log(loss):  # a status line; True every 20 s and at the end
            with torch.no_grad():
                validation = ema.module.loss(x[n:][:2000] / 127.5 - 1, y[n:][:2000]).item()
            samples = ddim_sample(ema.module, 40, torch.arange(40) % 10, run.sampling_steps, run.guidance)
            run.save(validation, grid(samples, f"samples after {step:,} steps"))
    evaluate(run, ema.module, x_test, y_test, x[:n], y[:n])

# %% That is the whole idea. Below: what the trained model can do, and the frame that every chapter shares.

# %% Evaluation: a saved model, a picture, the quality of samples
def read_checkpoint(path):
    """What `Run.save` wrote: a dict of name, settings, source, step, seconds, curve and state."""
    with open(path, "rb") as file:
        try:
            saved = torch.load(file, map_location="cpu", weights_only=True)
            assert saved["name"] == NAME and saved["source"] and saved["settings"] and saved["state"]
            return saved
        except Exception as error:  # a damaged file breaks the unpickler in many ways
            raise OSError(f"{path} is damaged, or no checkpoint of {NAME}.py") from error

def load(path=f"out/{NAME}/model.pt", device="cpu"):
    """The model of a saved run with its EMA weights, ready to sample."""
    saved = read_checkpoint(path)
    s = saved["settings"]
    ema = AveragedModel(DDPM(s["channels"], s["timesteps"], s["label_dropout"] < 1))
    ema.load_state_dict(saved["state"]["ema"])
    return ema.module.to(device).eval()

def grid(images, title, cols=None, rows=None, columns=10):
    """A figure of images (N, 1, 28, 28) in [0, 1], `columns` to a row, with names of columns and rows."""
    tiles = images.float().cpu().view(-1, columns, 28, 28).transpose(1, 2).flatten(2).flatten(0, 1).numpy()
    figure = Figure(figsize=(columns / 2 + 1.2, len(tiles) / 56 + 0.9), layout="constrained")
    figure.suptitle(title, size=10)
    ax = figure.subplots()
    ax.imshow(tiles, cmap="gray_r", vmin=0, vmax=1)
    ax.set_xticks(range(14, 28 * columns, 28), cols or [""] * columns, size=8)
    ax.set_yticks(range(14, len(tiles), 28), rows or [""] * (len(tiles) // 28), size=8)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return figure

@torch.no_grad()
def sample_quality(draw, x, y, y_test):
    """Scores of 1,000 samples draw(n, y), classified as the nearest of 10,000 training images x (uint8)."""
    digit, near = torch.arange(1000, device=x.device) % 10, x[:10000].flatten(1) / 255
    given, free = (y[torch.cdist(v.flatten(1), near).argmin(1)] for v in (draw(1000, digit), draw(1000)))
    shares, real = free.bincount(minlength=10) / 1000, y_test.bincount(minlength=10) / len(y_test)
    return {"class accuracy by nearest neighbour, 1,000 samples": (given == digit).float().mean().item(),
            "total variation distance of classes, 1,000 samples": (shares - real).abs().sum().item() / 2}

# %% Evaluation: guidance, fast sampling, inpainting
def guided_eps(model, x, t, y, w):
    """Classifier-free guidance (Ho & Salimans 2022; their w is one less): ε̂(x) + w (ε̂(x, y) − ε̂(x))."""
    if y is None or w == 1:
        return model.eps(x, t, y)
    given, null = model.eps(x.repeat(2, 1, 1, 1), t, torch.cat([y, torch.full_like(y, NULL)])).chunk(2)
    return null + w * (given - null)

def predict_x0(model, x, t, eps):
    """Equation 4 solved for x0, clamped to the range of pixels."""
    return ((x - (1 - model.alpha_bar[t]).sqrt() * eps) / model.alpha_bar[t].sqrt()).clamp(-1, 1)

def posterior(model, x0, x, t, s):
    """Mean and variance of q(x_s | x_t, x0), s < t, by Bayes' rule (eqs. 6 and 7, where s = t − 1)."""
    a_t, a_s, alpha = model.alpha_bar[t], model.alpha_bar[s], model.alpha_bar[t] / model.alpha_bar[s]
    mean = (a_s.sqrt() * (1 - alpha) * x0 + alpha.sqrt() * (1 - a_s) * x) / (1 - a_t)
    return mean, (1 - a_s) / (1 - a_t) * (1 - alpha)

def strides(T, steps):
    """Pairs (t, s) from T down to 0 in at most `steps` strides, shorter near 0 (Song et al. 2021, D.2)."""
    times = (T * torch.linspace(1, 0, min(steps, T) + 1) ** 2).round().long().unique().flip(0).tolist()
    return list(zip(times, times[1:]))

@torch.no_grad()
def ddim(model, x, y=None, steps=12, w=1.6):
    """From x_T to x_0 with no new noise: yields (t, x_t, predicted x0) (Song et al. 2021, eq. 12, σ = 0)."""
    for t, s in strides(model.T, steps):
        x0 = predict_x0(model, x, t, guided_eps(model, x, t, y, w))
        yield t, x, x0
        eps = (x - model.alpha_bar[t].sqrt() * x0) / (1 - model.alpha_bar[t]).sqrt()  # what fits this x0
        x = model.q_sample(x0, s, eps)
    yield 0, x, x

def ddim_sample(model, n, y=None, steps=12, w=1.6):
    """n images (n, 1, 28, 28) in [0, 1] as by `DDPM.sample`, in few steps; w is the weight of guidance."""
    x, y = torch.randn(n, 1, 28, 28, device=model.beta.device).split(250), model.labels(y, n).split(250)
    return torch.cat([list(ddim(model, *part, steps, w))[-1][1] for part in zip(x, y)]).clamp(-1, 1) / 2 + 0.5

@torch.no_grad()
def ddim_encode(model, x, steps=100):
    """DDIM backwards: images x (B, 1, 28, 28) in [-1, 1] to their latents x_T; `ddim` nearly undoes it."""
    for t, s in reversed(strides(model.T, steps)):
        eps = model.eps(x, max(s, 1))  # the network knows no t = 0
        x = model.q_sample((x - (1 - model.alpha_bar[s]).sqrt() * eps) / model.alpha_bar[s].sqrt(), t, eps)
    return x

@torch.no_grad()
def inpaint(model, image, known, y=None, steps=250, w=1.6):
    """Samples of x_0, the known pixels of `image` (B, 1, 28, 28) in [-1, 1] put in their place at every t."""
    x = torch.randn_like(image)
    for t, s in strides(model.T, steps):
        mean, var = posterior(model, predict_x0(model, x, t, guided_eps(model, x, t, y, w)), x, t, s)
        x = mean + var.sqrt() * torch.randn_like(x)
        x = torch.where(known, model.q_sample(image, s, torch.randn_like(x)), x)
    return x

# %% Evaluation: the variational bound, −log p(x0) ≤ L_0 + … + L_T (eq. 5)
@torch.no_grad()
def bound_term(model, x0, t, histogram, y=None):
    """A draw of L_t, one t in 0..T, for images x0 (B, 1, 28, 28) in [-1, 1] of 256 grey levels: nats (B,)."""
    if t == model.T:  # KL(q(x_T | x0) ‖ N(0, I))
        a = model.alpha_bar[t]
        return (a * x0**2 - a - torch.log1p(-a)).flatten(1).sum(1) / 2
    x = model.q_sample(x0, t + 1, torch.randn_like(x0))
    if t > 0:  # KL(q(x_t | x_{t+1}, x0) ‖ p(x_t | x_{t+1})), two Gaussians of one variance
        x0_hat = predict_x0(model, x, t + 1, model.eps(x, t + 1, y))
        (mean, var), (mean_hat, _) = (posterior(model, v, x, t + 1, t) for v in (x0, x0_hat))
        return ((mean - mean_hat) ** 2 / (2 * var)).flatten(1).sum(1)
    # −log p(x0 | x_1) by Bayes' rule: p ∝ h(x0) N(x_1; √ᾱ_1 x0, β_1), h (256,) the training pixels' histogram
    levels = torch.arange(256, device=x0.device) / 127.5 - 1
    log_likelihood = -(x[..., None] - model.alpha_bar[1].sqrt() * levels) ** 2 / (2 * model.beta[1])
    log_p = (histogram.log() + log_likelihood).log_softmax(-1)
    return -log_p.gather(-1, ((x0 + 1) * 127.5).round().long()[..., None]).flatten(1).sum(1)

def elbo(model, x0, histogram, y=None):
    """A draw of the lower bound of log p(x0 | y) in nats, (B,), for images x0 as above."""
    return -sum(bound_term(model, x0, t, histogram, y) for t in range(model.T + 1))

def independent_pixels(x, x_test):
    """NLL in nats of uint8 images x_test, each pixel by how often it had each level in images x, plus 0.1."""
    places = torch.arange(784, device=x.device) * 256
    counts = (places + x.flatten(1)).flatten().bincount(minlength=784 * 256) + 0.1
    return -(counts / (len(x) + 25.6)).log()[places + x_test.flatten(1)].sum(1).mean().item()

@torch.no_grad()
def evaluate(run, model, x, y, x_train, y_train):
    """Figures and pictures of uint8 test images x of classes y; training images to compare with."""
    torch.manual_seed(1)
    counts, nats, w = x_train.flatten().bincount(minlength=256) + 1, 784 * math.log(2), run.guidance
    print(f"the bound's {model.T + 1} terms: 1,000 test digits for L_0, 16 for every other term", flush=True)
    draws = [bound_term(model, x[torch.randint(len(x), (1000 if t == 0 else 16,))] / 127.5 - 1, t,
                        counts / counts.sum()) / nats for t in range(model.T + 1)]
    quality = [sample_quality(functools.partial(ddim_sample, model, steps=run.sampling_steps, w=weight),
                              x_train, y_train, y) for weight in (w, 1)]
    run.report({
        "independent pixels, bits/dim": independent_pixels(x_train, x) / nats,
        "test NLL bound, unconditional, bits/dim": sum(draw.mean() for draw in draws).item(),
        "its standard error": sum(draw.var() / len(draw) for draw in draws).sqrt().item(),
        "of it L_0": draws[0].mean().item()} | quality[0]
        | {f"unguided: {name}": value for name, value in quality[1].items()})

    digit, names = torch.arange(10, device=x.device), list("0123456789")
    x = x[torch.stack([(y == d).nonzero()[0, 0] for d in range(10)])] / 127.5 - 1  # the first of each class
    noise, known = torch.randn_like(x), torch.arange(28, device=x.device).view(28, 1) < 14  # the upper half
    a = ddim_encode(model, x)
    b, part = a.roll(-1, 0), [u / 8 for u in range(9)]
    angle = F.cosine_similarity(a.flatten(1), b.flatten(1)).acos().view(10, 1, 1, 1)
    arc = [(((1 - u) * angle).sin() * a + (u * angle).sin() * b) / angle.sin() for u in part]
    for name, title, rows, images in (
            ("steps", "one x_T in more and more DDIM steps", [1, 2, 3, 5, 10, 20, 50],
             [list(ddim(model, noise, digit, n, w))[-1][1] for n in (1, 2, 3, 5, 10, 20, 50)]),
            ("guidance", "one x_T under more and more guidance w", [0, 1, 2, 4, 8],
             [list(ddim(model, noise, digit, 20, w))[-1][1] for w in (0, 1, 2, 4, 8)]),
            ("inpainting", "the lower half of a digit, inpainted three times", ["x", "known", 1, 2, 3],
             [x, torch.where(known, x, 0), *(inpaint(model, x, known, digit, w=w) for _ in range(3))]),
            ("interpolation", "to the next digit on a great circle through their DDIM latents", ["x", *part],
             [x, *(list(ddim(model, z, None, 100))[-1][1] for z in arc)])):
        run.picture(f"{name}.png", grid(torch.cat(images).clamp(-1, 1) / 2 + 0.5, title, names, rows))
    samples = ddim_sample(model, 100, digit.repeat(10), run.sampling_steps, w)
    run.picture("samples.png", grid(samples, f"{run.sampling_steps} DDIM steps, guidance {w:g}", names))
    run.picture("denoising.gif", *(grid(torch.cat([x_t, x0]) / 2 + 0.5, f"t = {t}", names, ["x_t", "x̂0"])
                                   for t, x_t, x0 in ddim(model, noise, digit, 40, w)))

# %% Notes
# Differs from the paper: a small U-Net (0.3 M weights for 36 M) on patches of 2 x 2 pixels, without
# attention, whose input is added to its output (after 1,800 steps a separate classifier finds the class asked
# for in 96 % of guided samples; without the addition, in 82 %); L_0 by Bayes' rule from the histogram of grey
# levels, where a Gaussian around the predicted x_0 costs 1.03 bits/dim, since its noise spans several grey
# levels; the bound's reverse steps have the variance of the posterior, `sample` has β_t.
#
# Things to break:
# 1. In `UNet.forward`, leave out "x +": the loss falls later, and the classes appear later.
# 2. In `DDPM`, put torch.linspace(0.1, 2, timesteps): x_T still shows the digit, but sampling starts from
#    pure noise, and samples come out too dark.
# 3. In `DDPM.sample`, leave out "if t > 1 else 0": noise is added after the last step, and digits come out
#    grainy.
#
# References: DDIM: Song, Meng & Ermon 2021 (2010.02502); guidance: Ho & Salimans 2022 (2207.12598); scores:
# Song & Ermon 2019 (1907.05600). Read before: vae.py, whose bound this is with T latents. Next: ebm.py, which
# learns the log-density itself.

# %% The frame, the same to the letter in every chapter: flags, checkpoints, status line, results, pictures
class Run:
    """The flags as attributes, and what a training loop needs around it: see `main`."""
    pause, last_save, notebook = 5, "nothing was saved", "kernel" in Path(sys.argv[0]).name
    def __init__(self, argv=None):
        devices = ["cpu", *["cuda"] * torch.cuda.is_available(), *["mps"] * torch.backends.mps.is_available()]
        devices += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        flags = SETTINGS | {
            "seed": (0, "random seed", 0, 2**31 - 1), "out": (f"out/{NAME}", "folder of the run"),
            "device": ("cuda" if "cuda" in devices else "cpu", "cpu, cuda, cuda:1 or mps", *devices),
            "stand_in": ("auto", "drawn data: auto (if need be), always, never", "auto", "always", "never")}
        parser = argparse.ArgumentParser(usage="%(prog)s [--steps 1000 --out out/try ...]")
        parser.error = lambda message: parser.exit(2, f"{NAME}.py: {message}; see --help\n")
        parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
        for name, (default, about, *_) in flags.items():
            flag = "--" + name.replace("_", "-")
            parser.add_argument(flag, type=type(default), default=default, help=f"{about} ({default})")
        argv = [] if argv is None and self.notebook else argv  # a notebook's own arguments are Jupyter's
        args, self.saved, self.stamp = parser.parse_args(argv), None, None
        if args.resume and (model := Path(args.out, "model.pt")).exists():
            self.saved, self.stamp = read_checkpoint(model), model.stat().st_mtime_ns
            parser.set_defaults(**self.saved["settings"])  # for all that the command line leaves open
            args, Run.last_save = parser.parse_args(argv), f"the run in {args.out} is as it was"
        for name, (default, _, *limits) in flags.items():
            value, word = getattr(args, name), isinstance(default, str)
            if limits and not (value in limits if word else limits[0] <= value <= limits[1]):
                limits = (", " if word else " to ").join(map(str, limits))
                parser.error(f"--{name.replace('_', '-')} {value} is out of range: {limits}")
        vars(self).update(vars(args), out=Path(args.out), step=0, seconds=0.0, curve=[])
        self.settings = {name: getattr(args, name) for name in flags if name not in ("device", "out")}
        self.write("probe", b"").unlink()  # what cannot be written fails now, not after training

    def autocast(self):  # bfloat16 where the hardware computes in it, else nothing
        cpu, kind = getattr(torch.cpu, "get_capabilities", dict)(), self.device.split(":")[0]
        fast = {"cpu": cpu.get("avx512_bf16") or cpu.get("amx_tile"), "mps": False,
                "cuda": kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)}[kind]
        return torch.autocast(kind, torch.bfloat16, enabled=bool(fast))

    def loop(self, **parts):
        """Yield each step's number until --steps or Ctrl-C; save and resume `parts`, whose state it is."""
        def stop(*_):
            self.stopped = True  # Ctrl-C: training ends after this step
        self.parts, self.losses, self.stopped = parts, [], False
        if self.saved:
            if self.saved["source"] != self.source:
                raise OSError(f"{self.out} was trained on {self.saved['source']}, not on {self.source}")
            self.step, self.seconds, self.curve = (self.saved[key] for key in ("step", "seconds", "curve"))
            try:
                for name, state in {k: self.saved["state"][k] for k in parts | self.saved["state"]}.items():
                    if "last_epoch" in state:  # a schedule: its place; --steps may be new
                        state = {"last_epoch": self.step, "_step_count": self.step + 1}
                    if "param_groups" in state:  # an optimiser: moments, rate; --lr may be new
                        groups = zip(parts[name].state_dict()["param_groups"], state["param_groups"])
                        state["param_groups"] = [new | {"lr": old["lr"]} for new, old in groups]
                    parts[name].load_state_dict(state)
            except (RuntimeError, ValueError, KeyError) as error:
                raise OSError(f"{self.out} does not fit these flags: leave the model's alone") from error
        self.kept, self.begun = time.perf_counter(), time.perf_counter() - self.seconds
        usual = signal.signal(signal.SIGINT, stop)
        try:
            while self.step < self.steps and not self.stopped:
                self.step += 1
                torch.manual_seed((self.seed << 32) + self.step)  # a resumed run ends in the same weights
                yield self.step
        finally:
            signal.signal(signal.SIGINT, usual)
        print(f"{self.step:,} steps done{', --resume goes on' * self.stopped}; now evaluating", flush=True)

    def log(self, loss):
        """Note the loss. True every 20 s and at the end, after a status line: it is time to save."""
        self.losses.append(loss.item())
        if not math.isfinite(self.losses[-1]):
            raise FloatingPointError(f"loss not finite at step {self.step}: lower --lr; {Run.last_save}")
        self.now = time.perf_counter()
        if self.now - self.kept < self.pause and self.step < self.steps and not self.stopped:
            return False
        self.seconds, recent = self.now - self.begun, self.losses[-100:]
        rate, left = self.step * self.batch_size / self.seconds, self.seconds * (self.steps / self.step - 1)
        print(f"step {self.step:,}/{self.steps:,}  {LOSS} {sum(recent) / len(recent):.4f}  {rate:,.0f} "
              f"{ITEMS}/s  {round(left) // 60} min {round(left) % 60:02} s left", flush=True)
        torch.manual_seed(0)  # what is measured and drawn on the way has the same noise each time
        return True

    def save(self, validation, samples, **more):
        """Write model.pt and samples.png; add a point to the curve, with `more` numbers of your own."""
        if not math.isfinite(validation):
            raise FloatingPointError(f"not finite after step {self.step}: lower --lr; {Run.last_save}")
        self.curve.append({"step": self.step, "training": sum(self.losses) / len(self.losses),
                           "validation": validation, **more})
        saved = {name: getattr(self, name) for name in ("settings", "source", "step", "seconds", "curve")}
        saved |= {"name": NAME, "state": {name: part.state_dict() for name, part in self.parts.items()}}
        torch.save(saved, blob := io.BytesIO())
        self.stamp = self.write("model.pt", blob.getvalue()).stat().st_mtime_ns
        Run.last_save = f"step {self.step:,} is saved in {self.out}"
        self.picture("samples.png", samples)
        self.losses, self.kept = [], time.perf_counter()
        self.pause = max(20, self.seconds / 20, 15 * (self.kept - self.now))  # saving: a 16th of the time

    def write(self, name, blob):
        """Write out/name whole or not at all. An earlier run there moves aside, a later one stays."""
        try:
            there = name != "probe" and (model := self.out / "model.pt").exists()
            if there and model.stat().st_mtime_ns != self.stamp:
                aside = next(path for k in range(1, 10**6) if not (path := Path(f"{self.out}-{k}")).exists())
                print(f"another run is in {self.out}: {'this' if self.stamp else 'it'} moves to {aside}")
                self.out = aside if self.stamp else self.out.rename(aside).with_name(self.out.name)
            self.out.mkdir(parents=True, exist_ok=True)
            (part := self.out / f"{name}.part").write_bytes(blob)
            return part.replace(self.out / name)
        except OSError as error:
            for part in self.out.glob(f"{name}.part"):
                part.unlink()
            raise OSError(f"cannot write {self.out / name}: {error.strerror}") from error

    def picture(self, name, *figures):
        """Write a figure as .png, or several as the frames of a .gif; a notebook shows it."""
        pages, blob = [], io.BytesIO()
        for figure in figures:
            figure.supxlabel(f"data: {self.source}", x=0.005, ha="left", size=6, color="gray")
            figure.savefig(page := io.BytesIO(), dpi=120)
            pages.append(Image.open(page).convert("P" if name.endswith("gif") else "RGB"))
        pages[0].save(blob, name[-3:], save_all=len(pages) > 1, append_images=pages[1:], loop=0, duration=200)
        self.write(name, blob.getvalue())
        if self.notebook and not self.losses:
            from IPython import display
            display.display(display.Image(blob.getvalue(), format=name[-3:]))

    def report(self, results):
        """Print the results and write metrics.json, then draw curve.png; pictures may follow."""
        for name, value in (self.baselines | results).items():
            print(f"{name}: {value:,.4f}" if isinstance(value, float) else f"{name}: {value:,}", flush=True)
        gpu, where = "cuda" in self.device, f"CPU, {torch.get_num_threads()} threads"
        metrics = {name: getattr(self, name) for name in ("baselines", "settings", "source", "step", "curve")}
        metrics |= {"script": NAME, "results": results, "seconds of training": self.seconds,
                    "device": torch.cuda.get_device_name() if gpu else where, "torch": torch.__version__}
        self.write("metrics.json", json.dumps(metrics, indent=1).encode())
        ax = Figure(figsize=(6, 4), layout="constrained").subplots()
        steps, training, validation = zip(*([p["step"], p["training"], p["validation"]] for p in self.curve))
        ax.plot(steps, training, "o-", steps, validation, "o-", ms=3)
        ax.set(title=f"{NAME}.py: training (blue) and validation", xlabel="step", ylabel=LOSS)
        self.picture("curve.png", ax.figure)

if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(print(f"{NAME}.py: {error}", file=sys.stderr) or 2)
    except KeyboardInterrupt:
        sys.exit(print(f"\n{NAME}.py: stopped; {Run.last_save}", file=sys.stderr) or 130)
