# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""WaveNet: dilated causal convolutions (van den Oord et al. 2016, arXiv:1609.03499).

A sound x of T samples, each one of 256 levels, has a probability that is a product of T factors, given the
digit y that is spoken and the speaker:

    log p(x | y) = Σ_t log p(x_t | x_1, …, x_{t−1}, y)
    z = tanh(W_f ∗ h + V_f e) ⊙ σ(W_g ∗ h + V_g e)         filter and gate; e embeds digit, speaker and time
    h ← h + W_h z,   skip ← skip + W_s z                     a residual and a skip connection from every layer

The input is shifted by one, so that h at time t begins with x_{t−1}. Each convolution has two taps, now and d
samples ago. The dilation d doubles from layer to layer, so that L layers reach 2^L samples back at the price
of 2 L taps. Sound needs that: at 8,000 samples a second a vowel's period is about 60 samples long, a syllable
2,000. Levels follow the μ-law: fine where the sound is soft, coarse where it is loud.

Training: minimise the negative log-likelihood (NLL), cross-entropy of the next sample, all T side by side; in
bits per sample. Sampling: sample after sample. A layer needs its newest input and that of d samples ago, so
it keeps a queue of d inputs, and a sample costs one column of the network (Le Paine et al. 2016). p(x):
exact. Latent: none. Good at: texture and timbre, at full resolution. Bad at: whatever is longer than the
receptive field (here 2,048 samples, a quarter of a second), and at speed: sound comes slower than it plays.

Label dropout: a tenth of the clips carry the null label in place of the digit, and a tenth no speaker, so one
network gives p(x | y) and p(x), and classifier-free guidance can exaggerate the digit in the logits.

`python wavenet.py` on the Free Spoken Digit Dataset and two cores of an Intel Xeon (bfloat16): 638 s of
training, 674 s in all.

    step 418/4,000  NLL, bits/sample 4.8279  15 clips/s  8 min 07 s left
    step 1,994/4,000  NLL, bits/sample 4.2071  13 clips/s  5 min 12 s left
    step 4,000/4,000  NLL, bits/sample 3.9196  13 clips/s  0 min 00 s left

