"""Plug-ins: found, lazy, broken, twice, blocked. Fake distributions on sys.path, as pip would leave them."""

import json
import re
import subprocess
import sys
import textwrap

import pytest
from dists import SAMPLER, lay, python

import samplers
from samplers import OptionError, PluginError, UnknownNameError, registry
from samplers._declared import literals
from samplers.family import BUILT_IN


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


@pytest.mark.parametrize("group", ["samplers", "samplers.plugins"])
def test_a_name_that_a_terminal_would_act_on_is_broken_and_printable(site, cli, group):
    code = SAMPLER.format(name="red") if group == "samplers" else "raise SystemExit('imported')"
    site("zoo-red", "zoo_red", code, {"r\x1b[31med\x07": "zoo_red:S"}, group=group, version="1\x1b[2J")
    report = reports()["zoo-red"]
    assert (report.status, report.entry_point, report.version) == ("broken", "r [31med", "1 [2J")
    assert r"'r\x1b[31med\x07'" in report.error
    assert "zoo_red" not in sys.modules
    for command in ("list", "plugins"):
        _, out, err = cli(command)
        assert "r [31med" in out
        assert not {"\x1b", "\x07"} & set(out + err)


def test_a_summary_that_a_terminal_would_act_on_is_listed_without(site, cli):
    site(
        "zoo-loud",
        "zoo_loud",
        SAMPLER.format(name="loud").replace("everything", "\\x1b[2J all"),
        {"loud": "zoo_loud:S"},
    )
    for argv in (("list", "loud"), ("list", "loud", "--check"), ("list", "loud", "--json")):
        code, out, _ = cli(*argv)
        assert code == 0
        assert "takes [2J all at once" in out


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


def test_hello_is_installed_and_listed():
    entry = registry.entry("left_to_right")
    assert entry.distribution == "samplers-hello"
    assert samplers.create("left_to_right", width=2).values() == {"width": 2}
    with pytest.raises(OptionError, match=">= 1"):
        samplers.create("left_to_right", width=0)


# ------------------------------------------------------------------------------------------- listing is light


def test_source_tells_what_the_class_says():
    """`samplers list` and `samplers cite` read the sources; every class of the zoo says the same when it is imported."""
    own = [e for e in registry.entries() if e.distribution == registry.DISTRIBUTION]
    assert len(own) >= 32
    for item in own:
        read = literals(item.target)
        cls = item.load()
        assert read["name"] == cls.name == item.name
        assert read.get("family", cls.family) == cls.family == item.declared_family  # some inherit it
        assert (read["summary"], read["cite"]) == (cls.summary, cls.cite)
        assert cls.summary and cls.cite


def test_thirty_plugins_are_listed_and_none_is_imported(tmp_path):
    """Each of them imports torch, sleeps, prints and exits: nobody notices before it is used."""
    for i in range(30):
        code = f"import time, torch\nprint('LOUD')\ntime.sleep(4)\nraise SystemExit(5)\n{textwrap.dedent(SAMPLER)}"
        lay(tmp_path, f"zoo-n{i}", f"zoo_n{i}", code.replace("{name}", f"n{i}"), {f"n{i}": f"zoo_n{i}:S"})
    code = """
        import sys, time
        start = time.perf_counter()
        from samplers.cli import main
        assert main(["list"]) == 0
        assert main(["list", "n1*", "--family", "masked", "--json"]) == 0
        assert main(["cite", "n7"]) == 0
        assert main(["cite", "radd"]) == 0
        print(f"seconds {time.perf_counter() - start:.3f}", file=sys.stderr)
        heavy = {"torch", "numpy", *(f"zoo_n{i}" for i in range(30))} & set(sys.modules)
        assert not heavy, heavy
    """
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "LOUD" not in done.stdout + done.stderr
    for i in range(30):
        assert re.search(rf"^n{i} +masked +takes everything at once +zoo-n{i} 1.0 *$", done.stdout, re.M)
    assert re.search(r"^radd +masked +ancestral", done.stdout, re.M)


