// Whether this machine can run the code of an artifact, found out before any of that code runs.
#pragma once

#include <sched.h>
#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace tvm_na {

#if defined(__x86_64__)
inline const std::string kArchitecture = "x86_64";
#elif defined(__aarch64__)
inline const std::string kArchitecture = "aarch64";
#else
#error "required x86-64 or AArch64"
#endif

// Whether the CPU has a feature, by its name in /proc/cpuinfo, which is what manifests have.
inline bool has_feature(const std::string& name) {
#if defined(__x86_64__)
#define TVM_NA_FEATURE(feature, builtin) \
  if (name == feature) return __builtin_cpu_supports(builtin) != 0;
  TVM_NA_FEATURE("avx512f", "avx512f")
  TVM_NA_FEATURE("avx512bw", "avx512bw")
  TVM_NA_FEATURE("avx512cd", "avx512cd")
  TVM_NA_FEATURE("avx512dq", "avx512dq")
  TVM_NA_FEATURE("avx512vl", "avx512vl")
  TVM_NA_FEATURE("avx2", "avx2")
  TVM_NA_FEATURE("bmi1", "bmi")
  TVM_NA_FEATURE("bmi2", "bmi2")
  TVM_NA_FEATURE("fma", "fma")
  TVM_NA_FEATURE("popcnt", "popcnt")
  TVM_NA_FEATURE("sse4_2", "sse4.2")
  TVM_NA_FEATURE("ssse3", "ssse3")
#undef TVM_NA_FEATURE
  // Older compilers cannot ask for these; CPUs that have the others of their level have them too.
  if (name == "cx16" || name == "movbe" || name == "f16c") return true;
#else
  if (name == "asimd") return (getauxval(AT_HWCAP) & HWCAP_ASIMD) != 0;
#endif
  throw std::runtime_error("manifest.json: required CPU features that this program knows, got " + name);
}

// TVM's threads: as many as the process may use cores, unless the environment says otherwise. By itself TVM takes half
// of them, and binds each to a core, where it meets the threads of every other process that does so.
inline void choose_threads() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  if (sched_getaffinity(0, sizeof(cores), &cores) != 0) throw std::runtime_error("cannot ask for this process's cores");
  setenv("TVM_NUM_THREADS", std::to_string(CPU_COUNT(&cores)).c_str(), 0);
  setenv("TVM_BIND_THREADS", "0", 0);
}

}  // namespace tvm_na
