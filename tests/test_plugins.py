"""Plug-ins: found, lazy, broken, twice, blocked. Fake distributions on sys.path, as pip would leave them."""

import subprocess
import sys
import textwrap

import pytest

import samplers
from samplers import OptionError, PluginError, UnknownNameError, registry

SAMPLER = """
    from dataclasses import dataclass
    from samplers import Sampler, option

    @dataclass(frozen=True)
    class S(Sampler):
        '''A sampler made for a test, eq. 0.'''
        name, family, cite, summary = "{name}", "masked", "nobody", "takes everything at once"

        def step(self, predict, state):
            return state.commit(state.open, predict(state).token)
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed distributions: call it to install one."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made = []

    def install(dist, module, code, entry_points, group="samplers", version="1.0"):
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(code))
        info = tmp_path / f"{dist.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n")
        lines = "\n".join(f"{name} = {target}" for name, target in entry_points.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{lines}\n")
        made.append(module)
        registry.reload()

    yield install
    registry.reload()
    for module in made:
        sys.modules.pop(module, None)


def reports():
    return {r.distribution: r for r in registry.plugins()}


def test_found_by_entry_point_and_lazy(site):
    site("zoo-one", "zoo_one", SAMPLER.format(name="one"), {"one": "zoo_one:S"}, version="2.5")
    assert "one" in samplers.list_samplers()
    assert "zoo_one" not in sys.modules, "listing must not import a plug-in"
    from samplers.testing.tiny import TinyNet

    out = samplers.sample(TinyNet(), "one", gen_length=4)
    assert (out.sampler, out.distribution, out.version, out.nfe) == ("one", "zoo-one", "2.5", 1)
    assert reports()["zoo-one"].status == "ok"
    assert "one" in samplers.list_samplers("masked/*")


def test_broken_one_is_reported_and_left_out(site):
    site("zoo-bad", "zoo_bad", "import no_such_module_anywhere", {"bad": "zoo_bad:S"}, version="0.3")
    site("zoo-good", "zoo_good", SAMPLER.format(name="good"), {"good": "zoo_good:S"})
    assert samplers.create("good").name == "good"
    assert samplers.create("radd").name == "radd"
    with pytest.raises(
        PluginError, match=r"'bad' was declared by zoo-bad 0.3.*No module named 'no_such_module_anywhere'"
    ):
        samplers.create("bad")
    report = reports()["zoo-bad"]
    assert report.status == "broken"
    assert "\n" not in report.error
    assert "no_such_module_anywhere" in report.error
    assert reports()["zoo-good"].status == "ok"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("S = 3", "not a subclass"),
        (SAMPLER.format(name="other"), "registered as 'odd'"),
        (SAMPLER.format(name="odd").replace('"masked"', '"maskd"'), "family is 'maskd'"),
        (SAMPLER.format(name="odd").replace("@dataclass(frozen=True)", ""), "needs the decorator"),
        ("raise SystemError('two\\nlines')", "two lines"),
    ],
)
def test_what_is_no_sampler_says_why(site, code, says):
    site("zoo-odd", "zoo_odd", code, {"odd": "zoo_odd:S"})
    with pytest.raises(PluginError, match=says):
        samplers.create("odd")
    assert reports()["zoo-odd"].status == "broken"


def test_duplicate_name_names_both_origins(site):
    site("zoo-a", "zoo_a", SAMPLER.format(name="twin"), {"twin": "zoo_a:S"}, version="1.1")
    site("zoo-b", "zoo_b", SAMPLER.format(name="twin"), {"twin": "zoo_b:S"}, version="2.2")
    with pytest.raises(UnknownNameError, match=r"zoo-a 1.1 and zoo-b 2.2.*'zoo-a:twin' or 'zoo-b:twin'"):
        samplers.create("twin")
    assert type(samplers.create("zoo-a:twin")).__module__ == "zoo_a"
    assert type(samplers.create("zoo-b:twin")).__module__ == "zoo_b"
    assert {"zoo-a:twin", "zoo-b:twin"} <= set(samplers.list_samplers())
    assert reports()["zoo-a"].status == "duplicate"


def test_a_builtin_cannot_be_shadowed(site):
    site("zoo-thief", "zoo_thief", SAMPLER.format(name="radd"), {"radd": "zoo_thief:S"})
    with pytest.raises(UnknownNameError, match=r"sampler-zoo .* and zoo-thief"):
        samplers.create("radd")
    assert type(samplers.create("sampler-zoo:radd")).__module__ == "samplers.masked.radd"


def test_hook_registers_many(site):
    code = SAMPLER.format(name="first") + textwrap.indent(
        textwrap.dedent("""
        import samplers as zoo

        @zoo.hookimpl
        def register_samplers(register):
            register(S)
            register("zoo_many:T", name="second", family="masked")

        @dataclass(frozen=True)
        class T(S):
            '''Another sampler made for a test.'''
            name = "second"
        """),
        "    ",
    )
    site("zoo-many", "zoo_many", code, {"many": "zoo_many"}, group="samplers.plugins")
    assert {"first", "second"} <= set(samplers.list_samplers("masked/*"))
    assert samplers.create("second").name == "second"
    assert reports()["zoo-many"].samplers == ["first", "second"]


def test_hook_that_fails_registers_nothing(site):
    code = """
    import samplers as zoo

    @zoo.hookimpl
    def register_samplers(register):
        register("zoo_half:S", name="half", family="masked")
        raise RuntimeError("half way")
    """
    site("zoo-half", "zoo_half", code, {"half": "zoo_half"}, group="samplers.plugins")
    assert "half" not in samplers.list_samplers()
    assert reports()["zoo-half"].status == "broken"
    with pytest.raises(UnknownNameError, match=r"zoo-half 1\.0 is broken and left out: RuntimeError: half way"):
        samplers.create("half")


def test_hook_with_a_wrong_argument_is_named(site):
    code = """
    import samplers as zoo

    @zoo.hookimpl
    def register_samplers(register, colour):
        pass
    """
    site("zoo-arg", "zoo_arg", code, {"arg": "zoo_arg"}, group="samplers.plugins")
    assert "colour" in reports()["zoo-arg"].error
    assert "radd" in samplers.list_samplers()


@pytest.mark.parametrize(("allowed", "there"), [("none", False), ("zoo-one", True), ("one", True), ("zoo-two", False)])
def test_environment_restricts_loading(site, monkeypatch, allowed, there):
    monkeypatch.setenv("SAMPLERS_PLUGINS", allowed)
    site("zoo-one", "zoo_one", SAMPLER.format(name="one"), {"one": "zoo_one:S"})
    assert ("one" in samplers.list_samplers()) is there
    assert reports()["zoo-one"].status == ("ok" if there else "blocked")
    assert "radd" in samplers.list_samplers()


def test_every_hook_is_documented_and_tested():
    from pathlib import Path

    from samplers import hookspecs

    root = Path(__file__).parent.parent
    hooks = [name for name, value in vars(hookspecs).items() if hasattr(value, "samplers_spec")]
    assert hooks == ["register_samplers"]
    for hook in hooks:
        assert f"{hook}(register)" in (root / "README.md").read_text(), f"README.md does not explain {hook}"
        assert f"def {hook}(register" in Path(__file__).read_text()


def test_hello_is_installed_and_listed():
    entry = registry.entry("left_to_right")
    assert entry.distribution == "samplers-hello"
    assert samplers.create("left_to_right", width=2).values() == {"width": 2}
    with pytest.raises(OptionError, match=">= 1"):
        samplers.create("left_to_right", width=0)


def test_listing_is_light():
    code = "import sys, samplers; samplers.list_samplers(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0, "listing names imported torch"


def kit(*args):
    command = [sys.executable, "-m", "pytest", "--pyargs", "samplers.testing", "-p", "no:cacheprovider", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_kit_judges_one_sampler():
    done = kit("--sampler", "left_to_right", "-k", "facts or options or law")
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout


def test_the_kit_says_when_there_is_no_such_sampler():
    done = kit("--sampler", "left_to_rihgt")
    assert done.returncode == 4
    assert "did you mean 'left_to_right'" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_the_kit_finds_a_sampler_that_is_wrong(tmp_path, monkeypatch):
    """A kit that passes everything is worth nothing: these samplers have one mistake each."""
    mistakes = {
        "global_rng": ("torch.rand(state.x.shape)", "seed_decides or row_of"),
        "batch_count": ("prediction.confidence.flatten().argsort().argsort().view_as(state.x).float()", "row_of"),
        "peeks": ("prediction.confidence", "law and one"),
    }
    code = (
        "import torch\nfrom dataclasses import dataclass\nfrom samplers.authoring import Conformance, Facts, Sampler\n"
    )
    for name, (score, _) in mistakes.items():
        k = "len(state.x)" if name == "batch_count" else 1
        code += f"""