def test_what_is_not_declared_is_a_question_mark(site, cli):
    code = SAMPLER.format(name="vague").replace('"takes everything at once"', 'str("at") + " once"')
    site("zoo-vague", "zoo_vague", code.replace('"masked"', 'str("masked")'), {"vague": "zoo_vague:S"})
    rows = {r["name"]: r for r in json.loads(cli("list", "--json")[1])["samplers"]}
    assert (rows["vague"]["family"], rows["vague"]["summary"]) == (None, None)
    assert re.search(r"^vague +\? +\? +zoo-vague 1.0", cli("list")[1], re.M)
    assert "vague" not in cli("list", "--family", "masked")[1]
    assert "zoo_vague" not in sys.modules
    assert re.search(r"^vague +masked .* at once", cli("list", "--family", "masked", "--check")[1], re.M)


def test_what_is_registered_is_listed(site, cli):
    code = """
    import samplers as zoo

    @zoo.hookimpl
    def register_samplers(register):
        register("zoo_far_away:S", name="far", family="uniform", summary="far away")
    """
    site("zoo-far", "zoo_far", code, {"far": "zoo_far"}, group="samplers.plugins")
    assert re.search(r"^far +uniform +far away +zoo-far 1.0", cli("list")[1], re.M)
    assert "far" in samplers.list_samplers(family="uniform", imports=False)
    assert "far" not in samplers.list_samplers(family="uniform"), "it is broken"


# ------------------------------------------------------------------------------------------- one bad plug-in

IMPORTS = {  # what a module does, and what is said of it
    "exits": ("raise SystemExit(5)", "SystemExit: 5"),
    "exits_in_silence": ("import sys; sys.exit()", "SystemExit"),
    "base": ("class Odd(BaseException): pass\nraise Odd('no')", "Odd: no"),
    "like_ctrl_c": ("class Stop(KeyboardInterrupt): pass\nraise Stop('no')", "Stop: no"),
    "generator": ("raise GeneratorExit", "GeneratorExit"),
    "no_package": ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
    "no_str": (
        "class Mute(Exception):\n    def __str__(self): raise ValueError('x')\nraise Mute",
        "Mute: (its message",
    ),
    "str_exits": (
        "class Mute(Exception):\n    def __str__(self): raise SystemExit(3)\nraise Mute",
        "raises SystemExit",
    ),
    "markup": ("raise ValueError('[/red] two\\nlines \\x1b[2J')", "ValueError: [/red] two lines [2J"),
    "syntax": ("def (", "SyntaxError"),
    "recursion": ("def f(): f()\nf()", "RecursionError"),
    "prints": ("print('noise'); import sys; sys.stdout.write('noise'); raise OSError('after noise')", "after noise"),
}
CLASSES = {  # what is changed in a sampler that works, and what is said of it
    "no_step": (("def step", "def stepp"), "S has no step method"),
    "step_of_two": (("def step(self, predict, state)", "def step(self, believe)"), "S.step must take (self, predict"),
    "no_default": (
        ("        def step", "        width: int\n\n        def step"),
        "option 'width' of S has no default",
    ),
    "factory": (
        (
            "        def step",
            "        width: list = __import__('dataclasses').field(default_factory=list)\n\n        def step",
        ),
        "option 'width' of S has a default_factory, and must have a default",
    ),
    "bad_default": (
        ("        def step", "        width: int = option(0, 'w', ge=1)\n\n        def step"),
        "S cannot be made with its defaults: OptionError: option 'width'",
    ),
    "bad_annotation": (
        ("        def step", "        width: 'Nowhere' = option(0)\n\n        def step"),
        "S cannot be made with its defaults: NameError",
    ),
    "nfe_raises": (
        (
            "        def step",
            "        def expected_nfe(self, length, steps):\n            return 1 / 0\n\n        def step",
        ),
        "S.expected_nfe(64, 16) raises ZeroDivisionError",
    ),
    "nfe_exits": (
        (
            "        def step",
            "        def expected_nfe(self, length, steps):\n            raise SystemExit\n\n        def step",
        ),
        "S.expected_nfe(64, 16) raises SystemExit",
    ),
    "nfe_text": (
        (
            "        def step",
            "        def expected_nfe(self, length, steps):\n            return 'many'\n\n        def step",
        ),
        "S.expected_nfe(64, 16) returns 'many', not a number or None",
    ),
    "summary": (('"takes everything at once"', "3"), "S.summary is 3, not text"),
}
HOOK = "import samplers as zoo\n\n@zoo.hookimpl\ndef register_samplers(register):\n    "
HOOKS = {  # a hook module, and what is said of it
    "hook_exits": ("raise SystemExit(5)", "SystemExit: 5"),
    "hook_exits_later": (HOOK + "raise SystemExit(6)", "SystemExit: 6"),
    "hook_base": ("class Odd(BaseException): pass\nraise Odd('no')", "Odd: no"),
    "hook_no_argument": (HOOK.replace("(register)", "()") + "pass", "must take the argument `register`"),
    "hook_undecorated": (HOOK.replace("@zoo.hookimpl\n", "") + "pass", "lacks the decorator @samplers.hookimpl"),
    "hook_none": ("x = 1", "the hook register_samplers(register) is missing"),
    "hook_misspelt": (
        HOOK.replace("register_samplers", "register_sampler") + "pass",
        "unknown hook 'register_sampler'",
    ),
    "hook_number": (HOOK + "register(3, name='x')", "register(3): give a Sampler class, or 'module:Class'"),
    "hook_no_colon": (HOOK + "register('somewhere', name='x')", "register('somewhere'): give a Sampler class"),
    "hook_no_name": (HOOK + "register('somewhere:S')", "'somewhere:S' is registered as None"),
    "hook_odd_name": (HOOK + "register('somewhere:S', name='a/b')", "registered as 'a/b'; a name has letters"),
    "hook_family": (HOOK + "register('somewhere:S', name='x', family='maskd')", "family='maskd' is unknown"),
    "hook_summary": (HOOK + "register('somewhere:S', name='x', summary=3)", "summary=3 is not text"),
    "hook_colour": (HOOK + "register('somewhere:S', name='x', colour=3)", "unexpected keyword argument 'colour'"),
    "hook_class": (HOOK + "register(int, name='whole')", "<class 'int'> is not a subclass of samplers.Sampler"),
    "hook_twice": (HOOK + "[register('somewhere:S', name='x') for _ in range(2)]", "registers 'x' twice"),
    "hook_prints": (HOOK + "print('noise'); raise OSError('after noise')", "OSError: after noise"),
}


