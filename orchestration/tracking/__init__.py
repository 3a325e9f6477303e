"""The only folder that knows MLflow, which mirrors the ledger."""
