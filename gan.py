# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""GAN: a forger and a critic train each other, and nobody ever writes a likelihood down.

The generator G turns noise z into a digit. The critic D looks at a digit, real or forged, and says how likely it is
real. Each learns against the other:

    D:  minimise −E log D(x) − E log(1 − D(G(z)))                              2 ln 2 = 1.386 where it cannot tell
    G:  minimise −E log D(G(z))                                                non-saturating

The best D against a given G is p(x) / (p(x) + p_G(x)), and there D's loss is 2 ln 2 − 2 JS(p, p_G): with the best D
the loss tells the Jensen-Shannon divergence of data and forgeries, and the game is at rest where p_G = p. The minimax
game would have G minimise E log(1 − D(G(z))), which is flat just where D is sure, that is where G must learn; −log D
is steep there, has the same rest, but no longer descends JS.

What keeps it stable. A critic may grow as steep as it likes where it is sure, and the two chase each other in circles.
R1 adds γ/2 · E|∂D's logit / ∂x|² at real digits: flat where the data are, so that near the rest the two spiral
inwards. Against collapse, G drawing one digit that passes, the critic also sees how much a batch differs in itself.

How to read the losses. They do not fall: each is measured against an opponent that learns. D's is near 0 when the
critic has won and G learns nothing, and near 1.386 when it cannot tell: because G is good, or because the critic is
weak, or held flat by R1. If digits never seen score as forgeries do (`game`), the critic learns by heart. Collapse
does not show in the losses, but in the samples: the same digit from every z, shares of the classes that are off
(`game`).

Samples: one pass. p(x): none, not even a bound; a GAN cannot say how likely a digit is, and nothing but counting tells
which digits it never draws. Latent: z, without an encoder. Good at: sharp samples, fast. Bad at: coverage, and being
measured.

What you will see. `python gan.py` on MNIST and 2 CPU cores (AMD EPYC, bfloat16 in training): 407 s of training, 5 s of
pictures.

    step 118/4,800  critic's loss in nats 0.6348  755 digits/s  6 min 37 s left
    step 2,518/4,800  critic's loss in nats 1.3050  763 digits/s  3 min 12 s left
    step 4,800/4,800  critic's loss in nats 1.2740  757 digits/s  0 min 00 s left

A separate classifier reads 97.7 % of 1,000 samples as the class asked for. Class not told, the ten digits come at 0.82
to 1.21 times their share in the training digits (2,000 samples); precision (samples within the real digits' region of
the classifier's features) 0.712, recall (test digits within the samples') 0.830 (`python benchmarks/judge.py gan
--untold 2000`). 64 samples take 0.02 s. In out/gan: samples, style, untold, interpolation, neighbours, game, curve
(.png), growth (.gif).
On one GPU: `python gan.py --steps 50000 --channels 128` (not yet measured).

What differs from the papers. DCGAN's convolutions, 28 x 28, without batch normalisation; R1 at every fourth step with
four times the weight; the class by a product with the critic's features; half of the digits hide theirs, so one
network draws with the class and without. Samples come from a running average of G's weights. D's output is a logit.

References: Goodfellow et al. 2014 (arXiv:1406.2661); DCGAN: Radford, Metz & Chintala 2016 (1511.06434); R1: Mescheder,
Geiger & Nowozin 2018 (1801.04406); the class: Miyato & Koyama 2018 (1802.05637); spread of a batch: Karras et al. 2018
(1710.10196).
Read before: vae.py. Next: realnvp.py.

Things to break, one line each:
  1. In `generator_loss`, return F.softplus(fake).mean(), a sign gone wrong: G helps the critic, whose loss falls to 0.
  2. Set --gamma 0: in `game`, belief in training digits and in forgeries parts.
  3. Set --latent-dim 1: brought to length 1, z is −1 or +1, and each row of `style` is one of two.
