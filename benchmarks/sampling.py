"""Cached samplers against the plain way: same random numbers, seconds of each, and how many sequences differ.

`python benchmarks/sampling.py` takes the trained models in out/NAME/model.pt (of the names given, or all), draws 16
images or a quarter of a second of sound, once by `model.sample`, a network pass over the whole for each symbol, and
once by the chapter's `cached_sample`, and writes benchmarks/results/sampling-cpu.json. "Differ" is not always 0: in
32-bit floats the two ways round differently, and now and then a random number falls between.
"""
import importlib
import json
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
NAMES = ["wavenet", "pixelcnn", "gated_pixelcnn", "transformer_ar"]


def timed(sample, *how):
    """What `sample` draws, and in how many seconds."""
    torch.manual_seed(0)
    start = time.perf_counter()
    drawn = sample(*how)
    return drawn, time.perf_counter() - start


def main():
    path = ROOT / "benchmarks" / "results" / "sampling-cpu.json"
    known = json.loads(path.read_text()) if path.exists() else {"results": {}}
    for name in sys.argv[1:] or NAMES:
        module = importlib.import_module(name)
        model = module.load(ROOT / "out" / name / "model.pt")
        sound = name == "wavenet"
        how = (torch.tensor([3]), torch.tensor([0]), 2000) if sound else (torch.arange(16) % 10,)
        fast, cached = timed(module.cached_sample, model, *how)
        slow, plain = timed(model.sample, *how)
        symbols = 2000 if sound else getattr(model, "T", 784)
        known["results"][name] = result = {
            "sequences": len(fast), "symbols of each": symbols, "cached, seconds": round(cached, 3),
            "plain, seconds": round(plain, 3), "ratio": round(plain / cached, 3),
            "sequences that differ": (fast != slow).flatten(1).any(1).sum().item()}
        print(name, result, flush=True)
        known |= {"torch": str(torch.__version__), "device": f"CPU, {torch.get_num_threads()} threads"}
        path.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
