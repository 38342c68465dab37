"""tvm_na: models/ and schedules/ lie beside the package and belong to it by name."""

from setuptools import setup

setup(
    packages=["tvm_na", "tvm_na.te", "tvm_na.models", "tvm_na.schedules"],
    package_data={"tvm_na": ["py.typed", "native/*.cc"]},
    package_dir={
        "tvm_na": "tvm_na",
        "tvm_na.te": "tvm_na/te",
        "tvm_na.models": "models",
        "tvm_na.schedules": "schedules",
    },
)
