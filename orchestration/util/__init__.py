"""Small things that know nothing of experiments: provenance, time, text, passwords."""
