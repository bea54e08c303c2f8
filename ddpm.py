# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""DDPM: learn to take a little noise away, then draw by taking away all of it.

Add a little Gaussian noise to a digit, a thousand times over, and nothing of the digit is left. Each of these steps is
so small that its reverse is nearly Gaussian too, and a network can learn it. Draw pure noise, walk the thousand steps
back, and a digit appears that nobody wrote. ᾱ_t, the share of the digit in x_t, falls from 1 to nearly 0 as t grows:

    x_t = √ᾱ_t x0 + √(1 − ᾱ_t) ε,   ε ~ N(0, I)        t steps of noise in one stroke
    loss = E |ε − ε̂(x_t, t, y)|²                       ε̂, the network, names the noise, given the time and the class

Trains: pick a digit, a t and an ε; it is plain regression. Samples: from t = T down to 0, guess ε, with it x0, and go
to a slightly cleaner x between the two; DDIM takes long strides, so 15 will do. p(x): a lower bound only, T + 1 terms.
Latent: x_T, as large as the image; DDIM has no randomness on the way, so it also runs backwards, and two digits can be
mixed. Good at: sample quality, stable training. Bad at: speed, since a sample takes many network calls.

Why it works: ε̂ is a score, the gradient of a log-density. Given x0, x_t is Gaussian with standard deviation
σ_t = √(1 − ᾱ_t), so ∇ log q(x_t | x0) = −(x_t − √ᾱ_t x0) / σ_t² = −ε / σ_t. The best guess of ε averages over every
x0 that may hide in x_t, and that average of gradients is the gradient of the noisy digits' own log-density:
∇ log q(x_t) = −E[ε | x_t] / σ_t ≈ −ε̂ / σ_t. To name the noise is to know which way the digits lie.

What you will see. `python ddpm.py` on MNIST and 2 CPU cores (AMD EPYC, bfloat16 in training): 229 s of training, 44 s
of pictures.

    step 181/3,600  weighted noise error 0.2484  1,154 digits/s  3 min 10 s left
    step 1,778/3,600  weighted noise error 0.0654  997 digits/s  1 min 57 s left
    step 3,600/3,600  weighted noise error 0.0596  1,012 digits/s  0 min 00 s left

A separate classifier reads 99.9 % of 1,000 samples as the class asked for (`python benchmarks/judge.py ddpm`). Test
set: −log p(x) ≤ 2.05 ± 0.02 bits/dim (8-bit grey; the bound estimated from 14,990 draws, ± one standard error).
Uniform grey would be 8, each pixel on its own 1.69: 1.03 of the bound is L_0, the last step, since the noise of x_1
spans several grey levels and the paper behind a digit is exactly white.
In out/ddpm: samples, ddim_steps, guidance, inpainting, interpolation, bound, curve (.png), denoising, growth (.gif).
On one GPU: `python ddpm.py --steps 60000 --batch-size 256 --channels 128` (not yet measured).

What differs from the paper. The network is small (0.3 M weights for its 36 M), sees 2 x 2 pixels as one, has no
attention; sines of the pixels show it faint noise (Kingma et al. 2021). It predicts v = √ᾱ ε − √(1 − ᾱ) x0, from which
ε̂ follows, and times of much noise weigh up to 10 times more (Salimans & Ho 2022): there the class is decided, and
there ε is so easy to name that eq. 14 alone teaches little. In drafts, one run each, the judge read 41 % of unguided
samples after 1,200 steps of the paper's way, and 84 % after 1,200 steps of this one. A tenth of the digits hide their
class, so that one network gives ε̂(x_t) and ε̂(x_t, y): guidance exaggerates their difference.

References: Ho, Jain & Abbeel 2020 (arXiv:2006.11239), whose equation numbers stand below; DDIM: Song, Meng & Ermon 2021
(2010.02502); guidance: Ho & Salimans 2022 (2207.12598); v: Salimans & Ho 2022 (2202.00512); sines: Kingma, Salimans,
Poole & Ho 2021 (2107.00630); scores: Song & Ermon 2019 (1907.05600).
Read before: made.py (log-likelihoods and bits). Next: ebm.py, which learns the log-density, not its gradient.

Things to break, one line each:
  1. In `weight`, clamp at 1, the paper's loss: digits come as fast, but the class asked for comes late.
  2. In `DDPM`, put torch.linspace(0.1, 2, timesteps): x_T still shows the digit (L_T in `bound`), but sampling begins
     with pure noise, and samples come out too dark.
  3. In `posterior`, return mean, 4 * (1 - a_s) / (1 - a_t) * (1 - keep): digits drown in grain in the last row of
     ddim_steps.
