"""Mask schedules: how fast tokens appear. (Noise schedules are in noise_schedules.py, and their names are here as well.)

A mask schedule is written on *progress* u, from 0 (all masked) to 1 (all visible), as the visible fraction a(u) with
a(0) = 0 and a(1) = 1, and is named by its formula. The field's word "cosine" means 1 - cos(pi u / 2) in MaskGIT, MD4 and
eMIGM (few tokens early) and sin(pi u / 2) in MDLM (many tokens early), so it is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from . import registry
from .checks import check_plan
from .curves import BOUNDS, EntropyCurve, bounded_plan, entropy_curve, exact_curve, optimal_plan
from .errors import OptionError, UnknownNameError, did_you_mean
from .noise_schedules import EDM, Flow, NoiseSchedule, VPCosine, VPLinear, VPTable, float64, noise_schedule

__all__ = [
    "BOUNDS",
    "EDM",
    "EntropyCurve",
    "Flow",
    "MaskSchedule",
    "NoiseSchedule",
    "VPCosine",
    "VPLinear",
    "VPTable",
    "bounded_plan",
    "entropy_curve",
    "exact_curve",
    "mask_schedule",
    "noise_schedule",
    "optimal_plan",
]


# ---------------------------------------------------------------------------------------------- masks


@dataclass(frozen=True)
class MaskSchedule:
    """Visible fraction a(u) of progress u in [0, 1].

    Args:
        name: the formula, as `mask_schedule` reads it.
        visible: float64 tensor u -> a(u), increasing from 0 to 1.
        progress: its inverse, a -> u.
    """

    name: str
    visible: Callable[[Tensor], Tensor]
    progress: Callable[[Tensor], Tensor]

    def __call__(self, u: Tensor | float) -> Tensor:
        """a(u), float64, with the ends exact."""
        u = float64(u)
        a = self.visible(u.clamp(0.0, 1.0)).clamp(0.0, 1.0)
        return torch.where(u <= 0, 0.0, torch.where(u >= 1, 1.0, a))

    def reveal(self, steps: int) -> Tensor:
        """rho_k = (a_{k+1} - a_k) / (1 - a_k): the chance that a token still masked appears in step k. (steps,) float64.

        The last entry is exactly 1. (Any ancestral sampler of a masking process; reference: MDLM eq. 7, RADD eq. 3.)
        """
        a = self(torch.linspace(0, 1, steps + 1, dtype=torch.float64, device="cpu"))
        rho = (a[1:] - a[:-1]) / (1 - a[:-1]).clamp_min(1e-300)
        rho[-1] = 1.0
        return rho.clamp(0.0, 1.0)

    def mass(self, steps: int) -> Tensor:
        """r_k = a_{k+1} - a_k: the chance that a token appears in step k, given nothing. (steps,) float64, sums to 1."""
        return torch.diff(self(torch.linspace(0, 1, steps + 1, dtype=torch.float64, device="cpu")))

    def counts(self, n: int, steps: int) -> list[int]:
        """How many of n positions to commit in each step: differences of round(n a(k/steps)), zero-token steps dropped.

        The counts sum to n, and their number is the NFE of any sampler that follows them.
        """
        a = self(torch.linspace(0, 1, steps + 1, dtype=torch.float64, device="cpu"))
        # Half rounds up (not to even), so that every count sequence is monotone in n at each step.
        cumulative = torch.floor(n * a + 0.5).to(torch.int64).clamp(0, n)
        cumulative[-1] = n
        return [int(c) for c in torch.diff(cumulative) if c > 0]

    def slope(self, u: Tensor | float) -> Tensor:
        """a'(u) inside (0, 1), float64: a five-point difference whose step goes with the distance to the nearer end.

        Good to about 1e-11 of itself if 1 - a(u) is well above 1e-16, for any smooth schedule, also for one of the user's own.
        """
        u = float64(u)
        h = 1e-3 * torch.minimum(u, 1 - u)
        near, far = self(u + h) - self(u - h), self(u + 2 * h) - self(u - 2 * h)
        return (8 * near - far) / (12 * h)

    def expected_nfe(self, n: int, steps: int) -> float:
        """Sum_k [1 - (1 - r_k)^n]: forward passes of an ancestral sampler that runs the model only when a token appears.

        arXiv 2409.02908, appendix E, for one row of n masked positions; exact for any network.
        """
        return float((1 - (1 - self.mass(steps)) ** n).sum())


def incomplete_beta(a: float, b: float) -> MaskSchedule:
    # scipy is imported here because only this schedule needs it, and it is slow to import.
    from scipy.special import betainc, betaincinv

    return MaskSchedule(
        f"I({a:g},{b:g})",
        lambda u: torch.as_tensor(betainc(a, b, u.numpy()), device="cpu"),
        lambda v: torch.as_tensor(betaincinv(a, b, v.numpy()), device="cpu"),
    )


def sin2_of(gamma: MaskSchedule, name: str) -> MaskSchedule:
    """a(u) = sin^2(pi/2 gamma(u)), which makes the angle arcsin sqrt(a) run as gamma does."""
    return MaskSchedule(
        name,
        lambda u: torch.sin(math.pi / 2 * gamma.visible(u)) ** 2,
        lambda v: gamma.progress(2 / math.pi * torch.arcsin(torch.sqrt(v))),
    )


def beta(a: float, b: float) -> MaskSchedule:
    return sin2_of(incomplete_beta(a, b), f"beta({a:g},{b:g})")


def power(p: float) -> MaskSchedule:
    return MaskSchedule(f"u^{p:g}", lambda u: u**p, lambda a: a ** (1 / p))


def masked_power(p: float) -> MaskSchedule:
    return MaskSchedule(
        f"1-(1-u)^{p:g}",
        lambda u: -torch.expm1(p * torch.log1p(-u)),
        lambda a: -torch.expm1(torch.log1p(-a) / p),
    )


def exp(k: float) -> MaskSchedule:
    top = math.expm1(k)
    return MaskSchedule(f"exp({k:g})", lambda u: torch.expm1(k * u) / top, lambda a: torch.log1p(a * top) / k)


def log(k: float) -> MaskSchedule:
    top = math.expm1(-k)
    return MaskSchedule(f"log({k:g})", lambda u: -torch.log1p(u * top) / k, lambda a: torch.expm1(-k * a) / top)


linear = MaskSchedule("linear", lambda u: u, lambda a: a)
one_minus_cos = MaskSchedule(  # as 2 sin^2(pi u/4), which keeps its digits at small u
    "1-cos", lambda u: 2 * torch.sin(math.pi / 4 * u) ** 2, lambda a: 4 / math.pi * torch.arcsin(torch.sqrt(a / 2))
)
sin = MaskSchedule("sin", lambda u: torch.sin(math.pi / 2 * u), lambda a: 2 / math.pi * torch.arcsin(a))
arcsin = MaskSchedule(  # Guidance-MaskGIT's "arccos": a = 1 - arccos(u) / (pi/2)
    "arcsin", lambda u: 2 / math.pi * torch.arcsin(u), lambda a: torch.sin(math.pi / 2 * a)
)
sin2 = MaskSchedule(
    "sin^2", lambda u: torch.sin(math.pi / 2 * u) ** 2, lambda a: 2 / math.pi * torch.arcsin(torch.sqrt(a))
)
# Our formulas with numbers in them: the registered name, how one is written, its pattern, an example, and the largest number
# (beyond it float64 overflows).
_WITH_NUMBERS: tuple[tuple[str, str, str, str, float], ...] = (
    ("beta", "beta(a,b)", r"beta\(([^,]+),([^,]+)\)", "beta(0.9,0.3)", math.inf),
    ("I", "I(a,b)", r"i\(([^,]+),([^,]+)\)", "I(0.9,0.3)", math.inf),
    ("u^p", "u^p", r"u\^(.+)", "u^2", math.inf),
    ("1-(1-u)^p", "1-(1-u)^p", r"1-\(1-u\)\^(.+)", "1-(1-u)^0.5", math.inf),
    ("exp", "exp(k)", r"exp\((.+)\)", "exp(5)", 700.0),
    ("log", "log(k)", r"log\((.+)\)", "log(5)", 700.0),
)
_MEANS = (
    "linear: a = u; 1-cos: a = 1 - cos(pi u/2); sin: a = sin(pi u/2); arcsin: a = 2 arcsin(u)/pi; sin^2; "
    "beta(a,b): a = sin^2(pi I_u(a,b)/2); "
    "I(a,b): a = I_u(a,b); u^p; 1-(1-u)^p; exp(k): a = (e^(ku) - 1)/(e^k - 1); log(k): a = -ln(1 - (1 - e^-k) u)/k"
)
# Words that name two opposite schedules, and what to write in their place.
_TWO_MEANINGS = {
    "cosine": "'1-cos' for MaskGIT's and MD4's (few tokens early) or 'sin' for MDLM's (many tokens early)",
    "poly": "'u^p' for a visible fraction or '1-(1-u)^p' for a masked one, such as eMIGM's 1-(1-u)^0.5",
}
_TWO_MEANINGS |= {"cos": _TWO_MEANINGS["cosine"], "polynomial": _TWO_MEANINGS["poly"]}


def mask_schedule(spec: str | MaskSchedule) -> MaskSchedule:
    """The mask schedule called `spec`, a formula of the visible fraction a in progress u.

    linear      u
    1-cos       1 - cos(pi u/2): MaskGIT's, MD4's and eMIGM's "cosine"
    sin         sin(pi u/2): MDLM's "cosine"
    arcsin      2 arcsin(u)/pi = 1 - 2 arccos(u)/pi: Guidance-MaskGIT's "arccos"
    sin^2       sin^2(pi u/2): MDLM's "cosine squared"
    beta(a,b)   sin^2(pi/2 I_u(a, b)), I the regularised incomplete beta function, the Beta distribution's CDF: the family
                of arXiv 2509.13866. beta(0.5,0.5) is linear and beta(1,1) is sin^2
    I(a,b)      that CDF itself, an interpolation for `samplers.energy`
    u^p         u^p, flow matching's polynomial (arXiv 2407.15595)
    1-(1-u)^p   a masked share (1 - u)^p; p = 0.5 is eMIGM's "poly" (arXiv 2503.07197)
    exp(k)      (e^(ku) - 1) / (e^k - 1): few tokens early. k = 5 is eMIGM's "exp", 1 - e^(-5t) of the masked, divided by
                its value at t = 1 so that all is masked there; the ratios that a sampler uses are the same
    log(k)      -ln(1 - (1 - e^-k) u) / k, ln(1 + (e^k - 1) t)/k of the masked: fewer still early, most in the last steps.
                k = 5 is eMIGM's "log"

    And those of plug-ins (the hook register_mask_schedules): 'name', 'name(3)' with numbers, 'dist:name'.

    Raises:
        PluginError: it comes from a plug-in that is broken.
        OptionError: an unknown formula, a number that is not positive, 'cosine' or 'poly' (each names two opposite
            schedules).
    """
    if isinstance(spec, MaskSchedule):
        return spec
    text = str(spec).replace(" ", "").lower()
    own, numbered = registry.own_names("mask_schedules"), [w[0].lower() for w in _WITH_NUMBERS]
    if text in own and text not in numbered:
        return registry.made("mask_schedules", text)
    if (word := text.partition("(")[0].partition("-")[0]) in _TWO_MEANINGS:
        raise OptionError(
            f"schedule {spec!r}: {word!r} names two opposite schedules in this field: write {_TWO_MEANINGS[word]}"
        )
    for name, form, pattern, example, most in _WITH_NUMBERS:
        if match := re.fullmatch(pattern, text):
            try:
                numbers = [float(g) for g in match.groups()]
            except ValueError:
                numbers = [math.nan]
            if not all(0 < n < math.inf and n <= most for n in numbers):
                several = "two positive numbers" if match.re.groups == 2 else "a positive number"
                limit = f" up to {most:g}" if most < math.inf else ""
                raise OptionError(f"schedule {spec!r}: {form} takes {several}{limit}, such as {example}")
            return registry.find("mask_schedules", name)(*numbers)
    written = str(spec).replace(" ", "")
    try:
        if text in numbered:
            raise UnknownNameError(text)
        return registry.made("mask_schedules", written)
    except UnknownNameError:
        others = [name for name in registry.names_of("mask_schedules") if name not in own]
        hint = did_you_mean(written, [*own, *(w[1] for w in _WITH_NUMBERS), *others])
        more = f"; of plug-ins: {', '.join(others)}" if others else ""
        raise OptionError(f"unknown mask schedule {spec!r}{hint} Known: {_MEANS}{more}") from None


def step_tables(block_steps: Tensor, curve: Callable[[int], Tensor]) -> tuple[Tensor, Tensor]:
    """Tables of `curve(S)`, (S + 1,) float64 that ends in 1, for each number of steps S that some block is given.

    Args:
        block_steps: (B, blocks) int64, Layout.block_steps.

    Raises:
        OptionError: the tables would take more than checks.PLAN_BYTES.

    Returns:
        table (S, K + 1) float64, 1 beyond k = S; which (max S + 1,) int64, S -> its row in the table.
    """
    kinds = sorted({int(s) for s in block_steps.unique()} - {0})
    most = kinds[-1]
    check_plan(f"steps={most} per block", (len(kinds) + 1) * (most + 1) * 8)
    table = torch.ones(len(kinds), most + 1, dtype=torch.float64, device="cpu")
    which = torch.zeros(most + 1, dtype=torch.int64, device="cpu")
    for i, s in enumerate(kinds):
        table[i, : s + 1] = curve(s)
        which[s] = i
    return table.to(block_steps.device), which.to(block_steps.device)


def jump_rates(schedule: str, eta: float, steps: int) -> tuple[Tensor, Tensor]:
    """(steps,) float64 each: h (1 + eta) k' / (1 - k), the rate to x_1, and h eta k' / k, the rate to the source, of each step.

    k = kappa(u) is the schedule at the step's beginning, k' its slope there, h = 1 / steps. At u = 0 the second is left out: it
    would be infinite, and what it draws anew is the source already.
    """
    a, d = mask_schedule(schedule), 1e-6
    u = torch.arange(steps, dtype=torch.float64, device="cpu") / steps
    slope = ((-3 * a(u) + 4 * a(u + d) - a(u + 2 * d)) / (2 * d)).clamp_min(0.0) / steps  # second order, from the right
    to_data = (1 + eta) * slope / (1 - a(u)).clamp_min(1e-300)
    return to_data, torch.where(u > 0, eta * slope / a(u).clamp_min(1e-300), 0.0)
