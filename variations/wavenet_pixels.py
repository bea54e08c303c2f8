"""An image as a line, on wavenet.py: its layers draw digits (van den Oord 2016, arXiv:1609.03499).

What does a network for sound make of an image? Read row by row, a digit is a line of 784 pixels,
each ink (1) or paper (0). The product rule is that of wavenet.py and of pixelcnn.py:

    log p(x | y) = Σ_t log p(x_t | x_1, …, x_{t−1}, y)        t = 1 to 784; y: which digit it is

The layers are those of wavenet.py, imported as they are: each looks at h_t and h_{t−d}. Only the
ends are new. Into column t goes x_{t−1} (ink 1, paper −1, nothing yet 0) and a vector learned for
the place t; out comes one number, the logit of ink at x_t.

On a line the pixel above is far away. How many layers does it take to see it? Column t holds
x_{t−1}; so for x_{t−k} layers have to step back by k − 1 places in all, each by its d or not at
all. In wavenet.py d doubles; ten layers have 1, 2, 4, …, 512. Every number up to 1,023 is a sum of
different powers of two, so no pixel is out of sight: there is no blind spot. But look at the
neighbours, and at the second column, for another ten dilations:

                               d = 1, 2, 4, …, 512        1, 2, 4, 8, 16, 24, 28, 56, 112, 224
    left            k = 1      0: it is what goes in      0
    above, right    k = 27     26 = 16 + 8 + 2            24 + 2
    above           k = 28     27 = 16 + 8 + 2 + 1        24 + 2 + 1
    above, left     k = 29     28 = 16 + 8 + 4            28
    two above       k = 56     55 = 32 + 16 + 4 + 2 + 1   28 + 24 + 2 + 1

The second ten, the default, know that a row has 28 pixels: 28, 56, 112 and 224 climb 1, 2, 4 and 8
rows. They see all of the last 476 pixels, 17 rows. In pixelcnn.py one layer sees all neighbours.

Measured on MNIST, one core of an AMD EPYC (bfloat16), others busy; −log p(x | y), exact, in nats
(one less: x is e times as probable). Every fifth test image: 81.80 after 189 seconds of training.
Validation: 82.57; pixelcnn.py 82.66 after 4,000 of its 14,000 steps (199 s, its rate still high),
in the end 79.71 (695 s). After 1,000 steps: d = 1, 2, 4, … 85.01, the second ten 84.72, one run
each. A separate classifier finds the class asked for in 86.1 % of 1,000 samples.

So the line is not far behind: where on it the neighbours are, its layers find out. It gains that no
mask is needed and, with doubled d, no pixel hidden; it loses that "near" now means few layers back.
view.png shows it: one step away are pixels above and to the left, in column 13, but also in column
17, and that column counts more than those beside it. When to use it: for what has no rows.
"""

import argparse
import math
import sys

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from data import mnist
from pixelcnn import binarise, grid, log_prob_of_many, ten_classes
from wavenet import (
    Layer,
    Run,
    add_common_flags,
    load_checkpoint,
    parse,
    positive_int,
    warmup_cosine,
)


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=2200, help="optimiser steps")
    parser.add_argument("--batch-size", type=positive_int, default=8, help="images a step")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate of Adam")
    parser.add_argument("--channels", type=positive_int, default=64, help="numbers in h_t: C")
    back = "pixels each layer looks back, first to last"
    ten = [1, 2, 4, 8, 16, 24, 28, 56, 112, 224]
    parser.add_argument("--dilations", type=positive_int, nargs="+", default=ten, help=back)
    parser.add_argument("--classes", type=positive_int, default=10, help="10: the digit is given")
    add_common_flags(parser, out="out/wavenet_pixels", save_every=800)
    return parse(parser, argv)


# %% Model
class PixelWaveNet(nn.Module):
    """p(x | y) of binary images x (B, 1, 28, 28) of classes y (B,), pixel by pixel."""

    def __init__(self, channels, dilations, classes=10):
        super().__init__()
        self.classes = classes
        self.pixel = nn.Linear(1, channels)
        self.place = nn.Parameter(torch.zeros(28 * 28, channels))
        self.label = nn.Embedding(classes, channels)
        self.layers = nn.ModuleList(Layer(channels, d) for d in dilations)
        self.head = nn.Sequential(
            nn.ReLU(), nn.Linear(channels, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, 1)
        )

    def forward(self, x, y):
        """The logits of ink, (B, T + 1): for each pixel of lines x (B, T) and the one to come."""
        e = self.label(y)[:, None]  # the same at all places
        before = F.pad(2 * x - 1, (1, 0))  # x_{t−1}; 0 at the beginning
        h = self.pixel(before[:, :, None]) + self.place[: before.shape[1]]
        total = 0
        for layer in self.layers:
            past = F.pad(h, (0, 0, layer.dilation, 0))[:, : h.shape[1]]  # d pixels ago, or 0
            h, skip = layer(h, past, e)
            total = total + skip
        return self.head(total)[:, :, 0].float()  # back to float32 after bfloat16

    def log_prob(self, x, y):
        """log p(x | y), exact, nats (B,)."""
        line = x.flatten(1)  # row after row
        logits = self(line[:, :-1], y)  # nothing comes after the last pixel
        return -F.binary_cross_entropy_with_logits(logits, line, reduction="none").sum(1)

    # h_t never changes once it is known. So, as in wavenet.py, each layer keeps its last d inputs
    # in a queue: place t mod d holds h_{t−d}, which is read, and h_t takes its place. A pixel costs
    # one column of the network, not the whole line before it.
    @torch.no_grad()
    def sample(self, y):
        """Draw an image for each class in y (B,), pixel after pixel, (B, 1, 28, 28)."""
        e = self.label(y)
        queues = [e.new_zeros(layer.dilation, *e.shape) for layer in self.layers]
        before = e.new_zeros(len(y), 1)
        line = []
        for t in range(28 * 28):
            h = self.pixel(before) + self.place[t]
            total = 0
            for layer, queue in zip(self.layers, queues):
                place = t % layer.dilation
                now = h
                h, skip = layer(now, queue[place], e)
                queue[place] = now
                total = total + skip
            pixel = torch.bernoulli(self.head(total).sigmoid())
            before = 2 * pixel - 1
            line.append(pixel)
        return torch.cat(line, dim=1).view(-1, 1, 28, 28)


