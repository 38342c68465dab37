"""The faults. Each is a small change to one file that a plausible slip would make; some test must fail with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Fault:
    """A text that is in the sources once, and what is put in its place.

    Attributes:
        name: In a few words what is wrong.
        place: A file, or a folder with the file, from the root of the repository.
        text: What is there.
        planted: What the fault makes of it.
        tests: Files of tests of which at least one must find it, as pytest takes them.
    """

    name: str
    place: str
    text: str
    planted: str
    tests: tuple[str, ...]

    def file(self, root: Path = ROOT) -> Path:
        """The file with the text.

        Raises:
            ValueError: there is none, or the text is there more than once, or a file of tests is missing.
        """
        for test in self.tests:
            if not (root / test).is_file():
                raise ValueError(f"tests: required files, got {test}")
        files = [root / self.place] if (root / self.place).is_file() else sorted((root / self.place).rglob("*.py"))
        found = [file for file in files for _ in range(file.read_text(encoding="utf-8").count(self.text))]
        if len(found) != 1:
            raise ValueError(f"text: required {self.text!r} in {self.place} once, got it {len(found)} times")
        return found[0]

    def plant(self, root: Path) -> None:
        """Change the file below ``root``; ValueError as :meth:`file`."""
        file = self.file(root)
        file.write_text(file.read_text(encoding="utf-8").replace(self.text, self.planted), encoding="utf-8")


_WINDOW = "tvm_na/te/common/window.py"
_LANES = "tvm_na/te/attention"
_CPU = ("tests/schedules/test_cpu.py",)

FAULTS = (
    # --- mathematics
    Fault(
        "windows of even size shifted by one",
        _WINDOW,
        "leader - kernel_size // 2, length",
        "leader - (kernel_size - 1) // 2, length",
        ("tests/te/test_window.py",),
    ),
    Fault(
        "every dilation group as long as the longest",
        _WINDOW,
        "return (length - residue + dilation - 1) // dilation",
        "return (length + dilation - 1) // dilation",
        ("tests/te/test_window.py",),
    ),
    Fault(
        "one query too few in the range of a backward pass",
        _WINDOW,
        "kernel_size // 2 + (stride + 1) // 2",
        "kernel_size // 2 + stride // 2",
        ("tests/te/test_window.py",),
    ),
    Fault(
        "the bias's index mirrored along rows",
        "tvm_na/te/common/rows.py",
        "index = start + offset - position // d + k - 1",
        "index = position // d - start - offset + k - 1",
        _CPU,
    ),
    Fault(
        "the stride of rows taken for that of columns",
        _LANES,
        "p.stride[-1], p.is_causal[-1])",
        "p.stride[0], p.is_causal[-1])",
        _CPU,
    ),
    Fault("no causal mask along rows", _LANES, "column < end, *self.rows.exists(i, a))", "column < end)", _CPU),
    Fault(
        "a log-sum-exp without the maximum", _LANES, "(maximum[q] + tirx.log2(total[q]))", "tirx.log2(total[q])", _CPU
    ),
    Fault(
        "what is masked counts in windows without scores",
        _LANES,
        "column), result, self.const(-math.inf))",
        "column), result, tirx.min_value(self.accum))",
        ("tests/ops/test_edge_values.py",),
    ),
    Fault(
        "queries read the keys of another group's head",
        _LANES,
        "return h if group == 1 else h // group",
        "return h if group == 1 else h % self.problem.heads_kv",
        _CPU,
    ),
    Fault(
        "values of a window read in reverse",
        "tvm_na/te/unfused/lanes.py",
        "row, column = rows.key_row(i, a), residue + dilation * (start + l)",
        "row, column = rows.key_row(i, a), residue + dilation * (start + columns - 1 - l)",
        ("tests/schedules/test_cpu_unfused.py",),
    ),
    Fault(
        "computing before asynchronous copies have arrived",
        "tvm_na/cuda/async_copies.py",
        '_scoped("async_wait_inflight_count", 0,',
        '_scoped("async_wait_inflight_count", 1,',
        ("tests/schedules/test_tensor_cores.py",),
    ),
    Fault(
        "a batch in TF32 bounded by elements, though copies count bytes",
        "tvm_na/problems/attention.py",
        "return max(super().counted_per_element, of_copies)",
        "return super().counted_per_element",
        ("tests/schedules/test_tensor_cores.py",),
    ),
    Fault(
        "rows copied whole, by fewer warps than there are",
        "schedules/cuda/band_sizes.py",
        "if rows >= warps:",
        "if rows >= 1:",
        ("tests/schedules/test_tensor_cores.py",),
    ),
    Fault(
        "a step that ends behind a window taken for one that all queries see",
        "tvm_na/te/attention/flash_scores.py",
        "found = [x < begin, x + keys > end]",
        "found = [x < begin, x > end]",
        ("tests/schedules/test_flash.py",),
    ),
    Fault(
        "keys copied to where others are being read",
        "tvm_na/te/attention/flash_ring.py",
        "self._fetch(following % stages, following)",
        "self._fetch(n % stages, following)",
        ("tests/schedules/test_flash.py",),
    ),
    Fault(
        "sums that stay relative to a smaller score",
        "tvm_na/te/attention/flash_warp.py",
        "self.attended[at] * self.alpha",
        "self.attended[at] + 0 * self.alpha",
        ("tests/schedules/test_flash.py",),
    ),
    Fault(
        "queries of a key at the border left out",
        "tvm_na/te/backward/flash_tile.py",
        "return group_queries(minimum(t, group - 1), group,",
        "return group_queries(minimum(t, group - 1), group + 1,",
        ("tests/schedules/test_flash_backward.py",),
    ),
    Fault(
        "gradients of scores that float16 does not hold",
        "tvm_na/te/backward/flash_range.py",
        "largest[0] > f32(_MOST)",
        "largest[0] > f32(_MOST * 2.0**40)",
        ("tests/schedules/test_flash_backward.py",),
    ),
    Fault(
        "sums for a bias of warps joined before all have added theirs",
        "tvm_na/te/backward/flash_kernels.py",
        "        barrier()\n        dealt_out(layout.entries",
        "        dealt_out(layout.entries",
        ("tests/schedules/test_flash_backward.py",),
    ),
    Fault(
        "keys of a ring looked for where they were a turn before",
        "tvm_na/te/attention/strip_warp.py",
        "return tirx.Select(slot >= plan.ring, slot - plan.ring, slot)",
        "return slot",
        ("tests/schedules/test_strip.py",),
    ),
    Fault(
        "a ring too short for the steps on their way",
        "tvm_na/te/attention/strip_axis.py",
        "ends[min(step + stages, axis.tiles) - 1] - walk.begin(step))",
        "ends[step] - walk.begin(step))",
        ("tests/schedules/test_strip.py",),
    ),
    Fault(
        "sums over pairs of eights that both begin in the first row",
        "tvm_na/te/attention/strip_warp.py",
        "row = base if below == 0 else base + second * (below * ring.row)",
        "row = base",
        ("tests/schedules/test_strip.py",),
    ),
    Fault(
        "the bias of the next column",
        "tvm_na/te/attention/strip_warp.py",
        "self.place.lane_column(half) - left + self.lane4",
        "self.place.lane_column(half) - left + self.lane4 + 1",
        ("tests/schedules/test_strip.py",),
    ),
    Fault(
        "queries of a warp that begin in the same bank of shared memory",
        "schedules/cuda/gather.py",
        "-1 - own, 2 * self.group, self.group)",
        "-1 - own, self.group, 0)",
        ("tests/schedules/test_cuda.py",),
    ),
    # --- calls
    Fault(
        "the default scale without its root",
        "tvm_na/problems",
        "return head_dim**-0.5",
        "return head_dim**-1.0",
        ("tests/ops/test_contract.py",),
    ),
    Fault(
        "the last sample of a split batch lost",
        "tvm_na/ops/launch.py",
        "for start in range(0, len(first), samples):",
        "for start in range(0, len(first) - 1, samples):",
        ("tests/ops/test_attention.py",),
    ),
    Fault(
        "the bias's gradient of the last part alone",
        "tvm_na/ops/launch.py",
        "into += found",
        "into.copy_(found)",
        ("tests/ops/test_autograd.py",),
    ),
    # --- what is kept on disk
    Fault(
        "a changed schedule in a subfolder keeps its old kernels",
        "tvm_na/fingerprint.py",
        '.rglob("*.py")',
        '.glob("*.py")',
        ("tests/records/test_fingerprint.py",),
    ),
    Fault(
        "a kernel built without the lock",
        "tvm_na/jit/cache.py",
        "        lock.acquire()\n",
        "        pass\n",
        ("tests/jit/test_cache.py",),
    ),
    Fault(
        "a damaged kernel loaded",
        "tvm_na/jit/cache.py",
        'if _sha256(file) == entry["sha256"]:',
        "if file.is_file():",
        ("tests/jit/test_cache.py",),
    ),
    Fault(
        "a kernel loaded that others may have written",
        "tvm_na/owned.py",
        "if found.st_mode & _OTHERS_WRITE:",
        "if found.st_mode & 0:",
        ("tests/jit/test_cache_trust.py",),
    ),
    Fault(
        "another request's kernel loaded",
        "tvm_na/jit/cache.py",
        'entry.get("request") != index.stem',
        '"request" not in entry',
        ("tests/jit/test_cache_trust.py",),
    ),
    Fault(
        "a trace that says more than its search space",
        "tvm_na/records/replay.py",
        "if difference is not None:",
        "if difference is not None and record.line < 0:",
        ("tests/records/test_replay.py",),
    ),
    Fault(
        "a damaged record read",
        "tvm_na/records/read.py",
        "checksum_of(workload, line) not in self.checksums",
        "not self.checksums",
        ("tests/records/test_damage.py",),
    ),
    Fault(
        "a damaged compact record read",
        "tvm_na/records/compact.py",
        "if not as_it_is and (",
        "if as_it_is and (",
        ("tests/records/test_damage.py",),
    ),
    Fault(
        "another kernel than the measured one unnoticed",
        "tvm_na/records/replay.py",
        "kernel_name(module) != record.kernel",
        'kernel_name(module) == ""',
        ("tests/records/test_compact.py",),
    ),
    Fault(
        "records of another level before near ones of this",
        "tvm_na/records/select.py",
        "found.append((far + level, place, key))",
        "found.append((far - level, place, key))",
        ("tests/records/test_levels.py",),
    ),
    Fault(
        "records of another target used",
        "tvm_na/records/index.py",
        "record.target ",
        "target_name ",
        ("tests/jit/test_build_records.py",),
    ),
    Fault(
        "weights that no model has, skipped in silence",
        "models/checkpoint.py",
        "unexpected=tuple(key for key in state if key not in wanted),",
        "unexpected=(),",
        ("tests/models/test_checkpoint.py",),
    ),
    Fault(
        "an artifact's files not compared with their digests",
        "tvm_na/deploy/files.py",
        'if digest != wanted["sha256"]:',
        "if not digest:",
        ("tests/deploy/test_manifest.py",),
    ),
    # --- images and the server
    Fault(
        "gray of 16 bits clipped to white",
        "tvm_na/images/decode.py",
        "if image.mode.startswith(",
        "if not image.mode.startswith(",
        ("tests/images/test_decode.py",),
    ),
    Fault(
        "a decoder that takes too long not ended",
        "tvm_na/serve/decoders.py",
        "except (asyncio.TimeoutError, TimeoutError) as error:\n            self._replace(slot)\n",
        "except (asyncio.TimeoutError, TimeoutError) as error:\n",
        ("tests/serve/test_decoders.py",),
    ),
    Fault(
        "a server of this machine asked by any name",
        "tvm_na/serve/app.py",
        "if is_local else None",
        "if not is_local else None",
        ("tests/serve/test_hostile.py",),
    ),
)
