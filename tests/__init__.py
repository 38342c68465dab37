"""Tests; a package, so that they import each other and a checkout's tvm_na by name."""
