"""PixelRNN on char_rnn.py: LSTMs that draw digits (van den Oord et al. 2016, arXiv:1601.06759).

char_rnn.py reads a text letter by letter and keeps in mind, in the state h and c of an LSTM, what
it needs. Can it read an image pixel by pixel? Row by row a digit is a line of 784 pixels, each ink
(1) or paper (0), and with y, which digit it is,

    log p(x | y) = Σ_t log p(x_t | x_1, …, x_{t−1}, y)               the product rule, as for a text

Nothing has to be changed, but it is hard. The pixel above, which says most about a pixel, was read
28 steps ago: the state has to carry a whole row along. And 784 steps, one after another, are slow.

The remedy: 28 readers, one for each row, all the same LSTM. A reader reads its own row only and
hears, as a second input, the h of the reader above. That one must be ahead, so that it has
something to tell: each reader starts 3 steps (`--lag`) after the one above. Below, for 5 columns,
the time at which each pixel is predicted, and what is known to the one at @:

    row 1     0   1   2   3   4               1  1  1  1  ?       1  known
    row 2     3   4   5   6   7               1  1  1  ?  ?       ?  before @, but not known
    row 3     6   7   8   9  10               1  @  .  .  .

@ is predicted at time 7. Its reader has read what is to the left, and hears the h of time 6 from
above. There column 4 was predicted, from columns 1 to 3. That reader in turn had heard from above,
and so on. Whatever reaches a reader comes from its own row, from the left, or from rows above: from
pixels before @ in the order of reading, so the product rule holds as it stands. Unknown remains a
wedge, the blind spot of pixelcnn.py; a larger lag makes it narrower and takes more time. (In the
paper's Diagonal BiLSTM each row lags by one, and a second LSTM from the right fills the wedge.)

What is gained: 28 + 27 · 3 = 109 steps instead of 784, with up to ten readers in each. Samples,
too, are drawn along slanted lines, all pixels of one time at once: see drawing.gif.

Measured on MNIST, one core of an AMD EPYC (bfloat16), others busy; −log p(x | y), exact, in nats
(one less: x is e times as probable). Every fifth test image: 85.27 after 800 steps, 178 seconds of
training. Validation: 85.85; pixelcnn.py 82.66 after 4,000 of its 14,000 steps (199 s), in the end
79.71 (695 s). One reader of all 784 pixels (`--readers 1`) takes 1.0 s a step, not 0.2: in 119
seconds 110 steps, 140.8. The 28 had 90.24 after 300 steps, about 62 seconds. A separate classifier
finds the class asked for in 70.5 % of 1,000 samples.

When to use it: to see what a state can hold. Convolutions see many more images in the same time.
"""

import argparse
import math
import sys

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from char_rnn import (
    LSTM,
    Run,
    add_common_flags,
    load_checkpoint,
    parse,
    positive_int,
    warmup_cosine,
)
from data import mnist
from pixelcnn import binarise, grid, log_prob_of_many, ten_classes


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=800, help="optimiser steps")
    parser.add_argument("--batch-size", type=positive_int, default=16, help="images a step")
    parser.add_argument("--lr", type=float, default=6e-3, help="peak learning rate of Adam")
    parser.add_argument("--hidden", type=positive_int, default=128, help="units of the LSTM: H")
    readers = "28: one for each row; 1: one for the whole image"
    parser.add_argument("--readers", type=int, choices=[1, 28], default=28, help=readers)
    lag = "steps from the start of a reader to that of the one below, 1 to 28"
    parser.add_argument("--lag", type=int, choices=range(1, 29), default=3, help=lag, metavar="L")
    parser.add_argument("--classes", type=positive_int, default=10, help="10: the digit is given")
    add_common_flags(parser, out="out/rnn_pixels", save_every=300)
    return parse(parser, argv)


