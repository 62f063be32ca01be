"""Ray actors that perform steps: where they stand, what each is sent, and their replacement."""
