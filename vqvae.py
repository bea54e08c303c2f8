# /// script
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""VQ-VAE: the vector-quantised autoencoder (van den Oord et al. 2017, arXiv:1711.00937).

Can a drawing be spelled, as a word is? vae.py describes the style of a digit by 20 real numbers.
Here an image is spelled by 16 codes, one for each place of a grid of 4 x 4, and a code is one of K
letters, 0 to K − 1. What is written in letters can be learnt by any model of sequences. As a
program, for an image x of the digit y, its class:

    k ~ p(k | y)        write 16 codes, one after the other: the prior, here a transformer
    x ~ p(x | k, y)     draw for each pixel ink (1) or paper (0): the decoder

Given k the pixels are independent, so log p(x | k, y) = Σ_i log p(x_i | k, y) over 784 pixels.

What is a letter to a network? The codebook is a table of K vectors e_0, …, e_{K−1} of D numbers
each, its entries. A code is the number of an entry, and the decoder gets the entries. And who
spells x? The encoder, a network, puts out a vector z at each place; the code of the place is the
number of the nearest entry. All 16 together are k(x).

Training should make p(x | y) of the training images as large as possible. There are K^16 spellings:

    log p(x | y) = log Σ_k p(x | k, y) p(k | y)              sum over all of them
                 ≥ log [p(x | k(x), y) p(k(x) | y)]          keep one term: none is negative
                 = log p(x | k(x), y) + log p(k(x) | y)      the log of a product

The first term is high if the decoder can rebuild x from its codes. The second is a price, what it
costs to write them: −log p(k(x) | y). This is vae.py's ELBO with a q that is certain: where q is 1,
KL(q ‖ p) = E_q[log q − log p] = log 1 − log p(k(x) | y), the same price.

How much is lost at the ≥? By Bayes' rule p(x | k, y) p(k | y) = p(x | y) p(k | x, y). So the bound
is log p(x | y) + log p(k(x) | x, y): tight if hardly any other spelling can have led to this x.

The loss has four terms. sg ("stop gradient") says: a constant, no gradient passes.

    −log p(x | k(x), y)     the decoder learns to rebuild; the encoder, see `straight_through`
    ‖sg[z] − e‖²            the codebook loss: the nearest entry e moves towards z
    β ‖z − sg[e]‖²          the commitment loss: z stays near the entry it has chosen
    −log p(k(x) | y)        the prior learns; codes are whole numbers, no gradient goes further

The first three are eq. 3 of the paper. The first and the last are the bound, what is reported.

Logarithms are natural and their unit is the nat: add one nat to log p, and p is e times as large.

Run `python vqvae.py`; pictures appear in out/vqvae/. On MNIST and one core of an AMD EPYC
(bfloat16), the other one busy, it takes 730 seconds. Test images, nats: each pixel by itself, as
often ink as in training, 205.94; the bound of this model 90.51, of it 27.35 for the codes. The
perplexity of the codebook, exp of the entropy of its entries' shares, is 15.1: as of 15.1 entries
used equally often. A separate classifier finds the class asked for in 98.5 % of 5,000 samples.

Good at: turning images or sound into something like text, for any model of sequences. Bad at:
likelihood; one spelling stands for all. Read before: vae.py, transformer_ar.py. Read next: gan.py.
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
from torch.nn.attention import SDPBackend, sdpa_kernel

from data import mnist


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=27_000, help="optimiser steps")
    parser.add_argument("--batch-size", type=positive_int, default=50, help="images a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate of Adam")
    parser.add_argument("--channels", type=positive_int, default=32, help="of the 14 x 14 layers")
    parser.add_argument("--entries", type=positive_int, default=16, help="K, size of the codebook")
    parser.add_argument("--code-dim", type=positive_int, default=16, help="D, numbers in an entry")
    parser.add_argument("--commitment", type=float, default=0.25, help="beta, its weight")
    parser.add_argument("--width", type=positive_int, default=64, help="of the prior; 4 divides it")
    classes = "10: the digit is given to decoder and prior; 1: it is not"
    parser.add_argument("--classes", type=positive_int, default=10, help=classes)
    add_common_flags(parser, out="out/vqvae", save_every=3000)  # --device, --resume ...: at the end
    return parse(parser, argv)


# %% Data
def binarise(images):
    """Draw each pixel: ink (1) with probability grey level / 255, else paper (0).

    The model knows ink and paper only. Training images are drawn anew at each step.
    """
    return torch.bernoulli(images / 255)


