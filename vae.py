# /// script
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""VAE: the variational autoencoder (Kingma & Welling 2014, arXiv:1312.6114).

A latent variable model generates a binary image x in two steps. First a latent vector z is drawn from a fixed
prior; then a network, the decoder, turns z into the probability of a foreground pixel at each of 784 places.
With the class y given:

    p(z) = N(0, I), p(x | z, y) = Π_i Bernoulli(x_i; sigmoid decode(z, y)_i), p(x | y) = ∫ p(x | z, y) p(z) dz

The integral has no closed form, and drawing z at random hardly ever meets one that could have made this x. So
a second network, the encoder, learns where to look: its outputs μ and σ give q(z | x, y) = N(μ, diag σ²), an
approximation of the posterior p(z | x, y). For any q the evidence lower bound (ELBO) holds, with the
Kullback-Leibler divergence KL:

    log p(x | y) ≥ E_q[log p(x | z, y)] − KL(q(z | x, y) ‖ p(z)),     KL = −½ Σ_j (1 + log σ_j² − μ_j² − σ_j²)

The first term asks for good reconstructions of x; the second is the price of the information about x in z.
The bound is below log p(x | y) by KL(q ‖ p(z | x, y)), so raising it also brings q closer to that posterior.

Training maximises the ELBO over both networks at once. Its gradient has to pass through the random draw of z,
which the reparameterisation makes possible: z = μ + σ ε with ε ~ N(0, I) is a differentiable function of μ
and σ. A tenth of the training digits carry the null label in place of y, so one network also learns p(x).

Sampling: z ~ N(0, I), then decode (shown are the probabilities). p(x): a lower bound. Latent: z, so images
can be encoded, compared and interpolated. Good at: fast sampling, representations. Bad at: sharpness; pixels
are independent given z, so whatever z does not determine is averaged.

`python vae.py` on MNIST and two cores of an Intel Xeon (bfloat16): 370 s of training, 391 s in all.

    step 4,878/70,000  -ELBO, nats 98.8255  19,335 digits/s  5 min 37 s left
    step 35,407/70,000  -ELBO, nats 88.2157  18,955 digits/s  3 min 02 s left
    step 70,000/70,000  -ELBO, nats 84.3524  18,939 digits/s  0 min 00 s left

Test set, binarised once: −ELBO 86.17 nats given the class, 94.66 under the null label; the tighter bound of
5,000 importance samples is 3.2 and 3.5 lower (every 50th digit). Without classes, `--label-dropout 1`: 90.21.
Untrained: 784 ln 2 = 543.4; independent pixels: 206.0. A separate classifier finds the class asked for in
97.4 % of samples.
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
NAME, LOSS, ITEMS = "vae", "-ELBO, nats", "digits"
NULL = 10  # the null label: no class given
SETTINGS = {
    "steps": (70000, "optimiser steps", 1, 10**9),
    "batch_size": (100, "digits per step", 1, 10**6),
    "lr": (2e-3, "peak learning rate of Adam", 0, 10),
    "hidden": (500, "units in each of the two hidden layers of encoder and decoder", 1, 10**5),
    "latent_dim": (20, "dimensions of the latent z", 2, 1000),
    "beta": (1.0, "weight of the KL term: 1 is the bound, more is a beta-VAE", 0, 1000),
    "label_dropout": (0.1, "share of digits under the null label; 1 gives an unconditional model", 0, 1),
}

# %% Model: an encoder that infers z from x, a decoder that generates x from z
def bernoulli_log_prob(x, logits):
    """log p of binary images x (B, 1, 28, 28) whose pixels are independent given the logits: nats (B,)."""
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)

def gaussian_kl(mean, log_var):
    """KL(N(mean, exp log_var) ‖ N(0, I)) by dimension, (B, Z), nats (Kingma & Welling 2014, appendix B)."""
    return -0.5 * (1 + log_var - mean**2 - log_var.exp())

