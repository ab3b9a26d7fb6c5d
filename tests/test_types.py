"""Every signature has types, and they fit: mypy finds nothing.

It is a test, so that it takes one process of two while others go on.
"""

import subprocess
import sys
from pathlib import Path


def test_mypy_finds_nothing() -> None:
    root = Path(__file__).resolve().parents[1]
    mypy = subprocess.run([sys.executable, "-m", "mypy"], cwd=root, capture_output=True, text=True)
    assert mypy.returncode == 0, mypy.stdout + mypy.stderr