"""
import argparse
import io
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from data import mnist

# %% Settings: name, the published run's value, what it is. `python gan.py --help` prints them.
NAME, LOSS, ITEM = "gan", "critic's loss in nats", "digits"
FLAGS = {
    "steps": (4800, "steps, each one of the critic and one of the generator"),
    "batch_size": (64, "digits per step, and as many forgeries"),
    "lr": (1e-3, "peak learning rate of both Adams"),
    "channels": (32, "feature maps at 14 x 14; twice as many at 7 x 7"),
    "latent_dim": (64, "numbers in the noise z"),
    "gamma": (1.0, "γ of R1, the penalty on the critic's slope at real digits; 0 leaves it out"),
}

# %% Model: a forger that turns noise into digits, a critic that tells forged from real
class Generator(nn.Module):
    """Noise z (B, Z) and class y (B,), 10 for "not told", to digits (B, 1, 28, 28) in [0, 1]. This is the model."""

    def __init__(self, C=32, Z=64):
        super().__init__()
        self.Z, self.label = Z, nn.Embedding(11, Z)
        self.net = nn.Sequential(
            nn.Linear(2 * Z, 49 * 4 * C), nn.LeakyReLU(0.2), nn.Unflatten(1, (4 * C, 7, 7)),
            nn.ConvTranspose2d(4 * C, 2 * C, 4, 2, 1), nn.LeakyReLU(0.2),  # (B, 2C, 14, 14)
            nn.ConvTranspose2d(2 * C, C, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(C, 1, 3, padding=1))  # (B, 1, 28, 28)

    def forward(self, z, y):
        z, e = (v * v.square().mean(1, keepdim=True).add(1e-8).rsqrt() for v in (z, self.label(y)))  # to length √Z
        return self.net(torch.cat([z, e], 1)).to(z).sigmoid()

    @torch.no_grad()
    def sample(self, n, y=None, z=None):
        """n digits (n, 1, 28, 28) in [0, 1], of noise z (n, Z) if given; y is None, a class or (n,) classes."""
        device = self.label.weight.device
        z = torch.randn(n, self.Z, device=device) if z is None else z
        return self(z, torch.as_tensor(10 if y is None else y, device=device).expand(n))

class Critic(nn.Module):
    """The logit (B,) that digits x (B, 1, 28, 28) in [0, 1] of class y (B,) are real rather than forged."""

    def __init__(self, C=32):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, C, 4, 2, 1), nn.LeakyReLU(0.2),  # (B, C, 14, 14)
            nn.Conv2d(C, 2 * C, 4, 2, 1), nn.LeakyReLU(0.2),  # (B, 2C, 7, 7)
            nn.Conv2d(2 * C, 4 * C, 3, padding=1), nn.LeakyReLU(0.2), nn.Flatten())
        self.top = nn.Sequential(nn.Linear(49 * 4 * C + 1, 256), nn.LeakyReLU(0.2))
        self.real, self.label = nn.Linear(256, 1), nn.Embedding(11, 256)
        nn.init.zeros_(self.label.weight)

    def forward(self, x, y):
        h = self.net(2 * x - 1)
        spread = h.float().std(0).mean().expand(len(h), 1).to(h)  # one number: how much the batch differs in itself
        h = self.top(torch.cat([h, spread], 1))  # (B, 256)
        return (self.real(h)[:, 0] + (self.label(y) * h).sum(1) / 16).to(x)  # real at all, and real as a y

# %% The game
def critic_loss(real, fake):
    """−E log D(x) − E log(1 − D(G(z))), from the logits of D, (B,) each; 2 ln 2 if it cannot tell (minus eq. 1)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()

def generator_loss(fake):
    """−E log D(G(z)), which does not saturate: steepest where the forger fails."""
    return F.softplus(-fake).mean()

def slope(logits, x):
    """E |∂ logit / ∂x|², the mean over the digits x: R1 (Mescheder, Geiger & Nowozin 2018, eq. 9, without γ / 2)."""
    gradient, = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()

# %% The frame, the same to the letter in every chapter: settings, saving, training, pictures. Read it once.
SAVE_EVERY = 20  # seconds between saves at first; more as a run grows long
COMMON = {
    "seed": (0, "every step's randomness comes from (seed, step) alone"),
    "device": ("cuda" if torch.cuda.is_available() else "cpu", "cpu, cuda, cuda:1"),
    "out": (f"out/{NAME}", "folder for all that the run makes"),
    "stand_in": (("auto", "always", "never"), "drawn data where the real cannot be had (auto), always, never"),
}

