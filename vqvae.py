# /// script
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
An entry is the running mean of its vectors (appendix A.1), or restarts at a vector of the batch if hardly
used; perplexity is exp of the entropy of the entries' shares. Sampling: codes from the prior, then decode.
p(x): a lower bound. Latent: T codes. Good at: turning data into tokens. Bad at: likelihood.

`python vqvae.py` on MNIST and one core (shared) of an Intel Xeon (bfloat16): 931 s of training, 951 s in all.

    step 608/20,000  -ELBO, nats 188.7788  2,116 digits/s  15 min 17 s left
    step 8,003/20,000  -ELBO, nats 111.1526  1,478 digits/s  13 min 32 s left
    step 20,000/20,000  -ELBO, nats 105.0177  2,148 digits/s  0 min 00 s left

Test set, binarised once: −ELBO 96.79 nats given the class, of it 35.07 for the codes, 101.22 under the null
label. Perplexity of the codes: 98 of K = 128. A classifier finds the class asked for in 97.1 % of samples.
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
    x, y, x_test, y_test, run.source = mnist(run.stand_in, run.device)
    n = len(x) * 11 // 12  # the last twelfth (5,000 digits of MNIST) is for validation
    x_valid, y_valid, x_test = binarise(x[n:], seed=0), y[n:], binarise(x_test, seed=1)
    rate = (x[:n].float().mean(0) / 255).clamp(1e-3, 1 - 1e-3).expand_as(x_test)  # how often a pixel is 1
    run.baselines = {"untrained": 784 * math.log(2),
                     "independent pixels": 784 * F.binary_cross_entropy(rate, x_test).item()}

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
            run.save(validation, grid(model.sample(40, torch.arange(40) % 10), f"samples, step {step:,}"))
    evaluate(run, model, x_test, y_test)

# %% That is the whole idea. Below: what the trained model can do, and the frame that every chapter shares.
# %% Evaluation: small functions used above, a saved model, a picture
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

def load(path=f"out/{NAME}/model.pt", device="cpu"):
    """The model of a saved run, ready to sample."""
    try:
        assert (saved := torch.load(path, map_location="cpu", weights_only=True))["name"] == NAME
        s = saved["settings"]
        model = VQVAE(s["hidden"], s["codes"], s["entries"], s["code_dim"], s["label_dropout"] < 1)
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
def evaluate(run, model, x, y):
    """Figures and pictures of binary test images x of classes y."""
    torch.manual_seed(1)
    log_likelihood, log_prior, z = model.terms(x, model.encode(x, y), y)
    bound, null = -log_likelihood - log_prior, -model.elbo(x)
    by_class = torch.stack([model.elbo(x[::10], digit) for digit in range(10)])
    marginal = math.log(10) - by_class.logsumexp(0)  # p(x) = Σ_y p(y) p(x | y)
    shares = z.flatten().bincount(minlength=run.entries) / z.numel()
    run.report({
        "test -ELBO, conditional, nats": bound.mean().item(),
        "its standard error": (bound.std() / len(x) ** 0.5).item(),
        "of it -log p(z | y), the codes": -log_prior.mean().item(),
        "test -ELBO, unconditional, nats": null.mean().item(),
        "every 10th digit: -ELBO, unconditional, nats": null[::10].mean().item(),
        "every 10th digit: -ELBO, marginal over the classes, nats": marginal.mean().item(),
        "perplexity of the codes": torch.special.entr(shares).sum().exp().item()})

    run.picture("samples.png", grid(model.sample(100, torch.arange(100) % 10), "samples: probabilities"))
    x10 = x[torch.stack([(y == d).nonzero()[0, 0] for d in range(10)])]  # the first test digit of each class
    z, place = model.terms(x10, model.encode(x10))[2], torch.arange(run.codes, device=x.device)
    morph = [torch.where(place < t, z.roll(-1, 0), z) for t in range(run.codes + 1)]
    drawn = torch.randint(run.entries, z.shape, device=x.device)
    other = [torch.where(place == t, drawn, z[3]) for t in place[:8]]
    images = model.decode(model.codebook.entry[torch.cat(morph + other)]).sigmoid().split(10)
    run.picture("morph.gif", *(grid(part, "to the next digit, code by code") for part in images[:len(morph)]))
    run.picture("codes.png", grid(torch.cat(images[len(morph):]), "a 3, a code a row redrawn", "", " " * 10))

# %% Notes
# Differs from the paper: networks of two hidden layers, as in vae.py; 16 codes of the whole digit for codes
# of places; an LSTM as prior, learned with the codebook; a likelihood of binary pixels, drawn apart from
# the encoder's; one cycle of the learning rate. A larger codebook learns more slowly: −ELBO of drafts 102.1
# nats with K = 8 after 2,400 steps; after 3,200 103.5 with 64, 109.4 with 256.
#
# Things to break:
# 1. In `terms`, put e = self.codebook.entry[z]: only commitment moves the encoder; log p(x | z, y) is lower.
# 2. In `update`, put self.count == 0 for self.count < 0.03 * share: dead entries stay, perplexity is lower.
# 3. In `sample`, draw the codes by torch.randint(self.codebook.K, (n, self.T)): strokes, but no digits.
#
# References: restarts: Dhariwal et al. 2020 (2005.00341). Read before: vae.py, char_rnn.py. Next: gan.py.

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
