"""Compiled packages are refused, by what their targets say, before torch sees the file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from engine_samples import entry_of

from accel.engines import compat, processor
from accel.errors import IncompatibleArtifact, MissingExtra
from accel.types import EngineEntry

TARGET = {"device": "cpu", "torch_minor": "2.15", "isa": "x86_64", "simd": "avx2 avx512f"}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineEntry:
    """A package that fits the machine that the fixture pretends to be."""
    monkeypatch.setattr(compat, "version_of", lambda name: "2.15.1+cu132")
    monkeypatch.setattr(processor, "machine", lambda: "x86_64")
    monkeypatch.setattr(processor, "instructions", lambda: ("avx2", "avx512f", "avx512vl"))
    return dataclasses.replace(entry_of(tmp_path / "x", name="torchscript-fp16", target=TARGET), format="aoti")


def test_one_of_this_torch_and_this_processor_passes(package: EngineEntry) -> None:
    compat.check(package, "cpu")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"torch_minor": "2.11"},
            r"torch 2\.11 and runs with no other minor version; this environment has torch 2\.15\.1(.|\n)*to aoti --fp16",
        ),
        ({"torch_minor": "2.16"}, r"pip install 'torch==2\.16\.\*'"),
        ({"simd": "amx_tile avx2 avx512_fp16"}, "a processor with amx_tile, avx512_fp16, which this one lacks"),
        ({"isa": "aarch64"}, "made for aarch64 processors; this one is x86_64"),
        ({"device": "cuda"}, "made for cuda; it was to run on cpu"),
    ],
)
def test_one_of_another_is_refused_with_what_was_expected_and_found(package: EngineEntry, change: dict[str, str], said: str) -> None:
    with pytest.raises(IncompatibleArtifact, match=said):
        compat.check(dataclasses.replace(package, target={**TARGET, **change}), "cpu")


def test_without_torch_the_extra_is_named(package: EngineEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "version_of", lambda name: None)
    with pytest.raises(MissingExtra, match=r"compiled by torch 2\.15 and needs it"):
        compat.check(package, "cpu")


def test_a_system_that_does_not_tell_its_instructions_is_not_held_against_the_file(
    package: EngineEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "instructions", lambda: ())
    compat.check(package, "cpu")
