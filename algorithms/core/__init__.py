"""What methods share: the contract, payloads, arithmetic on state dicts, local training, distillation."""
