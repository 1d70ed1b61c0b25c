"""Independent tasks on the cores of this machine, or on a Dask cluster: joblib does the work, the settings say where."""

import _thread
import contextlib
import signal
import threading
from pathlib import Path

from joblib import cpu_count, parallel_config

from config import UserError

PROJECT = Path(__file__).resolve().parent.parent
CONNECT_SECONDS = 10
POLL_SECONDS = 2
LONELY_SECONDS = 30  # without any worker, after which a run ends; one that is restarted is back sooner


@contextlib.contextmanager
def fan_out(config):
    """joblib's Parallel inside this context runs where `backend` says; yields how many tasks run at a time there.

    With `loky` the tasks are processes here. With `dask` they go to the workers of the cluster at `scheduler_address`, which must see
    the same files at the same paths, this project's included, wherever they have been started. Raises UserError where no scheduler
    answers, where there are no workers or the last one leaves, or where one does not find the project.
    """
    if config.backend == "loky":
        with parallel_config("loky"):
            yield config.num_threads or cpu_count()
        return
    from distributed import Client  # takes a second to import, which only those who use it should wait for

    where = f"--scheduler_address {config.scheduler_address}"
    try:
        client = Client(config.scheduler_address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: no Dask scheduler answers there ({error}); start one, or give --backend loky") from None
    with client, parallel_config("dask", wait_for_workers_timeout=CONNECT_SECONDS):
        workers = sum(client.nthreads().values())
        if not workers:
            raise UserError(f"{where}: the cluster has no workers; start some with: dask worker ADDRESS")
        prepare_workers(client, where)
        with _watched(client, where):
            yield workers


def prepare_workers(client, where):
    """Every worker of the cluster, also one that comes later, finds this project, and may start processes of its own, as Dask's may not.

    Raises UserError, which names the folder, where one does not find it.
    """
    from distributed import WorkerPlugin

    folder = str(PROJECT)

    class Preparation(WorkerPlugin):  # within this function, so that it is sent by value: a worker has nothing to import it from yet
        name = "cost_model_LSTM"

        def setup(self, worker):
            import multiprocessing
            import sys

            if folder not in sys.path:
                sys.path.append(folder)
            multiprocessing.current_process().daemon = False

    def problem():
        try:
            import measuring.fan_out  # noqa: F401
        except ImportError as error:
            return str(error)
        return ""

    client.register_plugin(Preparation())
    for address, error in client.run(problem, on_error="return").items():
        if error:
            raise UserError(f"{where}: the worker {address} does not find this project ({error}); start workers where {folder} is")


@contextlib.contextmanager
def _watched(client, where):
    """Raises UserError in here where the cluster has had no worker for LONELY_SECONDS: a task would wait for one for ever."""
    done, lonely = threading.Event(), threading.Event()

    def watch():
        alone = 0.0
        while not done.wait(POLL_SECONDS):
            try:
                alone = 0.0 if client.nthreads() else alone + POLL_SECONDS
            except (OSError, RuntimeError, ValueError):  # the scheduler is gone, too
                alone += POLL_SECONDS
            if alone >= LONELY_SECONDS:
                lonely.set()
                _thread.interrupt_main()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    # What a script has started in the background ignores interrupts, and would ignore the watcher's, too.
    is_deaf = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    if is_deaf:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    watcher.start()
    try:
        yield
    except BaseException as error:
        if lonely.is_set() or (isinstance(error, TimeoutError) and not client.nthreads()):
            raise UserError(
                f"{where}: the cluster's last worker has left; start some with: dask worker ADDRESS, then run this again"
            ) from None
        if type(error).__name__ == "KilledWorker":
            raise UserError(f"{where}: {error}; a worker may have had too little memory") from None
        raise
    finally:
        done.set()
        watcher.join(CONNECT_SECONDS)
        if is_deaf:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
