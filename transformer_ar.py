# /// script
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""Transformer: a digit as a sequence, and attention (Vaswani et al. 2017, arXiv:1706.03762).

Where should one look to go on with a half-drawn digit? At places that differ from digit to digit. A
convolution looks at the same neighbours everywhere; a transformer learns where to look.

First the sequence. An image of 28 x 28 pixels, each ink (1) or paper (0), is cut into 14 x 14
patches of 2 x 2 pixels. There are 2^4 = 16 different patches; their numbers, 0 to 15, are called
tokens. Read row by row, an image x is a sequence of T = 196 tokens x_1, …, x_T. The product rule
takes its probability apart, given the class y (which digit it is):

    log p(x | y) = Σ_t log p(x_t | x_1, …, x_{t−1}, y)

So for each t the network gives 16 probabilities, one for each token, from y and the tokens before
t. It has T positions, and at each a vector of numbers. At first that says only where in the image t
is, and what the token before it is, x_{t−1} (or y). Then, layer by layer, positions gather from
each other what they need: attention. Three learnt matrices make of a position's vector three of d
numbers: a query q_t, what t looks for; a key k_t, what is at t; a value v_t, what t hands out.
And t is given a weighted mean of the values so far,

    o_t = Σ_{s ≤ t} w_ts v_s        w_ts = exp(q_t · k_s / √d) / Σ_{r ≤ t} exp(q_t · k_r / √d)

where q · k = Σ_i q_i k_i is large if the key is what the query looks for. The weights w_ts of a t
are positive and sum to 1 (a softmax): most of o_t comes from where keys fit best. Later positions
have none, for position t + 1 starts with x_t. The last layer gives the probabilities of x_t.

Training lowers the mean of −log p(x | y) over the images, the negative log-likelihood, NLL: cross-
entropy, summed over the tokens. Its unit is the nat: one nat less, and p(x | y) is e = 2.718 times
as large. Sampling draws x_1 given y, then x_2 given y and x_1, and so on: T passes.

Run `python transformer_ar.py`; pictures appear in out/transformer_ar/. On MNIST and one core of an
AMD EPYC (bfloat16), the other one busy, it takes 787 seconds. Test images, nats: mean pixels (each
by itself) 206.00; NLL of this model 78.20 given the class, 80.30 a mean over classes (every 10th
image), 80.98 with --classes 1. A classifier finds the class asked for in 94.9 % of 5,000 samples.

Good at: what lies far apart, exact likelihoods. Bad at: long sequences (T² weights), speed of
sampling. Read before: gated_pixelcnn.py. Read next: vae.py, vqvae.py.
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

from data import mnist


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=8000, help="optimiser steps")
    parser.add_argument("--batch-size", type=positive_int, default=16, help="images a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate of AdamW")
    parser.add_argument("--width", type=positive_int, default=128, help="numbers at a position")
    parser.add_argument("--layers", type=positive_int, default=4, help="attention, then an MLP")
    parser.add_argument("--heads", type=positive_int, default=2, help="attentions side by side")
    parser.add_argument("--patch", type=int, default=2, choices=[1, 2], help="side of a patch")
    parser.add_argument("--classes", type=positive_int, default=10, help="10: the digit is given")
    add_common_flags(parser, out="out/transformer_ar", save_every=800)  # --device ...: at the end
    return parse(parser, argv)


# %% Data
def binarise(images):
    """Draw each pixel: ink (1) with probability grey level / 255, else paper (0)."""
    return torch.bernoulli(images / 255)


# A token is a binary number: its four bits are the pixels of the patch, a the lowest.
#     a b                                       0 1
#     c d     token = a + 2 b + 4 c + 8 d       0 1     is token 0 + 2 + 0 + 8 = 10
def to_tokens(x, patch):
    """Binary images (B, 1, 28, 28) as tokens (B, T), row by row."""
    pixels = F.unfold(x, patch, stride=patch).long()  # (B, patch², T)
    places = 2 ** torch.arange(patch**2, device=x.device)  # 1, 2, 4, 8
    return (pixels * places[:, None]).sum(1)


