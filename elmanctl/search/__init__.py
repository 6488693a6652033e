"""The search: space, optimizer, and the loop that joins them to jobs and ledger."""
