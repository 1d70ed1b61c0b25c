"""How the machine's speed is noted, from times made up here."""

import orjson
import pytest

from halide_tools import execution
from measuring import machine


@pytest.mark.parametrize(
    ("first", "taken", "noted", "drift"),
    [
        ([], [(2.0, True), (1.0, False)], 1.0, 0.0),  # the first of all: not while others use the machine
        ([], [(2.0, True), (2.1, True), (2.2, True)], 2.0, 0.0),  # never calm: it goes on all the same
        ([1.0], [(1.02, False)], 1.02, 0.02),
        ([1.0], [(1.0, True), (1.3, False), (1.2, False)], 1.2, 0.2),  # a calm one counts, though a disturbed one is nearer
    ],
)
def test_calibration_waits_for_a_calm_machine(tmp_path, monkeypatch, first, taken, noted, drift):
    note = tmp_path / "collection.json"
    note.write_bytes(orjson.dumps({"calibration": [{"ms": {"memory": ms}} for ms in first]}))
    times = iter(taken)

    def calibrate(_):
        ms, disturbed = next(times)
        return {"memory": ms}, disturbed

    monkeypatch.setattr(machine, "calibrate", calibrate)
    monkeypatch.setattr(execution, "background_cpu_share_now", lambda: 0.0)
    assert machine.record_calibration(tmp_path, machine.CAREFUL) == pytest.approx(drift)
    assert orjson.loads(note.read_bytes())["calibration"][-1]["ms"] == {"memory": noted}
    assert not list(times)
