# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""VAE: learn a small code for every digit, by raising a lower bound on log p(x).

A digit is drawn in two steps: draw a code z of Z numbers from a Gaussian p(z | y), the prior, then let a network, the
decoder, turn it into the probability of ink for each of the 784 pixels. Its likelihood is an integral over all codes,

    p(x | y) = ∫ p(x | z, y) p(z | y) dz                                      y: the class, where it is told

hopeless to average over drawn codes, since almost none could have drawn this x. So a second network, the encoder,
guesses which ones could: q(z | x, y) = N(mean, std²). With any guess at all, by Jensen's inequality,

    log p(x | y) ≥ E_q[log p(x | z, y)] − KL(q(z | x, y) ‖ p(z | y))          the evidence lower bound, ELBO

How well the code redraws the digit, less the nats that the code costs. The bound falls short by KL(q ‖ p(z | x, y)),
so raising it also teaches the encoder to guess. Trains: −ELBO, both networks and the prior at once, summed over pixels
and latents: a mean over pixels would weigh the KL 784 times (--beta weighs it on purpose).

The gradient has to pass a random draw. The log-derivative trick weighs ∂ log q(z) by log p(x | z): right on average,
but so noisy that it drowns. The reparameterisation writes z = mean + std · ε with ε ~ N(0, I): the draw is out of the
way, and the gradient flows through z. The picture `gradients` shows one gradient, estimated in three ways.

Samples: z from the prior, decoded; what is shown is the probability of ink. p(x): a bound, tightened by importance
weights (5,000 samples: IWAE's estimate). Latent: Z numbers, continuous, so digits can be mixed. Good at: speed, codes,
representing. Bad at: sharpness; pixels are independent once z is known, so what z leaves open is blurred.

What you will see. `python vae.py` on MNIST and 2 CPU cores (AMD EPYC, bfloat16 in training): 523 s of training, 58 s
of pictures.

    step 478/24,000  -ELBO in nats 120.1612  3,057 digits/s  8 min 13 s left
    step 12,401/24,000  -ELBO in nats 88.4130  2,937 digits/s  4 min 13 s left
    step 24,000/24,000  -ELBO in nats 83.5433  2,940 digits/s  0 min 00 s left

Test set, binarised once, in nats (± one standard error): −log p(x) ≤ 85.34 ± 0.23 with the class summed out (log p(x)
≥ Σ_y q(y | x) (log p(y) + ELBO_y − log q(y | x)), q(y | x) ∝ exp ELBO_y). With 5,000 importance samples under the
likeliest class alone the bound is 2.94 ± 0.31 nats tighter (first 200 digits): −log p(x) ≈ 82.40. The network that is
not told the class: ≤ 91.75, of which KL 30.0. Told: −log p(x | y) ≤ 83.10. Bayes' rule on the bounds reads 98.2 % of
the test digits. Untrained: 784 ln 2 = 543.4; each pixel on its own: 206.0. A separate classifier reads 98.5 % of 1,000
samples as the class asked for (`python benchmarks/judge.py vae`); 64 samples take 0.005 s. In out/vae: samples, style,
reconstructions, denoise, interpolation, plane, kl, gradients, curve (.png), growth (.gif).
A plane of codes to look at: `python vae.py --latent-dim 2`. Simpler codes: `python vae.py --beta 4`.
On one GPU: `python vae.py --steps 200000 --channels 128` (not yet measured).

What differs from the paper. The prior is N(0, I) only at first: each class, and "not told", learns a centre and a
covariance of its own, which keeps the KL in closed form. In drafts of 2,400 steps, one each, the classifier read 79 %
of the samples with N(0, I) for all classes, 87 % with a diagonal Gaussian for each. Convolutions on 7 x 7 places of 4
x 4 pixels for a layer of 500 units; digits binarised afresh at every step; Adam with one cosine of the learning rate,
gradients clipped. The class enters encoder and decoder and is hidden from a tenth of the digits, so one network gives
p(x) and p(x | y).

References: Kingma & Welling 2014 (arXiv:1312.6114), appendix B for the KL; Rezende, Mohamed & Wierstra 2014
(1401.4082); IWAE: Burda, Grosse & Salakhutdinov 2016 (1509.00519); β: Higgins et al. 2017.
Read before: made.py. Next: vqvae.py, whose codes are whole numbers: `diff vae.py vqvae.py`.

Things to break, one line each:
  1. In `terms`, write self.decode(z.detach(), y): the encoder hears of the KL alone, which falls to 0; all samples of
     a class are one blur.
  2. In `bernoulli_log_prob`, put .mean(1) for .sum(1): the KL outweighs the pixels 784 times, every latent collapses.
  3. In `update`, put 0 for s.beta: reconstructions get sharper, samples turn to rubbish, validation runs away.
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

# %% Settings: name, the published run's value, what it is. `python vae.py --help` prints them.
NAME, LOSS, ITEM = "vae", "-ELBO in nats", "digits"
FLAGS = {
    "steps": (24000, "optimiser steps"),
    "batch_size": (64, "digits per step"),
    "lr": (4e-3, "peak learning rate of Adam"),
    "channels": (32, "feature maps at 7 x 7"),
    "latent_dim": (40, "numbers in the code z; 2 of them make a plane that can be drawn"),
    "samples": (5000, "importance samples of a digit for the estimate of log p(x)"),
    "beta": (1.0, "weight of the KL term: 1 trains the bound; more buys simpler codes with worse pictures"),
}

# %% Model: an encoder that guesses the code of a digit, a decoder that draws the digit of a code
class ResBlock(nn.Module):
    """h plus what two 3 x 3 convolutions make of it: (B, C, H, W) to the same."""

    def __init__(self, C):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)  # at first a block adds no more than a constant to each channel

    def forward(self, h):
        return h + self.conv2(F.silu(self.conv1(F.silu(h))))

