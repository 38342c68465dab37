"""Planted faults, and a script that shows that the tests find every one: ``python -m tests.faults``.

What found each when it was last run with all:

- windows of even size shifted by one, every dilation group as long as the longest:
  ``te/test_window.py::test_neighbors_of_every_axis``
- one query too few in the range of a backward pass: ``te/test_window.py::test_queries_of_every_axis``
- the bias's index mirrored, the stride of another axis, no causal mask along rows, a log-sum-exp without the maximum,
  keys of another group's head: ``schedules/test_cpu.py::test_random_problems_agree_with_the_reference``
- values of a window in reverse: ``schedules/test_cpu_unfused.py::test_random_problems_agree_with_the_reference``
- computing before asynchronous copies have arrived:
  ``schedules/test_tensor_cores.py::test_every_formulation_and_structure_is_right``
- the default scale without its root: ``ops/test_contract.py::test_random_calls_are_those_of_the_reference...``
- the last sample of a split batch lost: ``ops/test_attention.py::test_a_batch_too_large_for_32_bits_is_split``
- the bias's gradient of the last part alone: ``ops/test_autograd.py::test_a_batch_too_large_for_32_bits_is_split``
- a changed schedule in a subfolder: ``records/test_fingerprint.py::test_a_change_in_any_folder_changes_the_digest``
- a kernel built without the lock: ``jit/test_cache.py::test_of_many_processes_one_builds``
- a damaged kernel loaded: ``jit/test_cache.py::test_damage_is_a_miss_and_is_mended``
- records of another target: ``jit/test_build_records.py::test_records_of_another_target_are_skipped``
- weights skipped in silence: ``models/test_checkpoint.py::test_strict_names_every_difference_and_changes_nothing``
- an artifact's files not compared: ``deploy/test_manifest.py::test_a_flipped_bit_is_found_in_every_file``
"""
