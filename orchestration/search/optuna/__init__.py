"""The only folder that knows Optuna: samplers, pruners, its storage and its figures."""