"""
import argparse
import io
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from data import mnist

# %% Settings: name, the published run's value, what it is. `python ddpm.py --help` prints them.
NAME, LOSS, ITEM = "ddpm", "weighted noise error", "digits"
FLAGS = {
    "steps": (3600, "optimiser steps"),
    "batch_size": (64, "digits per step"),
    "lr": (2e-3, "peak learning rate of Adam"),
    "channels": (32, "feature maps at 14 x 14, twice as many at 7 x 7"),
    "timesteps": (1000, "T, the length of the noising chain"),
    "ddim_steps": (15, "strides from noise to digit; two network calls each under guidance"),
    "guidance": (2.0, "w of classifier-free guidance: 0 ignores the class, 1 is p(x | y), more exaggerates it"),
}

# %% Model: a U-Net that looks at a noisy digit, in patches of 2 x 2 pixels, and says what is noise in it
class ResBlock(nn.Module):
    """Two 3 x 3 convolutions; time and class enter between them as a scale and a shift for each channel."""

    def __init__(self, C_in, C, D):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(math.gcd(8, C_in), C_in), nn.Conv2d(C_in, C, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(math.gcd(8, C), C), nn.Conv2d(C, C, 3, padding=1)
        self.film = nn.Linear(D, 2 * C)
        self.skip = nn.Conv2d(C_in, C, 1) if C_in != C else nn.Identity()
        nn.init.zeros_(self.conv2.weight)  # at first a block adds no more than a constant to each channel

    def forward(self, x, e):
        scale, shift = self.film(e)[:, :, None, None].chunk(2, 1)  # (B, C, 1, 1) each
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        return self.skip(x) + h

class UNet(nn.Module):
    """v̂(x_t, t, y) for x (B, 1, 28, 28), t (B,) in 1..T and y (B,) in 0..9, or 10 for "not told"."""

    def __init__(self, C, D=128):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(64, D), nn.SiLU(), nn.Linear(D, D))
        self.label = nn.Embedding(11, D)
        self.stem = nn.Conv2d(7 * 4, C, 3, padding=1)
        self.fine_in = ResBlock(C, C, D)
        self.down = nn.Conv2d(C, 2 * C, 3, stride=2, padding=1)
        self.coarse = nn.ModuleList([ResBlock(2 * C, 2 * C, D), ResBlock(2 * C, 2 * C, D)])
        self.up = nn.Conv2d(2 * C, 4 * C, 1)
        self.fine_out = ResBlock(2 * C, C, D)
        self.head = nn.Sequential(nn.GroupNorm(math.gcd(8, C), C), nn.SiLU(), nn.Conv2d(C, 4, 3, padding=1))
        nn.init.zeros_(self.head[-1].weight)  # an untrained network says v̂ = 0
        nn.init.zeros_(self.head[-1].bias)

    def forward(self, x, t, y):
        angle = t[:, None] * torch.exp(-math.log(1e4) * torch.arange(32, device=t.device) / 32)  # (B, 32)
        e = F.silu(self.time(torch.cat([angle.sin(), angle.cos()], 1)) + self.label(y))  # (B, D)
        waves = [f(2**n * math.pi * x) for n in (1, 3, 5) for f in (torch.sin, torch.cos)]  # a lens for faint noise
        x = F.pixel_unshuffle(torch.cat([x, *waves], 1), 2)  # (B, 28, 14, 14)
        h = fine = self.fine_in(self.stem(x), e)  # (B, C, 14, 14)
        h = self.down(h)  # (B, 2C, 7, 7)
        for block in self.coarse:
            h = block(h, e)
        h = F.pixel_shuffle(self.up(h), 2)  # (B, C, 14, 14)
        h = self.fine_out(torch.cat([h, fine], 1), e)  # (B, C, 14, 14)
        return F.pixel_shuffle(self.head(h), 2)  # (B, 1, 28, 28)

# %% Diffusion: the chain that adds noise, the chain that takes it away, the loss, the bound
class DDPM(nn.Module):
    """A noise predictor and the two chains around it: q adds noise, p, the network's, takes it away.

    −log p(x0) ≤ L_0 + … + L_T with L_{t−1} = E KL(q(x_{t−1} | x_t, x0) ‖ p(x_{t−1} | x_t)), how far p's step back is
    from that of one who knows x0; L_0 = −E log p(x0 | x_1); and L_T, what x_T still knows of x0. Pixels are in [-1, 1];
    only `sample` and `elbo` speak [0, 1].
    """

    def __init__(self, channels=32, timesteps=1000, ddim_steps=15, guidance=2.0):
        super().__init__()
        self.net, self.T, self.ddim_steps, self.guidance = UNet(channels), timesteps, ddim_steps, guidance
        beta = torch.linspace(0.1, 20, timesteps).div(timesteps).clamp(max=0.999)  # the paper's, for T = 1000
        self.register_buffer("alpha_bar", torch.cat([torch.ones(1), (1 - beta).cumprod(0)]))  # (T + 1,), ᾱ_0 = 1

    def abar(self, t):
        """ᾱ_t, the share of x0's variance that is left at time t, as (B, 1, 1, 1) or (1, 1, 1, 1)."""
        return self.alpha_bar[torch.as_tensor(t, device=self.alpha_bar.device)].view(-1, 1, 1, 1)

    def q_sample(self, x0, t, eps):
        """x_t = √ᾱ_t x0 + √(1 − ᾱ_t) ε, all the noise of t steps at once (eq. 4)."""
        return self.abar(t).sqrt() * x0 + (1 - self.abar(t)).sqrt() * eps

    def x0_hat(self, x, t, eps):
        """The same equation solved for x0, kept to the range of pixels."""
        return ((x - (1 - self.abar(t)).sqrt() * eps) / self.abar(t).sqrt()).clamp(-1, 1)

    def posterior(self, x0, x, t, s):
        """Mean and variance of q(x_s | x_t, x0), s < t: one step back if x0 were known (eqs. 6 and 7 for s = t − 1)."""
        a_t, a_s = self.abar(t), self.abar(s)
        keep = a_t / a_s  # α_t, where s = t − 1
        mean = (a_s.sqrt() * (1 - keep) * x0 + keep.sqrt() * (1 - a_s) * x) / (1 - a_t)
        return mean, (1 - a_s) / (1 - a_t) * (1 - keep)

    def eps(self, x, t, y=None, guidance=1.0):
        """ε̂(x_t, t, y). Guidance w: ε̂(x_t) + w (ε̂(x_t, y) − ε̂(x_t)) (Ho & Salimans 2022, whose w is one less)."""
        B, none = len(x), torch.full((len(x),), 10, device=x.device)
        t = torch.as_tensor(t, device=x.device).expand(B)
        if y is not None and guidance != 1:
            told, untold = self.eps(torch.cat([x, x]), torch.cat([t, t]), torch.cat([y, none])).chunk(2)
            return untold + guidance * (told - untold)
        v = self.net(x.contiguous(memory_format=torch.channels_last), t, none if y is None else y)
        return self.abar(t).sqrt() * v + (1 - self.abar(t)).sqrt() * x  # v = √ᾱ_t ε − √(1 − ᾱ_t) x0, turned round

    def error(self, x0, t, y, eps):
        """|ε − ε̂(x_t, t, y)|², the mean over pixels: (B,)."""
        return (eps - self.eps(self.q_sample(x0, t, eps), t, y)).square().flatten(1).mean(1)

    def weight(self, t):
        """How much time t counts in the loss, (B,). 1 in the paper; 1 / ᾱ_t would make it the error of v."""
        return (1 / self.alpha_bar[t]).clamp(max=10)

    def loss(self, x0, y):
        """E weight(t) |ε − ε̂|² with t uniform in 1..T (eq. 14)."""
        t = torch.randint(1, self.T + 1, (len(x0),), device=x0.device)
        return (self.weight(t) * self.error(x0, t, y, torch.randn_like(x0))).mean()

    def times(self, steps, power):
        """0 to T in strides: even ones for power 1, shorter ones near the digit for power 2 (Song et al. 2021, D.2)."""
        return (self.T * torch.linspace(0, 1, steps + 1) ** power).round().long().unique().tolist()

    @torch.no_grad()
    def chain(self, x, y=None, steps=None, guidance=1.0, ancestral=False, known=None):
        """From x_T = x to x_0 in `steps` strides: yields (t, x_t, x̂0). `known` = (x0, mask) are pixels to keep to."""
        times = self.times(min(steps or self.ddim_steps, self.T), 1 if ancestral else 2)[::-1]
        for t, s in zip(times, times[1:]):
            eps = self.eps(x, t, y, guidance)
            x0 = self.x0_hat(x, t, eps)
            yield t, x, x0
            if ancestral:  # draw from q(x_s | x_t, x̂0); at s = 0 its variance is 0
                mean, var = self.posterior(x0, x, t, s)
                x = mean + var.sqrt() * torch.randn_like(x)
            else:  # DDIM: go on along the same noise, no new randomness (Song et al. 2021, eq. 12 with σ = 0)
                eps = (x - self.abar(t).sqrt() * x0) / (1 - self.abar(t)).sqrt()  # what fits x̂0 as it was clamped
                x = self.q_sample(x0, s, eps)
            if known is not None:
                x = torch.where(known[1], self.q_sample(known[0], s, torch.randn_like(x)), x)
        yield 0, x, x

    def sample(self, n, y=None, **how):
        """n digits (n, 1, 28, 28) in [0, 1]; y is None, a class or (n,) classes; `how` goes to `chain`."""
        device = self.alpha_bar.device
        if y is not None:
            y, how = torch.as_tensor(y, device=device).expand(n), {"guidance": self.guidance} | how
        done = []
        for i in range(0, n, 250):
            noise, label = torch.randn(min(250, n - i), 1, 28, 28, device=device), None if y is None else y[i:i + 250]
            for _, x, _ in self.chain(noise, label, **how):
                pass
            done.append((x.clamp(-1, 1) + 1) / 2)
        return torch.cat(done)

    @torch.no_grad()
    def encode(self, x0, y=None, steps=100):
        """DDIM run backwards, x0 (B, 1, 28, 28) in [-1, 1] to its latent x_T; `chain` in as many nearly undoes it."""
        x, times = x0, self.times(steps, 2)
        for s, t in zip(times, times[1:]):
            eps = self.eps(x, max(s, 1), y)  # the network knows no t = 0
            x = self.q_sample((x - (1 - self.abar(s)).sqrt() * eps) / self.abar(s).sqrt(), t, eps)
        return x

    @torch.no_grad()
    def bound_term(self, x0, t, y=None):
        """One draw of L_{t−1} for each digit, nats (B,): what step t adds to the bound (eqs. 5, 13)."""
        x = self.q_sample(x0, t, torch.randn_like(x0))
        x0_hat = self.x0_hat(x, t, self.eps(x, t, y))
        (mean, var), (mean_hat, _) = self.posterior(x0, x, t, t - 1), self.posterior(x0_hat, x, t, t - 1)
        kl = (mean - mean_hat).square() / (2 * var.clamp(min=1e-20))  # two Gaussians of one variance; t > 1
        sigma = (1 - self.alpha_bar[1]).sqrt()  # t = 1: a Gaussian around x̂0, summed over each grey level
        below, above = (torch.special.ndtr((x0.double() + d / 255 - x0_hat) / sigma) for d in (-1, 1))
        p = torch.where(x0 > 0.999, 1, above) - torch.where(x0 < -0.999, 0, below)
        return torch.where(t == 1, -p.clamp(min=1e-12).log().flatten(1).sum(1), kl.flatten(1).sum(1)).float()

    def prior_term(self, x0):
        """L_T = KL(q(x_T | x0) ‖ N(0, I)) in nats (B,): what the noise at the end still knows of the digit."""
        a = self.alpha_bar[-1]
        return (a * x0.square() - a - torch.log1p(-a)).flatten(1).sum(1) / 2

    def elbo(self, x, y=None):
        """A lower bound of log p(x) for 8-bit digits x (B, 1, 28, 28) in [0, 1], nats (B,), in T network calls."""
        x0 = 2 * x - 1
        y = None if y is None else torch.as_tensor(y, device=x.device).expand(len(x))
        terms = (self.bound_term(x0, torch.full((len(x),), t, device=x.device), y) for t in range(1, self.T + 1))
        return -self.prior_term(x0) - sum(terms)