def to_images(tokens, patch):
    """The way back: tokens (B, T) as images (B, 1, 28, 28)."""
    places = 2 ** torch.arange(patch**2, device=tokens.device)
    pixels = tokens[:, None] // places[:, None] % 2  # (B, patch², T)
    return F.fold(pixels.float(), 28, patch, stride=patch)


# %% Model
# Four positions and d = 1, so that a query times a key is an ordinary product. Row t looks, column
# s is looked at. What comes later is masked: its score becomes −∞ and its weight 0 (both a dot).
#               scores q_t k_s        masked             weights (softmax of each row)
#        k =    0   1   2   1                        v = 10     20     30     40     mean of v
#     q_1 = 1   0   1   2   1     0   .   .   .          1.00    .      .      .       10.0
#     q_2 = 1   0   1   2   1     0   1   .   .          0.27   0.73    .      .       17.3
#     q_3 = 0   0   0   0   0     0   0   0   .          0.33   0.33   0.33    .       20.0
#     q_4 = 2   0   2   4   2     0   2   4   2          0.01   0.10   0.78   0.10     29.7
# Query 3 looks for nothing and gets the plain mean. Query 4 looks for large keys and finds key 3.
# Why √d: if numbers in q and k are independent, of mean 0 and variance 1, q · k has variance d.
def attention(q, k, v):
    """Weighted means of the values v (B, heads, T, d); and the weights, (B, heads, T, T)."""
    T, d = q.shape[2:]
    scores = (q / d**0.5) @ k.transpose(2, 3)  # (B, heads, T, T): row t, column s
    mask = scores.new_full((T, T), -math.inf).triu(1)  # −∞ above the diagonal, 0 elsewhere
    weights = (scores + mask).softmax(3)
    return weights @ v, weights


