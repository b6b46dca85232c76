"""Check that the compiler has vectorized every loop over arrays with the widest registers.

Each module that setup.py builds for several instruction sets is translated and compiled with the same
flags, and the compiler reports the loops that it has vectorized. It does not report unrolled sums in lanes;
for these the additions and multiplications in the assembly are inspected. The table shows the width in bits
for every function that reads or writes elements and for each of its specializations; `-` is a loop over
single elements. The check fails if a loop is not vectorized, or is narrower than the registers.

Usage: python tools/check_vectorized.py [isa ...]       default: all instruction sets that setup.py builds

Needs x86-64, Cython, setuptools and gcc or clang; CC from the environment picks one.
"""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.chdir(ROOT)  # the paths in setup.py are relative to it
sys.path.insert(0, str(ROOT))

import setup  # noqa: E402

WIDTH = {"base": 128, "v3": 256, "v4": 512}  # bits of a register
BITS = {"float": 32, "double": 64, "uint32_t": 32}
# Functions with loops over elements, and functions with sums in lanes, in each module.
LOOPS = {
    "kernels": (
        "sweep", "measure", "transform_grad", "scale_shift", "scale_params", "update_average",
        "add_unit_sums_row", "convert_half", "convert_bfloat16", "narrow", "widen", "round_bfloat16",
        "round_bfloat16_nearest", "round_half", "round_half_nearest",
        "encode_signed8", "encode_unsigned8", "decode_signed8", "decode_unsigned8", "max_magnitude",
        "join_split", "split",
    ),
    "layers": (
        "activate", "multiply_derivative", "loss_elements", "exponentials", "logarithms", "multiply_add",
        "subtract_max", "normalize_row_backward", "add_bias", "scale_columns", "affine", "normalize_columns",
        "normalize_columns_backward", "column_sums", "sum_products", "sum_deviations", "column_moments",
        "random_words", "drop", "convert_elements", "add_scaled", "all_finite",
    ),
}  # fmt: skip
LANES = {"kernels": ("sum_squares",), "layers": ("row_sum", "row_product", "row_max")}

# Reports of vectorized loops: line in the generated C, and width.
GCC = re.compile(r":(?P<line>\d+):\d+: optimized: +loop vectorized using (?P<bytes>\d+) byte vectors")
CLANG = re.compile(r":(?P<line>\d+):\d+: remark: vectorized loop \(vectorization width: (?P<elements>\d+)")
REPORT_FLAGS = {GCC: ["-fopt-info-vec-optimized"], CLANG: ["-Rpass=loop-vectorize"]}

LOCATION = re.compile(r"\t\.loc\s+\d+ (\d+)")
OPERATION = re.compile(r"\tv?(?:add|mul)(?P<kind>[ps])d\t.*%(?P<register>[xyz])mm\d+$")
REGISTER = {"x": 128, "y": 256, "z": 512}


def main(isas):
    failures = []
    for module in setup.COMPILED:
        for isa in isas:
            failures += check(module, isa)
    print("\n" + "\n".join(failures or ["every loop is vectorized"]))
    return 1 if failures else 0


def check(module, isa):
    """Print the table of a module; return a list of failures."""
    table = measure(module, isa)
    print(f"\n{f'{module} {isa}, bits':30}" + "".join(f"{dtype:>9}" for dtype in BITS))
    for name, row in table.items():
        cells = (row[dtype] or "-" if dtype in row else "" for dtype in BITS)
        print(f"{name:30}" + "".join(f"{cell:>9}" for cell in cells))
    failures = [
        f"{module} {isa}: {name}, {dtype}: {bits or 'not vectorized'}, expected {WIDTH[isa]}"
        for name, row in table.items()
        for dtype, bits in row.items()
        if bits != WIDTH[isa]
    ]
    missing = {*LOOPS[module], *LANES[module]} - {name.split()[0] for name in table}
    return failures + [f"{module} {isa}: {name}: not found" for name in sorted(missing)]