# %% Training
def main(argv=None):
    args = parse_flags(argv)
    x, y, x_test, y_test, source = mnist(args.stand_in, args.device, args.classes)
    n = len(x) * 11 // 12  # the last twelfth, 5,000 digits of MNIST, is for validation
    torch.manual_seed(0)  # validation and test images are drawn as in pixelcnn.py; every fifth
    x_valid, y_valid = binarise(x[n::5]), y[n::5]
    x_test, y_test = binarise(x_test)[::5], y_test[::5]

    torch.manual_seed(args.seed)
    model = PixelWaveNet(args.channels, args.dilations, args.classes).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99), fused=True)
    run = Run(args, source, n, "NLL, nats", model=model, optimizer=optimizer)
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
            run.save(-log_prob_of_many(model, x_valid, y_valid).mean().item())
            samples = model.sample(ten_classes(y).repeat(2))
            run.picture("samples.png", grid(samples, f"samples, step {step:,}"))
    evaluate(run, model, x_test, y_test)


# %% Evaluation
def load(path="out/wavenet_pixels/model.pt", device="cpu"):
    """The model of a finished or unfinished run, ready to sample."""
    saved = load_checkpoint(path)
    flags = saved["flags"]
    model = PixelWaveNet(flags["channels"], flags["dilations"], flags["classes"])
    model.load_state_dict(saved["model"])
    return model.to(device).eval()


def fewest_steps(dilations):
    """The fewest layers that step back 0, 1, …, 783 places in all, (784,); ∞ if none do."""
    fewest = torch.full((28 * 28,), torch.inf)
    fewest[0] = 0
    for d in dilations:  # a further layer steps back by d, or not
        with_step = F.pad(fewest, (d, 0), value=torch.inf)[: 28 * 28] + 1
        fewest = fewest.minimum(with_step)
    return fewest


# A pixel that is paper in all images has a gradient, too, but it never matters. So it is multiplied
# by how much the pixel varies, its standard deviation.
@torch.enable_grad()
def influence(model, x, y, t):
    """How much the logit of pixel t moves with each pixel, a mean over images x, (28, 28)."""
    line = x.flatten(1).clone().requires_grad_()
    logit = model(line[:, :-1], y)[:, t].sum()  # each image's logit depends on this image only
    (gradient,) = torch.autograd.grad(logit, line)
    spread = x.flatten(1).std(0, correction=0)
    return (gradient.abs().mean(0) * spread).view(28, 28).cpu()


@torch.no_grad()
def evaluate(run, model, x, y):
    """Results and pictures for binarised test images x (N, 1, 28, 28) of classes y (N,)."""
    torch.manual_seed(1)
    print(f"scoring {len(x):,} test images ...", flush=True)
    nll = -log_prob_of_many(model, x, y)
    results = {"half ink, half paper, nats": 28 * 28 * math.log(2)}
    results["NLL, nats"] = nll.mean().item()
    results["NLL, standard error"] = nll.std().item() / len(x) ** 0.5
    run.report(results)
    samples = model.sample(ten_classes(y).repeat(10))
    run.picture("samples.png", grid(samples, "samples, one class a column"))

    t = 28 * 14 + 14  # of the pixel in row 14, column 14
    steps = torch.full((28 * 28,), torch.nan)
    steps[:t] = fewest_steps(run.args.dilations)[:t].flip(0)
    gradient = influence(model, x[:40], y[:40], t)
    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = left.imshow(steps.view(28, 28).numpy(), cmap="viridis_r")
    figure.colorbar(shown, label="layers that have to step back")
    left.set_title("how far from the red pixel, on the line")
    shown = right.imshow(gradient.sqrt().numpy(), cmap="magma_r")
    figure.colorbar(shown, label="√ of mean |gradient| · standard deviation")
    right.set_title("how much it depends on them, after training")
    for axes in (left, right):
        axes.plot(14, 14, "s", color="red")
        axes.set(xlabel="column", ylabel="row")
    run.picture("view.png", figure)


if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on, --resume --steps 0 evaluates the last checkpoint")