# %% Model
def log_likelihood(x, logits):
    """log p(x | k, y), nats (B,): Σ x log p + (1 − x) log(1 − p), with p = sigmoid(logit)."""
    by_pixel = -F.binary_cross_entropy_with_logits(logits, x, reduction="none")
    return by_pixel.flatten(1).sum(1)


# Which entry is nearest? With three entries of two numbers, and z = (1.2, 0.4):
#
#     e_0 = (0, 0)     ‖z − e_0‖² = 1.44 + 0.16 = 1.6
#     e_1 = (2, 0)     ‖z − e_1‖² = 0.64 + 0.16 = 0.8     the nearest: the code is 1
#     e_2 = (0, 2)     ‖z − e_2‖² = 1.44 + 2.56 = 4.0
def nearest(z, entries):
    """The codes (B, 16) of vectors z (B, 16, D): numbers of the nearest of the entries (K, D)."""
    return torch.cdist(z, entries).argmin(2)


# The decoder gets e_1 = (2, 0). How can the encoder learn from it? Move z a little, and the code is
# still 1: the derivative of e by z is 0, and at a border e jumps. The paper's way out is to pretend
# that e is z. The value is e, for z + (e − z) = e, but (e − z) counts as a constant, so the
# derivative by z is 1. If the loss would fall by moving e_1 along (−1, 3), z moves along (−1, 3).
# This is the straight-through estimator: not the true gradient, but a useful one while z is near e.
#
# Two terms keep them near. The codebook loss ‖z − e‖² has by e_1 the gradient 2 (e − z) =
# (1.6, −0.8): a step against it moves e_1 towards z. The commitment loss moves z towards e_1, and
# β = 0.25 makes that weaker. Both are summed over the 16 places, as the nats are over the pixels.
def straight_through(z, e):
    """e, but with the gradient of z."""
    return z + (e - z).detach()


# The prior is a transformer (transformer_ar.py). To predict a code it may look at the class and the
# codes before it. The input is the output moved on by one, and the mask cuts what comes later:
#
#     at the places          0     1     2     …   15            mask    0  −∞  −∞  −∞
#     it reads             class  k_0   k_1    …  k_14                   0   0  −∞  −∞
#     and predicts          k_0   k_1   k_2    …  k_15                   0   0   0  −∞
#                                                                        0   0   0   0
#
# A row is the place that looks, a column the place looked at, here for 4; added to the scores of
# attention before the softmax, −∞ leaves a weight of exp(−∞) = 0.
class Prior(nn.Module):
    """p(k | y), by the product rule: Π_t p(k_t | k_0, …, k_{t−1}, y)."""

    def __init__(self, entries, width, classes, heads=4, layers=2):
        super().__init__()
        self.label = nn.Embedding(classes, width)
        self.code = nn.Embedding(entries, width)
        self.place = nn.Embedding(16, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(width)
        self.blocks = nn.TransformerEncoder(layer, layers, norm, enable_nested_tensor=False)
        self.output = nn.Linear(width, entries)
        mask = nn.Transformer.generate_square_subsequent_mask(16)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, k, y):
        """Logits (B, 16, K) of each code of k (B, 16), from the class and the codes before it."""
        read = torch.cat([self.label(y)[:, None], self.code(k[:, :-1])], dim=1)
        h = self.blocks(read + self.place.weight, self.mask, is_causal=True)
        return self.output(h).float()  # back to float32 after bfloat16

    def log_prob(self, k, y):
        """log p(k | y), nats (B,)."""
        log_p = -F.cross_entropy(self(k, y).transpose(1, 2), k, reduction="none")
        return log_p.sum(1)  # over the places: the product rule


