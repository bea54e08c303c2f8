# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""VQ-VAE: the vector-quantised autoencoder (van den Oord, Vinyals & Kavukcuoglu 2017, arXiv:1711.00937).

vae.py's latent is continuous, its prior a Gaussian. Here it is a sequence of T discrete codes, each one of K,
and the prior p(z | y) is learned, by a small LSTM. The encoder outputs T vectors z_e; a codebook holds K
vectors e_1, …, e_K; each vector is replaced by its nearest:

    z_t = argmin_k ‖z_e,t − e_k‖²,     log p(x | y) ≥ log p(x | z, y) + log p(z | y)     at the encoder's z

This evidence lower bound (ELBO) is one term of the sum p(x | y) = Σ_z p(z | y) p(x | z, y). q(z | x, y) is
deterministic, so the KL of vae.py becomes −log p(z | y), the cost of the codes. An argmin has no gradient. So
the decoder's gradient at e_z is copied to z_e unchanged (the straight-through estimator), and a commitment
loss c ‖z_e − sg(e_z)‖², where sg stops the gradient, keeps the two close; it is added to −ELBO in training.
An entry e_k is the running mean of the vectors assigned to it (appendix A.1); one that is hardly used
restarts at a vector of the batch. Usage is measured as perplexity, exp of their entropy.

Sampling: T codes from the prior, then one pass of the decoder (shown are the probabilities). p(x): a lower
bound. Latent: T codes. Good at: turning data into tokens. Bad at: likelihood.

`python vqvae.py` on MNIST and one core (shared) of an Intel Xeon (bfloat16): 931 s of training, 951 s in all.

    step 608/20,000  -ELBO, nats 188.7788  2,116 digits/s  15 min 17 s left
    step 8,003/20,000  -ELBO, nats 111.1526  1,478 digits/s  13 min 32 s left
    step 20,000/20,000  -ELBO, nats 105.0177  2,148 digits/s  0 min 00 s left

Test set, binarised once: −ELBO 96.79 nats given the class, of it 35.07 for the codes, 101.22 under the null
label. Perplexity of the codes: 98 of K = 128. A separate classifier finds the class asked for in 97.1 % of
5,000 samples.
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
NAME, LOSS, ITEMS = "vqvae", "-ELBO, nats", "digits"
NULL = 10  # the null label: no class given
SETTINGS = {
    "steps": (20000, "optimiser steps", 1, 10**9),
    "batch_size": (100, "digits per step", 1, 10**6),
    "lr": (2e-3, "peak learning rate of Adam", 0, 10),
    "hidden": (500, "units in each of the two hidden layers of encoder and decoder", 1, 10**5),
    "codes": (16, "T, codes of an image", 1, 1000),
    "entries": (128, "K, entries of the codebook", 2, 10**5),
    "code_dim": (16, "dimensions of an entry", 1, 1000),
    "commitment": (0.25, "weight c of the commitment loss", 0, 1000),
    "label_dropout": (0.1, "share of digits under the null label; 1 gives an unconditional model", 0, 1),
}

# %% Model: an encoder and a decoder with discrete codes between, and a prior of the codes
class Codebook(nn.Module):
    """K entries of D numbers, each the running mean of the vectors assigned to it (appendix A.1)."""

    def __init__(self, K, D, decay=0.99):
        super().__init__()
        self.K, self.decay = K, decay
        self.register_buffer("entry", torch.randn(K, D))
        self.register_buffer("count", torch.zeros(K))  # running mean of the vectors assigned in a step
        self.register_buffer("total", torch.zeros(K, D))  # and of their sum

    def nearest(self, z_e):
        """The index of the nearest entry for vectors z_e (B, T, D): (B, T)."""
        return torch.cdist(z_e, self.entry).argmin(2)

    @torch.no_grad()
    def update(self, z_e, z):
        """Move entries to the running means of their vectors; restart dead ones at vectors of this batch."""
        error = (z_e - self.entry[z]).square().sum(2).flatten()  # (B T,)
        z_e, one_hot = z_e.flatten(0, 1), F.one_hot(z.flatten(), self.K).float()  # (B T, D), (B T, K)
        self.count.lerp_(one_hot.sum(0), 1 - self.decay)
        self.total.lerp_(one_hot.T @ z_e, 1 - self.decay)
        share, random = len(z_e) / self.K, z_e[torch.multinomial(error + 1e-6, self.K, True)]
        dead = self.count < 0.03 * share  # in the first step nearly all: the codebook starts at data
        self.count[dead], self.total[dead] = share, share * random[dead]
        self.entry.copy_(self.total / self.count[:, None])

