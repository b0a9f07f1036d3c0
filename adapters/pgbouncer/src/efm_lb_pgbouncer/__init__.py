"""The PgBouncer adapter of efm-lb: edits the entries in PgBouncer's file, and proves the change by its console."""
