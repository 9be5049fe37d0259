"""What several files of tests share."""

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
