# /// script
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""WaveNet: dilated causal convolutions (van den Oord et al. 2016, arXiv:1609.03499).

Can a computer speak without rules for speech? A recording is a row of numbers, here 8,000 a second,
called samples. WaveNet writes such a row number by number, each rounded to one of 256 levels. By
the product rule the probability of a sound x_1, …, x_T, given the spoken digit and the speaker, is

    log p(x | digit, speaker) = Σ_t log p(x_t | x_1, …, x_{t−1}, digit, speaker)

and a network has to give, at every t, 256 probabilities, one for each level that x_t may have.

Which earlier samples should it look at? In a vowel the sound repeats about every 60 samples, a
spoken digit lasts 3,500. A layer that looked at all of them would have far too many weights. So
each layer looks at two places only: now, and d samples ago. With h_t, a vector of 64 numbers for
each t, and ⊙, the product number by number:

    filter_t = W_1 h_t + W_2 h_{t−d} + V_1 e + b_1      e is the sum of two learned vectors:
    gate_t   = W_3 h_t + W_4 h_{t−d} + V_2 e + b_2      one of the digit, one of the speaker
    z_t      = tanh(filter_t) ⊙ σ(gate_t)               σ(a) = 1 / (1 + exp(−a)), 0 shut, 1 open
    h_t      ← h_t + W_5 z_t + b_5                      for the next layer
    total_t  ← total_t + W_6 z_t + b_6                  for the output: every layer contributes

The same weights serve every t, which makes this a convolution. It is causal: nothing later than t
is used. d, its dilation, doubles from layer to layer: 1, 2, 4, …, 2048. That is the paper's idea:
twelve layers of two places each reach 4,096 samples back. See the tree below.

Before the first layer, h_t is a vector learned for the level x_{t−1}, so x_t never predicts itself.
After the last, a small network turns total_t (at first 0) into 256 probabilities.

