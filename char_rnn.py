# /// script
# dependencies = ["torch>=2.5", "numpy", "matplotlib"]
# ///
"""Char-RNN: an LSTM that predicts the next character (Graves 2013, arXiv:1308.0850).

A text x of T characters has a probability that is a product of T factors:

    log p(x) = Σ_t log p(x_t | x_1, …, x_{t−1})                the chain rule: exact
    p(x_t | x_1, …, x_{t−1}) = softmax(V h_{t−1})              all that came before is in the state (h, c)
    c_t = σ(f) ⊙ c_{t−1} + σ(i) ⊙ tanh(g),    h_t = σ(o) ⊙ tanh(c_t),    i, f, g, o = W x_t + U h_{t−1} + b

The gates i (input), f (forget) and o (output) are numbers from 0 to 1; tanh(g) is the candidate to be
written. Where the forget gate is near 1, what was written, and on the way back its gradient, lasts for
hundreds of steps; in a plain RNN it would vanish or explode.
Training: minimise the negative log-likelihood (NLL), cross-entropy of the next character, in nats. A book is
too long to back-propagate through. So 64 streams (the batch) read at 64 places of the text and go on by 64
characters in each optimiser step; the state is carried over, the gradient is not (truncated back-propagation
through time), and its norm is clipped. Sampling: character after character; a temperature divides the logits.
p(x): exact. Latent: none. Good at: endless streams at constant cost. Bad at: what is far back.

`python char_rnn.py` on tiny Shakespeare, one core of an Intel Xeon (bfloat16): 533 s, 512 s of it training.

    step 135/2,600  NLL, nats/char 2.7174  324 sequences/s  8 min 07 s left
    step 1,321/2,600  NLL, nats/char 1.3535  324 sequences/s  4 min 13 s left
    step 2,600/2,600  NLL, nats/char 1.2617  325 sequences/s  0 min 00 s left

Last tenth of the text, exact: NLL 1.4537 nats/char (2.097 bits), read in 16 streams, each from an empty
state. Untrained: ln 65 = 4.174; character frequencies: 3.348. Your own text: `--text FILE --prompt "Once"`.
"""
import argparse
import io
import json
import math
import signal
import sys
import time
import warnings
from pathlib import Path

from data import text
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

# %% Settings: the published run's value, what it is, its range; `--help` prints them
NAME, LOSS, ITEMS = "char_rnn", "NLL, nats/char", "sequences"
SETTINGS = {
    "steps": (2600, "optimiser steps", 1, 10**9),
    "batch_size": (64, "streams, each of which reads on from a place of its own", 1, 10**5),
    "length": (64, "characters per stream and step: how far gradients go back", 2, 10**5),
    "lr": (3e-3, "peak learning rate of AdamW", 0, 10),
    "hidden": (384, "units of a layer, each with a cell", 1, 10**5),
    "layers": (2, "LSTM layers", 1, 100),
    "dropout": (0.3, "dropout of the layers' outputs", 0, 0.99),
    "text": ("", "a UTF-8 file of your own instead of tiny Shakespeare"),
    "prompt": ("", "text that the samples continue"),
    "temperature": (1.0, "of the samples: 1 is p(x), 0 takes the likeliest character", 0, 100),
    "top_k": (0, "sample among the k likeliest characters only; 0: among all", 0, 10**7),
}

