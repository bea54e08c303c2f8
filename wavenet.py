# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""WaveNet: convolutions that look back 1, 2, 4, … samples make sound, one sample after the other.

A sound x of T samples, each one of 256 levels, has a probability that is a product of T factors:

    log p(x | y) = Σₜ log p(xₜ | x₁, …, xₜ₋₁, y)            y: the digit that is spoken, and who speaks
    z = tanh(W_f ∗ h + V_f e) ⊙ σ(W_g ∗ h + V_g e)           filter, gate: h now and d samples ago; e: y, time
    h ← h + W_h z,   skip ← skip + W_s z                     one part goes on, one goes straight to the output

The input is shifted by one, so that h at time t begins with xₜ₋₁: "now" never includes xₜ. At the end p(xₜ | …) is the
softmax of a small network on the sum of the skips. Each layer sees two points, now and d samples ago; d, the dilation,
doubles from layer to layer, so a stack of L layers looks 2ᴸ samples back for the price of 2L taps, and the next stack
begins at d = 1 again and adds 2ᴸ − 1. That is what sound needs: at 8,000 samples a second a vowel's period is about 60
samples long, a syllable 2,000. Sound is quantised to 256 levels by the μ-law: fine where it is soft, coarse where
loud.

Trains: cross-entropy of the next sample, all T of them side by side (no state to wait for, unlike char_rnn.py);
divided by ln 2, in bits per sample. Samples: one after the other. A layer needs its newest input and that of d samples
ago, so each keeps a queue of d inputs and a sample costs one column of the network (all layers at one time), whatever
the length: T columns. The plain way computes all columns so far again for each: T²/2, or at best T times the receptive
field. p(x): exact. Latent, a hidden code behind the sound: none. Good at: texture and timbre, at full resolution. Bad
at: what is longer than its receptive field (here 1,023 samples, 128 ms), and at speed: sound comes slower than it
plays.

What you will see. `python wavenet.py` on the Free Spoken Digit Dataset and 2 CPU cores (AMD EPYC, bfloat16): 456 s of
training, 29 s of pictures and sounds.

    step 49/2,100  -log p in bits per sample 7.4963  19 clips/s  7 min 05 s left
    step 1,130/2,100  -log p in bits per sample 4.0947  19 clips/s  3 min 25 s left
    step 2,100/2,100  -log p in bits per sample 4.1435  19 clips/s  0 min 00 s left

Test clips (recordings 0-4 of each speaker and digit), exact, in bits per sample: 4.139 with digit and speaker told,
4.271 from the network that is told neither. Untrained: 8; frequencies alone: 7.18; xz: 5.45; an order-2 Markov chain
with back-off: 5.11. A second of sound takes 5.2 s.
In out/wavenet: samples, receptive_field, foreseen, curve (.png), growth (.gif), and in wav/ ten spoken digits to
listen to; with --data mnist: samples, completion, receptive_field, curve (.png), growth (.gif).

With `--audio FOLDER` it learns recordings of your own (where all are named like 7_anna_12.wav, digit and speaker are
told). Digits, pixel after pixel: `python wavenet.py --data mnist --batch-size 16 --steps 2000` (not yet measured). A
small classifier of spectrograms, right on 97.0 % of the real test clips, hears 49.0 % of the sounds made as the digit
asked for (benchmarks/ear.py).
On one GPU: `python wavenet.py --steps 30000 --batch-size 16 --channels 128 --layers 10 --stacks 3` (not yet measured).

What differs from the paper. Small, and at 8,000 samples a second. Beside digit and speaker, a layer is told the time
since the clip began, in steps of 1/40 s, all through a small MLP: 128 ms of hearing do not tell where in a word one
is. A tenth of the clips is not told the digit, a tenth the speaker, a tenth neither, so one network gives p(x) and p(x
| y). Nothing tells where a clip ends: a sample is as long as --seconds says. Adam, one cosine of the learning rate.

References: van den Oord et al. 2016 (arXiv:1609.03499); queues: Le Paine et al. 2016 (1611.09482).
Read before: made.py. Next: pixelcnn.py, where causality gets a second dimension.

Things to break, one line each:
  1. In `forward`, put self.embed(x) for self.embed(F.pad(...)): a sample sees itself, the loss falls to 0, and a sound
     repeats one level for ever: silence.
  2. In `__init__`, put Layer(C, 1, self.tick): the receptive field shrinks to 19 samples, the loss is higher, and what
     repeats more slowly than it reaches back does not keep its pitch.
  3. In `sample`, drop the line `queue[:, t % layer.d] = h[:, 0]`: a layer hears nothing of what was d samples ago; the
     loss stays what it is, the sound falls apart.
