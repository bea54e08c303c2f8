# /// script
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""GAN: generative adversarial networks (Goodfellow et al. 2014, arXiv:1406.2661).

A forger of banknotes hears only "real" or "false". How does he learn? From a detective who learns,
too. Two networks play this game. The generator G turns random numbers z ~ N(0, I) into an image
G(z). The discriminator D sees images, half of them real handwritten digits and half made by G, and
gives the probability that an image is real. (Both also know which digit it is, y, left out here.)

    D maximises   V = E_x[log D(x)] + E_z[log(1 − D(G(z)))]                      equation 1
    G minimises   the same V

E_x is the mean over real images, E_z the mean over z. Nobody writes down how probable an image is.
Why does it work all the same? Let p(x) be the density of real images (how frequent images like x
are) and q(x) that of G's. Then V is a sum over all images x (an integral, strictly) of

    p(x) log D(x) + q(x) log(1 − D(x))

What is the best D against this G? It may choose its value at each x by itself. There the derivative
in D, p / D − q / (1 − D), is zero at

    D* = p / (p + q)         an image three times as frequent among the real ones: D* = 0.75

Against this best D, what does G minimise? Put D* in, with m = (p + q) / 2, the mean density:

    V = E_p[log p / (p + q)] + E_q[log q / (p + q)]        E_p: over real images, E_q: over G's
      = E_p[log p / m − log 2] + E_q[log q / m − log 2]    because p + q = 2 m
      = KL(p ‖ m) + KL(q ‖ m) − 2 log 2                    KL(p ‖ m) = E_p[log p / m]
      = 2 JS(p, q) − 2 log 2                               JS, Jensen-Shannon: half of both KLs

A KL is never negative, and 0 only for equal densities. So V is never below −2 log 2 and reaches
that only at q = p: then D* = 1/2, a coin toss. With a D that is always the best one, G would move
its density onto the real one without ever seeing a real image: all it learns comes through D. (In
fact D takes one step for each of G's, so this is a guide and no proof.)

One change is the paper's own. Early on D is sure: D(G(z)) = 0.01, say. Write D = sigmoid(l), l its
logit. Then d log(1 − D) / dl = −D = −0.01: the G that needs it most gets almost no gradient. So G
minimises −log D(G(z)), with the gradient −(1 − D) = −0.99: the non-saturating loss. Both push l up;
q = p is still where the game rests, but on the way it is no longer JS that falls.

How to read the losses. They need not fall: each is measured against an opponent who learns, too.
D's loss, −V, is near 0 when D tells all images apart, and near 2 log 2 = 1.386 nats (log is the
natural logarithm, its unit the nat) when D can only guess: as G is good, or as D is bad.

Run `python gan.py`; pictures appear in out/gan/. On MNIST and one core of an AMD EPYC (bfloat16)
it takes 503 seconds, on two 311. A separate classifier finds the class asked for in 98.9 % of 5,000
samples; in its features their Fréchet distance to test digits (benchmarks/judge.py) is 0.76, that
of unseen real digits 0.73, of noise 2251.

Good at: sharp samples in one pass. Bad at: being measured, for there is no p(x); and variety: G may
draw all sevens alike (mode collapse), as D judges each image by itself. Read before: vae.py. Read
next: realnvp.py, ddpm.py.
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
    parser.add_argument("--steps", type=int, default=6000, help="optimiser steps of each network")
    parser.add_argument("--batch-size", type=positive_int, default=64, help="real images a step")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate of both Adams")
    parser.add_argument(
        "--channels", type=positive_int, default=32, help="feature maps of the finest layer"
    )
    parser.add_argument("--latent", type=positive_int, default=64, help="dimensions of z")
    parser.add_argument(
        "--gamma", type=float, default=1.0, help="weight of the penalty R1; 0: none"
    )
    parser.add_argument("--classes", type=positive_int, default=10, help="10: the digit is given")
    add_common_flags(parser, out="out/gan", save_every=250)  # --device, --resume ...: at the end
    return parse(parser, argv)


# %% Model
# Both networks are convolutional, after DCGAN (Radford, Metz & Chintala 2016, arXiv:1511.06434).
# The generator starts from a coarse 7 x 7 picture of features and doubles its size twice. The
# class enters beside z, as ten numbers, one of which is 1.
class Generator(nn.Module):
    """z (B, latent) and classes y (B,) to images (B, 1, 28, 28) in [0, 1]."""

    def __init__(self, channels=32, latent=64, classes=10):
        super().__init__()
        C = channels
        self.latent = latent
        self.classes = classes
        self.coarse = nn.Linear(latent + classes, 4 * C * 7 * 7)
        self.up = nn.Sequential(
            nn.Unflatten(1, (4 * C, 7, 7)),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(4 * C, 2 * C, 4, stride=2, padding=1),  # (B, 2C, 14, 14)
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(2 * C, C, 4, stride=2, padding=1),  # (B, C, 28, 28)
            nn.LeakyReLU(0.2),
            nn.Conv2d(C, 1, 3, padding=1),
        )

    def forward(self, z, y):
        z_and_y = torch.cat([z, F.one_hot(y, self.classes)], dim=1)
        return self.up(self.coarse(z_and_y)).float().sigmoid()

    @torch.no_grad()
    def sample(self, y):
        """An image for each class in y (B,), (B, 1, 28, 28) in [0, 1]: one pass."""
        return self(torch.randn(len(y), self.latent, device=y.device), y)