# %% The frame, the same to the letter in every chapter: settings, saving, training, pictures. Read it once.
SAVE_EVERY = 20  # seconds between saves at first; more as a run grows long
COMMON = {
    "seed": (0, "every step's randomness comes from (seed, step) alone"),
    "device": ("cuda" if torch.cuda.is_available() else "cpu", "cpu, cuda, cuda:1"),
    "out": (f"out/{NAME}", "folder for all that the run makes"),
    "stand_in": (("auto", "always", "never"), "drawn data where the real cannot be had (auto), always, never"),
}

def start(argv):
    """Settings from the command line, and the run to go on with: a new one, or after --resume the one in --out."""
    parser = argparse.ArgumentParser(prog=f"{NAME}.py", usage=argparse.SUPPRESS, description=__doc__.split("\n")[0])
    for name, (value, what) in (FLAGS | COMMON).items():
        first, choices = (value[0], value) if isinstance(value, tuple) else (value, None)
        parser.add_argument("--" + name.replace("_", "-"), type=type(first), default=first, choices=choices,
                            metavar="|".join(map(str, choices or [name.upper()])), help=f"{what} ({first!r})")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, with the flags it had")
    s = parser.parse_args(argv)
    path, run = Path(s.out, "model.pt"), {"step": 0, "seconds": 0.0, "curve": [], "frames": [], "state": {}}
    if s.resume and not path.exists():
        print(f"{path} is not there: starting at step 0")
    elif s.resume:
        run = read_run(path)
        parser.set_defaults(**run["settings"])  # for all that the command line does not say
        s = parser.parse_args(argv)
    for name, value in vars(s).items():
        least = 1 if type(value) is int and name != "seed" else 0
        if type(value) in (int, float) and not least <= value < (2**31 if type(value) is int else math.inf):
            parser.error(f"--{name.replace('_', '-')} {value} is out of range, which begins at {least}")
    try:
        torch.zeros(1, device=s.device)
    except (RuntimeError, AssertionError):
        parser.error(f"--device {s.device} is not to be had on this machine")
    s.out, run["name"] = Path(s.out), NAME
    run["settings"] = {name: vars(s)[name] for name in (*FLAGS, "seed", "stand_in")}
    kept = [] if s.resume else [f for f in (path, s.out / "metrics.json") if f.exists()]  # of a run before this one
    k = next(k for k in range(1, 10**6) if not any(s.out.glob(f"*-{k}.*")))
    for old in kept:
        print(f"{old} of the run before is now {old.rename(old.with_stem(f'{old.stem}-{k}'))}")
    write(s.out / "settings.json", json.dumps(run["settings"], indent=1).encode())  # fails now, not later
    return s, run

