# /// script
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""DDPM: denoising diffusion probabilistic models (Ho, Jain & Abbeel 2020, arXiv:2006.11239).

The forward chain q adds a little Gaussian noise to an image x_0, T = 1,000 times, until nothing is left. Its
steps add up in closed form, with α_t = 1 − β_t and ᾱ_t = α_1 α_2 ⋯ α_t, which falls from 1 to nearly 0:

    q(x_t | x_{t−1}) = N(√α_t x_{t−1}, β_t I)        β_t rising linearly from 0.0001 to 0.02
    x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε,   ε ~ N(0, I)                                        (eq. 4)

Each step is so small that its reverse is nearly Gaussian too. A network ε̂(x_t, t, y) learns to predict the
noise in x_t, given the time t and the class y; the prediction gives the mean of the reverse step:

    loss = E ‖ε − ε̂(x_t, t, y)‖²                                                        (Algorithm 1)
    x_{t−1} = (x_t − β_t / √(1 − ᾱ_t) · ε̂) / √α_t + √β_t z,   z ~ N(0, I), 0 at t = 1   (Algorithm 2)

Sampling walks the chain back from pure noise x_T; DDIM, a faster sampler, takes 12 strides without new noise.
A tenth of the digits carry the null label for y; guidance exaggerates the change that y makes to ε̂. Why it
works: −ε / σ_t, with σ_t² = 1 − ᾱ_t, is ∇ log q(x_t | x_0); the best prediction of ε, a mean over all x_0
that may hide in x_t, is −σ_t times ∇ log q(x_t), called the score. p(x): a lower bound, T + 1 terms.
Latent: x_T. Good at: sample quality, stable training. Bad at: speed.

`python ddpm.py` on MNIST and two cores of an Intel Xeon (bfloat16): 457 s of training, 484 s in all.

    step 540/10,000  noise prediction error 0.0523  1,322 digits/s  7 min 38 s left
    step 4,688/10,000  noise prediction error 0.0274  1,395 digits/s  4 min 04 s left
    step 10,000/10,000  noise prediction error 0.0240  1,401 digits/s  0 min 00 s left