"""
import argparse
import io
import json
import lzma
import math
import os
import signal
import sys
import time
import wave
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from data import audio, mnist

# %% Settings: name, the published run's value, what it is. `python wavenet.py --help` prints them.
NAME, LOSS, ITEM = "wavenet", "-log p in bits per sample", "clips"
FLAGS = {
    "steps": (2100, "optimiser steps"),
    "batch_size": (4, "clips (or digits) per step"),
    "lr": (2e-3, "peak learning rate of Adam"),
    "channels": (64, "channels of a layer"),
    "layers": (9, "layers in a stack, their dilations 1, 2, 4, ..."),
    "stacks": (2, "stacks of layers, one upon the other"),
    "seconds": (0.5, "length of a sound that is made"),
    "temperature": (1.0, "of the sounds made: below 1 the likely becomes likelier, and noise softer"),
    "data": (("audio", "mnist"), "audio: spoken digits, sample after sample; mnist: one binary pixel after another"),
    "audio": ("", "a folder of WAV files of your own instead of the Free Spoken Digit Dataset"),
}

# %% Model: convolutions that look back 1, 2, 4, ... samples
class Layer(nn.Module):
    """A dilated causal convolution of two taps, now and d samples ago; a gate; one part goes on, one is skipped out."""

    def __init__(self, C, d, tick):
        super().__init__()
        self.C, self.d, self.tick = C, d, tick
        self.taps, self.condition = nn.Linear(2 * C, 2 * C), nn.Linear(C, 2 * C, bias=False)
        self.out = nn.Linear(C, C + 128)

    def forward(self, x, e, past=None):
        """x (B, T, C), what is told in each tick, e (B, ticks, C): new x (B, T, C) and skip (B, T, 128).

        Or one time alone: x (B, 1, C), the x of d samples ago, and what is told in this tick, e (B, 1, C).
        """
        e = self.condition(e)  # (B, ticks, 2C)
        if past is None:
            past, e = F.pad(x, (0, 0, self.d, 0))[:, :-self.d], e.repeat_interleave(self.tick, 1)[:, :x.shape[1]]
        a, b = (self.taps(torch.cat([past, x], 2)) + e).chunk(2, 2)
        h, skip = self.out(a.tanh() * b.sigmoid()).split([self.C, 128], 2)
        return x + h, skip

class WaveNet(nn.Module):
    """p(x | y) = Πₜ p(xₜ | x₍<ₜ₎, y) over symbols 0..K−1: 256 μ-law levels of sound, or 2 of a binary pixel."""

    def __init__(self, K, shape, C=64, layers=9, stacks=2, speakers=0):
        super().__init__()
        self.K, self.shape, self.T, self.speakers = K, shape, math.prod(shape), speakers
        self.embed = nn.Embedding(K + 1, C)  # symbol K means "it begins here"
        self.digit, self.speaker = nn.Embedding(11, C), nn.Embedding(speakers + 1, C)  # the last: "not told"
        self.clock, self.tick = nn.Embedding(64, C), 28 if K == 2 else 200  # the row of a digit, or 1/40 s of a sound
        self.plan = nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))  # what to say when
        self.layers = nn.ModuleList(Layer(C, 2**i, self.tick) for _ in range(stacks) for i in range(layers))
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, K))
        nn.init.zeros_(self.head[-1].weight)  # an untrained model gives each symbol 1 in K
        nn.init.zeros_(self.head[-1].bias)
        self.receptive_field = 1 + sum(layer.d for layer in self.layers)  # how many symbols back a logit can look

    def told(self, n, y, speaker, T):
        """What is told of n clips of T symbols: who speaks which digit, and how late it is, (n, ticks, C).

        y and speaker are None, a number or (n,) numbers.
        """
        clock = self.clock.weight[(torch.arange(-(-T // self.tick), device=self.clock.weight.device)).clamp(max=63)]
        y, speaker = (torch.as_tensor(last if v is None else v, device=clock.device).expand(n)
                      for v, last in ((y, 10), (speaker, self.speakers)))  # the last stands for "not told"
        return self.plan((self.digit(y) + self.speaker(speaker))[:, None] + clock)

    def forward(self, x, y=None, speaker=None):
        """Logits (B, T, K) for symbols x (B, T); logits t know only the symbols before t."""
        e = self.told(len(x), y, speaker, x.shape[1])
        h, skips = self.embed(F.pad(x[:, :-1], (1, 0), value=self.K)), 0
        for layer in self.layers:
            h, skip = layer(h, e)
            skips = skips + skip
        return self.head(skips)

    def log_prob(self, x, y=None, speaker=None, length=None):
        """log p(x | y, speaker) of symbols x (B, T) or images (B, 1, 28, 28): nats (B,). Exact.

        Of each sequence, only the first `length` (B,) symbols count.
        """
        x = x.flatten(1).long()
        logits = self(x, y, speaker).to(self.embed.weight)
        each = -F.cross_entropy(logits.flatten(0, 1), x.flatten(), reduction="none").view_as(x)  # (B, T)
        if length is not None:
            each = each * (torch.arange(x.shape[1], device=x.device) < length[:, None])
        return each.sum(1)

    @torch.no_grad()
    def sample(self, n, y=None, speaker=None, given=None, temperature=1.0):
        """n sequences: sounds (n, T) in [-1, 1], or digits (n, 1, 28, 28); given (n, g): their first g symbols.

        A layer of dilation d needs, beside the newest input, the one of d samples ago and nothing else. So each keeps
        a queue of d inputs, and a new sample costs one column of the network (Fast WaveNet, Le Paine et al. 2016).
        The plain way computes a whole receptive field, or all that came before, for each of them.
        """
        e, device = self.told(n, y, speaker, self.T), self.embed.weight.device
        queues = [self.embed.weight.new_zeros(n, layer.d, layer.C) for layer in self.layers]
        x = torch.full((n, self.T + 1), self.K, device=device)
        for t in range(self.T):
            h, now, skips = self.embed(x[:, t:t + 1]), e[:, t // self.tick, None], 0
            for layer, queue in zip(self.layers, queues):
                past = queue[:, t % layer.d][:, None].clone()  # what the next line overwrites
                queue[:, t % layer.d] = h[:, 0]
                h, skip = layer(h, now, past)
                skips = skips + skip
            x[:, t + 1] = torch.multinomial((self.head(skips)[:, 0] / max(temperature, 1e-6)).softmax(1), 1)[:, 0]
            if given is not None and t < given.shape[1]:
                x[:, t + 1] = given[:, t]
        return expand(x[:, 1:]) if len(self.shape) == 1 else x[:, 1:].view(n, *self.shape).float()

def compand(x):
    """μ-law, ITU G.711's idea: sound in [-1, 1] to 256 levels, finer where it is soft; 128 is silence."""
    return ((x.sign() * (1 + 255 * x.abs()).log() / math.log(256) + 1) * 127.5 + 0.5).long().clamp(0, 255)

