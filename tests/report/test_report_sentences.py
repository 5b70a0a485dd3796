"""Who wins, whether it is still right, and when its build pays back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_sets import GPU, section, write_set

from accel.errors import CorruptArtifact, UsageError
from accel.report import ledger, sentences
from accel.report.ledger import break_evens, cold_starts
from accel.report.ranking import rank
from accel.report.sections import open_sections
from accel.report.tradeoff import front, wilson


def test_the_verdict_names_the_engine_both_eagers_the_next_and_the_accuracy(tmp_path: Path) -> None:
    assert sentences.verdict(section(tmp_path / "s")) == (
        "compile:fp16 is the fastest of 4 ranked variants: 202.0 µs from call to result (median) on NVIDIA H200, "
        "4.00 times as fast as eager:fp16 (808.0 µs), 5.00 times as fast as eager:fp32 (1010 µs, another precision) and "
        "2.00 times as fast as onnxruntime:fp16 (404.0 µs). "
        "Its accuracy is kept (top-1 95.20 %, the reference's 95.22 %; 3 of 10,000 predictions changed; McNemar's p = 0.625)."
    )


def test_a_faster_row_that_is_not_ok_does_not_rank(tmp_path: Path) -> None:
    found = rank(section(tmp_path / "s"))
    assert [line.variant for line in found.ranked] == ["compile:fp16", "onnxruntime:fp16", "eager:fp16", "eager:fp32"]
    assert [(item.other.variant, item.verdict, item.rounds) for item in found.against] == [
        ("eager:fp16", "FASTER", 3),
        ("eager:fp32", "FASTER", 3),
        ("onnxruntime:fp16", "FASTER", 3),
    ]


def test_an_order_that_changes_between_rounds_is_no_victory(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "s", {"eager:fp32": {"host_us": 1000}, "compile:fp32": {"host_us": 995}})
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    next(row for row in rows if row["variant"] == "compile:fp32" and row["round"] == 1)["p50_us"] = 5000.0
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = sentences.verdict(open_sections([folder])[0])
    assert said.startswith("compile:fp32 has the smallest median of 2 ranked variants: 1005 µs")
    assert "1.01 times as fast as eager:fp32 (1010 µs, the rounds do not decide which is faster)" in said
    # 5000 µs in one round and 995 in another.
    assert said.endswith(" Between rounds the median moved by 402.5 % for compile:fp32 (UNSTABLE).")


def test_a_difference_that_does_not_matter_is_called_the_same(tmp_path: Path) -> None:
    said = sentences.verdict(section(tmp_path / "s", {"eager:fp32": {"host_us": 1000}, "compile:fp32": {"host_us": 995}}))
    assert said.startswith("compile:fp32 has the smallest median of 2 ranked variants: ")
    assert "(1010 µs, the same within 2 %)" in said


def test_one_round_is_not_called_replicated(tmp_path: Path) -> None:
    assert sentences.verdict(section(tmp_path / "s", rounds=1)).count("too few rounds: not replicated") == 3


def test_two_rounds_that_agree_are_called_too_few_and_not_undecided(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "s", {"eager:fp32": {"host_us": 1000}, "compile:fp32": {"host_us": 100}}, rounds=2)
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    next(row for row in rows if row["variant"] == "compile:fp32" and row["round"] == 1)["p50_us"] = 200.0
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = sentences.verdict(open_sections([folder])[0])
    assert said.startswith("compile:fp32 has the smallest median of 2 ranked variants")
    assert "as fast as eager:fp32 (1005 µs, two rounds are too few to decide it)" in said


def test_a_top1_that_is_really_lower_is_not_called_kept(tmp_path: Path) -> None:
    lower = {"host_us": 100, "top1": 94.9, "mcnemar_p": 0.0004}
    said = sentences.verdict(section(tmp_path / "s", {**GPU, "compile:fp16": lower}))
    assert "Its accuracy is lower, within the gate (top-1 94.90 %, the reference's 95.22 %; 3 of 10,000 predictions " in said
    assert "McNemar's p < 0.001" in said


def test_without_an_accuracy_none_is_claimed(tmp_path: Path) -> None:
    given = {"host_us": 100, "metric": "parity", "top1": None, "top1_reference": None}
    assert "no accuracy was measured" in sentences.verdict(section(tmp_path / "s", {"eager:fp32": given}))


def test_without_an_ok_row_nothing_is_ranked(tmp_path: Path) -> None:
    found = section(tmp_path / "s", {"eager:fp32": {"host_us": 9, "verdict": "UNVERIFIED"}, "compile:fp32": {"verdict": "MISSING"}})
    assert sentences.verdict(found) == (
        "Nothing may be ranked: no variant of this set has a latency and the verdict OK (1 UNVERIFIED, 1 MISSING)."
    )
    assert sentences.pay_backs(found) == ["No break-even is told: eager:fp32 is UNVERIFIED in this set."]


def test_one_variant_alone_is_compared_with_nothing(tmp_path: Path) -> None:
    found = section(tmp_path / "s", {"compile:fp16": GPU["compile:fp16"]})
    assert sentences.verdict(found).startswith("compile:fp16 is the only variant that may be ranked: 202.0 µs from call to result (")
    assert sentences.pay_backs(found) == ["No break-even is told: this set has no eager:fp32."]


def test_the_baseline_alone_pays_nothing_back(tmp_path: Path) -> None:
    found = section(tmp_path / "s", {"eager:fp32": GPU["eager:fp32"]})
    assert sentences.pay_backs(found) == ["No break-even is told: only eager:fp32 may be ranked."]


def test_without_eager_the_sentence_says_why(tmp_path: Path) -> None:
    variants = {**GPU, "eager:fp32": {"verdict": "MISSING"}}
    del variants["eager:fp16"]
    said = sentences.verdict(section(tmp_path / "s", variants))
    assert " (404.0 µs). It is not compared with eager: eager:fp32 is MISSING in this set. Its accuracy is kept" in said


def test_eager_in_a_graph_does_not_stand_for_eager(tmp_path: Path) -> None:
    variants = {"eager:fp16+graph": {"host_us": 400}, "onnxruntime:fp16": {"host_us": 800}}
    said = sentences.verdict(section(tmp_path / "won", variants))
    assert "It is not compared with eager: this set has no eager:fp32." in said
    variants["onnxruntime:fp16"]["host_us"] = 200
    said = sentences.verdict(section(tmp_path / "second", variants))
    assert "2.00 times as fast as eager:fp16+graph (404.0 µs). It is not compared with eager: this set has no eager:fp32." in said
    plain = {"eager:fp16": {"host_us": 400}, "onnxruntime:fp16": {"host_us": 800}}
    assert "not compared" not in sentences.verdict(section(tmp_path / "plain", plain))


def test_the_verdict_names_variants_whose_rounds_disagree(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "s")
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    medians = {"compile:fp16": (200.0, 212.4, 206.0), "onnxruntime:fp16": (400.0, 412.0, 404.0), "eager:fp32": (1000.0, 1001.0, 1020.0)}
    for row in rows:
        if row["latency_kind"] == "host_us" and row["variant"] in medians:
            row["p50_us"] = medians[row["variant"]][row["round"]]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert sentences.verdict(open_sections([folder])[0]).endswith(
        " Between rounds the median moved by 6.2 % for compile:fp16 (UNSTABLE) and 3.0 % for onnxruntime:fp16 (NOISY)."
    )


@pytest.mark.parametrize(("column", "value"), [("gpu_uuid", "GPU-2"), ("driver", "590"), ("input_sha256", "cd")])
def test_rows_of_other_conditions_are_not_ranked_against_each_other(tmp_path: Path, column: str, value: str) -> None:
    found = section(tmp_path / "s", {**GPU, "compile:fp16": {**GPU["compile:fp16"], column: value}})
    assert sentences.verdict(found) == f"Nothing may be ranked: the rows differ in {column}."
    assert sentences.pay_backs(found) == [f"No break-even is told: the rows differ in {column}."]


def test_a_build_pays_back_after_its_extra_time_over_the_time_saved(tmp_path: Path) -> None:
    found = section(tmp_path / "s", {**GPU, "aoti:fp32": {"host_us": 1200, "build_s": 1.0}})
    by_name = {item.variant: item for item in break_evens(found)}
    # 8 s more, 808 µs saved a call: 9,900.99 calls.
    assert (by_name["compile:fp16"].extra_s, by_name["compile:fp16"].calls) == (8.0, 9_901)
    assert by_name["compile:fp16"].saved_us == pytest.approx(808.0, abs=0.1)
    assert by_name["onnxruntime:fp16"].calls == 0
    assert by_name["aoti:fp32"].calls is None
    assert sentences.pay_backs(found) == [
        "compile:fp16 pays back after 9,901 calls against eager:fp32: ready 8.0 s later, 808.0 µs saved a call",
        "onnxruntime:fp16 pays back at once against eager:fp32: ready 1.0 s sooner, 606.0 µs saved a call",
        "eager:fp16 pays back at once against eager:fp32: ready as soon, 202.0 µs saved a call",
        "aoti:fp32 never pays back against eager:fp32: it is not faster",
    ]


def test_the_cold_start_is_the_slowest_of_the_rounds(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "s", {"compile:fp16": GPU["compile:fp16"]})
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for row in rows:
        row["first_call_ms"], row["build_s"] = 1.0 + row["round"], 9.0 - row["round"]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (only,) = cold_starts(open_sections([folder])[0])
    assert (only.ready_s, only.first_call_ms, only.warm) == (9.0, 3.0, False)


COLD: dict[str, dict[str, Any]] = {
    "eager:fp32": {"host_us": 1000, "load_s": 3.0, "build_s": 0.5, "host_mem_peak_mib": 700.4, "mem_peak_mib": 512},
    "compile:fp16": {"host_us": 500, "load_s": 3.0, "build_s": None, "build_warm_s": 4.5, "host_mem_peak_mib": 900.0},
    "onnxruntime:fp16": {"host_us": 400, "load_s": 0.5, "build_s": 0.25, "engine": "onnx-fp16", "export_s": 6.0},
    "tensorrt:fp16": {"host_us": 200, "load_s": 0.25, "build_s": 0.25, "engine": "tensorrt-fp16"},
}


def test_an_export_is_counted_once_and_what_is_not_known_is_said(tmp_path: Path) -> None:
    found = section(tmp_path / "s", COLD)
    by_name = {item.variant: item for item in break_evens(found)}
    # Ready after 6.75 s, eager after 3.5: 3.25 s over 606 µs a call.
    assert (by_name["onnxruntime:fp16"].extra_s, by_name["onnxruntime:fp16"].calls) == (3.25, 5_364)
    assert sentences.pay_backs(found) == [
        "When tensorrt:fp16 pays back against eager:fp32 is not known, for its export is not on record; apart from that: "
        "ready 3.0 s sooner, 808.0 µs saved a call",
        "onnxruntime:fp16 pays back after 5,364 calls against eager:fp32: ready 3.2 s later, 606.0 µs saved a call",
        "compile:fp16 pays back after 7,921 calls or more against eager:fp32: ready 4.0 s later, 505.0 µs saved a call "
        "(its builds found the caches of an earlier one: --rebuild measures cold ones)",
    ]


def test_the_ledger_takes_the_cold_start_apart(tmp_path: Path) -> None:
    found = section(tmp_path / "s", COLD)
    assert ledger.headings(found) == [
        *("export s", "load s", "build s", "warm build s", "ready s", "first call ms", "host peak MiB", "GPU peak MiB"),
        "pays back after calls",
    ]
    assert ledger.table(found) == [
        ("tensorrt:fp16", ["–", "0.2", "0.2", "–", "0.5", "1.50", "–", "–", "not known"]),
        ("onnxruntime:fp16", ["6.0", "0.5", "0.2", "–", "6.8", "1.50", "–", "–", "5,364"]),
        ("compile:fp16", ["–", "3.0", "–", "4.5", "7.5", "1.50", "900", "–", "≥ 7,921"]),
        ("eager:fp32", ["–", "3.0", "0.5", "–", "3.5", "1.50", "700", "512", "–"]),
    ]
    assert ledger.notes(found) == [ledger.READY, ledger.AT_LEAST]
    assert ledger.notes(section(tmp_path / "known")) == [ledger.READY]


def test_a_set_of_the_first_schema_says_what_its_build_holds(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "s")
    rows = [json.loads(line) | {"schema_version": 1} for line in (folder / "results.jsonl").read_text().splitlines()]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (old,) = open_sections([folder])
    assert ledger.notes(old) == [ledger.READY, ledger.OLD]
    assert dict(ledger.table(old))["compile:fp16"] == ["10.0", "10.0", "10.0", "1.50", "9,901"]


def test_wilsons_interval_has_its_known_values() -> None:
    # Newcombe (1998), table I: 81 of 263 and 0 of 20.
    assert wilson(100 * 81 / 263, 263) == pytest.approx((25.53, 36.62), abs=0.005)
    assert wilson(0.0, 20) == pytest.approx((0.0, 16.11), abs=0.005)


def test_the_front_joins_what_no_other_beats_in_both(tmp_path: Path) -> None:
    ranked = rank(section(tmp_path / "s")).ranked
    assert [line.variant for line in front(ranked)] == ["compile:fp16", "eager:fp32"]


def test_a_file_of_several_sets_is_taken_apart_and_finds_the_samples_of_each(tmp_path: Path) -> None:
    first, second = write_set(tmp_path / "a"), write_set(tmp_path / "b", {"eager:fp32": {"host_us": 50, "model": "mobilenet"}})
    (tmp_path / "results.jsonl").write_text((first / "results.jsonl").read_text() + (second / "results.jsonl").read_text())
    found = open_sections([tmp_path])
    assert [(item.name, item.model, bool(item.samples)) for item in found] == [("a", "resnet18", True), ("b", "mobilenet", True)]


def test_a_set_given_twice_or_empty_or_absent_is_refused(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "s")
    with pytest.raises(UsageError, match="given twice"):
        open_sections([folder, folder / "results.jsonl"])
    with pytest.raises(UsageError, match="is not there"):
        open_sections([tmp_path / "nothing"])
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UsageError, match="holds no rows"):
        open_sections([tmp_path / "empty.jsonl"])


def test_damaged_samples_are_named(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "s")
    (folder / "samples.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(CorruptArtifact, match=r"samples\.npz is damaged"):
        open_sections([folder])
    (folder / "samples.npz").write_text("no archive")
    with pytest.raises(CorruptArtifact, match=r"samples\.npz is damaged \(it is no \.npz file\)"):
        open_sections([folder])