# The discriminator halves the size twice. It has one output for each class and answers with that
# of y: is this a real seven? The code gives the logit l; the D of the text is sigmoid(l).
class Discriminator(nn.Module):
    """The logit of D(x, y), (B,), for images x (B, 1, 28, 28) in [0, 1] of classes y (B,)."""

    def __init__(self, channels=32, classes=10):
        super().__init__()
        C = channels
        self.features = nn.Sequential(
            nn.Conv2d(1, C, 4, stride=2, padding=1),  # (B, C, 14, 14)
            nn.LeakyReLU(0.2),
            nn.Conv2d(C, 2 * C, 4, stride=2, padding=1),  # (B, 2C, 7, 7)
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * C, 4 * C, 3, padding=1),  # (B, 4C, 7, 7)
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(4 * C * 7 * 7, 256),
            nn.LeakyReLU(0.2),
        )
        self.logits = nn.Linear(256, classes)

    def forward(self, x, y):
        h = self.features(2 * x - 1)  # pixels from −1 to 1
        logits = self.logits(h).float()  # (B, classes)
        return logits.gather(1, y[:, None])[:, 0]  # that of y


# With D = sigmoid(l): −log D = log(1 + e^−l) = softplus(−l), and −log(1 − D) = softplus(l).
def discriminator_loss(real, fake):
    """−V, nats, from D's logits of real and generated images, (B,) each (equation 1)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake):
    """−log D(G(z)), nats, from D's logits of generated images (B,)."""
    return F.softplus(-fake).mean()


# Left alone the game need not settle: D answers G, G answers D, and both go round in circles. R1
# adds to D's loss how fast its logit changes with the pixels at real images, γ/2 · E[‖∂l/∂x‖²]
# (Mescheder, Geiger & Nowozin 2018, arXiv:1801.04406, eq. 9): D is flat there, and G comes to rest.
# As it costs a second backward pass it is applied at every fourth step, four times as strong (as
# in Karras et al. 2020, arXiv:1912.04958).
def r1_penalty(logits, x):
    """The mean squared length of the gradient of D's logits (B,) at real images x."""
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)  # each logit has its x
    return gradient.square().flatten(1).sum(1).mean()


# %% Training
def warmup_cosine(u):
    """Share of the peak learning rate, u = 0 to 1 through training: a rise, then half a cosine."""
    return min(u / 0.05, 0.5 + 0.5 * math.cos(math.pi * u))


def main(argv=None):
    args = parse_flags(argv)
    x, y, x_test, y_test, source = mnist(args.stand_in, args.device, args.classes)
    n = len(x) * 11 // 12  # the last twelfth, 5,000 digits of MNIST, is for validation
    x_valid, y_valid = x[n:][:2000] / 255, y[n:][:2000]

    torch.manual_seed(args.seed)
    G = Generator(args.channels, args.latent, args.classes).to(args.device)
    D = Discriminator(args.channels, args.classes).to(args.device)
    # Adam without momentum, β1 = 0: old gradients answer an opponent that has changed since.
    optimizer_G = torch.optim.Adam(G.parameters(), betas=(0.0, 0.99), fused=True)
    optimizer_D = torch.optim.Adam(D.parameters(), betas=(0.0, 0.99), fused=True)
    optimizers = {"optimizer_G": optimizer_G, "optimizer_D": optimizer_D}
    run = Run(args, source, n, "discriminator loss, nats", G=G, D=D, **optimizers)
    for step in run.steps():
        for optimizer in optimizers.values():
            optimizer.param_groups[0]["lr"] = args.lr * warmup_cosine(step / args.steps)
        batch = torch.randint(n, (args.batch_size,), device=args.device)
        real, labels = x[batch] / 255, y[batch]
        penalise = args.gamma > 0 and step % 4 == 0
        real.requires_grad_(penalise)  # R1 needs the gradient at the images
        z = torch.randn(args.batch_size, args.latent, device=args.device)

        # D's turn. G draws the same classes; detach: no gradient goes on to G.
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
            fake = G(z, labels)
            real_logits = D(real, labels)
            fake_logits = D(fake.detach(), labels)
        loss = discriminator_loss(real_logits, fake_logits)
        total = loss
        if penalise:
            total = loss + 4 * args.gamma / 2 * r1_penalty(real_logits, real)
        optimizer_D.zero_grad()
        total.backward()
        optimizer_D.step()

        # G's turn, with the same images. The gradient flows through D to the pixels and on to G.
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
            fake_logits = D(fake, labels)
        optimizer_G.zero_grad()
        generator_loss(fake_logits).backward()  # D's gradients from it are dropped at its zero_grad
        optimizer_G.step()
        run.log(loss)
        if step % args.save_every == 0 or step == args.steps:
            with torch.no_grad():
                validation = discriminator_loss(D(x_valid, y_valid), D(G.sample(y_valid), y_valid))
            run.save(validation.item())
            samples = G.sample(ten_classes(y).repeat(4))
            run.picture("samples.png", grid(samples, f"samples, step {step:,}"))
    evaluate(run, G, x[:n], y[:n], x_test, y_test)