class Prior(nn.Module):
    """p(z | y), the product over codes t of p(z_t | codes before t, y), by an LSTM (char_rnn.py)."""

    def __init__(self, K, T, D=256):
        super().__init__()
        self.code, self.label, self.place = nn.Embedding(K, D), nn.Embedding(11, D), nn.Embedding(T, D)
        self.lstm, self.head = nn.LSTM(D, D, batch_first=True), nn.Linear(D, K)
        nn.init.zeros_(self.head.weight)  # untrained: each code has probability 1/K
        nn.init.zeros_(self.head.bias)

    def log_prob(self, z, y):
        """log p(z | y) of codes z (B, T): nats (B,)."""
        before = torch.cat([self.label(y)[:, None], self.code(z[:, :-1])], 1)  # the class comes first
        logits = self.head(self.lstm(before + self.place.weight)[0]).float()
        return -F.cross_entropy(logits.transpose(1, 2), z, reduction="none").sum(1)

    @torch.no_grad()
    def sample(self, y):
        """Codes (n, T) for classes y (n,), one after the other."""
        before, state, z = self.label(y), None, []
        for place in self.place.weight:
            h, state = self.lstm((before + place)[:, None], state)
            z.append(torch.multinomial(self.head(h[:, 0]).softmax(1), 1)[:, 0])
            before = self.code(z[-1])
        return torch.stack(z, 1)

class VQVAE(nn.Module):
    """p(x, z | y) = p(z | y) Bernoulli(x; decode(z, y)); q(z | x, y) is the one nearest z."""
    def __init__(self, hidden=500, codes=16, entries=128, code_dim=16, conditional=True):
        super().__init__()
        self.T, self.D, self.conditional = codes, code_dim, conditional
        self.encoder = nn.Sequential(
            nn.Linear(784 + 11, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, codes * code_dim))
        self.decoder = nn.Sequential(
            nn.Linear(codes * code_dim + 11, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(),
            nn.Linear(hidden, 784))
        self.codebook, self.prior = Codebook(entries, code_dim), Prior(entries, codes)

    def with_class(self, v, y):
        """v (B, D) and a one-hot class: (B, D + 11). y is None (the null label), a class or (B,) classes."""
        y = self.labels(NULL if y is None else y, len(v))
        return torch.cat([v, F.one_hot(y, 11).to(v)], 1)

    def encode(self, x, y=None):
        """The vectors z_e (B, T, D) before the codebook, for binary images x (B, 1, 28, 28)."""
        return self.encoder(self.with_class(x.flatten(1), y)).float().view(len(x), self.T, self.D)

    def decode(self, e, y=None):
        """Logits (B, 1, 28, 28) of the pixels of p(x | z, y), for entries e (B, T, D) of the codebook."""
        return self.decoder(self.with_class(e.flatten(1), y)).float().view(-1, 1, 28, 28)

    def terms(self, x, z_e, y=None):
        """log p(x | z, y) and log p(z | y), nats (B,) each, and the codes z (B, T) nearest to z_e."""
        z = self.codebook.nearest(z_e.detach())
        e = z_e + (self.codebook.entry[z] - z_e).detach()  # e_z with the gradient of z_e: straight-through
        y = self.labels(NULL if y is None else y, len(x))
        return bernoulli_log_prob(x, self.decode(e, y)), self.prior.log_prob(z, y), z

    def elbo(self, x, y=None):
        """The evidence lower bound of log p(x | y) for binary images x (B, 1, 28, 28): nats (B,)."""
        return sum(self.terms(x, self.encode(x, y), y)[:2])

    def labels(self, y, n):
        """y as (n,) classes; None draws them from p(y), uniform. An unconditional model knows NULL alone."""
        y = torch.randint(10, (n,)) if y is None else torch.as_tensor(y)
        return (y if self.conditional else torch.tensor(NULL)).to(self.decoder[0].weight.device).expand(n)

    @torch.no_grad()
    def sample(self, n, y=None):
        """n images (n, 1, 28, 28) in [0, 1]: probabilities of pixels. y: None (drawn), a class or (n,)."""
        y = self.labels(y, n)
        return self.decode(self.codebook.entry[self.prior.sample(y)], y).sigmoid()

# %% Training
def main(argv=None):
    run = Run(argv)  # flags, output folder, resuming: the frame, at the end of this file
    x, y, x_test, y_test, run.source = mnist(run.stand_in)
    x, y, x_test, y_test = (v.to(run.device) for v in (x, y, x_test, y_test))
    n = len(x) * 11 // 12  # the last twelfth (5,000 digits of MNIST) is for validation
    x_valid, y_valid, x_test = binarise(x[n:], seed=0), y[n:], binarise(x_test, seed=1)
    run.baselines = {"untrained": 784 * math.log(2), "independent pixels": independent_pixels(x[:n], x_test)}

    torch.manual_seed(run.seed)
    model = VQVAE(run.hidden, run.codes, run.entries, run.code_dim, run.label_dropout < 1).to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=run.lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, run.lr, total_steps=run.steps, pct_start=0.06, cycle_momentum=False)
    for step in run.loop(model=model, optimizer=optimizer, schedule=schedule):
        i = torch.randint(n, (run.batch_size,), device=run.device)
        with run.autocast():
            labels = drop_labels(y[i], run.label_dropout)
            z_e = model.encode(binarise(x[i]), labels)  # of another binarisation: codes of no noise
            log_likelihood, log_prior, z = model.terms(binarise(x[i]), z_e, labels)
            commitment = (z_e - model.codebook.entry[z]).square().sum((1, 2))
            loss = (run.commitment * commitment - log_likelihood - log_prior).mean()
        model.codebook.update(z_e.detach(), z)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if run.log(loss):  # a status line; True every 20 s and at the end
            with torch.no_grad():
                validation = -model.elbo(x_valid, y_valid).mean().item()
            samples = model.sample(40, torch.arange(40) % 10)
            run.save(validation, grid(samples, f"samples after {step:,} steps"))
    evaluate(run, model, x_test, y_test, x[:n], y[:n])

