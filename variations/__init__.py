"""Variations: each changes one idea of one chapter. `python -m variations.NAME` from the repository root."""
import sys
from pathlib import Path

import torch
import torch.nn.functional as F


def checked(path):
    """In the place of a chapter's `load`, for models of other shapes: refuses a damaged file."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)["state"]["model"]
    except Exception as error:  # a damaged file breaks in many ways
        raise OSError(f"{path} is missing, damaged, or no checkpoint") from error


def independent_pixels(x, x_test):
    """NLL in nats of binary images x_test if each pixel were independent, as often 1 as in uint8 images x."""
    rate = (x.float().mean(0) / 255).clamp(1e-3, 1 - 1e-3)
    return 784 * F.binary_cross_entropy(rate.expand_as(x_test), x_test).item()


def start(main):
    """`main()` as a command: a fault ends in one sentence and status 2, Ctrl-C in status 130."""
    name = Path(sys.argv[0]).stem
    sys.argv[0] = f"python -m variations.{name}"  # for --help
    try:
        main()
    except (OSError, FloatingPointError, UnicodeDecodeError) as error:
        sys.exit(print(f"{name}: {error}", file=sys.stderr) or 2)
    except KeyboardInterrupt:
        sys.exit(print(f"\n{name}: stopped", file=sys.stderr) or 130)