def measure(module, isa):
    """Return the width in bits of the narrowest loop, by function and variant, then by dtype."""
    with tempfile.TemporaryDirectory() as folder:
        source, assembly = Path(folder) / "module.c", Path(folder) / "module.s"
        path = setup.COMPILED[module]
        setup.translate(f"{path}.pyx", f"{path.replace('/', '.')}_{isa}", source)
        loops = vectorized(source, assembly, isa)
        operations = list(arithmetic(assembly))
        lines = source.read_text().splitlines()
    table = {}
    for start, end in blocks(lines, "static ", 1, len(lines)):
        head = lines[start - 1]
        function = source_name(head)
        if function not in LOOPS[module] and function not in LANES[module]:
            continue
        variant = re.search(r"([A-Za-z]+)(?: const)? \*__pyx_v_(?:scalars|kind|tag)\b", head)
        dtype = re.findall(rf"\b({'|'.join(BITS)})(?: const)? \*", head)[-1]
        if function in LANES[module]:
            bits = lanes_width(lines, start, end, BITS[dtype], loops, operations)
        else:
            bits = loop_width(lines, start, end, BITS[dtype], loops)
        row = table.setdefault(f"{function} {variant[1]}" if variant else function, {})
        row[dtype] = min(bits, row.get(dtype, bits))
    return table


def source_name(head):
    """Name of a function in the Cython source; in C, length and name of its module or .pxd precede it."""
    match = re.search(r"_core_(\d+)(\w+)\(", head)
    return match[2][int(match[1]) + 1 :] if match else None


def vectorized(source, assembly, isa):
    """Compile to assembly; return the matches of the compiler's reports of vectorized loops."""
    cc = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC"))
    version = subprocess.run([*cc, "--version"], check=True, capture_output=True, text=True).stdout
    pattern = CLANG if "clang" in version else GCC
    command = [
        *cc,
        *shlex.split(sysconfig.get_config_var("CFLAGS")),
        "-fPIC",
        *(f"-D{name}={value}" for name, value in setup.MACROS),
        "-Icsrc",
        f"-I{sysconfig.get_path('include')}",
        *setup.compile_args("unix", isa),
        *REPORT_FLAGS[pattern],
        "-g1",
        "-S",
        str(source),
        "-o",
        str(assembly),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{result.stderr}\n{shlex.join(command)} failed")
    return list(pattern.finditer(result.stderr))


def arithmetic(assembly):
    """Yield line in the C source and width in bits, or 0 if scalar, of additions and products of doubles."""
    line = 0
    for text in assembly.read_text().splitlines():
        if location := LOCATION.match(text):
            line = int(location[1])
        elif operation := OPERATION.match(text):
            yield line, REGISTER[operation["register"]] if operation["kind"] == "p" else 0


def loop_width(lines, start, end, element, loops):
    """Return the width of the narrowest loop in a function, ignoring narrower remainder loops."""
    widths = []
    for first, last in blocks(lines, "for (", start, end):
        reports = [m.groupdict() for m in loops if first <= int(m["line"]) <= last]
        bits = (int(m["bytes"]) * 8 if "bytes" in m else int(m["elements"]) * element for m in reports)
        widths.append(max(bits, default=0))
    return min(widths, default=0)


def lanes_width(lines, start, end, element, loops, operations):
    """Return the width of the inner loop over lanes, which is either vectorized or unrolled."""
    ((first, last),) = (
        inner
        for outer in blocks(lines, "for (", start, end)
        for inner in blocks(lines, "for (", outer[0] + 1, outer[1])
    )
    unrolled = min((bits for line, bits in operations if first <= line <= last), default=0)
    return loop_width(lines, first, last, element, loops) or unrolled


def blocks(lines, opening, start, end):
    """Yield first and last line, counted from 1, of outermost blocks in [start, end] with this opening."""
    line = start
    while line <= end:
        text = lines[line - 1]
        if text.lstrip().startswith(opening) and text.endswith("{"):
            first, closing = line, text[: len(text) - len(text.lstrip())] + "}"
            while lines[line - 1] != closing:
                line += 1
            yield first, line
        line += 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:] or setup.ISAS))
