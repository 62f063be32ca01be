"""Execution of steps: workers, runners, hosts, the distillation pipeline and trainer."""