def times(W, v):
    """W v for matrices (B, Z, Z) and vectors (B, Z), in full precision under autocast too."""
    return (W * v[:, None]).sum(2)

def gaussian_kl(mean, std, centre, W):
    """KL(N(mean, diag std²) ‖ N(centre, (WᵀW)⁻¹)) in nats, one term for each row of W: (B, Z), to be summed.

    W is lower triangular and whitens the prior, W (z − centre) ~ N(0, I); term i is the KL of zᵢ given those before it.
    For W = I and centre 0 it is (mean² + std² − 1) / 2 − log std (Kingma & Welling 2014, appendix B).
    """
    scale = W.diagonal(dim1=1, dim2=2)
    return (times(W, mean - centre).square() + times(W.square(), std.square()) - 1) / 2 - (std * scale).log()

def bernoulli_log_prob(x, logits):
    """log p of binary images x (B, 1, 28, 28), or one for all, under logits of that shape: nats (B,), pixels summed."""
    return -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").flatten(1).sum(1)

class VAE(nn.Module):
    """p(x, z | y) = p(z | y) Πᵢ Bernoulli(xᵢ; decode(z, y)ᵢ), and q(z | x, y), a Gaussian guess at p(z | x, y)."""

    def __init__(self, channels=32, latent_dim=40):
        super().__init__()
        C, self.Z = channels, latent_dim
        self.stem = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(16, C, 5, padding=2))  # 4 x 4 pixels to a place
        self.encoder = nn.Sequential(ResBlock(C), ResBlock(C), ResBlock(C), nn.SiLU())  # (B, C, 7, 7)
        self.to_q, self.from_z = nn.Linear(49 * C, 2 * latent_dim), nn.Linear(latent_dim, 49 * C)
        self.label_q, self.label_p = nn.Embedding(11, 49 * C), nn.Embedding(11, 98 * C)  # 10 stands for "not told"
        self.decoder = nn.Sequential(ResBlock(C), ResBlock(C), ResBlock(C), nn.SiLU(), nn.Conv2d(C, 16, 3, padding=1),
                                     nn.PixelShuffle(4))  # (B, 1, 28, 28)
        self.prior = nn.Embedding(11, latent_dim + latent_dim**2)  # centre and W of p(z | y); it starts as N(0, I)
        self.place = nn.Parameter(torch.zeros(1, 28, 28))  # how dark each pixel is anyway
        for layer in (self.label_q, self.label_p, self.prior, self.to_q, self.decoder[-2]):
            nn.init.zeros_(layer.weight)  # an untrained model gives each pixel about a half: 784 ln 2 nats

    def classes(self, y, n):
        """y, which is None, a class or (n,) classes, as (n,) rows of the label tables."""
        return torch.as_tensor(10 if y is None else y, device=self.place.device).expand(n)

    def q(self, x, y=None):
        """Mean and standard deviation of q(z | x, y), the encoder's guess for digits x: (B, Z) each."""
        h = self.stem(x.contiguous(memory_format=torch.channels_last))
        h = self.encoder(h + self.label_q(self.classes(y, len(x))).view_as(h).to(h))
        mean, spread = self.to_q(h.flatten(1)).to(x).chunk(2, 1)
        return mean, F.softplus(spread + 0.5413) + 1e-4  # at first 1

    def p(self, y, n):
        """Centre (n, Z) and triangular W (n, Z, Z) of the prior p(z | y): W (z − centre) is N(0, I)."""
        centre, W = self.prior(self.classes(y, n)).split([self.Z, self.Z**2], 1)
        W = W.view(n, self.Z, self.Z)
        return centre, W.tril(-1) + torch.diag_embed(W.diagonal(dim1=1, dim2=2).exp())

    def codes(self, eps, y=None):
        """Codes (n, Z) of p(z | y) from eps ~ N(0, I), (n, Z)."""
        centre, W = self.p(y, len(eps))
        return centre + torch.linalg.solve_triangular(W, eps[:, :, None], upper=False)[:, :, 0]

    def decode(self, z, y=None):
        """Logits of the pixels, (B, 1, 28, 28), of codes z (B, Z)."""
        scale, shift = self.label_p(self.classes(y, len(z))).chunk(2, 1)  # (B, 49 C) each
        h = (self.from_z(z) * (1 + scale) + shift).view(len(z), -1, 7, 7)
        return self.decoder(h.contiguous(memory_format=torch.channels_last)).to(z) + self.place

    def terms(self, x, y=None):
        """log p(x | z, y) for one z ~ q(z | x, y), (B,), and KL(q(z | x, y) ‖ p(z | y)) by latent dimension, (B, Z)."""
        mean, std = self.q(x, y)
        z = mean + std * torch.randn_like(mean)  # the reparameterisation: the draw is no longer in the way
        return bernoulli_log_prob(x, self.decode(z, y)), gaussian_kl(mean, std, *self.p(y, len(x)))

    def elbo(self, x, y=None):
        """A draw of the evidence lower bound of log p(x | y) or log p(x), x (B, 1, 28, 28) in {0, 1}: nats (B,)."""
        log_likelihood, kl = self.terms(x, y)
        return log_likelihood - kl.sum(1)

    @torch.no_grad()
    def importance_bound(self, x, y=None, samples=5000):
        """log (1/S) Σ p(x, z_s) / q(z_s | x), z_s ~ q: nats (B,). A lower bound on average, and the more samples the
        tighter; in the limit exact (Burda, Grosse & Salakhutdinov 2016, eqs. 8 and 9)."""
        def log_weights(x, y, mean, std, n):  # log p(x, z) − log q(z | x) for n draws of one digit
            eps = torch.randn(n, self.Z, device=x.device, dtype=x.dtype)
            z = mean + std * eps
            centre, W = self.p(y, 1)
            ratio = (std * W.diagonal(dim1=1, dim2=2)).log() + (eps.square() - ((z - centre) @ W[0].T).square()) / 2
            return bernoulli_log_prob(x, self.decode(z, y)) + ratio.sum(1)

        parts = [min(1000, samples - done) for done in range(0, samples, 1000)]
        digits = zip(x.split(1), self.classes(y, len(x)).split(1), *(v.split(1) for v in self.q(x, y)))
        each = torch.stack([torch.cat([log_weights(*digit, n) for n in parts]) for digit in digits])  # (B, samples)
        return each.logsumexp(1) - math.log(samples)

    @torch.no_grad()
    def sample(self, n, y=None):
        """n digits (n, 1, 28, 28), the pixels' probabilities, so in [0, 1]; y is None, a class or (n,) classes."""
        return self.decode(self.codes(torch.randn(n, self.Z, device=self.place.device), y), y).sigmoid()

