"""Views of a run: terminal, report, MLflow, trace."""
