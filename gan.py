# /// script
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""GAN: generative adversarial networks (Goodfellow et al. 2014, arXiv:1406.2661).

Two networks train each other, and nobody ever writes a likelihood down. The generator G turns noise z into an
image; the discriminator D gives the probability that an image is real rather than generated. Each learns
against the other, both given the class (left out here; a tenth of the digits carry a null label):

    D minimises  −E log D(x) − E log(1 − D(G(z)))        2 ln 2 = 1.386 for a D that always answers 1/2
    G minimises  −E log D(G(z))                          the non-saturating loss

The best D against a fixed G is p(x) / (p(x) + p_G(x)), p_G the density of G(z). There D's loss is 2 ln 2 −
2 JS(p, p_G), JS the Jensen-Shannon divergence, and the game is in equilibrium where p_G = p. The minimax game
would have G minimise E log(1 − D(G(z))), flat where D is sure and G must learn; −log D is steep there.

What keeps it stable. Unchecked, D grows ever steeper, and the two chase each other in circles. R1 adds γ/2 ·
E‖∂D's logit / ∂x‖² at real digits: with D flat where the data are, the two spiral inwards. Against mode
collapse (G draws only one digit, which passes) D sees the minibatch standard deviation: how much a batch's
images differ.

How to read the losses. They do not fall: each is measured against an opponent that learns. D's is near 0 when
D has won and G learns nothing, and near 1.386 when D cannot tell real from generated: because G is good, or D
is weak, or held flat by R1. If training digits score higher than unseen ones (picture `game`), D has
memorised. Mode collapse shows in the samples alone: one digit from every z, shares of classes that are off.

Sampling: one pass. p(x): none, not even a bound; nothing but counting samples shows which digits G never
draws. Latent: z, without an encoder. Good at: sharp samples, speed. Bad at: coverage, and being measured.

`python gan.py` on MNIST and two cores of an Intel Xeon (bfloat16): 321 s of training, 330 s in all.

    step 478/6,000  discriminator loss, nats 1.2333  1,184 digits/s  4 min 58 s left
    step 2,799/6,000  discriminator loss, nats 1.3611  1,189 digits/s  2 min 52 s left
    step 6,000/6,000  discriminator loss, nats 1.3486  1,196 digits/s  0 min 00 s left

A separate classifier finds the class asked for in 99.0 % of 5,000 samples. In its features the Fréchet
distance to the test digits (as in FID, see the README) is 0.6.
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
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

# %% Settings: the published run's value, what it is, its range; `--help` prints them
NAME, LOSS, ITEMS = "gan", "discriminator loss, nats", "digits"
NULL = 10  # the null label: no class given
SETTINGS = {
    "steps": (6000, "steps, each one of the discriminator and one of the generator", 1, 10**9),
    "batch_size": (64, "real digits per step, and as many generated ones", 2, 10**6),
    "lr": (1e-3, "peak learning rate of both Adams", 0, 10),
    "channels": (32, "feature maps, D at 14 x 14, G at 28 x 28; 4 times as many at 7 x 7", 1, 10**4),
    "latent_dim": (64, "dimensions of the latent z", 1, 10**5),
    "gamma": (1.0, "weight of R1, the gradient penalty at real digits; 0 leaves it out", 0, 1000),
    "label_dropout": (0.1, "share of digits under the null label; 1 gives an unconditional model", 0, 1),
}

