# /// script
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""VAE: the variational autoencoder (Kingma & Welling 2014, arXiv:1312.6114).

How does an image of a seven come about? A writer has a style: slant, width, pressure. The style
is never recorded; only the pixels are. A latent variable model ("latent": not observed) tells
this story as a program. For an image x of the digit y, its class:

    z ~ p(z) = N(0, I)       draw a style z, 20 numbers; p(z) is called the prior
    x ~ p(x | z, y)          draw for each pixel ink (1) or paper (0), given style and class

A network, the decoder, computes from z and y the probability of ink at each of the 784 pixels.
Given z the pixels are independent, so log p(x | z, y) = Σ_i log p(x_i | z, y).

Nobody says which of the numbers is the slant: the decoder learns to make styles out of them.

Training should make p(x | y) of the training images as large as possible (maximum likelihood).
Over all styles that is p(x | y) = ∫ p(x | z, y) p(z) dz. The integral has no closed form, and the
mean over draws from the prior is useless: hardly any style fits this x, and for all others
p(x | z, y) is practically zero.

So a second network, the encoder, looks at x and says where to look for its z: a Gaussian
q(z | x, y), its 20 dimensions independent, each with a mean μ and a standard deviation σ. With
E_q, the mean over z drawn from q,

    log p(x | y) = log ∫ p(x | z, y) p(z) dz
                 = log E_q[p(x | z, y) p(z) / q(z | x, y)]            multiply and divide by q
                 ≥ E_q[log p(x | z, y) + log p(z) − log q(z | x, y)]  Jensen: log mean ≥ mean log
                 = E_q[log p(x | z, y)] − KL(q(z | x, y) ‖ p(z))      KL(q ‖ p) = E_q[log q − log p]

The last line is the ELBO, the evidence lower bound: "evidence" is a name for p(x | y). Its first
term is high if the decoder can rebuild x from z. Its second is a price: 0 if q is the prior, so
that z says nothing about x; the further q moves away or the narrower it is, the higher. Encoder
and decoder are trained together to raise the sum.

How much is lost at the ≥? By Bayes' rule p(x | z, y) p(z) = p(x | y) p(z | x, y). So line three is

    ELBO = E_q[log p(x | y) + log p(z | x, y) − log q(z | x, y)]
         = log p(x | y) − KL(q(z | x, y) ‖ p(z | x, y))            log p(x | y) has no z in it

A KL is never negative, and 0 only if both are equal. So the ELBO is a bound, and the encoder makes
it tight by coming close to p(z | x, y), the posterior: the styles that may have made this x.

Logarithms are natural and their unit is the nat: add one nat to log p, and p is e times as large.
The loss is −ELBO, so lower is better.

Run `python vae.py`; pictures appear in out/vae/. On MNIST and one core of an AMD EPYC (bfloat16),
the other one busy, it takes 363 seconds. Test images, nats: each pixel by itself, as often ink as
in training, 205.94; −ELBO of this model 85.72, and 90.14 with --classes 1. A separate classifier
finds the class asked for in 97.1 % of 5,000 samples.

Good at: fast sampling, a space of styles to walk in. Bad at: sharpness; given z the pixels are
independent, so what z leaves open comes out as a probability near 1/2, a grey. Read before:
made.py. Read next: vqvae.py, ddpm.py.
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
from torch.distributions import Normal

from data import mnist


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=50_000, help="optimiser steps")
    parser.add_argument("--batch-size", type=positive_int, default=100, help="images a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate of Adam")
    parser.add_argument("--hidden", type=positive_int, default=500, help="units in a hidden layer")
    parser.add_argument("--latent", type=positive_int, default=20, help="dimensions of z")
    parser.add_argument("--beta", type=float, default=1.0, help="weight of the KL: 1 is the ELBO")
    classes = "10: the digit is given to both networks; 1: it is not"
    parser.add_argument("--classes", type=positive_int, default=10, help=classes)
    add_common_flags(parser, out="out/vae", save_every=5000)  # --device, --resume ...: at the end
    return parse(parser, argv)


# %% Data
def binarise(images):
    """Draw each pixel: ink (1) with probability grey level / 255, else paper (0).

    The model knows ink and paper only. Training images are drawn anew at each step.
    """
    return torch.bernoulli(images / 255)


