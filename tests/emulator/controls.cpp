// The emulator's own controls for Python, in the library that holds the kernels, for they share its state.
#include "cuda_runtime.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

namespace py = pybind11;
using namespace liteseg::emulator;

PYBIND11_MODULE(LITESEG_EMULATOR_MODULE, m) {
  m.def(
      "configure",
      [](const std::string& schedule, uint64_t seed, bool poison, int64_t max_shared, int multiprocessors, bool sm_90,
         int cluster_blocks, bool plan, const std::vector<std::pair<uintptr_t, int64_t>>& unwritten) {
        if (schedule != "up" && schedule != "down" && schedule != "random") {
          throw py::value_error("configure: schedule: expected up, down or random, got " + schedule);
        }
        controls.schedule = schedule == "up" ? Schedule::kUp : schedule == "down" ? Schedule::kDown : Schedule::kRandom;
        controls.seed = seed;
        controls.poison = poison;
        controls.max_shared = max_shared;
        controls.multiprocessors = multiprocessors;
        controls.sm_90 = sm_90;
        controls.cluster_blocks = cluster_blocks;
        controls.plan = plan;
        controls.unwritten.clear();
        for (const auto& [address, bytes] : unwritten) {
          controls.unwritten.emplace_back(reinterpret_cast<unsigned char*>(address), bytes);
        }
      },
      py::kw_only(), py::arg("schedule") = "up", py::arg("seed") = 0, py::arg("poison") = true,
      py::arg("max_shared") = 163 * 1024, py::arg("multiprocessors") = 132, py::arg("sm_90") = true,
      py::arg("cluster_blocks") = 132, py::arg("plan") = false,
      py::arg("unwritten") = std::vector<std::pair<uintptr_t, int64_t>>());
  m.def("reset_counters", [] { counters = {}; });
  // (grid, threads, bytes of shared memory, blocks of a cluster, early) of each launch noted since the last call
  m.def("planned", [] {
    py::list launches;
    for (const Planned& launch : planned) {
      launches.append(py::make_tuple(py::make_tuple(launch.x, launch.y, launch.z), launch.threads, launch.shared,
                                     launch.cluster, launch.early));
    }
    planned.clear();
    return launches;
  });
  m.def("counters", [] {
    py::dict values;
    values["launches"] = counters.launches;
    values["early_launches"] = counters.early_launches;
    values["blocks"] = counters.blocks;
    values["clusters"] = counters.clusters;
    values["switches"] = counters.switches;
    values["barriers"] = counters.barriers;
    values["warp_operations"] = counters.warp_operations;
    values["matrix_products"] = counters.matrix_products;
    values["matrix_loads"] = counters.matrix_loads;
    values["shared_copies"] = counters.shared_copies;
    return values;
  });
}
