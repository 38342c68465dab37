"""tvm_na: models/, schedules/ and tuning_logs/ lie beside the package and belong to it by name."""

from setuptools import setup

setup(
    packages=[
        "tvm_na",
        "tvm_na.compat",
        "tvm_na.compat.natten",
        "tvm_na.compat.natten.utils",
        "tvm_na.cuda",
        "tvm_na.deploy",
        "tvm_na.serve",
        "tvm_na.te",
        "tvm_na.models",
        "tvm_na.schedules",
        "tvm_na.tuning_logs",
    ],
    package_data={"tvm_na": ["py.typed", "native/*.cc", "*.j2", "serve/page.html"], "tvm_na.tuning_logs": ["*/*.json"]},
    package_dir={
        "tvm_na": "tvm_na",
        "tvm_na.compat": "tvm_na/compat",
        "tvm_na.compat.natten": "tvm_na/compat/natten",
        "tvm_na.compat.natten.utils": "tvm_na/compat/natten/utils",
        "tvm_na.cuda": "tvm_na/cuda",
        "tvm_na.deploy": "tvm_na/deploy",
        "tvm_na.serve": "tvm_na/serve",
        "tvm_na.te": "tvm_na/te",
        "tvm_na.models": "models",
        "tvm_na.schedules": "schedules",
        "tvm_na.tuning_logs": "tuning_logs",
    },
)
