# /// script
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""Transformer: GPT's model for images (Vaswani et al. 2017, arXiv:1706.03762; Chen et al. 2020, ImageGPT).

A digit x of class y is a sequence of T tokens, each one of K symbols. Its probability is a product:

    log p(x | y) = Σ_t log p(x_t | x_1, …, x_{t−1}, y)
    attention(q, k, v)_t = Σ_{s ≤ t} softmax_s(q_t · k_s / √d) v_s        d numbers in a query

Position t computes a query q_t, a key k_t and a value v_t, compares its query with the keys up to t and takes
the weighted mean of their values (attention.png). Its input is the token before, x_{t−1}, so that it may
attend to itself; position 1 is given the class, for a tenth of the digits the null label. Every 2 x 2 patch
of binary pixels is a token, K = 16, T = 196; with --patch 1 every pixel is one, as in ImageGPT.
Training: minimise the negative log-likelihood (NLL) −log p(x | y), cross-entropy summed over the tokens.
Sampling: token after token, with the keys and values of earlier tokens cached. p(x): exact. Latent: none.
Good at: anything, with enough data and time. Bad at: little data, long sequences.

`python transformer_ar.py` on MNIST, two cores of an Intel Xeon (bfloat16): 534 s of training, 609 s in all.

    step 498/8,000  NLL, nats 100.7232  245 digits/s  8 min 10 s left
    step 4,016/8,000  NLL, nats 84.1593  242 digits/s  4 min 23 s left
    step 8,000/8,000  NLL, nats 81.2823  239 digits/s  0 min 00 s left

Test set, exact: NLL 79.77 nats given the class, 84.61 under the null label; without classes (--label-dropout
1) 82.39. A classifier finds the class asked for in 88.6 % of samples, in 98.3 % at guidance 2 (see `sample`).
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
NAME, LOSS, ITEMS = "transformer_ar", "NLL, nats", "digits"
NULL = 10  # the null label: no class given
SETTINGS = {
    "steps": (8000, "optimiser steps", 1, 10**9),
    "batch_size": (16, "digits per step", 1, 10**6),
    "lr": (2e-3, "peak learning rate of AdamW", 0, 10),
    "width": (128, "D, features of a position, a multiple of the heads", 1, 10**5),
    "layers": (4, "layers, each of attention and an MLP", 1, 1000),
    "heads": (2, "attention heads in a layer", 1, 1000),
    "patch": (2, "pixels along a token: 2 (16 symbols) or 1 (2 symbols)", 1, 2),
    "label_dropout": (0.1, "share of digits under the null label; 1 gives an unconditional model", 0, 1),
}

# %% Model: every position attends to all positions before it
def attention(q, k, v):
    """softmax(q kᵀ / √d) v of q, k, v (B, heads, T, d), causal; and the weights (B, heads, T, T)."""
    scores = q / q.shape[3] ** 0.5 @ k.transpose(2, 3)  # (B, heads, T, T): query t times key s
    future = torch.full_like(scores[0, 0], -math.inf).triu(1)  # (T, T): no position attends to a later one
    weights = (scores + future).softmax(3)
    return weights @ v, weights

class Block(nn.Module):
    """Attention, then an MLP, each added to its input (residual) and normalised before (pre-norm)."""
    def __init__(self, D, heads):
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.mlp = nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D))

    def project(self, x):
        """Queries, keys and values, (B, heads, T, d) each, of positions x (B, T, D)."""
        return self.qkv(self.norm1(x)).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)

    def forward(self, x, cache=None, t=None):
        """x (B, T, D); in sampling position t alone, (B, 1, D), and the cache (2, B, heads, T, d)."""
        q, k, v = self.project(x)
        if cache is not None:
            cache[0, :, :, t], cache[1, :, :, t] = k[:, :, 0], v[:, :, 0]
            h = F.scaled_dot_product_attention(q, *cache[:, :, :, :t + 1])
        else:
            h, _ = attention(q, k, v)
        x = x + self.out(h.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))