def write(path, blob):
    """Write bytes beside `path`, then rename: nobody meets half a file, and a full disk never costs the old one."""
    beside = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(blob)
        os.replace(beside, path)
    except OSError as error:
        if beside.exists():
            beside.unlink()
        raise OSError(f"cannot write {path}: {error.strerror}") from error

def read_run(path):
    """What `train` saved: name, settings, step, seconds, curve, frames, and the state of every part."""
    try:
        run = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file breaks the unpickler in many ways
        raise OSError(f"{path} is damaged, or no saved run") from error
    if not isinstance(run, dict) or run.get("name") != NAME:
        raise OSError(f"{path} is not a run of {NAME}.py")
    return run

def restore(parts, state):
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (RuntimeError, ValueError, KeyError) as error:
        raise OSError("the saved run does not fit these settings: leave the model's flags as they were") from error

def mixed(device):
    """bfloat16 autocast where the hardware computes in it, else nothing."""
    cpu = getattr(torch.cpu, "get_capabilities", dict)()
    fast = torch.cuda.is_bf16_supported(False) if "cuda" in device else cpu.get("avx512_bf16") or cpu.get("amx_tile")
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bool(fast))

def train(s, run, parts, update, validate, draw):
    """Call `update(step)`, which gives a loss, until s.steps are done or Ctrl-C; validate, draw and save on the way.

    Each step is seeded with (seed, step) and every part is saved (a part is what has a state_dict), so a run that was
    killed and resumed ends in the same weights. `validate()` gives a float, `draw()` a frame to keep.
    """
    if run["state"]:
        restore(parts, run["state"])
    stop, losses, terminal = [], [], sys.stdout.isatty()
    # The first Ctrl-C only asks for a stop after the step, a second one is as usual.
    usual = signal.signal(signal.SIGINT, lambda *_: (stop.append(1), signal.signal(signal.SIGINT, usual)))
    begun = told = saved = time.perf_counter()
    first, before, pause, last = run["step"], run["seconds"], SAVE_EVERY, run["step"] >= s.steps
    while not last:
        torch.manual_seed((s.seed << 32) + run["step"])
        losses.append(update(run["step"]).detach())
        run["step"] += 1
        now, last = time.perf_counter(), run["step"] >= s.steps or bool(stop)
        if last or now - told > (0.5 if terminal else 10) or now - saved > pause:
            values, told, rate = torch.stack(losses).tolist(), now, (run["step"] - first) / (now - begun)
            if not math.isfinite(sum(values)):
                bad = run["step"] - len(values) + 1 + [math.isfinite(v) for v in values].index(False)
                raise FloatingPointError(f"the loss is not finite at step {bad}: try a lower --lr. "
                                         f"What was saved before is still in {s.out}")
            left, loss = (s.steps - run["step"]) / rate, sum(values[-100:]) / len(values[-100:])
            line = (f"step {run['step']:,}/{s.steps:,}  {LOSS} {loss:.4f}  {rate * s.batch_size:,.0f} {ITEM}/s  "
                    f"{left // 60:.0f} min {left % 60:02.0f} s left")
            print(f"\r{line} " if terminal else line, end="" if terminal and not last else "\n", flush=True)
        if last or now - saved > pause:
            run["curve"].append((run["step"], sum(values) / len(values), validate()))
            run["frames"].append(draw())
            run["state"] = {name: part.state_dict() for name, part in parts.items()}
            run["seconds"], blob = before + time.perf_counter() - begun, io.BytesIO()
            torch.save(run, blob)
            write(s.out / "model.pt", blob.getvalue())
            saved, losses = time.perf_counter(), []
            pause = max(SAVE_EVERY, run["seconds"] / 20, 15 * (saved - now))  # saving takes a 16th of the time at most
    signal.signal(signal.SIGINT, usual)
    if stop:
        print(f"stopped after step {run['step']:,} and saved: --resume goes on from there, Ctrl-C leaves now")

