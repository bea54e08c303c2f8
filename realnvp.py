# /// script
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""RealNVP: a normalizing flow of affine couplings (Dinh, Sohl-Dickstein & Bengio 2017, arXiv:1605.08803).

Let f be an invertible map from images x to latents z. If z has a density p_Z (here Gaussian), then x has one:

    log p(x) = log p_Z(f(x)) + log |det ∂f/∂x|                                 the change of variables: exact

A 784 x 784 determinant is costly, unless the matrix is triangular. So a coupling splits the numbers by a
binary mask b: those with b = 1 pass, the others are scaled and shifted by what a network makes of the former:

    f(x) = b ⊙ x + (1 − b) ⊙ (x ⊙ exp(s(b ⊙ x)) + t(b ⊙ x)),        log |det| = Σ (1 − b) ⊙ s(b ⊙ x)

The inverse subtracts t and divides by exp(s). Couplings with other masks follow. A squeeze turns 2 x 2 pixels
into 4 channels, so that a chessboard, rows and columns are choices of channels. After eight couplings half of
the numbers go straight to z (multi-scale), the others on at 7 x 7. The class enters the networks and p_Z.

Grey levels are whole numbers, on which a density could grow without bound. So uniform noise u in [0, 1) is
added (dequantisation): E_u[log p(x + u)] ≤ log P(x) (Theis et al. 2016). A logit takes (0, 1) to the real
line. Training: maximise that bound; in bits per dimension, −log P / (784 ln 2). Sampling: z ~ p_Z, then f⁻¹.
p(x): exact for densities, a bound for grey levels. Latent: z. Good at: exact densities, speed. Bad at: size.

`python realnvp.py` on MNIST and two cores of an Intel Xeon (bfloat16): 367 s of training, 390 s in all.

    step 844/8,000  NLL bound, bits/dim 1.5256  721 digits/s  5 min 18 s left
    step 3,693/8,000  NLL bound, bits/dim 1.3060  702 digits/s  3 min 16 s left
    step 8,000/8,000  NLL bound, bits/dim 1.2230  698 digits/s  0 min 00 s left

Test set, 8-bit grey: −log P(x) ≤ 1.219 ± 0.003 bits/dim given the class, 1.233 under the null label; with 8
importance samples 1.198 (every 10th digit). Independent pixels: 1.69. A separate classifier finds the class
asked for in 83.0 % of 5,000 samples, at temperature 0.7 in 95.5 %.
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

# %% Settings: the published run's value, what it is, its range; `--help` prints them
NAME, LOSS, ITEMS = "realnvp", "NLL bound, bits/dim", "digits"
NULL = 10  # the null label: no class given
SETTINGS = {
    "steps": (8000, "optimiser steps", 1, 10**9),
    "batch_size": (32, "digits per step", 1, 10**6),
    "lr": (3e-3, "peak learning rate of Adam", 0, 10),
    "channels": (32, "feature maps of a coupling's network at 14 x 14, twice as many at 7 x 7", 1, 10**4),
    "couplings": (8, "couplings at 14 x 14, half as many at 7 x 7", 1, 1000),
    "label_dropout": (0.1, "share of digits under the null label; 1 gives an unconditional model", 0, 1),
}

# %% Model: invertible layers whose log-determinant is a sum
class Coupling(nn.Module):
    """Channels with mask 1 pass; the others become x exp(s) + t (equations 7 and 9)."""
    def __init__(self, mask, size, C):
        super().__init__()
        self.register_buffer("mask", torch.tensor(mask).view(-1, 1, 1).float(), persistent=False)
        self.stem, self.label = nn.Conv2d(len(mask), C, 3, padding=1), nn.Embedding(11, C)
        self.place = nn.Parameter(torch.zeros(C, size, size))  # a convolution does not know where it is
        self.conv1, self.conv2 = nn.Conv2d(C, C, 3, padding=1), nn.Conv2d(C, C, 3, padding=1)
        self.out = nn.Conv2d(C, 2 * len(mask), 3, padding=1)
        for start in (self.conv2.weight, self.out.weight, self.out.bias):
            nn.init.zeros_(start)  # an untrained coupling is the identity

    def log_scale_shift(self, x, y):
        """s and t, shaped like x, from the channels with mask 1; 0 there."""
        h = self.stem((self.mask * x).contiguous(memory_format=torch.channels_last))
        h = h + self.place.to(h) + self.label(y).to(h)[:, :, None, None]
        h = h + self.conv2(F.silu(self.conv1(F.silu(h))))  # residual
        log_scale, shift = self.out(F.silu(h)).float().chunk(2, 1)
        return (1 - self.mask) * 2 * torch.tanh(log_scale / 2), (1 - self.mask) * shift  # a scale up to e²

    def forward(self, x, y):
        """z, shaped like x, and log |det ∂z/∂x| (B,): the Jacobian is triangular."""
        log_scale, shift = self.log_scale_shift(x, y)
        return x * log_scale.exp() + shift, log_scale.flatten(1).sum(1)

    def inverse(self, z, y):
        log_scale, shift = self.log_scale_shift(z, y)  # where the mask is 1, z is x
        return (z - shift) * (-log_scale).exp()

