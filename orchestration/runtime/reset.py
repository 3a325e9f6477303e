"""Resets the state of a process between two trainings."""

import gc
import random

import numpy as np
import torch

from fsg.seeding import seed_generators


def reset_process_state(threads: int, seed: int) -> None:
    """Put the process into the state of a fresh one, so that earlier trainings in it change no number."""
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    torch.set_flush_denormal(False)
    if torch.are_deterministic_algorithms_enabled():  # setting it, whatever to, imports the compiler: seconds
        torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # what an earlier training held is not to stand in the way of its neighbours
        gc.collect()
        torch.cuda.empty_cache()
    random.seed(seed)
    np.random.seed(seed)
    seed_generators(seed)
