"""Variations: each changes one idea of one chapter. `python -m variations.NAME` from the repository root."""
import sys
from pathlib import Path


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