# %% Model
def log_likelihood(x, logits):
    """log p(x | z, y), nats (B,): Σ x log p + (1 − x) log(1 − p), with p = sigmoid(logit)."""
    by_pixel = -F.binary_cross_entropy_with_logits(logits, x, reduction="none")
    return by_pixel.flatten(1).sum(1)


# The KL of two Gaussians needs no sampling. The dimensions are independent, so their KLs add up.
# For one of them, log N(z; μ, σ²) = −[log 2π + log σ² + (z − μ)² / σ²] / 2, and under q the mean
# of (z − μ)² is σ², the mean of z² is μ² + σ². So
#
#     E_q[log q − log p] = E_q[−log σ² − (z − μ)² / σ² + z²] / 2 = (−log σ² − 1 + μ² + σ²) / 2
#
#     μ = 0, σ = 1      (0 − 1 + 0 + 1) / 2 = 0            q is the prior: z says nothing about x
#     μ = 1, σ = 1      (0 − 1 + 1 + 1) / 2 = 0.5          moved by one standard deviation
#     μ = 1, σ = 0.1    (4.61 − 1 + 1 + 0.01) / 2 = 2.31   and ten times as narrow
def kl_divergence(mean, log_var):
    """KL(N(μ, σ²) ‖ N(0, 1)) for each dimension of z, nats (B, latent) (paper: appendix B)."""
    return 0.5 * (-log_var - 1 + mean**2 + log_var.exp())


# E_q, the mean over z ~ q, is estimated by one draw. Its gradient must reach the encoder, but what
# is the derivative of a random draw? Let the randomness come from outside: z = μ + σ ε with
# ε ~ N(0, 1). Then E_q[f(z)] = E_ε[f(μ + σ ε)] is a mean over ε, which has nothing to learn, and
# the gradient of f(μ + σ ε) at one ε, through ∂z/∂μ = 1 and ∂z/∂σ = ε, is right on average. This
# is the reparameterisation trick.
def reparameterise(mean, log_var):
    """Draw z ~ N(μ, σ²), (B, latent), so that the gradient can pass through the draw."""
    eps = torch.randn_like(mean)
    sigma = torch.exp(0.5 * log_var)
    return mean + sigma * eps


class MLP(nn.Module):
    """Two hidden layers. The second is added to the first, which trains better."""

    def __init__(self, inputs, hidden, outputs):
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, outputs)

    def forward(self, v):
        h = F.silu(self.first(v))
        h = h + F.silu(self.second(h))
        return self.last(h)


class VAE(nn.Module):
    """Encoder q(z | x, y) and decoder p(x | z, y) for images x (B, 1, 28, 28) of classes y (B,)."""

    def __init__(self, hidden=500, latent=20, classes=10):
        super().__init__()
        self.latent = latent
        self.classes = classes
        self.encoder = MLP(28 * 28 + classes, hidden, 2 * latent)  # to μ and log σ²
        self.decoder = MLP(latent + classes, hidden, 28 * 28)

    def encode(self, x, y):
        """μ and log σ² of q(z | x, y), (B, latent) each: a log may be negative, σ² may not."""
        x_and_y = torch.cat([x.flatten(1), F.one_hot(y, self.classes)], dim=1)
        outputs = self.encoder(x_and_y).float()  # back to float32 after bfloat16
        mean, log_var = outputs.chunk(2, dim=1)
        return mean, log_var

    def decode(self, z, y):
        """The logit of ink at each pixel, (B, 1, 28, 28)."""
        z_and_y = torch.cat([z, F.one_hot(y, self.classes)], dim=1)
        return self.decoder(z_and_y).float().view(-1, 1, 28, 28)

    def elbo(self, x, y, beta=1.0):
        """An estimate of the ELBO, nats (B,): one z stands for E_q, the KL is exact."""
        mean, log_var = self.encode(x, y)
        z = reparameterise(mean, log_var)
        reconstruction = log_likelihood(x, self.decode(z, y))
        kl = kl_divergence(mean, log_var).sum(1)
        return reconstruction - beta * kl

    @torch.no_grad()
    def sample(self, y):
        """Draw a style for each class in y (B,); the probability of ink, (B, 1, 28, 28)."""
        z = torch.randn(len(y), self.latent, device=y.device)
        return self.decode(z, y).sigmoid()  # torch.bernoulli(...) of it would draw the pixels