# %% That is the whole idea. Below: what the trained model can do, and the frame that every chapter shares.

# %% Evaluation: small functions used above
def bernoulli_log_prob(x, logits):
    """log p of binary images x (B, 1, 28, 28) whose pixels are independent given the logits: nats (B,)."""
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)

def binarise(x, seed=None):
    """A Bernoulli draw of each pixel of uint8 images, its grey value the probability; `seed` fixes it."""
    generator = None if seed is None else torch.Generator(x.device).manual_seed(seed)
    return (torch.rand(x.shape, device=x.device, generator=generator) * 255 < x).float()

def drop_labels(y, rate):
    """Labels (B,), each the null label with probability `rate`: one network learns p(x | y) and p(x)."""
    return torch.where(torch.rand(len(y), device=y.device) < rate, NULL, y)

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
    """The model of a saved run, ready to sample."""
    saved = read_checkpoint(path)
    s = saved["settings"]
    model = VQVAE(s["hidden"], s["codes"], s["entries"], s["code_dim"], s["label_dropout"] < 1)
    model.load_state_dict(saved["state"]["model"])
    return model.to(device).eval()

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

def independent_pixels(x, x_test):
    """NLL in nats of binary images x_test if each pixel were independent, as often 1 as in uint8 images x."""
    logits = (x.float().mean(0) / 255).clamp(1e-3, 1 - 1e-3).logit().expand_as(x_test)
    return 784 * F.binary_cross_entropy_with_logits(logits, x_test).item()

