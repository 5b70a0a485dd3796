from __future__ import annotations

import os
import subprocess
import sys
import threading

import fake_nvml
import pytest
from fake_nvml import NOT_SUPPORTED, UNKNOWN, UUID

from accel.bench.flags import NVML_COLUMNS
from accel.bench.nvml import Nvml, Reading
from accel.bench.telemetry import Sample, Telemetry, Watch, is_descendant
from accel.errors import DeviceUnavailable, MissingExtra

OURS, THEIRS, MORE = 4_100_001, 4_100_002, 4_100_003
"""Numbers above the kernel's limit: no process has them."""


@pytest.fixture
def nvml():
    with fake_nvml.installed() as fake:
        yield fake


def readings(fake, *states: dict, period_s: float = 0.001) -> Watch:
    """A Watch over at least one sample in each of `states`; the worker is OURS."""
    with Telemetry(UUID, period_s=period_s, family=lambda pid: pid == OURS) as telemetry, telemetry.watching() as watch:
        for state in states:
            vars(fake).update(state)
            _wait_for_samples(watch)
    return watch


def _wait_for_samples(watch: Watch) -> None:
    # Two more: the one that was under way may have read half of the state before.
    wanted, patience = len(watch.samples) + 2, threading.Event()
    for _ in range(5000):
        if len(watch.samples) >= wanted:
            return
        patience.wait(0.001)
    raise AssertionError("no sample was taken")


def sample(at_ms: float, **given) -> Sample:
    own, others = given.pop("own", True), given.pop("others", frozenset())
    values = dict.fromkeys(("sm_clock_mhz", "mem_clock_mhz", "temp_c", "power_w", "utilisation_pct", "reasons", "mem_used_mib"))
    pids = frozenset({OURS} if own else ()) | others
    return Sample(round(at_ms * 1e6), Reading(**{**values, "pids": pids, **given}), own, others)


def test_every_column_is_read_in_its_unit(nvml):
    watch = readings(nvml, {"pids": [OURS], "used_mib": 1500, "violations": {0: 350, 1: 7}})

    assert watch.columns() == {
        "sm_clock_min_mhz": 1980,
        "sm_clock_mean_mhz": 1980,
        "sm_clock_max_mhz": 1980,
        "mem_clock_mhz": 2619,
        "temp_start_c": 41,
        "temp_max_c": 41,
        "power_mean_w": 350.5,
        "power_limit_w": 700,
        "throttle_mask": 0,
        "viol_power_ns": 250,
        "viol_thermal_ns": 0,
        "other_pids": [],
        "mem_peak_mib": 500,
    }
    assert tuple(watch.columns()) == NVML_COLUMNS
    assert not watch.pids_hidden


def test_only_what_reads_is_ever_called(nvml):
    readings(nvml, {"pids": [OURS]})

    assert all(name in ("nvmlInit", "nvmlShutdown") or name.startswith("nvmlDeviceGet") for name in nvml.calls)
    assert nvml.calls["nvmlInit"] == nvml.calls["nvmlShutdown"] == 1


def test_a_sample_costs_eight_questions_and_the_counters_are_read_twice(nvml):
    watch = readings(nvml, {"pids": [OURS]})

    count = len(watch.samples)
    sampled = ("TemperatureV", "PowerUsage", "UtilizationRates", "CurrentClocksEventReasons", "MemoryInfo", "ComputeRunningProcesses")
    assert nvml.calls == {
        "nvmlInit": 1,
        "nvmlDeviceGetHandleByUUID": 1,
        "nvmlShutdown": 1,
        "nvmlDeviceGetClockInfo": 2 * count,
        **{f"nvmlDeviceGet{name}": count for name in sampled},
        "nvmlDeviceGetViolationStatus": 2 * 2,
        "nvmlDeviceGetEnforcedPowerLimit": 1,
    }