# %% That is the whole idea. Below: what the trained model can do, and the frame.
# %% Evaluation
def load_checkpoint(path):
    """What a run wrote into model.pt, a dictionary."""
    try:
        saved = torch.load(Path(path).expanduser(), map_location="cpu", weights_only=True)
        return saved | {"flags": saved["flags"]}  # KeyError if this is somebody else's file
    except Exception as error:  # a damaged file fails in many ways
        raise OSError(f"{path} is missing, damaged, or no checkpoint of this script") from error


def load(path="out/gan/model.pt", device="cpu"):
    """The generator of a finished or unfinished run, ready to sample."""
    saved = load_checkpoint(path)
    flags = saved["flags"]
    model = Generator(flags["channels"], flags["latent"], flags["classes"])
    model.load_state_dict(saved["G"])
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


# A GAN says nothing about how probable a digit is, so how can it be judged? A first answer: look
# for the nearest training digit of each sample. It should have the class that was asked for, and it
# should not be the same image: then G would have copied. Mode collapse goes unseen: one good seven,
# drawn again and again, passes. benchmarks/judge.py looks closer.
def nearest(images, others):
    """For each of images (N, 1, 28, 28) the index of the nearest of the others, (N,)."""
    return torch.cdist(images.flatten(1), others.flatten(1)).argmin(1)


@torch.no_grad()
def evaluate(run, model, x_train, y_train, x, y):
    """Results and pictures; uint8 images x (N, 1, 28, 28) of classes y (N,)."""
    torch.manual_seed(1)
    known = x_train[:10_000] / 255
    some, labels = x[::10] / 255, y[::10]  # of the whole test set: its parts differ
    samples = model.sample(labels)
    noise = torch.rand(samples.shape, device=samples.device)
    results = {"discriminator loss if D = 1/2, nats": 2 * math.log(2)}
    if run.curve:
        results["discriminator loss on unseen digits, nats"] = run.curve[-1]["validation"]
    for name, images in {"samples": samples, "test digits": some, "noise": noise}.items():
        right = y_train[nearest(images, known)] == labels
        results[f"nearest training digit has the right class, {name}"] = right.float().mean().item()
    run.report(results)

    shown = ten_classes(y)
    samples = model.sample(shown.repeat(10))
    run.picture("samples.png", grid(samples, "samples, one class a column"))

    z = torch.randn(10, model.latent, device=x.device)
    styles = model(z.repeat_interleave(10, dim=0), shown.repeat(10))
    run.picture("styles.png", grid(styles, "one z a row, one class a column"))

    pages = []
    for k in range(4):
        for u in range(10):
            step = z[k].lerp(z[k + 1], u / 10)  # from one z straight to the next
            images = model(step.repeat(10, 1), shown)
            pages.append(grid(images, "a walk through the space of z, the same for all classes"))
    run.picture("interpolation.gif", *pages)

    closest = known[nearest(samples[:10], known)]
    title = "top: samples; below: the nearest of 10,000 training digits"
    run.picture("neighbours.png", grid(torch.cat([samples[:10], closest]), title))


# %% Notes
# Differs from the paper: convolutions, R1, the class, Adam with β1 = 0, a rate that rises and
# falls. Two switched off once, on two threads (class accuracy, Fréchet distance by
# benchmarks/judge.py, 5,000 samples):
#
#     as it is                                99.3 %    0.69
#     no R1 (--gamma 0)                       99.8 %    2.08
#     β1 = 0.5 instead of 0                   98.9 %    0.87
#
# The run of the opening, on one thread, differs a little: 98.9 % and 0.76. An average of its G's
# weights (EMA) had 99.0 % and 0.73, which is too little gained to stay.
#
# Things to break:
# 1. In `generator_loss`, return F.softplus(fake).mean(), a wrong sign: G helps D, whose loss
#    nears 0.
# 2. In `main`, G(z, labels.flip(0)): G and D are given other classes, samples ignore theirs.
# 3. Set --gamma 0: at real images D gets some fifty times as steep, and its loss falls: G is
#    outplayed.
#
# References: a GAN of today is R3GAN (Huang et al. 2025, arXiv:2501.05441).


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
