"""How fast steps are, for the estimates of a dry run: by the platform's figures, or as two CPU cores have been."""

from __future__ import annotations

from launch.steps.sample import ROWS
from tandem.config import PlatformConfig

# Floating-point operations a second that training reaches on two CPU cores.
TRAINING_FLOPS = 1.2e11
# The same of whole texts read by bfloat16 products, where the processor has them.
READING_FLOPS = 5e11
# Tokens a second times bytes of weights, where two CPU cores write large batches: 330 with those of SmolLM2.
SAMPLED_BYTES = 330 * 2.7e8
# The same of one row, and what a pass takes beside.
READ_BYTES, CPU_PASS_S = 2.2e10, 5e-4
# What tracing and compiling a program of decoding takes.
PROGRAM_S = 4.0
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
    return ROWS / (PASS_S + weights / (UTILISATION * bandwidth)) if bandwidth else SAMPLED_BYTES / weights


def pass_seconds(platform: PlatformConfig, weights: int) -> float:
    """Of one token of one row, written with so many bytes of weights."""
    bandwidth = platform.memory_bandwidth
    return PASS_S + weights / (UTILISATION * bandwidth) if bandwidth else CPU_PASS_S + weights / READ_BYTES


def decoding_seconds(platform: PlatformConfig, weights: int, tokens: int, ways: int) -> float:
    """Of that many tokens, written in each of so many ways, each a program of its own."""
    return ways * (PROGRAM_S + tokens * pass_seconds(platform, weights))
