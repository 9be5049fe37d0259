"""The pytest plug-in of the kit: the option --sampler, one test per sampler for tests that ask for samplers, messages.

It is loaded in every pytest run of an environment that has sampler-zoo, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from samplers.testing.promises import Promise

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
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def promise(request: pytest.FixtureRequest) -> Promise:
    """What a check of the kit fails with: see samplers.testing.promises."""
    from samplers.testing.promises import Promise

    sampler = next(request.node.callspec.params[name] for name in FIXTURES if name in request.fixturenames)
    about = (request.function.__doc__ or request.node.originalname).split("\n\n")[0]
    return Promise(sampler, request.node.originalname, " ".join(about.split()))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """An error that ends a check of the kit is explained as a broken promise."""
    try:
        return (yield)
    except Exception as error:
        if (promise := pyfuncitem.funcargs.get("promise")) is None:
            raise
        from samplers.testing.promises import BrokenPromise, Promise

        if not isinstance(promise, Promise) or isinstance(error, BrokenPromise):
            raise
        raise promise.explained(error) from error


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

            chosen = _chosen(metafunc.config.getoption("sampler"))
            if families is not None:
                chosen = [n for n in chosen if registry.entry(n).family in families]
            metafunc.parametrize(fixture, chosen)


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