# %% Model: a generator that turns noise into digits, a discriminator that tells generated from real
class Generator(nn.Module):
    """z (B, Z) and classes y (B,), 0..9 or NULL, to images (B, 1, 28, 28) in [0, 1]."""
    def __init__(self, channels=32, latent_dim=64, conditional=True):
        super().__init__()
        self.latent_dim, self.conditional, self.label = latent_dim, conditional, nn.Embedding(11, latent_dim)
        C = channels
        self.net = nn.Sequential(
            nn.Linear(2 * latent_dim, 49 * 4 * C), nn.LeakyReLU(0.2), nn.Unflatten(1, (4 * C, 7, 7)),
            nn.ConvTranspose2d(4 * C, 2 * C, 4, 2, 1), nn.LeakyReLU(0.2),  # (B, 2C, 14, 14)
            nn.ConvTranspose2d(2 * C, C, 4, 2, 1), nn.LeakyReLU(0.2),  # (B, C, 28, 28)
            nn.Conv2d(C, 1, 3, padding=1))

    def forward(self, z, y):
        z, e = (F.normalize(v) * v.shape[1] ** 0.5 for v in (z, self.label(y)))  # onto spheres of one radius
        return self.net(torch.cat([z, e], 1)).float().sigmoid()

    def labels(self, y, n):
        """y as (n,) classes; None draws them from p(y), uniform. An unconditional model knows NULL alone."""
        y = torch.randint(10, (n,)) if y is None else torch.as_tensor(y)
        return (y if self.conditional else torch.tensor(NULL)).to(self.label.weight.device).expand(n)

    @torch.no_grad()
    def sample(self, n, y=None, z=None):
        """n images (n, 1, 28, 28) in [0, 1]; y: None (drawn), a class or (n,) classes; z (n, Z) if given."""
        y = self.labels(y, n)
        return self(torch.randn(n, self.latent_dim, device=y.device) if z is None else z, y)

class Discriminator(nn.Module):
    """Logits (B,) of D(x, y), the probability that images x (B, 1, 28, 28) of classes y (B,) are real."""
    def __init__(self, channels=32):
        super().__init__()
        C = channels
        self.features = nn.Sequential(
            nn.Conv2d(1, C, 4, 2, 1), nn.LeakyReLU(0.2),  # (B, C, 14, 14)
            nn.Conv2d(C, 2 * C, 4, 2, 1), nn.LeakyReLU(0.2),  # (B, 2C, 7, 7)
            nn.Conv2d(2 * C, 4 * C, 3, padding=1), nn.LeakyReLU(0.2), nn.Flatten())
        self.top = nn.Sequential(nn.Linear(49 * 4 * C + 1, 256), nn.LeakyReLU(0.2))
        self.real, self.label = nn.Linear(256, 1), nn.Embedding(11, 256)
        nn.init.zeros_(self.label.weight)

    def forward(self, x, y):
        h = self.features(2 * x - 1)
        minibatch_std = (h.float().var(0) + 1e-4).sqrt().mean().expand(len(h), 1)  # how much a batch varies
        h = self.top(torch.cat([h, minibatch_std], 1)).float()
        return self.real(h)[:, 0].float() + (self.label(y) * h).sum(1) / 16  # projection: how h fits y