def expand(q):
    """The middle of each level, on the logarithmic scale: symbols back to sound in [-1, 1]."""
    v = (q - 127.5) / 127.5
    return v.sign() * (256 ** v.abs() - 1) / 255

# %% The frame, the same to the letter in every chapter: settings, saving, training, pictures. Read it once.
SAVE_EVERY = 20  # seconds between saves at first; more as a run grows long
COMMON = {
    "seed": (0, "every step's randomness comes from (seed, step) alone"),
    "device": ("cuda" if torch.cuda.is_available() else "cpu", "cpu, cuda, cuda:1"),
    "out": (f"out/{NAME}", "folder for all that the run makes"),
    "stand_in": (("auto", "always", "never"), "drawn data where the real cannot be had (auto), always, never"),
}

def start(argv):
    """Settings from the command line, and the run to go on with: a new one, or after --resume the one in --out."""
    parser = argparse.ArgumentParser(prog=f"{NAME}.py", usage=argparse.SUPPRESS, description=__doc__.split("\n")[0])
    for name, (value, what) in (FLAGS | COMMON).items():
        first, choices = (value[0], value) if isinstance(value, tuple) else (value, None)
        parser.add_argument("--" + name.replace("_", "-"), type=type(first), default=first, choices=choices,
                            metavar="|".join(map(str, choices or [name.upper()])), help=f"{what} ({first!r})")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, with the flags it had")
    s = parser.parse_args(argv)
    path, run = Path(s.out, "model.pt"), {"step": 0, "seconds": 0.0, "curve": [], "frames": [], "state": {}}
    if s.resume and not path.exists():
        print(f"{path} is not there: starting at step 0")
    elif s.resume:
        run = read_run(path)
        parser.set_defaults(**run["settings"])  # for all that the command line does not say
        s = parser.parse_args(argv)
    for name, value in vars(s).items():
        least = 1 if type(value) is int and name != "seed" else 0
        if type(value) in (int, float) and not least <= value < (2**31 if type(value) is int else math.inf):
            parser.error(f"--{name.replace('_', '-')} {value} is out of range, which begins at {least}")
    try:
        torch.zeros(1, device=s.device)
    except (RuntimeError, AssertionError):
        parser.error(f"--device {s.device} is not to be had on this machine")
    s.out, run["name"] = Path(s.out), NAME
    run["settings"] = {name: vars(s)[name] for name in (*FLAGS, "seed", "stand_in")}
    kept = [] if s.resume else [f for f in (path, s.out / "metrics.json") if f.exists()]  # of a run before this one
    k = next(k for k in range(1, 10**6) if not any(s.out.glob(f"*-{k}.*")))
    for old in kept:
        print(f"{old} of the run before is now {old.rename(old.with_stem(f'{old.stem}-{k}'))}")
    write(s.out / "settings.json", json.dumps(run["settings"], indent=1).encode())  # fails now, not later
    return s, run

