"""The only folder that knows Ray: where trainings run, in which order, and what happens when one dies."""
