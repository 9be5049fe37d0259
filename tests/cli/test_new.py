"""`samplers new`: what it writes works as it is written, and what it cannot write it says."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import samplers
from samplers import registry
from samplers.cli.new import WITH_TEMPLATE, write_package

ROOT = Path(samplers.__file__).parents[1]
COMPILER = shutil.which(os.environ.get("CXX", "c++").split()[0])


def lay(folder, name, points):
    """What pip leaves of a distribution. points: the text of its entry_points.txt."""
    info = folder / f"{name.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(points)


def lay_package(package):
    """As an editable installation of a package would: what its pyproject.toml says, in its own folder."""
    said = (package / "pyproject.toml").read_text()
    points = re.search(r"^\[project\.entry-points\.samplers\]\n.*\n", said, re.M)[0]
    lay(
        package,
        re.search(r'^name = "(.*)"$', said, re.M)[1],
        points.replace("project.entry-points.", "").replace('"', ""),
    )


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on sys.path for made-up distributions."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    registry.reload()
    yield folder
    registry.reload()


def python(*words, cwd, path, **env):
    """Run Python in a process of its own, with the folders of `path` and this library on sys.path."""
    known = os.pathsep.join(str(folder) for folder in (*path, ROOT))
    env = os.environ | {"PYTHONPATH": known, "OMP_NUM_THREADS": "1"} | env
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def pytest_in(package, *words, path=None):
    return python("-m", "pytest", "-p", "no:cacheprovider", "-rs", *words, cwd=package, path=path or [package])


# ---------------------------------------------------------------------------------------------- what it says


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("MySampler", "lower_snake.*did you mean 'my_sampler'"),
        ("my-sampler", "did you mean 'my_sampler'"),
        ("myODESolver2", "did you mean 'my_ode_solver2'"),
        ("2fast", "lower_snake.*did you mean 'fast'"),
        ("_", "lower_snake, letters a to z first"),
        ("../up", "lower_snake.*did you mean 'up'"),
        ("class", "'class' is a word of Python itself"),
        ("none", "'None' is a word of Python itself"),
        ("facts", "its class would be Facts"),
        ("radd", "sampler-zoo [^ ]+ has one of that name"),
    ],
)
def test_a_name_that_cannot_be_used_is_an_error_that_says_why(cli, tmp_path, name, words):
    code, out, err = cli("new", name, "--family", "masked", "--folder", tmp_path)
    assert code == 2
    assert out == ""
    assert re.search(words, err)
    assert not list(tmp_path.iterdir())


def test_a_name_of_another_package_is_an_error_that_names_the_package(cli, tmp_path, site):
    lay(site, "zoo-other", "[samplers]\ntaken = zoo_other:Taken\n")
    (site / "samplers_module_only.py").write_text("")
    registry.reload()
    assert "zoo-other 0.1.0 has one of that name" in cli("new", "taken", "--family", "masked", "--folder", tmp_path)[2]
    err = cli("new", "module_only", "--family", "masked", "--folder", tmp_path)[2]
    assert f"samplers_module_only, which {site / 'samplers_module_only.py'} is already" in err
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


def test_a_family_without_templates_is_an_error_that_says_which_there_are(cli, tmp_path, site):
    lay(site, "zoo-flow", "[samplers.families]\nflow = zoo_flow:Flow\n")
    err = cli("new", "mine", "--family", "flow", "--folder", tmp_path)[2]
    assert "the family of a plug-in" in err
    assert "Possible: masked, uniform, gaussian" in err
    err = cli("new", "mine", "--family", "gausian", "--folder", tmp_path)[2]
    assert "unknown family 'gausian': did you mean 'gaussian'?" in err
    code, _, err = cli("new", "mine")
    assert code == 2
    assert "--family" in err


# ---------------------------------------------------------------------------------------------- what it writes


def test_it_lists_the_files_and_what_comes_next(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = cli("new", "mine", "--family", "masked")
    assert code == 0
    files, _, after = out.partition("\n\nNext:\n")
    assert {Path(line) for line in files.splitlines()} == {
        p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()
    }
    assert [line.split()[0] for line in after.splitlines()] == ["cd", "pip", "pytest"]
    assert (tmp_path / after.split()[1]).is_dir()
    assert (tmp_path / "samplers-mine").stat().st_mode == tmp_path.joinpath("samplers-mine/tests").stat().st_mode


def test_a_folder_that_is_there_is_never_written_over(cli, tmp_path):
    package = tmp_path / "samplers-mine"
    package.mkdir()
    assert cli("new", "mine", "--family", "masked", "--folder", tmp_path)[0] == 0, "an empty folder will do"
    (package / "pyproject.toml").write_text("changed")
    code, _, err = cli("new", "mine", "--family", "gaussian", "--folder", tmp_path)
    assert code == 2
    assert f"{package} is there already, and nothing was written" in err.replace("\n", "")
    assert (package / "pyproject.toml").read_text() == "changed"
    assert "masked" in (package / "samplers_mine.py").read_text()
    (tmp_path / "samplers-other").symlink_to(tmp_path / "nowhere")
    assert "is there already" in cli("new", "other", "--family", "masked", "--folder", tmp_path)[2]


def test_a_full_disk_leaves_nothing_half_written(cli, tmp_path, full_disk):
    with full_disk("test_mine"):
        code, _, err = cli("new", "mine", "--family", "masked", "--folder", tmp_path / "deep")
    assert code == 1
    assert "No space left on device" in err
    assert not list((tmp_path / "deep").iterdir())


@pytest.mark.parametrize("with_op", [False, True], ids=["plain", "op"])
def test_every_text_is_filled_in_and_nothing_is_left_for_ruff_to_say(tmp_path, with_op):
    for family, name in zip(WITH_TEMPLATE, ("own", "my_first_sampler", "steps_of_third_order")):
        package, files = write_package(name, family, tmp_path, with_op=with_op)
        assert len(files) == (10 if with_op else 6)
        for path in files:
            text = (package / path).read_text()
            assert not re.search(r"#\[|my[_-]sampler|MySampler|TORCH_VERSION", text), path
            if path.endswith(".py"):
                compile(text, path, "exec")
    if find_spec("ruff"):
        for words in (["check", "--extend-select", "I,B,UP,SIM,PT,RUF"], ["format", "--check"]):
            command = [sys.executable, "-m", "ruff", *words, "--no-cache", str(tmp_path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout


# ---------------------------------------------------------------------------------------------- what it does


def test_the_packages_pass_their_tests_and_the_kit_as_they_are_written(tmp_path):
    """Of all three families, in one process: the sampler is the plain loop, and each promise of the kit is kept."""
    packages = [write_package(f"new_{family}", family, tmp_path)[0] for family in WITH_TEMPLATE]
    for package in packages:
        lay_package(package)
    code, said = pytest_in(tmp_path, "-v", *(str(package) for package in packages), path=packages)
    assert code == 0, said[-5000:]
    assert said.count("::test_the_sampler_is_the_loop") == 3 + 3 + 2
    assert said.count("::test_the_kit PASSED") == 3


BUILD = ("setup.py", "--quiet", "build_ext", "--inplace")


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_ops_are_built_and_are_their_twins_and_without_a_compiler_the_twin_runs(tmp_path):
    built = [write_package(f"{family}_op", family, tmp_path, with_op=True)[0] for family in ("masked", "gaussian")]
    for package in built:
        code, said = python(*BUILD, cwd=package, path=[], SAMPLERS_NATIVE="1")
        assert code == 0, said
        assert list(package.glob("samplers_*/_op.*")), said
    without, _ = write_package("uniform_op", "uniform", tmp_path, with_op=True)
    none = {"CC": "no-such-compiler", "CXX": "no-such-compiler"}
    code, said = python(*BUILD, cwd=without, path=[], **none)
    assert code == 0, said
    assert "no-such-compiler" in said
    assert not list(without.glob("samplers_*/_op.*"))
    assert python(*BUILD, cwd=without, path=[], **none, SAMPLERS_NATIVE="1")[0] != 0

    packages = [*built, without]
    for package in packages:
        lay_package(package)
    code, said = pytest_in(tmp_path, "-v", "-k", "not kit", *map(str, packages), path=packages)
    assert code == 0, said[-5000:]
    kernels = re.findall(r"test_(\w+)_op.py::test_the_kernel_for_the_cpu_is_the_one_in_cpp (\w+)", said)
    assert dict(kernels) == {"masked_op": "PASSED", "gaussian_op": "PASSED", "uniform_op": "SKIPPED"}
    assert len(re.findall(r"::test_torch_finds_no_fault_with_the_registration PASSED", said)) == 3
    assert said.count("its op runs in torch, which is right but slower") == 1
    assert "samplers-uniform-op: its op runs in torch" in said
