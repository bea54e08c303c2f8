"""PixelCNN++ on pixelcnn.py: grey levels by logistics (Salimans et al. 2017, arXiv:1701.05517).

pixelcnn.py knows ink and paper. What if a pixel has a grey level, 0 (paper) to 255? A softmax over
256 levels would do, but it does not know that 100 is next to 101: it has to learn each level from
examples of its own. PixelCNN++ spreads probability over all real numbers, by a smooth bell, and
gives each level what lies in its bin, from half a level below it to half a level above.

The bell is the logistic distribution, because the probability of being below v is then a function
that we have: σ((v − μ) / s), with the sigmoid σ(a) = 1 / (1 + e^−a), a middle μ and a width s. So

    p(k) = σ((k + ½ − μ) / s) − σ((k − ½ − μ) / s)        below the upper edge, not below the lower

    μ = 100, s = 2:    p(100) = σ(0.25) − σ(−0.25) = 0.562 − 0.438 = 0.124
                       p(101) = σ(0.75) − σ(0.25)  = 0.679 − 0.562 = 0.117
                       p(110) = σ(5.25) − σ(4.75)  = 0.9948 − 0.9914 = 0.0034

The first and the last bin have no outer edge: 0 takes all below ½, and 255 all above 254½. So all
levels together have probability 1, for each edge is added once and subtracted once:

    σ(½) + [σ(1½) − σ(½)] + … + [σ(254½) − σ(253½)] + [1 − σ(254½)] = 1       σ(v) for σ((v − μ)/s)

And μ may lie outside: with μ = −20, s = 2, paper has p(0) = σ(10.25) = 0.99996.

One bell cannot say "paper or ink, hardly between". So the network gives each pixel ten, each with
its weight w_j, and p(k) = Σ_j w_j p_j(k): 30 numbers instead of 256. If the weights sum to 1, so do
the levels. The rest is pixelcnn.py. Its loss, −log p(x | y), is stated in bits/dim, bits a pixel:
nats / (784 ln 2). One less, and a pixel's level is twice as probable.

Measured on MNIST, one core of an AMD EPYC (bfloat16), others busy, given the class, exact: 1.096
bits/dim of every fifth test image after 3,000 steps, 195 seconds (realnvp.py: a bound of 1.098; all
levels alike: 8). A separate classifier finds the class asked for in 65.3 % of 1,000 samples. A
softmax (`--logistics 0`) after 1,200 of 3,000 steps, validation: 1.130 in 116 seconds; logistics
then 1.140 in about 80, and 1.110 after 2,400; one run each. So step by step the softmax is slightly
ahead here, but its steps take 1.4 times as long, which about evens it out.

When to use it: for levels that are many, or smooth, as in photos. MNIST is neither: 81 % of its
pixels are 0, and a third of the others 252 to 255. A bell has to become very narrow for that.
"""

import argparse
import math
import sys

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from data import mnist
from pixelcnn import (
    PixelCNN,
    Run,
    add_common_flags,
    grid,
    load_checkpoint,
    log_prob_of_many,
    parse,
    positive_int,
    ten_classes,
    warmup_cosine,
)

BIT = 28 * 28 * math.log(2)  # nats an image that are one bit a pixel


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000, help="optimiser steps")
    parser.add_argument("--batch-size", type=positive_int, default=16, help="images a step")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate of Adam")
    parser.add_argument("--channels", type=positive_int, default=32, help="of a masked layer: C")
    parser.add_argument("--layers", type=positive_int, default=7, help="residual blocks")
    number = "K, how many each pixel has, up to 30; 0: a softmax of 256 levels"
    parser.add_argument(
        "--logistics", type=int, default=10, choices=range(31), help=number, metavar="K"
    )
    parser.add_argument("--classes", type=positive_int, default=10, help="10: the digit is given")
    add_common_flags(parser, out="out/pixelcnn_pp", save_every=1200)
    return parse(parser, argv)


