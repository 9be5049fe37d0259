"""What hostile, sloppy and unlucky plug-ins do after they were found: each case broke something once."""

import json
import re
import shlex
import shutil
import textwrap

import pytest
import torch
from dists import SAMPLER

import samplers
from samplers import OptionError, PluginError, SamplersError, problems, registry

HOOK = "import samplers as zoo\n\n@zoo.hookimpl\ndef register_grids(register):\n    register('zoo_odd:f', name='odd')\n"
FALL = "\ndef f(span):\n    return span.start * 2 ** -(span.ramp() * 3)\n"


def report(dist="zoo-odd"):
    (found,) = [r for r in registry.plugins() if r.distribution == dist]
    return found


def hooks(site, code, point="zoo_odd", **kw):
    site("zoo-odd", "zoo_odd", code, {"odd": point}, group="samplers.plugins", **kw)


# ------------------------------------------------------------------------------------------- hooks


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        ("register_grids", "register_grid", "broken"),  # a hook that does not exist
        ("@zoo.hookimpl\ndef register_grids", "@zoo.hookimpl(specname='register_grids')\ndef any_name", "ok"),
    ],
)
def test_a_decorated_function_that_is_no_hook_hurts_nobody_else(site, old, new, status):
    hooks(site, HOOK.replace(old, new) + FALL)
    assert "radd" in samplers.list_samplers() and "karras" in registry.names_of("grids")
    assert report().status == status


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def __getattr__(name): raise SystemExit(8)\n" + HOOK, "SystemExit: 8"),
        ("class I:\n    def __repr__(self): raise OSError(9)\nsamplers_interface = I()\n" + HOOK, "OSError: 9"),
        ("samplers_interface = 10**5000\n" + HOOK, "(?i)limit|is 1000"),
        (HOOK.replace("    register(", "    yield register("), "is a generator: make it a plain function"),
        (HOOK.replace("def register", "async def register"), "is a coroutine: make it a plain function"),
    ],
)
def test_what_happens_after_an_import_is_the_plugins_own_affair(site, code, says):
    hooks(site, code + FALL)
    found = report()
    assert found.status == "broken"
    assert re.search(says, found.error)


def test_a_name_that_answers_as_it_likes_becomes_a_plain_text(site):
    code = "class E(str):\n    def __hash__(self): raise SystemExit(7)\n" + HOOK.replace("name='odd'", "name=E('odd')")
    hooks(site, code + FALL)
    assert type(registry.entry("odd", "grids").name) is str


def test_what_a_hook_changes_is_put_back(site):
    code = HOOK.replace(
        "    register(", "    import torch; torch.manual_seed(7); torch.set_num_threads(3)\n    register("
    )
    hooks(site, code + FALL)
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    found = report()
    assert found.status == "meddles" and "torch's random numbers" in found.error
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads


def test_extras_after_a_module_of_hooks_hide_neither_its_interface_nor_its_names(site):
    hooks(site, HOOK + FALL, "zoo_odd [fast]")
    assert "odd" in registry.names_of("grids", imports=False) and registry.incomplete() == []
    hooks(site, "samplers_interface = 9\n" + HOOK + FALL, "zoo_odd [fast]", version="2.0")
    reports = [r for r in registry.plugins() if r.distribution == "zoo-odd"]
    assert all(r.status == "broken" and "written for interface 9" in r.error for r in reports)


@pytest.mark.parametrize("dist", ["sampler-zoo", "Sampler_Zoo"])
def test_no_other_package_is_the_zoo(site, dist):
    site(dist, "zoo_mock", SAMPLER.format(name="mock"), {"mock": "zoo_mock:S"}, version="9")
    assert not registry.has("samplers", "mock")
    assert "give it another name" in report(dist).error


@pytest.mark.parametrize("word", ["zoo_odd", "ZOO-Odd", "odd"])
def test_allowed_packages_are_compared_as_pip_does(site, monkeypatch, word):
    monkeypatch.setenv("SAMPLERS_PLUGINS", f" {word} ,none")
    hooks(site, HOOK + FALL)
    assert report().status == "ok"


def test_a_name_that_only_importing_tells_is_listed_when_it_is_asked_for(site, cli):
    hooks(site, HOOK.replace("    register(", "    for _ in range(1): register(") + FALL)
    code, out, _ = cli("list", "--kind", "grids", "odd", "--json")
    assert code == 0
    assert [row["name"] for row in json.loads(out)["grids"]] == ["odd"]


def test_the_registry_is_there_without_being_imported():
    from dists import python

    assert python("import samplers; print(samplers.registry.INTERFACE)", "/").stdout == "1\n"


