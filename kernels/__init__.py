"""CUDA kernels as source files: found, compiled and launched by gpucnn.launch."""
