"""The report of an experiment: tables, figures and pages, from its ledger alone."""