Recordings 0-4 of each speaker and digit, exact: NLL 4.138 bits/sample given digit and speaker, 4.335 under
the null labels. Untrained: 8; a Markov chain of order 2: 5.11. A classifier of spectrograms finds the digit
asked for in 69.7 % of 300 sounds, with guidance 2 in 77.7 % (of real clips: 97.7 %). Your own recordings:
`--audio FOLDER`.
"""
import argparse
import io
import json
import math
import signal
import sys
import time
import wave
from pathlib import Path

from data import audio

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

# %% Settings: the published run's value, what it is, its range; `--help` prints them
NAME, LOSS, ITEMS = "wavenet", "NLL, bits/sample", "clips"
NULL = 10  # the null label: no digit given
SETTINGS = {
    "steps": (4000, "optimiser steps", 1, 10**9),
    "batch_size": (2, "clips per step", 1, 10**5),
    "lr": (4e-3, "peak learning rate of Adam", 0, 10),
    "channels": (64, "channels of a layer", 1, 10**4),
    "layers": (11, "layers in a stack, their dilations 1, 2, 4, ...", 1, 20),
    "stacks": (1, "stacks of layers, one upon the other", 1, 100),
    "duration": (0.5, "seconds of the sounds that are sampled", 0.01, 1000),
    "guidance": (2.0, "weight w of guidance in the sounds that are sampled; 1 is p(x | y)", 0, 100),
    "audio": ("", "a folder of WAV files of your own instead of the Free Spoken Digit Dataset"),
    "label_dropout": (0.1, "share of clips under the null label; 1 gives an unconditional model", 0, 1),
}

# %% Model: convolutions that reach 1, 2, 4, ... samples back
class Layer(nn.Module):
    """A dilated causal convolution of two taps, a gate, a residual and a skip connection (figure 4)."""

    def __init__(self, C, dilation):
        super().__init__()
        self.C, self.dilation = C, dilation
        self.taps = nn.Linear(2 * C, 2 * C)  # W_f and W_g, two taps each
        self.condition = nn.Linear(C, 2 * C, bias=False)  # V_f and V_g
        self.out = nn.Linear(C, C + 128)  # W_h and W_s

    def forward(self, h, e, time, past=None):
        """From h (B, T, C), the condition e (B, ticks, C) and one-hot ticks, time (B, T, ticks): h and skip
        (B, T, 128). In sampling one sample, (B, 1, C), and `past`, the h of d samples ago."""
        if past is None:
            past = F.pad(h, (0, 0, self.dilation, 0))[:, :-self.dilation]
        filter, gate = (self.taps(torch.cat([past, h], 2)) + time @ self.condition(e)).chunk(2, 2)
        residual, skip = self.out(filter.tanh() * gate.sigmoid()).split([self.C, 128], 2)
        return h + residual, skip

class WaveNet(nn.Module):
    """p(x | y, speaker), the product over samples t of p(x_t | samples before t), for 256 μ-law levels."""
    TICKS = 32  # the time in a clip, from 0 to 1, in so many steps

    def __init__(self, channels=64, layers=11, stacks=1, speakers=0, conditional=True):
        super().__init__()
        C, self.speakers, self.conditional = channels, speakers, conditional
        self.embed, self.input = nn.Embedding(257, C), nn.Linear(C, C)  # symbol 256 marks the beginning
        self.digit, self.speaker, self.tick = (nn.Embedding(k, C) for k in (11, speakers + 1, self.TICKS))
        self.condition = nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))
        self.layers = nn.ModuleList(Layer(C, 2**i) for _ in range(stacks) for i in range(layers))
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 256))
        nn.init.zeros_(self.head[-1].weight)  # an untrained model gives each level 1/256: 8 bits
        nn.init.zeros_(self.head[-1].bias)
        self.receptive_field = 1 + sum(layer.dilation for layer in self.layers)

    def embed_condition(self, n, y, speaker):
        """The condition of n clips at every tick, (n, ticks, C); y and speaker as in `forward`."""
        y = self.labels(NULL if y is None else y, n)
        speaker = torch.as_tensor(self.speakers if speaker is None else speaker, device=y.device).expand(n)
        return self.condition((self.digit(y) + self.speaker(speaker))[:, None] + self.tick.weight)

    def forward(self, x, y=None, speaker=None, length=None):
        """Logits (B, T, 256) of levels x (B, T); each depends only on the samples before it. y and speaker:
        None (the null label), a number or (B,) numbers; length: of each clip, (B,), T if not given."""
        e, t = self.embed_condition(len(x), y, speaker), torch.arange(x.shape[1], device=x.device)
        length = torch.full((len(x),), x.shape[1], device=x.device) if length is None else length
        time = (t * self.TICKS // length[:, None]).clamp(max=self.TICKS - 1)  # (B, T): relative to the clip
        h, total = self.input(self.embed(F.pad(x[:, :-1], (1, 0), value=256))), 0
        time = F.one_hot(time, self.TICKS).to(e)
        for layer in self.layers:
            h, skip = layer(h, e, time)
            total = total + skip
        return self.head(total).float()

    def log_prob(self, x, y=None, speaker=None, length=None):
        """log p(x | y, speaker) of levels x (B, T), of each the first `length` (B,), exact: nats (B,)."""
        logits = self(x, y, speaker, length)
        log_p = -F.cross_entropy(logits.flatten(0, 1), x.flatten(), reduction="none").view_as(x)  # (B, T)
        if length is not None:
            log_p = log_p * (torch.arange(x.shape[1], device=x.device) < length[:, None])
        return log_p.sum(1)

    def labels(self, y, n):
        """y as (n,) classes; None draws them from p(y), uniform. An unconditional model knows NULL alone."""
        y = torch.randint(10, (n,)) if y is None else torch.as_tensor(y)
        return (y if self.conditional else torch.tensor(NULL)).to(self.embed.weight.device).expand(n)

    @torch.no_grad()
    def sample(self, n, y=None, speaker=None, length=4000, temperature=1.0, guidance=1.0):
        """n sounds (n, length) in [-1, 1]; y: None (drawn), a digit or (n,); speaker as in `forward`."""
        y = self.labels(y, n)
        e = self.embed_condition(n, y, speaker)
        if guidance != 1:
            e = torch.cat([e, self.embed_condition(n, NULL, speaker)])
        queues = [e.new_zeros(len(e), layer.dilation, layer.C) for layer in self.layers]
        x, level = [], torch.full((n,), 256, device=e.device)
        for t in range(length):
            tick = e[:, t * self.TICKS // length, None]  # (n, 1, C), the condition now
            h, total = self.input(self.embed(level)).repeat(len(e) // n, 1)[:, None], 0
            for layer, queue in zip(self.layers, queues):
                past = queue[:, t % layer.dilation][:, None].clone()  # what the next line overwrites
                queue[:, t % layer.dilation] = h[:, 0]
                h, skip = layer(h, tick, e.new_ones(len(e), 1, 1), past)
                total = total + skip
            logits = guide(self.head(total)[:, 0], guidance) / max(temperature, 1e-6)
            level = torch.multinomial(logits.softmax(1), 1)[:, 0]
            x.append(level)
        return expand(torch.stack(x, 1))

# %% Training
def main(argv=None):
    run = Run(argv)  # flags, output folder, resuming: the frame, at the end of this file
    train, test, run.source = audio(run.audio or None, run.stand_in)
    speakers = sorted({speaker for _, _, speaker in train if speaker})
    clips, test = cut(train, speakers), cut(test, speakers)  # (levels, digit, speaker), the shortest first
    valid, clips = clips[-1::-20], [clip for i, clip in enumerate(clips[::-1]) if i % 20] or clips
    run.baselines = baselines(clips, test)

    torch.manual_seed(run.seed)
    model = WaveNet(run.channels, run.layers, run.stacks, len(speakers), run.label_dropout < 1).to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=run.lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, run.lr, total_steps=run.steps, pct_start=0.06, cycle_momentum=False)
    for step in run.loop(model=model, optimizer=optimizer, schedule=schedule):
        first = torch.randint(max(1, len(clips) - run.batch_size + 1), ()).item()  # clips of about one length
        x, y, speaker, length = batch(clips[first:first + run.batch_size], run.device)
        y, speaker = drop_labels(y, run.label_dropout), drop_labels(speaker, run.label_dropout, len(speakers))
        with run.autocast():
            loss = -model.log_prob(x, y, speaker, length).sum() / length.sum() / math.log(2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if run.log(loss):  # a status line; True every 20 s and at the end
            with run.autocast():
                validation = nll(model, valid[::3])
            sounds = model.sample(5, torch.arange(5), None, round(2000 * run.duration))  # hurried, for speed
            run.save(validation, waves(sounds, "01234", f"samples after {step:,} steps"))
    evaluate(run, model, test, speakers)

# %% That is the whole idea. Below: what the trained model can do, and the frame that every chapter shares.

# %% Evaluation: small functions used above
def guide(logits, w):
    """Classifier-free guidance (Ho & Salimans 2022): l(NULL) + w (l(y) − l(NULL)), of both in one batch."""
    if w == 1:
        return logits
    conditional, null = logits.chunk(2)
    return null + w * (conditional - null)

def compand(x):
    """μ-law: sound in [-1, 1] to 256 levels, finer where it is soft; 128 is silence."""
    return ((x.sign() * (1 + 255 * x.abs()).log() / math.log(256) + 1) * 127.5 + 0.5).long().clamp(0, 255)

def expand(q):
    """The middle of each level, on the logarithmic scale: levels back to sound in [-1, 1]."""
    v = (q - 127.5) / 127.5
    return v.sign() * (256 ** v.abs() - 1) / 255

def drop_labels(y, rate, null=NULL):
    """Labels (B,), each the null label with probability `rate`: one network learns p(x | y) and p(x)."""
    return torch.where(torch.rand(len(y), device=y.device) < rate, null, y)

# %% Evaluation: a saved model, figures and pictures
def read_checkpoint(path):
    """What `Run.save` wrote: a dict of name, settings, source, step, seconds, curve and state."""
    with open(path, "rb") as file:
        try:
            saved = torch.load(file, map_location="cpu", weights_only=True)
            assert saved["name"] == NAME and saved["source"] and saved["settings"] and saved["state"]
            return saved
        except Exception as error:  # a damaged file breaks the unpickler in many ways
            raise OSError(f"{path} is damaged, or no checkpoint of {NAME}.py") from error

def load(path=f"out/{NAME}/model.pt", device="cpu"):
    """The model of a saved run, ready to sample."""
    saved = read_checkpoint(path)
    s, speakers = saved["settings"], len(saved["state"]["model"]["speaker.weight"]) - 1
    model = WaveNet(s["channels"], s["layers"], s["stacks"], speakers, s["label_dropout"] < 1)
    model.load_state_dict(saved["state"]["model"])
    return model.to(device).eval()

def cut(clips, speakers):
    """(waveform, digit or −1, speaker) to (levels (T,), digit, speaker), T ≤ 20,000, the shortest first."""
    pieces = []
    for x, digit, speaker in clips:
        speaker = speakers.index(speaker) if speaker in speakers else len(speakers)
        levels = compand(torch.from_numpy(x)).split(20000)
        pieces += [(piece, digit % 11, speaker) for piece in levels if len(piece) > 2]  # −1 % 11 is NULL
    return sorted(pieces, key=lambda piece: len(piece[0]))

def batch(clips, device):
    """Pieces side by side, silence after the shorter: levels (B, T), digits, speakers, lengths (B,)."""
    x = nn.utils.rnn.pad_sequence([piece for piece, _, _ in clips], batch_first=True, padding_value=128)
    numbers = torch.tensor([(y, speaker, len(piece)) for piece, y, speaker in clips])
    return [v.to(device) for v in (x, *numbers.T)]

@torch.no_grad()
def nll(model, clips, conditional=True):
    """NLL in bits per sample over all samples of some pieces, given digit and speaker or neither."""
    nats = 0.0
    for i in range(0, len(clips), 4):
        x, y, speaker, length = batch(clips[i:i + 4], model.embed.weight.device)
        given = (y, speaker) if conditional else (None, None)
        nats -= model.log_prob(x, *given, length).sum().item()
    return nats / math.log(2) / sum(len(piece) for piece, _, _ in clips)

def baselines(clips, test):
    """Bits per sample, untrained and of a Markov chain of order 2 that backs off to the orders below."""
    x, x_test = (torch.cat([piece for piece, _, _ in some]) for some in (clips, test))
    n = (65536 * x[:-2] + 256 * x[1:-1] + x[2:]).bincount(minlength=2**24).view(256, 256, 256).float()
    p = torch.full((256,), 1 / 256)
    for counts, weight in ((n.sum((0, 1)), 1), (n.sum(0), 16), (n, 100)):
        p = (counts + weight * p) / (counts.sum(-1, keepdim=True) + weight)
    of_next = p[x_test[:-2], x_test[1:-1], x_test[2:]]
    return {"untrained, bits/sample": 8.0,
            "Markov chain of order 2, bits/sample": -of_next.log2().mean().item()}

def waves(sounds, names, title):
    """A figure of sounds (N, T) in [-1, 1], five to a row: the waveform and, under it, the spectrogram."""
    rows = -(-len(sounds) // 5)
    figure = Figure(figsize=(12, 2.1 * rows + 0.6), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(2 * rows, 5, squeeze=False, sharex=True)
    for i, (x, name) in enumerate(zip(sounds.cpu(), names)):
        top, low = axes[i // 5 * 2, i % 5], axes[i // 5 * 2 + 1, i % 5]
        top.plot(torch.arange(len(x)) / 8000, x, lw=0.4, color="black")
        top.set(title=name, yticks=[], ylim=(-1, 1))
        x = F.pad(x, (0, max(0, 256 - len(x))))
        power = torch.stft(x, 256, 40, window=torch.hann_window(256), return_complex=True).abs()
        low.imshow(power.clamp(min=1e-3).log10(), origin="lower", aspect="auto", cmap="magma", vmin=-2,
                   vmax=1.5, extent=(0, len(x) / 8000, 0, 4))
        low.set(xlabel="seconds", ylabel="" if i % 5 else "kHz")
    return figure

def evaluate(run, model, test, speakers):
    """Figures, pictures and sounds; test are pieces (levels, digit, speaker)."""
    torch.manual_seed(1)
    run.report({"test NLL, conditional, bits/sample": nll(model, test),
                "test NLL, unconditional, bits/sample": nll(model, test, conditional=False),
                "receptive field, samples": model.receptive_field})

    digit, length = torch.arange(10, device=run.device), round(8000 * run.duration)
    who = digit % len(speakers) if speakers else None
    sounds = model.sample(10, digit, who, length, 1.0, run.guidance)
    names = [f"{d}_{speakers[d % len(speakers)] if speakers else 'sample'}" for d in range(10)]
    run.picture("samples.png", waves(sounds, names, f"samples: digit_speaker, guidance {run.guidance:g}"))
    for name, x in zip(names, sounds):
        with wave.open(blob := io.BytesIO(), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes((x.cpu().clamp(-1, 1) * 32767).short().numpy().astype("<i2").tobytes())
        run.write(f"{name}.wav", blob.getvalue())
    x, y, speaker, length = batch(test[len(test) // 2:][:1], run.device)
    with torch.no_grad():
        p = model(x, y, speaker)[0, 1000:1240].softmax(1).cpu()  # (240, 256)
    if len(p):
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        ax = figure.subplots()
        ax.imshow(p.T**0.5, origin="lower", aspect="auto", cmap="magma",
                  extent=(125, 125 + len(p) / 8, -0.5, 255.5))
        ax.plot(125 + (torch.arange(len(p)) + 0.5) / 8, x[0, 1000:1240].cpu(), ".", ms=2, color="cyan")
        ax.set(xlabel="milliseconds", ylabel="level (μ-law)",
               title="the distribution of each next sample (bright: likely) and what came (dots)")
        run.picture("predictions.png", figure)
    frames, dilations = [], [layer.dilation for layer in model.layers][:5]
    for shown in range(1, len(dilations) + 1):
        figure, seen = Figure(figsize=(8, 3), layout="constrained"), {0}
        ax = figure.subplots()
        for depth in range(shown, 0, -1):
            d = dilations[depth - 1]
            for t in seen:
                ax.plot([t, t], [depth - 1, depth], [t - d, t], [depth - 1, depth], color="tab:orange", lw=1)
            seen |= {t - d for t in seen}
        ax.set(xlabel="samples ago", ylabel="layer", xlim=(-sum(dilations) - 1, 1),
               ylim=(-0.2, len(dilations) + 0.2), title=f"{shown} layers reach {len(seen)} samples back, "
               f"all {len(model.layers)}: {model.receptive_field:,}")
        frames += 4 * [figure]
    run.picture("receptive_field.gif", *frames)
    run.picture("receptive_field.png", frames[-1])

# %% Notes
# Differs from the paper: small, and 8,000 samples a second; beside digit and speaker a layer knows the time
# in the clip, from 0 to 1 in 32 steps, since the receptive field does not say where in a word one is, so p(x
# | y) is given the clip's length too; Adam with one cycle of the learning rate. Many small steps learn faster
# than few large ones: after 1,200 clips a draft has 4.6 bits/sample on validation, with four a step 4.9.
#
# Sounds with guidance w > 1 are no longer draws of p(x | y).
#
# Things to break:
# 1. In `forward`, put self.embed(x) for self.embed(F.pad(x[:, :-1], (1, 0), value=256)): a sample sees
#    itself, the loss falls to 0, and a sampled sound repeats one level for ever: silence.
# 2. In `WaveNet.__init__`, put Layer(C, 1): the receptive field shrinks to 12 samples, the loss is higher.
# 3. In `sample`, drop the line queue[:, t % layer.dilation] = h[:, 0]: no layer knows anything of d samples
#    ago; the loss stays the same, the sound falls apart.
#
# References: queues: Le Paine et al. 2016 (1611.09482); guidance: Ho & Salimans 2022 (2207.12598).
#
# Read before: made.py. Next: pixelcnn.py, where causality gets a second dimension.

# %% The frame, the same to the letter in every chapter: flags, checkpoints, status line, results, pictures
class Run:
    """The flags as attributes, and what a training loop needs around it: see `main`."""
    pause, last_save, notebook = 5, "nothing was saved", "kernel" in Path(sys.argv[0]).name
    def __init__(self, argv=None):
        devices = ["cpu", *["cuda"] * torch.cuda.is_available(), *["mps"] * torch.backends.mps.is_available()]
        devices += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        flags = SETTINGS | {
            "seed": (0, "random seed", 0, 2**31 - 1), "out": (f"out/{NAME}", "folder of the run"),
            "device": ("cuda" if "cuda" in devices else "cpu", "cpu, cuda, cuda:1 or mps", *devices),
            "stand_in": ("auto", "drawn data: auto (if need be), always, never", "auto", "always", "never")}
        parser = argparse.ArgumentParser(usage="%(prog)s [--steps 1000 --out out/try ...]")
        parser.error = lambda message: parser.exit(2, f"{NAME}.py: {message}; see --help\n")
        parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
        for name, (default, about, *_) in flags.items():
            flag = "--" + name.replace("_", "-")
            parser.add_argument(flag, type=type(default), default=default, help=f"{about} ({default})")
        argv = [] if argv is None and self.notebook else argv  # a notebook's own arguments are Jupyter's
        args, self.saved, self.stamp = parser.parse_args(argv), None, None
        if args.resume and (model := Path(args.out, "model.pt")).exists():
            self.saved, self.stamp = read_checkpoint(model), model.stat().st_mtime_ns
            parser.set_defaults(**self.saved["settings"])  # for all that the command line leaves open
            args, Run.last_save = parser.parse_args(argv), f"the run in {args.out} is as it was"
        for name, (default, _, *limits) in flags.items():
            value, word = getattr(args, name), isinstance(default, str)
            if limits and not (value in limits if word else limits[0] <= value <= limits[1]):
                limits = (", " if word else " to ").join(map(str, limits))
                parser.error(f"--{name.replace('_', '-')} {value} is out of range: {limits}")
        vars(self).update(vars(args), out=Path(args.out), step=0, seconds=0.0, curve=[])
        self.settings = {name: getattr(args, name) for name in flags if name not in ("device", "out")}
        self.write("probe", b"").unlink()  # what cannot be written fails now, not after training

    def autocast(self):  # bfloat16 where the hardware computes in it, else nothing
        cpu, kind = getattr(torch.cpu, "get_capabilities", dict)(), self.device.split(":")[0]
        fast = {"cpu": cpu.get("avx512_bf16") or cpu.get("amx_tile"), "mps": False,
                "cuda": kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)}[kind]
        return torch.autocast(kind, torch.bfloat16, enabled=bool(fast))

    def loop(self, **parts):
        """Yield each step's number until --steps or Ctrl-C; save and resume `parts`, whose state it is."""
        def stop(*_):
            self.stopped = True  # Ctrl-C: training ends after this step
        self.parts, self.losses, self.stopped = parts, [], False
        if self.saved:
            if self.saved["source"] != self.source:
                raise OSError(f"{self.out} was trained on {self.saved['source']}, not on {self.source}")
            self.step, self.seconds, self.curve = (self.saved[key] for key in ("step", "seconds", "curve"))
            try:
                for name, state in {k: self.saved["state"][k] for k in parts | self.saved["state"]}.items():
                    if "last_epoch" in state:  # a schedule: its place; --steps may be new
                        state = {"last_epoch": self.step, "_step_count": self.step + 1}
                    if "param_groups" in state:  # an optimiser: moments, rate; --lr may be new
                        groups = zip(parts[name].state_dict()["param_groups"], state["param_groups"])
                        state["param_groups"] = [new | {"lr": old["lr"]} for new, old in groups]
                    parts[name].load_state_dict(state)
            except (RuntimeError, ValueError, KeyError) as error:
                raise OSError(f"{self.out} does not fit these flags: leave the model's alone") from error
        self.kept, self.begun = time.perf_counter(), time.perf_counter() - self.seconds
        usual = signal.signal(signal.SIGINT, stop)
        try:
            while self.step < self.steps and not self.stopped:
                self.step += 1
                torch.manual_seed((self.seed << 32) + self.step)  # a resumed run ends in the same weights
                yield self.step
        finally:
            signal.signal(signal.SIGINT, usual)
        print(f"{self.step:,} steps done{', --resume goes on' * self.stopped}; now evaluating", flush=True)

    def log(self, loss):
        """Note the loss. True every 20 s and at the end, after a status line: it is time to save."""
        self.losses.append(loss.item())
        if not math.isfinite(self.losses[-1]):
            raise FloatingPointError(f"loss not finite at step {self.step}: lower --lr; {Run.last_save}")
        self.now = time.perf_counter()
        if self.now - self.kept < self.pause and self.step < self.steps and not self.stopped:
            return False
        self.seconds, recent = self.now - self.begun, self.losses[-100:]
        rate, left = self.step * self.batch_size / self.seconds, self.seconds * (self.steps / self.step - 1)
        print(f"step {self.step:,}/{self.steps:,}  {LOSS} {sum(recent) / len(recent):.4f}  {rate:,.0f} "
              f"{ITEMS}/s  {round(left) // 60} min {round(left) % 60:02} s left", flush=True)
        torch.manual_seed(0)  # what is measured and drawn on the way has the same noise each time
        return True

    def save(self, validation, samples, **more):
        """Write model.pt and samples.png; add a point to the curve, with `more` numbers of your own."""
        if not math.isfinite(validation):
            raise FloatingPointError(f"not finite after step {self.step}: lower --lr; {Run.last_save}")
        self.curve.append({"step": self.step, "training": sum(self.losses) / len(self.losses),
                           "validation": validation, **more})
        saved = {name: getattr(self, name) for name in ("settings", "source", "step", "seconds", "curve")}
        saved |= {"name": NAME, "state": {name: part.state_dict() for name, part in self.parts.items()}}
        torch.save(saved, blob := io.BytesIO())
        self.stamp = self.write("model.pt", blob.getvalue()).stat().st_mtime_ns
        Run.last_save = f"step {self.step:,} is saved in {self.out}"
        self.picture("samples.png", samples)
        self.losses, self.kept = [], time.perf_counter()
        self.pause = max(20, self.seconds / 20, 15 * (self.kept - self.now))  # saving: a 16th of the time

    def write(self, name, blob):
        """Write out/name whole or not at all. An earlier run there moves aside, a later one stays."""
        try:
            there = name != "probe" and (model := self.out / "model.pt").exists()
            if there and model.stat().st_mtime_ns != self.stamp:
                aside = next(path for k in range(1, 10**6) if not (path := Path(f"{self.out}-{k}")).exists())
                print(f"another run is in {self.out}: {'this' if self.stamp else 'it'} moves to {aside}")
                self.out = aside if self.stamp else self.out.rename(aside).with_name(self.out.name)
            self.out.mkdir(parents=True, exist_ok=True)
            (part := self.out / f"{name}.part").write_bytes(blob)
            return part.replace(self.out / name)
        except OSError as error:
            for part in self.out.glob(f"{name}.part"):
                part.unlink()
            raise OSError(f"cannot write {self.out / name}: {error.strerror}") from error

    def picture(self, name, *figures):
        """Write a figure as .png, or several as the frames of a .gif; a notebook shows it."""
        pages, blob = [], io.BytesIO()
        for figure in figures:
            figure.supxlabel(f"data: {self.source}", x=0.005, ha="left", size=6, color="gray")
            figure.savefig(page := io.BytesIO(), dpi=120)
            pages.append(Image.open(page).convert("P" if name.endswith("gif") else "RGB"))
        pages[0].save(blob, name[-3:], save_all=len(pages) > 1, append_images=pages[1:], loop=0, duration=200)
        self.write(name, blob.getvalue())
        if self.notebook and not self.losses:
            from IPython import display
            display.display(display.Image(blob.getvalue(), format=name[-3:]))

    def report(self, results):
        """Print the results and write metrics.json, then draw curve.png; pictures may follow."""
        for name, value in (self.baselines | results).items():
            print(f"{name}: {value:,.4f}" if isinstance(value, float) else f"{name}: {value:,}", flush=True)
        gpu, where = "cuda" in self.device, f"CPU, {torch.get_num_threads()} threads"
        metrics = {name: getattr(self, name) for name in ("baselines", "settings", "source", "step", "curve")}
        metrics |= {"script": NAME, "results": results, "seconds of training": self.seconds,
                    "device": torch.cuda.get_device_name() if gpu else where, "torch": torch.__version__}
        self.write("metrics.json", json.dumps(metrics, indent=1).encode())
        ax = Figure(figsize=(6, 4), layout="constrained").subplots()
        steps, training, validation = zip(*([p["step"], p["training"], p["validation"]] for p in self.curve))
        ax.plot(steps, training, "o-", steps, validation, "o-", ms=3)
        ax.set(title=f"{NAME}.py: training (blue) and validation", xlabel="step", ylabel=LOSS)
        self.picture("curve.png", ax.figure)

if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(print(f"{NAME}.py: {error}", file=sys.stderr) or 2)
    except KeyboardInterrupt:
        sys.exit(print(f"\n{NAME}.py: stopped; {Run.last_save}", file=sys.stderr) or 130)
