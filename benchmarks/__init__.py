"""Measurements that people run by hand; no test depends on a clock."""