class VQVAE(nn.Module):
    """Encoder, codebook, decoder and prior, for images x (B, 1, 28, 28) of classes y (B,)."""

    def __init__(self, channels=32, entries=16, code_dim=16, width=64, classes=10):
        super().__init__()
        self.classes = classes
        self.encoder = nn.Sequential(
            nn.Conv2d(1, channels, 4, stride=2, padding=1),  # 28 x 28 to 14 x 14
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1),  # to 7 x 7
            nn.ReLU(),
            nn.Conv2d(2 * channels, 4 * channels, 4),  # to 4 x 4; a place sees 22 x 22 pixels
            nn.ReLU(),
            nn.Conv2d(4 * channels, code_dim, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(code_dim + classes, 4 * channels, 3, padding=1),  # 4 x 4
            nn.ReLU(),
            nn.ConvTranspose2d(4 * channels, 2 * channels, 4),  # to 7 x 7
            nn.ReLU(),
            nn.ConvTranspose2d(2 * channels, channels, 4, stride=2, padding=1),  # to 14 x 14
            nn.ReLU(),
            nn.ConvTranspose2d(channels, 1, 4, stride=2, padding=1),  # to 28 x 28
        )
        self.entries = nn.Parameter(torch.randn(entries, code_dim))
        self.register_buffer("idle", torch.full((entries,), 100))  # steps since it was last used
        self.prior = Prior(entries, width, classes)

    def encode(self, x):
        """The vectors z (B, 16, D), before the nearest entry is taken."""
        z = self.encoder(x).float()  # (B, D, 4, 4)
        return z.flatten(2).transpose(1, 2)

    def decode(self, e, y):
        """The logit of ink at each pixel, (B, 1, 28, 28), for entries e (B, 16, D)."""
        label = F.one_hot(y, self.classes)[:, None].expand(-1, 16, -1)  # the same at each place
        e_and_y = torch.cat([e, label], dim=2).transpose(1, 2)
        return self.decoder(e_and_y.unflatten(2, (4, 4))).float()

    def elbo(self, x, y):
        """The bound on log p(x | y), nats (B,)."""
        k = nearest(self.encode(x), self.entries)
        reconstruction = log_likelihood(x, self.decode(self.entries[k], y))
        return reconstruction + self.prior.log_prob(k, y)

    @torch.no_grad()
    def sample(self, y):
        """Write codes for each class in y (B,), decode; the probability of ink, (B, 1, 28, 28)."""
        k = torch.zeros(len(y), 16, dtype=torch.long, device=y.device)
        k = self.write(k, y, range(16))
        return self.decode(self.entries[k], y).sigmoid()

    def write(self, k, y, places):
        """Draw the codes at these places of k (B, 16), in place and in turn."""
        for place in places:
            p = self.prior(k, y)[:, place].softmax(1)  # it does not see what comes later
            k[:, place] = torch.multinomial(p, 1)[:, 0]
        return k

    # An entry that is nearest to nothing gets no gradient and would stay unused for ever. So what
    # was not used for 100 steps is restarted at a random one of the encoder's vectors; in the first
    # step that is every entry not used in it, so that the codebook begins where the vectors are.
    @torch.no_grad()
    def restart_unused(self, z, k):
        self.idle += 1
        self.idle[k.flatten()] = 0
        unused = self.idle >= 100
        vectors = z.flatten(0, 1)
        drawn = vectors[torch.randint(len(vectors), (len(self.entries),), device=z.device)]
        self.entries.copy_(torch.where(unused[:, None], drawn, self.entries))
        self.idle[unused] = 0


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
    model = VQVAE(args.channels, args.entries, args.code_dim, args.width, args.classes)
    model.to(args.device, memory_format=torch.channels_last)  # faster, nothing else
    optimizer = torch.optim.Adam(model.parameters(), fused=True)  # fused: faster, nothing else
    run = Run(args, source, n, "bound, nats", model=model, optimizer=optimizer)  # log, checkpoints
    for step in run.steps():
        optimizer.param_groups[0]["lr"] = args.lr * warmup_cosine(step / args.steps)
        batch = torch.randint(n, (args.batch_size,), device=args.device)
        plain = sdpa_kernel(SDPBackend.MATH)  # attention step by step: faster for 16 places
        with plain, torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
            # The encoder sees one draw of the pixels and the decoder rebuilds another, so that
            # codes say what the digit is like and not how the coins of this draw fell.
            z = model.encode(binarise(x[batch]))
            k = nearest(z, model.entries)
            e = model.entries[k]
            logits = model.decode(straight_through(z, e), y[batch])
            reconstruction = -log_likelihood(binarise(x[batch]), logits)
            price = -model.prior.log_prob(k, y[batch])
            codebook = (z.detach() - e).square().sum((1, 2))
            commitment = (z - e.detach()).square().sum((1, 2))
            bound = (reconstruction + price).mean()
            loss = bound + (codebook + args.commitment * commitment).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.restart_unused(z.detach(), k)
        run.log(bound)
        if step % args.save_every == 0 or step == args.steps:
            with torch.no_grad():
                validation = -model.elbo(x_valid, y_valid).mean()
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


def load(path="out/vqvae/model.pt", device="cpu"):
    """The model of a finished or unfinished run, ready to sample."""
    saved = load_checkpoint(path)
    sizes = ("channels", "entries", "code_dim", "width", "classes")
    model = VQVAE(**{name: saved["flags"][name] for name in sizes})
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


