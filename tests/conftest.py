import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["DATA_DIR"] = str(Path(os.environ.get("DATA_DIR") or ROOT / "datasets").resolve())
