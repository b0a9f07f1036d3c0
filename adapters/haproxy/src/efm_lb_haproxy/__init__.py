"""The HAProxy adapter of efm-lb: speaks the runtime API, and keeps the result in haproxy.cfg; needs no reload."""
