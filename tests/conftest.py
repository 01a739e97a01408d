"""What all tests share: one thread for torch (two processes test on two cores), and no colours."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["NO_COLOR"] = "1"
os.environ["COLUMNS"] = "160"
