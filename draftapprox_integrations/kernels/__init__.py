"""Triton kernels, each beside its PyTorch form, which is its oracle and its fallback.

A public function takes plain tensors and runs the kernel where `dispatch.use_triton` says so. The modules `triton_*`
hold the kernels; they are imported on first use, as Triton need not be installed.
"""
