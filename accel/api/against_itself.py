"""`accel bench --aa`: learn what chance alone does on this machine, and whether the harness makes a difference where there is none."""

from __future__ import annotations

from collections.abc import Sequence

from accel.bench import aa, floors
from accel.bench.comparison import FEWEST_AA_PAIRS, largest_floor
from accel.bench.results import ResultSet
from accel.errors import AccelError, GateError, UsageError

PLAN_NAME = "A/A plan"
FEWEST_ROUNDS = 2 * FEWEST_AA_PAIRS
"""Two rounds make a pair."""


def count_rounds(runtime: str | Sequence[str] | None, rounds: int | None, max_rounds: int | None) -> int:
    """How many rounds an A/A set has: what was asked for, else FEWEST_ROUNDS. Settings of other sets do not count.

    Raises:
        UsageError: nothing was named, the rounds are too few or one has no partner, or rounds were to be added: those would be of
            variants that chance had made UNSTABLE, and the floor is about chance.
    """
    if not runtime:
        raise UsageError("--aa was told no variant to run against itself", remedy="name one or more, as --runtime eager:fp32 --aa")
    asked = FEWEST_ROUNDS if rounds is None else rounds
    if asked < FEWEST_ROUNDS or asked % 2:
        what = f"--aa was asked for {asked} rounds; two make a pair, and a floor needs {FEWEST_AA_PAIRS} pairs"
        raise UsageError(what, remedy=f"leave out --rounds, or give an even number of at least {FEWEST_ROUNDS}")
    if max_rounds not in (None, asked):
        raise UsageError(f"--aa adds no rounds, and --max-rounds was {max_rounds}", remedy="leave out --max-rounds")
    return asked


def conclude(results: ResultSet) -> tuple[tuple[str, ...], AccelError | None]:
    """What a finished A/A set found, one line a variant and latency kind, and GateError if a variant was not the same as itself.

    The set's description gets it too, and the cache the floors, unless the gate failed: then nothing here is to be believed.
    """
    found = aa.judge_set(results.rows, results.description["plan"]["seed"])
    results.describe(aa=[item.to_dict() for item in found])
    notes = [f"A/A {item.describe()}" for item in found]
    failed = [item for item in found if not item.passed]
    if failed:
        what = "\n".join(f"  {item.describe()}" for item in failed)
        remedy = "end what else runs, look at the clocks in the rows, run `accel selfcheck`, and then this again; the floor was not kept"
        problem = GateError(f"the harness finds a difference where there is none: no verdict of this machine holds\n{what}", remedy=remedy)
        return tuple(notes), problem
    if not found:
        return ("A/A: no variant has all of its runs, so no floor was found",), None
    machine, ratios = floors.Machine.of(results.description["environment"]), aa.log_ratios(results.rows)
    file = floors.keep(machine, ratios, set_id=results.description["set_id"], plan=results.rows[0]["plan"])
    known = floors.read(machine).values()
    for kind in dict.fromkeys(item.kind for item in found):
        of_kind = [of_variant[kind] for of_variant in known if kind in of_variant]
        said = aa.floor_said(largest_floor(of_kind, floors.ROUNDS_SHOWN))
        notes.append(f"A/A floor of {machine.device}, {kind}, the largest of {len(of_kind)} variant{'s' * (len(of_kind) > 1)}: {said}")
    return (*notes, f"A/A floors are kept in {file}, and sets that follow on this machine are judged by them"), None
