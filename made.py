# /// script
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""MADE: masked autoencoder for distribution estimation (Germain et al. 2015, arXiv:1502.03509).

An image x of D binary pixels has a probability that is a product of D factors, one for each pixel, each
conditioned on the pixels before it (and on the class y, where it is given):

    log p(x | y) = Σ_i log p(x_i | x_1, …, x_{i−1}, y)        the chain rule, in any ordering of the pixels

A plain network with D inputs and D outputs could compute all D factors in one pass, provided that output i
depends on nothing but the inputs before i. So give every unit a degree. The i-th pixel has degree i; a hidden
unit of degree m may take input from units of degree m or less; output i from hidden units of degrees below i.
Along any path j ≤ m ≤ m′ < i, so no path leads from pixel j to output i unless j < i. Multiply each weight
matrix W by a mask M of zeros and ones that says so, W ⊙ M. That is all.

Training: minimise the negative log-likelihood (NLL) −log p(x | y), binary cross-entropy summed over the
pixels, in nats. Sampling: pixel after pixel. p(x): exact. Latent: none. Good at: likelihoods, fast and
honest. Bad at: well-formed shapes; the network knows nothing of rows, columns and strokes.

Label dropout: a tenth of the digits carry the null label in place of y, so one network gives p(x | y) and
p(x). The mixture Σ_y p(x | y) / 10, marginal over the classes, is exact too and fits better. With --orderings
K, the masks of K orderings are trained in turn and log p(x) = log (1/K) Σ_k p_k(x).

`python made.py` on MNIST and two cores of an Intel Xeon (bfloat16): 163 s of training, 173 s in all.

    step 1,990/12,000  NLL, nats 86.3470  20,004 digits/s  2 min 08 s left
    step 4,843/12,000  NLL, nats 83.6119  18,642 digits/s  1 min 38 s left
    step 12,000/12,000  NLL, nats 80.6236  18,869 digits/s  0 min 00 s left

Test set, binarised once, exact: NLL 82.11 nats given the class, 84.28 (± 0.22, one standard error) marginal
over the classes, 86.75 under the null label; without classes, `--label-dropout 1`, 85.19. Untrained: 784 ln 2
= 543.4; independent pixels: 206.0. Bayes' rule classifies 97.0 % of the test digits. A separate classifier
finds the class asked for in 85.3 % of 5,000 samples.
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
NAME, LOSS, ITEMS = "made", "NLL, nats", "digits"
NULL = 10  # the null label: no class given
SETTINGS = {
    "steps": (12000, "optimiser steps", 1, 10**9),
    "batch_size": (256, "digits per step", 1, 10**6),
    "lr": (4e-3, "peak learning rate of Adam", 0, 10),
    "hidden": (1024, "units in a hidden layer", 1, 10**5),
    "layers": (2, "hidden layers", 1, 100),
    "orderings": (1, "orderings of the pixels: 1 is row by row, more are an ensemble", 1, 1000),
    "label_dropout": (0.1, "share of digits under the null label; 1 gives an unconditional model", 0, 1),
}

