# /// script
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""EBM: an energy-based model with Langevin dynamics (Du & Mordatch 2019, arXiv:1903.08689).

Any function E(x, y) of an image and a class defines a density, p(x, y) = exp(−E(x, y)) / Z, high where the
energy is low. The normaliser Z, the integral of exp(−E) over all images and classes, is unknown and stays so.
Training needs only the gradient of −log p(x | y) by the weights θ, in which the normaliser becomes a mean:

    −∂_θ log p(x | y) = ∂_θ E(x, y) − E_{x' ~ p(x' | y)}[∂_θ E(x', y)]

Lower the energy of data, raise that of the model's own samples. These come from Langevin dynamics, gradient
descent in E with noise, which needs no Z either:

    x ← x − λ ∂E(x, y)/∂x + σ ε,      ε ~ N(0, I)

With small steps and σ² = 2 λ its equilibrium is p, after thousands of steps. So, as in the paper, chains wait
in a replay buffer between optimiser steps and go on where they stopped, a twentieth of them anew from noise;
and λ is far larger than σ² / 2: the chains sample p at a low temperature, and E is trained for this sampler.

One output for each class: E(x) = −log Σ_y exp(−E(x, y)) is the energy of x alone, and p(y | x) = exp(E(x) −
E(x, y)) is a classifier, trained by its cross-entropy as in JEM (Grathwohl et al. 2020).

How to read the loss: E(data) − E(samples) is no distance. Where the model is right it is 0, and where
training has died it is 0 as well. Sampling: 300 network passes with gradients. p(x): up to Z. Latent: none.
Good at: classifying, inpainting without training for it. Bad at: stable training, fast sampling, likelihoods.

`python ebm.py` on MNIST and two cores of an Intel Xeon (bfloat16): 256 s of training, 278 s in all.

    step 329/3,000  contrastive + classification loss, nats 1.3909  749 digits/s  3 min 48 s left
    step 1,336/3,000  contrastive + classification loss, nats 0.3335  748 digits/s  2 min 22 s left
    step 3,000/3,000  contrastive + classification loss, nats 0.1880  749 digits/s  0 min 00 s left

A separate classifier finds the class asked for in 99.9 % of 5,000 samples; in its features the Fréchet
distance to the test digits is 2.8, the recall 0.55 (see the README). p(y | x) classifies 98.3 % of the test
digits. AUROC of E(x), the chance that another input has more energy than a test digit: upside down 0.71, half
as dark 0.54.
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
NAME, LOSS, ITEMS = "ebm", "contrastive + classification loss, nats", "digits"
NULL = 10  # the null label: no class given
SETTINGS = {
    "steps": (3000, "optimiser steps", 1, 10**9),
    "batch_size": (64, "digits per step, and as many chains", 1, 10**6),
    "lr": (5e-4, "peak learning rate of Adam", 0, 10),
    "channels": (32, "feature maps at 14 x 14, twice as many at 7 x 7", 1, 10**4),
    "langevin_steps": (20, "Langevin steps of each chain in an optimiser step", 1, 10**5),
    "sample_steps": (300, "Langevin steps from noise to a sample", 1, 10**6),
    "buffer": (4096, "chains in the replay buffer", 1, 10**7),
    "energy_penalty": (0.1, "weight of the squared energies, which keeps them near 0", 0, 1000),
    "label_dropout": (0.1, "share of digits under the null label; 1 gives an unconditional model", 0, 1),
}

# %% Model: an energy for every image and class, low where digits are
class EBM(nn.Module):
    """p(x, y) = exp(−E(x, y)) / Z with Z unknown; p(x) ∝ exp(−E(x)); p(y | x) exactly."""
    def __init__(self, channels=32, sample_steps=300, conditional=True):
        super().__init__()
        C, self.sample_steps, self.conditional = channels, sample_steps, conditional
        self.net = nn.Sequential(
            nn.PixelUnshuffle(2), nn.Conv2d(4, C, 3, padding=1), nn.SiLU(),  # (B, C, 14, 14)
            nn.Conv2d(C, 2 * C, 3, stride=2, padding=1), nn.SiLU(),  # (B, 2C, 7, 7)
            nn.Conv2d(2 * C, 2 * C, 3, padding=1), nn.SiLU(), nn.Flatten(),
            nn.Linear(98 * C, 128), nn.SiLU(), nn.Linear(128, 10))

    def energies(self, x):
        """E(x, y) of images x (B, 1, 28, 28) for each class y and, for the null label, E(x): (B, 11)."""
        e = -self.net((2 * x - 1).contiguous(memory_format=torch.channels_last)).float()
        return torch.cat([e, -torch.logsumexp(-e, 1, keepdim=True)], 1)

    def energy(self, x, y=None):
        """E(x, y), (B,), for y a class or (B,) classes; E(x) for None."""
        y = torch.as_tensor(NULL if y is None else y, device=x.device).expand(len(x))
        return self.energies(x).gather(1, y[:, None])[:, 0]

    def labels(self, y, n):
        """y as (n,) classes; None draws them from p(y), uniform. An unconditional model knows NULL alone."""
        y = torch.randint(10, (n,)) if y is None else torch.as_tensor(y)
        return (y if self.conditional else torch.tensor(NULL)).to(self.net[-1].bias.device).expand(n)

    def sample(self, n, y=None):
        """n images (n, 1, 28, 28) in [0, 1] from noise; y: None (drawn), a class or (n,) classes."""
        y = self.labels(y, n)
        x = torch.rand(n, 1, 28, 28, device=y.device)
        parts = zip(x.split(100), y.split(100))
        return torch.cat([langevin(self, *part, self.sample_steps) for part in parts])

def langevin(model, x, y, steps, step_size=1.0, noise=0.005, known=None, frames=None):
    """Langevin dynamics x ← x − λ ∂E/∂x + σ ε, from x (B, 1, 28, 28); kept in [0, 1], the gradient in ±0.1.
    Pixels where the mask `known` is 1 stay as they are; the list `frames` collects every x."""
    start = x
    for _ in range(steps):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            gradient, = torch.autograd.grad(model.energy(x, y).sum(), x)
        x = (x.detach() - step_size * gradient.clamp(-0.1, 0.1) + noise * torch.randn_like(x)).clamp(0, 1)
        x = x if known is None else torch.where(known, start, x)
        if frames is not None:
            frames.append(x)
    return x

class ReplayBuffer(nn.Module):
    """Where chains wait between optimiser steps: images as uint8, each with its class."""
    def __init__(self, size, conditional=True):
        super().__init__()
        self.register_buffer("x", torch.randint(256, (size, 1, 28, 28), dtype=torch.uint8))
        self.register_buffer("y", torch.arange(size) % 11 if conditional else torch.full((size,), NULL))

    def draw(self, i):
        """Images and classes of chains i (B,); a twentieth starts again from noise."""
        x = self.x[i] / 255
        restart = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.05
        return torch.where(restart, torch.rand_like(x), x), self.y[i]

def drop_labels(y, rate):
    """Labels (B,), each the null label with probability `rate`: one network learns p(x | y) and p(x)."""
    return torch.where(torch.rand(len(y), device=y.device) < rate, NULL, y)

# %% Training
def main(argv=None):
    run = Run(argv)  # flags, output folder, resuming: the frame, at the end of this file
    x, y, x_test, y_test, run.source = mnist(run.stand_in, run.device)
    n = len(x) * 11 // 12  # the last twelfth (5,000 digits of MNIST) is for validation
    run.baselines = {"untrained: cross-entropy of p(y | x), nats": math.log(10)}

    torch.manual_seed(run.seed)
    model = EBM(run.channels, run.sample_steps, run.label_dropout < 1)
    model.to(run.device, memory_format=torch.channels_last)  # how convolutions are fastest
    buffer = ReplayBuffer(run.buffer, run.label_dropout < 1).to(run.device)
    decay = max(0.0, 1 - 10 / run.steps)  # the EMA of the weights looks back over a tenth of the run
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    optimizer = torch.optim.Adam(model.parameters(), lr=run.lr, betas=(0.0, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, run.lr, total_steps=run.steps, pct_start=0.06, cycle_momentum=False)
    for step in run.loop(model=model, ema=ema, buffer=buffer, optimizer=optimizer, schedule=schedule):
        i = torch.randint(n, (run.batch_size,), device=run.device)
        j = torch.randint(run.buffer, (run.batch_size,), device=run.device)
        labels, noise = drop_labels(y[i], run.label_dropout), torch.randn(x[i].shape, device=run.device)
        real = (x[i] / 255 + 0.03 * noise).clamp(0, 1)  # a little noise, as on the chains
        with run.autocast():
            chain, labels_chain = buffer.draw(j)
            chain = langevin(model, chain, labels_chain, run.langevin_steps)
            buffer.x[j] = (255 * chain).round().byte()
            e = model.energies(torch.cat([real, chain]))  # (2 B, 11)
        energy_real, energy_chain = e.gather(1, torch.cat([labels, labels_chain])[:, None]).chunk(2)
        contrast = (energy_real - energy_chain).mean()  # its gradient is that of −log p(x | y)
        classification = F.cross_entropy(-e[:len(real), :10], labels, ignore_index=NULL, reduction="sum")
        penalty = (energy_real**2 + energy_chain**2).mean()
        loss = contrast + classification / run.batch_size + run.energy_penalty * penalty
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimizer.step()
        schedule.step()
        ema.update_parameters(model)
        if run.log(loss):  # a status line; True every 20 s and at the end
            with torch.no_grad():
                data = ema.module.energy(x[n:][:1000] / 255, model.labels(y[n:][:1000], len(x[n:][:1000])))
                chains = ema.module.energy(buffer.x[:1000] / 255, buffer.y[:1000])
            means, digits = [data.mean().item(), chains.mean().item()], torch.arange(40) % 10
            samples = grid(ema.module.sample(40, digits), f"samples, step {step:,}")
            run.save(means[0] - means[1], samples, energies=means)
    evaluate(run, ema.module, x_test / 255, y_test)

# %% That is the whole idea. Below: what the trained model can do, and the frame that every chapter shares.
# %% Evaluation: a saved model, figures and pictures
def load(path=f"out/{NAME}/model.pt", device="cpu"):
    """The model of a saved run with its EMA weights, ready to sample."""
    try:
        assert (saved := torch.load(path, map_location="cpu", weights_only=True))["name"] == NAME
        s = saved["settings"]
        ema = AveragedModel(EBM(s["channels"], s["sample_steps"], s["label_dropout"] < 1))
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

@torch.no_grad()
def evaluate(run, model, x, y):
    """Figures and pictures of test images x in [0, 1] of classes y."""
    torch.manual_seed(1)
    digit = torch.arange(10, device=x.device)
    e = torch.cat([model.energies(part) for part in x.split(500)])  # (N, 11)
    samples = model.sample(500, digit.repeat(50))
    other = {"samples": samples, "upside down": x[::10].rot90(2, (2, 3)), "half as dark": x[::10] / 2}
    energy = {name: model.energy(images) for name, images in other.items()}
    auroc = {name: (e[:, NULL, None] < v).float().mean().item() for name, v in energy.items()}
    run.report({
        "test digits classified by p(y | x)": (e[:, :10].argmin(1) == y).float().mean().item(),
        "mean E(x, y) of test digits": e.gather(1, y[:, None]).mean().item(),
        "mean E(x, y) of samples": model.energy(samples, digit.repeat(50)).mean().item(),
    } | {f"AUROC of E(x), test digits against {name}": value for name, value in auroc.items()})

    run.picture("samples.png", grid(samples[:100], f"samples after {run.sample_steps} Langevin steps"))
    frames = [torch.rand(20, 1, 28, 28, device=x.device)]
    langevin(model, frames[0], digit.repeat(2), run.sample_steps, frames=frames)
    run.picture("chains.gif", *(grid(chain, "Langevin dynamics from noise") for chain in frames[:200:5]))
    x10 = x[torch.stack([(y == d).nonzero()[0, 0] for d in range(10)])]  # the first test digit of each class
    known = torch.arange(28, device=x.device).view(28, 1) < 14  # the upper half
    starts = [torch.where(known, x10, torch.rand_like(x10)) for _ in range(4)]
    drawn = [langevin(model, start, digit, run.sample_steps, known=known) for start in starts]
    run.picture("inpainting.png", grid(torch.cat([x10, *drawn]), "the lower half of x, inpainted", "x1234"))
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    energies = [p["energies"] for p in run.curve]
    left.plot([p["step"] for p in run.curve], energies, label=["validation digits", "chains in the buffer"])
    left.set(title="the two energies stay close and near 0", xlabel="step", ylabel="mean E(x, y), nats")
    for name, values in {"test digits": e[:, NULL], **energy}.items():
        right.hist(values.clamp(-10, 20).cpu(), 120, range=(-10, 20), density=True, alpha=0.6, label=name)
    right.set(title="what has low energy?", xlabel="E(x), up to a constant", ylabel="density", yscale="log")
    left.legend()
    right.legend(fontsize=8)
    run.picture("energies.png", figure)

# %% Notes
# Differs from the papers: one energy for each class; the contrast is that of E(x, y), where JEM has that of
# E(x); no spectral normalisation; noise of 0.03 on the digits; samples by the EMA (running mean) of the
# weights; Adam with one cycle of the learning rate, gradients clipped at norm 1. `sample(n)` draws y ~ p(y),
# then x ~ p(x | y): descent in E(x) from noise finds the deepest class again and again.
#
# Things to break:
# 1. In `main`, put buffer.x[j] = torch.randint_like(buffer.x[j], 256): chains never grow older than 20 steps,
#    E tells them from digits at sight, and the loss falls below 0.
# 2. Set --energy-penalty 0: the energies drift away from 0.
# 3. In `langevin`, set noise=0.1: samples drown in grain.
#
# References: JEM: Grathwohl et al. 2020 (1912.03263). Read before: ddpm.py. Next: docs/comparison.md.

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