# %% Model: a state that is carried along the text
class CharRNN(nn.Module):
    """p(x), the product over t of p(x_t | x before t); characters (K,) are the symbols' Unicode numbers."""
    def __init__(self, characters, hidden=384, layers=2, dropout=0.3):
        super().__init__()
        self.K = len(characters)
        self.register_buffer("characters", characters)
        self.embed = nn.Embedding(self.K + 1, 64)  # symbol K marks the beginning
        sizes = [64] + [hidden] * layers
        self.layers = nn.ModuleList(nn.LSTM(a, b, batch_first=True) for a, b in zip(sizes, sizes[1:]))
        self.dropout, self.out = nn.Dropout(dropout), nn.Linear(hidden, self.K)
        nn.init.zeros_(self.out.weight)  # an untrained model gives each character 1/K
        nn.init.zeros_(self.out.bias)

    def forward(self, x, state=None):
        """Logits (B, T, K) of the character after each of x (B, T); the new h, c (layers, B, hidden) each."""
        below, new = self.embed(x), []
        for layer, h, c in zip(self.layers, *(self.empty_state(len(x)) if state is None else state)):
            output, (h, c) = layer(below, (h[None].contiguous(), c[None].contiguous()))
            below = self.dropout(output) + (below if new else 0)  # from the second layer on a skip connection
            new.append((h[0], c[0]))
        return self.out(below).float(), [torch.stack(part) for part in zip(*new)]

    def step(self, x, state):
        """`forward` for one character x (B,), in evaluation mode, with the LSTM's equations written out."""
        below, new = self.embed(x), []
        for layer, h, c in zip(self.layers, *state):
            W, U, b, d = layer.parameters()  # PyTorch keeps two biases where their sum would do
            i, f, g, o = (F.linear(below, W, b) + F.linear(h, U, d)).chunk(4, 1)  # (B, hidden) each
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()  # some of the old is kept, some new is written
            h = o.sigmoid() * c.tanh()
            below = h + (below if new else 0)
            new.append((h, c))
        return self.out(below), [torch.stack(part) for part in zip(*new)]

    def empty_state(self, n):
        """The state h and c of n texts before their first character: zeros (2, layers, n, hidden)."""
        return self.out.weight.new_zeros(2, len(self.layers), n, self.out.in_features)

    def log_prob(self, x):
        """log p(x) of texts x (B, T), each from its beginning, exact: nats (B,)."""
        logits, _ = self(F.pad(x[:, :-1], (1, 0), value=self.K))
        return -F.cross_entropy(logits.transpose(1, 2), x, reduction="none").sum(1)

    @torch.no_grad()
    def sample(self, n, length=600, prompt=(), temperature=1.0, top_k=0):
        """n texts (n, length) that begin with the symbols of the prompt; one step of the LSTM a character."""
        x, symbol, state = [], torch.full((n,), self.K, device=self.out.weight.device), self.empty_state(n)
        for t in range(length):
            logits, state = self.step(symbol, state)
            logits = logits / max(temperature, 1e-6)
            if 0 < top_k < self.K:
                logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -math.inf)
            symbol = torch.multinomial(logits.softmax(1), 1)[:, 0]
            symbol = torch.full_like(symbol, prompt[t]) if t < len(prompt) else symbol
            x.append(symbol)
        return torch.stack(x, 1)

    def spell(self, x):
        """Symbols x (T,) as a string."""
        return "".join(map(chr, self.characters[x].tolist()))