# ------------------------------------------------------------------------------------------- what is used in a run


def test_a_grid_is_not_remembered_beyond_a_reload(site, tmp_path):
    denoiser, x = problems.create("mixture").denoiser(), []
    for name, rate in (("one", "3"), ("two", "6")):
        code = FALL.replace("* 3", f"* {rate}")
        site(f"zoo-{name}", f"zoo_{name}", code, {"odd": f"zoo_{name}:f"}, group="samplers.grids")
        x.append(samplers.sample(denoiser, "euler", steps=4, grid="odd").x)
        shutil.rmtree(tmp_path / f"zoo_{name}-1.0.dist-info")
    assert not torch.equal(*x)


@pytest.mark.parametrize("body", ["1 / 0", "raise SystemExit(3)"])
def test_a_window_that_raises_is_named(site, body):
    from samplers.testing.tiny import TinyNet

    site("zoo-odd", "zoo_odd", f"def f(state):\n    {body}\n", {"odd": "zoo_odd:f"}, group="samplers.windows")
    with pytest.raises(PluginError, match=r"the window f raises (ZeroDivisionError|SystemExit)"):
        samplers.sample(TinyNet(), "radd", gen_length=4, window="odd")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("1 / 0", "choose raises ZeroDivisionError"),
        ("raise SystemExit(3)", "choose raises SystemExit"),
        ("pass", "choose returned NoneType; .* is needed"),
        ("return view.begins, view.inside", "choose returned a tuple of 2; .* is needed"),
    ],
)
def test_a_cache_that_chooses_nothing_is_named(site, body, says):
    from samplers.models import TransformerDenoiser
    from samplers.models.transformer import Config, Transformer

    code = f"""
    from dataclasses import dataclass
    from samplers.authoring import Scheme

    @dataclass(frozen=True)
    class Odd(Scheme):
        name, needs = "odd", "dual"

        def choose(self, view):
            {body}
    """
    site("zoo-odd", "zoo_odd", code, {"odd": "zoo_odd:Odd"}, group="samplers.caches")
    config = Config(attention="full", vocab_size=12, layers=1, width=16, heads=2, mlp_width=16)
    with pytest.raises(PluginError, match=f"cache 'odd': {says}"):
        samplers.sample(TransformerDenoiser(Transformer(config), mask_id=11), "radd", gen_length=4, cache="odd")


@pytest.mark.parametrize(
    ("visible", "says"),
    [
        ("u * float('nan')", "visible gives a number that is not finite, at 0.125"),
        ("1 / 0", "visible raises ZeroDivisionError"),
        ("'a'", "visible gives str for 7 numbers"),
        ("1 - u", "visible must rise from 0 to 1"),
        ("5 * u", "visible must rise from 0 to 1"),
    ],
)
def test_a_mask_schedule_of_nonsense_is_refused(site, visible, says):
    code = f"from samplers import MaskSchedule\nf = MaskSchedule('odd', lambda u: {visible}, lambda a: a)\n"
    site("zoo-odd", "zoo_odd", code, {"odd": "zoo_odd:f"}, group="samplers.mask_schedules")
    with pytest.raises(PluginError, match=f"mask schedule 'odd' of zoo-odd 1.0: {says}"):
        samplers.mask_schedule("odd")


NOISE = """
    import torch
    from samplers import NoiseSchedule

    class Odd(NoiseSchedule):
        name, t_min, t_max = "odd", 0.01, 10.0

        def log_alpha(self, t):
            return 0 * t

        def log_sigma(self, t):
            return torch.log(t)

        def t_of(self, lam):
            return torch.exp(-lam)
"""


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("return 0 * t", "raise SystemExit(3)", "SystemExit: 3"),
        ("return 0 * t", "return 0", "log_alpha gives int for 7 numbers"),
        ("torch.log(t)", "-torch.log(t)", "must fall as t rises"),
        ("torch.log(t)", "torch.log(t) * float('nan')", "log_sigma gives a number that is not finite"),
        ("torch.exp(-lam)", "torch.exp(lam)", "t_of must be the inverse"),
        ("0.01, 10.0", "0.01, 0.001", "0 <= t_min < t_max is needed"),
        (", t_min, t_max =", " =", "t_min and t_max are None and None"),
    ],
)
def test_a_noise_schedule_of_nonsense_is_refused(site, old, new, says):
    assert old in NOISE
    code = NOISE.replace(old, new)
    code = code.replace('"odd", 0.01, 10.0', '"odd"') if ", t_min" in old else code
    site("zoo-odd", "zoo_odd", code, {"odd": "zoo_odd:Odd"}, group="samplers.noise_schedules")
    with pytest.raises(PluginError, match=f"noise schedule 'odd' of zoo-odd 1.0: .*{says}"):
        samplers.noise_schedule("odd")


