"""Where a ledger can lie: a folder or a bucket, with the lock of an experiment."""