class Transformer(nn.Module):
    """p(x | y), the product over tokens t of p(x_t | tokens before t, y): all factors from one pass."""
    def __init__(self, width=128, layers=4, heads=2, patch=2, conditional=True):
        super().__init__()
        D, self.patch, self.conditional = width, patch, conditional
        self.K, self.T = 2 ** patch**2, (28 // patch) ** 2
        self.symbol, self.label = nn.Embedding(self.K, D), nn.Embedding(11, D)
        self.row, self.column = (nn.Embedding(28 // patch, D) for _ in range(2))  # a position is their sum
        self.blocks = nn.ModuleList(Block(D, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, self.K)
        for table in (self.symbol, self.label, self.row, self.column):
            nn.init.normal_(table.weight, std=0.1)
        for block in self.blocks:  # at first a layer adds little
            nn.init.normal_(block.out.weight, std=0.2 / (D * layers) ** 0.5)
            nn.init.normal_(block.mlp[2].weight, std=0.1 / (D * layers) ** 0.5)
        nn.init.zeros_(self.head.weight)  # an untrained model gives each symbol 1/K: 784 ln 2 nats
        nn.init.zeros_(self.head.bias)

    def embed(self, tokens, y=None):
        """The input (B, T, D): position 1 is given the class, position t the token before it, x_{t−1}."""
        first = self.label(self.labels(NULL if y is None else y, len(tokens)))
        return torch.cat([first[:, None], self.symbol(tokens[:, :-1])], 1) + self.positions()

    def positions(self):
        return (self.row.weight[:, None] + self.column.weight).flatten(0, 1)

    def forward(self, tokens, y=None):
        """Logits (B, T, K) of tokens (B, T); each depends only on the tokens before its own."""
        h = self.embed(tokens, y)
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h)).float()

    def log_prob(self, x, y=None):
        """log p(x | y), exact, of binary images x (B, 1, 28, 28); y: None, a class or (B,): nats (B,)."""
        tokens = to_tokens(x, self.patch)
        return -F.cross_entropy(self(tokens, y).transpose(1, 2), tokens, reduction="none").sum(1)

    def labels(self, y, n):
        """y as (n,) classes; None draws them from p(y), uniform. An unconditional model knows NULL alone."""
        y = torch.randint(10, (n,)) if y is None else torch.as_tensor(y)
        return (y if self.conditional else torch.tensor(NULL)).to(self.head.weight.device).expand(n)

    @torch.no_grad()
    def sample(self, n, y=None, guidance=1.0):
        """n binary images (n, 1, 28, 28), token by token; y: None (drawn), a class or (n,) classes. Guidance
        over 1 exaggerates the class, l(NULL) + w (l(y) − l(NULL)) for logits l (Ho & Salimans 2022)."""
        y = self.labels(y, n)
        y = y if guidance == 1 else torch.cat([y, torch.full_like(y, NULL)])
        tokens, h = torch.zeros(n, self.T, dtype=torch.long, device=y.device), self.label(y)
        heads = self.blocks[0].heads
        cache = h.new_zeros(len(self.blocks), 2, len(y), heads, self.T, h.shape[1] // heads)
        for t, position in enumerate(self.positions()):
            h = (h + position)[:, None]
            for block, past in zip(self.blocks, cache):
                h = block(h, past, t)
            logits = self.head(self.norm(h))[:, 0]
            if guidance != 1:
                conditional, null = logits.chunk(2)
                logits = null + guidance * (conditional - null)
            tokens[:, t] = torch.multinomial(logits.softmax(1), 1)[:, 0]
            h = self.symbol(tokens[:, t]).repeat(len(y) // n, 1)
        return to_images(tokens, self.patch)

# %% Training
def main(argv=None):
    run = Run(argv)  # flags, output folder, resuming: the frame, at the end of this file
    x, y, x_test, y_test, run.source = mnist(run.stand_in, run.device)
    n = len(x) * 11 // 12  # the last twelfth (5,000 digits of MNIST) is for validation
    valid, x_test = [v.split(50)[:20] for v in (binarise(x[n:], seed=0), y[n:])], binarise(x_test, seed=1)
    rate = (x[:n].float().mean(0) / 255).clamp(1e-3, 1 - 1e-3).expand_as(x_test)  # how often a pixel is 1
    run.baselines = {"untrained": 784 * math.log(2),
                     "independent pixels": 784 * F.binary_cross_entropy(rate, x_test).item()}

    torch.manual_seed(run.seed)
    if run.width % run.heads:
        raise OSError(f"--width {run.width} is not a multiple of --heads {run.heads}")
    model = Transformer(run.width, run.layers, run.heads, run.patch, run.label_dropout < 1).to(run.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, run.lr, total_steps=run.steps, pct_start=0.06, cycle_momentum=False)
    for step in run.loop(model=model, optimizer=optimizer, schedule=schedule):
        i = torch.randint(n, (run.batch_size,), device=run.device)
        with run.autocast():
            loss = -model.log_prob(binarise(x[i]), drop_labels(y[i], run.label_dropout)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if run.log(loss):  # a status line; True every 20 s and at the end
            with torch.no_grad(), run.autocast():
                validation = -torch.cat([*map(model.log_prob, *valid)]).mean().item()
            run.save(validation, grid(model.sample(40, torch.arange(40) % 10), f"samples, step {step:,}"))
    evaluate(run, model, x_test, y_test)

# %% That is the whole idea. Below: what the trained model can do, and the frame that every chapter shares.
# %% Evaluation: small functions used above, a saved model, a picture
def to_tokens(x, patch):
    """Binary images (B, 1, 28, 28) to symbols (B, T): a patch's pixels are a binary number."""
    pixels = F.pixel_unshuffle(x, patch).long()  # (B, patch², H, W)
    return (pixels << torch.arange(patch**2, device=x.device)[:, None, None]).sum(1).flatten(1)

def to_images(tokens, patch):
    """The inverse of `to_tokens`: symbols (B, T) to images (B, 1, 28, 28)."""
    place = torch.arange(patch**2, device=tokens.device)[:, None, None]
    return F.pixel_shuffle((tokens.view(len(tokens), 1, 28 // patch, -1) >> place & 1).float(), patch)

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
        model = Transformer(s["width"], s["layers"], s["heads"], s["patch"], s["label_dropout"] < 1)
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
    digit, parts = torch.arange(10, device=x.device), list(zip(x.split(25), y.split(25)))
    conditional = -torch.cat([model.log_prob(*part) for part in parts])
    null = -torch.cat([model.log_prob(part) for part, _ in parts])
    by_class = torch.stack([torch.cat([model.log_prob(v, d) for v in x[::10].split(25)]) for d in digit])
    marginal = math.log(10) - by_class.logsumexp(0)  # p(x) = Σ_y p(y) p(x | y)
    run.report({
        "test NLL, conditional, nats": conditional.mean().item(),
        "its standard error": (conditional.std() / len(x) ** 0.5).item(),
        "test NLL, unconditional, nats": null.mean().item(),
        "every 10th digit: NLL, unconditional, nats": null[::10].mean().item(),
        "every 10th digit: NLL, marginal over the classes, nats": marginal.mean().item()})
    samples = model.sample(100, digit.repeat(10))
    run.picture("samples.png", grid(samples, "samples by class"))
    run.picture("row_by_row.gif", *(grid(F.pad(samples[:40, :, :r], (0, 0, 0, 28 - r)), f"row {r} of 28")
                                    for r in range(model.patch, 29, model.patch)))
    t = model.T // 2 + 14 // model.patch  # the position in the middle; position s is given token s − 1
    h, figure = model.embed(to_tokens(x[:1], model.patch), y[:1]), Figure((9, 5), layout="constrained")
    figure.suptitle("what the middle token (square) attends to; a column a layer, a row a head", size=10)
    for block, column in zip(model.blocks, figure.subplots(run.heads, run.layers, squeeze=False).T):
        (_, weights), h = attention(*block.project(h)), block(h)
        for ax, attended in zip(column, weights[0, :, t, 1:t + 1]):
            attended = F.pad(attended, (0, model.T - t)).view(28 // model.patch, -1).sqrt().cpu()
            ax.imshow(x[0, 0].cpu(), cmap="gray_r", alpha=0.25)
            ax.imshow(attended, cmap="Oranges", alpha=0.75, extent=(-0.5, 27.5, 27.5, -0.5))
            ax.plot(14.5, 14.5, "s", color="black", fillstyle="none")
            ax.axis("off")
    run.picture("attention.png", figure)

# %% Notes
# Differs from the papers: a token is a patch of 2 x 2 pixels, binarised afresh; a position is a row plus a
# column (after 600 steps 94.3 nats for 109.5 with a vector for each); pre-norm, as in GPT-2; no dropout; one
# cycle of the learning rate; the class is the first input. With guidance, samples are not draws of p(x | y).
#
# Things to break:
# 1. In `attention`, put triu(2) for triu(1): a position sees its own token, the loss falls to almost 0.
# 2. In `Block`, write to cache[0, :, :, 0] and cache[1, :, :, 0]: samples forget all but the token before.
# 3. In `positions`, return 0 * the sum: no token knows where it is; the loss is higher.
#
# References: GPT-2: Radford et al. 2019. Read before: gated_pixelcnn.py, char_rnn.py. Next: vae.py.

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
