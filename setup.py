"""tvm_na: models/, schedules/ and tuning_logs/ lie beside the package and belong to it by name."""

from setuptools import find_packages, setup

BESIDE = ("models", "schedules", "tuning_logs")

setup(
    packages=[
        *find_packages(include=["tvm_na", "tvm_na.*"]),
        *(f"tvm_na.{name}" for folder in BESIDE for name in (folder, *find_packages(include=[f"{folder}.*"]))),
    ],
    package_dir={"tvm_na": "tvm_na", **{f"tvm_na.{folder}": folder for folder in BESIDE}},
    package_data={
        "tvm_na": ["py.typed"],
        "tvm_na.jit": ["*.cc"],
        "tvm_na.wasm": ["*.c"],
        "tvm_na.deploy.wasm": ["web/*"],
        "tvm_na.report": ["*.j2"],
        "tvm_na.serve": ["*.html"],
        "tvm_na.tuning_logs": ["*/records.jsonl"],
    },
)