# %% Model
# A difference of two sigmoids is lost in rounding if both are almost 1. But σ(a) = e^a / (1 + e^a)
# and σ(−b) = 1 / (1 + e^b), so
#
#     σ(a) − σ(b) = (e^a − e^b) / ((1 + e^a) (1 + e^b))          the common denominator
#                 = σ(a) σ(−b) (1 − e^{b−a})                     e^a taken out
#
# and each factor has a safe logarithm. Here b − a = −1/s. The last factor mends what is counted
# twice; the outer bins have one edge only and need one factor.
def log_bin(level, mean, scale):
    """log p(level) of logistics, all in levels, of shapes that fit: nats."""
    below = F.logsigmoid((level + 0.5 - mean) / scale)  # the upper edge: log σ(a)
    above = F.logsigmoid(-(level - 0.5 - mean) / scale)  # the lower edge: log σ(−b)
    log_p = below + above + torch.log(-torch.expm1(-1 / scale))
    log_p = torch.where(level == 0, below, log_p)
    return torch.where(level == 255, above, log_p)


class GreyPixelCNN(PixelCNN):
    """p(x | y) of 8-bit images x (B, 1, 28, 28), levels k / 255, of classes y (B,)."""

    def __init__(self, channels=32, layers=7, classes=10, logistics=10):
        super().__init__(channels, layers, classes)
        self.logistics = logistics
        outputs = 3 * logistics if logistics > 0 else 256
        self.head = nn.Conv2d(2 * channels, outputs, 1)  # instead of one logit
        if logistics > 0:  # in the beginning the bells lie side by side
            self.head.bias.data[logistics:-logistics] = torch.linspace(-1, 1, logistics)

    def mixture(self, outputs):
        """log w, μ and s from outputs (B, 3 K, ...), each (B, K, ...)."""
        weight, mean, scale = outputs.chunk(3, dim=1)
        mean = 127.5 + 127.5 * mean  # in levels; networks like numbers from −1 to 1
        scale = (scale + 2).clamp(-2, 8).exp()  # 0.14 to 3,000 levels, at first about 7
        return weight.log_softmax(1), mean, scale

    def log_level(self, outputs, level):
        """log p of levels (B, 1, ...), nats (B, 1, ...), from outputs of the network."""
        if self.logistics == 0:
            return outputs.log_softmax(1).gather(1, level.long())
        log_weight, mean, scale = self.mixture(outputs)
        return torch.logsumexp(log_weight + log_bin(level, mean, scale), dim=1, keepdim=True)

    def log_prob(self, x, y):
        """log p(x | y), exact, nats (B,)."""
        level = (255 * x).round()
        return self.log_level(self(x, y), level).flatten(1).sum(1)

    # Which v has σ((v − μ) / s) = u? v = μ + s log(u / (1 − u)): with u uniform, a draw. Rounded to
    # the nearest level it falls into a bin as often as p says; what is beyond the ends goes there.
    def draw(self, outputs):
        """A level for each of the outputs (B, ...) of a pixel, (B, 1)."""
        if self.logistics == 0:
            return torch.multinomial(outputs.softmax(1), 1).float()
        log_weight, mean, scale = self.mixture(outputs)
        j = torch.multinomial(log_weight.exp(), 1)
        u = torch.rand(j.shape, device=j.device)
        v = mean.gather(1, j) + scale.gather(1, j) * u.logit(eps=1e-6)
        return v.round().clamp(0, 255)

    # As `cached_sample` of pixelcnn.py: each layer keeps, in a map, what it was given so far.
    @torch.no_grad()
    def sample(self, y):
        """Draw an image for each class in y (B,), pixel after pixel, (B, 1, 28, 28)."""
        one_hot = F.one_hot(y, self.classes).float()
        pixels = torch.zeros(len(y), 1, 28 + 3, 28 + 6, device=y.device)  # 0 around the image
        C = self.stem.out_channels // 2
        maps = [pixels.new_zeros(len(y), C, 28 + 2, 28 + 4) for _ in self.blocks]
        for row in range(28):
            for column in range(28):
                h = self.stem.on_padded(pixels[:, :, row : row + 4, column : column + 7])
                h = h + self.place[:, row, column, None, None]
                for block, seen in zip(self.blocks, maps):
                    seen[:, :, row + 2, column + 2] = block.looked_at(h, one_hot)[:, :, 0, 0]
                    found = block.conv.on_padded(seen[:, :, row : row + 3, column : column + 5])
                    h = block.add(h, found)
                level = self.draw(self.head(F.relu(h))[:, :, 0, 0])
                pixels[:, :, row + 3, column + 3] = 2 * (level / 255) - 1
        return ((pixels[:, :, 3:, 3:-3] + 1) * 127.5).round() / 255