def binarise(x, seed=None):
    """A Bernoulli draw for each pixel of uint8 digits, its grey value the probability; by a seed, the same for ever."""
    generator = None if seed is None else torch.Generator(x.device).manual_seed(seed)
    return (torch.rand(x.shape, device=x.device, generator=generator) * 255 < x).float()

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
def draw_all(s, run, model, x, y, kl):
    """All pictures, from a trained model, binary test digits x (N, 1, 28, 28), labels y, KL by dimension, (Z,) nats."""
    torch.manual_seed(1)
    digit, names = torch.arange(10, device=x.device), list("0123456789")
    x10 = x[torch.stack([(y == d).nonzero()[0, 0] for d in range(10)])]  # the first test digit of each class

    def page(name, title, images, columns, rows=None, cols=None):
        picture(s, f"{name}.png", sheet(torch.cat(images), columns, title, rows, cols))

    def redrawn(x):  # a digit through its code
        mean, std = model.q(x)
        return model.decode(mean + std * torch.randn_like(std)).sigmoid()

    page("samples", "samples of each class: the probability of ink", [model.sample(100, digit.repeat(10))], 10,
         cols=names)
    picture(s, "growth.gif", *[sheet(f / 255, 10, f"the same noise after {c[0]:,} steps of training", cols=names)
                           for f, c in zip(run["frames"], run["curve"])])
    eps = torch.randn(8, model.Z, device=x.device).repeat_interleave(10, 0)
    page("style", "one draw of noise a row, a class a column: the noise decides what the class leaves open",
         [model.decode(model.codes(eps, digit.repeat(8)), digit.repeat(8)).sigmoid()], 10, cols=names)
    page("reconstructions", "test digits and what comes back from their codes, three draws of z", [
        x10, *(redrawn(x10) for _ in range(3))], 10, ["digit", 1, 2, 3], names)
    noisy = (x10 - (torch.rand_like(x10) < 0.1).float()).abs()
    page("denoise", "one pixel in ten turned over: strange to the encoder, but a code can be searched", [
        x10, noisy, redrawn(noisy), model.decode(search(model, noisy, 0.1)).sigmoid()], 10,
        ["digit", "noisy", "encoder", "search"], names)
    a, mix = model.q(x10)[0], [i / 8 for i in range(9)]
    between = [x10, *(model.decode((1 - u) * a + u * a.roll(-1, 0)).sigmoid() for u in mix), x10.roll(-1, 0)]
    page("interpolation", "from the code of one test digit to that of another, in a straight line",
         [torch.stack(between, 1).flatten(0, 1)], 11, cols=["digit", *mix, "digit"])

    top = kl.argsort(descending=True)[:2]  # the two dimensions that say most
    grid = torch.linspace(-1.9, 1.9, 20, device=x.device)
    centre, W = model.p(None, 1)  # in the prior's own coordinates, where it is N(0, I)
    eps = times(W, model.q(x10[7:8])[0] - centre).repeat(400, 1)
    eps[:, top[0]], eps[:, top[-1]] = grid.repeat(20), -grid.repeat_interleave(20)
    others = f"the other {model.Z - 2} as in a test digit" if model.Z > 2 else "all there is"
    fig = Figure(figsize=(11, 5.4), layout="constrained")
    left, right = fig.subplots(1, 2)
    image = model.decode(model.codes(eps)).sigmoid().view(20, 20, 28, 28).transpose(1, 2).reshape(560, 560).cpu()
    left.imshow(image, cmap="gray_r", extent=[-2, 2, -2, 2])
    left.set_title(f"decoded over the two strongest latents, {others}", size=9)
    means = times(W, model.q(x[:3000])[0] - centre).cpu()
    points = right.scatter(means[:, top[0]], means[:, top[-1]], c=y[:3000].cpu(), cmap="tab10", s=4, vmin=-.5, vmax=9.5)
    fig.colorbar(points, ticks=range(10), label="digit")
    right.set_title("where the encoder puts 3,000 test digits, class not told", size=9)
    for ax in (left, right):
        ax.set(xlabel=f"latent {top[0] + 1}", ylabel=f"latent {top[-1] + 1}",
               aspect="equal", xlim=(-3.2, 3.2), ylim=(-3.2, 3.2))
    left.set(xlim=(-2, 2), ylim=(-2, 2))
    picture(s, "plane.png", fig)

    fig = Figure(figsize=(7, 3.6), layout="constrained")
    ax = fig.subplots()
    ax.bar(range(1, model.Z + 1), kl.sort(descending=True).values.cpu())
    ax.set_title(f"{(kl > 0.05).sum()} of {model.Z} latents say more than 0.05 nats, together {kl.sum():.1f}; "
                 "a collapsed one says 0", size=10)
    ax.set(xlabel="latent dimension, sorted", ylabel="KL to the prior, nats a digit")
    picture(s, "kl.png", fig)
    draw_gradients(s, model, x10[3:4], top[0])

