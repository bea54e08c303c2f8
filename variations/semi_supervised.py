"""Semi-supervised learning on vae.py: 100 labels for 55,000 digits (M2, Kingma et al. 2014, arXiv:1406.5298).

What changes: y may be unknown. It becomes a latent variable beside z, with p(y) = 1/10 and a classifier
q(y | x) beside the encoder q(z | x, y). Without a label all ten classes count, each by its probability:

    log p(x, y) ≥ L(x, y) = ELBO(x, y) + log p(y)                  ELBO: the chapter's bound of log p(x | y)
    log p(x) ≥ U(x) = Σ_y q(y | x) L(x, y) + H(q(y | x))           H: entropy
    loss = −mean(U of 50 x, L of 10 (x, y)) − α mean log q(y | x)            eq. 9; its L, U are minus these

U is highest where q(y | x) ∝ exp L(x, y), by Bayes' rule: the decoder teaches the classifier, which tells it
what belongs together. At first neither knows much: U's gradient in q grows over the first fifth of the steps.
Why: labels are dear, digits are not. The baseline (`supervised`) is the same classifier on labels alone, with
the same dropout, weight decay and shifts; its highest validation accuracy is what early stopping may reach.

Measured, 263 s of training on one busy core: 95.8 % of the test digits, where the same classifier with the
100 labels alone gets 87.9 %, and never more than 88.3 % of the validation digits. Bayes' rule with one draw
of L gives 90.9 %.
"""
import copy
import math

import torch
from matplotlib.figure import Figure
from torch import nn

import vae
from data import mnist
from vae import binarise, grid
from variations import checked, independent_pixels, start

SETTINGS = {"lr": vae.SETTINGS["lr"], "latent_dim": vae.SETTINGS["latent_dim"],
            "steps": (14000, "optimiser steps", 1, 10**9), "labels": (10, "labels of each class", 1, 500),
            "batch_size": (50, "digits a step", 1, 10**6), "alpha": (5.0, "weight of log q(y | x)", 0, 1000),
            "hidden": (300, "units of hidden layers", 1, 10**5), "dropout": (0.3, "of classifiers", 0, 0.99),
            "shift": (2, "most pixels by which a digit moves before it is classified", 0, 9)}

class M2(vae.VAE):
    """p(y) p(z) p(x | y, z), q(z | x, y) and the classifier: logits (B, 10) of q(y | x)."""
    def __init__(self, hidden=300, latent_dim=20, dropout=0.3):
        super().__init__(hidden, latent_dim)
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(784, hidden), nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden, hidden),
            nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden, 10))
        self.supervised = copy.deepcopy(self.classifier)  # the baseline: same first weights, labels alone

    def bounds(self, x):
        """One draw of L(x, y) for each class y, nats (B, 10), of binary images x."""
        y = torch.arange(10, device=x.device).repeat_interleave(len(x))
        return self.elbo(x.repeat(10, 1, 1, 1), y).view(10, len(x)).T - math.log(10)

def marginal(L, logits):
    """U, nats (B,), of L and the logits of q(y | x), (B, 10) each."""
    log_q = logits.log_softmax(1)
    return (log_q.exp() * (L - log_q)).sum(1)

def split_labels(y, labels, seed):
    """Indices of `labels` digits of each class, (10, labels), that keep their label, and of all others."""
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)).to(y.device)
    known = torch.stack([order[y[order] == digit][:labels] for digit in range(10)])
    return known, order[~torch.isin(order, known)]

@torch.no_grad()
def scores(model, x, y):  # L, U and the accuracies of both classifiers
    L = torch.cat([model.eval().bounds(part) for part in x.split(500)])
    right = [(q(x).argmax(1) == y).float().mean().item() for q in (model.classifier, model.supervised)]
    return L, marginal(L, model.classifier(x)), *right

def main(argv=None):
    vars(vae).update(NAME="semi_supervised", LOSS="-U, nats", SETTINGS=SETTINGS, load=checked)  # for Run
    run = vae.Run(argv)
    x, y, x_test, y_test, run.source = mnist(run.stand_in, run.device)
    n, digit = len(x) * 11 // 12, torch.arange(10, device=run.device)  # the last twelfth is for validation
    x_valid, y_valid, x_test = binarise(x[n:], seed=0)[:2000], y[n:][:2000], binarise(x_test, seed=1)
    run.baselines = {"independent pixels": independent_pixels(x[:n], x_test)}
    (known, rest), y_known = split_labels(y[:n], run.labels, run.seed), digit.repeat(run.labels)

    torch.manual_seed(run.seed)
    model = M2(run.hidden, run.latent_dim, run.dropout).to(run.device)
    optimizer = torch.optim.AdamW(model.parameters(), run.lr, weight_decay=0.1, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, run.lr, total_steps=run.steps, pct_start=0.06, cycle_momentum=False)
    for step in run.loop(model=model, optimizer=optimizer, schedule=schedule):
        x_rest = binarise(x[rest[torch.randint(len(rest), (run.batch_size,), device=run.device)]])
        x_known = binarise(x[known[:, torch.randperm(run.labels)].T.flatten()])  # each ten: one of each class
        by = torch.randint(-run.shift, run.shift + 1, (2,)).tolist()
        moved, moved_known = (v.roll(by, (2, 3)) for v in (x_rest, x_known))
        with run.autocast():
            logits = model.classifier(moved).float()
            logits = logits.detach().lerp(logits, min(1, 5 * step / run.steps))  # scales the gradient alone
            U, L = marginal(model.bounds(x_rest), logits), model.elbo(x_known[:10], digit) - math.log(10)
            supervised_loss, class_loss = (nn.functional.cross_entropy(q(moved_known), y_known)
                                           for q in (model.supervised, model.classifier))
            loss = -torch.cat([U, L]).mean() + run.alpha * class_loss + supervised_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if run.log(-U.mean()):  # a status line; True every 20 s and at the end
            _, U, semi, supervised = scores(model, x_valid, y_valid)
            samples = grid(model.sample(40, digit.repeat(4)), f"samples, step {step:,}")
            run.save(-U.mean().item(), samples, semi=semi, supervised=supervised)
            model.train()

    torch.manual_seed(1)
    L, U, semi, supervised = scores(model, x_test, y_test)
    steps, *curves = zip(*((p["step"], p["semi"], p["supervised"]) for p in run.curve))
    run.report({"test accuracy": semi, "test accuracy, labels alone": supervised,
                "highest validation accuracy, labels alone": max(curves[1]),
                "test accuracy, Bayes' rule, one draw of L": (L.argmax(1) == y_test).sum().item() / len(L),
                "test -U, nats": -U.mean().item(), "its standard error": (U.std() / len(U) ** 0.5).item()})
    run.picture("samples.png", grid(model.sample(100, digit.repeat(10)), "samples by class"))
    ax = Figure(figsize=(6, 4), layout="constrained").subplots()
    ax.plot(steps, curves[0], "o-", steps, curves[1], "o-", ms=3)
    ax.set(title="labels and other digits (blue); labels alone", xlabel="step", ylabel="validation accuracy")
    run.picture("accuracy.png", ax.figure)

if __name__ == "__main__":
    start(main)