class VAE(nn.Module):
    """p(x, z | y) = N(z; 0, I) Bernoulli(x; decode(z, y)) and q(z | x, y) = N(z; encode(x, y))."""
    def __init__(self, hidden=500, latent_dim=20, conditional=True):
        super().__init__()
        self.latent_dim, self.conditional = latent_dim, conditional
        self.encoder = nn.Sequential(
            nn.Linear(784 + 11, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, 2 * latent_dim))
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim + 11, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, 784))

    def with_class(self, v, y):
        """v (B, D) and a one-hot class: (B, D + 11). y is None (the null label), a class or (B,) classes."""
        y = self.labels(NULL if y is None else y, len(v))
        return torch.cat([v, F.one_hot(y, 11).to(v)], 1)

    def encode(self, x, y=None):
        """Mean and log-variance, (B, Z) each, of q(z | x, y) for binary images x (B, 1, 28, 28)."""
        return self.encoder(self.with_class(x.flatten(1), y)).float().chunk(2, 1)

    def decode(self, z, y=None):
        """Logits (B, 1, 28, 28) of the pixels of p(x | z, y), for z (B, Z)."""
        return self.decoder(self.with_class(z, y)).float().view(-1, 1, 28, 28)

    def elbo(self, x, y=None, beta=1.0):
        """One draw of the evidence lower bound of log p(x | y) for binary x (B, 1, 28, 28): nats (B,)."""
        mean, log_var = self.encode(x, y)
        eps = torch.randn_like(mean)
        z = mean + torch.exp(0.5 * log_var) * eps  # reparameterisation: differentiable in mean and log_var
        log_likelihood = bernoulli_log_prob(x, self.decode(z, y))
        return log_likelihood - beta * gaussian_kl(mean, log_var).sum(1)

    def labels(self, y, n):
        """y as (n,) classes; None draws them from p(y), uniform. An unconditional model knows NULL alone."""
        y = torch.randint(10, (n,)) if y is None else torch.as_tensor(y)
        return (y if self.conditional else torch.tensor(NULL)).to(self.decoder[0].weight.device).expand(n)

    @torch.no_grad()
    def sample(self, n, y=None):
        """n images (n, 1, 28, 28) in [0, 1]: probabilities of pixels. y: None (drawn), a class or (n,)."""
        y = self.labels(y, n)
        return self.decode(torch.randn(n, self.latent_dim, device=y.device), y).sigmoid()

def binarise(x, seed=None):
    """A Bernoulli draw of each pixel of uint8 images, its grey value the probability; `seed` fixes it."""
    generator = None if seed is None else torch.Generator(x.device).manual_seed(seed)
    return (torch.rand(x.shape, device=x.device, generator=generator) * 255 < x).float()

def drop_labels(y, rate):
    """Labels (B,), each the null label with probability `rate`: one network learns p(x | y) and p(x)."""
    return torch.where(torch.rand(len(y), device=y.device) < rate, NULL, y)

# %% Training
def main(argv=None):
    run = Run(argv)  # flags, output folder, resuming: the frame, at the end of this file
    x, y, x_test, y_test, run.source = mnist(run.stand_in, run.device)
    n = len(x) * 11 // 12  # the last twelfth (5,000 digits of MNIST) is for validation
    x_valid, y_valid, x_test = binarise(x[n:], seed=0), y[n:], binarise(x_test, seed=1)
    rate = (x[:n].float().mean(0) / 255).clamp(1e-3, 1 - 1e-3).expand_as(x_test)  # how often a pixel is 1
    run.baselines = {"untrained": 784 * math.log(2),
                     "independent pixels": 784 * F.binary_cross_entropy(rate, x_test).item()}

    torch.manual_seed(run.seed)
    model = VAE(run.hidden, run.latent_dim, run.label_dropout < 1).to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=run.lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, run.lr, total_steps=run.steps, pct_start=0.06, cycle_momentum=False)
    for step in run.loop(model=model, optimizer=optimizer, schedule=schedule):
        i = torch.randint(n, (run.batch_size,), device=run.device)
        with run.autocast():
            loss = -model.elbo(binarise(x[i]), drop_labels(y[i], run.label_dropout), run.beta).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if run.log(loss):  # a status line; True every 20 s and at the end
            with torch.no_grad():
                validation = -model.elbo(x_valid, y_valid).mean().item()
            run.save(validation, grid(model.sample(40, torch.arange(40) % 10), f"samples, step {step:,}"))
    evaluate(run, model, x_test, y_test)

# %% That is the whole idea. Below: what the trained model can do, and the frame that every chapter shares.
# %% Evaluation: a saved model, pictures, a tighter bound
def load(path=f"out/{NAME}/model.pt", device="cpu"):
    """The model of a saved run, ready to sample."""
    try:
        assert (saved := torch.load(path, map_location="cpu", weights_only=True))["name"] == NAME
        s = saved["settings"]
        model = VAE(s["hidden"], s["latent_dim"], s["label_dropout"] < 1)
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