def start(argv):
    """Settings from the command line, and the run to go on with: a new one, or after --resume the one in --out."""
    parser = argparse.ArgumentParser(prog=f"{NAME}.py", usage=argparse.SUPPRESS, description=__doc__.split("\n")[0])
    for name, (value, what) in (FLAGS | COMMON).items():
        first, choices = (value[0], value) if isinstance(value, tuple) else (value, None)
        parser.add_argument("--" + name.replace("_", "-"), type=type(first), default=first, choices=choices,
                            metavar="|".join(map(str, choices or [name.upper()])), help=f"{what} ({first!r})")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, with the flags it had")
    s = parser.parse_args(argv)
    path, run = Path(s.out, "model.pt"), {"step": 0, "seconds": 0.0, "curve": [], "frames": [], "state": {}}
    if s.resume and not path.exists():
        print(f"{path} is not there: starting at step 0")
    elif s.resume:
        run = read_run(path)
        parser.set_defaults(**run["settings"])  # for all that the command line does not say
        s = parser.parse_args(argv)
    for name, value in vars(s).items():
        least = 1 if type(value) is int and name != "seed" else 0
        if type(value) in (int, float) and not least <= value < (2**31 if type(value) is int else math.inf):
            parser.error(f"--{name.replace('_', '-')} {value} is out of range, which begins at {least}")
    try:
        torch.zeros(1, device=s.device)
    except (RuntimeError, AssertionError):
        parser.error(f"--device {s.device} is not to be had on this machine")
    s.out, run["name"] = Path(s.out), NAME
    run["settings"] = {name: vars(s)[name] for name in (*FLAGS, "seed", "stand_in")}
    kept = [] if s.resume else [f for f in (path, s.out / "metrics.json") if f.exists()]  # of a run before this one
    k = next(k for k in range(1, 10**6) if not any(s.out.glob(f"*-{k}.*")))
    for old in kept:
        print(f"{old} of the run before is now {old.rename(old.with_stem(f'{old.stem}-{k}'))}")
    write(s.out / "settings.json", json.dumps(run["settings"], indent=1).encode())  # fails now, not later
    return s, run

def write(path, blob):
    """Write bytes beside `path`, then rename: nobody meets half a file, and a full disk never costs the old one."""
    beside = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(blob)
        os.replace(beside, path)
    except OSError as error:
        if beside.exists():
            beside.unlink()
        raise OSError(f"cannot write {path}: {error.strerror}") from error

def read_run(path):
    """What `train` saved: name, settings, step, seconds, curve, frames, and the state of every part."""
    try:
        run = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file breaks the unpickler in many ways
        raise OSError(f"{path} is damaged, or no saved run") from error
    if not isinstance(run, dict) or run.get("name") != NAME:
        raise OSError(f"{path} is not a run of {NAME}.py")
    return run

def restore(parts, state):
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (RuntimeError, ValueError, KeyError) as error:
        raise OSError("the saved run does not fit these settings: leave the model's flags as they were") from error

def mixed(device):
    """bfloat16 autocast where the hardware computes in it, else nothing."""
    cpu = getattr(torch.cpu, "get_capabilities", dict)()
    fast = torch.cuda.is_bf16_supported(False) if "cuda" in device else cpu.get("avx512_bf16") or cpu.get("amx_tile")
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bool(fast))