# In a layer, attention carries numbers from position to position, then an MLP computes at each by
# itself. Both add to what is there (h + …); before each, LayerNorm brings the numbers at a position
# to mean 0 and variance 1. Heads are attentions side by side, each with its part of the numbers.
class Block(nn.Module):
    """A layer: attention between positions, then an MLP at each of them."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 * width))
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def queries_keys_values(self, h):
        """q, k and v, (B, heads, T, d) each, of positions h (B, T, width)."""
        qkv = self.qkv(h).unflatten(2, (3, self.heads, -1))  # (B, T, 3, heads, d)
        return qkv.permute(2, 0, 3, 1, 4)

    def add(self, h, means):
        """The positions h (B, T, width) after the layer, from the means of its attention."""
        h = h + self.out(means.transpose(1, 2).flatten(2))  # the heads side by side
        return h + self.mlp(h)

    def forward(self, h):
        means, _ = attention(*self.queries_keys_values(h))
        return self.add(h, means)


# Position 1 starts with y and predicts x_1, position 2 starts with x_1 and predicts x_2, and so on,
# so it may look at itself. A mean has no order (shuffle what lies before t: o_t stays the same), so
# each position also starts with a vector of the row and one of the column it predicts.
class Transformer(nn.Module):
    """p(x | y) of binary images x (B, 1, 28, 28) of classes y (B,), token by token."""

    def __init__(self, width=128, layers=4, heads=2, patch=2, classes=10):
        super().__init__()
        if width % heads != 0:
            raise OSError(f"--width {width} is not a multiple of --heads {heads}")
        self.patch = patch
        self.classes = classes
        self.T = (28 // patch) ** 2
        kinds = 2 ** (patch * patch)  # of tokens: 16, or 2
        self.token = nn.Embedding(kinds, width)  # a learnt vector for each
        self.label = nn.Embedding(classes, width)
        self.row = nn.Embedding(28 // patch, width)
        self.column = nn.Embedding(28 // patch, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, kinds))

    def start(self, tokens, y):
        """What positions start with, (B, n + 1, width): the class, then n tokens (B, n)."""
        h = torch.cat([self.label(y)[:, None], self.token(tokens)], dim=1)
        places = self.row.weight[:, None] + self.column.weight  # (rows, columns, width)
        return h + places.flatten(0, 1)[: h.shape[1]]

    def forward(self, tokens, y):
        """From n tokens (B, n) the logits of the first n + 1, (B, n + 1, kinds)."""
        h = self.start(tokens, y)
        for block in self.blocks:
            h = block(h)
        return self.head(h).float()  # back to float32 after bfloat16

    def log_prob(self, x, y):
        """log p(x | y), exact, nats (B,)."""
        tokens = to_tokens(x, self.patch)
        logits = self(tokens[:, :-1], y)  # no position starts with the last token
        return -F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none").sum(1)

    @torch.no_grad()
    def sample(self, y):
        """Draw an image for each class in y (B,), token after token, (B, 1, 28, 28)."""
        tokens = torch.zeros(len(y), 0, dtype=torch.long, device=y.device)
        for _ in range(self.T):
            logits = self(tokens, y)[:, -1]  # of the token that comes next
            drawn = torch.multinomial(logits.softmax(1), 1)
            tokens = torch.cat([tokens, drawn], dim=1)
        return to_images(tokens, self.patch)


# %% Training
def warmup_cosine(u):
    """Share of the peak learning rate, u = 0 to 1 through training: a rise, then half a cosine."""
    return min(u / 0.05, 0.5 + 0.5 * math.cos(math.pi * u))


def main(argv=None):
    args = parse_flags(argv)
    x, y, x_test, y_test, source = mnist(args.stand_in, args.device, args.classes)
    n = len(x) * 11 // 12  # the last twelfth, 5,000 digits of MNIST, is for validation
    torch.manual_seed(0)  # validation and test images are binarised once, always the same way
    x_valid, y_valid = binarise(x[n::5]), y[n::5]  # every fifth: all would take long
    x_test = binarise(x_test)

    torch.manual_seed(args.seed)
    model = Transformer(args.width, args.layers, args.heads, args.patch, args.classes)
    model.to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), fused=True)  # see Notes
    run = Run(args, source, n, "NLL, nats", model=model, optimizer=optimizer)  # log, checkpoints
    for step in run.steps():
        optimizer.param_groups[0]["lr"] = args.lr * warmup_cosine(step / args.steps)
        batch = torch.randint(n, (args.batch_size,), device=args.device)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
            loss = -model.log_prob(binarise(x[batch]), y[batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss)
        if step % args.save_every == 0 or step == args.steps:
            validation = -log_prob_in_parts(model, x_valid, y_valid).mean()
            run.save(validation.item())
            samples = cached_sample(model, ten_classes(y).repeat(2))  # as model.sample, but faster
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


def load(path="out/transformer_ar/model.pt", device="cpu"):
    """The model of a finished or unfinished run, ready to sample."""
    saved = load_checkpoint(path)
    sizes = [saved["flags"][name] for name in ["width", "layers", "heads", "patch", "classes"]]
    model = Transformer(*sizes)
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


@torch.no_grad()
def log_prob_in_parts(model, x, y):
    """log p(x | y), nats (B,), 25 images at a time: attention takes much memory."""
    parts = zip(x.split(25), y.split(25))
    return torch.cat([model.log_prob(*part) for part in parts])


# No position sees what comes later, so once computed it never changes. Keep keys and values of each
# layer, the cache, and only the new one is needed: 196 positions, not 1 + … + 196 = 19,306.
@torch.no_grad()
def cached_sample(model, y):
    """What model.sample(y) draws from the same random numbers, (B, 1, 28, 28)."""
    tokens = torch.zeros(len(y), 0, dtype=torch.long, device=y.device)
    cache = [[] for _ in model.blocks]  # for each layer, of the positions so far
    for t in range(model.T):
        h = model.start(tokens, y)[:, t:]  # the new position alone, (B, 1, width)
        for block, earlier in zip(model.blocks, cache):
            q, k, v = block.queries_keys_values(h)
            earlier.append(torch.stack([k, v]))
            keys, values = torch.cat(earlier, dim=3)  # (B, heads, t + 1, d) each
            means, _ = attention(q, keys, values)
            h = block.add(h, means)
        logits = model.head(h)[:, 0]
        drawn = torch.multinomial(logits.softmax(1), 1)
        tokens = torch.cat([tokens, drawn], dim=1)
    return to_images(tokens, model.patch)


def attention_picture(model, x, y, t):
    """A figure of where position t of an image x (1, 1, 28, 28) looks, in each layer and head."""
    h = model.start(to_tokens(x, model.patch)[:, : t - 1], y)  # positions 1 to t
    side = 28 // model.patch
    figure = Figure(figsize=(9, 5), layout="constrained")
    panels = figure.subplots(model.blocks[0].heads, len(model.blocks), squeeze=False)
    for block, column in zip(model.blocks, panels.T):
        _, weights = attention(*block.queries_keys_values(h))
        h = block(h)
        for axes, weight in zip(column, weights[0, :, -1].cpu()):  # of position t, (t,)
            on_tokens = F.pad(weight[1:], (0, model.T + 1 - t)).view(side, side)
            axes.imshow(on_tokens.numpy() ** 0.5, "Oranges", extent=(0, side, side, 0))
            axes.imshow(x[0, 0].cpu().numpy(), "gray_r", alpha=0.4, extent=(0, side, side, 0))
            axes.plot((t - 1) % side + 0.5, (t - 1) // side + 0.5, "ks", fillstyle="none")
            axes.set(xticks=[], yticks=[], xlabel=f"weight of the class: {weight[0]:.2f}")
    figure.suptitle("where each head looks (orange) to predict the square; a column is a layer")
    return figure


@torch.no_grad()
def evaluate(run, model, x_train, x, y):
    """Results and pictures for binarised test images x (N, 1, 28, 28) of classes y (N,)."""
    torch.manual_seed(1)
    print("test images, and every 10th of them with every class ...", flush=True)
    nll = -log_prob_in_parts(model, x, y)
    by_class = []  # for the marginal, p(x) = Σ_y p(y) p(x | y) with p(y) = 1 / classes
    for label in range(model.classes):
        by_class.append(log_prob_in_parts(model, x[::10], torch.full_like(y[::10], label)))
    marginal = torch.stack(by_class).logsumexp(0) - math.log(model.classes)
    ink = (x_train / 255).mean(0).clamp(0.001, 0.999).expand_as(x)  # as often as in training
    results = {
        "half ink, half paper, nats": 28 * 28 * math.log(2),
        "mean pixels, nats": 28 * 28 * F.binary_cross_entropy(ink, x).item(),
        "NLL, nats": nll.mean().item(),
        "NLL, standard error": nll.std().item() / len(x) ** 0.5,
    }
    if model.classes > 1:
        results["NLL, every 10th image, nats"] = nll[::10].mean().item()
        results["NLL, marginal over classes, every 10th image, nats"] = -marginal.mean().item()
    run.report(results)

    samples = cached_sample(model, ten_classes(y).repeat(10))
    run.picture("samples.png", grid(samples, "samples, one class a column"))
    run.picture("attention.png", attention_picture(model, x[:1], y[:1], model.T // 2 + 8))
    pages = [attention_picture(model, x[:1], y[:1], t) for t in range(1, model.T, model.T // 21)]
    run.picture("attention.gif", *pages)


# %% Notes
# Differs from the papers: patches, not pixels, as tokens; LayerNorm before each part, as in GPT-2;
# no dropout, since an image is seen but twice; AdamW with β = 0.9, 0.95 (as GPT-3): after 1,000
# steps 85.0 nats on validation images, with PyTorch's 0.9, 0.999 it is 86.9. With PyTorch's own
# F.scaled_dot_product_attention, which shows no weights, a step takes 122 ms, 76 ms as it is.
# Things to break:
# 1. In `attention`, put triu(2) instead of triu(1): a position sees the next one, which starts with
#    the very token that it predicts. In training the loss soon falls to less than half.
# 2. In `cached_sample`, put keys, values = earlier[-1]: samples forget all but the token before.
# 3. In `start`, return h alone: no position is told where it is, and the loss is higher.


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
