"""Classifiers fed by vae.py and its sisters: are samples as good as digits (Ravuri & Vinyals 2019)?

Digits are dear; samples are cheap, and bring their label. Can a classifier learn from samples?

**Instead of digits.** The model p(x, y) draws images x, labels y. The classifier q(y | x) lowers

    E_p[−log q(y | x)] = E_p[−log p(y | x) + log(p(y | x) / q(y | x))]        add, subtract log p
                       = E_p[H(p(y | x)) + KL(p(y | x) ‖ q(y | x))]           mean over y given x

with H the entropy. Only the KL has q in it. It is 0 for q(y | x) = p(y | x): the best classifier is
Bayes' rule of the model, errors and all. Say two classes are equally frequent, A to D are images:

                      A       B       C       D
    p(x | y = 0)     0.9     0.1      0       0       of four Bs three are drawn as a 1
    p(x | y = 1)      0      0.3     0.7      0       D is never drawn, p(D) = 0: its KL counts 0
    p(y = 1 | x)      0      0.75     1       ?       H at B is 0.56, the loss 0.2 · 0.56 = 0.11

So what a model draws wrongly is learnt wrongly; what it never draws is not learnt. The error on
real digits counts both (arXiv:1905.10887, 1807.09499). But the chapters' models learnt from 55,000
labels. So this error tells how much of those a model has kept; samples are no cure for few labels.

**Beside digits.** Let S be samples of a model trained on digits D alone, and T the truth, how
people write. S is made of D and dice, so p(S | D, T) = p(S | D), and

    p(T | D, S) = p(T | D) p(S | D, T) / p(S | D) = p(T | D)       Bayes' rule, D known throughout

Given D, S holds no news of T (the data processing inequality). It only leads training elsewhere: to
a model, between two styles lies a style. To move digits adds news, ours: a moved seven is a seven.

Test digits misread, %, means of 3, each within 1.6: 300 real 12.7, moved 5.6, + a VAE of them 12.5;
5,000 real 2.8, all 1.7. From 5,000 samples; last, how many of them "all" reads as another class:
                      vae    vqvae    gan    realnvp    ddpm    ddpm-unguided    ebm
    alone             5.0     3.8     3.6      6.6       8.3         6.1         4.0
    + 300 real        4.7     3.9     3.7      5.5       7.3         5.4         3.9
    read otherwise    2.8     1.8     1.5     10.1       0.7         7.1         1.0
166 s of an AMD EPYC, plus drawing; realnvp.py had |s| < 2. Guidance pays for sure digits with rare
styles. (VSehwag/minimal-diffusion, a ResNet-50: 50,000 samples 1.0.) First move your digits.
"""

import argparse
import importlib
import io
import sys
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

import vae
from data import mnist
from vae import VAE, Run, add_common_flags, grid, load_checkpoint, positive_int

GREY = ["vae", "vqvae", "gan", "realnvp", "ddpm", "ddpm-unguided", "ebm"]  # not black and white


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--models", nargs="*", default=GREY, choices=GREY, help="chapters")
    parser.add_argument("--runs", default="out", help="folder of the chapters' runs")
    parser.add_argument("--digits", type=positive_int, default=300, help="how many are few")
    parser.add_argument("--samples", type=positive_int, default=5000, help="of each; this is many")
    parser.add_argument("--repeats", type=positive_int, default=3, help="each with other digits")
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps of a classifier")
    parser.add_argument("--vae-steps", type=int, default=6000, help="of a VAE of the few digits")
    parser.add_argument("--batch-size", type=positive_int, default=64, help="images a step")
    parser.add_argument("--lr", type=float, default=4e-3, help="peak learning rate of Adam")
    parser.add_argument("--classes", type=positive_int, default=10, help="how many there are")
    add_common_flags(parser, out="out/synthetic_data", save_every=250)
    return vae.parse(parser, argv)


# %% Samples
def chapter_samples(name, args, y, source):
    """Samples of classes y (N,), uint8 (N, 1, 28, 28): they take minutes, so a file keeps them."""
    module = importlib.import_module(name.split("-")[0])
    path = Path(args.runs, module.__name__, "model.pt")
    model = module.load(path, y.device)
    if load_checkpoint(path)["source"] != source:
        raise OSError("it learnt from other data")
    cache = args.out / "samples.pt"
    kept = torch.load(cache, weights_only=True) if cache.exists() else {}
    key = f"{len(y)} of {name}, {zlib.crc32(path.read_bytes())}"  # another run, another checksum
    if key not in kept:
        print(f"{key}: drawing ...", flush=True)
        torch.manual_seed(0)
        sample = getattr(module, "ddim_sample", type(model).sample)  # ddpm.py's fast one
        how = {"w": 1.0} if name == "ddpm-unguided" else {}  # 1: no guidance
        parts = [255 * sample(model, labels, **how) for labels in y.split(500)]
        kept[key] = torch.cat(parts).round().byte().cpu()
        content = io.BytesIO()
        torch.save(kept, content)
        vae.write(cache, content.getvalue())
    return kept[key].to(y.device)


