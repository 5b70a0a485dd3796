"""accel.load: strict refuses what it would otherwise pass over, and holds the engine against golden samples first."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from resealed import reseal
from test_api_load import of_another_machine

import accel
from accel.api import choosing, loading
from accel.engines import Bundle, measured, trust, tuned, verified
from accel.errors import (
    CorruptArtifact,
    DeviceUnavailable,
    DiskFull,
    IncompatibleArtifact,
    MissingExtra,
    ParityError,
    RuntimeUnavailable,
    UnknownName,
    UntrustedArtifact,
    UsageError,
)
from accel.files import sha256_file
from accel.runtimes import cache, onnxruntime
from accel.types import Variant

ORT, SCRIPT = Variant("onnxruntime", "fp32"), Variant("torchscript", "fp32")


@pytest.fixture
def without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(module: str, extra: str) -> Any:
        raise MissingExtra(module, extra)

    monkeypatch.setattr(onnxruntime, "require", absent)


def test_strict_refuses_to_take_the_next_and_says_what_mends_it_and_what_the_next_is(tiny: Path, without_onnxruntime: None) -> None:
    with pytest.raises(MissingExtra) as caught:
        accel.load(tiny, device="cpu")
    error = caught.value
    assert error.message.startswith("onnxruntime:fp32 comes first here (passed parity")
    assert error.message.endswith("cannot be had: onnxruntime is not installed")
    assert error.remedy is not None
    assert error.remedy.startswith("pip install 'accel-engines[ort]'; torchscript:fp32 is the next")
    assert "strict=False" in error.remedy
    assert (error.exit_code, cache.count()) == (4, 0)


def test_not_strict_takes_the_next_and_says_so(tiny: Path, without_onnxruntime: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), accel.load(tiny, device="cpu", strict=False) as engine:
        assert engine(np.zeros((1, 3, 8, 8), np.float32)).shape == (1, 10)
        found = engine.explain()
    assert found["variant"] == "torchscript:fp32"
    assert found["passed_over"] == ["onnxruntime:fp32: onnxruntime is not installed"]
    assert found["golden"] is None
    assert [record.getMessage() for record in caplog.records] == [f"{tiny}: onnxruntime:fp32 was passed over: onnxruntime is not installed"]


def test_an_engine_for_another_version_is_refused_or_passed_over(tiny: Path) -> None:
    of_another_machine(tiny, "torchscript-fp32")
    identity = choosing.identify(Bundle.open(tiny), SCRIPT, 1, Bundle.open(tiny).entry("torchscript", "fp32"), "cpu")
    verified.record(tiny, identity, {"passed": True, "metric": "top1", "top1": 91.5})
    with pytest.raises(IncompatibleArtifact, match=r"torchscript:fp32 comes first here \(the first .*: top1 91\.50 %\).* torch 99\.0"):
        accel.load(tiny, device="cpu")
    with accel.load(tiny, device="cpu", strict=False) as engine:
        assert str(engine.variant) == "onnxruntime:fp32"
        assert engine.explain()["passed_over"][0].startswith("torchscript:fp32: torchscript-fp32 was made with torch 99.0")
    with accel.load(tiny, device="cpu", rebuild=True) as engine:
        assert str(engine.variant) == "torchscript:fp32"


def test_nothing_left_for_one_reason_is_refused_for_that_reason(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # It was "nothing that torchscript can run", with the advice to export to ONNX.
    monkeypatch.setenv("ACCEL_CACHE_DIR", str(tmp_path / "another user"))
    with pytest.raises(UntrustedArtifact, match="was not exported by this user") as caught:
        accel.load(tiny, "torchscript", device="cpu", strict=False)
    assert (caught.value.exit_code, "--trusted" in str(caught.value.remedy)) == (5, True)


@pytest.mark.parametrize("strict", [True, False])
def test_a_damaged_engine_is_never_passed_over(tiny: Path, strict: bool) -> None:
    file = tiny / "onnx-fp32" / "model.onnx"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorruptArtifact, match=r"accel\.json says"):
        accel.load(tiny, device="cpu", strict=strict)


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (MissingExtra("tensorrt", "trt"), True),
        (RuntimeUnavailable("no such provider"), True),
        (IncompatibleArtifact("for another GPU"), True),
        (UntrustedArtifact("whose is this"), True),
        (CorruptArtifact("edited"), False),
        (DeviceUnavailable("out of memory"), False),
        (DiskFull("full"), False),
        (ParityError("wrong"), False),
        (UsageError("what"), False),
    ],
)
def test_only_for_compatibility_and_trust_another_engine_is_taken(error: accel.errors.AccelError, passes: bool) -> None:
    assert loading._may_pass_over(error) is passes


def test_two_golden_samples_are_run_once_for_all_handles(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    real = Bundle.golden
    monkeypatch.setattr(Bundle, "golden", lambda bundle: read.append(bundle.path) or real(bundle))
    with accel.load(tiny, device="cpu", strict=False) as first:
        assert (first.golden, read) == (None, [])
        with accel.load(tiny, device="cpu") as second, accel.load(tiny, device="cpu"):
            found = second.explain()["golden"]
    assert (found["status"], found["rows"], len(read)) == ("passed", [0, len(real(Bundle.open(tiny))) - 1], 1)
    assert found["max_rel_err"] < found["limit"] == 1e-4


def wrong_engine(bundle: Path) -> None:
    """The engine of another network in the place of the right one, with the hashes that belong to it."""
    onnx = pytest.importorskip("onnx")
    file = bundle / "onnx-fp32" / "model.onnx"
    model = onnx.load(str(file))
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) * 1.5).tobytes()
    onnx.save(model, str(file))

    def named(data: dict[str, Any]) -> None:
        next(entry for entry in data["engines"] if entry["name"] == "onnx-fp32")["files"]["onnx-fp32/model.onnx"] = sha256_file(file)

    reseal(bundle / "accel.json", named)
    trust.record(Bundle.open(bundle))


def test_an_engine_that_answers_wrongly_here_gives_nobody_an_answer(tiny: Path) -> None:
    wrong_engine(tiny)
    with pytest.raises(ParityError, match=r"onnxruntime:fp32 disagrees on cpu with the golden samples .*max\|Δ\|") as caught:
        accel.load(tiny, device="cpu")
    assert (caught.value.exit_code, cache.count()) == (3, 0)
    with accel.load(tiny, device="cpu", strict=False) as engine:
        assert str(engine.variant) == "onnxruntime:fp32"


def test_samples_that_were_edited_are_noticed(tiny: Path) -> None:
    golden = Bundle.open(tiny).golden()
    golden.outputs["output"][0, 0] += 1
    golden.write(tiny / "golden.npz")
    with pytest.raises(CorruptArtifact, match=r"golden\.npz holds samples of SHA-256"):
        accel.load(tiny, device="cpu")
    assert cache.count() == 0


def test_a_bundle_without_golden_outputs_says_that_nothing_was_compared(tiny: Path, tmp_path: Path) -> None:
    from accel import engines

    bundle = Bundle.open(tiny)
    bare = tmp_path / "bare.accel"
    golden = engines.Golden(None, bundle.golden().inputs, {})
    engines.create_bare(bare, "bare", bundle.inputs, bundle.outputs, golden)
    entry = bundle.entry("onnx", "fp32")
    engines.add(bare, entry, tiny / entry.name)
    with accel.load(bare, device="cpu") as engine:
        assert engine.explain()["golden"] == {"status": "not run", "reason": "the bundle has no golden outputs"}


def identity_of(bundle: Path, variant: Variant) -> str:
    opened = Bundle.open(bundle)
    return choosing.identify(opened, variant, 1, choosing.entry(opened, variant, "cpu"), "cpu")


def record_set(bundle: Path, medians: dict[Variant, float], machine: str | None = None) -> None:
    rows = [
        {"variant": str(variant), "identity": identity_of(bundle, variant), "runtime_version": "1", "p50_us": p50}
        for variant, p50 in medians.items()
    ]
    about = {"latency": "host_us", "set_id": "set", "command": "accel bench", "measured_utc": "2026-11-25T09:00:00Z"}
    measured.record(bundle, machine or choosing.devices.name("cpu"), 1, rows, **about)


def order(bundle: Path) -> list[str]:
    return [str(choice.variant) for choice in choosing.choices(Bundle.open(bundle), "auto", "cpu")]


def test_what_bench_measured_here_goes_before_the_order_and_says_how_fast(tiny: Path) -> None:
    record_set(tiny, {ORT: 950.0, SCRIPT: 310.5})
    assert order(tiny) == ["torchscript:fp32", "onnxruntime:fp32", "eager:fp32"]
    with accel.load(tiny, device="cpu") as engine:
        assert engine.explain()["why"] == (
            f"the fastest of 2 that accel bench verified and measured on {choosing.devices.name('cpu')} (2026-11-25T09:00:00Z): 310.5 µs"
        )


def test_a_set_of_another_machine_of_other_bytes_or_without_the_usual_choice_is_passed_over(tiny: Path) -> None:
    usual = ["onnxruntime:fp32", "torchscript:fp32", "eager:fp32"]
    record_set(tiny, {ORT: 950.0, SCRIPT: 310.5}, machine="another CPU")
    assert order(tiny) == usual
    record_set(tiny, {SCRIPT: 310.5})
    assert order(tiny) == usual
    record_set(tiny, {ORT: 950.0, SCRIPT: 310.5})
    text = (tiny / "measured.json").read_text().replace(identity_of(tiny, SCRIPT), "0" * 64)
    (tiny / "measured.json").write_text(text)
    assert order(tiny) == usual


def test_what_tune_found_goes_before_what_bench_measured(tiny: Path) -> None:
    record_set(tiny, {ORT: 950.0, SCRIPT: 310.5})
    about = {"device": "cpu", "plan": {}, "gates": {}, "environment": {}, "command": "", "rows": [], "finished": True, "updated_utc": "now"}
    best = {"variant": str(ORT), "identity": identity_of(tiny, ORT)}
    tuned.record(tiny, "a", {**about, "machine": choosing.devices.name("cpu"), "best": best})
    assert order(tiny) == ["onnxruntime:fp32", "torchscript:fp32", "eager:fp32"]


def test_the_fastest_whose_runtime_is_gone_is_refused_when_strict(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninstalling the runtime must not look like another machine's record."""
    opened, real = Bundle.open(tiny), choosing.runtimes.version
    identity = choosing.identify(opened, SCRIPT, 1, choosing.entry(opened, SCRIPT, "cpu"), "cpu", "2.9")
    rows = [
        {"variant": str(SCRIPT), "identity": identity, "runtime_version": "2.9", "p50_us": 1.0},
        {"variant": str(ORT), "identity": identity_of(tiny, ORT), "runtime_version": "1", "p50_us": 2.0},
    ]
    about = {"latency": "host_us", "set_id": "set", "command": "accel bench", "measured_utc": "now"}
    measured.record(tiny, choosing.devices.name("cpu"), 1, rows, **about)
    assert order(tiny)[0] == "onnxruntime:fp32"
    monkeypatch.setattr(choosing.runtimes, "version", lambda name: None if name == "torchscript" else real(name))
    assert order(tiny)[0] == "torchscript:fp32"