A separate classifier finds the class asked for in 99.2 % of 5,000 samples (92.7 % without guidance). Test
set: −log p(x) ≤ 1.36 ± 0.01 bits/dim under the null label, of it 0.42 for L_0 (8-bit grey, one t a digit).
"""
import argparse
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
        self.label, self.stem = nn.Embedding(11, D), nn.Conv2d(4, C, 3, padding=1)
        self.fine_in, self.down = ResBlock(C, C, D), nn.Conv2d(C, 2 * C, 3, stride=2, padding=1)
        self.coarse1, self.coarse2 = ResBlock(2 * C, 2 * C, D), ResBlock(2 * C, 2 * C, D)
        self.up, self.fine_out = nn.ConvTranspose2d(2 * C, C, 2, stride=2), ResBlock(2 * C, C, D)
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
        self.register_buffer("alpha_bar", (1 - self.beta).cumprod(0), persistent=False)

    def eps(self, x, t, y=None, w=1):
        """ε̂(x_t, t, y), t a number or (B,), y None (the null label), a class or (B,) classes. Guided by w:
        ε̂(x_t, t) + w (ε̂(x_t, t, y) − ε̂(x_t, t)) (Ho & Salimans 2022, whose w is one less)."""
        x = x.contiguous(memory_format=torch.channels_last)
        t, null = torch.as_tensor(t, device=x.device).expand(len(x)), self.labels(NULL, len(x))
        eps = self.net(x, t, null if y is None else self.labels(y, len(x)))
        return eps if w == 1 or y is None else torch.lerp(self.net(x, t, null), eps, w)

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
            beta, alpha_bar = self.beta[t], self.alpha_bar[t]
            x = (x - beta / (1 - alpha_bar).sqrt() * self.eps(x, t, y)) / (1 - beta).sqrt() + beta.sqrt() * z
        return (x.clamp(-1, 1) + 1) / 2

def drop_labels(y, rate):
    """Labels (B,), each the null label with probability `rate`: one network learns p(x | y) and p(x)."""
    return torch.where(torch.rand(len(y), device=y.device) < rate, NULL, y)

# %% Training
def main(argv=None):
    run = Run(argv)  # flags, output folder, resuming: the frame, at the end of this file
    x, y, x_test, y_test, run.source = mnist(run.stand_in, run.device)
    n = len(x) * 11 // 12  # the last twelfth (5,000 digits of MNIST) is for validation

    torch.manual_seed(run.seed)
    model = DDPM(run.channels, run.timesteps, run.label_dropout < 1)
    model.to(run.device, memory_format=torch.channels_last)  # how convolutions are fastest
    run.baselines = {f"untrained, {LOSS}": model.loss(x[:1000] / 127.5 - 1).item()}
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(max(0.0, 1 - 10 / run.steps)))  # EMA weights
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
            run.save(validation, grid(samples, f"samples, step {step:,}"))
    evaluate(run, ema.module, x[:n], x_test)

# %% That is the whole idea. Below: what the trained model can do, and the frame that every chapter shares.
# %% Evaluation: a saved model, a picture, fast sampling, the bound
def load(path=f"out/{NAME}/model.pt", device="cpu"):
    """The model of a saved run with its EMA weights, ready to sample."""
    try:
        assert (saved := torch.load(path, map_location="cpu", weights_only=True))["name"] == NAME
        s = saved["settings"]
        ema = AveragedModel(DDPM(s["channels"], s["timesteps"], s["label_dropout"] < 1))
        ema.load_state_dict(saved["state"]["ema"])
    except Exception as error:  # a damaged file breaks in many ways
        raise OSError(f"{path} is missing, damaged, or no checkpoint of {NAME}.py") from error
    return ema.module.to(device).eval()

def grid(images, title, rows="", cols="0123456789"):
    """A figure of images (N, 1, 28, 28) in [0, 1], ten to a row, with names of rows and columns."""
    tiles = images.float().cpu().view(-1, 10, 28, 28).transpose(1, 2).flatten(2).flatten(0, 1).numpy()
    ax = Figure(figsize=(6.2, len(tiles) / 56 + 1.1), layout="constrained").subplots()
    ax.imshow(tiles, cmap="gray_r", vmin=0, vmax=1)
    ax.set(xticks=range(14, 280, 28), xticklabels=cols, title=title, frame_on=False)
    ax.set(yticks=range(14, 28 * len(rows), 28), yticklabels=rows)
    ax.tick_params(length=0)
    return ax.figure

def predict_x0(model, x, t, eps):
    """Equation 4 solved for x0, clamped to the range of pixels."""
    return ((x - (1 - model.alpha_bar[t]).sqrt() * eps) / model.alpha_bar[t].sqrt()).clamp(-1, 1)

@torch.no_grad()
def ddim(model, x, y=None, steps=12, w=1.6):
    """x_T to x_0 with no new noise: yields (t, x_t, predicted x0) (Song et al. 2021, eq. 12, σ = 0; D.2)."""
    at = (model.T * torch.linspace(1, 0, min(steps, model.T) + 1) ** 2).round().int().unique().tolist()[::-1]
    for t, s in zip(at, at[1:]):
        x0 = predict_x0(model, x, t, model.eps(x, t, y, w))
        yield t, x, x0
        eps = (x - model.alpha_bar[t].sqrt() * x0) / (1 - model.alpha_bar[t]).sqrt()  # what fits this x0
        x = model.q_sample(x0, s, eps)
    yield 0, x, x

def ddim_sample(model, n, y=None, steps=12, w=1.6, x=None):
    """n images (n, 1, 28, 28) in [0, 1] as by `DDPM.sample`, in few steps, from x_T = x (n, 1, 28, 28)."""
    x = torch.randn(n, 1, 28, 28, device=model.beta.device) if x is None else x
    parts = zip(x.split(250), model.labels(y, n).split(250))
    return torch.cat([list(ddim(model, *part, steps, w))[-1][1] for part in parts]).clamp(-1, 1) / 2 + 0.5

def bound_terms(model, x0, histogram, y=None):
    """A draw of L_0, of the sum of L_1 … L_{T−1} by one t, and L_T, where −log p(x0 | y) ≤ L_0 + … + L_T
    (eq. 5), nats (3, B), for x0 (B, 1, 28, 28) in [-1, 1]; `histogram` (256,): shares of grey levels."""
    a, p = model.alpha_bar, 1 / torch.arange(2.0, model.T + 1, device=x0.device)  # L_t falls like 1 / t, and
    t = torch.multinomial(p, len(x0), True) + 2  # large terms are drawn more often: importance sampling
    last = (a[-1] * x0**2 - a[-1] - torch.log1p(-a[-1])) / 2  # KL(q(x_T | x0) ‖ N(0, I))
    x = model.q_sample(x0, t, torch.randn_like(x0))  # KL of two Gaussians of q's variance (`sample` has β_t):
    error, snr = x0 - predict_x0(model, x, t, model.eps(x, t, y)), a / (1 - a)
    between = p.sum() * t.view(-1, 1, 1, 1) * (snr[t - 1] - snr[t]) / 2 * error**2  # Kingma 2021, eq. 14
    x, levels = model.q_sample(x0, 1, torch.randn_like(x0)), torch.arange(256, device=x0.device) / 127.5 - 1
    log_likelihood = -(x[..., None] - a[1].sqrt() * levels) ** 2 / (2 * model.beta[1])
    log_p = (histogram.log() + log_likelihood).log_softmax(-1)  # p(x0 | x_1) ∝ h(x0) N(x_1; √ᾱ_1 x0, β_1)
    first = -log_p.gather(-1, ((x0 + 1) * 127.5).round().long()[..., None])[..., 0]
    return torch.stack([first, between, last]).flatten(2).sum(2)

@torch.no_grad()
def evaluate(run, model, x_train, x):
    """Figures and pictures of uint8 test images x; the training images are for their histogram."""
    torch.manual_seed(1)
    h = (x_train.flatten().bincount(minlength=256) + 1) / (x_train.numel() + 256)  # shares of grey levels
    terms = torch.cat([bound_terms(model, v / 127.5 - 1, h) for v in x.split(100)], 1) / (784 * math.log(2))
    run.report({
        "independent grey levels, bits/dim": -h.log2()[x.long()].mean().item(),
        "test NLL bound, unconditional, bits/dim": terms.sum(0).mean().item(),
        "its standard error": (terms.sum(0).std() / len(x) ** 0.5).item(),
        "of it L_0": terms[0].mean().item()})
    samples = ddim_sample(model, 100, torch.arange(100) % 10, run.sampling_steps, run.guidance)
    run.picture("samples.png", grid(samples, f"{run.sampling_steps} DDIM steps, guidance {run.guidance:g}"))
    digit, (a, b) = torch.arange(10, device=x.device), torch.randn(2, 10, 1, 28, 28, device=x.device)
    arc = [math.cos(u * math.pi / 16) * a + math.sin(u * math.pi / 16) * b for u in range(9)]
    rows = torch.cat([ddim_sample(model, 10, digit, run.sampling_steps, run.guidance, x_T) for x_T in arc])
    run.picture("interpolation.png", grid(rows, "from one x_T to another, along an arc"))
    run.picture("denoising.gif", *(grid(torch.cat([x_t, x0]) / 2 + 0.5, f"t = {t}", ["x_t", "x̂0"])
                                   for t, x_t, x0 in ddim(model, a, digit, 40, run.guidance)))

# %% Notes
# Differs from the paper: a U-Net of 0.3 M weights for 36 M, on 2 x 2 patches, without attention, its input
# added to its output (class accuracy after 1,800 steps 96 %, else 82 %); L_0 by Bayes' rule (by a Gaussian
# around x̂_0: 1.03 bits/dim); one cycle of the learning rate. Guided samples are not draws of p(x | y).
#
# Things to break:
# 1. In `UNet.forward`, leave out "x +": the loss falls later, and the classes appear later.
# 2. In `DDPM`, put torch.linspace(0.1, 2, timesteps): x_T still shows the digit, samples come out too dark.
# 3. In `DDPM.sample`, leave out "if t > 1 else 0": digits come out grainy.
#
# References: DDIM: Song, Meng & Ermon 2021; scores: Song & Ermon 2019. Read before: vae.py. Next: ebm.py.

# %% The frame, the same to the letter in every chapter: flags, checkpoints, status line, results, pictures
class Run:
    """The flags as attributes, and what a training loop needs around it: see `main`."""
    pause, saved, last_save = 5, None, "nothing was saved"
    def __init__(self, argv=None):
        devices = ["cpu", *["cuda"] * torch.cuda.is_available(), *["mps"] * torch.backends.mps.is_available()]
        flags = SETTINGS | {
            "seed": (0, "random seed", 0, 2**31 - 1), "out": (f"out/{NAME}", "folder of the run"),
            "device": ("cuda" if "cuda" in devices else "cpu", "what computes", *devices),
            "stand_in": ("auto", "drawn data in place of real; auto: if need be", "auto", "always", "never")}
        parser = argparse.ArgumentParser(usage="%(prog)s [--steps 1000 --out out/try ...]")
        parser.error = lambda message: parser.exit(2, f"{NAME}.py: {message}; see --help\n")
        parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
        for name, (default, about, *limits) in flags.items():
            flag, kind = "--" + name.replace("_", "-"), type(default)
            words = limits if limits and kind is str else None
            parser.add_argument(flag, type=kind, default=default, choices=words, help=f"{about} ({default})")
        args = parser.parse_args(argv := [] if argv is None and "ipykernel" in sys.modules else argv)
        if args.resume and (model := Path(args.out, "model.pt")).exists():
            load(model)  # which refuses a damaged file
            self.saved = torch.load(model, map_location="cpu", weights_only=True)
            Run.last_save = f"the run in {args.out} is as it was"
            args = parser.parse_args(argv, argparse.Namespace(**self.saved["settings"]))
        for name, (default, _, *limits) in flags.items():
            if type(default) is not str and not limits[0] <= getattr(args, name) <= limits[1]:
                parser.error(f"--{name.replace('_', '-')} is out of range: {limits[0]} to {limits[1]}")
        vars(self).update(vars(args), out=Path(args.out), step=0, seconds=0.0, curve=[])
        self.settings = {name: getattr(args, name) for name in flags if name not in ("device", "out")}

    def autocast(self):  # bfloat16 where the hardware computes in it, else nothing
        cpu, kind = getattr(torch.cpu, "get_capabilities", dict)(), self.device
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
                for name, part in parts.items():
                    state = self.saved["state"][name]
                    if "last_epoch" in state:  # a schedule: its place; --steps may be new
                        state = {"last_epoch": self.step, "_step_count": self.step + 1}
                    if "param_groups" in state:  # an optimiser: its moments and rate; --lr may be new
                        groups = zip(part.state_dict()["param_groups"], state["param_groups"])
                        state["param_groups"] = [new | {"lr": old["lr"]} for new, old in groups]
                    part.load_state_dict(state)
            except (RuntimeError, ValueError, KeyError) as error:
                raise OSError(f"{self.out} does not fit these flags: leave the model's alone") from error
        elif (self.out / "model.pt").exists():
            aside = next(path for k in range(1, 10**6) if not (path := Path(f"{self.out}-{k}")).exists())
            print(f"an earlier run is in {self.out}: it moves to {self.out.rename(aside)}", flush=True)
        self.out.mkdir(parents=True, exist_ok=True)  # a folder that cannot be made fails now
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
        (part := self.out / "model.pt.part").write_bytes(blob.getvalue())
        part.replace(self.out / "model.pt")  # whole or not at all
        Run.last_save = f"step {self.step:,} is saved in {self.out}"
        self.picture("samples.png", samples)
        self.losses, self.kept = [], time.perf_counter()
        self.pause = max(20, self.seconds / 20, 15 * (self.kept - self.now))  # saving: a 16th of the time

    def picture(self, name, *figures):
        """Write a figure as .png, or several as the frames of a .gif."""
        pages = []
        for figure in figures:
            figure.supxlabel(f"data: {self.source}", x=0.005, ha="left", size=6, color="gray")
            figure.savefig(page := io.BytesIO(), dpi=120)
            pages.append(Image.open(page).convert("P" if name.endswith("gif") else "RGB"))
        pages[0].save(self.out / name, save_all=len(pages) > 1, append_images=pages[1:], loop=0, duration=200)

    def report(self, results):
        """Print the results and write metrics.json, then draw curve.png; pictures may follow."""
        for name, value in (self.baselines | results).items():
            print(f"{name}: {value:,.4f}" if isinstance(value, float) else f"{name}: {value:,}", flush=True)
        gpu, where = self.device == "cuda", f"{self.device.upper()}, {torch.get_num_threads()} threads"
        metrics = {name: getattr(self, name) for name in ("baselines", "settings", "source", "step", "curve")}
        metrics |= {"script": NAME, "results": results, "seconds of training": self.seconds,
                    "device": torch.cuda.get_device_name() if gpu else where, "torch": torch.__version__}
        (self.out / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
        ax = Figure(figsize=(6, 4), layout="constrained").subplots()
        ax.plot([p["step"] for p in self.curve], [(p["training"], p["validation"]) for p in self.curve], "o-")
        ax.set(title=f"{NAME}.py: training (blue) and validation", xlabel="step", ylabel=LOSS)
        self.picture("curve.png", ax.figure)

if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(print(f"{NAME}.py: {error}", file=sys.stderr) or 2)
    except KeyboardInterrupt:
        sys.exit(print(f"\n{NAME}.py: stopped; {Run.last_save}", file=sys.stderr) or 130)
