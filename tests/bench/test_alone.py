"""Who else is on the GPU: counted, not looked up by number."""

from __future__ import annotations

import pytest
from alone import others


@pytest.mark.parametrize(("pids", "found"), [({4711}, 0), (set(), 0), (None, 0), ({4711, 4712}, 1), ({1, 2, 3}, 2)])
def test_one_of_the_processes_is_this_one_whatever_its_number(pids: set[int] | None, found: int) -> None:
    assert others(lambda: pids, leaving_s=0) == found


def test_a_process_that_is_about_to_end_is_waited_for() -> None:
    seen = iter([{1, 2, 3}, {1, 3}, {1}])
    assert others(lambda: next(seen), leaving_s=30) == 0