def bad_plugins():
    """(name, code, entry points, group, what is said) of all of them."""
    for name, (code, says) in IMPORTS.items():
        yield name, code, {name: f"zoo_{name}:S"}, "samplers", says
    for name, ((old, new), says) in CLASSES.items():
        assert old in SAMPLER
        code = SAMPLER.replace(old, new).replace("{name}", name)
        yield name, code, {name: f"zoo_{name}:S"}, "samplers", says
    for name, (code, says) in HOOKS.items():
        yield name, code, {name: f"zoo_{name}"}, "samplers.plugins", says
    yield "no_attribute", "x = 1", {"no_attribute": "zoo_no_attribute:S"}, "samplers", "has no attribute 'S'"
    yield "odd_target", "x = 1", {"odd_target": "zoo odd!"}, "samplers", "'zoo odd!' is not written module:Class"
    yield "thief", "raise SystemExit(7)", {"threshold": "zoo_thief:S"}, "samplers", "SystemExit: 7"


@pytest.mark.parametrize("bad", list(bad_plugins()), ids=lambda bad: bad[0])
def test_a_bad_plugin_is_named_in_one_line(site, cli, bad):
    name, code, points, group, says = bad
    site(f"zoo-{name}", f"zoo_{name}", code, points, group=group, version="0.3")
    (report,) = [r for r in registry.plugins() if r.distribution == f"zoo-{name}"]
    assert report.status == "broken"
    assert says in report.error
    assert "\n" not in report.error and report.error.isprintable()
    assert cli("plugins")[0] == 0
    assert cli("plugins", "--strict")[0] == 1
    _, out, _ = cli("plugins")
    (line,) = [line for line in out.splitlines() if line.startswith("broken")]
    assert line.startswith(f"broken  {next(iter(points))} (zoo-{name} 0.3): ")
    assert says in line
    assert "noise" not in re.sub(r"register_\w+|after noise", "", out)
    assert samplers.create("radd").name == "radd"
    assert samplers.create("threshold").name == "threshold"


