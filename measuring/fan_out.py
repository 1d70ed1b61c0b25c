"""Independent tasks on the cores of this machine, or on a Dask cluster: joblib does the work, the settings say where."""

import contextlib
import multiprocessing
import sys
from pathlib import Path

from joblib import cpu_count, parallel_config

from config import UserError


@contextlib.contextmanager
def fan_out(config):
    """joblib's Parallel inside this context runs where `backend` says; yields how many tasks run at a time there.

    With `loky` the tasks are processes here. With `dask` they go to the workers of the cluster at `scheduler_address`, which must see
    the same files at the same paths. Raises UserError where no scheduler answers.
    """
    if config.backend == "loky":
        with parallel_config("loky"):
            yield config.num_threads or cpu_count()
        return
    from distributed import Client  # takes a second to import, which only those who use it should wait for

    try:
        client = Client(config.scheduler_address, timeout=10)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--scheduler_address {config.scheduler_address}: no Dask scheduler answers there ({error}); start one, or give --backend loky"
        ) from None
    with client, parallel_config("dask"):
        workers = sum(client.nthreads().values())
        if not workers:
            raise UserError(
                f"--scheduler_address {config.scheduler_address}: the cluster has no workers; start some with: dask worker ADDRESS"
            )
        client.run(_prepare_worker, str(Path(__file__).resolve().parent.parent))
        yield workers


def _prepare_worker(project):
    """So that a worker of the cluster finds this project, and may start processes of its own, which Dask's are made not to."""
    sys.path.append(project)
    multiprocessing.current_process().daemon = False