@torch.no_grad()
def importance_bound(model, x, y=None, samples=5000):
    """log (1/S) Σ_s p(x, z_s | y) / q(z_s | x, y): a bound in nats, (B,), exact for large S (Burda 2016)."""
    (mean, log_var), log_w = model.encode(x, y), []
    for eps in torch.randn(samples, *mean.shape, device=x.device):
        z = mean + torch.exp(0.5 * log_var) * eps
        log_w.append(bernoulli_log_prob(x, model.decode(z, y)) + 0.5 * (eps**2 + log_var - z**2).sum(1))
    return torch.stack(log_w).logsumexp(0) - math.log(samples)

@torch.no_grad()
def evaluate(run, model, x, y):
    """Figures and pictures of binary test images x of classes y."""
    torch.manual_seed(1)
    conditional, null, kl = -model.elbo(x, y), -model.elbo(x), gaussian_kl(*model.encode(x)).mean(0)
    by_class = torch.stack([importance_bound(model, x[::10], digit, 20) for digit in range(10)])
    print("5,000 importance samples for every 50th test digit", flush=True)
    gap = [(bound[::50] + importance_bound(model, x[::50], labels)).mean().item()
           for bound, labels in ((conditional, y[::50]), (null, None))]
    run.report({
        "test -ELBO, conditional, nats": conditional.mean().item(),
        "its standard error": (conditional.std() / len(x) ** 0.5).item(),
        "test -ELBO, unconditional, nats": null.mean().item(),
        "of it KL": kl.sum().item(),
        "every 10th digit: -ELBO, unconditional, nats": null[::10].mean().item(),
        "every 10th digit: NLL, marginal": math.log(10) - by_class.logsumexp(0).mean().item(),
        "every 50th digit: -ELBO minus NLL, conditional": gap[0],
        "every 50th digit: -ELBO minus NLL, unconditional": gap[1]})

    digit = torch.arange(10, device=x.device)
    run.picture("samples.png", grid(model.sample(100, digit.repeat(10)), "samples by class: probabilities"))
    z = torch.randn(8, len(kl), device=x.device).repeat_interleave(10, 0)
    styles = model.decode(z, digit.repeat(8)).sigmoid()
    run.picture("style.png", grid(styles, "one z a row, one class a column: z is the style"))
    x10 = x[torch.stack([(y == d).nonzero()[0, 0] for d in range(10)])]  # the first test digit of each class
    mean, log_var = model.encode(x10)
    z = torch.cat([mean + torch.exp(0.5 * log_var) * torch.randn_like(mean) for _ in range(3)])
    rows = torch.cat([x10, model.decode(z).sigmoid()])
    run.picture("reconstructions.png", grid(rows, "three z ~ q(z | x), decoded", "x123"))
    walk = [model.decode(mean.lerp(mean.roll(-1, 0), u / 16)).sigmoid() for u in range(17)]
    run.picture("interpolation.gif", *(grid(images, "to the next digit's z") for images in walk))
    i, j = kl.argsort(descending=True).tolist()[:2]
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    means = model.encode(x[:3000])[0][:, [i, j]].cpu()
    points = left.scatter(*means.T, c=y[:3000].cpu(), cmap="tab10", s=4, vmin=-0.5, vmax=9.5)
    figure.colorbar(points, ax=left, ticks=range(10), label="class")
    left.set(title="means of q(z | x) of test digits", xlabel=f"z{i}", ylabel=f"z{j}", aspect="equal")
    right.bar(range(1, len(kl) + 1), kl.sort(descending=True).values.cpu())
    right.set(title=f"{(kl > 0.05).sum()} of {len(kl)} units are active: above 0.05 nats",
              xlabel="latent dimension, sorted", ylabel="KL(q ‖ p), nats")
    run.picture("latents.png", figure)

# %% Notes
# Differs from the paper: two hidden layers of 500 SiLU units for one of 500 tanh units, Adam with one cycle
# of the learning rate for Adagrad, digits binarised afresh in every batch, the class as an input of both
# networks. `sample(n)` draws y ~ p(y), then x ~ p(x | y): under the null label z itself must separate the
# classes, whose shares are then off (total variation distance 0.22).
#
# Things to break:
# 1. In `elbo`, decode z.detach(): the encoder learns from the KL alone, which falls to 0 (posterior
#    collapse), and all samples of a class are one blur.
# 2. In `bernoulli_log_prob`, put .mean(1) for .sum(1): the KL outweighs the pixels, every unit collapses.
# 3. Set --beta 0: reconstructions sharpen, samples turn to noise, validation runs away.
#
# References: importance weights: Burda, Grosse & Salakhutdinov 2016 (1509.00519); β: Higgins et al. 2017;
# with a diffusion prior, latent diffusion: Rombach et al. 2022 (2112.10752). Read before: made.py. Next:
# vqvae.py, with discrete latents.

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