def train(s, run, parts, update, validate, draw):
    """Call `update(step)`, which gives a loss, until s.steps are done or Ctrl-C; validate, draw and save on the way.

    Each step is seeded with (seed, step) and every part is saved (a part is what has a state_dict), so a run that was
    killed and resumed ends in the same weights. `validate()` gives a float, `draw()` a frame to keep.
    """
    if run["state"]:
        restore(parts, run["state"])
    stop, losses, terminal = [], [], sys.stdout.isatty()
    # The first Ctrl-C only asks for a stop after the step, a second one is as usual.
    usual = signal.signal(signal.SIGINT, lambda *_: (stop.append(1), signal.signal(signal.SIGINT, usual)))
    begun = told = saved = time.perf_counter()
    first, before, pause, last = run["step"], run["seconds"], SAVE_EVERY, run["step"] >= s.steps
    while not last:
        torch.manual_seed((s.seed << 32) + run["step"])
        losses.append(update(run["step"]).detach())
        run["step"] += 1
        now, last = time.perf_counter(), run["step"] >= s.steps or bool(stop)
        if last or now - told > (0.5 if terminal else 10) or now - saved > pause:
            values, told, rate = torch.stack(losses).tolist(), now, (run["step"] - first) / (now - begun)
            if not math.isfinite(sum(values)):
                bad = run["step"] - len(values) + 1 + [math.isfinite(v) for v in values].index(False)
                raise FloatingPointError(f"the loss is not finite at step {bad}: try a lower --lr. "
                                         f"What was saved before is still in {s.out}")
            left, loss = (s.steps - run["step"]) / rate, sum(values[-100:]) / len(values[-100:])
            line = (f"step {run['step']:,}/{s.steps:,}  {LOSS} {loss:.4f}  {rate * s.batch_size:,.0f} {ITEM}/s  "
                    f"{left // 60:.0f} min {left % 60:02.0f} s left")
            print(f"\r{line} " if terminal else line, end="" if terminal and not last else "\n", flush=True)
        if last or now - saved > pause:
            run["curve"].append((run["step"], sum(values) / len(values), validate()))
            run["frames"].append(draw())
            run["state"] = {name: part.state_dict() for name, part in parts.items()}
            run["seconds"], blob = before + time.perf_counter() - begun, io.BytesIO()
            torch.save(run, blob)
            write(s.out / "model.pt", blob.getvalue())
            saved, losses = time.perf_counter(), []
            pause = max(SAVE_EVERY, run["seconds"] / 20, 15 * (saved - now))  # saving takes a 16th of the time at most
    signal.signal(signal.SIGINT, usual)
    if stop:
        print(f"stopped after step {run['step']:,} and saved: --resume goes on from there, Ctrl-C leaves now")

def sheet(images, columns, title, rows=None, cols=None):
    """A figure of images (N, 1, 28, 28) in [0, 1], `columns` to a row, with names of rows and columns."""
    tiles = images.float().cpu().view(-1, columns, 28, 28).transpose(1, 2).flatten(2).flatten(0, 1)
    height = len(tiles) // 28
    fig = Figure(figsize=(columns / 2 + 1.2, height / 2 + 0.9), layout="constrained")
    ax = fig.subplots()
    ax.imshow(tiles, cmap="gray_r", vmin=0, vmax=1)
    fig.suptitle(title, size=10)
    ax.set_xticks(range(14, 28 * columns, 28), cols or [""] * columns, size=8)
    ax.set_yticks(range(14, 28 * height, 28), rows or [""] * height, size=8)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return fig

def picture(s, name, *figs):
    """Write a figure as a .png, or several as the frames of a .gif, the source of the data in the corner."""
    pages, blob = [], io.BytesIO()
    for fig in figs:
        fig.supxlabel(s.source, x=0.005, ha="left", size=6, color="gray")
        fig.savefig(page := io.BytesIO(), dpi=120)
        pages.append(Image.open(page).convert("P" if name.endswith("gif") else "RGB"))
    pages[0].save(blob, name[-3:], **{"save_all": True, "append_images": pages[1:], "loop": 0, "duration": [
        200] * len(pages[1:]) + [2500]} if name.endswith("gif") else {})
    write(s.out / name, blob.getvalue())

def finish(s, run, results, levels):
    """Draw the curve beside `levels` to compare with; print the results and keep them in metrics.json."""
    fig = Figure(figsize=(6, 4), layout="constrained")
    ax = fig.subplots()
    step, loss, valid = zip(*run["curve"])
    ax.plot(step, loss, "o-", ms=3, label="training, mean since the point before")
    ax.plot(step, valid, "o-", ms=3, label="validation")
    for name, level in levels.items():
        ax.axhline(level, ls="--", lw=1, color="gray")
        ax.annotate(f"{name} {level:.4g}", (step[-1], level), ha="right", va="bottom", size=8)
    ax.set(title=f"{NAME}.py: loss over training", xlabel="step", ylabel=LOSS,
           yscale="log" if min(loss + valid) > 0 else "linear")
    fig.legend(loc="outside lower right", ncols=2, fontsize=8)
    picture(s, "curve.png", fig)
    for name, value in results.items():
        print(f"{name}: {value:,.4f}" if isinstance(value, float) else f"{name}: {value:,}")
    device = torch.cuda.get_device_name(s.device) if "cuda" in s.device else f"CPU, {torch.get_num_threads()} threads"
    write(s.out / "metrics.json", json.dumps({
        "script": NAME, "results": results, "levels": levels, "settings": run["settings"], "steps done": run["step"],
        "source": s.source, "device": device, "torch": torch.__version__, "curve": run["curve"]}, indent=1).encode())
    print(f"in {s.out}: {', '.join(sorted(f.name for f in s.out.iterdir() if f.suffix != '.part'))}")

