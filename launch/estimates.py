"""How fast steps are, for the estimates of a dry run: by the platform's figures, or as two CPU cores have been."""

from __future__ import annotations

from launch.steps.sample import ROWS
from tandem.config import PlatformConfig

# Floating-point operations a second that training reaches on two CPU cores.
TRAINING_FLOPS = 1.2e11
# The same of whole texts read by bfloat16 products, where the processor has them.
READING_FLOPS = 5e11
# Tokens a second that a model of SmolLM2's size writes on two CPU cores in large batches.
SAMPLED_TOKENS = 330
# The share of an accelerator's peak that is reached, as long as nothing was compiled for it.
UTILISATION = 0.4
# The least that a pass of decoding takes on an accelerator, whatever it reads.
PASS_S = 1e-3


def training_flops(platform: PlatformConfig) -> float:
    """Operations a second of training."""
    return UTILISATION * platform.peak_flops * platform.chips if platform.peak_flops else TRAINING_FLOPS


def reading_flops(platform: PlatformConfig, dtype: str) -> float:
    """The same of reading whole texts by products of `dtype`."""
    return READING_FLOPS if platform.peak_flops is None and dtype == "bfloat16" else training_flops(platform)


def sampling_rate(platform: PlatformConfig, weights: int) -> float:
    """Tokens a second of a text that a model of so many bytes writes."""
    bandwidth = platform.memory_bandwidth
    return ROWS / (PASS_S + weights / (UTILISATION * bandwidth)) if bandwidth else SAMPLED_TOKENS