# %% Training
def main(argv=None):
    args = parse_flags(argv)
    x, y, x_test, y_test, source = mnist(args.stand_in, args.device, args.classes)
    n = len(x) * 11 // 12  # the last twelfth, 5,000 digits of MNIST, is for validation
    x_valid, y_valid = x[n::5] / 255, y[n::5]  # every fifth, also of the test

    torch.manual_seed(args.seed)
    model = GreyPixelCNN(args.channels, args.layers, args.classes, args.logistics)
    model.to(args.device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    run = Run(args, source, n, "NLL, bits/dim", model=model, optimizer=optimizer)
    for step in run.steps():
        optimizer.param_groups[0]["lr"] = args.lr * warmup_cosine(step / args.steps)
        batch = torch.randint(n, (args.batch_size,), device=args.device)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
            loss = -model.log_prob(x[batch] / 255, y[batch]).mean() / BIT
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss)
        if step % args.save_every == 0 or step == args.steps:
            run.save(-log_prob_of_many(model, x_valid, y_valid).mean().item() / BIT)
            samples = model.sample(ten_classes(y).repeat(2))
            run.picture("samples.png", grid(samples, f"samples, step {step:,}"))
    evaluate(run, model, x_test[::5] / 255, y_test[::5])


# %% Evaluation
def load(path="out/pixelcnn_pp/model.pt", device="cpu"):
    """The model of a finished or unfinished run, ready to sample."""
    saved = load_checkpoint(path)
    sizes = [saved["flags"][name] for name in ("channels", "layers", "classes", "logistics")]
    model = GreyPixelCNN(*sizes)
    model.load_state_dict(saved["model"])
    return model.to(device).eval()


@torch.no_grad()
def evaluate(run, model, x, y):
    """Results and pictures for test images x (N, 1, 28, 28), levels k / 255, of classes y (N,)."""
    torch.manual_seed(1)
    print(f"scoring {len(x):,} test images ...", flush=True)
    bits = -log_prob_of_many(model, x, y) / BIT
    results = {"all levels alike, bits/dim": 8.0}
    results["NLL, bits/dim"] = bits.mean().item()
    results["NLL, standard error"] = bits.std().item() / len(x) ** 0.5
    run.report(results)
    samples = model.sample(ten_classes(y).repeat(10))
    run.picture("samples.png", grid(samples, "samples, one class a column"))

    outputs = model(x[:1], y[:1])[0, :, :, 14].T  # of the 28 pixels of column 14
    level = torch.arange(256.0, device=x.device).expand(28, 1, 256)
    p = model.log_level(outputs[:, :, None].expand(-1, -1, 256), level)[:, 0].exp().cpu()
    axes = Figure(figsize=(9, 5), layout="constrained").subplots()
    shown = axes.imshow(p.log10().numpy(), aspect="auto", cmap="magma", vmin=-5, vmax=0)
    axes.figure.colorbar(shown, label="log₁₀ of the probability")
    came = (255 * x[0, 0, :, 14]).cpu()
    axes.plot(came, range(28), "o", mfc="none", color="cyan", clip_on=False)
    title = "bright: levels expected in column 14, given all pixels before; rings: what came"
    axes.set(title=title, xlabel="grey level, 0 is paper", ylabel="row")
    run.picture("levels.png", axes.figure)


if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on, --resume --steps 0 evaluates the last checkpoint")