def test_a_noise_schedule_of_sense_is_not(site):
    site("zoo-odd", "zoo_odd", NOISE, {"odd": "zoo_odd:Odd"}, group="samplers.noise_schedules")
    assert samplers.noise_schedule("odd").t_max == 10


def test_numbers_for_a_function_of_c_code(site):
    site("zoo-odd", "zoo_odd", "f = max", {"odd": "zoo_odd:f"}, group="samplers.noise_schedules")
    with pytest.raises(PluginError, match=r"noise schedule 'odd\(3\)' of zoo-odd 1.0 raises TypeError"):
        samplers.noise_schedule("odd(3)")


# ------------------------------------------------------------------------------------------- problems and metrics


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ("Estimate('a', 0, 1, 3)", "value='a', which is no plain number"),
        ("Estimate(x.sum(), 0, 1, 3)", "value=tensor.*, which is no plain number"),
        ("Estimate(1, 0, 1, 3, 'sideways')", "better='sideways'"),
    ],
)
def test_an_estimate_that_is_none_is_named(site, made, says):
    code = f"from samplers.problems import Estimate\ndef f(problem, x, family):\n    return {made}\n"
    site("zoo-odd", "zoo_odd", code, {"odd": "zoo_odd:f"}, group="samplers.metrics")
    problem = problems.create("sudoku4")
    with pytest.raises(PluginError, match=f"metric 'odd' of zoo-odd 1.0 returned 'odd' with {says}"):
        problem.score(problem.sample_truth(4), metrics=["odd"])


def test_a_metric_cannot_change_the_samples(site):
    code = "from samplers.problems import Estimate\ndef f(problem, x, family):\n    x.fill_(0)\n    return Estimate(1, 0, 1, 3)\n"
    site("zoo-odd", "zoo_odd", code, {"odd": "zoo_odd:f"}, group="samplers.metrics")
    problem = problems.create("sudoku4")
    truth = problem.sample_truth(4)
    problem.score(truth, metrics=["odd"])
    assert torch.equal(truth, problem.sample_truth(4))
    for metrics in ("odd", None):
        with pytest.raises(OptionError, match="metrics must be a list of names"):
            problem.score(truth, metrics=metrics)


@pytest.mark.parametrize(("body", "says"), [("1 / 0", "ZeroDivisionError"), ("return 3", "is int, not a Denoiser")])
def test_a_problem_whose_denoiser_cannot_be_made_is_named(site, cli, tmp_path, body, says):
    code = f"""
    from samplers.problems import Problem

    class Odd(Problem):
        name, summary, families, length, primary = "odd", "odd", ("masked",), 4, {{"masked": "x"}}

        def _masked(self):
            {body}

        def _score(self, x, family):
            pass
    """
    site("zoo-odd", "zoo_odd", code, {"odd": "zoo_odd:Odd"}, group="samplers.problems")
    with pytest.raises(PluginError, match=f"the masked denoiser of problem 'odd' of zoo-odd 1.0 .*{says}"):
        problems.create("odd").denoiser()
    command = ("bench", "--problem", "odd", "--samplers", "radd", "--nfe", "2", "--seeds", "1", "--rows", "4")
    code, _, err = cli(*command, "--out", tmp_path / "out")
    assert code != 0 and says in err


# ------------------------------------------------------------------------------------------- families

FAMILY = """
    from dataclasses import dataclass
    import torch
    import samplers
    from samplers.authoring import Family, FamilyPredictor, NoiseCanvas, NoiseState, Run, Sampler, first_state

    class Model(samplers.Denoiser):
        family, name, time_conditioned = "odd", "odd model", False
        device, state_dtype, shape = torch.device("cpu"), torch.float64, (2,)

    @dataclass(frozen=True, eq=False)
    class State(NoiseState):
        def outcome(self):
            out = super().outcome()
            return OUTCOME

    @dataclass(frozen=True)
    class Stay(Sampler):
        name, family, cite, summary = "stay", "odd", "nobody", "one step that changes nothing"

        def init(self, canvas):
            return State.begin(canvas)

        def step(self, predict, state):
            return state.__class__(state.canvas, state.x, last=True)

    class Odd(Family):
        name, summary, default_sampler = "odd", "odd", "stay"

        def start(self, denoiser, sampler, given):
            rng, settings = given.rows(denoiser)
            state = first_state(sampler, NoiseCanvas(denoiser, given.steps(1), rng))
            predictor = FamilyPredictor(denoiser, settings["batch"], sampler=sampler.name)
            run = Run(sampler, predictor, state, 1, settings | {"steps": 1})
            return RUN
"""


