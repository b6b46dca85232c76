"""``python benchmarks/step.py``: ``fastopt bench`` in a working copy built in place."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fastopt.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
