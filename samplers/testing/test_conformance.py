"""The kit under pytest: one test for each sampler, check and setting (see kit.py, and the plug-in of pytest in plugin.py)."""

from __future__ import annotations

import pytest

from samplers.testing.kit import Case, judge
from samplers.testing.promises import BrokenPromise, NotApplicable


def test_promise(kit_sampler: str, kit_case: Case) -> None:
    """The sampler keeps what the check promises."""
    try:
        judge(kit_sampler, kit_case)
    except NotApplicable as why:
        pytest.skip(str(why))
    except BrokenPromise as broken:
        if broken.__cause__ is None:  # the kit's own lines say nothing that the message does not
            pytest.fail(str(broken), pytrace=False)
        raise
