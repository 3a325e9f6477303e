import time

import pytest
import torch

from orchestration.runtime.system_metrics import SystemMetrics


def test_sample_tells_of_this_process() -> None:
    import psutil  # type: ignore[import-untyped]

    values = SystemMetrics(torch.device("cpu")).sample()
    assert set(values) == {"system/cpu_percent", "system/memory_megabytes"}
    assert values["system/memory_megabytes"] == pytest.approx(psutil.Process().memory_info().rss / 1e6, rel=0.2)


def test_work_since_the_last_look_is_seen() -> None:
    system = SystemMetrics(torch.device("cpu"))
    began = time.process_time()
    while time.process_time() < began + 0.2:
        pass
    busy = system.sample()["system/cpu_percent"]
    time.sleep(0.5)
    idle = system.sample()["system/cpu_percent"]
    assert busy > idle


def test_sample_is_due_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    system, seen = SystemMetrics(torch.device("cpu"), every=10.0), []
    for second in range(25):
        now[0] = 100.0 + second
        if system.due():
            seen.append(second)
    assert seen == [1, 11, 21]
