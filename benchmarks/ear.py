"""The ear: a small classifier of spoken digits, trained apart from wavenet.py on the same clips.

    python benchmarks/ear.py    if wavenet.py is new or was trained again since

It is trained in half a minute. It hears the 300 real test clips, and as many sounds of wavenet.py,
each of one test clip's digit and speaker, all half a second long. The shares in which it finds the
digit go to benchmarks/results/ear.json. Spectrograms are stretched to one length, so that a clip's
length tells it nothing.
"""

import runs
import torch
import torch.nn.functional as F
from judge import share
from measure import measured, trained
from torch import nn

import wavenet
from data import audio


def spectrograms(sounds, frames=64):
    """Logarithmic spectrograms (N, 1, 65, 64) of sounds, a list of (T,) in [-1, 1]."""
    window = torch.hann_window(128)
    pages = []
    for x in sounds:
        x = F.pad(x, (0, max(0, 256 - len(x))))
        power = torch.stft(x, 128, 40, window=window, return_complex=True).abs()  # (65, frames)
        page = (power + 1e-2).log()[None, None]
        pages.append(F.interpolate(page, (65, frames), mode="bilinear"))
    return torch.cat(pages)


class Ear(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            *self.block(1, 16),
            *self.block(16, 32),
            *self.block(32, 64),
            nn.Dropout(0.3),
            nn.AdaptiveAvgPool2d((4, 4)),
            nn.Flatten(),
            nn.Linear(1024, 10),
        )

    def block(self, inputs, outputs):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]

    def forward(self, x):
        return self.net(x)


def varied(x):
    """A clip (T,) louder or softer, begun and ended a little sooner or later, with some noise."""
    x = x * torch.empty(()).uniform_(0.5, 2)
    before, after = torch.randint(-300, 300, (2,)).tolist()
    if len(x) > 1200:
        x = x[max(0, -before) : len(x) - max(0, -after)]
    x = F.pad(x, (max(0, before), max(0, after)))
    return x + torch.randn_like(x) * torch.rand(()) ** 2 * 0.02


def train_ear(clips, steps=600):
    torch.manual_seed(0)
    sounds = [torch.from_numpy(sound) for sound, _, _ in clips]
    y = torch.tensor([digit for _, digit, _ in clips])
    ear = Ear()
    optimizer = torch.optim.AdamW(ear.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(steps):
        i = torch.randint(len(clips), (64,))
        x = spectrograms([varied(sounds[k]) for k in i])
        loss = F.cross_entropy(ear(x), y[i], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return ear.eval()


def main():
    known = runs.read("ear")
    if measured("wavenet", {"wavenet": known}) or not trained("wavenet"):
        return
    train, test, _ = audio(None, "never")
    ear = train_ear(train)
    digits = torch.tensor([digit for _, digit, _ in test])
    speakers = sorted({speaker for _, _, speaker in train})
    asked = torch.tensor([speakers.index(speaker) for _, _, speaker in test])
    model = wavenet.load(runs.ROOT / "out" / "wavenet" / "model.pt")
    torch.manual_seed(0)
    with torch.no_grad():
        real = ear(spectrograms([torch.from_numpy(sound) for sound, _, _ in test])).argmax(1)
        sounds = wavenet.cached_sample(model, digits, asked, 4000)
        generated = ear(spectrograms(list(sounds))).argmax(1)
    results = {
        "real test clips, class accuracy": share(real == digits),
        "sounds of 0.5 s, class accuracy": share(generated == digits),
        "seconds of training": runs.read("wavenet")["seconds"],
    }
    runs.write("ear", results | runs.origin())
    print(results)


if __name__ == "__main__":
    main()
