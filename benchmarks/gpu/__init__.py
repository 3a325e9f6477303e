"""The first GPU: the GPU suite, what a step costs, trainings beside each other, epochs. `make gpu` runs it all."""
