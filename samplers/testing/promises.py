"""What a check of the kit says when it fails: what was promised, what was seen, what usually causes it, how to rerun it."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["BrokenPromise", "Promise"]

# Errors that mistakes lead to before a check can look at the result: words of the error -> its usual causes.
CAUSES = {
    "is not done after": "the mask id was committed, which leaves a position open (prediction.token is the mask id at "
    "positions that were not asked about, and a draw of your own must leave the mask id out); a rule that may choose no "
    "position for ever; a DraftState that decides nothing in its last step (state.last_step)",
    "at a position that is not masked": "`rows` contains visible positions. Ask about state.open or a part of it; if the "
    "sampler judges what stands there, declare Facts(revises=True)",
    "state.x in place": "an op in place on state.x or a view of it (x[where] = ..., masked_fill_, copy_). Use torch.where and "
    "state.commit",
    "outside the vocabulary": "a token of your own making, or a write into state.x",
    "t is the noise level": "a time of another scale (steps, or a visible fraction) was given as t=; leave t out, or use "
    "state.noise_level or TimedState.level",
}
OTHERWISE = "an error in the sampler's init or step; the traceback above ends in the line"


class BrokenPromise(AssertionError):
    """A check of the kit failed; the message has four lines."""


class Promise:
    """A check's way to fail: `promise(kept, "Rows differ ...", seen, causes)` does nothing if `kept` is true.

    Args:
        sampler: the name that the sampler is registered under.
        check: the name of the test.
        about: what the check is about, for errors that come before it has seen anything.
    """

    def __init__(self, sampler: str, check: str, about: str = ""):
        self.sampler, self.check, self.about = sampler, check, about

    def __call__(self, kept: object, promised: str, seen: str | Callable[[], str], causes: str) -> None:
        """BrokenPromise unless `kept`.

        Args:
            kept: a truth value; a tensor of one element will do.
            promised: a sentence.
            seen: what was seen in its place; a callable is only called if it is needed.
            causes: what usually causes it, and what would be right.
        """
        if not kept:
            raise self.broken(promised, seen if isinstance(seen, str) else seen(), causes)

    def broken(self, promised: str, seen: str, causes: str) -> BrokenPromise:
        """The error, for a check that raises it itself."""
        return BrokenPromise(
            f"sampler {self.sampler!r} does not keep a promise.\n"
            f"promised:     {promised}\n"
            f"seen:         {seen}\n"
            f"usual causes: {causes}\n"
            f"rerun:        pytest --pyargs samplers.testing --sampler {self.sampler} -k {self.check}"
        )

    def explained(self, error: Exception) -> BrokenPromise:
        """The same of an error that was raised before the check had seen anything."""
        lines = str(error).splitlines() or [""]  # pytest adds lines to an assertion
        text = lines[0] if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        causes = next((why for words, why in CAUSES.items() if words in text), OTHERWISE)
        return self.broken(self.about, text, causes)
