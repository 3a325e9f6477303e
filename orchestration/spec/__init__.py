"""From a YAML file to the cells of an experiment, or to every mistake in it."""