def sheet(images, columns, title, rows=None, cols=None):
    """A figure of images (N, 1, 28, 28) in [0, 1], `columns` to a row, with names of rows and columns."""
    tiles = images.float().cpu().view(-1, columns, 28, 28).transpose(1, 2).flatten(2).flatten(0, 1)
    height = len(tiles) // 28
    fig = Figure(figsize=(columns / 2 + 1.2, height / 2 + 0.9), layout="constrained")
    ax = fig.subplots()
    ax.imshow(tiles, cmap="gray_r", vmin=0, vmax=1)
    fig.suptitle(title, size=10)
    ax.set_xticks(range(14, 28 * columns, 28), cols or [""] * columns, size=8)
    ax.set_yticks(range(14, 28 * height, 28), rows or [""] * height, size=8)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return fig

def picture(s, name, *figs):
    """Write a figure as a .png, or several as the frames of a .gif, the source of the data in the corner."""
    pages, blob = [], io.BytesIO()
    for fig in figs:
        fig.supxlabel(s.source, x=0.005, ha="left", size=6, color="gray")
        fig.savefig(page := io.BytesIO(), dpi=120)
        pages.append(Image.open(page).convert("P" if name.endswith("gif") else "RGB"))
    pages[0].save(blob, name[-3:], **{"save_all": True, "append_images": pages[1:], "loop": 0, "duration": [
        200] * len(pages[1:]) + [2500]} if name.endswith("gif") else {})
    write(s.out / name, blob.getvalue())