def test_all_bad_plugins_at_once_hurt_nobody(tmp_path):
    """Whole commands, as a process: exit codes, and nothing of theirs in what is meant to be read by a program."""
    names = []
    for name, code, points, group, _ in bad_plugins():
        lay(tmp_path, f"zoo-{name}", f"zoo_{name}", code, points, group=group)
        names.append(f"zoo-{name}")
    lay(tmp_path, "zoo-good", "zoo_good", SAMPLER.format(name="good"), {"good": "zoo_good:S"})
    code = """
        import io, json, sys
        from contextlib import redirect_stdout
        import samplers
        from samplers.cli import main

        def run(*argv):
            out = io.StringIO()
            with redirect_stdout(out):
                assert main(argv) == 0, argv
            return out.getvalue()

        assert "radd" in run("list") and "good" in run("list", "--check")
        assert "k most confident" in run("show", "low_confidence")
        assert "takes everything" in run("show", "good")
        listed = json.loads(run("list", "--json", "--check"))
        assert "good" in {r["name"] for r in listed["samplers"]}
        sudoku = ("--problem", "sudoku4")
        for name in ("threshold", "good"):
            assert json.loads(run("sample", *sudoku, "--sampler", name, "--json"))["x"]
        run("bench", *sudoku, "--samplers", "good,radd,rand*", "--nfe", "4", "--seeds", "1", "--rows", "8", "--out", "b")
        run("env")
        json.dump(json.loads(run("plugins", "--json")), sys.stdout)
    """
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    said = {r["distribution"]: r for r in json.loads(done.stdout)}
    assert said["zoo-good"]["status"] == "ok"
    assert {d for d, r in said.items() if r["status"] == "broken"} == set(names)


def test_ctrl_c_is_not_swallowed(site, cli):
    site("zoo-slow", "zoo_slow", "raise KeyboardInterrupt", {"slow": "zoo_slow:S"})
    with pytest.raises(KeyboardInterrupt):
        samplers.create("slow")
    for argv in (("show", "slow"), ("plugins",)):
        code, _, err = cli(*argv)
        assert (code, err) == (130, "interrupted while plug-in 'slow' of zoo-slow 1.0 was being imported\n")
    site("zoo-hook", "zoo_hook", "raise KeyboardInterrupt", {"hook": "zoo_hook"}, group="samplers.plugins")
    for _ in range(2):  # and what was found so far is not taken for all there is
        with pytest.raises(KeyboardInterrupt, match=r"^while plug-in 'hook' of zoo-hook 1.0 was being imported$"):
            samplers.list_samplers()
    assert samplers.create("radd").name == "radd"


def test_prints_go_to_stderr_also_when_threads_overlap(capsys):
    import threading

    both, one_is_done = threading.Barrier(2), threading.Event()

    def first():
        print("first")
        both.wait(10)

    def second():
        both.wait(10)
        assert one_is_done.wait(10)
        print("second")

    other = threading.Thread(target=lambda: registry.guarded(second))
    stdout = sys.stdout
    other.start()
    registry.guarded(first)
    one_is_done.set()
    other.join(10)
    assert sys.stdout is stdout
    print("third")
    out, err = capsys.readouterr()
    assert (out, err) == ("third\n", "first\nsecond\n")


def test_a_plugin_may_look_at_the_registry_while_it_is_imported(site):
    code = SAMPLER.format(name="curious") + "\n    import samplers as zoo\n    SEEN = zoo.list_samplers('*')\n"
    code += textwrap.indent(HOOK + "[register(one) for one in [S]]", "    ")  # which no list can read
    site("zoo-curious", "zoo_curious", code, {"curious": "zoo_curious"}, group="samplers.plugins")
    assert "curious" in samplers.list_samplers()
    assert "radd" in sys.modules["zoo_curious"].SEEN


