"""wavenet.py on images: dilated causal convolutions over a binary MNIST digit, pixel by pixel, row by row.

What changes: the symbols. Of the 256 levels of sound two are left, 0 and 1, the values of a pixel, so the
last layer has two logits; and a clip's 32 ticks of time become the 28 rows of the image. The digit y that was
spoken is now the digit that is drawn. Layers, queues and label dropout are the chapter's.

    log p(x | y) = Σ_i log p(x_i | x_1, …, x_{i−1}, y)        the chain rule; x_i is a pixel

Why: to this network an image is a line. Ten layers, of dilations 1 to 512, reach all 784 pixels, but the
pixel above is 28 ago: one by the shift of the input, 27 = 16 + 8 + 2 + 1 by dilations. pixelcnn.py has that
pixel in its filters; rnn_pixels.py has to remember it. Both NLLs, given the class and marginal over the
classes, −log Σ_y p(x | y) / 10, are exact, here for every 20th test digit.

Papers: WaveNet, van den Oord et al. 2016 (arXiv:1609.03499); its gate comes from images, Gated PixelCNN, van
den Oord et al. 2016 (arXiv:1606.05328).

Measured, 347 s of training on one busy core: 81.24 nats given the class, 83.38 marginal over the classes,
with a standard error of 0.93; class accuracy 88.4 %, Fréchet distance 5.1.
"""
import math

import torch
from torch import nn

import wavenet
from data import mnist
from pixelcnn import binarise, grid
from variations import checked, independent_pixels, start
from variations.rnn_pixels import evaluate, nll

SETTINGS = {
    "steps": (3000, "optimiser steps", 1, 10**9),
    "batch_size": (8, "digits per step", 1, 10**5),
    "lr": wavenet.SETTINGS["lr"],
    "channels": wavenet.SETTINGS["channels"],
    "layers": (10, "layers, with dilations 1, 2, 4, ...", 1, 20),
    "label_dropout": (0.1, "share of digits under the null label; 1 gives an unconditional model", 0, 1),
    "stride": (20, "of the test and validation digits, take each so-many-th", 1, 10**4),
}

class PixelWaveNet(wavenet.WaveNet):
    """p(x | y), the product over pixels: a WaveNet of two levels, whose ticks are the rows."""
    TICKS = 28

    def __init__(self, channels=64, layers=10, conditional=True):
        super().__init__(channels, layers, 0, conditional)  # reads levels 0, 1 and the beginning, 256
        self.head[-1] = nn.Linear(128, 2)
        nn.init.zeros_(self.head[-1].weight)  # an untrained model gives each pixel 1/2
        nn.init.zeros_(self.head[-1].bias)

    def log_prob(self, x, y=None):
        """log p(x | y) of binary images x (B, 1, 28, 28), exact: nats (B,). y: None (null) or classes."""
        return super().log_prob(x.flatten(1).long(), y)

    def sample(self, n, y=None):
        """n binary images (n, 1, 28, 28), one sample of the WaveNet a pixel; y: None (drawn) or classes."""
        sound = super().sample(n, y, length=784)
        return wavenet.compand(sound).float().view(n, 1, 28, 28)  # back to levels, which are 0 and 1

def main(argv=None):
    vars(wavenet).update(NAME="wavenet_pixels", LOSS="NLL, nats", ITEMS="digits", SETTINGS=SETTINGS,
                         load=checked)
    run = wavenet.Run(argv)
    x, y, x_test, y_test, run.source = mnist(run.stand_in, run.device)
    n = len(x) * 11 // 12  # the last twelfth is for validation
    x_valid, y_valid = binarise(x[n:], seed=0)[::run.stride], y[n::run.stride]
    x_test, y_test = binarise(x_test, seed=1)[::run.stride], y_test[::run.stride]
    run.baselines = {"untrained": 784 * math.log(2), "independent pixels": independent_pixels(x[:n], x_test)}

    torch.manual_seed(run.seed)
    model = PixelWaveNet(run.channels, run.layers, run.label_dropout < 1).to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=run.lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, run.lr, total_steps=run.steps, pct_start=0.06, cycle_momentum=False)
    for step in run.loop(model=model, optimizer=optimizer, schedule=schedule):
        i = torch.randint(n, (run.batch_size,), device=run.device)
        with run.autocast():
            loss = -model.log_prob(binarise(x[i]), wavenet.drop_labels(y[i], run.label_dropout)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if run.log(loss):  # a status line; True every 20 s and at the end
            validation = nll(model, x_valid, y_valid).mean().item()
            run.save(validation, grid(model.sample(40, torch.arange(40) % 10), f"samples, step {step:,}"))
    evaluate(run, model, x_test, y_test)

if __name__ == "__main__":
    start(main)
