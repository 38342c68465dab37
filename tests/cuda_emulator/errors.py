"""What the emulator refuses, and what it notices."""

from __future__ import annotations


class EmulationError(RuntimeError):
    """A source or a launch that the emulator will not vouch for; the message says where and why."""


class UnsupportedCuda(EmulationError):
    """CUDA or PTX that the emulator does not know; the message quotes it."""


class LaunchRefused(EmulationError):
    """A grid, block, argument or amount of shared memory that does not suit the kernel or any GPU."""


class MisalignedAccess(EmulationError):
    """A vector access, ``ldmatrix`` or ``cp.async`` at an address that is not a multiple of its size."""


class OutOfBounds(EmulationError):
    """An access outside of an argument, of shared memory, or of an array of known size."""


class Divergence(EmulationError):
    """A barrier that not all threads of a block reach, or a collective that not all of its lanes reach.

    A thread that has returned does not reach it, although today's GPUs would go on without it.
    """


class ArithmeticFault(EmulationError):
    """An integer division by zero, or a trap."""
