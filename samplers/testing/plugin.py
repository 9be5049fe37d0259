"""The pytest plug-in behind the kit: the option --sampler, and one test a sampler for those that ask for one.

Loaded in every pytest run of an environment that has sampler-zoo, so it imports nothing heavy.
"""

from __future__ import annotations

import pytest

# A test that takes one of these gets every sampler of the families; none is forgotten, since the registry is asked.
FIXTURES = {
    "zoo_sampler": None,
    "zoo_tokens": ("masked", "uniform"),
    "zoo_masked": ("masked",),
    "zoo_uniform": ("uniform",),
    "zoo_gaussian": ("gaussian",),
}


@pytest.fixture
def one_thread():
    """Torch on one thread: models as small as the kit's wait for a second one more than they get from it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("samplers", "conformance kit of the sampler zoo")
    group.addoption(
        "--sampler",
        action="append",
        metavar="NAME",
        help="test this sampler only (a name or a pattern; may be repeated); default: all that are registered",
    )


def pytest_configure(config: pytest.Config) -> None:
    if wanted := config.getoption("sampler"):
        from samplers.errors import SamplersError

        try:
            _chosen(wanted)
        except SamplersError as error:
            raise pytest.UsageError(str(error)) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture, families in FIXTURES.items():
        if fixture in metafunc.fixturenames:
            from samplers import registry

            names = _chosen(metafunc.config.getoption("sampler"))
            if families is not None:
                names = [n for n in names if registry.entry(n).family in families]
            metafunc.parametrize(fixture, names)


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
