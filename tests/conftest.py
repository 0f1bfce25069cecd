"""What every test shares: no progress bars, and one thread, because threads only cost time on models this small."""

import os

os.environ["TQDM_DISABLE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes and kernels that tests start

import torch

torch.set_num_threads(1)
