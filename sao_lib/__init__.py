"""The thin library behind the SAO reproduction notebooks (arXiv 2510.06652)."""

import os

__version__ = "0.1.0"

# For every process, before torch or vLLM is imported: asking whether there is a GPU must not initialise CUDA, which a
# process that is forked afterwards could not use, and vLLM must not fork.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
