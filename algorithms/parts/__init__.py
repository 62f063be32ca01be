"""What several methods share: averages, ensembles, sub-models, losses."""