Training minimises the negative log-likelihood, NLL = −log p(x | digit, speaker). It is stated in
bits per sample, NLL / (T log 2): b bits are as much uncertainty as a choice among 2^b equally
probable levels. (The natural logarithm's unit is the nat, 1.44 bits.) Lower is better. All T terms
are computed at once.

Sampling goes in order: compute the 256 probabilities for x_1 and draw x_1; then for x_2, given
x_1; and so on, 8,000 times for a second of sound.

Run `python wavenet.py`; pictures and a sound, samples.wav, appear in out/wavenet/. On the Free
Spoken Digit Dataset (six speakers; recordings 0 to 4 of each digit are the test) and one core of an
AMD EPYC (bfloat16) it takes 882 seconds. Test recordings, bits per sample: all levels alike 8; each
sample by itself, level by level as often as in training, 7.18; this model 4.070 given digit and
speaker. A separate classifier hears the digit asked for in 74.3 % of 300 sounds, and in 98 % of
real recordings. For your own recordings: `--audio FOLDER`.

Good at: timbre, exact likelihoods. Bad at: speed of sampling; words that can be understood, and
whatever lasts longer than 4,096 samples. Read before: made.py, char_rnn.py. Read next: pixelcnn.py.
"""

import argparse
import io
import json
import math
import sys
import time
import wave
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from data import audio


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=17_000, help="optimiser steps")
    parser.add_argument("--batch-size", type=positive_int, default=1, help="clips a step")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate of Adam")
    parser.add_argument("--channels", type=positive_int, default=64, help="numbers in h_t")
    parser.add_argument("--layers", type=positive_int, default=12, help="dilations 1, 2, 4, ...")
    parser.add_argument("--duration", type=float, default=0.5, help="of a sampled sound, seconds")
    parser.add_argument("--audio", help="a folder of WAV files instead of the spoken digits")
    add_common_flags(parser, out="out/wavenet", save_every=1500)  # --device, --resume ...
    return parse(parser, argv)


# %% Data
# A microphone's samples lie between −1 and 1. Most are close to 0, where the ear hears the finest
# differences. So the 256 levels are not evenly spread: a logarithm, the μ-law of telephony with
# μ = 255, comes first, f(x) = sign(x) log(1 + 255 |x|) / log 256. It maps [−1, 1] to itself, and
# (f + 1) · 127.5 is rounded:
#
#     x       f(x)      level            up to the next level
#     0       0         128 (silence)    0.0002
#     0.01    0.228     157              0.0006
#     0.5     0.876     239              0.022
def compand(x):
    """Levels 0 to 255 of sound in [-1, 1]."""
    f = x.sign() * torch.log(1 + 255 * x.abs()) / math.log(256)
    return ((f + 1) * 127.5 + 0.5).long().clamp(0, 255)


def expand(level):
    """Sound in [-1, 1], of each level its middle: the way back."""
    f = level / 127.5 - 1
    return f.sign() * (256 ** f.abs() - 1) / 255


def prepare(clips, speakers, device):
    """Levels (T,), digit and number of speaker of each clip; what is long is cut into pieces.

    Where file names give no digit, it is −1; then all clips are of class 0.
    """
    prepared = []
    for sound, digit, name in clips:
        levels = compand(torch.from_numpy(sound)).byte().to(device)
        for piece in levels.split(20_000):  # 2.5 s
            prepared.append((piece, max(digit, 0), speakers.index(name)))
    return prepared


# Clips of a batch must have one length: the longer lose what is beyond the shortest. In training it
# is then made a multiple of 256: few different sizes, and a size met before starts faster.
def batch_of(clips, multiple=1):
    """Levels (B, T) of clips, cut to one length, their digits (B,) and speakers (B,)."""
    levels, digits, speakers = zip(*clips)
    length = min(len(piece) for piece in levels)
    if length > multiple:
        length -= length % multiple
    x = torch.stack([piece[:length] for piece in levels]).long()
    digit = torch.tensor(digits, device=x.device)
    speaker = torch.tensor(speakers, device=x.device)
    return x, digit, speaker


# %% Model
START = 256  # stands before the first sample; levels are 0 to 255


# Three layers, with dilations 1, 2 and 4, predict x_9. Each o is a vector, computed from two of the
# row below: the one straight below, and the one d samples before that. The column of x_8 is h_9.
#
#     x_9 ?                                             o
#     d = 4                         ┌───────────────────┤
#                                   o                   o
#     d = 2               ┌─────────┤         ┌─────────┤
#                         o         o         o         o
#     d = 1          ┌────┤    ┌────┤    ┌────┤    ┌────┤
#                    x_1  x_2  x_3  x_4  x_5  x_6  x_7  x_8
#
# x_8 and the 1 + 2 + 4 samples before it: the receptive field is 8 = 2^3 samples. With twelve
# layers it is 2^12 = 4,096. With d = 1 everywhere it would be 1 + 12.
#
# What is W_2 h_{t−d} when t − d lies before the beginning? h is 0 there. So the network notices how
# long ago a sound began, as far as it reaches; nobody tells it the time, or how long a clip is.
class Layer(nn.Module):
    """A causal convolution that sees two places, a gate, and the way on (paper: figure 4)."""

    def __init__(self, channels, dilation):
        super().__init__()
        self.dilation = dilation
        self.now = nn.Linear(channels, 2 * channels)  # W_1 and W_3, b_1 and b_3
        self.before = nn.Linear(channels, 2 * channels, bias=False)  # W_2 and W_4
        self.label = nn.Linear(channels, 2 * channels, bias=False)  # V_1 and V_2
        self.out = nn.Linear(channels, 2 * channels)  # W_5 and W_6, b_5 and b_6

    def forward(self, h, past, e):
        """The next layer's h, and what goes to the output; past is h of d samples ago."""
        both = self.now(h) + self.before(past) + self.label(e)
        filter, gate = both.chunk(2, dim=-1)
        z = filter.tanh() * gate.sigmoid()
        residual, skip = self.out(z).chunk(2, dim=-1)
        return h + residual, skip


class WaveNet(nn.Module):
    """p(x | digit, speaker) of sounds x (B, T) in levels 0 to 255."""

    def __init__(self, channels=64, layers=12, digits=10, speakers=("anyone",)):
        super().__init__()
        self.channels = channels
        self.digits = digits
        self.speakers = list(speakers)  # their names: the numbers in `speaker` are places here
        self.digit = nn.Embedding(digits, channels)
        self.speaker = nn.Embedding(len(speakers), channels)
        self.levels = nn.Embedding(257, channels)  # 256 levels and the start
        self.first = nn.Linear(channels, channels)  # in the paper a convolution of two places
        self.layers = nn.ModuleList(Layer(channels, 2**i) for i in range(layers))
        self.head = nn.Sequential(
            nn.ReLU(), nn.Linear(channels, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, 256)
        )

    def condition(self, digit, speaker):
        """e, (B, C): what anyone's 7 has in common, and what all words of a speaker have."""
        return self.digit(digit) + self.speaker(speaker)

    def forward(self, x, digit, speaker):
        """Logits (B, T + 1, 256), one set for each sample of x and one for the sample to come.

        The start goes in before x, so all are shifted by one: logits at t see only what is before.
        """
        e = self.condition(digit, speaker)[:, None]  # the same at all times
        h = self.first(self.levels(F.pad(x, (1, 0), value=START)))
        total = 0
        for layer in self.layers:
            past = F.pad(h, (0, 0, layer.dilation, 0))[:, : h.shape[1]]  # d samples ago, or 0
            h, skip = layer(h, past, e)
            total = total + skip
        return self.head(total).float()  # back to float32 after bfloat16

    def log_prob(self, x, digit, speaker):
        """log p(x | digit, speaker), exact, nats (B,)."""
        logits = self(x[:, :-1], digit, speaker)  # nothing comes after the last sample
        log_p = -F.cross_entropy(logits.flatten(0, 1), x.flatten(), reduction="none")
        return log_p.view_as(x).sum(1)  # over time: the product rule

    @torch.no_grad()
    def sample(self, digit, speaker, length):
        """Draw a sound for each digit and speaker (B,), in [-1, 1], (B, length)."""
        x = torch.zeros(len(digit), 0, dtype=torch.long, device=digit.device)
        for _ in range(length):
            p = self(x, digit, speaker)[:, -1].softmax(1)
            level = torch.multinomial(p, 1)
            x = torch.cat([x, level], dim=1)
        return expand(x)


# %% Training
def warmup_cosine(u):
    """Share of the peak learning rate, u = 0 to 1 through training: a rise, then half a cosine."""
    return min(u / 0.05, 0.5 + 0.5 * math.cos(math.pi * u))


def main(argv=None):
    args = parse_flags(argv)
    train, test, source = audio(args.audio, args.stand_in)
    args.speakers = sorted({name for _, _, name in train + test})  # model.pt keeps their names
    args.digits = 1 + max(0, *[digit for _, digit, _ in train + test])
    test = prepare(test, args.speakers, args.device)
    clips = prepare(train, args.speakers, args.device)
    clips.sort(key=lambda clip: len(clip[0]))  # a batch is neighbours: of almost one length
    validation = clips[::30]
    training = [clip for i, clip in enumerate(clips) if i % 30 > 0 or len(clips) == 1]
    starts = max(1, len(training) - args.batch_size + 1)

    torch.manual_seed(args.seed)
    model = WaveNet(args.channels, args.layers, args.digits, args.speakers).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99), fused=True)
    run = Run(args, source, len(training), "NLL, bits/sample", model=model, optimizer=optimizer)
    for step in run.steps():
        optimizer.param_groups[0]["lr"] = args.lr * warmup_cosine(step / args.steps)
        start = torch.randint(starts, ()).item()
        x, digit, speaker = batch_of(training[start : start + args.batch_size], multiple=256)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
            log_p = model.log_prob(x, digit, speaker)
            loss = -log_p.sum() / x.numel() / math.log(2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss)
        if step % args.save_every == 0 or step == args.steps:
            run.save(score(model, validation)[0])
            _, digit, speaker = batch_of(validation[:: 1 + len(validation) // 10])
            sounds = cached_sample(model, digit, speaker, round(2000 * args.duration))
            page = spectrograms(model, sounds, digit, speaker, f"beginnings, step {step:,}")
            run.picture("samples.png", page)
    evaluate(run, model, training, test)


# %% That is the whole idea. Below: what the trained model can do, and the frame.
# %% Evaluation
def load_checkpoint(path):
    """What a run wrote into model.pt, a dictionary."""
    try:
        saved = torch.load(Path(path).expanduser(), map_location="cpu", weights_only=True)
        return saved | {"flags": saved["flags"]}  # KeyError if this is somebody else's file
    except Exception as error:  # a damaged file fails in many ways
        raise OSError(f"{path} is missing, damaged, or no checkpoint of this script") from error


def load(path="out/wavenet/model.pt", device="cpu"):
    """The model of a finished or unfinished run, ready to sample."""
    saved = load_checkpoint(path)
    flags = saved["flags"]
    sizes = [flags[name] for name in ("channels", "layers", "digits", "speakers")]
    model = WaveNet(*sizes)
    model.load_state_dict(saved["model"])
    return model.to(device).eval()


# `model.sample` computes the whole past anew for every sample. But h_t never changes once it is
# known, and a layer needs only two of them: h_t and h_{t−d}. So each layer keeps its last d values
# of h in a queue. Its place t mod d holds h_{t−d}; that is read, and h_t takes its place. With
# d = 4, at t = 9:
#
#     place        0     1     2     3
#     holds       h_8   h_5   h_6   h_7        9 mod 4 = 1: read h_5, write h_9
#
# A sample then costs one column of the network (Le Paine et al. 2016, arXiv:1611.09482).
@torch.no_grad()
def cached_sample(model, digit, speaker, length):
    """The same as model.sample, faster: sounds (B, length) in [-1, 1]."""
    e = model.condition(digit, speaker)
    queues = [e.new_zeros(layer.dilation, *e.shape) for layer in model.layers]
    level = torch.full_like(digit, START)
    levels = []
    for t in range(length):
        h = model.first(model.levels(level))
        total = 0
        for layer, queue in zip(model.layers, queues):
            place = t % layer.dilation
            now = h
            h, skip = layer(now, queue[place], e)
            queue[place] = now
            total = total + skip
        p = model.head(total).softmax(1)
        level = torch.multinomial(p, 1)[:, 0]
        levels.append(level)
    return expand(torch.stack(levels, dim=1))


@torch.no_grad()
def score(model, clips):
    """The NLL of clips given their labels, bits per sample of all clips, and its standard error.

    They are scored whole and one by one: nothing is cut.
    """
    log_p = torch.cat([model.log_prob(*batch_of([clip])) for clip in clips])
    bits = -log_p.cpu() / math.log(2)
    lengths = torch.tensor([len(levels) for levels, _, _ in clips])
    mean = bits.sum() / lengths.sum()
    error = torch.norm(bits - mean * lengths) / lengths.sum()
    return mean.item(), error.item()


def spectrograms(model, sounds, digit, speaker, title):
    """A figure of sounds, five to a row: which frequencies are loud when."""
    rows = math.ceil(len(sounds) / 5)
    figure = Figure(figsize=(12, 2.3 * rows + 0.5), layout="constrained")
    figure.suptitle(title)
    for i, sound in enumerate(sounds):
        axes = figure.add_subplot(rows, 5, i + 1)
        noisy = sound.cpu() + 1e-4 * torch.rand(len(sound))  # the log of pure silence is −∞
        axes.specgram(noisy.numpy(), NFFT=128, Fs=8, noverlap=96, cmap="magma", vmin=-80, vmax=-20)
        name = f"{digit[i]} {model.speakers[speaker[i]]}"
        axes.set(title=name, xlabel="milliseconds", ylabel="kHz")
    return figure


def wav(sound):
    """The bytes of a WAV file of sound (T,) in [-1, 1]: 16 bits, 8,000 samples a second."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes((sound.cpu() * 32767).short().numpy().tobytes())
    return file.getvalue()


def prediction(p, levels, start):
    """A figure: the probabilities p (T, 256) of 240 levels from `start` on, and what came."""
    axes = Figure(figsize=(10, 4), layout="constrained").subplots()
    stop = min(start + 240, len(levels))
    image = p[start:stop].T.sqrt().numpy()  # the root shows small ones, too
    axes.imshow(image, origin="lower", aspect="auto", cmap="magma", extent=(start, stop, 0, 256))
    axes.plot(torch.arange(start, stop) + 0.5, levels[start:stop] + 0.5, ".", ms=3, color="cyan")
    title = "bright: levels that the model expects at t, given all before; dots: what came"
    axes.set(xlabel="t, in samples of 1/8000 s", ylabel="level", ylim=(0, 256), title=title)
    return axes.figure


@torch.no_grad()
def evaluate(run, model, training, test):
    """Results, pictures and sounds; clips as from `prepare`."""
    torch.manual_seed(1)
    print(f"scoring {len(test)} test clips ...", flush=True)
    bits, error = score(model, test)
    # And two models without a past: all levels alike; each as often as in training.
    counts = torch.cat([levels for levels, _, _ in training]).long().bincount(minlength=256) + 1
    log_p = torch.log2(counts / counts.sum())
    found = torch.cat([levels for levels, _, _ in test]).long()
    results = {
        "all levels alike, bits/sample": 8.0,
        "level by level, bits/sample": -log_p[found].mean().item(),
        "NLL, bits/sample": bits,
        "NLL, standard error": error,
    }
    if model.digits > 1:  # by Bayes' rule the digit heard is that under which x is most probable
        print("listening to every seventh clip ten times ...", flush=True)
        right = []
        for levels, digit, speaker in test[::7]:
            bits = [score(model, [(levels, d, speaker)])[0] for d in range(model.digits)]
            right.append(bits.index(min(bits)) == digit)
        results["Bayes' classifier, share of every 7th test clip"] = sum(right) / len(right)
    run.report(results)

    shown = test[:: max(1, len(test) // 9)]
    _, digit, speaker = batch_of(shown)
    sounds = cached_sample(model, digit, speaker, round(8000 * run.args.duration))
    write(run.args.out / "samples.wav", wav(sounds.flatten()))
    sounds = [*sounds, *[expand(levels.float()) for levels, _, _ in shown]]
    title = "above: sampled for a digit and a speaker; below: test recordings of the same"
    page = spectrograms(model, sounds, digit.repeat(2), speaker.repeat(2), title)
    run.picture("samples.png", page)

    x, digit, speaker = batch_of([test[len(test) // 2]])
    p = model(x[:, :-1], digit, speaker)[0].softmax(1).cpu()
    pages = [prediction(p, x[0].cpu(), start) for start in range(0, x.shape[1], 240)]
    run.picture("predictions.png", pages[len(pages) // 2])
    run.picture("predictions.gif", *pages)


# %% Notes
# Differs from the paper: one stack of twelve layers, there several of ten; one place before them; a
# word a step. A vector for each pair, not a sum: 53.7, not 60.0 %, were heard after 5,000 steps.
#
# Things to break:
# 1. In `forward`, put F.pad(x, (0, 1), value=START): x_t predicts itself; samples repeat a level.
# 2. In `__init__`, put Layer(channels, 1): 13 samples are in sight, and the loss is higher.
# 3. In `cached_sample`, leave out queue[place] = now: the loss is as before, sounds fall apart.


# %% The frame: flags, checkpoints, status lines, pictures; the same in every script
def add_common_flags(parser, out, save_every):
    devices = [d for d in ("cuda", "cpu", "mps") if torch.get_device_module(d).device_count()]
    parser.add_argument("--device", default=devices[0], choices=devices, help="where to compute")
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, help="None: if faster")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--out", type=Path, default=Path(out), help="folder of the run")
    parser.add_argument("--save-every", type=positive_int, default=save_every, help="in steps")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    choices = ["auto", "always", "never"]
    parser.add_argument("--stand-in", default="auto", choices=choices, help="use made-up data")


def positive_int(text):
    if int(text) < 1:
        raise ValueError
    return int(text)


def parse(parser, argv):
    """The flags. With --resume, those not given now are as in the saved run."""
    if argv is None and Path(sys.argv[0]).name.endswith("kernel_launcher.py"):
        argv = []  # these flags are not ours but those of a notebook's kernel
    args = parser.parse_args(argv)
    if args.resume:
        parser.set_defaults(**load_checkpoint(args.out / "model.pt")["flags"])
        args = parser.parse_args(argv)
    args.out = args.out.expanduser()
    if args.bfloat16 is None:
        args.bfloat16 = fast_bfloat16(args.device)
    return args


def fast_bfloat16(device):
    """Whether the hardware computes in bfloat16, which is then faster than float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return device == "cpu" and bool(cpu.get("avx512_bf16") or cpu.get("amx_tile"))


def write(path, content):
    """Write a file whole or not at all: first beside the old one, which it then replaces."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        if part.exists():
            part.unlink()
        raise OSError(f"cannot write {path}, see --out: {error.strerror}") from error


class Run:
    """A training run in the folder --out: its steps, status lines, checkpoints and results."""

    def __init__(self, args, source, size, loss_name, **parts):
        self.args = args
        self.source = source  # the name of the training data, of which there are `size`
        self.loss_name = loss_name
        self.parts = parts  # models and optimisers: checkpoints hold them, --resume restores them
        self.step = 0
        self.seconds = 0.0
        self.losses = []  # of the steps since the last checkpoint
        self.curve = []  # a point for each checkpoint
        networks = nn.ModuleList(p for p in parts.values() if isinstance(p, nn.Module))
        weights = sum(p.numel() for p in networks.parameters() if p.requires_grad)
        self.where = f"{args.device}, {torch.get_num_threads()} threads, bfloat16: {args.bfloat16}"
        print(f"{size:,} examples of {source!a}, {weights:,} weights, {self.where}", flush=True)
        self.checkpoint = args.out / "model.pt"
        if args.resume:
            self.restore(load_checkpoint(self.checkpoint))
        else:
            self.move_aside()
            self.save_checkpoint()

    def restore(self, saved):
        if saved["source"] != self.source:
            raise OSError(f"{self.args.out} learnt from {saved['source']}, not {self.source}")
        try:
            for name, part in self.parts.items():
                part.load_state_dict(saved[name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise OSError(f"{self.checkpoint} is of another script or other sizes") from error
        for name in ("step", "seconds", "curve"):
            setattr(self, name, saved[name])
        self.args.steps = max(self.args.steps, self.step)
        self.written = self.checkpoint.stat().st_mtime_ns

    def move_aside(self):
        """Move an earlier run's checkpoint, results and pictures to a folder of their own."""
        if not self.checkpoint.exists():
            return
        aside = self.args.out / time.strftime("earlier-%Y%m%d-%H%M%S")
        aside.mkdir()
        for path in list(self.args.out.iterdir()):
            if path.name in ("model.pt", "metrics.json") or path.suffix in (".png", ".gif", ".wav"):
                path.rename(aside / path.name)
        print(f"the earlier run is now in {str(aside)!a}", flush=True)

    def steps(self):
        """Yield the number of each step to come, up to --steps."""
        self.started = time.time() - self.seconds
        self.printed = time.time() - 5  # the first status line comes after five seconds
        while self.step < self.args.steps:
            self.step += 1
            torch.manual_seed(self.args.seed * 10**9 + self.step)  # a resumed run draws the same
            yield self.step

    def log(self, loss):
        """Note the loss of a step; every ten seconds, print a status line."""
        self.losses.append(loss.detach())  # .item() would make a GPU wait at every step
        if time.time() > self.printed + 10:
            self.printed = time.time()
            recent = torch.stack(self.losses[-100:]).mean().item()
            self.require_finite(recent)
            left = (self.printed - self.started) * (self.args.steps / self.step - 1) / 60
            print(f"step {self.step:,}  loss {recent:.4g}  {left:.1f} min left", flush=True)

    def require_finite(self, loss):
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss of step {self.step:,} is {loss}: try a lower --lr")

    def save(self, validation):
        """Add a point to the learning curve and write a checkpoint."""
        training = torch.stack(self.losses).mean().item()
        self.require_finite(training + validation)
        print(f"step {self.step:,}: loss {training:.4g}, validation {validation:.4g}", flush=True)
        if self.checkpoint.exists() and self.checkpoint.stat().st_mtime_ns != self.written:
            raise OSError(f"another run has changed {self.checkpoint}: give each its own --out")
        self.curve.append({"step": self.step, "training": training, "validation": validation})
        self.losses = []
        self.seconds = time.time() - self.started
        self.save_checkpoint()

    def save_checkpoint(self):
        states = {name: part.state_dict() for name, part in self.parts.items()}
        content = io.BytesIO()
        torch.save(self.record() | states, content)
        write(self.checkpoint, content.getvalue())
        self.written = self.checkpoint.stat().st_mtime_ns

    def record(self):
        """What model.pt and metrics.json both say about the run."""
        flags = vars(self.args).copy()
        for name in ("device", "out", "resume"):
            del flags[name]
        record = {"flags": flags, "torch": str(torch.__version__)}
        for name in ("source", "where", "step", "seconds", "curve"):
            record[name] = getattr(self, name)
        return record

    def report(self, results):
        """Print the results; write them to metrics.json, and the learning curve to curve.png."""
        for name, value in results.items():
            print(f"{name}: {value:.4g}", flush=True)
            results[name] = value if math.isfinite(value) else None  # JSON knows no NaN
        metrics = {"results": results} | self.record()
        write(self.args.out / "metrics.json", json.dumps(metrics, indent=1).encode())
        axes = Figure(layout="constrained").subplots()
        steps = [point["step"] for point in self.curve]
        for name in ("training", "validation"):
            axes.plot(steps, [point[name] for point in self.curve], "o-", label=name)
        axes.set(xlabel="step", ylabel=self.loss_name, title="learning curve")
        axes.legend()
        self.picture("curve.png", axes.figure)

    def picture(self, name, *figures):
        """Write one figure as a PNG, or several as the pages of a GIF."""
        pages = []
        for figure in figures:
            figure.supxlabel(f"data: {self.source}", size="x-small", parse_math=False)
            page = io.BytesIO()
            figure.savefig(page, dpi=100)
            pages.append(Image.open(page).convert("RGB"))
        file = io.BytesIO()
        pages[0].save(file, name[-3:], save_all=True, append_images=pages[1:], duration=150, loop=0)
        write(self.args.out / name, file.getvalue())


if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on, --resume --steps 0 evaluates the last checkpoint")
