"""The distillation of a method on Ray: sampling by Ray Data, training by Ray Train."""
