# /// script
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""WaveNet: dilated causal convolutions (van den Oord et al. 2016, arXiv:1609.03499).

A sound x of T samples of 256 levels has a probability of T factors, given the spoken digit y and the speaker:

    log p(x | y) = Σ_t log p(x_t | x_1, …, x_{t−1}, y)
    z = tanh(W_f ∗ h + V_f e) ⊙ σ(W_g ∗ h + V_g e)         filter and gate; e embeds digit, speaker and time
    h ← h + W_h z,   skip ← skip + W_s z                     a residual and a skip connection from every layer

The input is shifted by one, so that h at time t begins with x_{t−1}. Each convolution has two taps, now and d
samples ago. The dilation d doubles from layer to layer: L layers reach 2^L samples back (the receptive field)
for 2 L taps. Sound needs that: at 8,000 samples a second a vowel's period is about 60 samples, a syllable
2,000. Levels follow the μ-law: fine where the sound is soft, coarse where it is loud.

Training: minimise the negative log-likelihood (NLL), cross-entropy of the next sample, in bits per sample. A
tenth of the clips carry the null label for the digit, a tenth none for the speaker; guidance exaggerates the
digit in the logits. Sampling: a layer keeps a queue of d inputs, so a sample costs one column of the network
(Le Paine et al. 2016). p(x): exact. Latent: none. Good at: timbre. Bad at: what outlasts the receptive field.

`python wavenet.py` on the Free Spoken Digit Dataset, two cores of an Intel Xeon (bfloat16): 674 s in all.

    step 418/4,000  NLL, bits/sample 4.8279  15 clips/s  8 min 07 s left
    step 1,994/4,000  NLL, bits/sample 4.2071  13 clips/s  5 min 12 s left
    step 4,000/4,000  NLL, bits/sample 3.9196  13 clips/s  0 min 00 s left

Recordings 0-4 of each speaker and digit, exact: NLL 4.138 bits/sample given digit and speaker, 4.335 under
the null labels. A classifier of spectrograms finds the digit asked for in 69.7 % of 300 sounds, with guidance
2 in 77.7 % (of real clips: 97.7 %). Your own recordings: `--audio FOLDER`.
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
    "layers": (11, "layers, with dilations 1, 2, 4, ...", 1, 20),
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
        """h and skip, from h, e (B, ticks, C), one-hot time (B, T, ticks), `past`: h of d samples ago."""
        if past is None:
            past = F.pad(h, (0, 0, self.dilation, 0))[:, :-self.dilation]
        filter, gate = (self.taps(torch.cat([past, h], 2)) + time @ self.condition(e)).chunk(2, 2)
        residual, skip = self.out(filter.tanh() * gate.sigmoid()).split([self.C, 128], 2)
        return h + residual, skip