@dataclass(frozen=True)
class {name.title().replace("_", "")}(Sampler):
    '''A sampler with a mistake, for a test.'''
    name, family, cite, summary = "{name}", "masked", "nobody", "wrong"
    facts = Facts(bias="exact")

    def step(self, predict, state):
        prediction = predict(state, want="confidence")
        return state.commit_best({score}, prediction.token, k={k})
"""
    # Under uniform noise: every step takes the clean tokens that it has drawn for x_s, without the noise between.
    mistakes["no_noise"] = ("", "law and one")
    code += """
@dataclass(frozen=True)
class NoNoise(Sampler):
    '''A sampler with a mistake, for a test.'''
    name, family, cite, summary = "no_noise", "uniform", "nobody", "wrong"
    facts = Facts(bias="exact")
    conformance = Conformance(one_at_a_time={"steps": 64})

    def step(self, predict, state):
        prediction = predict(state, t=1 - state.block_step.double() / state.block_steps)
        return state.revise(prediction.token, state.last_step)
"""
    (tmp_path / "wrong_ones.py").write_text(code)
    info = tmp_path / "wrong_ones-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wrong-ones\nVersion: 1.0\n")
    points = "\n".join(f"{n} = wrong_ones:{n.title().replace('_', '')}" for n in mistakes)
    (info / "entry_points.txt").write_text(f"[samplers]\n{points}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name, (_, tests) in mistakes.items():
        done = kit("--sampler", name, "-k", tests)
        assert done.returncode == 1, f"the kit passed {name}: {done.stdout}"
        assert " failed" in done.stdout