@torch.no_grad()
def evaluate(run, model, x, y, x_train, y_train):
    """Figures and pictures of binary test images x of classes y; uint8 training images to compare with."""
    torch.manual_seed(1)
    log_likelihood, log_prior, z = model.terms(x, model.encode(x, y), y)
    bound, null = -log_likelihood - log_prior, -model.elbo(x)
    by_class = torch.stack([model.elbo(x[::10], digit) for digit in range(10)])
    shares = z.flatten().bincount(minlength=run.entries) / z.numel()
    run.report({
        "test -ELBO, conditional, nats": bound.mean().item(),
        "its standard error": (bound.std() / len(x) ** 0.5).item(),
        "of it -log p(z | y), the codes": -log_prior.mean().item(),
        "test -ELBO, unconditional, nats": null.mean().item(),
        "every 10th digit: -ELBO, unconditional, nats": null[::10].mean().item(),
        "every 10th digit: -ELBO, marginal over the classes, nats":
            math.log(10) - by_class.logsumexp(0).mean().item(),
        "every 10th digit: classified by Bayes' rule": (by_class.argmax(0) == y[::10]).float().mean().item(),
        "nats of the codes without a prior, T log K": run.codes * math.log(run.entries),
        "perplexity of the codes": torch.special.entr(shares).sum().exp().item(),
    } | sample_quality(model.sample, x_train, y_train, y))

    digit, names = torch.arange(10, device=x.device), list("0123456789")
    run.picture("samples.png", grid(model.sample(100, digit.repeat(10)),
                                    "samples of each class: pixel probabilities", names))
    x10 = x[torch.stack([(y == d).nonzero()[0, 0] for d in range(10)])]  # the first test digit of each class
    z = model.codebook.nearest(model.encode(x10))

    def decode(z, y=None):
        return model.decode(model.codebook.entry[z], y).sigmoid()

    run.picture("reconstructions.png", grid(torch.cat([x10, decode(z)]), "digits, and their codes decoded",
                                            names, ["x", "decoded"]))
    place = torch.arange(run.codes, device=x.device)
    morph = [torch.where(place < t, z.roll(-1, 0), z) for t in range(run.codes + 1)]
    run.picture("morph.png", grid(torch.cat([decode(v) for v in morph]), "to the next digit, code by code",
                                  names, range(run.codes + 1)))
    run.picture("morph.gif", *(grid(decode(v), f"{t} of {run.codes} codes are the next digit's", names)
                               for t, v in enumerate(morph)))
    drawn = torch.randint(run.entries, z.shape, device=x.device)
    other = [torch.where(place == t, drawn, z[3]) for t in place[:8]]
    run.picture("codes.png", grid(torch.cat([decode(v) for v in other]), "a 3 with one code drawn at random",
                                  rows=[f"z{t}" for t in range(len(other))]))
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    ax = figure.subplots()
    ax.bar(range(1, run.entries + 1), 100 * shares.sort(descending=True).values.cpu())
    ax.axhline(100 / run.entries, ls="--", lw=1, color="gray")
    ax.set(title="share of each entry, test digits; dashed: equal shares", xlabel="entry, sorted", ylabel="%")
    run.picture("usage.png", figure)

# %% Notes
# Differs from the paper: the networks of vae.py, so that `diff vae.py vqvae.py` shows the idea, and 16 codes
# of the whole digit, where the paper's convolutions give 32 x 32 codes, one a place; an LSTM as the prior for
# the PixelCNN; codebook and prior learned in one run; binary pixels and their likelihood for squared error.
# In training the encoder sees another binarisation than the one that is scored, so that codes hold no noise.
# A larger codebook learns more slowly: −ELBO of validation digits in drafts, 102.1 nats with K = 8 after
# 2,400 steps; after 3,200 103.5 with K = 64 and 109.4 with K = 256; 95.2 with K = 64 after 8,000.
#
# Things to break:
# 1. In `terms`, put e = self.codebook.entry[z]: no gradient of the likelihood reaches the encoder, which
#    learns from the commitment alone; log p(x | z, y) stays some 20 nats lower.
# 2. In `update`, put self.count == 0 for self.count < 0.03 * share: an entry that loses its vectors stays
#    dead; the perplexity is lower.
# 3. In `sample`, draw the codes by torch.randint(self.codebook.K, (n, self.T)): strokes, but no digits.
#
# References: straight-through: Bengio, Léonard & Courville 2013 (1308.3432); restarts: Dhariwal et al. 2020
# (2005.00341). Read before: vae.py, char_rnn.py. Next: gan.py.

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
