"""The ear: a small network, trained apart from wavenet.py on the same real clips, that says which digit it hears.

`python benchmarks/ear.py` trains it in half a minute, prints how many of the 300 real test clips it hears right, and
how many of 300 sounds made by out/wavenet/model.pt (each digit and speaker, as long as a real clip of theirs) it hears
as the digit asked for, at several temperatures (kept in benchmarks/results/ear-cpu.json). A machine's ear is no
listener, but it can be fooled only so far.
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
    """Log-spectrograms (N, 1, 65, 64) of sounds, a list of (T,) in [-1, 1]: 16 ms windows, a frame each 10 ms."""
    x = torch.stack([F.pad(s, (0, frames * 80 - len(s))) if len(s) < frames * 80 else s[:frames * 80] for s in sounds])
    power = torch.stft(x, 128, 80, window=torch.hann_window(128), return_complex=True).abs()[:, :, :frames]
    return (power + 1e-2).log()[:, None]


class Ear(nn.Module):
    def __init__(self):
        super().__init__()

        def block(a, b):
            return [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]

        self.net = nn.Sequential(*block(1, 16), *block(16, 32), *block(32, 64), nn.Dropout(0.3),
                                 nn.AdaptiveAvgPool2d((4, 4)), nn.Flatten(), nn.Linear(1024, 10))

    def forward(self, x):
        return self.net(x)


def main():
    torch.manual_seed(0)
    train, test, source = audio()
    tensors = [torch.from_numpy(x) for x, _, _ in train]
    y = torch.tensor([d for _, d, _ in train])
    ear = Ear()
    optimizer = torch.optim.AdamW(ear.parameters(), 2e-3)
    for step in range(600):
        i = torch.randint(len(train), (64,))
        loud = [tensors[k] * torch.empty(()).uniform_(0.5, 2) for k in i]  # loudness, time and noise vary
        loud = [F.pad(s, (torch.randint(400, ()).item(), 0)) for s in loud]
        loud = [s + torch.randn_like(s) * torch.rand(()) ** 2 * 0.02 for s in loud]
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / 600)
        loss = F.cross_entropy(ear(spectra(loud)), y[i], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ear.eval()
    with torch.no_grad():
        def right(sounds, digits):
            return (ear(spectra(sounds)).argmax(1) == torch.tensor(digits)).float().mean().item()

        digits = [d for _, d, _ in test]
        real = right([torch.from_numpy(x) for x, _, _ in test], digits)
        said = {"real test clips heard right": real}
        print(f"{source}: {real:.1%} of {len(test)} real test clips")
        run = wavenet.read_run(ROOT / "out" / "wavenet" / "model.pt")
        model = wavenet.load(ROOT / "out" / "wavenet" / "model.pt")
        who = torch.tensor([run["speakers"].index(name) for _, _, name in test])
        for temperature in (1.0, 0.9):
            torch.manual_seed(0)
            model.T = 5000
            sounds = model.sample(len(test), torch.tensor(digits), who, temperature=temperature)
            sounds = [s[:len(x)] for s, (x, _, _) in zip(sounds, test)]
            said[f"sounds heard as asked, temperature {temperature}"] = heard = right(sounds, digits)
            print(f"temperature {temperature}: {heard:.1%} of {len(test)} sounds of wavenet.py")
    (ROOT / "benchmarks" / "results" / "ear-cpu.json").write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
