"""The judge: a digit classifier, trained apart from every generative model, and what it says.

It is a small convolutional network, trained once on the first 55,000 training digits (shifted by
up to two pixels) and kept in out/judge/model.pt. Of images that were asked for in given classes it
says in how many it finds that class. Its last features are where generated and real images are
compared: by the Fréchet distance, and by precision and recall. measure.py puts it to work.
"""

import hashlib
import math
import statistics
import time

import torch
import torch.nn.functional as F
from runs import ROOT
from torch import nn

from data import mnist

BLOCKS = 10  # of the jackknife


class Judge(nn.Module):
    """Logits (B, 10) of images (B, 1, 28, 28) in [0, 1]; `features` gives (B, 128) before them."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *self.block(1, 16),
            nn.MaxPool2d(2),
            *self.block(16, 64),
            *self.block(64, 64),
            nn.MaxPool2d(2),
            *self.block(64, 64),
            *self.block(64, 64),
            nn.Flatten(),
            nn.Linear(64 * 49, 128),
            nn.ReLU(),
        )
        self.head = nn.Linear(128, 10)

    def block(self, inputs, outputs):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    def forward(self, x):
        return self.head(self.features(x))


def train_judge(x, y, epochs=4, batch=128):
    """A Judge trained on uint8 images x (N, 1, 28, 28) with labels y (N,)."""
    torch.manual_seed(0)
    judge = Judge().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=1e-2)
    steps = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, steps)
    for epoch in range(epochs):
        start = time.time()
        order = torch.randperm(len(x))
        for i in order[: len(x) // batch * batch].split(batch):
            down, across = torch.randint(-2, 3, (2,)).tolist()
            shifted = (x[i].float() / 255).roll((down, across), (2, 3))
            loss = F.cross_entropy(judge(shifted), y[i], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        seconds = time.time() - start
        print(f"judge: epoch {epoch + 1}, loss {loss.item():.3f}, {seconds:.0f} s", flush=True)
    return judge.eval()


def load_judge():
    """The judge in out/judge, trained first where there is none. Real digits only."""
    path = ROOT / "out" / "judge" / "model.pt"
    if not path.exists():
        x, y, _, _, _ = mnist("never")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(train_judge(x[:55000], y[:55000]).state_dict(), path)
    judge = Judge()
    judge.load_state_dict(torch.load(path, weights_only=True))
    judge.fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return judge.eval()


@torch.no_grad()
def classes(judge, x):
    """The digit that the judge reads in each of (B, 1, 28, 28) images in [0, 1]: (B,)."""
    return torch.cat([judge(part).argmax(1) for part in x.split(1000)])


def share(right):
    """The share of (N,) booleans that are true, and half its 95 % interval.

    The interval is Wilson's; of its two sides the wider one is given."""
    n, p, z = len(right), right.double().mean().item(), 1.96
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return [p, max(p - (middle - half), middle + half - p)]


def frechet(a, b):
    """The Fréchet distance of Gaussians fitted to features a (N, F) and b (M, F).

    |m_a − m_b|² + tr(S_a + S_b − 2 (S_a S_b)^½), Heusel et al. 2017, arXiv:1706.08500, eq. 6; there
    in the features of another network, so figures of other papers cannot be compared."""
    a, b = a.double(), b.double()
    cross = torch.linalg.eigvals(a.T.cov() @ b.T.cov()).real.clamp(min=0).sqrt().sum()
    means = (a.mean(0) - b.mean(0)).square().sum()
    return (means + a.T.cov().trace() + b.T.cov().trace() - 2 * cross).item()


# Precision is the share of generated images that look real: that lie in the region of the real
# ones. Recall is the share of real images in the region of the generated ones. The region of a set
# is a ball around each member that reaches to its third nearest neighbour (Kynkäänniemi et al.
# 2019, arXiv:1904.06991).


def covered(points, centres):
    """The share of points (N, F) in the region of centres (M, F)."""
    nearest = torch.cdist(centres, centres).kthvalue(4, dim=1)  # the first is the centre itself
    inside = torch.cdist(points, centres) <= nearest.values
    return inside.any(1).double().mean().item()


def measures(fake, real):
    """What is measured of features fake (N, F) beside real (M, F), M a multiple of N."""
    as_many = real[:: len(real) // len(fake)]  # precision and recall want as many of both
    return {
        "Frechet distance": frechet(fake, real),
        "precision": covered(fake, as_many),
        "recall": covered(as_many, fake),
    }


class Against:
    """Real images, and how near generated ones come to them."""

    def __init__(self, judge, real):
        self.judge = judge
        self.real = self.features(real)

    @torch.no_grad()
    def features(self, x):
        return torch.cat([self.judge.features(part) for part in x.split(1000)])

    def scores(self, x):
        """{measure: [value, half its 95 % interval]} of images x (N, 1, 28, 28).

        A jackknife gives the interval: every measure once more without each of ten blocks."""
        fake = self.features(x)
        apart = len(self.real) // len(fake)
        block = torch.arange(len(self.real)) // apart % BLOCKS
        parts = []
        for out in range(BLOCKS):
            kept = block != out
            parts.append(measures(fake[kept[::apart]], self.real[kept]))
        scores = {}
        for name, value in measures(fake, self.real).items():
            variance = (BLOCKS - 1) * statistics.pvariance([part[name] for part in parts])
            scores[name] = [value, 1.96 * math.sqrt(variance)]
        return scores
