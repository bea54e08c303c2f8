"""The ear: a small classifier of spoken digits, trained apart from wavenet.py on the same real clips.

`python benchmarks/ear.py` trains it in half a minute, prints the share of the 300 real test clips that it classifies
correctly, and of 300 sounds sampled from out/wavenet/model.pt (each test clip's digit and speaker, all of one length)
the share in which it finds the digit asked for (kept in benchmarks/results/ear-cpu.json). Spectrograms are stretched to one length, so that a clip's length tells it nothing.
"""
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import wavenet  # noqa: E402
from data import audio  # noqa: E402


def spectra(sounds, frames=64):
    """Log-spectrograms (N, 1, 65, 64) of sounds, a list of (T,) in [-1, 1], each stretched to 64 frames."""
    window, pages = torch.hann_window(128), []
    for x in sounds:
        x = F.pad(x, (0, max(0, 256 - len(x))))
        power = (torch.stft(x, 128, 40, window=window, return_complex=True).abs() + 1e-2).log()  # (65, frames)
        pages.append(F.interpolate(power[None, None], (65, frames), mode="bilinear"))
    return torch.cat(pages)


class Ear(nn.Module):
    def __init__(self):
        super().__init__()

        def block(a, b):
            return [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]

        self.net = nn.Sequential(*block(1, 16), *block(16, 32), *block(32, 64), nn.Dropout(0.3),
                                 nn.AdaptiveAvgPool2d((4, 4)), nn.Flatten(), nn.Linear(1024, 10))

    def forward(self, x):
        return self.net(x)


def varied(x):
    """A clip (T,) louder or softer, with a little of its beginning and end cut or silent, and noise on it."""
    x = x * torch.empty(()).uniform_(0.5, 2)
    a, b = torch.randint(-300, 300, (2,)).tolist()
    x = x[max(0, -a):len(x) - max(0, -b)] if len(x) > 1200 else x
    x = F.pad(x, (max(0, a), max(0, b)))
    return x + torch.randn_like(x) * torch.rand(()) ** 2 * 0.02


def trained(train, steps=600):
    torch.manual_seed(0)
    tensors, y = [torch.from_numpy(x) for x, _, _ in train], torch.tensor([digit for _, digit, _ in train])
    ear = Ear()
    optimizer = torch.optim.AdamW(ear.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(steps):
        i = torch.randint(len(train), (64,))
        loss = F.cross_entropy(ear(spectra([varied(tensors[k]) for k in i])), y[i], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return ear.eval()


@torch.no_grad()
def main():
    train, test, source = audio(None, "never")
    with torch.enable_grad():
        ear = trained(train)

    def accuracy(sounds):
        return (ear(spectra(sounds)).argmax(1) == digits).float().mean().item()

    digits = torch.tensor([digit for _, digit, _ in test])
    results = {"real test clips, accuracy": accuracy([torch.from_numpy(x) for x, _, _ in test])}
    print(f"{source}: {results['real test clips, accuracy']:.1%} of {len(test)} real test clips", flush=True)
    model = wavenet.load(ROOT / "out" / "wavenet" / "model.pt")
    speakers = sorted({speaker for _, _, speaker in train})
    who = torch.tensor([speakers.index(speaker) for _, _, speaker in test])
    torch.manual_seed(0)
    sounds = wavenet.cached_sample(model, digits, who, 4000)
    results["sounds of 0.5 s: class accuracy"] = accuracy(list(sounds))
    print(f"{accuracy(list(sounds)):.1%} of {len(test)} sounds of wavenet.py", flush=True)
    (ROOT / "benchmarks" / "results" / "ear-cpu.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
