"""The command line, killed on one rank once a run has some backups: ``killed.py RANK FOLDER BACKUPS train ...``."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from fastopt import cli, mpi
from fastopt.nn.callbacks.backup import backup_number


def kill_later():
    while max((backup_number(path.name) for path in Path(sys.argv[2]).iterdir()), default=0) < int(sys.argv[3]):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)


if mpi.rank() == int(sys.argv[1]):
    threading.Thread(target=kill_later, daemon=True).start()
sys.exit(cli.main(sys.argv[4:]))