# %% Model: a plain network whose weights are multiplied by masks of zeros and ones
class MADE(nn.Module):
    """p(x | y), the product over pixels i of p(x_i | pixels before i, y): all factors from one pass."""
    def __init__(self, D=784, hidden=1024, layers=2, orderings=1, conditional=True):
        super().__init__()
        self.D, self.orderings, self.conditional = D, orderings, conditional
        sizes = [D] + [hidden] * layers
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
        self.out, self.direct = nn.Linear(hidden, D), nn.Linear(D, D, bias=False)  # direct: pixels to logits
        self.label = nn.ModuleList(nn.Embedding(11, size) for size in (*sizes[1:], D))  # a bias a class
        for layer in (self.out, self.direct, *self.label):
            nn.init.zeros_(layer.weight)  # an untrained model gives each pixel 1/2: 784 ln 2 nats
        nn.init.zeros_(self.out.bias)
        for k in range(orderings):
            pixel, *units = self.degrees(k)
            for i, (below, above) in enumerate(zip([pixel, *units], units)):
                self.register_buffer(f"mask_{k}_{i}", (above[:, None] >= below).float(), persistent=False)
            self.register_buffer(f"mask_{k}_out", (pixel[:, None] > units[-1]).float(), persistent=False)
            self.register_buffer(f"mask_{k}_direct", (pixel[:, None] > pixel).float(), persistent=False)

    def degrees(self, k):
        """Degrees in ordering k: of pixels, 1..D, and of each hidden layer's units, spread over 1..D − 1."""
        order = torch.arange(self.D)
        if k > 0:
            order = torch.randperm(self.D, generator=torch.Generator().manual_seed(k))
        units = 1 + torch.arange(self.out.in_features) * (self.D - 1) // self.out.in_features
        return [order.argsort() + 1] + [units] * len(self.hidden)

    def weights(self, k):
        """The masked weights W ⊙ M of ordering k: hidden layers, output, direct connections."""
        hidden = [layer.weight * self.get_buffer(f"mask_{k}_{i}") for i, layer in enumerate(self.hidden)]
        out = self.out.weight * self.get_buffer(f"mask_{k}_out")
        return hidden, out, self.direct.weight * self.get_buffer(f"mask_{k}_direct")

    def biases(self, y, n):
        """For each layer the bias of n images (n, units), the class's part included; y as in `log_prob`."""
        y = self.labels(NULL if y is None else y, n)
        return [layer.bias + label(y) for layer, label in zip([*self.hidden, self.out], self.label)]

    def forward(self, x, y=None, k=0):
        """Logits (B, D) of pixels x (B, D) in ordering k; logit i depends only on the pixels before i."""
        (hidden, out, direct), (*b, b_out) = self.weights(k), self.biases(y, len(x))
        h = F.relu(F.linear(x, hidden[0]) + b[0])
        for weight, bias in zip(hidden[1:], b[1:]):
            h = h + F.relu(F.linear(h, weight) + bias)  # residual: units keep their degrees
        return F.linear(h, out) + F.linear(x, direct) + b_out

    def log_prob(self, x, y=None, k=None):
        """log p(x | y) of binary images x (B, 1, 28, 28), exact: nats (B,). In ordering k or by the ensemble:
        the log of the mean of all likelihoods. y is None (the null label), a class or (B,) classes."""
        x, log_probs = x.flatten(1), []
        for ordering in range(self.orderings) if k is None else [k]:
            logits = self(x, y, ordering).to(self.out.bias.dtype)
            log_probs.append(-F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1))
        return torch.stack(log_probs).logsumexp(0) - math.log(len(log_probs))

    def labels(self, y, n):
        """y as (n,) classes; None draws them from p(y), uniform. An unconditional model knows NULL alone."""
        y = torch.randint(10, (n,)) if y is None else torch.as_tensor(y)
        return (y if self.conditional else torch.tensor(NULL)).to(self.out.bias.device).expand(n)

    @torch.no_grad()
    def sample(self, n, y=None, given=None, k=0):
        """n binary images (n, 1, 28, 28), pixel by pixel; y: None (drawn), a class or (n,) classes. Units of
        degree m need the first m pixels alone, so each is computed once: the work of one pass. `given` (n, g)
        are the first g pixels, if known."""
        (hidden, out, direct), (pixel, *units) = self.weights(k), self.degrees(k)
        *b, b_out = self.biases(self.labels(y, n), n)
        x, h = torch.zeros_like(b_out), [torch.zeros_like(bias) for bias in b]
        for step, i in enumerate(pixel.argsort().tolist()):
            p = (h[-1] @ out[i] + x @ direct[i] + b_out[:, i]).sigmoid()
            x[:, i] = (torch.rand(n, device=x.device) < p).to(x)
            if given is not None and step < given.shape[1]:
                x[:, i] = given[:, step]
            for layer, degree in enumerate(units):
                new = (degree == step + 1).nonzero()[:, 0]  # the units that waited for this pixel
                below = x if layer == 0 else h[layer - 1]
                h[layer][:, new] = F.relu(F.linear(below, hidden[layer][new]) + b[layer][:, new])
                if layer > 0:
                    h[layer][:, new] += below[:, new]
        return x.view(n, 1, 28, 28)

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
    model = MADE(784, run.hidden, run.layers, run.orderings, run.label_dropout < 1).to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=run.lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, run.lr, total_steps=run.steps, pct_start=0.06, cycle_momentum=False)
    for step in run.loop(model=model, optimizer=optimizer, schedule=schedule):
        i = torch.randint(n, (run.batch_size,), device=run.device)
        with run.autocast():
            labels = drop_labels(y[i], run.label_dropout)
            loss = -model.log_prob(binarise(x[i]), labels, step % run.orderings).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if run.log(loss):  # a status line; True every 20 s and at the end
            with torch.no_grad():
                validation = -model.log_prob(x_valid, y_valid).mean().item()
            run.save(validation, grid(model.sample(40, torch.arange(40) % 10), f"samples, step {step:,}"))
    evaluate(run, model, x_test, y_test)