def discriminator_loss(real, fake):
    """-E log D(x) - E log(1 - D(G(z))), from the logits of D, (B,) each (eq. 1 with the sign turned)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()

def generator_loss(fake):
    """-E log D(G(z)), the non-saturating loss, from the logits of D (B,)."""
    return F.softplus(-fake).mean()

def r1_penalty(logits, x):
    """E ‖∂ logit / ∂x‖² over real images x (B, 1, 28, 28) (Mescheder et al. 2018, eq. 9 without γ / 2)."""
    gradient, = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()

def drop_labels(y, rate):
    """Labels (B,), each the null label with probability `rate`: one network learns p(x | y) and p(x)."""
    return torch.where(torch.rand(len(y), device=y.device) < rate, NULL, y)

# %% Training
def main(argv=None):
    run = Run(argv)  # flags, output folder, resuming: the frame, at the end of this file
    x, y, x_test, y_test, run.source = mnist(run.stand_in, run.device)
    n = len(x) * 11 // 12  # the last twelfth (5,000 digits of MNIST) is for validation
    run.baselines = {"discriminator loss if D = 1/2, nats": 2 * math.log(2)}

    torch.manual_seed(run.seed)
    G, D = Generator(run.channels, run.latent_dim, run.label_dropout < 1), Discriminator(run.channels)
    for net in (G, D):
        net.to(run.device, memory_format=torch.channels_last)  # how convolutions are fastest
    decay = max(0.0, 1 - 10 / run.steps)  # the EMA of G's weights looks back over a tenth of the run
    ema = AveragedModel(G, multi_avg_fn=get_ema_multi_avg_fn(decay))
    optimizer_G, optimizer_D = (
        torch.optim.Adam(net.parameters(), lr=run.lr, betas=(0.0, 0.99), fused=True) for net in (G, D))
    schedule_G, schedule_D = (torch.optim.lr_scheduler.OneCycleLR(
        optimizer, run.lr, total_steps=run.steps, pct_start=0.06, cycle_momentum=False)
        for optimizer in (optimizer_G, optimizer_D))
    for step in run.loop(G=G, D=D, ema=ema, optimizer_G=optimizer_G, optimizer_D=optimizer_D,
                         schedule_G=schedule_G, schedule_D=schedule_D):
        i = torch.randint(n, (run.batch_size,), device=run.device)
        labels, penalise = drop_labels(y[i], run.label_dropout), step % 4 == 0  # R1 at every 4th step
        real = (x[i] / 255).requires_grad_(penalise)
        with run.autocast():  # the discriminator's step
            fake = G(torch.randn(run.batch_size, run.latent_dim, device=run.device), labels)
            logits_real, logits_fake = D(real, labels), D(fake.detach(), labels)
        loss = discriminator_loss(logits_real, logits_fake)
        penalty = 4 * run.gamma / 2 * r1_penalty(logits_real, real) if penalise else 0
        optimizer_D.zero_grad()
        (loss + penalty).backward()
        optimizer_D.step()

        D.requires_grad_(False)  # the generator's step: gradients flow through D, not into it
        with run.autocast():
            logits_fake = D(fake, labels)
        optimizer_G.zero_grad()
        generator_loss(logits_fake).backward()
        optimizer_G.step()
        D.requires_grad_(True)
        schedule_G.step()
        schedule_D.step()
        ema.update_parameters(G)
        if run.log(loss):  # a status line; True every 20 s and at the end
            with torch.no_grad():
                c = G.labels(y, len(y))  # all NULL in a model without classes
                seen, unseen = D(x[:1000] / 255, c[:1000]), D(x[n:][:1000] / 255, c[n:][:1000])
                fake = D(ema.module.sample(len(seen), y[:1000]), c[:1000])
            means = [logits.sigmoid().mean().item() for logits in (seen, unseen, fake)]
            samples = grid(ema.module.sample(40, torch.arange(40) % 10), f"samples, step {step:,}")
            run.save(discriminator_loss(unseen, fake).item(), samples, D=means)
    evaluate(run, ema.module, x[:n][:10000], y[:n][:10000], y_test)

# %% That is the whole idea. Below: what the trained model can do, and the frame that every chapter shares.
# %% Evaluation: a saved model, pictures, nearest neighbours
def load(path=f"out/{NAME}/model.pt", device="cpu"):
    """The generator of a saved run with its EMA weights, ready to sample."""
    try:
        assert (saved := torch.load(path, map_location="cpu", weights_only=True))["name"] == NAME
        s = saved["settings"]
        ema = AveragedModel(Generator(s["channels"], s["latent_dim"], s["label_dropout"] < 1))
        ema.load_state_dict(saved["state"]["ema"])
    except Exception as error:  # a damaged file breaks in many ways
        raise OSError(f"{path} is missing, damaged, or no checkpoint of {NAME}.py") from error
    return ema.module.to(device).eval()

def grid(images, title, rows="", cols="0123456789"):
    """A figure of images (N, 1, 28, 28) in [0, 1], ten to a row, with names of rows and columns."""
    tiles = images.float().cpu().view(-1, 10, 28, 28).transpose(1, 2).flatten(2).flatten(0, 1).numpy()
    ax = Figure(figsize=(6.2, len(tiles) / 56 + 1.1), layout="constrained").subplots()
    ax.imshow(tiles, cmap="gray_r", vmin=0, vmax=1)
    ax.set(xticks=range(14, 280, 28), xticklabels=cols, title=title, frame_on=False)
    ax.set(yticks=range(14, 28 * len(rows), 28), yticklabels=rows)
    ax.tick_params(length=0)
    return ax.figure

def nearest(images, x):
    """For each image (N, 1, 28, 28) in [0, 1] the nearest of uint8 images x: its index, (N,)."""
    return torch.cdist(images.flatten(1), x.flatten(1) / 255).argmin(1)

@torch.no_grad()
def evaluate(run, model, x, y, y_test):
    """Figures and pictures, with uint8 training images x of classes y to compare with."""
    torch.manual_seed(1)
    digit, names = torch.arange(10, device=x.device), list("0123456789")
    samples, z = model.sample(100, digit.repeat(10)), torch.randn(8, model.latent_dim, device=x.device)
    shares = y[nearest(model.sample(2000), x)].bincount(minlength=10) / 2000
    real = y_test.bincount(minlength=10) / len(y_test)
    run.report({
        "discriminator loss on unseen digits, nats": run.curve[-1]["validation"],
        "rarest class of 2,000 samples of drawn classes, against its share": (shares / real).min().item(),
        "commonest class of 2,000 samples of drawn classes, against its share": (shares / real).max().item()})
    run.picture("samples.png", grid(samples, "samples by class"))
    styles = model.sample(80, digit.repeat(8), z.repeat_interleave(10, 0))
    run.picture("style.png", grid(styles, "one z a row, one class a column: z is the style"))
    walk = [z[k - 1].lerp(z[k], u / 10).repeat(10, 1) for k in range(8) for u in range(10)]
    run.picture("interpolation.gif", *(grid(model.sample(10, digit, step), "a walk in z") for step in walk))
    pairs = torch.cat([samples[:10], x[nearest(samples[:10], x)] / 255])
    run.picture("neighbours.png", grid(pairs, "below each sample the nearest of 10,000 training digits"))
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps, means = [p["step"] for p in run.curve], [p["D"] for p in run.curve]
    left.plot(steps, means, label=["training digits", "unseen digits", "generated digits"])
    left.set(title="mean D(x): 0.5 means it cannot tell real from generated", xlabel="step", ylabel="D(x)")
    left.legend()
    right.bar(names, 100 * shares.cpu())
    right.plot(names, 100 * real.cpu(), "_", color="black", ms=20)
    right.set(title="classes of 2,000 samples, and of test digits (lines)", xlabel="class", ylabel="%")
    run.picture("game.png", figure)

# %% Notes
# Differs from the paper: DCGAN's convolutions (Radford, Metz & Chintala 2016, 1511.06434) at 28 x 28, without
# batch normalisation; R1 (Mescheder, Geiger & Nowozin 2018, 1801.04406) at every fourth step with four times
# the weight; the class by projection (Miyato & Koyama 2018, 1802.05637); minibatch standard deviation at the
# last layer (Karras et al. 2018, 1710.10196); samples from an EMA (running mean) of G's weights; D's output
# is a logit; Adam with one cycle of the learning rate.
#
# Things to break:
# 1. In `generator_loss`, return F.softplus(fake).mean(), a wrong sign: G helps D, whose loss falls to 0.
# 2. Set --gamma 0: in `game`, D(x) of training digits and of generated ones drift apart.
# 3. Set --latent-dim 1: on a sphere of one dimension z is −1 or +1, and each row of `style` is one of two.
#
# References: a GAN of today is R3GAN (Huang et al. 2025, 2501.05441). Read before: vae.py. Next: realnvp.py.

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
