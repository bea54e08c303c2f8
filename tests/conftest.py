import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if "PYTEST_XDIST_WORKER" in os.environ:  # set before torch is imported: two workers share two cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(ROOT))
os.environ["DATA_DIR"] = str(Path(os.environ.get("DATA_DIR") or ROOT / "datasets").resolve())


def pytest_collection_modifyitems(items):
    """Things to break take short trainings: all of them are slow."""
    for item in items:
        if item.path.name.startswith("test_broken_"):
            item.add_marker(pytest.mark.slow)
