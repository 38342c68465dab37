"""Tensor expressions: what is computed, in the natural form and in forms that a target can tile."""

#: The name of a kernel's function.
ENTRY = "main"
