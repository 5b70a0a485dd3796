import dataclasses
from pathlib import Path

import pytest
from engine_samples import checkpoint_of, entry_of, golden_of

from accel import engines
from accel.datasets import catalog, samples
from accel.engines import Bundle, trust
from accel.errors import CorruptArtifact, UntrustedArtifact


def test_data_needs_no_trust_and_code_does(bundle: Bundle) -> None:
    code = dataclasses.replace(bundle.entries[0], name="torchscript-fp32", format="torchscript")
    trust.demand_engine(bundle, bundle.entries[0])
    with pytest.raises(UntrustedArtifact, match=r"torchscript-fp32 is code \(torchscript\)\n.*trusted=True"):
        trust.demand_engine(bundle, code)
    trust.demand_engine(bundle, code, trusted=True)
    trust.record(bundle)
    trust.demand_engine(bundle, code)


def test_a_factory_of_an_unknown_bundle_is_not_called(bundle: Bundle) -> None:
    with pytest.raises(UntrustedArtifact, match="calling engine_samples:build"):
        trust.demand_module(bundle)
    trust.record(bundle)
    trust.demand_module(bundle)


@pytest.mark.parametrize(("factory", "ours"), [("accel.trainers.models.resnet18:build", True), ("accel.trainers.models.os:system", False)])
def test_only_builders_of_our_models_need_no_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str, ours: bool) -> None:
    monkeypatch.setattr("accel.engines.writing.source_sha256", lambda factory: "0" * 64)
    bundle = engines.create(tmp_path / "x.accel", checkpoint_of(tmp_path / "x", factory=factory), golden_of())
    if ours:
        trust.demand_module(bundle)
    else:
        with pytest.raises(UntrustedArtifact):
            trust.demand_module(bundle)


@pytest.mark.parametrize(
    ("dataset", "code"), [("cifar10", False), ("", False), ("npz:a.npz", False), ("imagefolder:b", False), ("os:abort", True)]
)
def test_test_data_of_an_unknown_bundle_is_read_and_not_imported(tmp_path: Path, dataset: str, code: bool) -> None:
    bundle = engines.create(tmp_path / "x.accel", checkpoint_of(tmp_path / "x", dataset=dataset), golden_of())
    if dataset == "os:abort":
        with pytest.raises(UntrustedArtifact, match=r"its test data is code \(os:abort\)\n.*--data os:abort if you trust it"):
            trust.demand_test_data(bundle)
        trust.record(bundle)
    trust.demand_test_data(bundle)


def test_every_kind_of_data_that_is_read_is_known_to_be() -> None:
    for kind in samples._OPENERS:
        assert trust._PLAIN_DATA.fullmatch(f"{kind}:x")
    for name in catalog.DATASETS:
        assert trust._PLAIN_DATA.fullmatch(name)


def test_trust_ends_with_any_change_and_is_renewed_by_the_next_export(bundle: Bundle, tmp_path: Path) -> None:
    trust.record(bundle)
    changed = engines.add(bundle.path, entry_of(tmp_path / "new", b"new"), tmp_path / "new")
    assert not trust.is_trusted(changed)
    trust.record(changed)
    assert trust.is_trusted(changed)
    # A copy of what it was may lie elsewhere, and is this user's all the same.
    assert trust.is_trusted(bundle)


def test_a_damaged_record_is_an_error_not_trust(bundle: Bundle, tmp_path: Path) -> None:
    trust.record(bundle)
    (tmp_path / "cache/trusted.json").write_text("[1]")
    with pytest.raises(CorruptArtifact, match="delete"):
        trust.is_trusted(bundle)