@pytest.mark.parametrize(
    ("run", "outcome", "says"),
    [
        ("None", "out", "start of family 'odd' returned NoneType; a samplers.authoring.Run is needed"),
        ("Run(sampler, predictor, None, 1, {})", "out", "with state=None; State is needed"),
        ("Run(sampler, predictor, state, None, {})", "out", "with limit=None; int is needed"),
        ("Run(sampler, predictor, state, 1, {})", "out", "settings have no 'steps'"),
        ("run", "None", "outcome of State returned NoneType; a dict of x, lengths and fill"),
        ("run", "{'x': out['x']}", "outcome of State returned a dict of x; a dict of x, lengths and fill"),
        ("run", "out | {'x': out['x'][:1]}", r"returned x of shape \(1, 2\); a tensor with the 2 rows"),
    ],
)
def test_a_family_of_nonsense_is_named(site, run, outcome, says):
    code = textwrap.dedent(FAMILY).replace("RUN", run).replace("OUTCOME", outcome) + (
        "\n@samplers.hookimpl\ndef register_families(register):\n    register(Odd)\n"
        "\n@samplers.hookimpl\ndef register_samplers(register):\n    register(Stay)\n"
    )
    hooks(site, code)
    import zoo_odd

    with pytest.raises(SamplersError, match=says):
        samplers.sample(zoo_odd.Model(), "stay", batch=2)


def test_a_family_without_a_default_sampler_is_named(site):
    code = "from samplers.authoring import Family\nclass Odd(Family):\n    name = 'odd'\n"
    site("zoo-odd", "zoo_odd", code, {"odd": "zoo_odd:Odd"}, group="samplers.families")
    with pytest.raises(PluginError, match=r"Odd\.default_sampler is None; it is the name of the sampler that runs"):
        registry.find("families", "odd")


def test_a_family_that_cannot_be_asked_is_left_out_of_a_sweep_and_named(site):
    from samplers.bench import Request
    from samplers.bench.cells import plan, unavailable

    code = textwrap.dedent(FAMILY).replace("RUN", "run").replace("OUTCOME", "out")
    code = code.replace(
        "    def start(", "    def supports(self, problem):\n        raise SystemExit(3)\n\n    def start("
    )
    code += (
        "\n@samplers.hookimpl\ndef register_families(register):\n    register(Odd)\n"
        "\n@samplers.hookimpl\ndef register_samplers(register):\n    register(Stay)\n"
    )
    hooks(site, code)
    request = Request(problems=("sudoku4",), samplers=("radd", "stay"), nfe=(2,), rows=8, seeds=1)
    assert {cell.sampler for cell in plan([request])} == {"radd"}
    assert "supports(problem 'sudoku4') raises SystemExit: 3" in unavailable([request])["stay"]


def test_a_metric_with_a_name_of_the_problem_is_named(site):
    code = """
        import samplers
        from samplers.problems import Estimate

        def valid(problem, x, family):
            return Estimate(1.0, 0.0, 2.0, len(x))
    """
    problem = problems.create("sudoku4")
    own = next(iter(problem.score(problem.sample_truth(8), "masked")))
    site("zoo-odd", "zoo_odd", code, {own: "zoo_odd:valid"}, group="samplers.metrics")
    with pytest.raises(PluginError, match=f"problem 'sudoku4' has '{own}' of its own"):
        problem.score(problem.sample_truth(8), "masked", metrics=[own])


# ------------------------------------------------------------------------------------------- samplers new


def test_the_commands_to_come_next_can_be_pasted(cli, tmp_path):
    code, out, _ = cli("new", "pasted", "--family", "masked", "--folder", tmp_path / "two words")
    line = next(one for one in out.splitlines() if one.startswith("  cd "))
    assert code == 0 and shlex.split(line) == ["cd", str(tmp_path / "two words" / "samplers-pasted")]


def test_letters_with_marks_are_written_without(cli, tmp_path):
    assert "did you mean 'cafe_uni'?" in cli("new", "Café Üni", "--family", "masked", "--folder", tmp_path)[2]


# ------------------------------------------------------------------------------------------- samplers check


def test_a_report_that_cannot_be_written_is_told_before_the_checks(cli, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = cli("check", "threshold", "--only", "facts", "--report", tmp_path / "file")
    assert (code, out) == (2, "") and re.search(
        r"--report .*file is no folder, and none can be made there: File exists", err
    )
