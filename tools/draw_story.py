"""Draw the figures of docs/story.md with the code of the page. Needs matplotlib.

Usage: python tools/draw_story.py
"""

import os
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "story.md"

os.chdir(DOCS / "images")
names = {}
for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S):
    exec(compile(block, str(PAGE), "exec"), names)
