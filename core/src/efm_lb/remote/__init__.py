"""Balancers on other hosts: one JSON document each way between the hook and ``efm-lb apply``, over OpenSSH.

`schemas` publishes the documents, `documents` turns them into efm-lb's own types and back, `client` starts ssh and
`ssh` talks to it, `balancer` stands in for an adapter on this side and `apply` is the command on the other.
"""