def write(path, blob):
    """Write bytes beside `path`, then rename: nobody meets half a file, and a full disk never costs the old one."""
    beside = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(blob)
        os.replace(beside, path)
    except OSError as error:
        if beside.exists():
            beside.unlink()
        raise OSError(f"cannot write {path}: {error.strerror}") from error

def read_run(path):
    """What `train` saved: name, settings, step, seconds, curve, frames, and the state of every part."""
    try:
        run = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file breaks the unpickler in many ways
        raise OSError(f"{path} is damaged, or no saved run") from error
    if not isinstance(run, dict) or run.get("name") != NAME:
        raise OSError(f"{path} is not a run of {NAME}.py")
    return run

def restore(parts, state):
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (RuntimeError, ValueError, KeyError) as error:
        raise OSError("the saved run does not fit these settings: leave the model's flags as they were") from error

def mixed(device):
    """bfloat16 autocast where the hardware computes in it, else nothing."""
    cpu = getattr(torch.cpu, "get_capabilities", dict)()
    fast = torch.cuda.is_bf16_supported(False) if "cuda" in device else cpu.get("avx512_bf16") or cpu.get("amx_tile")
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bool(fast))

def train(s, run, parts, update, validate, draw):
    """Call `update(step)`, which gives a loss, until s.steps are done or Ctrl-C; validate, draw and save on the way.

    Each step is seeded with (seed, step) and every part is saved (a part is what has a state_dict), so a run that was
    killed and resumed ends in the same weights. `validate()` gives a float, `draw()` a frame to keep.
    """
    if run["state"]:
        restore(parts, run["state"])
    stop, losses, terminal = [], [], sys.stdout.isatty()
    # The first Ctrl-C only asks for a stop after the step, a second one is as usual.
    usual = signal.signal(signal.SIGINT, lambda *_: (stop.append(1), signal.signal(signal.SIGINT, usual)))
    begun = told = saved = time.perf_counter()
    first, before, pause, last = run["step"], run["seconds"], SAVE_EVERY, run["step"] >= s.steps
    while not last:
        torch.manual_seed((s.seed << 32) + run["step"])
        losses.append(update(run["step"]).detach())
        run["step"] += 1
        now, last = time.perf_counter(), run["step"] >= s.steps or bool(stop)
        if last or now - told > (0.5 if terminal else 10) or now - saved > pause:
            values, told, rate = torch.stack(losses).tolist(), now, (run["step"] - first) / (now - begun)
            if not math.isfinite(sum(values)):
                bad = run["step"] - len(values) + 1 + [math.isfinite(v) for v in values].index(False)
                raise FloatingPointError(f"the loss is not finite at step {bad}: try a lower --lr. "
                                         f"What was saved before is still in {s.out}")
            left, loss = (s.steps - run["step"]) / rate, sum(values[-100:]) / len(values[-100:])
            line = (f"step {run['step']:,}/{s.steps:,}  {LOSS} {loss:.4f}  {rate * s.batch_size:,.0f} {ITEM}/s  "
                    f"{left // 60:.0f} min {left % 60:02.0f} s left")
            print(f"\r{line} " if terminal else line, end="" if terminal and not last else "\n", flush=True)
        if last or now - saved > pause:
            run["curve"].append((run["step"], sum(values) / len(values), validate()))
            run["frames"].append(draw())
            run["state"] = {name: part.state_dict() for name, part in parts.items()}
            run["seconds"], blob = before + time.perf_counter() - begun, io.BytesIO()
            torch.save(run, blob)
            write(s.out / "model.pt", blob.getvalue())
            saved, losses = time.perf_counter(), []
            pause = max(SAVE_EVERY, run["seconds"] / 20, 15 * (saved - now))  # saving takes a 16th of the time at most
    signal.signal(signal.SIGINT, usual)
    if stop:
        print(f"stopped after step {run['step']:,} and saved: --resume goes on from there, Ctrl-C leaves now")

