import os

# Before torch is imported, here and in what the tests start: two test processes with two threads each on two cores
# wait for each other at every little sum.
os.environ["OMP_NUM_THREADS"] = "1"