def test_without_torch_a_measured_way_of_running_the_checkpoint_is_no_reason_to_refuse(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, eager = choosing.runtimes.version, Variant("eager", "fp32")
    record_set(tiny, {eager: 1.0, ORT: 2.0})
    assert order(tiny)[0] == "eager:fp32"
    monkeypatch.setattr(choosing.runtimes, "version", lambda name: None if name == "eager" else real(name))
    assert order(tiny) == ["onnxruntime:fp32", "torchscript:fp32", "eager:fp32"]


def test_a_bundle_that_cannot_be_written_is_benched_all_the_same(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from accel.api import benching
    from accel.bench.results import ResultSet, row

    made = {"model": "tiny", "latency_kind": "host_us", "p50_us": 310.5, "n": 30, "round": 0, "raw_path": "samples.npz#a", "flags": []}
    rows = [row(**made, variant=str(variant), verdict=verdict) for variant, verdict in ((ORT, "OK"), (SCRIPT, "INVALID"))]
    about = {"device": "cpu", "plan": {"batch": 1}, "set_id": "set", "command": "", "finished_utc": "now"}
    known = {str(variant): {"sha256": identity_of(tiny, variant), "runtime_version": "1"} for variant in (ORT, SCRIPT)}
    results = ResultSet(tmp_path, {**about, "identities": known}, rows)
    benching._remember(Bundle.open(tiny), results)
    (found,) = measured.read(tiny).values()
    assert [(item["variant"], item["p50_us"]) for item in found["rows"]] == [("onnxruntime:fp32", 310.5)]

    def read_only(*_: Any, **__: Any) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(measured, "record", read_only)
    with caplog.at_level(logging.WARNING):
        benching._remember(Bundle.open(tiny), results)
    assert "cannot be written, so accel.load will not know of this set" in caplog.text


def test_a_damaged_record_is_named_with_what_mends_it(tiny: Path) -> None:
    (tiny / "measured.json").write_text('{"schema_version": 1, "sets": {"a": {"machine": "x"}}}')
    with pytest.raises(CorruptArtifact, match=r"measured\.json: sets\['a'\] lacks the key") as caught:
        accel.load(tiny, device="cpu")
    assert "accel bench" in str(caught.value.remedy)


def test_positional_arguments_are_those_of_the_documentation(tiny: Path) -> None:
    with accel.load(tiny, "onnxruntime", "cpu", 1, True, False) as engine:
        assert engine._shared.source.threads == 1


def test_a_call_of_another_batch_is_looped_or_refused_as_asked(tiny: Path) -> None:
    three = np.zeros((3, 3, 8, 8), np.float32)
    with accel.load(tiny, device="cpu") as looping, accel.load(tiny, device="cpu", batches="refuse") as refusing:
        assert looping(three).shape == (3, 10)
        assert refusing(three[:1]).shape == (1, 10)
        with pytest.raises(UsageError, match="runs 1 row a call, and was given 3") as caught:
            refusing(three)
        assert "batches='loop'" in str(caught.value.remedy)
    with pytest.raises(UnknownName, match="'drop'"):
        accel.load(tiny, device="cpu", batches="drop")
    assert cache.count() == 0


def test_the_module_runs_where_nothing_else_is_left(tiny: Path) -> None:
    manifest = Bundle.open(tiny).manifest
    (tiny / "accel.json").write_text(type(manifest)(**{**vars(manifest), "engines": ()}).to_text())
    trust.record(Bundle.open(tiny))
    for name in ("onnx-fp32", "torchscript-fp32"):
        shutil.rmtree(tiny / name)
    with accel.load(tiny, device="cpu") as engine:
        assert engine.explain()["why"] == "the checkpoint itself, through torch"
        assert engine.golden is not None
        assert engine.golden["status"] == "passed"
