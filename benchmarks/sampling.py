"""Cached samplers against the plain way: same random numbers, seconds of each, and how many symbols differ.

`python benchmarks/sampling.py` takes the trained models in out/NAME/model.pt (of the names given, or all; an untrained
one where there is no run), draws 16 images, 16 texts of 200 characters or half a second of sound, once with the
script's own `sample` and once with a network pass for each symbol over all that came before it, and writes
benchmarks/results/sampling-cpu.json: both times, their ratio, and the ratio after an eighth, a quarter and a half of
the symbols. made.py has no cached sampler. "Differ" is not always 0: in 32-bit floats the two ways round differently, and now and then a random number
falls between. The tests show them equal in 64-bit floats.
"""
import importlib
import json
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def pick(logits):
    return torch.multinomial(logits.softmax(1), 1)[:, 0]


def plain_pixels(model, n):
    x = torch.zeros(n, 1, 28, 28)
    for i in range(784):
        r, c = divmod(i, 28)
        x[:, 0, r, c] = (torch.rand(n) < model(x)[:, 0, r, c].sigmoid()).float()
    return x


def plain_tokens(model, n):
    x = torch.zeros(n, model.T, dtype=torch.long)
    for t in range(model.T):
        x[:, t] = pick(model(x)[:, t])
    return importlib.import_module("transformer_ar").to_images(x, model.patch)


def plain_text(model, n):
    x = torch.full((n, 1), model.K)
    for _ in range(LENGTH["char_rnn"]):
        x = torch.cat([x, pick(model(x)[0][:, -1])[:, None]], 1)
    return x[:, 1:]


def plain_sound(model, n):
    x = torch.zeros(n, LENGTH["wavenet"], dtype=torch.long)
    for t in range(x.shape[1]):
        x[:, t] = pick(model(x[:, :t + 1], length=torch.full((n,), x.shape[1]))[:, t])
    return importlib.import_module("wavenet").expand(x)


LENGTH = {"char_rnn": 200, "wavenet": 4000}


PLAIN = {"char_rnn": plain_text, "wavenet": plain_sound, "pixelcnn": plain_pixels,
         "gated_pixelcnn": plain_pixels, "transformer_ar": plain_tokens}


def timed(sample, seed=0):
    """What `sample` draws, and the seconds until each symbol: every one of them is drawn by one call of torch's."""
    seconds, usual = [], (torch.rand, torch.multinomial)

    def clocked(draw):
        return lambda *args, **how: (seconds.append(time.perf_counter() - start), draw(*args, **how))[1]

    torch.manual_seed(seed)
    torch.rand, torch.multinomial = map(clocked, usual)
    try:
        with torch.no_grad():
            start = time.perf_counter()
            return sample(), [*seconds[1:], time.perf_counter() - start]
    finally:
        torch.rand, torch.multinomial = usual


def untrained(name):
    """The chapter's default model as it begins."""
    module = importlib.import_module(name)
    kind = {"char_rnn": "CharRNN", "wavenet": "WaveNet", "pixelcnn": "PixelCNN",
            "gated_pixelcnn": "GatedPixelCNN", "transformer_ar": "Transformer"}[name]
    torch.manual_seed(0)
    return getattr(module, kind)(*[torch.arange(65)] * (name == "char_rnn")).eval()


def main():
    path = ROOT / "benchmarks" / "results" / "sampling-cpu.json"
    known = json.loads(path.read_text()) if path.exists() else {"results": {}}
    for name in sys.argv[1:] or PLAIN:
        saved = ROOT / "out" / name / "model.pt"
        if not saved.exists():
            print(f"{name}: {saved} is not there; `python {name}.py` makes it. An untrained model takes as long:")
        model, n = importlib.import_module(name).load(saved) if saved.exists() else untrained(name), 16
        n = 1 if name == "wavenet" else n
        how = {} if name == "char_rnn" else {"y": 10}  # the null label
        how |= {"length": LENGTH[name]} if name in LENGTH else {}
        timed(lambda: model.sample(n, **how))  # once to warm up
        fast, cached = timed(lambda: model.sample(n, **how))
        slow, plain = timed(lambda: PLAIN[name](model, n))
        T = len(cached)
        known["results"][name] = result = {
            "sequences": n, "symbols of each": T, "cached, seconds": round(cached[-1], 3),
            "plain, seconds": round(plain[-1], 3), "ratio": round(plain[-1] / cached[-1], 3),
            "ratio by length": {t: round(plain[t - 1] / cached[t - 1], 3) for t in (T // 8, T // 4, T // 2, T)},
            "weights": "trained" if saved.exists() else "untrained",
            "sequences that differ": (fast != slow).flatten(1).any(1).sum().item()}
        print(name, result, flush=True)
        known |= {"torch": torch.__version__, "device": f"CPU, {torch.get_num_threads()} threads"}
        path.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
