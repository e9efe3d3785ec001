"""C++ sources of the simulator's runtime, compiled with the kernels by gpucnn.simulator."""