LOST = {
    "nvmlDeviceGetClockInfo": {"sm_clock_min_mhz", "sm_clock_mean_mhz", "sm_clock_max_mhz", "mem_clock_mhz"},
    "nvmlDeviceGetTemperatureV": set(),  # the older function answers
    "nvmlDeviceGetPowerUsage": {"power_mean_w"},
    "nvmlDeviceGetEnforcedPowerLimit": {"power_limit_w"},
    "nvmlDeviceGetUtilizationRates": set(),
    "nvmlDeviceGetCurrentClocksEventReasons": set(),  # the older function answers
    "nvmlDeviceGetMemoryInfo": {"mem_peak_mib"},
    "nvmlDeviceGetComputeRunningProcesses": set(),  # the older function answers
    "nvmlDeviceGetViolationStatus": {"viol_power_ns", "viol_thermal_ns"},
}


@pytest.mark.parametrize("name", LOST)
def test_a_call_that_is_not_supported_leaves_its_columns_none_and_is_not_repeated(nvml, name):
    nvml.fail[name] = NOT_SUPPORTED

    columns = readings(nvml, {"pids": [OURS]}, {"temp": 42}).columns()

    assert {key for key, value in columns.items() if value is None} == LOST[name]
    assert nvml.calls[name] <= 2  # once for each thing that is asked by that name


@pytest.mark.parametrize("name", LOST)
def test_a_call_that_fails_once_leaves_none_and_is_asked_again(nvml, name):
    nvml.fail[name] = UNKNOWN
    with Nvml(UUID) as opened:
        before = (opened.read(), opened.power_limit_w(), opened.violations_ns())
        nvml.fail.clear()
        after = (opened.read(), opened.power_limit_w(), opened.violations_ns())

    assert None in (*vars(before[0]).values(), before[1], *before[2])
    assert None not in (*vars(after[0]).values(), after[1], *after[2])
    assert 0 not in (before[0].sm_clock_mhz, before[0].power_w, before[0].temp_c, before[1], *before[2])


def test_a_library_older_than_its_python_package_is_asked_by_the_older_names(nvml):
    nvml.mismatch |= {"nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetCurrentClocksEventReasons"}
    nvml.pids, nvml.mask = [OURS], 4

    with Nvml(UUID) as opened:
        found = opened.read()
        opened.read()

    assert (found.pids, found.reasons) == ({OURS}, 4)
    assert nvml.calls["nvmlDeviceGetComputeRunningProcesses"] == 1
    assert opened.unreadable == ()


def test_all_calls_failing_leave_every_column_none(nvml):
    nvml.fail |= dict.fromkeys([*LOST, "nvmlDeviceGetTemperature", "nvmlDeviceGetCurrentClocksThrottleReasons"], NOT_SUPPORTED)
    nvml.fail["nvmlDeviceGetComputeRunningProcesses_v2"] = NOT_SUPPORTED

    with Telemetry(UUID, period_s=0.001) as telemetry:
        with telemetry.watching() as watch:
            _wait_for_samples(watch)
        described = telemetry.describe()

    assert set(watch.columns().values()) == {None}
    assert len(described["unreadable"]) == 11


def test_the_gpu_is_found_by_its_uuid(nvml):
    with pytest.raises(DeviceUnavailable, match="GPU-other"):
        Nvml("GPU-other")

    assert nvml.calls["nvmlShutdown"] == 1
    assert not any("Index" in name for name in nvml.calls)


