"""The machine: what times depend on, and whether other processes disturb them."""

import os
import platform
from pathlib import Path
from time import perf_counter

BUSY = 0.05     # processors busy for other processes above which a run carries a note


def describe():
    """Return processor, cores, caches and system as a dict."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "caches": caches(Path("/sys/devices/system/cpu/cpu0/cache")),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "huge pages": read("/sys/kernel/mm/transparent_hugepage/enabled").partition("[")[2].partition("]")[0],
    }


def read(path):
    """Return the text of a file of the system, or "" where there is none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def cpu_model():
    lines = read("/proc/cpuinfo").splitlines()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def caches(root):
    """Return level, bytes and number of sharing processors of the data caches, smallest first."""
    found = []
    for index in sorted(root.glob("index*")):
        names = ("type", "level", "size", "shared_cpu_list")
        kind, level, size, shared = (read(index / name).strip() for name in names)
        if kind in ("Data", "Unified"):
            found.append({"level": int(level), "bytes": parse_bytes(size), "cores": count_processors(shared)})
    return found


def parse_bytes(size):
    """Return the bytes of a size in the format of sysfs: ``2048K``."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(size[:-1]) * units[size[-1]] if size[-1] in units else int(size)


def count_processors(processors):
    """Return the number of processors in a list such as ``0-3,8``."""
    ranges = [part.partition("-")[::2] for part in processors.split(",")]
    return sum(int(last or first) - int(first) + 1 for first, last in ranges)


def memory_available():
    """Return the bytes that are available without swapping, or None where the system does not say."""
    lines = read("/proc/meminfo").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


class Disturbance:
    """Measures from its creation on how busy other processes keep the machine."""

    def __init__(self):
        self.start = perf_counter(), busy_all(), busy_own()

    def notes(self):
        """Return a note if other processes, or other guests of the host, took part of the processors."""
        start, all_before, own_before = self.start
        all_now = busy_all()
        if all_before is None or all_now is None:
            return []
        others = (all_now - all_before - busy_own() + own_before) / (perf_counter() - start)
        note = f"Other processes kept {others:.2f} processors busy: do not trust these times."
        return [note] * (others > BUSY)


def busy_all():
    """Return the processor seconds spent by the whole machine, or None where the system does not say.

    Time that the host gave to other guests counts as spent.
    """
    fields = read("/proc/stat").partition("\n")[0].split()
    if not fields:
        return None
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def busy_own():
    """Return the processor seconds spent by this process and by its child processes that have ended."""
    return sum(os.times()[:4])