class WaveNet(nn.Module):
    """p(x | y, speaker), the product over samples t of p(x_t | samples before t), for 256 μ-law levels."""
    TICKS = 32  # the time in a clip, from 0 to 1, in so many steps
    def __init__(self, channels=64, layers=11, speakers=0, conditional=True):
        super().__init__()
        C, self.speakers, self.conditional = channels, speakers, conditional
        self.embed, self.input = nn.Embedding(257, C), nn.Linear(C, C)  # symbol 256 marks the beginning
        self.digit, self.speaker, self.tick = (nn.Embedding(k, C) for k in (11, speakers + 1, self.TICKS))
        self.condition = nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))
        self.layers = nn.ModuleList(Layer(C, 2**i) for i in range(layers))
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 256))
        nn.init.zeros_(self.head[-1].weight)  # an untrained model gives each level 1/256: 8 bits
        nn.init.zeros_(self.head[-1].bias)

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
        time = F.one_hot((t * self.TICKS // length[:, None]).clamp(max=self.TICKS - 1), self.TICKS).to(e)
        h, total = self.input(self.embed(F.pad(x[:, :-1], (1, 0), value=256))), 0
        for layer in self.layers:
            h, skip = layer(h, e, time)
            total = total + skip
        return self.head(total).float()

    def log_prob(self, x, y=None, speaker=None, length=None):
        """log p(x | y, speaker) of levels x (B, T), of each the first `length` (B,), exact: nats (B,)."""
        logits, t = self(x, y, speaker, length), torch.arange(x.shape[1], device=x.device)
        log_p = -F.cross_entropy(logits.flatten(0, 1), x.flatten(), reduction="none").view_as(x)  # (B, T)
        return (log_p * (t < (len(t) if length is None else length[:, None]))).sum(1)

    def labels(self, y, n):
        """y as (n,) classes; None draws them from p(y), uniform. An unconditional model knows NULL alone."""
        y = torch.randint(10, (n,)) if y is None else torch.as_tensor(y)
        return (y if self.conditional else torch.tensor(NULL)).to(self.embed.weight.device).expand(n)

    @torch.no_grad()
    def sample(self, n, y=None, speaker=None, length=4000, temperature=1.0, guidance=1.0):
        """n sounds (n, length) in [-1, 1]; y: None (drawn), a digit or (n,); speaker as in `forward`."""
        e = self.embed_condition(n, self.labels(y, n), speaker)
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
            logits = self.head(total)[:, 0]
            if guidance != 1:  # l(NULL) + w (l(y) − l(NULL)): Ho & Salimans 2022
                conditional, null = logits.chunk(2)
                logits = null + guidance * (conditional - null)
            level = torch.multinomial((logits / max(temperature, 1e-6)).softmax(1), 1)[:, 0]
            x.append(level)
        return expand(torch.stack(x, 1))

# %% Training
def main(argv=None):
    run = Run(argv)  # flags, output folder, resuming: the frame, at the end of this file
    train, test, run.source = audio(run.audio or None, run.stand_in)
    speakers = sorted({speaker for _, _, speaker in train if speaker})
    data, test = tensors(train, speakers, run.device), tensors(test, speakers, run.device)
    level, level_test = (torch.cat([x[:n] for x, _, _, n in zip(*v)]).long() for v in (data, test))
    rate = (level.bincount(minlength=256) + 1.0) / (len(level) + 256)
    run.baselines = {"untrained": 8.0, "level by level, bits/sample": -rate.log2()[level_test].mean().item()}
    held = torch.arange(len(data[0]), device=run.device) % 20 == 0  # a twentieth is for validation
    valid, data = [v[held][::3] for v in data], [v[~held] if len(v) > 1 else v for v in data]

    torch.manual_seed(run.seed)
    model = WaveNet(run.channels, run.layers, len(speakers), run.label_dropout < 1).to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=run.lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, run.lr, total_steps=run.steps, pct_start=0.06, cycle_momentum=False)
    for step in run.loop(model=model, optimizer=optimizer, schedule=schedule):
        first = torch.randint(max(1, len(data[0]) - run.batch_size + 1), ()).item()  # clips of like length
        x, y, speaker, length = (v[first:first + run.batch_size] for v in data)
        y, speaker = drop_labels(y, run.label_dropout), drop_labels(speaker, run.label_dropout, len(speakers))
        with run.autocast():
            log_p = model.log_prob(x[:, :length.max()].long(), y, speaker, length)
            loss = -log_p.sum() / length.sum() / math.log(2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if run.log(loss):  # a status line; True every 20 s and at the end
            with run.autocast():
                validation = nll(model, *valid)
            sounds = model.sample(5, torch.arange(5), None, round(2000 * run.duration))  # hurried, for speed
            run.save(validation, spectrograms(sounds, "01234", f"samples, step {step:,}"))
    evaluate(run, model, test, speakers)

# %% That is the whole idea. Below: what the trained model can do, and the frame that every chapter shares.
# %% Evaluation: small functions used above, a saved model, pictures
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

def load(path=f"out/{NAME}/model.pt", device="cpu"):
    """The model of a saved run, ready to sample."""
    try:
        assert (saved := torch.load(path, map_location="cpu", weights_only=True))["name"] == NAME
        s, speakers = saved["settings"], len(saved["state"]["model"]["speaker.weight"]) - 1
        model = WaveNet(s["channels"], s["layers"], speakers, s["label_dropout"] < 1)
        model.load_state_dict(saved["state"]["model"])
    except Exception as error:  # a damaged file breaks in many ways
        raise OSError(f"{path} is missing, damaged, or no checkpoint of {NAME}.py") from error
    return model.to(device).eval()

def tensors(clips, speakers, device):
    """(waveform, digit or −1, speaker) to levels (N, T), T ≤ 20,000, digits, speakers, lengths, by length."""
    pieces = [(levels, digit % 11, speakers.index(who) if who in speakers else len(speakers), len(levels))
              for x, digit, who in clips for levels in compand(torch.from_numpy(x)).byte().split(20000)]
    levels, *numbers = zip(*sorted((p for p in pieces if p[3] > 2), key=lambda p: p[3])[::-1])
    levels = nn.utils.rnn.pad_sequence(levels, batch_first=True, padding_value=128)
    return [v.to(device) for v in (levels, *torch.tensor(numbers))]

@torch.no_grad()
def nll(model, *data):
    """NLL in bits per sample over all samples of levels, digits, speakers and lengths as from `tensors`."""
    log_p = [model.log_prob(x[:, :length.max()].long(), y, speaker, length).sum().item()
             for x, y, speaker, length in zip(*(v.split(4) for v in data))]
    return -sum(log_p) / math.log(2) / data[3].sum().item()

def spectrograms(sounds, names, title):
    """A figure of sounds (N, T) in [-1, 1], five to a row."""
    figure = Figure(figsize=(12, 2.5 * math.ceil(len(sounds) / 5)), layout="constrained")
    figure.suptitle(title)
    for ax, x, name in zip(figure.subplots(math.ceil(len(sounds) / 5), 5).flat, sounds.cpu(), names):
        ax.specgram(x + torch.rand(len(x)) / 1e4, NFFT=256, Fs=8, noverlap=216, cmap="magma", vmin=-60)
        ax.set(title=name, xlabel="milliseconds", ylabel="kHz")
    return figure

@torch.no_grad()
def evaluate(run, model, test, speakers):
    """Figures, pictures and sounds; test is levels, digits, speakers and lengths as from `tensors`."""
    torch.manual_seed(1)
    x, y, speaker, length = test
    null = nll(model, x, torch.full_like(y, NULL), torch.full_like(y, len(speakers)), length)
    run.report({"test NLL, conditional, bits/sample": nll(model, *test),
                "test NLL, unconditional, bits/sample": null})
    sounds = model.sample(10, torch.arange(10), None, round(8000 * run.duration), 1.0, run.guidance)
    run.picture("samples.png", spectrograms(sounds, "0123456789", f"samples, guidance {run.guidance:g}"))
    with wave.open(str(run.out / "samples.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes((sounds.cpu().clamp(-1, 1) * 32767).short().numpy().astype("<i2").tobytes())
    x, y, speaker = x[len(x) // 2, :length[len(x) // 2]].long(), y[len(x) // 2], speaker[len(x) // 2]
    p, frames = model(x[None], y, speaker)[0].softmax(1).sqrt().cpu(), []
    for start in range(0, max(1, len(x) - 240), 240):
        ax = Figure(figsize=(10, 3.6), layout="constrained").subplots()
        ax.imshow(p[start:start + 240].T, origin="lower", aspect="auto", cmap="magma")
        ax.plot(x[start:start + 240].cpu(), ".", ms=2, color="cyan")
        ax.set(title="predicted (bright), real (dots)", xlabel=f"samples from {start:,} on", ylabel="level")
        frames.append(ax.figure)
    run.picture("predictions.png", frames[len(frames) // 2])
    run.picture("predictions.gif", *frames)

# %% Notes
# Differs from the paper: small, and 8,000 samples a second; beside digit and speaker a layer knows the time
# in the clip, from 0 to 1 in 32 steps, so p(x | y) is given the clip's length too; Adam with one cycle of the
# learning rate. Sounds with guidance w > 1 are no longer draws of p(x | y).
#
# Things to break:
# 1. In `forward`, put self.embed(x) for self.embed(F.pad(x[:, :-1], (1, 0), value=256)): a loss of 0.
# 2. In `WaveNet.__init__`, put Layer(C, 1): the receptive field shrinks to 12 samples, the loss is higher.
# 3. In `sample`, drop the line queue[:, t % layer.dilation] = h[:, 0]: the sound falls apart.
#
# References: queues: Le Paine et al. 2016 (1611.09482). Read before: made.py. Next: pixelcnn.py.

# %% The frame, the same to the letter in every chapter: flags, checkpoints, status line, results, pictures
class Run:
    """The flags as attributes, and what a training loop needs around it: see `main`."""
    pause, saved, last_save = 5, None, "nothing was saved"
    def __init__(self, argv=None):
        devices = ["cpu", *["cuda"] * torch.cuda.is_available(), *["mps"] * torch.backends.mps.is_available()]
        flags = SETTINGS | {
            "seed": (0, "random seed", 0, 2**31 - 1), "out": (f"out/{NAME}", "folder of the run"),
            "device": ("cuda" if "cuda" in devices else "cpu", "what computes", *devices),
            "stand_in": ("auto", "drawn data in place of real; auto: if need be", "auto", "always", "never")}
        parser = argparse.ArgumentParser(usage="%(prog)s [--steps 1000 --out out/try ...]")
        parser.error = lambda message: parser.exit(2, f"{NAME}.py: {message}; see --help\n")
        parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
        for name, (default, about, *limits) in flags.items():
            flag, kind = "--" + name.replace("_", "-"), type(default)
            words = limits if limits and kind is str else None
            parser.add_argument(flag, type=kind, default=default, choices=words, help=f"{about} ({default})")
        args = parser.parse_args(argv := [] if argv is None and "ipykernel" in sys.modules else argv)
        if args.resume and (model := Path(args.out, "model.pt")).exists():
            load(model)  # which refuses a damaged file
            self.saved = torch.load(model, map_location="cpu", weights_only=True)
            Run.last_save = f"the run in {args.out} is as it was"
            args = parser.parse_args(argv, argparse.Namespace(**self.saved["settings"]))
        for name, (default, _, *limits) in flags.items():
            if type(default) is not str and not limits[0] <= getattr(args, name) <= limits[1]:
                parser.error(f"--{name.replace('_', '-')} is out of range: {limits[0]} to {limits[1]}")
        vars(self).update(vars(args), out=Path(args.out), step=0, seconds=0.0, curve=[])
        self.settings = {name: getattr(args, name) for name in flags if name not in ("device", "out")}

    def autocast(self):  # bfloat16 where the hardware computes in it, else nothing
        cpu, kind = getattr(torch.cpu, "get_capabilities", dict)(), self.device
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
                for name, part in parts.items():
                    state = self.saved["state"][name]
                    if "last_epoch" in state:  # a schedule: its place; --steps may be new
                        state = {"last_epoch": self.step, "_step_count": self.step + 1}
                    if "param_groups" in state:  # an optimiser: its moments and rate; --lr may be new
                        groups = zip(part.state_dict()["param_groups"], state["param_groups"])
                        state["param_groups"] = [new | {"lr": old["lr"]} for new, old in groups]
                    part.load_state_dict(state)
            except (RuntimeError, ValueError, KeyError) as error:
                raise OSError(f"{self.out} does not fit these flags: leave the model's alone") from error
        elif (self.out / "model.pt").exists():
            aside = next(path for k in range(1, 10**6) if not (path := Path(f"{self.out}-{k}")).exists())
            print(f"an earlier run is in {self.out}: it moves to {self.out.rename(aside)}", flush=True)
        self.out.mkdir(parents=True, exist_ok=True)  # a folder that cannot be made fails now
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
        (part := self.out / "model.pt.part").write_bytes(blob.getvalue())
        part.replace(self.out / "model.pt")  # whole or not at all
        Run.last_save = f"step {self.step:,} is saved in {self.out}"
        self.picture("samples.png", samples)
        self.losses, self.kept = [], time.perf_counter()
        self.pause = max(20, self.seconds / 20, 15 * (self.kept - self.now))  # saving: a 16th of the time

    def picture(self, name, *figures):
        """Write a figure as .png, or several as the frames of a .gif."""
        pages = []
        for figure in figures:
            figure.supxlabel(f"data: {self.source}", x=0.005, ha="left", size=6, color="gray")
            figure.savefig(page := io.BytesIO(), dpi=120)
            pages.append(Image.open(page).convert("P" if name.endswith("gif") else "RGB"))
        pages[0].save(self.out / name, save_all=len(pages) > 1, append_images=pages[1:], loop=0, duration=200)

    def report(self, results):
        """Print the results and write metrics.json, then draw curve.png; pictures may follow."""
        for name, value in (self.baselines | results).items():
            print(f"{name}: {value:,.4f}" if isinstance(value, float) else f"{name}: {value:,}", flush=True)
        gpu, where = self.device == "cuda", f"{self.device.upper()}, {torch.get_num_threads()} threads"
        metrics = {name: getattr(self, name) for name in ("baselines", "settings", "source", "step", "curve")}
        metrics |= {"script": NAME, "results": results, "seconds of training": self.seconds,
                    "device": torch.cuda.get_device_name() if gpu else where, "torch": torch.__version__}
        (self.out / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
        ax = Figure(figsize=(6, 4), layout="constrained").subplots()
        ax.plot([p["step"] for p in self.curve], [(p["training"], p["validation"]) for p in self.curve], "o-")
        ax.set(title=f"{NAME}.py: training (blue) and validation", xlabel="step", ylabel=LOSS)
        self.picture("curve.png", ax.figure)

if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(print(f"{NAME}.py: {error}", file=sys.stderr) or 2)
    except KeyboardInterrupt:
        sys.exit(print(f"\n{NAME}.py: stopped; {Run.last_save}", file=sys.stderr) or 130)