# %% Training
def warmup_cosine(u):
    """Share of the peak learning rate, u = 0 to 1 through training: a rise, then half a cosine."""
    return min(u / 0.05, 0.5 + 0.5 * math.cos(math.pi * u))


def main(argv=None):
    args = parse_flags(argv)
    x, y, x_test, y_test, source = mnist(args.stand_in, args.device, args.classes)
    n = len(x) * 11 // 12  # the last twelfth, 5,000 digits of MNIST, is for validation
    torch.manual_seed(0)  # validation and test images are binarised once, always the same way
    x_valid, y_valid = binarise(x[n:]), y[n:]
    x_test = binarise(x_test)

    torch.manual_seed(args.seed)
    model = VAE(args.hidden, args.latent, args.classes).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)  # fused: faster, nothing else
    run = Run(args, source, n, "−ELBO, nats", model=model, optimizer=optimizer)  # log, checkpoints
    for step in run.steps():
        optimizer.param_groups[0]["lr"] = args.lr * warmup_cosine(step / args.steps)
        batch = torch.randint(n, (args.batch_size,), device=args.device)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
            loss = -model.elbo(binarise(x[batch]), y[batch], args.beta).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss)
        if step % args.save_every == 0 or step == args.steps:
            with torch.no_grad():
                validation = -model.elbo(x_valid, y_valid, args.beta).mean()
            run.save(validation.item())
            samples = model.sample(ten_classes(y).repeat(10))
            run.picture("samples.png", grid(samples, f"samples, step {step:,}"))
    evaluate(run, model, x[:n], x_test, y_test)


# %% That is the whole idea. Below: what the trained model can do, and the frame.
# %% Evaluation
def load_checkpoint(path):
    """What a run wrote into model.pt, a dictionary."""
    try:
        saved = torch.load(Path(path).expanduser(), map_location="cpu", weights_only=True)
        return saved | {"flags": saved["flags"]}  # KeyError if this is somebody else's file
    except Exception as error:  # a damaged file fails in many ways
        raise OSError(f"{path} is missing, damaged, or no checkpoint of this script") from error


def load(path="out/vae/model.pt", device="cpu"):
    """The model of a finished or unfinished run, ready to sample."""
    saved = load_checkpoint(path)
    flags = saved["flags"]
    model = VAE(flags["hidden"], flags["latent"], flags["classes"])
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


# Draw K styles z_k ~ q with weights w_k = p(x | z_k, y) p(z_k) / q(z_k | x, y). Their mean is
# p(x | y) on average, so by Jensen its log is a bound on average. K = 1 is the ELBO; more draws
# make it tighter: importance weighting (Burda, Grosse & Salakhutdinov 2016, arXiv:1509.00519).
@torch.no_grad()
def importance_bound(model, x, y, samples):
    """A bound on log p(x | y) that is tighter than the ELBO, nats (B,)."""
    mean, log_var = model.encode(x, y)
    prior = Normal(0.0, 1.0)
    q = Normal(mean, torch.exp(0.5 * log_var))
    log_weights = []
    for _ in range(samples):
        z = q.sample()
        log_joint = log_likelihood(x, model.decode(z, y)) + prior.log_prob(z).sum(1)
        log_weights.append(log_joint - q.log_prob(z).sum(1))
    return torch.stack(log_weights).logsumexp(0) - math.log(samples)  # the log of their mean


# If the class is not known, p(x) = Σ_y p(y) p(x | y), with p(y) = 1 / classes, all as frequent. And
# Bayes' rule makes the model a classifier, p(y | x) = p(y) p(x | y) / p(x): take the y for which
# p(x | y) is largest.
def bound_by_class(model, x, samples):
    """The importance bound on log p(x | y) for every class y, nats (classes, B)."""
    bounds = []
    for label in range(model.classes):
        y = torch.full((len(x),), label, device=x.device)
        bounds.append(importance_bound(model, x, y, samples))
    return torch.stack(bounds)