# %% That is the whole idea. Below: what the trained model can do, and the frame that every chapter shares.
# %% Evaluation: a saved model, figures and pictures
def load(path=f"out/{NAME}/model.pt", device="cpu"):
    """The model of a saved run, ready to sample."""
    try:
        assert (saved := torch.load(path, map_location="cpu", weights_only=True))["name"] == NAME
        s = saved["settings"]
        model = MADE(784, s["hidden"], s["layers"], s["orderings"], s["label_dropout"] < 1)
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
    by_class = torch.stack([-model.log_prob(x, digit) for digit in range(10)])  # NLL (10, N)
    marginal = math.log(10) - (-by_class).logsumexp(0)  # p(x) = Σ_y p(y) p(x | y)
    run.report({
        "test NLL, conditional, nats": by_class.gather(0, y[None]).mean().item(),
        "test NLL, marginal over the classes, nats": marginal.mean().item(),
        "its standard error": (marginal.std() / len(x) ** 0.5).item(),
        "test NLL, unconditional, nats": -model.log_prob(x).mean().item(),
        "test digits classified by Bayes' rule": (by_class.argmin(0) == y).float().mean().item(),
    })

    digit = torch.arange(10, device=x.device)
    samples = model.sample(100, digit.repeat(10))
    run.picture("samples.png", grid(samples, "samples by class"))
    run.picture("row_by_row.gif", *(grid(F.pad(samples[:40, :, :r], (0, 0, 0, 28 - r)), f"row {r} of 28")
                                    for r in range(1, 29)))
    x10 = x[torch.stack([(y == d).nonzero()[0, 0] for d in range(10)])]  # the first test digit of each class
    rows = [x10, *(model.sample(10, digit, given=x10.flatten(1)[:, :392]) for _ in range(4))]
    run.picture("completion.png", grid(torch.cat(rows), "the lower half of x, drawn four times", "x1234"))
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    figure.suptitle("the masks: black weights are kept")
    ends = "pixel to hidden unit", "hidden unit to logit", "pixel to logit"
    for ax, name, title in zip(figure.subplots(1, 3), ("0", "out", "direct"), ends):
        ax.imshow(model.get_buffer(f"mask_0_{name}").cpu(), cmap="gray_r", aspect="auto")
        ax.set(title=title, xlabel="from", ylabel="to")
    run.picture("masks.png", figure)

# %% Notes
# Differs from the paper: digits are binarised afresh for every batch; degrees are spread evenly and are the
# same in all orderings; the second hidden layer adds to the first (residual, as in Nash & Durkan 2019,
# 1904.05626); Adam with one cycle of the learning rate; a class, as a bias of each layer.
#
# Things to break:
# 1. In `__init__`, make the direct mask >= for >: the loss nears 0, samples have nothing of a digit.
# 2. In `main`, put (x[i] > 127).float() for binarise(x[i]): training falls far below validation.
# 3. Set --label-dropout 1: samples ignore the class, Bayes' rule finds one digit in ten.
#
# References: NADE: Larochelle & Murray 2011. Read before: nothing. Next: char_rnn.py, or pixelcnn.py.

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