# %% Pictures
def nearest(images, x):
    """Index (B,) of the training digit, among uint8 x (N, 1, 28, 28), nearest to each image in [0, 1]."""
    x = x.flatten(1) / 255
    return torch.cat([torch.cdist(part, x).argmin(1) for part in images.flatten(1).split(500)])

def draw_all(s, run, model, x, untold, digits, real):
    """All pictures, from a trained generator, training digits x, samples of no class, digits read in them, in data."""
    torch.manual_seed(1)
    digit, names = torch.arange(10, device=x.device), list("0123456789")

    def page(name, title, images, columns, rows=None, cols=None):
        picture(s, f"{name}.png", sheet(torch.cat(images), columns, title, rows, cols))

    samples = model.sample(100, digit.repeat(10))
    page("samples", "samples of each class", [samples], 10, cols=names)
    picture(s, "growth.gif", *[sheet(f / 255, 10, f"the same noise after {c[0]:,} steps of training", cols=names)
                           for f, c in zip(run["frames"], run["curve"])])
    z = torch.randn(8, model.Z, device=x.device).repeat_interleave(10, 0)
    page("style", "one noise z a row, the class told a column", [model.sample(80, digit.repeat(8), z)], 10, cols=names)
    a, b, mix = *torch.randn(2, 10, model.Z, device=x.device), [i / 10 for i in range(11)]
    page("interpolation", "from one noise to another, class told", [
        torch.stack([model.sample(10, digit, a.lerp(b, u)) for u in mix], 1).flatten(0, 1)], 11, names, mix)
    close = x[nearest(samples[:20], x)] / 255
    page("neighbours", "samples, and the training digit nearest to each: alike, or copied?", [
        v[i:i + 10] for i in (0, 10) for v in (samples, close)], 10, ["sample", "nearest"] * 2, names)
    page("untold", "samples of p(x), class not told", [untold[:100]], 20)

    fig = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = fig.subplots(1, 2)
    step = [c[0] for c in run["curve"]]
    for name, values in zip(("training digits", "digits never seen", "forgeries"), zip(*run["belief"])):
        left.plot(step, values, "o-", ms=3, label=name)
    left.axhline(0.5, ls="--", lw=1, color="gray")
    left.set(title="what the critic believes: 0.5 is cannot tell", xlabel="step", ylabel="mean D(x)")
    left.legend(fontsize=8)
    right.bar(names, 100 * digits.bincount(minlength=10).cpu() / len(digits), label="samples")
    right.plot(names, 100 * real.cpu(), "_", color="black", ms=20, label="test digits")
    right.set(title=f"digits among {len(digits):,} samples, class not told", xlabel="as read by the nearest neighbour",
              ylabel="%")
    right.legend(fontsize=8)
    picture(s, "game.png", fig)

# %% The run
def build(s):
    return Generator(s.channels, s.latent_dim).to(memory_format=torch.channels_last)

def load(path=f"out/{NAME}/model.pt", device="cpu"):
    """The generator of a saved run, with averaged weights, ready to sample."""
    run = read_run(path)
    model = build(argparse.Namespace(**run["settings"]))
    restore({"average": model}, run["state"])
    return model.to(device).eval()