@torch.no_grad()
def evaluate(run, model, x_train, x, y):
    """Results and pictures for binarised test images x (N, 1, 28, 28) of classes y (N,)."""
    torch.manual_seed(1)
    elbo = model.elbo(x, y)
    kl = kl_divergence(*model.encode(x, y)).mean(0)
    print("importance samples of every 50th image, all would take long ...", flush=True)
    few = slice(None, None, 50)
    tighter = importance_bound(model, x[few], y[few], samples=500)
    by_class = bound_by_class(model, x[few], samples=100)
    marginal = by_class.logsumexp(0) - math.log(model.classes)
    # And a model without z: each pixel has ink as often as in training, or half the time.
    ink = (x_train / 255).mean(0).clamp(0.001, 0.999).expand_as(x)  # log 0 would be −∞
    results = {
        "half ink, half paper, nats": 28 * 28 * math.log(2),
        "mean pixels, nats": 28 * 28 * F.binary_cross_entropy(ink, x).item(),
        "-ELBO, nats": -elbo.mean().item(),
        "-ELBO, standard error": elbo.std().item() / len(x) ** 0.5,
        "KL in -ELBO": kl.sum().item(),
        "-ELBO, every 50th image": -elbo[few].mean().item(),
        "500 importance samples, every 50th image": -tighter.mean().item(),
    }
    if model.classes > 1:
        right = by_class.argmax(0) == y[few]
        results["marginal over classes, 100 samples, every 50th image"] = -marginal.mean().item()
        results["Bayes' classifier, share of every 50th image"] = right.float().mean().item()
    run.report(results)

    shown = ten_classes(y)
    samples = model.sample(shown.repeat(10))
    run.picture("samples.png", grid(samples, "samples, one class a column"))

    styles = torch.randn(10, model.latent, device=x.device).repeat_interleave(10, dim=0)
    images = model.decode(styles, shown.repeat(10)).sigmoid()
    run.picture("styles.png", grid(images, "one z a row: z is the style, whatever the class"))

    mean, log_var = model.encode(x[:10], y[:10])
    rows = [x[:10]]
    for _ in range(3):
        rows.append(model.decode(reparameterise(mean, log_var), y[:10]).sigmoid())
    title = "top: test digits; below: each rebuilt from three draws of its z"
    run.picture("reconstructions.png", grid(torch.cat(rows), title))

    # A walk: every digit keeps its class and takes on, step by step, its right neighbour's style.
    pages = []
    for u in range(17):
        z = mean.lerp(mean.roll(-1, 0), u / 16)
        rows = torch.cat([x[:10], model.decode(z, y[:10]).sigmoid(), x[:10].roll(-1, 0)])
        pages.append(grid(rows, "middle: the top digit takes on the style of the bottom digit"))
    run.picture("walk.gif", *pages)

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    order = kl.argsort(descending=True).cpu()
    left.bar(range(1, model.latent + 1), kl.cpu()[order])
    left.set(xlabel="dimension of z, largest KL first", ylabel="KL, nats")
    left.set_title(f"{(kl > 0.05).sum()} of {model.latent} dimensions say more than 0.05 nats")
    means = model.encode(x[:2000], y[:2000])[0].cpu()[:, order]
    right.scatter(means[:, 0], means[:, 1 % model.latent], c=y[:2000].cpu(), s=5, cmap="tab10")
    right.set(xlabel="the dimension of the largest KL", ylabel="of the second largest")
    right.set_title("μ of test digits, a colour for each class: no class lies apart")
    run.picture("dimensions.png", figure)


# %% Notes
# Differs from the paper: a second hidden layer, added to the first; SiLU instead of tanh; Adam
# with a rate that rises and falls instead of Adagrad; the class. −ELBO on validation images after
# 20,000 steps: 88.1 nats, with the second layer added 87.8. More units do not help: 800 of them,
# 30,000 steps, 86.25 on test images, class accuracy 96.2 %. --beta is not the paper's (Higgins et
# al. 2017): above 1, fewer dimensions of z say anything.
#
# Things to break:
# 1. In `elbo`, decode z.detach(): the encoder learns from the price alone, and the KL falls to 0.
# 2. In `log_likelihood`, .mean(1) instead of .sum(1): the price outweighs the pixels, the KL is
#    0.
# 3. Set --beta 0: z may say anything at no price, and what the prior draws was never decoded.


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