# %% Training
def main(argv=None):
    run = Run(argv)  # flags, output folder, resuming: the frame, at the end of this file
    x, characters, run.source = text(run.text or None, run.stand_in, ids=True)
    if len(x) < (least := 2000 + 20 * run.length):
        raise OSError(f"{run.source} has {len(x):,} characters, but {least:,} are needed")
    if unknown := sorted(set(run.prompt) - set(characters)):
        raise OSError(f"--prompt has characters that {run.source} has not: {unknown}")
    prompt = [characters.index(c) for c in run.prompt]
    x, x_valid, x_test = x.to(run.device).tensor_split([len(x) * 89 // 100, len(x) * 9 // 10])
    frequency = (x.bincount(minlength=len(characters)) + 1.0) / (len(x) + len(characters))
    run.baselines = {"untrained, nats/char": math.log(len(characters)),
                     "character frequencies, nats/char": -frequency.log()[x_test].mean().item()}

    torch.manual_seed(run.seed)
    model = CharRNN(torch.tensor([*map(ord, characters)]), run.hidden, run.layers, run.dropout).to(run.device)
    optimizer = torch.optim.AdamW(model.parameters(), run.lr, (0.9, 0.99), weight_decay=0.1, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, run.lr, total_steps=run.steps, pct_start=0.06, cycle_momentum=False)
    carried = nn.Module()  # the streams' state h, c, saved with the run
    carried.register_buffer("state", model.empty_state(run.batch_size))
    start = torch.arange(run.batch_size, device=run.device)[:, None] * len(x) // run.batch_size
    for step in run.loop(model=model, optimizer=optimizer, schedule=schedule, carried=carried):
        place = start + (step - 1) * run.length + torch.arange(run.length + 1, device=run.device)
        sequence = x[place % len(x)]  # (B, length + 1); after the end of the text comes its beginning
        read, target = sequence[:, :-1].clone(), sequence[:, 1:]
        restart = torch.rand(run.batch_size, device=run.device) < 0.05  # so that p(x) learns beginnings
        read[restart, 0], carried.state[:, :, restart] = model.K, 0
        with run.autocast():
            logits, state = model(read, carried.state)
        carried.state = torch.stack(state).float().detach()  # no gradient flows further back: truncated
        loss = F.cross_entropy(logits.transpose(1, 2), target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimizer.step()
        schedule.step()
        if run.log(loss):  # a status line; True every 20 s and at the end
            model.eval()
            sample = model.spell(model.sample(1, 600, prompt, run.temperature, run.top_k)[0])
            run.save(nll(model, x_valid), page(sample, f"a sample after {step:,} steps"))
            model.train()
    evaluate(run, model.eval(), x, x_test, prompt)

# %% That is the whole idea. Below: what the trained model can do, and the frame that every chapter shares.
# %% Evaluation: a saved model, figures and pictures
def load(path=f"out/{NAME}/model.pt", device="cpu"):
    """The model of a saved run, ready to sample."""
    try:
        assert (saved := torch.load(path, map_location="cpu", weights_only=True))["name"] == NAME
        s = saved["settings"]
        model = CharRNN(saved["state"]["model"]["characters"], s["hidden"], s["layers"], s["dropout"])
        model.load_state_dict(saved["state"]["model"])
    except Exception as error:  # a damaged file breaks in many ways
        raise OSError(f"{path} is missing, damaged, or no checkpoint of {NAME}.py") from error
    return model.to(device).eval()

@torch.no_grad()
def nll(model, x, streams=16, chunk=500):
    """NLL of a text x (N,), nats per character, in parallel streams, each from an empty state."""
    x = x[:len(x) // streams * streams].view(streams, -1)
    x, state, total = F.pad(x, (1, 0), value=model.K), None, 0.0
    for t in range(0, x.shape[1] - 1, chunk):
        target = x[:, t + 1:t + 1 + chunk]
        logits, state = model(x[:, t:t + target.shape[1]], state)
        total += F.cross_entropy(logits.transpose(1, 2), target, reduction="sum").item()
    return total / (x.numel() - streams)

def longest_matches(string, corpus):
    """For each place of a string, the length of the longest stretch around it that stands in the corpus."""
    longest, end = [0] * len(string), 0
    for start in range(len(string)):
        end = max(start, end)
        while end < len(string) and string[start:end + 1] in corpus:
            end += 1
        longest[start:end] = [max(length, end - start) for length in longest[start:end]]
    return longest

def page(string, title, shade=None, label=""):
    """A figure of text, lines cut at 80 characters; `shade`, a number a character, colours the background."""
    warnings.filterwarnings("ignore", "Glyph")  # characters that the font lacks are drawn as boxes
    row, column, places = 0, 0, []
    for c in string:
        places.append((row, column))
        row, column = (row + 1, 0) if c == "\n" or column == 79 else (row, column + 1)
    ax = Figure(figsize=(8, 0.155 * row + 1.2), layout="constrained").subplots()
    ax.set(xlim=(-0.5, 79.5), ylim=(row + 0.5, -0.5), title=title)
    ax.set_axis_off()
    if shade is not None:
        background = torch.full((row + 1, 80), math.nan)
        background[tuple(zip(*places))] = torch.tensor(shade).float()
        image = ax.imshow(background, cmap="YlOrRd", aspect="auto", vmin=0, vmax=1.4 * max(shade))
        ax.figure.colorbar(image, label=label, shrink=0.8)
    for (row, column), c in zip(places, string):
        c = c if c.isprintable() else " "
        ax.text(column, row, c, family="monospace", size=7, ha="center", va="center", parse_math=False)
    return ax.figure

@torch.no_grad()
def evaluate(run, model, x, x_test, prompt):
    """Figures and pictures, from symbols (N,) of the training and the test text."""
    torch.manual_seed(1)
    sample = model.spell(model.sample(1, 800, prompt, run.temperature, run.top_k)[0])
    corpus, real = model.spell(x[:2_000_000]), model.spell(x_test[:800])
    matches, usual = longest_matches(sample, corpus), longest_matches(real, corpus)
    loss = nll(model, x_test[:1_000_000])
    run.report({
        "test NLL, nats/char": loss, "test NLL, bits/char": loss / math.log(2),
        "sample: mean length of the longest stretch in the training text": sum(matches) / len(matches),
        "held-out text: mean length of the longest stretch in the training text": sum(usual) / len(usual)})
    run.picture("samples.png", page(sample, f"a sample, temperature {run.temperature:g}"))
    run.picture("memorised.png", page(sample, "what also stands in the training text", matches, "characters"))
    test = x_test[None, :800]
    logits, _ = model(F.pad(test[:, :-1], (1, 0), value=model.K))
    surprise = (F.cross_entropy(logits[0], test[0], reduction="none") / math.log(2)).tolist()
    run.picture("surprise.png", page(real, "held-out text: −log₂ p of each character", surprise, "bits"))
    h, _ = model.layers[0](model.embed(test))
    place = torch.tensor([len(real[:t + 1].rsplit("\n", 1)[-1]) for t in range(len(real))], device=h.device)
    correlation = torch.corrcoef(torch.cat([place[None].float(), h[0].T]))[0, 1:].nan_to_num()
    unit = correlation.abs().argmax()
    title = f"unit {unit} follows the place in the line: correlation {correlation[unit]:.2f}"
    run.picture("unit.png", page(real, title, (h[0, :, unit] - h[0, :, unit].min()).tolist(), "h"))
    frames, state = [], model.empty_state(1)
    for t, symbol in enumerate([model.K, *test[0, :60].tolist()]):
        logits, state = model.step(torch.tensor([symbol], device=h.device), state)
        p, likeliest = logits[0].softmax(0).topk(min(12, model.K))
        ax = Figure(figsize=(7, 3), layout="constrained").subplots()
        ax.bar([repr(model.spell(k[None]))[1:-1] for k in likeliest], p.cpu())
        ax.set(ylim=(0, 1), xlabel="next character", ylabel="probability")
        ax.set_title(repr(real[:t])[1:-1], size=8, parse_math=False)
        frames.append(ax.figure)
    run.picture("next_character.gif", *frames)

# %% Notes
# Differs from the papers: two layers of 384 units; the skip connection goes around the second layer alone (in
# a draft validation NLL falls to 1.70 nats/char in 400 steps, without it to 1.94); dropout 0.3; 5 % of the
# sequences begin with an empty state and a start symbol, so that p(x) has a beginning; AdamW with one cycle.
#
# Things to break:
# 1. In `main`, put target = sequence[:, :-1]: the training loss falls to 0, validation climbs far above ln K.
# 2. In `step`, drop "f.sigmoid() * c +": the loss is the same (it does not use `step`), samples are babble.
# 3. In `main`, drop model.eval(): dropout stays on for the validation text, and the same model scores worse.
#
# References: Karpathy 2015, "The Unreasonable Effectiveness of RNNs". Read before: made.py. Next: wavenet.py.

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
