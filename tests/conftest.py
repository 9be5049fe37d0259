"""What several files of tests share."""

import sys

import pytest


@pytest.fixture
def cli(capsys):
    """The command line, called: (exit code, stdout, stderr)."""
    from samplers.cli import main

    def call(*argv):
        try:
            code = main([str(a) for a in argv])
        except SystemExit as exit:
            code = exit.code
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed distributions: call it to install one."""
    from dists import lay

    from samplers import registry

    monkeypatch.syspath_prepend(str(tmp_path))
    made = []

    def install(dist, module, code, entry_points, **kw):
        lay(tmp_path, dist, module, code, entry_points, **kw)
        made.append(module)
        registry.reload()

    yield install
    registry.reload()
    for module in made:
        sys.modules.pop(module, None)


@pytest.fixture
def full_disk(monkeypatch):
    """A context in which files of the given name are written in part, and then the disk is full."""
    import contextlib
    import errno
    import os
    from pathlib import Path

    real = Path.write_bytes

    @contextlib.contextmanager
    def full(name):
        def write_bytes(self, data):
            if self.name.startswith(name):
                real(self, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
            return real(self, data)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", write_bytes)
            yield

    return full
