#!/usr/bin/env bash
# Makes a folder with all that a program for AArch64 needs to run artifacts under qemu-aarch64: lib/ with the C and C++
# libraries, libtvm_ffi.so and libtvm_runtime.so. On Debian or Ubuntu, with the Python that has apache-tvm installed
# first on PATH (the versions are those that it has); downloads 100 MB, keeps 11 MB.
#
#   examples/cpp_tvm/aarch64_root.sh build/aarch64
#
# Then, with qemu-user (apt-get install qemu-user) and the extra "cross" (pip install 'tvm_na[cross]'):
#
#   root=build/aarch64
#   tvm-na compile nat_mini --format tvm --target llvm-aarch64-neon --runtime $root/lib/libtvm_runtime.so \
#     -o nat.artifact
#   python -m ziglang c++ -target aarch64-linux-gnu.2.28 -std=c++17 -O2 -I"$(tvm-ffi-config --includedir)" \
#     examples/cpp_tvm/classify.cc -L$root/lib -ltvm_ffi -ldl -o $root/classify
#   qemu-aarch64 -L $root -E LD_LIBRARY_PATH=$PWD/$root/lib $root/classify nat.artifact check
#
# The first call of ziglang takes minutes: it compiles its C++ library. The tests that run under qemu-aarch64 find the
# folder by TVM_NA_AARCH64_ROOT.
set -euo pipefail

if [ $# -ne 1 ]; then
  echo "usage: $0 FOLDER" >&2
  exit 2
fi
for tool in apt-get dpkg-deb python; do
  command -v "$tool" > /dev/null || { echo "required $tool on PATH, found none" >&2; exit 1; }
done
mkdir -p "$1/lib"
lib=$(cd "$1/lib" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

(cd "$scratch" && apt-get -q download libc6-arm64-cross libgcc-s1-arm64-cross libstdc++6-arm64-cross)
for package in "$scratch"/*.deb; do
  dpkg-deb -x "$package" "$scratch/debian"
done
cp -a "$scratch/debian/usr/aarch64-linux-gnu/lib/." "$lib/"

version_of() {
  python -c 'import sys; from importlib.metadata import version; print(version(sys.argv[1]))' "$1"
}
python -m pip download --quiet --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 --dest "$scratch" \
  "apache-tvm==$(version_of apache-tvm)" "apache-tvm-ffi==$(version_of apache-tvm-ffi)"
python - "$lib" "$scratch"/*.whl << 'END'
import sys
import zipfile
from pathlib import Path

folder, *wheels = sys.argv[1:]
for wheel in map(zipfile.ZipFile, wheels):
    for name in wheel.namelist():
        if name.endswith(("/libtvm_ffi.so", "/libtvm_runtime.so")):
            Path(folder, Path(name).name).write_bytes(wheel.read(name))
END
for file in ld-linux-aarch64.so.1 libc.so.6 libstdc++.so.6 libtvm_ffi.so libtvm_runtime.so; do
  [ -e "$lib/$file" ] || { echo "required $file in what was downloaded, got none" >&2; exit 1; }
done
echo "$lib: $(du -sh "$lib" | cut -f1)"