class RealNVP(nn.Module):
    """p(x | y) of 8-bit images: a flow f on two scales and a Gaussian p_Z for each class."""
    def __init__(self, channels=32, couplings=8, conditional=True):
        super().__init__()
        self.conditional = conditional
        self.fine = nn.ModuleList(Coupling(MASKS[i % 6], 14, channels) for i in range(couplings))
        self.coarse = nn.ModuleList(  # of 8 channels, the squeeze of the 2 that go on
            Coupling(2 * MASKS[i % 6], 7, 2 * channels) for i in range(max(1, couplings // 2)))
        self.shift, self.log_scale = (nn.Parameter(torch.zeros(1, 28, 28)) for _ in range(2))
        self.mean, self.log_std = (nn.Parameter(torch.zeros(11, 784)) for _ in range(2))  # of p_Z

    def forward(self, x, y=None):
        """z (B, 784) and log |det ∂z/∂x| (B,) of x (B, 1, 28, 28) in logit space."""
        y = self.labels(NULL if y is None else y, len(x))
        x, log_det = F.pixel_unshuffle(x * self.log_scale.exp() + self.shift, 2), self.log_scale.sum()
        for layer in self.fine:
            x, change = layer(x, y)
            log_det = log_det + change
        x, done = F.pixel_unshuffle(x[:, :2], 2), x[:, 2:]  # half goes straight to z: multi-scale
        for layer in self.coarse:
            x, change = layer(x, y)
            log_det = log_det + change
        return torch.cat([x.flatten(1), done.flatten(1)], 1), log_det

    def inverse(self, z, y=None):
        """x (B, 1, 28, 28) in logit space of z (B, 784): every layer undone, the last one first."""
        y = self.labels(NULL if y is None else y, len(z))
        x, done = z[:, :392].view(-1, 8, 7, 7), z[:, 392:].view(-1, 2, 14, 14)
        for layer in reversed(self.coarse):
            x = layer.inverse(x, y)
        x = torch.cat([F.pixel_shuffle(x, 2), done], 1)
        for layer in reversed(self.fine):
            x = layer.inverse(x, y)
        return (F.pixel_shuffle(x, 2) - self.shift) * (-self.log_scale).exp()

    def log_prob(self, x, y=None):
        """One draw of the bound E_u[log p(x + u)] ≤ log P(x | y) of uint8 images x (B, 1, 28, 28): nats (B,);
        y is None (the null label), a class or (B,) classes."""
        v, log_det_logit = logit((x + torch.rand(x.shape, device=x.device)) / 256)
        z, log_det = self(v, y)
        y = self.labels(NULL if y is None else y, len(x))
        prior = torch.distributions.Normal(self.mean[y], self.log_std[y].exp())
        return prior.log_prob(z).sum(1) + log_det + log_det_logit - 784 * math.log(256)  # levels: 1/256 wide

    def labels(self, y, n):
        """y as (n,) classes; None draws them from p(y), uniform. An unconditional model knows NULL alone."""
        y = torch.randint(10, (n,)) if y is None else torch.as_tensor(y)
        return (y if self.conditional else torch.tensor(NULL)).to(self.shift.device).expand(n)

    @torch.no_grad()
    def sample(self, n, y=None, temperature=1.0, eps=None):
        """n images (n, 1, 28, 28) in [0, 1]; y: None (drawn), a class or (n,) classes. The temperature scales
        the noise eps (n, 784): 1 is p(x | y), below 1 draws nearer to the mean of p_Z."""
        y = self.labels(y, n)
        eps = torch.randn(n, 784, device=y.device) if eps is None else eps
        x = self.inverse(self.mean[y] + temperature * self.log_std[y].exp() * eps, y)
        return ((x.sigmoid() - EDGE) / (1 - 2 * EDGE) * 256).floor().clamp(0, 255) / 255

# %% Training
def main(argv=None):
    run = Run(argv)  # flags, output folder, resuming: the frame, at the end of this file
    x, y, x_test, y_test, run.source = mnist(run.stand_in, run.device)
    n = len(x) * 11 // 12  # the last twelfth (5,000 digits of MNIST) is for validation
    run.baselines = {"uniform": 8.0, "independent pixels, bits/dim": independent_pixels(x[:n], x_test)}

    torch.manual_seed(run.seed)
    model = RealNVP(run.channels, run.couplings, run.label_dropout < 1)
    model.to(run.device, memory_format=torch.channels_last)  # how convolutions are fastest
    v, _ = logit((x[:10000] + torch.rand(x[:10000].shape, device=run.device)) / 256)
    model.log_scale.data, model.shift.data = -v.std(0).log(), -v.mean(0) / v.std(0)  # mean 0, variance 1
    optimizer = torch.optim.Adam(model.parameters(), lr=run.lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, run.lr, total_steps=run.steps, pct_start=0.06, cycle_momentum=False)
    for step in run.loop(model=model, optimizer=optimizer, schedule=schedule):
        i = torch.randint(n, (run.batch_size,), device=run.device)
        with run.autocast():
            loss = -model.log_prob(x[i], drop_labels(y[i], run.label_dropout)).mean() / (784 * math.log(2))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimizer.step()
        schedule.step()
        if run.log(loss):  # a status line; True every 20 s and at the end
            with torch.no_grad():
                validation = -model.log_prob(x[n:][:2000], y[n:][:2000]).mean().item() / (784 * math.log(2))
            run.save(validation, grid(model.sample(40, torch.arange(40) % 10), f"samples, step {step:,}"))
    evaluate(run, model, x_test, y_test)

# %% That is the whole idea. Below: what the trained model can do, and the frame that every chapter shares.
# %% Evaluation: small functions used above, a saved model, a picture
# After a squeeze the pixels of a 2 x 2 block are 4 channels: a chessboard passes 0 and 3 or 1 and 2, ...
MASKS = [[1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1]]
EDGE = 5e-4  # keeps the logit off 0 and 1; the paper's 0.05 makes the background a needle (section 4.1)

def logit(v):
    """logit(EDGE + (1 − 2 EDGE) v) of v in (0, 1), shaped like v, and log |det| (B,)."""
    a = EDGE + (1 - 2 * EDGE) * v
    return a.logit(), (math.log(1 - 2 * EDGE) - a.log() - (1 - a).log()).flatten(1).sum(1)

def drop_labels(y, rate):
    """Labels (B,), each the null label with probability `rate`: one network learns p(x | y) and p(x)."""
    return torch.where(torch.rand(len(y), device=y.device) < rate, NULL, y)

def load(path=f"out/{NAME}/model.pt", device="cpu"):
    """The model of a saved run, ready to sample."""
    try:
        assert (saved := torch.load(path, map_location="cpu", weights_only=True))["name"] == NAME
        s = saved["settings"]
        model = RealNVP(s["channels"], s["couplings"], s["label_dropout"] < 1)
        model.load_state_dict(saved["state"]["model"])
    except Exception as error:  # a damaged file breaks in many ways
        raise OSError(f"{path} is missing, damaged, or no checkpoint of {NAME}.py") from error
    return model.to(device).eval()

def grid(images, title, rows="", cols="0123456789"):
    """A figure of images (N, 1, 28, 28) in [0, 1], ten to a row, with names of rows and columns."""
    tiles = images.float().cpu().view(-1, 10, 28, 28).transpose(1, 2).flatten(2).flatten(0, 1).numpy()
    ax = Figure(figsize=(6.2, len(tiles) / 56 + 1.1), layout="constrained").subplots()
    ax.imshow(tiles, cmap="gray_r", vmin=0, vmax=1)
    ax.set(xticks=range(14, 280, 28), xticklabels=cols, title=title, frame_on=False)
    ax.set(yticks=range(14, 28 * len(rows), 28), yticklabels=rows)
    ax.tick_params(length=0)
    return ax.figure

def independent_pixels(x, x_test):
    """Bits/dim of uint8 images x_test, each pixel by how often it had each level in images x, plus 0.1."""
    places = torch.arange(784, device=x.device) * 256
    counts = (places + x.flatten(1)).flatten().bincount(minlength=784 * 256) + 0.1
    return -(counts / (len(x) + 25.6)).log2()[places + x_test.flatten(1)].mean().item()

@torch.no_grad()
def bits(model, x, y, draws=1):
    """Bits/dim (B,) of uint8 images x of classes y: the bound, with more draws of u importance-weighted."""
    parts = list(zip(x.split(500), y.expand(len(x)).split(500)))
    log_p = torch.stack([torch.cat([model.log_prob(*part) for part in parts]) for _ in range(draws)])
    return (math.log(draws) - log_p.logsumexp(0)) / (784 * math.log(2))

@torch.no_grad()
def evaluate(run, model, x, y):
    """Figures and pictures of uint8 test images x of classes y."""
    torch.manual_seed(1)
    digit, null = torch.arange(10, device=x.device), torch.tensor(NULL, device=x.device)
    conditional, empty = bits(model, x, y), bits(model, torch.zeros_like(x[:1]), null).item()
    run.report({
        "test NLL bound, conditional, bits/dim": conditional.mean().item(),
        "its standard error": (conditional.std() / len(x) ** 0.5).item(),
        "test NLL bound, unconditional, bits/dim": bits(model, x, null).mean().item(),
        "every 10th digit: conditional, 8 importance samples": bits(model, x[::10], y[::10], 8).mean().item(),
        "an empty image: NLL bound, bits/dim": empty})
    run.picture("samples.png", grid(model.sample(100, digit.repeat(10)), "samples by class"))
    eps, heat = torch.randn(10, 784, device=x.device), (0, 0.3, 0.5, 0.7, 0.85, 1, 1.2)
    cooled = [model.sample(10, digit, t, eps) for t in heat]
    run.picture("temperature.png", grid(torch.cat(cooled), "one draw of noise times the temperature", heat))
    run.picture("temperature.gif", *(grid(images, f"temperature {t}") for images, t in zip(cooled, heat)))
    ax = Figure(figsize=(7, 3.6), layout="constrained").subplots()
    for name, images in ("test digits", x[:1000]), ("samples", (255 * model.sample(1000)).byte()):
        ax.hist(bits(model, images, null).cpu(), 160, range=(0, 4), density=True, alpha=0.6, label=name)
    ax.axvline(empty, color="black", ls="--", label="an empty image")
    ax.set(title="the densest need not be typical", xlabel="−log P(x), bits/dim (bound)", ylabel="density")
    ax.legend()
    run.picture("likelihood.png", ax.figure)

# %% Notes
# Differs from the paper: chessboard masks at 14 x 14, after the first squeeze; no batch normalisation; 0.0005
# for 0.05 at the edges of the logit; a Gaussian p_Z for each class for N(0, I); the class in every coupling.
# Adam with one cycle of the learning rate, gradients clipped at norm 1. Samples at a temperature below 1 are
# no longer draws of p(x | y).
#
# Things to break:
# 1. In `log_prob`, put torch.rand(x.shape, device=x.device) / 10: the density of points is no bound on that
#    of levels any more, the loss falls below 0.
# 2. In `Coupling.forward`, return 0 * log_scale.flatten(1).sum(1): bits/dim are wrong, samples stay noise.
# 3. Put MASKS = [[1, 0, 0, 1]] * 6: half of the pixels pass all couplings at 14 x 14; bits/dim stay high.
#
# References: density of other data: Nalisnick et al. 2019 (1810.09136). Read before: vae.py. Next: ddpm.py.

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
