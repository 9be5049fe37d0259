"""Everything that an author of a sampler imports; docs/writing_a_sampler.md uses these names and no others."""

from __future__ import annotations

from . import ops
from .arguments import Given
from .canvas import PAD, Layout, NoiseCanvas
from .copies import Copies
from .errors import FamilyError, OptionError, SamplersError
from .family import Family, Run, family_of
from .feeds.cached import Scheme, View
from .feeds.sequence import SequenceState
from .gaussian.grid import GaussianSampler, GridState, Point
from .gaussian.moments import Moments
from .gaussian.stochastic import PathState, StochasticSampler
from .hookspecs import hookimpl
from .masked.plans import ScheduledSampler, even_count, fill_up_to, min_count, scheduled_count
from .masked.times import TimedDraft, TimedState, draw_from_mixture, even_grid
from .prediction import GaussianPredict, Logits, Predict, Prediction
from .predictor import FamilyPredictor, SequencePredictor
from .random import DRAW_FIRST_FREE, gumbel
from .sampler import Conformance, Facts, Sampler, State, first_state, option
from .schedule import MaskSchedule, NoiseSchedule, mask_schedule, noise_schedule
from .state import DraftState, NoiseState, TokenState
from .uniform.levels import NoisyState, quota

__all__ = [
    "DRAW_FIRST_FREE",
    "PAD",
    "Conformance",
    "Copies",
    "DraftState",
    "Facts",
    "Family",
    "FamilyError",
    "FamilyPredictor",
    "GaussianPredict",
    "GaussianSampler",
    "Given",
    "GridState",
    "Layout",
    "Logits",
    "MaskSchedule",
    "Moments",
    "NoiseCanvas",
    "NoiseSchedule",
    "NoiseState",
    "NoisyState",
    "OptionError",
    "PathState",
    "Point",
    "Predict",
    "Prediction",
    "Run",
    "Sampler",
    "SamplersError",
    "ScheduledSampler",
    "Scheme",
    "SequencePredictor",
    "SequenceState",
    "State",
    "StochasticSampler",
    "TimedDraft",
    "TimedState",
    "TokenState",
    "View",
    "draw_from_mixture",
    "even_count",
    "even_grid",
    "family_of",
    "fill_up_to",
    "first_state",
    "gumbel",
    "hookimpl",
    "mask_schedule",
    "min_count",
    "noise_schedule",
    "ops",
    "option",
    "quota",
    "scheduled_count",
]