def sheet(images, columns, title, rows=None, cols=None):
    """A figure of images (N, 1, 28, 28) in [0, 1], `columns` to a row, with names of rows and columns."""
    tiles = images.float().cpu().view(-1, columns, 28, 28).transpose(1, 2).flatten(2).flatten(0, 1)
    height = len(tiles) // 28
    fig = Figure(figsize=(columns / 2 + 1.2, height / 2 + 0.9), layout="constrained")
    ax = fig.subplots()
    ax.imshow(tiles, cmap="gray_r", vmin=0, vmax=1)
    fig.suptitle(title, size=10)
    ax.set_xticks(range(14, 28 * columns, 28), cols or [""] * columns, size=8)
    ax.set_yticks(range(14, 28 * height, 28), rows or [""] * height, size=8)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return fig

def picture(s, name, *figs):
    """Write a figure as a .png, or several as the frames of a .gif, the source of the data in the corner."""
    pages, blob = [], io.BytesIO()
    for fig in figs:
        fig.supxlabel(s.source, x=0.005, ha="left", size=6, color="gray")
        fig.savefig(page := io.BytesIO(), dpi=120)
        pages.append(Image.open(page).convert("P" if name.endswith("gif") else "RGB"))
    pages[0].save(blob, name[-3:], **{"save_all": True, "append_images": pages[1:], "loop": 0, "duration": [
        200] * len(pages[1:]) + [2500]} if name.endswith("gif") else {})
    write(s.out / name, blob.getvalue())

def finish(s, run, results, levels):
    """Draw the curve beside `levels` to compare with; print the results and keep them in metrics.json."""
    fig = Figure(figsize=(6, 4), layout="constrained")
    ax = fig.subplots()
    step, loss, valid = zip(*run["curve"])
    ax.plot(step, loss, "o-", ms=3, label="training, mean since the point before")
    ax.plot(step, valid, "o-", ms=3, label="validation")
    for name, level in levels.items():
        ax.axhline(level, ls="--", lw=1, color="gray")
        ax.annotate(f"{name} {level:.4g}", (step[-1], level), ha="right", va="bottom", size=8)
    ax.set(title=f"{NAME}.py: loss over training", xlabel="step", ylabel=LOSS,
           yscale="log" if min(loss + valid) > 0 else "linear")
    fig.legend(loc="outside lower right", ncols=2, fontsize=8)
    picture(s, "curve.png", fig)
    for name, value in results.items():
        print(f"{name}: {value:,.4f}" if isinstance(value, float) else f"{name}: {value:,}")
    device = torch.cuda.get_device_name(s.device) if "cuda" in s.device else f"CPU, {torch.get_num_threads()} threads"
    write(s.out / "metrics.json", json.dumps({
        "script": NAME, "results": results, "levels": levels, "settings": run["settings"], "steps done": run["step"],
        "source": s.source, "device": device, "torch": torch.__version__, "curve": run["curve"]}, indent=1).encode())
    print(f"in {s.out}: {', '.join(sorted(f.name for f in s.out.iterdir() if f.suffix != '.part'))}")

# %% Pictures
def wav(s, name, x):
    """Write a sound x (T,) in [-1, 1] as 16-bit PCM at 8 kHz."""
    with wave.open(blob := io.BytesIO(), "wb") as f:
        f.setparams((1, 2, 8000, 0, "NONE", ""))
        f.writeframes((x.cpu().clamp(-1, 1) * 32767).short().numpy().astype("<i2").tobytes())
    write(s.out / "wav" / f"{name}.wav", blob.getvalue())

