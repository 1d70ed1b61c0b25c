"""Tasks on a Dask cluster whose workers were started anywhere."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import make_stages, sample_bytes
from joblib import Parallel, delayed

import data_utils
from config import UserError, load_config
from dumps.files import Dump
from measuring import fan_out as fan_out_module
from measuring.fan_out import fan_out

CONFIG = ["--backend=dask", "--scheduler_address"]


def start(name, folder, *arguments):
    """`dask NAME ...` in a folder that is not the project's, with an environment that does not tell of it."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-m", "distributed.cli.dask_" + name, *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture
def cluster(tmp_path):
    """(address, a function that starts a worker)."""
    file = tmp_path / "scheduler.json"
    common = [f"--scheduler-file={file}", "--no-dashboard"]
    processes = [start("scheduler", tmp_path, *common, "--host=127.0.0.1", "--port=0")]
    deadline = time.monotonic() + 100
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)

    def worker():
        processes.append(start("worker", tmp_path, *common, "--nthreads=1", "--no-nanny", f"--local-directory={tmp_path}"))
        return processes[-1]

    yield json.loads(file.read_text())["address"], worker
    for process in processes[::-1]:
        process.kill()
        process.wait()


def n_workers(address):
    from distributed import Client

    with Client(address, timeout=100) as client:
        return len(client.nthreads())


def wait_for(condition, seconds=100):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["foreground", "background"])
def interrupts(request):
    """As of a process that a person has started, and of one that a script has started in the background."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_worker_started_anywhere_finds_the_project(cluster, interrupts, monkeypatch):
    """It reads dumps; one that comes later does so, too; and when the last one leaves, that is one line."""
    address, worker = cluster
    config = load_config(argv=[*CONFIG, address])
    with pytest.raises(UserError, match="no workers"), fan_out(config):
        pass
    first = worker()
    wait_for(lambda: n_workers(address) == 1)
    tasks = [delayed(data_utils.parse_chunk)([Dump("x.sample", "c", data=sample_bytes(make_stages(i), 1 + i))], 1e5) for i in range(4)]
    monkeypatch.setattr(fan_out_module, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(fan_out_module, "LONELY_SECONDS", 3)
    with pytest.raises(UserError, match="last worker has left") as caught, fan_out(config) as jobs:
        assert jobs == 1
        results = Parallel(jobs)(tasks)
        assert [row[-1] for [(_, row, _)], _ in results] == [1, 2, 3, 4]
        later = worker()
        wait_for(lambda: n_workers(address) == 2)
        first.kill()
        first.wait()
        wait_for(lambda: n_workers(address) == 1)
        assert len(Parallel(jobs)(tasks)) == 4
        threading.Timer(1, later.kill).start()
        Parallel(jobs)(delayed(time.sleep)(0.5) for _ in range(100))
    assert len(str(caught.value).splitlines()) == 1
    wait_for(lambda: n_workers(address) == 0)
    monkeypatch.setattr(fan_out_module, "LONELY_SECONDS", 1000)
    monkeypatch.setattr(fan_out_module, "CONNECT_SECONDS", 3)
    last = worker()
    wait_for(lambda: n_workers(address) == 1)
    with pytest.raises(UserError, match="last worker has left"), fan_out(config) as jobs:
        last.kill()
        wait_for(lambda: n_workers(address) == 0)
        Parallel(jobs)(tasks)  # joblib waits for a worker, but not for ever


def test_a_worker_that_cannot_find_the_project_is_told(cluster, monkeypatch, tmp_path):
    address, worker = cluster
    worker()
    wait_for(lambda: n_workers(address) == 1)
    monkeypatch.setattr(fan_out_module, "PROJECT", tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"does not find this project .* start workers where {tmp_path / 'elsewhere'} is"):
        with fan_out(load_config(argv=[*CONFIG, address])):
            pass


def test_no_scheduler_is_one_line(monkeypatch):
    monkeypatch.setattr(fan_out_module, "CONNECT_SECONDS", 0.2)
    with pytest.raises(UserError, match="no Dask scheduler answers there"), fan_out(load_config(argv=[*CONFIG, "tcp://127.0.0.1:1"])):
        pass