def own_samples(x, y, labels, args):
    """The same from a VAE that is trained here, on the few digits x (N, 1, 28, 28) alone."""
    model = VAE(hidden=200, latent=10, classes=args.classes).to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, fused=True)
    for _ in range(args.vae_steps):
        batch = torch.randint(len(x), (50,), device=x.device)
        loss = -model.elbo(vae.binarise(x[batch]), y[batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (255 * model.sample(labels)).round().byte()


def arms_of(repeat, args, x, y, samples, labels):
    """What each classifier is fed, its arm: parts (images, labels, pixels to move at most)."""
    torch.manual_seed(1000 * args.seed + repeat)
    order = torch.randperm(len(x), device=x.device)
    few, many = order[: args.digits], order[: args.samples]
    print(f"a VAE of {args.digits} digits ...", flush=True)
    samples = {"own vae": own_samples(x[few], y[few], labels, args)} | samples
    real = (x[few], y[few], 0)
    arms = {"few": [real], "few, moved": [(x[few], y[few], 2)]}
    for name, images in samples.items():
        arms[f"few + {name}"] = [real, (images, labels, 0)]
        arms[f"{name} alone"] = [(images, labels, 0)]
    arms |= {"many": [(x[many], y[many], 0)], "all": [(x, y, 0)]}
    return {f"{name}: {repeat}": parts for name, parts in arms.items()}


def draw_batch(parts, size):
    """Images in [0, 1] and labels, as many from each part: of two, half are real, half samples."""
    images, labels = [], []
    for x, y, far in parts:
        chosen = torch.randint(len(x), (size // len(parts),), device=x.device)
        down_and_right = torch.randint(-far, far + 1, (2,)).tolist()
        images.append(x[chosen].roll(down_and_right, dims=(2, 3)) / 255)
        labels.append(y[chosen])
    return torch.cat(images), torch.cat(labels)


# %% Model
def classifier(classes):
    """From images (B, 1, 28, 28) to logits of their class, (B, classes)."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2),  # (B, 16, 14, 14)
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, stride=2, padding=2),  # (B, 32, 7, 7)
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, classes),
    )


# %% Training
def main(argv=None):
    args = parse_flags(argv)
    x, y, x_test, y_test, source = mnist(args.stand_in, args.device, args.classes)
    n = len(x) * 11 // 12  # the last twelfth, 5,000 digits of MNIST, is for validation
    labels = y.unique().repeat(args.samples)[: args.samples]  # as many of each class
    samples = {}
    for name in args.models:
        try:
            samples[name] = chapter_samples(name, args, labels, source)
        except (OSError, RuntimeError):  # RuntimeError: the weights are of an older script
            print(f"no {name} of these data: run `python {name.split('-')[0]}.py`", flush=True)
    args.models = list(samples)  # --resume needs the same
    arms = {}
    for repeat in range(args.repeats):
        arms |= arms_of(repeat, args, x[:n], y[:n], samples, labels)

    torch.manual_seed(args.seed)
    model = nn.ModuleDict({name: classifier(args.classes) for name in arms}).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    run = Run(args, source, n, "−log q(y | x), nats", model=model, optimizer=optimizer)
    for step in run.steps():
        optimizer.param_groups[0]["lr"] = args.lr * vae.warmup_cosine(step / args.steps)
        losses = []
        for name, parts in arms.items():  # the classifiers share no weights
            images, classes = draw_batch(parts, args.batch_size)
            with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
                logits = model[name](images).float()
            losses.append(F.cross_entropy(logits, classes))
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss / len(arms))
        if step % args.save_every == 0 or step == args.steps:
            with torch.no_grad():
                losses = [F.cross_entropy(net(x[n::5] / 255), y[n::5]) for net in model.values()]
            run.save(torch.stack(losses).mean().item())
    evaluate(run, model, arms, x_test, y_test)


# %% Evaluation
def load(path="out/synthetic_data/model.pt", device="cpu"):
    """All classifiers of a finished or unfinished run by name: "few + vae: 0" is one."""
    saved = load_checkpoint(path)
    names = dict.fromkeys(key.split(".")[0] for key in saved["model"])
    model = nn.ModuleDict({name: classifier(saved["flags"]["classes"]) for name in names})
    model.load_state_dict(saved["model"])
    return model.to(device).eval()


@torch.no_grad()
def evaluate(run, model, arms, x, y):
    """Results and pictures for test images x (N, 1, 28, 28) of classes y (N,)."""
    results, losses = {}, {}
    axes = Figure(figsize=(8, 6), layout="constrained").subplots()
    for name, net in model.items():  # name[:-3]: without the repeat, ": 0"
        logits = net(x / 255)
        losses[name] = F.cross_entropy(logits, y, reduction="none")
        results[f"test error, {name}"] = (logits.argmax(1) != y).float().mean().item()
        axes.plot(100 * results[f"test error, {name}"], name[:-3], "o", color="tab:blue")
    axes.invert_yaxis()
    axes.set(xlim=(0, None), xlabel="test digits misread, %", title="what the classifier was fed")
    rows = []
    for name in [name for name in arms if name.endswith(" alone: 0")]:  # [:-9]: "vae"
        images, labels, _ = arms[name][0]
        other = model["all: 0"](images / 255).argmax(1) != labels
        results[f"read otherwise, {name[:-9]}"] = other.float().mean().item()
        hardest = (losses[name] - losses["all: 0"]).argsort(descending=True)
        rows += [images[:10] / 255, x[hardest[:10]] / 255]
    run.report(results)
    run.picture("errors.png", axes.figure)
    title = "samples; below, what they do not teach:\nown vae, " + ", ".join(run.args.models)
    run.picture("samples.png", grid(torch.cat(rows), title))


if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on, --resume --steps 0 evaluates the last checkpoint")
