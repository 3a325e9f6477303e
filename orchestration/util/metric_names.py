"""Names of metrics that more than one package reads."""

SYSTEM_PREFIX = "system/"
PEAK_MEMORY = f"{SYSTEM_PREFIX}peak_tensor_megabytes"
# What depends on the machine: recorded, and outside every comparison of bits.
OF_THE_MACHINE = ("time/", SYSTEM_PREFIX)
