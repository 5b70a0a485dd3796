"""The exports of one call into one bundle: written, held against the golden samples, and only then added."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accel import engines, exporters, runtimes
from accel.api import builds, onnx_models
from accel.api.origins import Origin, mixed
from accel.bench.candidates import Job, threads_on
from accel.bench.launch import spawn
from accel.bench.settings import BenchSettings
from accel.bench.verification import REFERENCE, verify_variants
from accel.engines import Bundle, Golden, Reference, batch_of, trust
from accel.engines.onnx_file import OnnxFile
from accel.errors import BundleMissing, CorruptArtifact, IncompatibleArtifact, MissingError, ParityError, UntrustedArtifact, UsageError
from accel.exporters import ExportPlan, ExportRequest
from accel.files import scratch_folder
from accel.optional import installed
from accel.types import EngineEntry, EngineSource, Variant
from accel.verify import parity

logger = logging.getLogger(__name__)

PARITY_REMEDIES = {
    "fp16": "export it in fp32, or keep the layers that overflow in FP32 inside the module",
    "fp32": "see `accel doctor`; --device cpu compares on the CPU instead, and tells the file from the GPU's arithmetic",
}


class ExportJob:
    """Nothing of the bundle exists before its first engine has passed parity.

    Args:
        force: export anew what is there, and replace a bundle of another model.
        python: runtime → interpreter of the workers that compare several builds.
    """

    def __init__(self, origin: Origin, device: str, force: bool, python: Mapping[str, str]) -> None:
        self.origin, self.device, self.force, self.python = origin, device, force, python
        self.path = origin.path
        self.bundle = self._open()
        # What somebody else put into the bundle is not vouched for because this user adds an engine to it.
        self.vouched = self.bundle is None or trust.is_trusted(self.bundle)

    @functools.cached_property
    def golden(self) -> Golden:
        """The bundle's own, so that every engine of it was held against the same samples."""
        return self.origin.golden() if self.bundle is None else self.bundle.golden()

    def complete(self, format: str, request: ExportRequest) -> ExportRequest:
        """The request with what `format` is made from: the module, or the ONNX file as far as it is there.

        Raises:
            UsageError: the model has no module. MissingExtra: torch is needed for it.
        """
        source = exporters.FORMATS[format].source
        if source is not None and not self._from_module(format):
            file = self._source_file(source, request)
            return dataclasses.replace(request, onnx=file or (self.origin.onnx.path if self.origin.onnx else None))
        if self._given(format) is not None:
            return request
        return dataclasses.replace(request, module=self.origin.module)

    def plan(self, format: str, request: ExportRequest) -> ExportPlan:
        """What `run` would write; of a file that was named, which is taken as it is, what that file is.

        Raises:
            UsageError: a format that cannot do it, or a file that is not what was asked for.
        """
        plan = exporters.plan(format, request)
        given = self._given(format)
        if given is None:
            return plan
        batch = onnx_models.batch_of(given)
        for option, asked, found in (
            ("precision", request.precision, given.precision),
            ("opset", request.opset or given.opset, given.opset),
        ):
            if asked != found:
                raise _not_as_asked(given, option, asked, found)
        if batch not in (request.batch, "dynamic"):
            raise _not_as_asked(given, "batch", request.batch, batch)
        name = engines.entry_name(format, given.precision, batch)
        files = (f"{name}/{plan.files[0].rpartition('/')[2]}",)
        size = given.path.stat().st_size
        return dataclasses.replace(plan, name=name, batch=batch, opset=given.opset, files=files, size_bytes=size)

    def run(self, format: str, request: ExportRequest, opset: int | None = None) -> tuple[EngineEntry, bool]:
        """The engine of `format` in the bundle, and whether it was added now.

        Args:
            opset: of an ONNX engine that has to be exported first.
        """
        given = self._given(format)
        if given is not None:
            return self._adopt(given)
        source = exporters.FORMATS[format].source
        if source is not None and request.module is None:
            request = self._with_source(source, request, opset)
        kept = self._kept(format, request)
        if kept is not None:
            return kept, False
        plan = exporters.plan(format, request)
        with scratch_folder(self.path.parent, f"{self.path.name}.{plan.name}") as folder, contextlib.ExitStack() as stack:
            request = dataclasses.replace(request, folder=folder)
            if request.options.builds > 1:
                entry = builds.best_of(format, request, self.parity, self._bench(stack))
            else:
                entry = exporters.export(format, request)
                entry = dataclasses.replace(entry, parity=self.parity(entry, folder))
            self._add(entry, folder)
        return entry, True

    def parity(self, entry: EngineEntry, folder: Path) -> dict[str, Any]:
        """Run the engine whose files are in `folder` on the golden samples; `not run` with the reason where it cannot be run here."""
        runtime = next(name for name, info in runtimes.RUNTIMES.items() if info.format == entry.format)
        source = EngineSource(
            variant=Variant(runtime, entry.precision),
            device=self.device,
            inputs=self.origin.inputs,
            outputs=self.origin.outputs,
            batch=int(size) if isinstance(size := entry.inputs[0].shape[0], int) else 1,
            entry=entry,
            file=folder / next(iter(entry.files)).removeprefix(f"{entry.name}/"),
            parity_only=True,
        )
        if not self.golden.outputs:
            return {"status": "not run", "reason": onnx_models.NO_GOLDEN}
        try:
            return parity.run(source, self.golden)
        except (MissingError, IncompatibleArtifact) as error:
            # The file is right or wrong whether or not this machine can run it; an engine that was not run is never ranked.
            return {"status": "not run", "reason": error.message}

    def _add(self, entry: EngineEntry, folder: Path) -> None:
        if entry.parity["status"] == "failed":
            raise ParityError(
                f"{entry.name} of {self.origin.name} disagrees with the golden samples and was not added: {entry.parity['reason']}",
                remedy=PARITY_REMEDIES.get(entry.precision),
            )
        self.origin.create(self.golden, replace=self.force and self.bundle is None)
        self.bundle = engines.add(self.path, entry, folder)
        if self.vouched:
            trust.record(self.bundle)

    def _from_module(self, format: str) -> bool:
        """Whether a format that could be built from another engine is made from the module."""
        return exporters.FORMATS[format].module_first and self.origin.checkpoint is not None and installed("torch")

    def _given(self, format: str) -> OnnxFile | None:
        """The file that was named, if it is itself an engine of `format`."""
        return self.origin.onnx if format == onnx_models.FORMAT else None

    def _adopt(self, given: OnnxFile) -> tuple[EngineEntry, bool]:
        """The ONNX file that was named, as an engine of the bundle."""
        with scratch_folder(self.path.parent, f"{self.path.name}.{onnx_models.FORMAT}") as folder:
            entry = onnx_models.adopt(given, folder)
            known = [] if self.bundle is None else [item for item in self.bundle.entries if item.files == entry.files]
            if known:
                return known[0], False
            entry = dataclasses.replace(entry, parity=self.parity(entry, folder))
            self._add(entry, folder)
        return entry, True

    def _with_source(self, source: str, request: ExportRequest, opset: int | None) -> ExportRequest:
        """The request with an ONNX engine of the bundle, which is made first if it is missing."""
        given = self._given(source)
        if given is not None:
            self._adopt(given)
        file = self._source_file(source, request)
        if file is None:
            first = self.complete(source, dataclasses.replace(request, opset=opset, onnx=None, options=exporters.BuildOptions()))
            entry, _ = self.run(source, first)
            logger.info("%s of %s was exported first", entry.name, self.origin.name)
            file = self._source_file(source, request)
        return dataclasses.replace(request, onnx=file, model=self._mendable(file))

    def _mendable(self, source: Path | None) -> str:
        """What a command names that makes the source anew: the bundle, wherever it is; without a model in it, the file itself."""
        if self.origin.onnx is not None or self.bundle is None:
            return self.origin.typed
        return str(self.path if self.bundle.has_checkpoint else source)

    def _source_file(self, source: str, request: ExportRequest) -> Path | None:
        """The bundle's engine of the same precision and batch (a dynamic one serves any), whole; a bundle that was made from an ONNX file
        has what that was, whatever its precision."""
        if self.bundle is None:
            return None
        fitting = [item for item in self.bundle.entries if item.format == source and batch_of(item) in (request.batch, "dynamic")]
        # The same precision before another, the very batch before a dynamic one.
        fitting.sort(key=lambda item: (item.precision != request.precision, batch_of(item) != request.batch))
        for entry in fitting:
            if entry.precision == request.precision or not self.bundle.has_checkpoint:
                try:
                    return trust.checked_file(self.bundle, entry)
                except CorruptArtifact:
                    if not self.bundle.has_checkpoint:
                        raise
        if not self.bundle.has_checkpoint and self.origin.onnx is None:
            have = ", ".join(item.name for item in self.bundle.entries)
            raise BundleMissing(
                f"{self.path} has no {source} engine for batch {request.batch}; it has {have}", remedy="name an ONNX file of that batch"
            )
        return None

    def _kept(self, format: str, request: ExportRequest) -> EngineEntry | None:
        """The engine that is there already, if it is whole and what was asked for."""
        if self.bundle is None or self.force:
            return None
        name = engines.entry_name(format, request.precision, request.batch)
        for entry in self.bundle.entries:
            if entry.name == name and exporters.is_current(entry, request):
                try:
                    self.bundle.file(entry)
                except CorruptArtifact:
                    return None
                return entry
        return None

    def _bench(self, stack: contextlib.ExitStack) -> builds.Bench:
        """Where builds are timed: a bundle of its own for each, beside this one, gone afterwards."""
        folder = stack.enter_context(scratch_folder(self.path.parent, f"{self.path.name}.builds"))
        home = self.bundle
        data = home.checkpoint.dataset if home is not None and home.has_checkpoint else ""
        given = (self.origin.name, self.origin.inputs, self.origin.outputs, self.golden, self.python)
        preprocess = home.preprocess if home is not None else {}
        reference = functools.partial(self._reference, folder)
        return builds.Bench(folder, self.device, *given, preprocess=preprocess, data=data or "", reference=reference)

    def _reference(self, folder: Path) -> Reference | None:
        """What the bundle's FP32 model answers on its test data; made now if it is not there and can be made, by code that is trusted."""
        if self.bundle is None:
            return None
        try:
            if not self.origin.trusted:
                trust.demand_test_data(self.bundle)
            if self.bundle.reference() is None:
                trust.demand_module(self.bundle, self.origin.trusted)
                settings = BenchSettings(python=self.python)
                job = Job(self.bundle, self.device, 1, threads_on(self.device, None), settings, folder / "reference", spawn)
                verify_variants(job, [REFERENCE])
        except UntrustedArtifact as error:
            logger.warning("the builds are not verified: %s", error.message)
            return None
        return self.bundle.reference()

    def _open(self) -> Bundle | None:
        """The bundle that will be added to; None if there is none yet, or one that `force` replaces."""
        try:
            bundle = Bundle.open(self.path)
            if self.origin.holds(bundle):
                return bundle
            ours = self.origin.inputs[0]
            if not self.force and bundle.inputs[0].is_pixels != ours.is_pixels:
                raise mixed(self.path, bundle, f"{ours.dtype} {ours.layout}")
        except BundleMissing:
            if not self.path.exists():
                return None
            raise UsageError(f"{self.path} exists and is no bundle", remedy="choose another folder with --out, or remove it") from None
        except CorruptArtifact as error:
            if self.force:
                return None
            raise CorruptArtifact(error.message, remedy="export with --force to replace the bundle, or restore it") from error
        if self.force:
            return None
        raise UsageError(
            f"{self.path} holds another model than {self.origin.name} with these weights",
            remedy="--force replaces it; --out or --name keeps both",
        )


def _not_as_asked(given: OnnxFile, option: str, asked: object, found: object) -> UsageError:
    message = f"{option} {asked} was asked for, and {given.path.name} has {option} {found}: a file that is given is taken as it is"
    return UsageError(message, remedy=f"--{option} {found}, or convert the file")
