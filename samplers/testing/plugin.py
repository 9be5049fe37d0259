"""The plug-in of pytest: the option --samplers, and one test per sampler for tests that ask for samplers.

It is loaded in every pytest run of an environment that has sampler-zoo, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

# A test that takes one of these runs for every sampler of the families; none is forgotten, since the registry is asked.
FIXTURES: dict[str, tuple[str, ...] | None] = {
    "zoo_sampler": None,
    "zoo_tokens": ("masked", "uniform"),
    "zoo_masked": ("masked",),
    "zoo_uniform": ("uniform",),
    "zoo_gaussian": ("gaussian",),
}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread: models as small as the kit's lose more time by waiting for a second one than it saves."""
    from samplers.testing.kit import one_thread as alone

    with alone():
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("samplers", "conformance kit of the sampler zoo")
    group.addoption(
        "--samplers",
        "--sampler",
        action="extend",
        nargs="+",
        metavar="NAME",
        help="test these samplers only, names or patterns; default: all that are registered. Files to test stand before it",
    )


def pytest_configure(config: pytest.Config) -> None:
    if wanted := config.getoption("samplers"):
        from samplers.errors import SamplersError

        try:
            _chosen(wanted)
        except SamplersError as error:
            raise pytest.UsageError(f"--samplers: {error}") from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = set(FIXTURES) & set(metafunc.fixturenames)
    kit = "kit_case" in metafunc.fixturenames
    if not names and not kit:
        return
    from samplers import registry

    chosen = _chosen(metafunc.config.getoption("samplers"))
    if kit:
        from samplers.testing.kit import cases

        pairs = [(name, case) for name in chosen for case in cases(name)]
        ids = [f"{name}-{case.id.replace('[', '-').rstrip(']')}" for name, case in pairs]
        metafunc.parametrize(("kit_sampler", "kit_case"), pairs, ids=ids)
    for fixture in names:
        families = FIXTURES[fixture]
        metafunc.parametrize(fixture, [n for n in chosen if families is None or registry.entry(n).family in families])


def _chosen(wanted: list[str] | None) -> list[str]:
    from samplers import registry

    if not wanted:
        return registry.names()
    chosen = []
    for pattern in wanted:
        # An exact name that is unknown, ambiguous or broken is an error that says so; a pattern may match nothing.
        if not any(c in pattern for c in "*?["):
            registry.load(pattern)
            chosen.append(pattern)
        else:
            chosen += registry.names(pattern)
    return list(dict.fromkeys(chosen))