@torch.enable_grad()
def search(model, x, flipped):
    """The code z (B, Z) that best explains digits x, a share of whose pixels is turned over: argmax p(x | z) p(z)."""
    centre, W = (v.detach() for v in model.p(None, len(x)))
    z = centre.clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.1)
    for _ in range(200):
        ink = flipped + (1 - 2 * flipped) * model.decode(z).sigmoid()  # as the noise makes it
        loss = F.binary_cross_entropy(ink, x, reduction="sum") + times(W, z - centre).square().sum() / 2
        z.grad, = torch.autograd.grad(loss, z)
        optimizer.step()
    return z.detach()

def draw_gradients(s, model, x, j):
    """∂ E_q[log p(x | z)] / ∂ mean_j of one digit, estimated from one draw of z in three ways, 2,000 times each."""
    mean, std = (v.repeat(2000, 1) for v in model.q(x))
    z = (mean + std * torch.randn_like(mean)).requires_grad_()
    with torch.enable_grad():
        log_likelihood = bernoulli_log_prob(x, model.decode(z))
        through = torch.autograd.grad(log_likelihood.sum(), z)[0][:, j]  # since ∂z / ∂mean = 1
    score = ((z - mean) / std.square())[:, j].detach()  # ∂ log q(z) / ∂ mean_j
    ways = {"log-derivative": log_likelihood.detach() * score,
            "log-derivative, mean taken off": (log_likelihood - log_likelihood.mean()).detach() * score,
            "reparameterisation": through}
    fig = Figure(figsize=(10, 3.2), layout="constrained")
    for ax, (name, values) in zip(fig.subplots(1, 3), ways.items()):
        ax.hist(values.cpu(), 60)
        ax.set(title=f"{name}\n{values.mean():.1f} ± {values.std():.1f}", xlabel="nats per unit of the mean", yticks=[])
    fig.suptitle("one gradient, three estimates from a single draw: mean ± standard deviation of 2,000", size=10)
    picture(s, "gradients.png", fig)