# %% Model
class PixelRNN(nn.Module):
    """p(x | y) of binary images x (B, 1, 28, 28) of classes y (B,): R readers of W pixels each."""

    def __init__(self, hidden=128, readers=28, lag=3, classes=10):
        super().__init__()
        self.classes = classes
        self.hidden = hidden
        self.lag = lag
        self.pixel = nn.Linear(1, 64)
        self.place = nn.Parameter(torch.zeros(readers, 28 * 28 // readers, 64))  # (R, W, 64)
        self.label = nn.Embedding(classes, 64)
        self.lstm = LSTM(64 + hidden, hidden, dropout=0.0)
        self.head = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    # At time t, reader i is at column t − lag · i of its row, if there is such a column. Those who
    # read are neighbours, `first` to `last`. All h are kept in one tensor, whose row 0 is an empty
    # reader above the first: rows first to last of it are heard, those one below are the readers'.
    def walk(self, x, y, noise=None):
        """Read images x (B, R, W): the logits of ink, (B, R, W).

        Given noise (B, R, W), uniform in [0, 1], it draws instead, and puts the pixels into x: ink
        where the noise is below the probability of ink.
        """
        B, R, W = x.shape
        h = x.new_zeros(B, R + 1, self.hidden)
        c = x.new_zeros(B, R + 1, self.hidden)
        label = self.label(y)[:, None]
        before = F.pad(2 * x - 1, (1, 0))  # the pixel to the left: ink 1, paper −1; no pixel 0
        logits = torch.zeros_like(x)
        for t in range(W + self.lag * (R - 1)):
            rows = [i for i in range(R) if 0 <= t - self.lag * i < W]
            columns = [t - self.lag * i for i in rows]
            first, last = rows[0], rows[-1]
            pixel = self.pixel(before[:, rows, columns].unsqueeze(2))
            own = pixel + self.place[rows, columns] + label
            read = torch.cat([own, h[:, first : last + 1]], dim=2)
            new_h, new_c = self.step(read, h[:, first + 1 : last + 2], c[:, first + 1 : last + 2])
            h = torch.cat([h[:, : first + 1], new_h, h[:, last + 2 :]], dim=1)
            c = torch.cat([c[:, : first + 1], new_c, c[:, last + 2 :]], dim=1)
            logits[:, rows, columns] = self.head(new_h).squeeze(2).to(x.dtype)
            if noise is not None:
                p = logits[:, rows, columns].sigmoid()
                drawn = (noise[:, rows, columns] < p).to(x.dtype)
                x[:, rows, columns] = drawn
                before[:, rows, [j + 1 for j in columns]] = 2 * drawn - 1
        return logits

    def step(self, read, h, c):
        """One step of n readers: (B, n, inputs), (B, n, H), (B, n, H) to their new h and c."""
        _, new_h, new_c = self.lstm(read.flatten(0, 1)[:, None], h.flatten(0, 1), c.flatten(0, 1))
        return new_h.view_as(h), new_c.view_as(c)

    def forward(self, x, y):
        """The logit of ink at each pixel, (B, 1, 28, 28), from the class and the pixels before."""
        return self.walk(x.view(-1, *self.place.shape[:2]), y).view_as(x)

    def log_prob(self, x, y):
        """log p(x | y), exact, nats (B,)."""
        log_factors = -F.binary_cross_entropy_with_logits(self(x, y), x, reduction="none")
        return log_factors.flatten(1).sum(1)

    @torch.no_grad()
    def sample(self, y):
        """Draw an image for each class in y (B,), (B, 1, 28, 28)."""
        noise = torch.rand(len(y), *self.place.shape[:2], device=y.device)
        x = torch.zeros_like(noise)
        self.walk(x, y, noise)
        return x.view(-1, 1, 28, 28)


# %% Training
def main(argv=None):
    args = parse_flags(argv)
    x, y, x_test, y_test, source = mnist(args.stand_in, args.device, args.classes)
    n = len(x) * 11 // 12  # the last twelfth, 5,000 digits of MNIST, is for validation
    torch.manual_seed(0)  # validation and test images are drawn as in pixelcnn.py; every fifth
    x_valid, y_valid = binarise(x[n::5]), y[n::5]
    x_test, y_test = binarise(x_test)[::5], y_test[::5]

    torch.manual_seed(args.seed)
    model = PixelRNN(args.hidden, args.readers, args.lag, args.classes).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99), fused=True)
    run = Run(args, source, n, "NLL, nats", model=model, optimizer=optimizer)
    for step in run.steps():
        optimizer.param_groups[0]["lr"] = args.lr * warmup_cosine(step / args.steps)
        batch = torch.randint(n, (args.batch_size,), device=args.device)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
            loss = -model.log_prob(binarise(x[batch]), y[batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 100.0)  # as in char_rnn.py, for 784 pixels
        optimizer.step()
        run.log(loss)
        if step % args.save_every == 0 or step == args.steps:
            run.save(-log_prob_of_many(model, x_valid, y_valid).mean().item())
            samples = model.sample(ten_classes(y).repeat(2))
            run.picture("samples.png", grid(samples, f"samples, step {step:,}"))
    evaluate(run, model, x_test, y_test)


# %% Evaluation
def load(path="out/rnn_pixels/model.pt", device="cpu"):
    """The model of a finished or unfinished run, ready to sample."""
    saved = load_checkpoint(path)
    sizes = [saved["flags"][name] for name in ("hidden", "readers", "lag", "classes")]
    model = PixelRNN(*sizes)
    model.load_state_dict(saved["model"])
    return model.to(device).eval()


@torch.enable_grad()
def influence(model, x, y, row, column):
    """Mean |gradient| of a logit, times the standard deviation of each pixel of x, (28, 28)."""
    spread = x.std((0, 1), correction=0)  # what is paper in all images never matters
    x = x.clone().requires_grad_()
    logit = model(x, y)[:, 0, row, column].sum()  # each image's logit depends on this image only
    (gradient,) = torch.autograd.grad(logit, x)
    return (gradient.abs().mean((0, 1)) * spread).cpu()


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

    readers, length, _ = model.place.shape
    time = torch.arange(length) + model.lag * torch.arange(readers)[:, None]
    time = time.view(28, 28)  # at which each pixel is predicted
    pages = []
    for t in torch.linspace(0, time.max(), 28):
        drawn = samples[:20].cpu().where(time <= t, torch.tensor(0.3))
        pages.append(grid(drawn, f"time {t:.0f}: pixels of one time are drawn at once"))
    run.picture("drawing.gif", *pages)

    axes = Figure(figsize=(5.5, 4.8), layout="constrained").subplots()
    shown = axes.imshow(influence(model, x[:40], y[:40], 14, 14).sqrt().numpy(), cmap="magma_r")
    axes.figure.colorbar(shown, label="√ of mean |gradient| · standard deviation")
    axes.plot(14, 14, "s", color="red")
    axes.set(title="what the red pixel depends on", xlabel="column", ylabel="row")
    run.picture("view.png", axes.figure)


if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on, --resume --steps 0 evaluates the last checkpoint")
