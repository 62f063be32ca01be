"""Shared parts of all methods: the contract, payloads, arithmetic on state dicts, local training, distillation."""
