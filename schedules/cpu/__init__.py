"""Search spaces of CPUs."""
