"""A primary with a drafter as methods that can be timed: by any block length, and by any stopping rule."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax.numpy as jnp
from flax import nnx

from tandem.config import DecodeConfig, StopRule
from tandem.decoding.drafters import Drafter
from tandem.decoding.stopping import Confidence, Oracle, StoppingRule
from tandem.decoding.stopping.router import Router, RouterWeights, Survival
from tandem.measure.speed import autoregressive
from tandem.measure.timing import Method, sampling_of
from tandem.model.bound import Bound
from tandem.model.decoder import Decoder

# The rules that a router's predictions go into.
RULED = (StopRule.router, StopRule.survival)


@dataclass
class Pair:
    """A primary, by its name too, with one of its drafters and, where it has one, the drafter's router."""

    name: str
    primary: Bound[nnx.GraphDef[Decoder]]
    drafter: Bound[Drafter]
    router: RouterWeights | None = None

    def method(
        self,
        decode: DecodeConfig,
        gamma: int,
        stop: StopRule = StopRule.fixed,
        threshold: float = 0.0,
        width: int | None = None,
    ) -> Method:
        """SPEED with at most `gamma` drafts; the `threshold` is the rule's, `width` as in `Engine`."""
        law, rule = sampling_of(decode), rule_of(stop, threshold, self.router)
        options = {"sampling": law, "verification": decode.verification, "width": width}
        return Method.of(self.primary, self.drafter, gamma, rule=rule, **options)

    def plain(self, decode: DecodeConfig, width: int) -> Method:
        """Autoregressive decoding by passes of `width`."""
        (method,) = autoregressive(self.primary, [width], sampling_of(decode)).values()
        return method


def rule_of(stop: StopRule, threshold: float, router: RouterWeights | None) -> Bound[StoppingRule] | None:
    """A rule. The router's threshold is data, so that one program serves all; None is fixed."""
    if stop in RULED:
        assert router is not None
        rule = Router() if stop is StopRule.router else Survival()
        return Bound(rule, replace(router, threshold=jnp.asarray(threshold, router.threshold.dtype)))
    rules = {StopRule.confidence: Confidence(threshold), StopRule.oracle: Oracle()}
    return None if stop is StopRule.fixed else Bound(rules[stop], None)
