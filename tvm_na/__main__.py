"""``python -m tvm_na``: the command line."""

from tvm_na.cli import app

if __name__ == "__main__":
    app(prog_name="tvm-na")
