"""char_rnn.py on images: the LSTM reads a binary MNIST digit pixel by pixel, row by row, 784 symbols long.

What changes: the symbols. A text's characters become the two values of a pixel, and every symbol that is read
carries the class y of the digit and the column of the next pixel: the embedding has a row for each triple
(symbol, class, column). Symbol 2 marks the beginning, class 10 is the null label (as in pixelcnn.py).

    log p(x | y) = Σ_i log p(x_i | x_1, …, x_{i−1}, y)        the chain rule; x_i is a pixel

Why: to see what a state can hold. made.py is given all earlier pixels, pixelcnn.py those nearby, above as
well as to the left; here the pixel above was read 28 symbols ago, and the state has to remember it. A digit
is short enough to back-propagate through all of it: nothing is truncated, no state is carried on to the next
step. Both NLLs, given the class and marginal over the classes, −log Σ_y p(x | y) / 10, are exact, here for
every 20th test digit.

Papers: MNIST pixel by pixel in an RNN, Le, Jaitly & Hinton 2015 (arXiv:1504.00941); LSTMs along the rows of
an image, PixelRNN, van den Oord et al. 2016 (arXiv:1601.06759).

Measured, 455 s of training on one busy core: 81.68 nats given the class, 83.78 marginal over the classes,
with a standard error of 0.96; class accuracy 78.2 %, Fréchet distance 10.7. Without the column, and in 800
steps of 64: 97.21 nats.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

import char_rnn
from data import mnist
from pixelcnn import NULL, binarise, drop_labels, grid
from variations import checked, independent_pixels, start

SETTINGS = {
    "steps": (3200, "optimiser steps", 1, 10**9),
    "batch_size": (16, "digits per step", 1, 10**6),
    "lr": char_rnn.SETTINGS["lr"],
    "hidden": (256, "units of a layer, each with a cell", 1, 10**5),
    "layers": (1, "LSTM layers", 1, 100),
    "dropout": (0.0, "dropout of the layers' outputs", 0, 0.99),
    "label_dropout": (0.1, "share of digits under the null label; 1 gives an unconditional model", 0, 1),
    "stride": (20, "of the test and validation digits, take each so-many-th", 1, 10**4),
}

class PixelRNN(char_rnn.CharRNN):
    """p(x | y), the product over pixels; `forward` and `step` read 33 column + 3 y + symbol."""
    def __init__(self, hidden=256, layers=1, dropout=0.0, conditional=True):
        super().__init__(torch.tensor([ord("0"), ord("1")]), hidden, layers, dropout)
        self.embed, self.conditional = nn.Embedding(28 * 33, 64), conditional

    def labels(self, y, n):
        """y as (n,) classes; None draws them. An unconditional model knows NULL alone."""
        y = torch.randint(10, (n,)) if y is None else torch.as_tensor(y)
        return (y if self.conditional else torch.tensor(NULL)).to(self.embed.weight.device).expand(n)

    def log_prob(self, x, y=None):
        """log p(x | y) of binary images x (B, 1, 28, 28), exact: nats (B,). y: None (null) or classes."""
        x, y = x.flatten(1).long(), self.labels(NULL if y is None else y, len(x))
        column = torch.arange(x.shape[1], device=x.device) % 28
        logits, _ = self(F.pad(x[:, :-1], (1, 0), value=2) + 3 * y[:, None] + 33 * column)
        return -F.cross_entropy(logits.transpose(1, 2), x, reduction="none").sum(1)

    @torch.no_grad()
    def sample(self, n, y=None):
        """n binary images (n, 1, 28, 28), one step of the LSTM a pixel; y: None (drawn), a class or (n,)."""
        y, x, state = self.labels(y, n), [], self.empty_state(n)
        symbol = torch.full_like(y, 2)
        for i in range(784):
            logits, state = self.step(symbol + 3 * y + 33 * (i % 28), state)
            symbol = torch.multinomial(logits.softmax(1), 1)[:, 0]
            x.append(symbol)
        return torch.stack(x, 1).float().view(n, 1, 28, 28)

def main(argv=None):
    vars(char_rnn).update(NAME="rnn_pixels", LOSS="NLL, nats", ITEMS="digits", SETTINGS=SETTINGS,
                          load=checked)  # for Run
    run = char_rnn.Run(argv)
    x, y, x_test, y_test, run.source = mnist(run.stand_in, run.device)
    n = len(x) * 11 // 12  # the last twelfth is for validation
    x_valid, y_valid = binarise(x[n:], seed=0)[::run.stride], y[n::run.stride]
    x_test, y_test = binarise(x_test, seed=1)[::run.stride], y_test[::run.stride]
    run.baselines = {"untrained": 784 * math.log(2), "independent pixels": independent_pixels(x[:n], x_test)}

    torch.manual_seed(run.seed)
    model = PixelRNN(run.hidden, run.layers, run.dropout, run.label_dropout < 1).to(run.device)
    optimizer = torch.optim.AdamW(model.parameters(), run.lr, (0.9, 0.99), weight_decay=0.1, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, run.lr, total_steps=run.steps, pct_start=0.06, cycle_momentum=False)
    for step in run.loop(model=model, optimizer=optimizer, schedule=schedule):
        i = torch.randint(n, (run.batch_size,), device=run.device)
        with run.autocast():
            loss = -model.log_prob(binarise(x[i]), drop_labels(y[i], run.label_dropout)).mean()
        optimizer.zero_grad()
        (loss / 784).backward()  # per symbol, as in the chapter: the clipping below goes by it
        nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimizer.step()
        schedule.step()
        if run.log(loss):  # a status line; True every 20 s and at the end
            validation = nll(model.eval(), x_valid, y_valid).mean().item()
            run.save(validation, grid(model.sample(40, torch.arange(40) % 10), f"samples, step {step:,}"))
            model.train()
    evaluate(run, model.eval(), x_test, y_test)

@torch.no_grad()
def nll(model, x, y):
    """−log p(x | y) of binary images x and classes y, in nats (N,)."""
    return torch.cat([-model.log_prob(*part) for part in zip(x.split(100), y.split(100))])

def evaluate(run, model, x, y):
    torch.manual_seed(1)
    by_class = torch.stack([nll(model, x, torch.full_like(y, digit)) for digit in range(10)])  # (10, N)
    marginal = math.log(10) - (-by_class).logsumexp(0)  # p(x) = Σ_y p(y) p(x | y)
    run.report({
        "test digits": len(x),
        "test NLL, conditional, nats": by_class.gather(0, y[None]).mean().item(),
        "test NLL, marginal over the classes, nats": marginal.mean().item(),
        "its standard error": (marginal.std(correction=0) / len(x) ** 0.5).item(),
        "test digits classified by Bayes' rule": (by_class.argmin(0) == y).float().mean().item()})
    samples = model.sample(100, torch.arange(100) % 10)
    run.picture("samples.png", grid(samples, "samples by class"))

if __name__ == "__main__":
    start(main)
