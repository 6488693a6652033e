"""The controller: asks the optimizer, submits, monitors and retries attempts, records events."""
