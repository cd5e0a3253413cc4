"""Many edits: rows (jobs), their results (edits), and a folder of them (run, folder, engines)."""