def finish(s, run, results, levels):
    """Draw the curve beside `levels` to compare with; print the results and keep them in metrics.json."""
    fig = Figure(figsize=(6, 4), layout="constrained")
    ax = fig.subplots()
    step, loss, valid = zip(*run["curve"])
    ax.plot(step, loss, "o-", ms=3, label="training, mean since the point before")
    ax.plot(step, valid, "o-", ms=3, label="validation")
    for name, level in levels.items():
        ax.axhline(level, ls="--", lw=1, color="gray")
        ax.annotate(f"{name} {level:.4g}", (step[-1], level), ha="right", va="bottom", size=8)
    ax.set(title=f"{NAME}.py: loss over training", xlabel="step", ylabel=LOSS,
           yscale="log" if min(loss + valid) > 0 else "linear")
    fig.legend(loc="outside lower right", ncols=2, fontsize=8)
    picture(s, "curve.png", fig)
    for name, value in results.items():
        print(f"{name}: {value:,.4f}" if isinstance(value, float) else f"{name}: {value:,}")
    device = torch.cuda.get_device_name(s.device) if "cuda" in s.device else f"CPU, {torch.get_num_threads()} threads"
    write(s.out / "metrics.json", json.dumps({
        "script": NAME, "results": results, "levels": levels, "settings": run["settings"], "steps done": run["step"],
        "source": s.source, "device": device, "torch": torch.__version__, "curve": run["curve"]}, indent=1).encode())
    print(f"in {s.out}: {', '.join(sorted(f.name for f in s.out.iterdir() if f.suffix != '.part'))}")

# %% Pictures
def test_bound(model, x, each=10):
    """The bound's terms L_0 to L_T on digits x (N, 1, 28, 28) in [-1, 1]: nats (T + 1,), and the sum's standard error.

    A term is a mean over `each` digits of its own; L_0, the largest by far, over 500 times as many; L_T is exact.
    """
    t = torch.cat([torch.ones(500 * each), torch.arange(2, model.T + 1).repeat_interleave(each)]).long().to(x.device)
    i = torch.arange(len(t), device=x.device) % len(x)
    nats = torch.cat([model.bound_term(x[i[k:k + 500]], t[k:k + 500]) for k in range(0, len(t), 500)])
    draws = [nats[t == k] for k in range(1, model.T + 1)]
    terms = torch.stack([d.mean() for d in draws] + [model.prior_term(x).mean()])
    return terms.cpu(), sum(d.var() / len(d) for d in draws).sqrt().item()