# If the class is not known, p(x) = Σ_y p(y) p(x | y), with p(y) = 1 / classes, all as frequent. If
# a bound stands for each p(x | y), the sum is a bound, too. And Bayes' rule makes the model a
# classifier: take the y for which the bound on p(x | y) is largest.
@torch.no_grad()
def bound_by_class(model, x):
    """The bound on log p(x | y) for every class y, nats (classes, B)."""
    bounds = []
    for label in range(model.classes):
        y = torch.full((len(x),), label, device=x.device)
        bounds.append(model.elbo(x, y))
    return torch.stack(bounds)


@torch.no_grad()
def evaluate(run, model, x_train, x, y):
    """Results and pictures for binarised test images x (N, 1, 28, 28) of classes y (N,)."""
    torch.manual_seed(1)
    k = nearest(model.encode(x), model.entries)
    reconstruction = log_likelihood(x, model.decode(model.entries[k], y))
    price = -model.prior.log_prob(k, y)
    bound = price - reconstruction
    shares = k.flatten().bincount(minlength=len(model.entries)) / k.numel()
    # And a model without codes: each pixel has ink as often as in training, or half the time.
    ink = (x_train / 255).mean(0).clamp(0.001, 0.999).expand_as(x)  # log 0 would be −∞
    results = {
        "half ink, half paper, nats": 28 * 28 * math.log(2),
        "mean pixels, nats": 28 * 28 * F.binary_cross_entropy(ink, x).item(),
        "bound, nats": bound.mean().item(),
        "bound, standard error": bound.std().item() / len(x) ** 0.5,
        "codes' share of the bound, nats": price.mean().item(),
        "perplexity of the codebook": torch.special.entr(shares).sum().exp().item(),
    }
    if model.classes > 1:
        by_class = bound_by_class(model, x[::10])
        marginal = by_class.logsumexp(0) - math.log(model.classes)
        right = by_class.argmax(0) == y[::10]
        results["bound, every 10th image, nats"] = bound[::10].mean().item()
        results["bound, marginal over classes, every 10th image, nats"] = -marginal.mean().item()
        results["Bayes' classifier, share of every 10th image"] = right.float().mean().item()
    run.report(results)

    samples = model.sample(ten_classes(y).repeat(10))
    run.picture("samples.png", grid(samples, "samples, one class a column"))

    rebuilt = model.decode(model.entries[k[:20]], y[:20]).sigmoid()
    rows = torch.cat([x[:10], rebuilt[:10], x[10:20], rebuilt[10:20]])
    run.picture("reconstructions.png", grid(rows, "test digits, and below each what its codes say"))

    rows = []
    for place in (5, 6, 9, 10):  # in the middle of the grid
        changed = k[:1].repeat(10, 1)
        changed[:, place] = torch.arange(10) % len(model.entries)
        rows.append(model.decode(model.entries[changed], y[:1].repeat(10)).sigmoid())
    title = "one code changed: a row is a place, a column an entry"
    run.picture("one_code.png", grid(torch.cat(rows), title))

    pages = []
    for known in range(17):
        written = model.write(k[:20].clone(), y[:20], range(known, 16))
        images = model.decode(model.entries[written], y[:20]).sigmoid()
        pages.append(
            grid(images, f"{known} codes of a test digit, {16 - known} written by the prior")
        )
    run.picture("writing.gif", *pages)


# %% Notes
# Differs from the paper: the data; a smaller grid; losses summed over places, there averaged;
# restarts (see 2); a transformer for the prior instead of a PixelCNN; and what follows. Drafts of
# 2,000 steps of 100 images, with one of the paper's residual blocks in both networks, gave 99.8
# nats on validation images, with K = 8 100.6, with K = 32 110.7; with the class for the prior alone
# 102.2. If the decoder rebuilds the very draw that the encoder saw, 99.7 (and training no longer
# lies above validation), but the codes cost 31.6 instead of 29.4, and the class is found in 90 % of
# samples instead of 95. Without the blocks, 2,600 steps in the same time, 98.6; 4,000 steps of 50
# images, 95.5. A prior trained anew on the settled codes, as long, gains 0.1 nats: 27.25 for 27.35.
#
# Things to break:
# 1. In `main`, decode e instead of straight_through(z, e): pixels no longer teach the encoder.
# 2. In `main`, leave out restart_unused: most entries stay unused, the perplexity falls.
# 3. In `Prior`, leave out self.mask and is_causal: the price falls, samples are no digits.
#
# References: straight-through: Bengio et al. 2013; restarts: Dhariwal et al. 2020 (Jukebox).


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