@pytest.mark.parametrize("name", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_an_nvml_that_does_not_start_is_told_and_nothing_is_watched(nvml, name):
    nvml.fail[name] = UNKNOWN

    with Telemetry(UUID) as telemetry, telemetry.watching() as watch:
        pass

    assert watch.columns() == {}
    assert "code 999" in telemetry.describe()["absent"]


def test_without_the_package_the_extra_is_named_and_nothing_is_watched(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)

    with pytest.raises(MissingExtra, match="pynvml"):
        Nvml(UUID)
    with Telemetry(UUID) as telemetry, telemetry.watching() as watch:
        pass

    assert watch.columns() == {}
    assert "pynvml" in telemetry.describe()["absent"]


def test_on_a_cpu_nvml_is_not_even_imported(nvml):
    with Telemetry(None) as telemetry, telemetry.watching() as watch:
        pass

    assert (watch.columns(), watch.pids_hidden, telemetry.describe(), nvml.calls) == ({}, False, None, {})


def test_the_watch_ends_with_a_worker_that_fails(nvml):
    threads = threading.active_count()

    with Telemetry(UUID, period_s=0.001) as telemetry:
        with pytest.raises(ValueError, match="died"), telemetry.watching() as watch:
            raise ValueError("the worker died")
        assert threading.active_count() == threads

    assert len(watch.samples) >= 2


def test_a_mistake_on_the_thread_is_no_missing_value(nvml):
    happened = threading.Event()

    class Wrong:
        def __truediv__(self, other):
            happened.set()
            raise TypeError("no number")

    with Telemetry(UUID, period_s=0.001) as telemetry, pytest.raises(TypeError), telemetry.watching():
        nvml.milliwatts, right = Wrong(), nvml.milliwatts
        assert happened.wait(30)
        nvml.milliwatts = right


def test_clocks_heat_power_and_throttling_are_those_of_the_timed_passes():
    build = {"utilisation_pct": 50, "sm_clock_mhz": 345, "temp_c": 90, "power_w": 80.0, "reasons": 0x8, "mem_clock_mhz": 100}
    watch = Watch(
        [
            sample(0, own=False, mem_used_mib=100.0),
            sample(100, **build, mem_used_mib=900.0, others=frozenset({THEIRS})),
            sample(200, sm_clock_mhz=1900, temp_c=40, power_w=300.0, reasons=0x4, mem_clock_mhz=2619, mem_used_mib=600.0),
            sample(300, sm_clock_mhz=2000, temp_c=44, power_w=400.0, reasons=0x20, mem_clock_mhz=2600, mem_used_mib=600.0),
            sample(400, sm_clock_mhz=1950, temp_c=43, power_w=350.0, reasons=0, mem_clock_mhz=2619),
            sample(500, own=False, sm_clock_mhz=345, reasons=0x40),
        ]
    )

    found = watch.columns((200_000_000, 400_000_000))

    assert [found[name] for name in ("sm_clock_min_mhz", "sm_clock_mean_mhz", "sm_clock_max_mhz", "mem_clock_mhz")] == [
        1900,
        1950,
        2000,
        2600,
    ]
    assert [found[name] for name in ("temp_start_c", "temp_max_c", "power_mean_w", "throttle_mask")] == [40, 44, 350, 0x24]
    assert (found["other_pids"], found["mem_peak_mib"]) == ([], 800)


def test_passes_shorter_than_a_period_have_the_samples_around_them():
    watch = Watch([sample(at, sm_clock_mhz=1000 + at) for at in (0, 100, 200, 300)])

    found = watch.columns((140_000_000, 150_000_000))

    assert (found["sm_clock_min_mhz"], found["sm_clock_max_mhz"]) == (1100, 1200)


def test_without_a_window_the_workers_busy_samples_stand_for_it():
    watch = Watch(
        [
            sample(0, own=False, utilisation_pct=80, sm_clock_mhz=500),  # whoever came before
            sample(100, utilisation_pct=0, sm_clock_mhz=345),
            sample(200, utilisation_pct=90, sm_clock_mhz=1980),
        ]
    )

    assert watch.columns()["sm_clock_min_mhz"] == 1980


def test_where_the_worker_is_hidden_the_samples_of_its_life_stand_for_it():
    readings = [sample(at, own=False, utilisation_pct=90, reasons=mask) for at, mask in ((0, 0x8), (100, 0x4), (200, 0x20), (300, 0x40))]

    assert Watch(readings).columns()["throttle_mask"] == 0x24


def test_a_window_without_a_sample_says_nothing():
    found = Watch([sample(0, sm_clock_mhz=1000, reasons=8)]).columns((900_000_000, 1_900_000_000))

    assert (found["sm_clock_mean_mhz"], found["throttle_mask"], found["other_pids"]) == (None, None, None)


@pytest.mark.parametrize(
    ("clocks", "moved"),
    [
        ((345, 1200, 1980, 1965, 1965, 1980, 1980), False),  # five within one step of 15 MHz
        ((1980, 1980, 1980, 1980, 1980, 1960), True),  # 1.01 %
        ((1980, 1980, 1980, 1980, 1980, 1961), False),  # 0.96 %
        ((1960, 1980, 1980, 1980, 1980, 1980), False),  # the sixth before the passes
        ((345, 1980, 1980, 1980), False),  # too few to tell
        ((None, 345, 1980, 1980, 1980), False),
    ],
)
def test_a_clock_that_still_moves_when_the_passes_begin_is_told(clocks, moved):
    before = [sample(1000 - 100 * (len(clocks) - at), sm_clock_mhz=mhz) for at, mhz in enumerate(clocks)]
    watch = Watch([*before, sample(1100, sm_clock_mhz=700)])

    assert watch.clock_moved((1_000_000_000, 2_000_000_000)) is moved
    assert not watch.clock_moved((2_100_000_000, 3_000_000_000))  # more than the preheat ago
    assert not watch.clock_moved()


def test_other_processes_are_neither_the_worker_nor_us(nvml):
    watch = readings(nvml, {"pids": [os.getpid()]}, {"pids": [OURS, THEIRS, os.getpid()]})

    assert watch.columns()["other_pids"] == [THEIRS]
    assert not watch.pids_hidden


def test_a_process_that_was_gone_before_the_worker_computed_is_no_other(nvml):
    nvml.pids = [THEIRS]  # the worker before this one, which the driver still lists

    assert readings(nvml, {"pids": [OURS]}).columns()["other_pids"] == []


def test_no_process_at_all_means_that_they_are_hidden(nvml):
    watch = readings(nvml, {"pids": []})

    assert watch.pids_hidden
    assert watch.columns()["other_pids"] is None


def test_numbers_of_another_namespace_are_not_taken_for_another_process(nvml):
    nvml.pids = [THEIRS]  # the worker before this one, which the driver still lists
    watch = readings(nvml, {"pids": [MORE]}, {"pids": []})

    assert watch.pids_hidden
    assert watch.columns()["other_pids"] is None


def test_what_stays_before_during_and_after_the_worker_is_another_even_if_hidden(nvml):
    nvml.pids = [THEIRS]
    watch = readings(nvml, {"pids": [THEIRS, MORE]}, {"pids": [THEIRS]})

    assert watch.pids_hidden
    assert watch.columns()["other_pids"] == [THEIRS]


def test_children_and_grandchildren_are_family_and_a_stranger_is_not():
    nested = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import os; print(os.getpid(), flush=True); input()'])"
    child = subprocess.Popen([sys.executable, "-c", nested], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    grandchild = int(child.stdout.readline())

    related = (is_descendant(child.pid), is_descendant(grandchild), is_descendant(grandchild, child.pid))
    strange = (is_descendant(os.getpid()), is_descendant(os.getppid()), is_descendant(child.pid, grandchild), is_descendant(OURS))
    child.communicate("\n")

    assert related == (True, True, True)
    assert strange == (False, False, False, False)


def test_a_name_with_brackets_does_not_hide_a_parent(tmp_path):
    (tmp_path / "70").mkdir()
    (tmp_path / "70/stat").write_text("70 (a) R 5 (b) S 60 70 70 0 -1")

    assert is_descendant(70, 60, tmp_path)
    assert not is_descendant(70, 5, tmp_path)
