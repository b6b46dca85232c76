"""Find words of tools/words.txt in prose: Markdown, and comments, docstrings and messages of the sources.

python tools/check_words.py FILE ...        lists them; the exit status is 1 if there are any
"""

import re
import sys
import tokenize
from pathlib import Path

TABLE = Path(__file__).with_name("words.txt")
CODE = re.compile(
    r"^(`{3,}|~{3,}).*?^\1`*$"      # fenced blocks
    r"|^ {4,}\S[^\n]*"              # indented blocks
    r"|(`+)(?:(?!\2).)+?\2"         # code within a line
    r"|\]\([^)\s]*\)|https?://\S+"  # targets of links
    r"|\$\$.*?\$\$|\$[^$\n]+\$",    # formulas
    re.M | re.S,
)
INLINE_CODE = re.compile(
    r"(`+)(?:(?!\1).)+?\1"         # code in backquotes
    r"|^ *(?:>>>|\.\.\.) [^\n]*"   # examples
    r"|\{[^{}\n]*\}"               # fields of f-strings
    r"|'\w*'|\"\w*\"",             # names in quotes
    re.M | re.S,
)
C_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.S)


def read_table():
    """Return for Markdown, and for sources, pairs of a pattern and what to write instead."""
    sections, current = {}, None
    for line in TABLE.read_text("utf-8").splitlines():
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            pattern, _, advice = line.rpartition("->")
            pattern = pattern.strip().replace(" ", r"\s+")
            # `(?<!update\s+)` has no fixed width: one character will do there
            pattern = re.sub(r"(\(\?<!\w+)\\s\+\)", r"\1\\s)", pattern)
            current.append((re.compile(rf"\b(?:{pattern})(?!\w)", re.I), advice.strip()))
    return sections["everywhere"] + sections["documentation"], sections["everywhere"]


def blank(match):
    """Return white space of the same extent, with which lines keep their numbers."""
    return re.sub(r"[^\n]", " ", match[0])


def prose(path):
    """Yield the pieces of prose of a file, each with the number of its first line."""
    text = path.read_text("utf-8")
    if path.suffix == ".md":
        yield 1, CODE.sub(blank, text)
    elif path.suffix in (".c", ".h"):
        for comment in C_COMMENT.finditer(text):
            yield text.count("\n", 0, comment.start()) + 1, comment[0]
    else:
        with path.open("rb") as file:
            for token in tokenize.tokenize(file.readline):
                kind = tokenize.tok_name[token.type]
                if kind == "COMMENT" or (kind in ("STRING", "FSTRING_MIDDLE") and " " in token.string):
                    yield token.start[0], INLINE_CODE.sub(blank, token.string)


def faults(path, tables):
    """Yield a line for each word found in a file."""
    for first, text in prose(path):
        for pattern, advice in tables[path.suffix != ".md"]:
            for match in pattern.finditer(text):
                line = first + text.count("\n", 0, match.start())
                yield line, f"{path}:{line}: {' '.join(match[0].split())!r}: write {advice}"


def main():
    tables = read_table()
    found = [text for name in sys.argv[1:] for _, text in sorted(faults(Path(name), tables))]
    print("\n".join(found), end="\n" * bool(found))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
