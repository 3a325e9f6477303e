"""Numbers in, numbers out: statistics, comparisons and the verdict of an experiment."""
