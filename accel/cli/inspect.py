"""`accel inspect`"""

from __future__ import annotations

import json
import re
from typing import Any

from accel.cli.options import DEFAULT_MODEL, BundleArgument, Format, FormatOption

ENGINE_COLUMNS = ("name", "precision", "opset", "size_mb", "parity", "max_rel_err", "made with", "state")
VERIFIED_COLUMNS = ("variant", "dataset", "metric", "top1", "top1_reference", "n_flips", "n_test", "passed", "verified_utc")
TUNED_COLUMNS = ("tuned on", "best", "tried", "kept", "max_drop", "data", "state", "updated_utc")

_VERSION = re.compile(r"\d+(\.\d+)+\S*")
"""Of a toolchain the table shows the versions; hashes, flags and options of a build are in `--format json`."""


def inspect(bundle: BundleArgument = DEFAULT_MODEL, format: FormatOption = Format.table) -> None:
    """Print what is in a bundle, every file held against its hash."""
    from accel.api.describing import describe
    from accel.cli.output import print_rows

    found = describe(bundle)
    if format is Format.json:
        print(json.dumps(found, indent=2, default=str))
        return
    engines = [_engine_row(entry) for entry in found["engines"]]
    if format is Format.table:
        print("\n".join(f"{name:<12}{text}" for name, text in _heading(found).items()), end="\n\n")
    print_rows(engines, ENGINE_COLUMNS, format)
    for entry in found["engines"] if format is Format.table else ():
        if "details" in entry:
            print(f"\n{entry['name']}: {entry['toolchain'].get('chosen', '')}\n")
            print_rows(entry["details"], [name for name in entry["details"][0] if name != "shape"])
    if format is Format.table and found["verified"]:
        print()
        print_rows(found["verified"], VERIFIED_COLUMNS)
    if format is Format.table and found["tuned"]:
        print()
        print_rows([_tuned_row(tuning) for tuning in found["tuned"]], TUNED_COLUMNS)


def _heading(found: dict[str, Any]) -> dict[str, str]:
    checkpoint = found["checkpoint"]
    if isinstance(checkpoint, dict):
        trained = f", trained on {checkpoint['dataset']}" if checkpoint["dataset"] else ""
        measured = f", top-1 {checkpoint['top1']:.2f} %" if checkpoint["top1"] is not None else ""
        checkpoint = f"{checkpoint['factory']}{trained}{measured}, {checkpoint['size_mb']:.1f} MB, SHA-256 {checkpoint['sha256']}"
    return {
        "model": found["model"],
        "path": found["path"],
        "accel.json": f"SHA-256 {found['accel_json_sha256']}",
        "signed": found["signed_by"] or "by nobody",
        "trusted": f"yes, {found['vouched_by']}" if found["vouched_by"] else "no: its code-bearing engines need --trusted",
        "inputs": _specs(found["inputs"]),
        "outputs": _specs(found["outputs"]),
        "labels": ", ".join(found["labels"][:10]) + (f", … ({len(found['labels'])})" if len(found["labels"]) > 10 else "") or "none",
        "checkpoint": checkpoint,
        "golden": found["golden"],
        "reference": found["reference"],
    }


def _specs(specs: list[dict[str, Any]]) -> str:
    return ", ".join(f"{spec['name']} {spec['dtype']} {'x'.join(map(str, spec['shape']))} {spec['layout']}".rstrip() for spec in specs)


def _engine_row(entry: dict[str, Any]) -> dict[str, Any]:
    made = ", ".join(f"{name} {value}" for name, value in entry["toolchain"].items() if _VERSION.fullmatch(value))
    parity = {"parity": entry["parity"].get("status"), "max_rel_err": entry["parity"].get("max_rel_err")}
    return {**{key: entry[key] for key in ("name", "precision", "opset", "size_mb", "state")}, **parity, "made with": made}


def _tuned_row(tuning: dict[str, Any]) -> dict[str, Any]:
    kept = dict.fromkeys(row["variant"] for row in tuning["rows"] if row.get("decision") == "keep")
    facts = {
        "tuned on": tuning["machine"],
        "best": tuning["best"]["variant"] if tuning["best"] else None,
        "tried": len({row["variant"] for row in tuning["rows"] if row.get("set_id")}),
        "kept": ", ".join(kept) or "none",
        "state": "finished" if tuning["finished"] else "to be continued",
        "updated_utc": tuning["updated_utc"],
    }
    return {**facts, **{name: tuning["gates"].get(name) for name in ("max_drop", "data")}}
