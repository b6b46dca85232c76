"""Files as data sets come in, made for the tests."""

import gzip
import re

import numpy as np

IDX_CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}


def idx_bytes(array):
    header = bytes([0, 0, IDX_CODES[array.dtype.str[1:]], array.ndim])
    sizes = np.array(array.shape, ">u4").tobytes()
    return header + sizes + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_idx_folder(folder, parts, suffix=".gz", dot="-"):
    """Write ``{prefix: (images, labels)}`` in the layout in which MNIST is published."""
    for prefix, (X, y) in parts.items():
        for name, array in (("images", X), ("labels", y)):
            write(folder / f"{prefix}-{name}{dot}idx{array.ndim}-ubyte{suffix}", idx_bytes(array))


def write(path, content):
    """Write text or bytes, compressed if the name says so."""
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def id_without_address(value):
    """Name of a parameter of a test that is the same in every process."""
    return re.sub(r" at 0x\w+", "", str(value))