def pixel_histogram(x, x_test):
    """Nats of a test digit under a baseline: each pixel on its own, by how often it had each grey level, plus 0.1."""
    bins = torch.arange(784, device=x.device) * 256 + x.flatten(1)  # (N, 784), a bin for each pixel and level
    counts = bins.flatten().bincount(minlength=784 * 256) + 0.1
    p = counts / (len(x) + 25.6)
    return -p.log()[torch.arange(784, device=x.device) * 256 + x_test.flatten(1)].sum(1).mean().item()

def draw_all(s, run, model, x, y, terms, error):
    """All pictures, from a trained model, digits x (N, 1, 28, 28) in [-1, 1], the bound's terms, (t, |ε − ε̂|²)."""
    torch.manual_seed(1)
    digit, names = torch.arange(10, device=x.device), list("0123456789")
    x = x[torch.stack([(y == d).nonzero()[0, 0] for d in range(10)])]  # the first test digit of each class
    noise = torch.randn_like(x)

    def last(*args, **how):  # where a chain ends
        return [*model.chain(*args, **how)][-1][1]

    def page(name, title, images, columns, rows=None, cols=None):
        picture(s, f"{name}.png", sheet(torch.cat(images) / 2 + 0.5, columns, title, rows, cols))

    page("samples", f"samples of each class: {s.ddim_steps} DDIM steps, guidance {s.guidance:g}",
         [2 * model.sample(100, digit.repeat(10)) - 1], 10, cols=names)
    picture(s, "growth.gif", *[sheet(f / 255, 10, f"the same noise after {c[0]:,} steps of training", cols=names)
                           for f, c in zip(run["frames"], run["curve"])])
    picture(s, "denoising.gif", *[
        sheet(torch.cat([x_t, x0]) / 2 + 0.5, 10, f"t = {t}: the digit so far, and as foreseen", ["x_t", "x̂0"], names)
        for t, x_t, x0 in model.chain(noise, digit, 40, s.guidance)])
    strides = [n for n in (1, 2, 3, 5, 10, 20, 50) if n < model.T]
    page("ddim_steps", "one noise in more and more DDIM steps, and by the full chain",
         [last(noise, digit, n, s.guidance) for n in strides]
         + [last(noise, digit, model.T, s.guidance, ancestral=True)], 10, [*strides, f"all {model.T}"], names)
    page("guidance", "the same noise under more and more guidance w",
         [last(noise, digit, 20, w) for w in (0, 1, 2, 4, 8)], 10, ["w = 0", 1, 2, 4, 8], names)

    known = x, torch.arange(28, device=x.device).view(28, 1) < 14  # the upper half
    page("inpainting", "the lower half of a test digit, erased and drawn anew, class told",
         [x, torch.where(known[1], x, 0), *(last(torch.randn_like(x), digit, 250, s.guidance, True, known)
                                            for _ in range(3))], 10, ["digit", "known", 1, 2, 3], names)

    steps = min(100, model.T)
    a, b = model.encode(x, None, steps), model.encode(x.roll(-1, 0), None, steps)
    angle = F.cosine_similarity(a.flatten(1), b.flatten(1)).acos().view(10, 1, 1, 1)
    mix = [i / 8 for i in range(9)]  # along the great circle, since noise lives near a sphere
    arc = [(((1 - u) * angle).sin() * a + (u * angle).sin() * b) / angle.sin() for u in mix]
    between = [x, *(last(z, None, steps) for z in arc), x.roll(-1, 0)]
    page("interpolation", "from one test digit to another through their DDIM latents",
         [torch.stack(between, 1).flatten(0, 1)], 11, cols=["digit", *mix, "digit"])

    fig = Figure(figsize=(10, 4), layout="constrained")
    left, right = fig.subplots(1, 2)
    left.plot(error[0], error[1])
    left.set(title="the less noise, the harder to see", xlabel="t", ylabel="|ε − ε̂|² a pixel", yscale="log")
    bits = terms / (784 * math.log(2))
    right.plot(range(1, model.T), bits[1:-1], lw=0.8, label="$L_1$ to $L_{T-1}$")
    right.plot([0, model.T], bits[[0, -1]], "o", label=f"$L_0$ = {bits[0]:.3f} and $L_T$ = {bits[-1]:.0e}")
    right.set(title=f"the bound's {model.T + 1} terms: {bits.sum():.3f} bits/dim", xlabel="term", yscale="log")
    right.legend()
    picture(s, "bound.png", fig)