@pytest.mark.parametrize("what", ["entry_points.txt", "bytes", "METADATA", "no version"])
def test_damaged_metadata_are_one_packages_own_affair(site, tmp_path, what):
    site("zoo-good", "zoo_good", SAMPLER.format(name="good"), {"good": "zoo_good:S"})
    site("zoo-torn", "zoo_torn", SAMPLER.format(name="torn"), {"torn": "zoo_torn:S"})
    info = tmp_path / "zoo_torn-1.0.dist-info"
    if what == "entry_points.txt":
        (info / what).write_text("[samplers]\nthis is no entry point\n")
    elif what == "bytes":
        (info / "entry_points.txt").write_bytes(b"[samplers]\ntorn = \xff\xfe:S\n")
    elif what == "METADATA":
        (info / what).unlink()
    else:
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: zoo-torn\n")
    registry.reload()
    assert {"good", "radd", "left_to_right"} <= set(samplers.list_samplers())
    assert samplers.create("good").name == "good"
    if what in ("entry_points.txt", "bytes"):
        assert reports()["zoo-torn"].status == "broken"
        assert "entry_points.txt cannot be read" in reports()["zoo-torn"].error
    else:
        assert samplers.create("torn").name == "torn"


# ------------------------------------------------------------------------------------------- names


def test_the_zoos_names_stay_the_zoos(site, cli):
    site("zoo-thief", "zoo_thief", SAMPLER.format(name="threshold"), {"threshold": "zoo_thief:S"})
    assert type(samplers.create("threshold")).__module__ == "samplers.masked.threshold"
    assert type(samplers.create("sampler-zoo:threshold")).__module__ == "samplers.masked.threshold"
    assert "zoo_thief" not in sys.modules
    assert type(samplers.create("zoo-thief:threshold")).__module__ == "zoo_thief"
    assert type(samplers.create("Zoo_Thief:threshold")).__module__ == "zoo_thief", "names of packages are pip's"
    assert samplers.list_samplers("threshold") == ["threshold"]
    assert samplers.list_samplers("masked/thresh*") == ["threshold"]
    assert samplers.list_samplers("*threshold") == ["threshold", "zoo-thief:threshold"]
    assert registry.entry_of(samplers.registry.load("threshold")) == ("sampler-zoo", registry.version())
    assert registry.entry_of(samplers.registry.load("zoo-thief:threshold")) == ("zoo-thief", "1.0")
    report = reports()["zoo-thief"]
    assert report.status == "shadowed"
    assert report.error == "shadowed by the zoo's own 'threshold'; use 'zoo-thief:threshold'"
    assert report.error in cli("plugins")[1]
    assert cli("plugins", "--strict")[0] == 1
    listed = [line.split("  ")[0] for line in cli("list")[1].splitlines()]
    assert {"threshold", "zoo-thief:threshold"} <= set(listed)


def test_an_error_imports_no_plugin(site):
    """The error for a sampler of the wrong family names others: by what their sources say."""
    site("zoo-one", "zoo_one", SAMPLER.format(name="one"), {"one": "zoo_one:S"})
    from samplers.testing.tiny import TinyNet

    with pytest.raises(samplers.FamilyError, match="samplers of that family: ancestral"):
        samplers.sample(TinyNet(), "ddim", gen_length=4)
    assert "zoo_one" not in sys.modules


def test_using_the_zoos_own_imports_no_plugin(site):
    """Not even a module of hooks whose source does not tell what it registers."""
    code = "import samplers as zoo\n@zoo.hookimpl\ndef register_samplers(register): [register for _ in ()]\n"
    site("zoo-quiet", "zoo_quiet", code, {"quiet": "zoo_quiet"}, group="samplers.plugins")
    from samplers.testing.tiny import TinyNet

    assert samplers.sample(TinyNet(), "radd", gen_length=4).distribution == "sampler-zoo"
    assert "zoo_quiet" not in sys.modules
    assert "radd" in samplers.list_samplers()
    assert "zoo_quiet" in sys.modules


