import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if "PYTEST_XDIST_WORKER" in os.environ:  # set before torch is imported: two workers share two cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(ROOT))
os.environ["DATA_DIR"] = str(Path(os.environ.get("DATA_DIR") or ROOT / "datasets").resolve())
