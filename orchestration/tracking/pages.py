"""Where MLflow's pages are."""

VIEW = "comparison"


def comparison(experiment_id: str) -> str:
    """Where, below a server's address, an experiment is compared; without one, all experiments."""
    if not experiment_id:
        return "/#/experiments"
    query = f"workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey={VIEW}"
    return f"/#/experiments/{experiment_id}/runs?{query}"
