"""torchrun with the training's own exit status: 2 for bad input, 75 where a stop asks for another run.

    python launch.py --nnodes 2 --node_rank 0 --nproc_per_node 8 --master_addr … train.py …

torchrun itself ends with 1 and a traceback, whatever its processes end with.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this clone before what is installed
from onerec.keeper import STOPPED, stop_status

# Seconds from SIGTERM to SIGKILL: a step and a checkpoint of many gigabytes. torchrun's own 30 cut it off.
SHUTDOWN = "600"


def status_of(exit_codes: Iterable[int]) -> int:
    """The exit status of a run whose processes failed with ``exit_codes`` (minus a signal's number), the first first.

    It is the first that was not merely stopped, as torchrun stops the others when one has failed.
    """
    stopped = (STOPPED, -signal.SIGTERM)
    code = next((code for code in exit_codes if code not in stopped), STOPPED)
    return 128 - code if code < 0 else code


def main(argv: list[str] | None = None) -> int:
    """Run torchrun's command line; returns the exit status."""
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SHUTDOWN)
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.main(argv)
    except SignalException as stop:
        return stop_status(stop.sigval)
    except ChildFailedError as error:
        failures = sorted(error.failures.values(), key=lambda failure: failure.timestamp)
        return status_of(failure.exitcode for failure in failures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