def main(argv=None):
    s, run = start(argv)
    *data, s.source = mnist(s.stand_in)
    x, y, x_test, y_test = (v.to(s.device) for v in data)
    x_valid, y_valid, x, y = x[55000:56000] / 255, y[55000:56000], x[:55000], y[:55000]
    torch.manual_seed(s.seed)
    model, critic = build(s).to(s.device), Critic(s.channels).to(s.device, memory_format=torch.channels_last)
    average = build(s).to(s.device).requires_grad_(False)  # of the weights over training: it samples and is judged
    average.load_state_dict(model.state_dict())
    optimizers = [torch.optim.Adam(net.parameters(), lr=s.lr, betas=(0.0, 0.99), fused=True) for net in (model, critic)]
    sizes = [sum(p.numel() for p in net.parameters()) for net in (model, critic)]
    print(f"{NAME}.py: {sizes[0]:,} + {sizes[1]:,} parameters, {s.source}, {s.device}; a critic that cannot tell "
          f"scores {2 * math.log(2):.4f}")

    def update(step):
        i = torch.randint(len(x), (s.batch_size,), device=s.device)
        label = torch.where(torch.rand(s.batch_size, device=s.device) < 0.5, 10, y[i])  # half of them are not told
        done = step / s.steps  # the learning rate goes up over a twentieth of the run, then down along a cosine
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = s.lr * min(1, 20 * done + 1e-3) * (1 + math.cos(math.pi * done)) / 2
            optimizer.zero_grad(set_to_none=True)
        penalise = s.gamma > 0 and step % 4 == 0  # a fourth of the steps, with four times the weight
        real = (x[i] / 255).requires_grad_(penalise)
        with mixed(s.device):
            fake = model(torch.randn(s.batch_size, s.latent_dim, device=s.device), label)
            on_real, on_fake = critic(real, label), critic(fake.detach(), label)
        loss = critic_loss(on_real, on_fake)
        (loss + 4 * s.gamma / 2 * slope(on_real, real) if penalise else loss).backward()
        optimizers[1].step()
        critic.requires_grad_(False)  # its turn is over: gradients go through it, not into it
        with mixed(s.device):
            on_fake = critic(fake, label)
        generator_loss(on_fake).backward()
        critic.requires_grad_(True)
        optimizers[0].step()
        for a, p in zip(average.parameters(), model.parameters()):
            a.lerp_(p.detach(), 1 - min(0.999, (1 + step) / (10 + step)))
        return loss

    @torch.no_grad()
    def validate():
        """The critic's loss on digits that it never saw, and its mean belief in each sort of digit."""
        torch.manual_seed(0)
        seen, new = critic(x[:1000] / 255, y[:1000]), critic(x_valid, y_valid)
        fake = critic(average.sample(1000, y_valid), y_valid)
        run.setdefault("belief", []).append([v.sigmoid().mean().item() for v in (seen, new, fake)])
        return critic_loss(new, fake).item()

    def draw():
        torch.manual_seed(0)
        samples = average.sample(40, torch.arange(40, device=s.device) % 10)
        picture(s, "samples.png", sheet(samples, 10, f"after {run['step']:,} steps of training", cols=[*range(10)]))
        return (255 * samples).byte().cpu()

    train(s, run, {"model": model, "critic": critic, "average": average, "optimizer": optimizers[0],
                   "critic's optimizer": optimizers[1]}, update, validate, draw)

    done = time.perf_counter()
    torch.manual_seed(0)
    few, asked = x[:10000], torch.arange(1000, device=s.device) % 10

    def read(images):  # the digit in each image, by the label of its nearest neighbour among 10,000 training digits
        return y[nearest(images, few)]

    def right(images, labels):
        return (read(images) == labels).float().mean().item()

    untold = average.sample(1000)
    share, real = (read(v).bincount(minlength=10).clamp(min=1) / len(v) for v in (untold, x_test[:1000] / 255))
    draw_all(s, run, average, x, untold, read(untold), real)
    drawn = time.perf_counter()
    average.sample(64)
    took = time.perf_counter() - drawn
    finish(s, run, {
        "validation loss of the critic, nats": run["curve"][-1][2],
        "1,000 samples read as asked, by the nearest neighbour": right(average.sample(1000, asked), asked),
        "first 1,000 test digits read right, by the same": right(x_test[:1000] / 255, y_test[:1000]),
        "class not told, rarest digit against its share of test digits": (share / real).min().item(),
        "class not told, most frequent digit against its share of test digits": (share / real).max().item(),
        "seconds for 64 samples": took,
        "seconds of training": run["seconds"], "seconds after": drawn - done},
        {"cannot tell": 2 * math.log(2)})

if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(print(f"{NAME}.py: {error}", file=sys.stderr) or 2)