# %% The run
def build(s):
    return DDPM(s.channels, s.timesteps, s.ddim_steps, s.guidance).to(memory_format=torch.channels_last)

def load(path=f"out/{NAME}/model.pt", device="cpu"):
    """The model of a saved run, with averaged weights, ready to sample."""
    run = read_run(path)
    model = build(argparse.Namespace(**run["settings"]))
    restore({"average": model}, run["state"])
    return model.to(device).eval()

def main(argv=None):
    s, run = start(argv)
    *data, s.source = mnist(s.stand_in)
    x, y, x_test, y_test = (v.to(s.device) for v in data)
    x_valid, y_valid, x, y = x[55000:], y[55000:], x[:55000], y[:55000]
    torch.manual_seed(s.seed)
    model = build(s).to(s.device)
    average = build(s).to(s.device).requires_grad_(False)  # of the weights over training: it samples and is judged
    average.load_state_dict(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=s.lr, betas=(0.9, 0.99), fused=True)

    abar, power = model.alpha_bar[1:], (x / 127.5 - 1).square().mean()  # untrained, v̂ = 0 and ε − ε̂ = √ᾱ v
    untrained = (model.weight(torch.arange(1, model.T + 1)) * abar * (abar + (1 - abar) * power)).mean().item()
    size = sum(p.numel() for p in model.parameters())
    print(f"{NAME}.py: {size:,} parameters, {s.source}, {s.device}; untrained, {LOSS} is {untrained:.4f}")

    def update(step):
        i = torch.randint(len(x), (s.batch_size,), device=s.device)
        label = torch.where(torch.rand(s.batch_size, device=s.device) < 0.1, 10, y[i])  # a tenth is not told
        done = step / s.steps  # the learning rate goes up over a twentieth of the run, then down along a cosine
        optimizer.param_groups[0]["lr"] = s.lr * min(1, 20 * done + 1e-3) * (1 + math.cos(math.pi * done)) / 2
        with mixed(s.device):
            loss = model.loss(x[i] / 127.5 - 1, label)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        for a, p in zip(average.parameters(), model.parameters()):
            a.lerp_(p.detach(), 1 - min(0.999, (1 + step) / (10 + step)))
        return loss

    @torch.no_grad()
    def errors(digits, labels, n=1000):
        """t, spread over 1..T, and |ε − ε̂|² (n,) for n digits and a noise that stays the same."""
        torch.manual_seed(0)
        t = torch.arange(n, device=s.device) * s.timesteps // n + 1
        x0, eps = digits[:n] / 127.5 - 1, torch.randn(n, 1, 28, 28, device=s.device)
        return t, torch.cat([average.error(*part) for part in zip(*(v.split(500) for v in (x0, t, labels[:n], eps)))])

    def validate():
        t, error = errors(x_valid, y_valid)
        return (average.weight(t) * error).mean().item()

    def draw():
        torch.manual_seed(0)
        samples = average.sample(40, torch.arange(40, device=s.device) % 10)
        picture(s, "samples.png", sheet(samples, 10, f"after {run['step']:,} steps of training", cols=[*range(10)]))
        return (255 * samples).byte().cpu()

    train(s, run, {"model": model, "average": average, "optimizer": optimizer}, update, validate, draw)

    done, (t, error) = time.perf_counter(), errors(x_test, y_test, 5000)
    torch.manual_seed(0)
    terms, spread = test_bound(average, x_test / 127.5 - 1)
    by_t = [v.view(50, -1).mean(1).cpu() for v in (t.float(), error)]
    draw_all(s, run, average, x_test / 127.5 - 1, y_test, terms, by_t)
    drawn = time.perf_counter()
    average.sample(250, 7).cpu()
    speed, bit = 250 / (time.perf_counter() - drawn), 784 * math.log(2)  # nats per bit/dim
    finish(s, run, {
        "test noise error, weighted": (average.weight(t) * error).mean().item(),
        "test noise error, mean square a pixel": error.mean().item(),
        "test bound, bits/dim (-log p is at most this)": terms.sum().item() / bit,
        "its standard error, bits/dim": spread / bit,
        "each pixel on its own, bits/dim (a baseline)": pixel_histogram(x, x_test) / bit,
        "noise error of an untrained network, weighted": untrained,
        "samples a second": speed,
        "seconds of training": run["seconds"], "seconds after": drawn - done}, {"untrained": untrained})

if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(print(f"{NAME}.py: {error}", file=sys.stderr) or 2)
