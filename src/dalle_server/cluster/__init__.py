"""Engines on a Ray cluster: Ray Serve runs, scales and replaces the replicas; a front's `ClusterEngine` stands for all.

Nothing else imports ray, and this does only when `--cluster` asks for it: the base install has none.
"""