def test_a_class_is_not_looked_for_where_it_cannot_be(site):
    """Whose class it is: packages with a sampler of the same name are not imported to know."""
    site("zoo-one", "zoo_one", SAMPLER.format(name="one"), {"one": "zoo_one:S"})
    made = type("S", (samplers.Sampler,), {"name": "one", "family": "masked"})
    assert registry.entry_of(made) == ("unregistered", "")
    assert "zoo_one" not in sys.modules


def test_declared_family_that_the_class_denies(site):
    code = SAMPLER.format(name="liar") + textwrap.indent("\n" + HOOK + "register(S, family='uniform')", "    ")
    site("zoo-liar", "zoo_liar", code, {"liar": "zoo_liar"}, group="samplers.plugins")
    with pytest.raises(PluginError, match=r"S\.family is 'masked', but it is registered with family='uniform'"):
        samplers.create("liar")


def test_families_are_those_that_there_are():
    assert {e.family for e in registry.entries() if e.distribution == registry.DISTRIBUTION} == set(BUILT_IN)
    with pytest.raises(UnknownNameError, match="unknown family 'no_such_flow'"):
        samplers.list_samplers(family="no_such_flow")


# ------------------------------------------------------------------------------------------- citations


def test_cite(site, cli):
    code, out, _ = cli("cite", "threshold")
    assert code == 0
    assert (
        out
        == f"""@misc{{threshold,
  title = {{Fast-dLLM: Training-free Acceleration of Diffusion LLM}},
  author = {{Wu and others}},
  year = {{2025}},
  eprint = {{2505.22618}},
  archiveprefix = {{arXiv}},
  url = {{https://arxiv.org/abs/2505.22618}}
}}

@software{{sampler_zoo,
  title = {{The sampler zoo: samplers for diffusion models}},
  author = {{{{The sampler zoo's authors}}}},
  version = {{{registry.version()}}}
}}
"""
    )
    assert out.endswith(cli("cite")[1])
    assert "author = {Lou and Meng and Ermon}" in cli("cite", "euler_masked")[1]
    assert "note = {the chain rule; slots as in Li et al. 2025" in cli("cite", "autoregressive")[1]
    assert "2026" in cli("cite", "llada2")[1] and "eprint" not in cli("cite", "llada2")[1]
    for item in registry.entries():
        assert cli("cite", item.qualified)[1].count("@") == 2 + (item.distribution != registry.DISTRIBUTION)
    site(
        "zoo-bib",
        "zoo_bib",
        SAMPLER.format(name="bib").replace('"nobody"', '"R&D_1 2025, 50% {more}"'),
        {"bib": "zoo_bib:S"},
    )
    assert r"title = {50\% \{more\}}" in cli("cite", "bib")[1]
    assert r"author = {R\&D\_1}" in cli("cite", "bib")[1]
    assert "@software{zoo_bib," in cli("cite", "bib")[1]
    site(
        "zoo-uncited",
        "zoo_uncited",
        SAMPLER.format(name="uncited").replace('"nobody"', '""'),
        {"uncited": "zoo_uncited:S"},
    )
    assert "names no paper" in cli("cite", "uncited")[2]
    assert "did you mean 'threshold'" in cli("cite", "treshold")[2]


# ------------------------------------------------------------------------------------------- the kit


def kit(*args):
    command = [sys.executable, "-m", "pytest", "--pyargs", "samplers.testing", "-p", "no:cacheprovider", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_kit_judges_one_sampler():
    done = kit("--sampler", "left_to_right", "-k", "facts or options or distribution")
    assert done.returncode == 0, done.stdout
    assert re.search(r"[4-9] passed", done.stdout) and "failed" not in done.stdout


def test_the_kit_says_when_there_is_no_such_sampler():
    done = kit("--sampler", "left_to_rihgt")
    assert done.returncode == 4
    assert "did you mean 'left_to_right'" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