# %% The run
def build(s):
    return VAE(s.channels, s.latent_dim).to(memory_format=torch.channels_last)

def load(path=f"out/{NAME}/model.pt", device="cpu"):
    """The model of a saved run, ready to sample."""
    run = read_run(path)
    model = build(argparse.Namespace(**run["settings"]))
    restore({"model": model}, run["state"])
    return model.to(device).eval()

def main(argv=None):
    s, run = start(argv)
    x, y, x_test, y_test, s.source = mnist(s.stand_in)
    b_valid, b_test = binarise(x[55000:], seed=0), binarise(x_test, seed=1)  # once and for all
    x, y, b_valid, b_test, y_test = (v.to(s.device) for v in (x, y, b_valid, b_test, y_test))
    x, y, y_valid = x[:55000], y[:55000], y[55000:]
    torch.manual_seed(s.seed)
    model = build(s).to(s.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=s.lr, fused=True)
    p = (x.float().mean(0) / 255).clamp(1e-3, 1 - 1e-3)  # a baseline: each pixel on its own
    alone = F.binary_cross_entropy(p.expand_as(b_test), b_test, reduction="none").flatten(1).sum(1).mean().item()
    levels = {"untrained": 784 * math.log(2), "each pixel on its own": alone}
    size = sum(p.numel() for p in model.parameters())
    print(f"{NAME}.py: {size:,} parameters, {s.source}, {s.device}; {LOSS}: "
          + ", ".join(f"{name} {level:.1f}" for name, level in levels.items()))

    def update(step):
        i = torch.randint(len(x), (s.batch_size,), device=s.device)
        label = torch.where(torch.rand(s.batch_size, device=s.device) < 0.1, 10, y[i])  # a tenth is not told
        done = step / s.steps  # the learning rate goes up over a twentieth of the run, then down along a cosine
        optimizer.param_groups[0]["lr"] = s.lr * min(1, 20 * done + 1e-3) * (1 + math.cos(math.pi * done)) / 2
        with mixed(s.device):
            log_likelihood, kl = model.terms(binarise(x[i]), label)
        loss = (s.beta * kl.sum(1) - log_likelihood).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 60)
        optimizer.step()
        return (kl.sum(1) - log_likelihood).mean()

    @torch.no_grad()
    def terms(digits, labels=None, seed=0):
        """log p(x | z) of each digit, (N,), and KL, (N, Z); the noise is the same every time."""
        torch.manual_seed(seed)
        parts = zip(digits.split(500), [None] * len(digits) if labels is None else labels.split(500))
        return [torch.cat(v) for v in zip(*(model.terms(*part) for part in parts))]

    def nats(digits, labels=None, seed=0):
        """−ELBO of each digit, (N,)."""
        log_likelihood, kl = terms(digits, labels, seed)
        return kl.sum(1) - log_likelihood

    def validate():
        return (0.1 * nats(b_valid) + 0.9 * nats(b_valid, y_valid)).mean().item()  # a tenth not told, as in training

    def draw():
        torch.manual_seed(0)
        samples = model.sample(40, torch.arange(40, device=s.device) % 10)
        picture(s, "samples.png", sheet(samples, 10, f"after {run['step']:,} steps of training", cols=[*range(10)]))
        return (255 * samples).byte().cpu()

    train(s, run, {"model": model, "optimizer": optimizer}, update, validate, draw)

    done = time.perf_counter()
    log_likelihood, kl = terms(b_test)
    untold, few = kl.sum(1) - log_likelihood, b_test[:200]
    guess, told = (torch.stack([nats(b_test, torch.full_like(y_test, d), seed) for d in range(10)], 1)
                   for seed in (1, 2))
    log_q = torch.log_softmax(-guess, 1)  # q(y | x), chosen by one draw, scored by another: or chance would flatter it
    summed = math.log(10) + (log_q.exp() * (log_q + told)).sum(1)  # −log p(x) ≤ Σ_y q(y) (log q(y) / p(y) − ELBO_y)
    likeliest = guess.argmin(1)
    sampled = model.importance_bound(few, likeliest[:200], s.samples) - math.log(10)  # p(x) ≥ p(y) p(x | y), any y
    gap = summed[:200] + sampled
    with torch.no_grad():
        draw_all(s, run, model, b_test, y_test, kl.mean(0))
    drawn = time.perf_counter()
    model.sample(64)
    took = time.perf_counter() - drawn
    finish(s, run, {
        "test -ELBO of p(x), nats, class summed out": summed.mean().item(),
        "its standard error": (summed.std() / len(summed) ** 0.5).item(),
        f"{s.samples:,} samples tighten it by, nats, first 200": gap.mean().item(),
        "standard error of that": (gap.std() / len(gap) ** 0.5).item(),
        "test -log p(x), nats, estimate": (summed.mean() - gap.mean()).item(),
        "test -ELBO of p(x), nats, network not told the class": untold.mean().item(),
        "of it KL(q || p)": kl.sum(1).mean().item(),
        "of it -log p(x | z)": -log_likelihood.mean().item(),
        "test -ELBO of p(x | y), nats": nats(b_test, y_test).mean().item(),
        "test digits read by Bayes' rule": (likeliest == y_test).float().mean().item(),
        "latents that say more than 0.05 nats": (kl.mean(0) > 0.05).sum().item(),
        "seconds for 64 samples": took,
        "seconds of training": run["seconds"], "seconds after": drawn - done}, levels)

if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(print(f"{NAME}.py: {error}", file=sys.stderr) or 2)
