"""Who carries the steps out: workers, runners, hosts, the distillation pipeline and trainer."""
