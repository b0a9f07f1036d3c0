"""The pgpool adapter of efm-lb: speaks PCP, needs no pgpool package on the database nodes."""
