"""Shared parts of several methods: averages, ensembles, sub-models, losses."""
