"""The bound of realnvp.py by eight draws of the noise in grey levels instead of one.

    python benchmarks/importance.py

log P(x) is the log of a mean, E_q[p(r) / q(r | x)]. The log of a mean over eight draws is a bound
as well, on average, and a tighter one (importance weighting, see vae.py). Published bounds of flows
are often given so. Every tenth test digit, of the runs with classes and without; the results go to
benchmarks/results/importance.json.
"""

import importlib
import math

import runs
import torch
from measure import load, measured, trained

from data import mnist

DRAWS = 8


def tighter(model, x, y, draws=DRAWS):
    """A bound on log P(x | y) from several draws, nats (B,)."""
    log_probs = torch.stack([model.log_prob(x, y) for _ in range(draws)])
    return log_probs.logsumexp(0) - math.log(draws)


@torch.no_grad()
def bits(run):
    """The mean bound on -log P, bits/dim, of every tenth test digit."""
    model = load(run)
    _, _, x, y, _ = mnist("never", classes=model.classes)
    torch.manual_seed(1)
    bounds = [tighter(model, *part) for part in zip(x[::10].split(500), y[::10].split(500))]
    return -torch.cat(bounds).mean().item() / importlib.import_module("realnvp").BIT


def main():
    known = runs.read("importance")
    for run in ("realnvp", "realnvp-unconditional"):
        if not measured(run, known) and trained(run):
            row = {"bits/dim": bits(run), "seconds of training": runs.read(run)["seconds"]}
            known[run] = row | runs.origin()
            runs.write("importance", known)
            print(run, known[run], flush=True)


if __name__ == "__main__":
    main()
