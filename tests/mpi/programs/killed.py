"""The command line, killed on a rank after some backups: ``killed.py RANK FOLDER NUMBER train ...``."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from fastopt import cli, mpi
from fastopt.nn.callbacks.backup import backup_number


def kill_later():
    folder, n_backups = Path(sys.argv[2]), int(sys.argv[3])
    while max((backup_number(path.name) for path in folder.iterdir()), default=0) < n_backups:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


if mpi.rank() == int(sys.argv[1]):
    threading.Thread(target=kill_later, daemon=True).start()
sys.exit(cli.main(sys.argv[4:]))
