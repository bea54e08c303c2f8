"""The judge: a digit classifier, trained apart from every generative model, that reads what they draw.

`python benchmarks/judge.py ddpm` loads out/ddpm/model.pt, draws 100 samples of each class and prints the share that the
judge reads as the class asked for. The judge is a small convolutional network, trained once on the first 55,000
training digits (shifted by up to two pixels) and kept in out/judge/model.pt.
"""
import argparse
import importlib
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from data import mnist  # noqa: E402


class Judge(nn.Module):
    """Logits (B, 10) of grey images (B, 1, 28, 28) in [0, 1]; `features` gives the (B, 128) before them."""

    def __init__(self):
        super().__init__()

        def block(a, b):
            return [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

        self.features = nn.Sequential(
            *block(1, 16), nn.MaxPool2d(2), *block(16, 64), *block(64, 64), nn.MaxPool2d(2),
            *block(64, 64), *block(64, 64), nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU())
        self.head = nn.Linear(128, 10)

    def forward(self, x):
        return self.head(self.features(x))


@torch.no_grad()
def read(judge, x):
    """The digit read in each of (B, 1, 28, 28) images in [0, 1]: (B,) classes."""
    judge.eval()
    return torch.cat([judge(b).argmax(1) for b in x.split(1000)])


def train_judge(x, y, epochs=4, batch=128, seed=0):
    """A Judge trained on uint8 images x (N, 1, 28, 28) with labels y (N,)."""
    torch.manual_seed(seed)
    judge = Judge().to(x.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=1e-2)
    steps = epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, steps)
    for epoch in range(epochs):
        start, order = time.time(), torch.randperm(len(x))
        for i in order[: len(x) // batch * batch].split(batch):
            down, across = torch.randint(-2, 3, (2,)).tolist()
            xb = (x[i].float() / 255).roll((down, across), (2, 3))
            loss = F.cross_entropy(judge(xb), y[i], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"judge: epoch {epoch + 1}/{epochs}, loss {loss.item():.3f}, {time.time() - start:.0f} s", flush=True)
    return judge.eval()


def judge_for(device="cpu", folder=ROOT / "out" / "judge"):
    """The cached judge, trained first where there is none. Real MNIST only."""
    path = folder / "model.pt"
    if path.exists():
        judge = Judge()
        judge.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return judge.to(device).eval()
    x, y, x_test, y_test, _ = mnist("never")
    judge = train_judge(x[:55000].to(device), y[:55000].to(device))
    accuracy = (read(judge, x_test.to(device) / 255).cpu() == y_test).float().mean().item()
    print(f"judge: {100 * accuracy:.2f} % of the 10,000 test digits")
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(judge.state_dict(), path)
    (folder / "metrics.json").write_text(json.dumps({"test_accuracy": accuracy}))
    return judge


def sampler(name, path, device="cpu", plain=False, **how):
    """A saved image model, and a function that draws an image in [0, 1] for each class in y (B,), int64.

    It draws by the chapter's fast sampler where it has one, `plain` by `model.sample` always, and with what is in
    `how`, such as temperature=0.7.
    """
    module = importlib.import_module(name)
    model = module.load(path, device)
    for fast in ("ddim_sample", "cached_sample"):
        if hasattr(module, fast) and not plain:
            return model, lambda y: getattr(module, fast)(model, y, **how)
    return model, lambda y: model.sample(y, **how)


def metrics_of(path):
    """A metrics.json, or a copy of it: results, flags, source, where, torch, step, seconds, curve."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def frechet(a, b):
    """|m_a − m_b|² + tr(S_a + S_b − 2 (S_a S_b)^½): the Fréchet distance of Gaussians fitted to features a (N, F) and
    b (M, F) (Heusel et al. 2017, arXiv:1706.08500, eq. 6; there in another network's features, so never compare)."""
    a, b = a.double(), b.double()
    cross = torch.linalg.eigvals(a.T.cov() @ b.T.cov()).real.clamp(min=0).sqrt().sum()
    return ((a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * cross).item()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("script", help="a chapter's name, such as ddpm")
    parser.add_argument("--model", help="its saved run (out/<script>/model.pt)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    judge = judge_for(args.device)
    _, draw = sampler(args.script, args.model or ROOT / "out" / args.script / "model.pt", args.device)
    y = torch.arange(10, device=args.device).repeat_interleave(100)
    torch.manual_seed(0)
    start = time.time()
    samples = draw(y)
    seconds = time.time() - start
    right = (read(judge, samples) == y).view(10, 100).float().mean(1)
    print(f"{args.script}: the judge reads {100 * right.mean():.1f} % of 1,000 samples as the class asked for")
    print(f"by class: {' '.join(f'{c}:{100 * r:.0f}' for c, r in enumerate(right.tolist()))}")
    print(f"drawn in {seconds:.1f} s ({len(y) / seconds:.0f} a second)")


if __name__ == "__main__":
    main()