def waves(sounds, names, title):
    """A figure of sounds (N, T) in [-1, 1]: waveform and, under it, spectrogram."""
    fig = Figure(figsize=(12, 2.1 * -(-len(sounds) // 5) + 0.6), layout="constrained")
    axes = fig.subplots(2 * -(-len(sounds) // 5), 5, squeeze=False, sharex=True)
    for i, (x, name) in enumerate(zip(sounds.cpu(), names)):
        top, low = axes[i // 5 * 2, i % 5], axes[i // 5 * 2 + 1, i % 5]
        top.plot(torch.arange(len(x)) / 8000, x, lw=0.4, color="black")
        top.set_title(name, size=9)
        top.set(yticks=[], ylim=(-1, 1))
        power = torch.stft(x, 256, 40, window=torch.hann_window(256), return_complex=True).abs()  # (129, frames)
        low.imshow(power.clamp(min=1e-3).log10(), origin="lower", aspect="auto", cmap="magma", vmin=-2, vmax=1.5,
                   extent=(0, len(x) / 8000, 0, 4))
        if i % 5 == 0:
            low.set_ylabel("kHz")
        low.set_xlabel("seconds")
    fig.suptitle(title)
    return fig

def draw_receptive_field(s, model):
    """The tree of samples that one output hears through the first four layers, and how far back all of them reach."""
    dilations = [layer.d for layer in model.layers][:4]
    fig, reach = Figure(figsize=(8, 3), layout="constrained"), sum(dilations)
    ax, heard = fig.subplots(), {0}
    for depth, d in reversed(list(enumerate(dilations, 1))):
        for t in heard:
            for past in (t, t - d):
                ax.plot([past, t], [depth - 1, depth], color="tab:orange", lw=1)
        heard |= {t - d for t in heard}
    for depth in range(len(dilations) + 1):
        ax.plot(range(-reach, 1), [depth] * (reach + 1), "o", ms=4, color="0.75", zorder=3)
    ax.set(xlabel="samples ago", ylabel="layer", yticks=range(len(dilations) + 1),
           title=f"what one output hears through the first {len(dilations)} layers; "
                 f"all {len(model.layers)} reach {model.receptive_field:,} samples back")
    picture(s, "receptive_field.png", fig)

def draw_audio(s, run, model, clip, digit, speaker):
    """All pictures and sounds of a model of speech; a test clip of symbols (T,), its digit and speaker, for one."""
    torch.manual_seed(1)
    draw_receptive_field(s, model)
    names, n = run["speakers"] or [""], 10
    who = torch.arange(n, device=s.device) % max(1, len(names))
    y = torch.arange(n, device=s.device) if run["digits"] else None
    sounds = model.sample(n, y, who if run["speakers"] else None, temperature=s.temperature)
    labels = [f"{i if run['digits'] else 'sample'}_{names[w] or i}" for i, w in enumerate(who.tolist())]
    picture(s, "samples.png", waves(sounds, labels, "ten sounds that nobody made: digit_speaker"))
    for x, name in zip(sounds, labels):
        wav(s, name, x)
    picture(s, "growth.gif", *[waves(expand(f.long()), labels[:5], f"after {c[0]:,} steps of training, {c[2]:.2f} bits "
                               "per sample") for f, c in zip(run["frames"], run["curve"])])
    x = clip[None, :1600]
    with torch.no_grad():
        p = model(x, digit, speaker)[0].softmax(1).cpu()  # (T, 256)
    at = slice(1000, 1240) if len(p) > 1240 else slice(0, 240)
    fig = Figure(figsize=(10, 3.6), layout="constrained")
    ax = fig.subplots()
    ax.imshow(p[at].T ** 0.5, origin="lower", aspect="auto", cmap="magma",
              extent=(at.start / 8, at.start / 8 + len(p[at]) / 8, -0.5, 255.5))
    ax.plot((torch.arange(at.start, at.start + len(p[at])) + 0.5) / 8, x[0, at].cpu(), ".", ms=2, color="cyan")
    ax.set(xlabel="milliseconds", ylabel="level (μ-law)",
           title="what the model expects of each next sample (bright) and what came (dots): a test clip")
    picture(s, "foreseen.png", fig)

def draw_digits(s, run, model, x, y):
    """All pictures of a model of digits, with binary test digits x (N, 1, 28, 28) and their labels y (N,)."""
    torch.manual_seed(1)
    draw_receptive_field(s, model)
    digit, names = torch.arange(10, device=x.device), list("0123456789")
    x10 = x[torch.stack([(y == d).nonzero()[0, 0] for d in range(10)])]  # the first test digit of each class
    picture(s, "samples.png", sheet(model.sample(100, digit.repeat(10)), 10, "samples of each class", cols=names))
    picture(s, "growth.gif", *[sheet(f.float(), 10, f"samples after {c[0]:,} steps of training", cols=names)
                           for f, c in zip(run["frames"], run["curve"])])
    half = x10.flatten(1)[:, :392].long()
    picture(s, "completion.png", sheet(torch.cat([x10, F.pad(half, (0, 392)).view_as(x10)] + [
        model.sample(10, None, given=half) for _ in range(4)]), 10, "the lower half drawn anew, class not told",
        ["digit", "given", 1, 2, 3, 4], names))

# %% The run
def build(s, speakers=0):
    K, shape = (2, (1, 28, 28)) if s.data == "mnist" else (256, (max(1, round(8000 * s.seconds)),))
    return WaveNet(K, shape, s.channels, s.layers, s.stacks, speakers)

def load(path=f"out/{NAME}/model.pt", device="cpu"):
    """The model of a saved run, ready to sample."""
    run = read_run(path)
    model = build(argparse.Namespace(**run["settings"]), len(run.get("speakers", ())))
    restore({"model": model}, run["state"])
    return model.to(device).eval()

def main(argv=None):
    s, run = start(argv)
    torch.manual_seed(s.seed)
    (run_audio if s.data == "audio" else run_digits)(s, run)

def prepare(s, run, levels):
    """The model, its optimiser, and a function that takes one step of it down a loss."""
    model = build(s, len(run.get("speakers", ()))).to(s.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=s.lr, fused=True)
    size = sum(p.numel() for p in model.parameters())
    print(f"{NAME}.py: {size:,} parameters, receptive field {model.receptive_field:,}, {s.source}, {s.device}; {LOSS}: "
          + ", ".join(f"{name} {level:.3f}" for name, level in levels.items()))

    def descend(step, loss):
        done = step / s.steps  # the learning rate goes up over a twentieth of the run, then down along a cosine
        optimizer.param_groups[0]["lr"] = s.lr * min(1, 20 * done + 1e-3) * (1 + math.cos(math.pi * done)) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    return model, optimizer, descend

def markov(train, test):
    """Bits per sample, in test symbols (N,), of an order-2 Markov chain where each order backs off to the one below."""
    n3 = torch.bincount(train[:-2] * 65536 + train[1:-1] * 256 + train[2:], minlength=2**24).view(256, 256, 256).float()
    p = torch.full((256,), 1 / 256)
    for counts, weight in ((n3.sum((0, 1)), 1), (n3.sum(0), 16), (n3, 100)):
        p = (counts + weight * p) / (counts.sum(-1, keepdim=True) + weight)
    return -p[test[:-2], test[1:-1], test[2:]].log2().mean().item()

def run_audio(s, run):
    PIECE = 20000  # long recordings are cut to pieces
    train_clips, test_clips, s.source = audio(s.audio or None, s.stand_in)
    run["speakers"] = sorted({who for _, _, who in train_clips if who})
    run["digits"] = all(digit >= 0 for _, digit, _ in train_clips)
    known = {who: i for i, who in enumerate(run["speakers"])}

    def pieces(clips):
        """[(symbols (T,), digit, speaker)], shortest first; where digit or speaker is not known, "not told"."""
        cut = [(q, digit % 11, known.get(who, len(known))) for x, digit, who in clips
               for q in compand(torch.from_numpy(x)).split(PIECE) if len(q) > 2]  # -1 % 11 is 10
        return sorted(cut, key=lambda c: len(c[0]))

    def batch(clips):
        """Clips side by side, silence after the shorter: symbols (B, T), digits, speakers, lengths (B,)."""
        x = nn.utils.rnn.pad_sequence([q for q, _, _ in clips], batch_first=True, padding_value=128)
        return [v.to(s.device) for v in (x, *map(torch.tensor, zip(*[(d, who, len(q)) for q, d, who in clips])))]

    clips, test = pieces(train_clips), pieces(test_clips)
    valid, clips = clips[9::20], [c for i, c in enumerate(clips) if i % 20 != 9]  # a twentieth for validation
    symbols, heard = (torch.cat([q for q, _, _ in some]) for some in (test, clips))
    count = heard.bincount(minlength=256) + 1.0
    levels = {"untrained": 8.0, "frequencies alone": -(count / count.sum()).log2()[symbols].mean().item(),
              "xz": len(lzma.compress(symbols.byte().numpy().tobytes(), preset=9)) * 8 / len(symbols),
              "order-2 Markov chain": markov(heard, symbols)}
    model, optimizer, descend = prepare(s, run, levels)

    def update(step):
        first = torch.randint(max(1, len(clips) - s.batch_size + 1), ()).item()  # neighbours are of about one length
        x, y, who, length = batch(clips[first:first + s.batch_size])
        hide = torch.rand(len(y), device=s.device)  # a tenth is not told the digit, one the speaker, one neither
        y, who = y.where(hide >= 0.2, 10), who.where((hide < 0.1) | (hide >= 0.3), len(known))
        with mixed(s.device):
            loss = -model.log_prob(x, y, who, length).sum() / length.sum() / math.log(2)
        return descend(step, loss)

    @torch.no_grad()
    def bits(clips, tell):
        """−log₂ p per sample over all samples of some clips."""
        nats = 0
        for i in range(0, len(clips), 4):
            x, y, who, length = batch(clips[i:i + 4])
            nats -= model.log_prob(x, y if tell else None, who if tell else None, length).sum().item()
        return nats / math.log(2) / sum(len(q) for q, _, _ in clips)

    def draw():
        torch.manual_seed(0)
        T, model.T = model.T, 3000
        y, who = torch.arange(5, device=s.device), torch.arange(5, device=s.device) % max(1, len(known))
        sounds = model.sample(5, y if run["digits"] else None, who if known else None)
        model.T = T
        picture(s, "samples.png", waves(sounds, [*"01234"], f"after {run['step']:,} steps of training"))
        return compand(sounds).byte().cpu()

    train(s, run, {"model": model, "optimizer": optimizer}, update, lambda: bits(valid[::3], True), draw)

    done = time.perf_counter()
    told, untold = bits(test, True), bits(test, False)
    draw_audio(s, run, model, *(v.to(s.device) for v in map(torch.as_tensor, test[len(test) // 2])))
    drawn, model.T = time.perf_counter(), 8000
    model.sample(1)
    finish(s, run, {
        "test bits/sample, digit and speaker told": told, "test bits/sample, not told": untold,
        "test samples": len(symbols), "seconds for 1 second of sound": time.perf_counter() - drawn,
        "seconds of training": run["seconds"], "seconds after": drawn - done}, levels)

def run_digits(s, run):
    x, y, x_test, y_test, s.source = mnist(s.stand_in)
    b_valid, b_test = binarise(x[55000:], seed=0)[:1000], binarise(x_test, seed=1)  # once and for all
    x, y, b_valid, b_test, y_test = (v.to(s.device) for v in (x, y, b_valid, b_test, y_test))
    levels = {"untrained": 1.0}
    model, optimizer, descend = prepare(s, run, levels)

    def update(step):
        i = torch.randint(55000, (s.batch_size,), device=s.device)
        label = torch.where(torch.rand(s.batch_size, device=s.device) < 0.5, 10, y[i])  # half of them are not told
        with mixed(s.device):
            loss = -model.log_prob(binarise(x[i]), label).mean() / 784 / math.log(2)
        return descend(step, loss)

    @torch.no_grad()
    def nats(digits, labels=None):
        parts = zip(digits.split(100), [None] * len(digits) if labels is None else labels.split(100))
        return -torch.cat([model.log_prob(*part) for part in parts])

    def draw():
        torch.manual_seed(0)
        samples = model.sample(40, torch.arange(40, device=s.device) % 10)
        picture(s, "samples.png", sheet(samples, 10, f"after {run['step']:,} steps of training", cols=[*range(10)]))
        return samples.byte().cpu()

    train(s, run, {"model": model, "optimizer": optimizer}, update,
          lambda: nats(b_valid).mean().item() / 784 / math.log(2), draw)

    done = time.perf_counter()
    untold, told = nats(b_test), nats(b_test, y_test)
    draw_digits(s, run, model, b_test, y_test)
    drawn = time.perf_counter()
    model.sample(64)
    finish(s, run, {
        "test -log p(x), nats, network not told the class": untold.mean().item(),
        "its standard error": (untold.std() / len(untold) ** 0.5).item(),
        "test -log p(x | y), nats": told.mean().item(),
        "seconds for 64 samples": time.perf_counter() - drawn,
        "seconds of training": run["seconds"], "seconds after": drawn - done}, levels)

def binarise(x, seed=None):
    """A Bernoulli draw for each pixel of uint8 digits, its grey value the probability; by a seed, the same for ever."""
    generator = None if seed is None else torch.Generator(x.device).manual_seed(seed)
    return (torch.rand(x.shape, device=x.device, generator=generator) * 255 < x).float()

if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(print(f"{NAME}.py: {error}", file=sys.stderr) or 2)
